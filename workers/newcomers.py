"""A namespace that is new, from its creation to its NetNamespace, by what the watches have: in a burst most requests to
the API server would else be for what is known already.

What is done here is only what no older view of the objects can make wrong: an EgressAddress and a NetNamespace are
made, of which the API server says that they were not there. Everything else is for `workers.namespaces`.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from egress import pools
from egress.adapters.cluster import ConflictError
from egress.adapters.ledger import Offer, name_holder
from egress.addresses import Address, AddressError, object_name
from egress.messages import PLACE_TASK, PUBLISH_TASK
from egress.objects import Namespace, Phase, operation_of
from egress.stock import Stock
from workers import makers, namespaces
from workers.context import Context
from workers.view import Newcomer

CLAIMED = "claimed"
"""The ledger's word for an address that an EgressAddress holds."""


def converge(context: Context, name: str) -> bool:
    """Takes the namespace a step further; False if it is not certainly a new one, or nobody watches."""
    if pools.is_system(name):
        return False
    standing = context.ledger.standing(name)
    seen = context.views.newcomer(context.ledger, name, standing.version)
    addresses = _given(seen.namespace) if seen is not None else ()
    if seen is None or not addresses or standing.offer is None:
        return False
    reserved = _reserved(standing.entries, standing.offer, seen, addresses)
    if reserved is None:
        return False
    namespace = seen.namespace
    if operation := operation_of(namespace.annotations):
        structlog.contextvars.bind_contextvars(operation=operation)
    if not all(namespaces.claim(context, namespace, address, standing.offer) for address in reserved):
        return False  # somebody else has it: it gets another
    if reserved:
        context.ledger.claimed(name_holder(name), reserved)
        context.ask(PUBLISH_TASK)  # the claim alone closes the namespace, where it has a NetID
        context.ask(PLACE_TASK)
    try:
        makers.of(context).bind(context, namespace, None, addresses, [], returning=len(reserved) < len(addresses))
    except ConflictError:
        return False  # there is one by now
    return True


def _given(namespace: Namespace) -> tuple[Address, ...]:
    """The addresses in the annotation of a namespace that is to have them."""
    if namespace.deleting or pools.opted_out(namespace.annotations):
        return ()
    try:
        return pools.annotated_addresses(namespace.annotations)
    except AddressError:
        return ()


def _reserved(
    entries: Mapping[Address, tuple[str, str]], offer: Offer, seen: Newcomer, addresses: tuple[Address, ...]
) -> list[Address] | None:
    """Those of `addresses` that are still to be claimed; None if the namespace has, or had, anything else."""
    if entries.keys() != set(addresses):
        return None
    name, reserved = seen.namespace.name, []
    stock = Stock({pool.name: pool for pool in offer.pools}, {})
    for address in addresses:
        state, holder = entries[address]
        claim = seen.claim(object_name(address))
        if holder != name_holder(name) or state not in (namespaces.RESERVED, CLAIMED):
            return None
        if state == namespaces.RESERVED:
            if claim is not None:
                return None
            reserved.append(address)
        elif (
            claim is None
            or (claim.namespace, claim.namespace_uid) != (name, seen.namespace.uid)
            or claim.phase is Phase.QUARANTINED
            or claim.adopted
            or stock.standing(claim, seen.namespace).release
        ):
            return None
    return reserved
