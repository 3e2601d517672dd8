"""One namespace, from its annotation to a durable claim and a binding, or to the release of what it had."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import structlog

from egress import pools, tickets
from egress.adapters import manifests
from egress.adapters.cluster import ConflictError, ExistsError, Kind
from egress.adapters.decisions import status_patch
from egress.adapters.ledger import (
    Exhausted,
    Held,
    NotReadyError,
    Offer,
    holder_of,
    manual_holder,
    name_holder,
    request_holder,
)
from egress.addresses import Address, AddressError, object_name, parse_address
from egress.messages import PLACE_TASK, PUBLISH_TASK, TICKETS_TASK
from egress.objects import (
    ADDRESSES_ANNOTATION,
    EgressAddress,
    EgressPool,
    Namespace,
    NetNamespace,
    Origin,
    Phase,
    operation_of,
)
from egress.operations import Outcome, PermanentError, Step, TransientError
from egress.stock import Stock
from workers import adopting, makers, releasing
from workers.context import NAMESPACE_LABEL, Context, holder_of_broken, readable
from workers.status import foreign

_log = structlog.get_logger()
RESERVED = "reserved"
"""The ledger's word for an address that no object holds yet."""


def converge(context: Context, name: str) -> None:
    """Brings one namespace to where it should be. Safe to run twice, late, or at the same time as another run."""
    if pools.is_system(name):
        return
    manifest = context.cluster.get(Kind.NAMESPACE, name)
    namespace = manifests.namespace(manifest) if manifest is not None else None
    claims = _claims(context, name, namespace)
    if namespace is None:
        releasing.end(context, name, claims)
        return
    # Only what belonged to a namespace that is gone. One that is still on its way out keeps its address: its pods
    # run, and must never be seen with a node's IP. A claim without a uid, made by hand, is whoever has the name's.
    orphans = [claim for claim in claims if claim.namespace_uid not in ("", namespace.uid)]
    # The same name is back and has the same address: it is taken over, not released.
    releasing.release(context, name, orphans, kept=_annotated(namespace))
    if namespace.deleting:
        return
    if operation := operation_of(namespace.annotations):
        structlog.contextvars.bind_contextvars(operation=operation)
    there = makers.of(context).binding(context, name)
    own = [claim for claim in claims if claim not in orphans or not claim.adopted]
    _settle(context, namespace, there, adopting.follow(context, namespace, there, own, _annotated(namespace)))


def _settle(context: Context, namespace: Namespace, there: NetNamespace | None, claims: list[EgressAddress]) -> None:
    """Releases what a live namespace is to have no more, and claims and binds what it is to have.

    In this order: the annotation, so that nobody believes any more that it has the address; the claim; the
    NetNamespace. Until the last step its traffic leaves with the address, which is in quarantine, or is dropped.
    """
    name = namespace.name
    namespace, claims = _leave(context, namespace, claims)
    addresses = _assigned(context, namespace, claims)
    surplus = [claim for claim in claims if _is_surplus(claim, namespace, addresses)]
    releasing.release(context, name, surplus, why="its namespace has other addresses")
    releasing.release(context, name, [item for item in claims if item.phase is Phase.QUARANTINED], kept=addresses)
    former = [
        claim.address
        for claim in claims
        if parse_address(claim.address) not in addresses
        and not claim.adopted
        and (claim in surplus or not _is_own(claim, namespace))
    ]
    if not addresses:
        makers.of(context).unbind(context, name, former)
        if former:
            context.ask(PUBLISH_TASK)
        return
    mine = {parse_address(claim.address) for claim in claims if _stands(claim, namespace)}
    lost = [address for address in addresses if address not in mine and not claim(context, namespace, address)]
    if lost:
        _give_up(context, namespace, addresses, lost)
        raise TransientError(f"namespace {name} lost {', '.join(map(str, lost))}: it gets another address")
    context.ledger.claimed(name_holder(name), [address for address in addresses if address not in _adopted(claims)])
    context.ask(PUBLISH_TASK)  # the claim alone closes the namespace, where it has a NetID
    context.ask(PLACE_TASK)
    makers.of(context).bind(context, namespace, there, addresses, former, returning=bool(mine))


