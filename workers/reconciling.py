"""What runs by the clock: a full look at everything, lapsed reservations, and quarantines that end."""

from __future__ import annotations

import time

import structlog

from egress import pools
from egress.adapters import manifests
from egress.adapters.cluster import ConflictError, Kind
from egress.adapters.ledger import Holding, Offer, name_holder
from egress.addresses import Address, AddressError, object_name, parse_address
from egress.messages import CONTROL_QUEUE, NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK
from egress.objects import ADDRESSES_ANNOTATION, EgressAddress, EgressPool, HostSubnet, Namespace, NetNamespace, Phase
from egress.operations import Step
from workers.context import Context, readable

_log = structlog.get_logger()


def reconcile(context: Context) -> int:
    """Rebuilds the ledger's index from the objects and starts work wherever something is not as it should be.

    Gives the number of namespaces that work was started for.
    """
    listed_at = context.ledger.now()
    pool_list = context.pools()
    subnets = context.host_subnets()
    namespaces = readable(manifests.namespace, context.cluster.list(Kind.NAMESPACE).items)
    claims = context.egress_addresses()
    bindings = {item.name: item for item in context.net_namespaces()}
    context.ledger.set_offer(Offer(tuple(pool_list), _node_ips(subnets)))
    context.ledger.sync(_holdings(claims, namespaces), listed_at, ready=True)

    mine: dict[str, set[Address]] = {}
    for claim in claims:
        if claim.phase is not Phase.QUARANTINED:
            mine.setdefault(claim.namespace_uid, set()).add(parse_address(claim.address))
    unsettled = {
        namespace.name
        for namespace in namespaces
        if _unsettled(namespace, mine.get(namespace.uid, set()), bindings.get(namespace.name), pool_list)
    }
    live = {(namespace.name, namespace.uid) for namespace in namespaces}
    unsettled |= {
        claim.namespace
        for claim in claims
        if claim.phase is not Phase.QUARANTINED and (claim.namespace, claim.namespace_uid) not in live
    }
    for name in sorted(unsettled):
        context.ask(NAMESPACE_TASK, CONTROL_QUEUE, name)
    context.ask(PLACE_TASK, CONTROL_QUEUE)
    context.ask(PUBLISH_TASK, CONTROL_QUEUE)
    return len(unsettled)


def sweep(context: Context) -> None:
    """Returns reservations that nobody confirmed, and ends quarantines whose time is over."""
    if not context.ledger.is_ready():
        reconcile(context)  # Redis was flushed: do not leave admission without it until the next full reconcile
    lapsed = context.ledger.lapsed(context.settings.reservation_lifetime)
    if lapsed:
        _return_lapsed(context, lapsed)
    _end_quarantines(context)


def _return_lapsed(context: Context, lapsed: dict[Address, str]) -> None:
    """A reservation goes back only when no namespace carries it: a confirmation may merely be late."""
    carried: dict[Address, str] = {}
    for namespace in readable(manifests.namespace, context.cluster.list(Kind.NAMESPACE).items):
        for address in _annotated(namespace):
            carried[address] = namespace.name
    for address, holder in lapsed.items():
        if address in carried:
            context.ask(NAMESPACE_TASK, CONTROL_QUEUE, carried[address])
            continue
        there = context.cluster.get(Kind.EGRESS_ADDRESS, object_name(address))
        if there is None:
            context.ledger.lapse(holder, [address], context.settings.reservation_lifetime)
            _log.info("reservation returned", address=str(address), holder=holder)
            continue
        claim = manifests.egress_address(there)
        settle = context.ledger.quarantined if claim.phase is Phase.QUARANTINED else context.ledger.claimed
        settle(name_holder(claim.namespace), [address])


def _end_quarantines(context: Context) -> None:
    now = time.time()
    for claim in context.egress_addresses():
        if claim.phase is not Phase.QUARANTINED or claim.quarantined_until > now:
            continue
        address = parse_address(claim.address)
        try:
            context.cluster.delete(Kind.EGRESS_ADDRESS, object_name(address), resource_version=claim.resource_version)
        except ConflictError:
            continue  # its namespace came back just now
        context.ledger.quarantine_over(name_holder(claim.namespace), [address])
        context.record(Step.QUARANTINE, claim.namespace, address=claim.address, message="free again")


def _holdings(claims: list[EgressAddress], namespaces: list[Namespace]) -> list[Holding]:
    """Everything that an object holds. A namespace's annotation counts where no EgressAddress says otherwise, and
    where it carries again what it held before: that address is no longer on its way out."""
    holdings = {
        parse_address(claim.address): Holding(
            parse_address(claim.address), name_holder(claim.namespace), claim.phase is Phase.QUARANTINED
        )
        for claim in claims
    }
    for namespace in namespaces:
        if pools.is_system(namespace.name):
            continue
        carried = [Holding(address, name_holder(namespace.name)) for address in _annotated(namespace)]
        for holding in carried:
            if holdings.get(holding.address, holding).holder == holding.holder:
                holdings[holding.address] = holding
    return list(holdings.values())


def _unsettled(
    namespace: Namespace, mine: set[Address], binding: NetNamespace | None, pool_list: list[EgressPool]
) -> bool:
    """Whether the namespace lacks an address that it should have, or a claim or a binding of one that it has."""
    if namespace.deleting or pools.is_system(namespace.name):
        return False
    addresses = _annotated(namespace)
    if not addresses:
        try:
            return pools.choose(namespace.name, namespace.labels, namespace.annotations, pool_list) is not None
        except pools.PoolError:
            return False  # said when it was created; nothing to do until somebody corrects it
    return not set(addresses) <= mine or binding is None or not {str(a) for a in addresses} <= set(binding.egress_ips)


def _annotated(namespace: Namespace) -> list[Address]:
    text = namespace.annotations.get(ADDRESSES_ANNOTATION, "")
    try:
        return [parse_address(part.strip()) for part in text.split(",") if part.strip()]
    except AddressError:
        return []


def _node_ips(subnets: list[HostSubnet]) -> frozenset[Address]:
    found = set()
    for subnet in subnets:
        try:
            found.add(parse_address(subnet.host_ip))
        except AddressError:
            continue
    return frozenset(found)