def _claims(context: Context, name: str, namespace: Namespace | None) -> list[EgressAddress]:
    """The namespace's EgressAddresses, those of an earlier one of its name included.

    By their names, where the ledger knows which they are: for a list the API server looks at all that there are. What
    it does not know yet, an admin's own, the reconcile tells it. Of a namespace that is gone none may be missed.
    """
    labelled = []
    if namespace is None or not context.ledger.is_ready():
        labelled = context.egress_addresses(name)
    listed = {parse_address(claim.address) for claim in labelled}
    held = (*context.ledger.held_by(name_holder(name)), *context.ledger.held_by(manual_holder(name)))
    known = {*held, *_annotated(namespace)} - listed
    if namespace is not None and known and not labelled:
        known -= _unclaimed(context, name, known)
    found = [context.cluster.get(Kind.EGRESS_ADDRESS, object_name(address)) for address in sorted(known, key=int)]
    claims = readable(
        lambda manifest: manifests.egress_address(manifest, strict=True), [item for item in found if item is not None]
    )
    return labelled + [claim for claim in claims if claim.namespace == name]


def _unclaimed(context: Context, name: str, addresses: Collection[Address]) -> set[Address]:
    """Those of `addresses` that are still only reserved for the namespace: admission gave them a moment ago, and nobody
    has claimed them yet. Where the ledger is behind, and one has, making the claim finds it."""
    entries = context.ledger.entries(sorted(addresses, key=int))
    return {address for address, entry in entries.items() if entry == (RESERVED, name_holder(name))}


def _leave(
    context: Context, namespace: Namespace, claims: list[EgressAddress]
) -> tuple[Namespace, list[EgressAddress]]:
    """Releases the addresses that the namespace gave up, or its pool gives no more; the namespace and its claims after.

    While the index is rebuilt nothing is known of the pools, and nothing is released.
    """
    leaving = {}
    own = [claim for claim in claims if _is_own(claim, namespace)]
    if own and (offer := _offer(context)):
        stock = Stock({pool.name: pool for pool in offer.pools}, {})  # no range ends anything: that is not worked out
        standings = {claim: stock.standing(claim, namespace) for claim in own}
        leaving = {claim: standing.message for claim, standing in standings.items() if standing.release}
    annotated = _annotated(namespace)
    kept = [address for address in annotated if address not in {parse_address(claim.address) for claim in leaving}]
    if pools.opted_out(namespace.annotations):
        kept = [address for address in kept if address in _adopted(claims)]
    if len(kept) < len(annotated):
        namespace = _annotate(context, namespace, ",".join(map(str, kept)) or None)
        given_back = [address for address in annotated if address not in kept]
        claimed = {parse_address(claim.address) for claim in claims}
        context.ledger.freed(name_holder(namespace.name), [item for item in given_back if item not in claimed])
    for claim, why in leaving.items():
        releasing.release(context, namespace.name, [claim], why=why)
    released = [replace(item, phase=Phase.QUARANTINED) for item in leaving if not item.adopted]
    return namespace, [item for item in claims if item not in leaving] + released


def _offer(context: Context) -> Offer | None:
    try:
        return context.ledger.offer()
    except NotReadyError:
        return None


def _is_own(claim: EgressAddress, namespace: Namespace) -> bool:
    """Whether the claim is this very namespace's, and has not been released."""
    return claim.namespace_uid in ("", namespace.uid) and claim.phase is not Phase.QUARANTINED


def _is_surplus(claim: EgressAddress, namespace: Namespace, addresses: Collection[Address]) -> bool:
    """Whether the claim is Hawse's own and of an address that the namespace has not.

    So it is when only some of the objects are restored from a backup.
    """
    return (
        bool(addresses)
        and _stands(claim, namespace)
        and claim.origin is not Origin.MANUAL
        and parse_address(claim.address) not in addresses
    )


def _adopted(claims: Iterable[EgressAddress]) -> set[Address]:
    return {parse_address(claim.address) for claim in claims if claim.adopted}


def _stands(claim: EgressAddress, namespace: Namespace) -> bool:
    """Whether this claim is the namespace's already, so that there is nothing to do."""
    return claim.namespace_uid == namespace.uid and claim.phase is not Phase.QUARANTINED


def _assigned(context: Context, namespace: Namespace, claims: list[EgressAddress]) -> tuple[Address, ...]:
    """The addresses in the namespace's annotation; where admission could not write it, it is written now.

    While the webhook is away anybody may write the annotation: it counts only where it says what Hawse has given.
    """
    try:
        addresses = pools.annotated_addresses(namespace.annotations)
        strange = _strange(context, namespace, addresses, claims)
        problem = f"{', '.join(map(str, strange))} was not given to this namespace by Hawse" if strange else ""
    except AddressError as error:
        addresses, problem = (), str(error)
    if addresses and not problem:
        return addresses
    if not problem:
        return _restored(context, namespace, claims) or _assign(context, namespace)
    _log.warning("annotation ignored", namespace=namespace.name, error=problem)
    context.complain(namespace, "AnnotationIgnored", f"annotation {ADDRESSES_ANNOTATION} is replaced: {problem}")
    try:
        addresses = _restored(context, namespace, claims) or _assign(context, namespace)
    except PermanentError:
        _annotate(context, namespace, None)
        raise
    if not addresses:
        _annotate(context, namespace, None)
    return addresses


def _strange(
    context: Context, namespace: Namespace, addresses: tuple[Address, ...], claims: list[EgressAddress]
) -> list[Address]:
    """Which of `addresses` neither the namespace's claims nor the ledger know as its own, or as reserved by the request
    that made it, when it had no name yet."""
    claimed = {parse_address(claim.address) for claim in claims}
    unclaimed = [address for address in addresses if address not in claimed]
    if not unclaimed:
        return []
    holders = context.ledger.holders(unclaimed)
    own = {name_holder(namespace.name), manual_holder(namespace.name)}
    if operation := operation_of(namespace.annotations):
        own.add(request_holder(operation))
    return [address for address in unclaimed if holders.get(address) not in own]


def _restored(context: Context, namespace: Namespace, claims: list[EgressAddress]) -> tuple[Address, ...]:
    """The addresses that the namespace has claimed, written into its annotation, which somebody has lost.

    Not those whose pool is gone or to go: who deletes a pool and takes the annotation away wants to be rid of them.
    """
    offer = _offer(context)
    giving = {pool.name for pool in offer.pools if not pool.deleting} if offer is not None else set()
    addresses = sorted(
        (parse_address(claim.address) for claim in claims if _is_own(claim, namespace) and claim.pool in giving),
        key=int,
    )
    if not addresses or pools.opted_out(namespace.annotations):
        return ()
    _annotate(context, namespace, ",".join(map(str, addresses)))
    return tuple(addresses)


def _assign(context: Context, namespace: Namespace) -> tuple[Address, ...]:
    """Reserves what the namespace is to get and writes it into its annotation; nothing if no pool serves it."""
    offer = context.ledger.offer()
    try:
        choice = pools.choose(
            namespace.name, namespace.labels, namespace.annotations, offer.pools, offer.node_ips, offer.gateways
        )
    except pools.PoolError as error:
        context.complain(namespace, "NoPool", str(error))
        raise PermanentError(str(error)) from error
    if choice is None:
        return ()
    free = pools.ranges(choice.pool, offer.withheld)
    outcome = context.ledger.reserve(
        name_holder(namespace.name), choice.count, free, choice.requested, pairs=choice.pool.dual_stack
    )
    if isinstance(outcome, Held):
        message = f"address {outcome.address}, which namespace {namespace.name} asks for, is in use"
        context.complain(namespace, "AddressInUse", message)
        raise PermanentError(message)
    if isinstance(outcome, Exhausted):
        message = pools.exhausted(choice.pool, choice.count, outcome.used, outcome.total)
        context.complain(namespace, "PoolExhausted", message)
        raise PermanentError(message)
    _annotate(context, namespace, ",".join(map(str, outcome.addresses)))
    return outcome.addresses


def _annotate(context: Context, namespace: Namespace, addresses: str | None) -> Namespace:
    metadata = {"resourceVersion": namespace.resource_version, "annotations": {ADDRESSES_ANNOTATION: addresses}}
    return manifests.namespace(context.cluster.patch(Kind.NAMESPACE, namespace.name, {"metadata": metadata}))


def claim(context: Context, namespace: Namespace, address: Address, offer: Offer | None = None) -> bool:
    """Makes `address` the namespace's by an object named after it; False when it is another namespace's. `offer` are
    the pools, where they are known.

    That the name exists at most once is the API server's word: no two namespaces can hold one address.
    """
    pool = _pool_of(offer or context.ledger.offer(), namespace, address)
    claim = EgressAddress(
        str(address),
        pool.name,
        namespace.name,
        namespace.uid,
        _origin(namespace, address),
        operation=operation_of(namespace.annotations),
        approval_required=pool.approval_required,
    )
    manifest = manifests.egress_address_manifest(claim)
    manifest["metadata"]["labels"] = {NAMESPACE_LABEL: namespace.name}
    try:
        context.cluster.create(Kind.EGRESS_ADDRESS, manifest)
    except ExistsError:
        there = context.cluster.get(Kind.EGRESS_ADDRESS, object_name(address))
        if there is None:
            raise ConflictError(f"EgressAddress {address} came and went") from None
        try:
            found = manifests.egress_address(there)
        except manifests.ManifestError:
            if holder_of_broken(there, address) == name_holder(namespace.name):
                raise  # its own: it keeps the address, and whoever broke the object is to mend it
            return False
        if found.namespace != namespace.name:
            return False
        if _stands(found, namespace):
            return True
        _take_back(context, namespace, found, pool)
    context.record(Step.CLAIM, namespace.name, address=str(address))
    if pool.ticket_profile:
        context.ask(TICKETS_TASK, pool.ticket_profile)
    return True


def _take_back(context: Context, namespace: Namespace, found: EgressAddress, pool: EgressPool) -> None:
    """The namespace was created again: the address it had is its own again.

    An approval that it had is not: it was for the assignment that ended, which nobody may have noticed.
    """
    name = object_name(parse_address(found.address))
    if found.decision is not None or (found.ticket is not None and not found.ticket.ended):
        patch = status_patch(tickets.ended(found))
        patched = context.cluster.patch(Kind.EGRESS_ADDRESS, name, patch, subresource="status")
        found = manifests.egress_address(patched)
    approval = "required" if pool.approval_required else "none"
    spec = {"namespace": {"name": namespace.name, "uid": namespace.uid}, "approval": approval}
    metadata = {"resourceVersion": found.resource_version}
    patched = context.cluster.patch(Kind.EGRESS_ADDRESS, name, {"metadata": metadata, "spec": spec})
    patch = {
        "metadata": {"resourceVersion": patched["metadata"]["resourceVersion"]},
        "status": {
            "phase": Phase.PENDING.value,
            "quarantinedUntil": None,
            "conditions": manifests.conditions_manifest(foreign(found)),
        },
    }
    context.cluster.patch(Kind.EGRESS_ADDRESS, name, patch, subresource="status")


def _give_up(context: Context, namespace: Namespace, addresses: tuple[Address, ...], lost: list[Address]) -> None:
    """Takes addresses that turned out to be another's out of the annotation, for others where the pool has them."""
    context.ledger.freed(name_holder(namespace.name), lost)
    for address in lost:
        there = context.cluster.get(Kind.EGRESS_ADDRESS, object_name(address))
        if there is None:
            continue
        try:
            holder = manifests.egress_address(there)
        except manifests.ManifestError as error:
            context.ledger.claimed(holder_of_broken(there, address), [address])
            _tell_lost(context, namespace, address, f"{address} cannot be had: {error}")
            continue
        context.ledger.claimed(holder_of(holder), [address])
        message = (
            f"{address} is held by namespace {holder.namespace}, and {namespace.name} has it in its annotation too"
        )
        _tell_lost(context, namespace, address, message)
        if holder.namespace_uid:
            context.tell(holder.namespace, holder.namespace_uid, "EgressConflict", message, warning=True)
    try:
        assigned = _assign(context, namespace)
    except PermanentError:  # the next run fails of the same, and says so
        assigned = ()
    if not assigned:
        kept = [address for address in addresses if address not in lost]
        _annotate(context, namespace, ",".join(map(str, kept)) or None)


def _tell_lost(context: Context, namespace: Namespace, address: Address, message: str) -> None:
    context.record(Step.CLAIM, namespace.name, outcome=Outcome.RETRY, address=str(address), message=message)
    context.tell(namespace.name, namespace.uid, "AddressLost", message, warning=True)


def _annotated(namespace: Namespace | None) -> tuple[Address, ...]:
    try:
        return pools.annotated_addresses(namespace.annotations) if namespace is not None else ()
    except AddressError:
        return ()


def _pool_of(offer: Offer, namespace: Namespace, address: Address) -> EgressPool:
    """The pool that gave the address: the one that would be chosen now, if it covers it, else any that does. An address
    that no pool covers any more was given before the one that would be chosen was edited: there it stays, and says so.
    """
    try:
        choice = pools.choose(namespace.name, namespace.labels, namespace.annotations, offer.pools)
    except pools.PoolError:
        choice = None
    covering = [pool for pool in offer.pools if any(address in piece for piece in pools.ranges(pool))]
    if choice is not None and (choice.pool in covering or not covering):
        return choice.pool
    if not covering:
        raise PermanentError(f"address {address} of namespace {namespace.name} is in no EgressPool")
    return min(covering, key=lambda pool: pool.name)


def _origin(namespace: Namespace, address: Address) -> Origin:
    try:
        requested = pools.requested_addresses(namespace.annotations)
    except pools.PoolError:
        requested = ()
    return Origin.REQUESTED if address in requested else Origin.AUTOMATIC
