"""What runs by the clock: a full look at everything, lapsed reservations, and quarantines that end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from ipaddress import ip_interface

import structlog

from egress import pools, tickets
from egress.adapters import manifests
from egress.adapters.cluster import ConflictError, Kind, Manifest
from egress.adapters.ledger import Holding, Offer, holder_of, manual_holder, name_holder, node_holder
from egress.addresses import Address, AddressError, addresses_of, from_object_name, object_name, parse_address
from egress.messages import FAILOVER_TASK, NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, TICKETS_TASK
from egress.objects import CREATED_ANNOTATION, EgressAddress, HostSubnet, Namespace, NetNamespace, Origin, Phase
from egress.operations import PermanentError, Step
from egress.stock import Stock
from egress.table import NodeReport
from workers import census, makers, pooling, stillness
from workers.adopting import addresses_in
from workers.context import Context, holder_of_broken, readable
from workers.status import UPDATE_SECONDS

_log = structlog.get_logger()
_QUARANTINES = "quarantines"


def reconcile(context: Context) -> int:
    """Rebuilds the ledger's index from the objects and starts work wherever something is not as it should be.

    Gives the number of namespaces that work was started for. One run at a time: an older list of pools never
    overwrites a newer. Where nothing can have changed since the last time, only the nodes and the ticket systems are
    looked after.
    """
    with context.ledger.exclusively("reconcile"):
        before = stillness.view(context.ledger)
        if stillness.is_still(context, before):
            census.keep(context)
            context.ask(FAILOVER_TASK)
            for profile in stillness.profiles(context):
                context.ask(TICKETS_TASK, profile)
            return 0
        return _reconcile(context, before)


def _reconcile(context: Context, before: str) -> int:
    rebuilding = not context.ledger.is_ready()
    listed_at = context.ledger.now()
    pool_items = context.cluster.list(Kind.EGRESS_POOL).items
    pooling.protect(context, pool_items)
    subnets = makers.of(context).nodes(context)
    reports = context.ledger.reports(subnet.name for subnet in subnets)
    node_ips = _node_ips(subnets) | other_ips(reports.values())
    offer = Offer(tuple(pooling.read(pool_items)), node_ips, gateways(reports.values()))
    context.ledger.set_offer(offer)
    bindings = {item.name: item for item in makers.of(context).bindings(context)}
    context.ledger.see_netids({item.netid for item in bindings.values()})
    namespaces = readable(manifests.namespace, context.cluster.list(Kind.NAMESPACE).items)
    # Last: what is bound or hosted without a claim was put there by hand.
    claim_items = context.cluster.list(Kind.EGRESS_ADDRESS).items
    claims = readable(lambda item: manifests.egress_address(item, strict=True), claim_items)
    holdings = _holdings(claims, namespaces, [*subnets, *bindings.values()], rebuilding=rebuilding)
    holdings += _broken(claim_items, claims)
    # Only a rebuild declares the index complete: a flush in between leaves it to the next run.
    context.ledger.sync(holdings, listed_at, ready=rebuilding)

    stock = Stock.of(offer.pools, offer.withheld)
    unsettled = _unsettled(namespaces, claims, bindings, stock)
    context.ask_for(sorted(unsettled))
    stillness.begin_reconcile(context)
    context.ask(FAILOVER_TASK)  # who never said that it lives, and who is silent though nobody said so
    context.ask(PLACE_TASK)
    context.ask(PUBLISH_TASK)
    by_pool = {pool.name: pool.ticket_profile for pool in offer.pools}
    profiles = frozenset(tickets.profile_of(claim, by_pool.get(claim.pool, "")) for claim in claims) - {""}
    for profile in sorted(profiles):
        context.ask(TICKETS_TASK, profile)
    marked = pooling.mark(context, claims, namespaces, stock, time.monotonic() + UPDATE_SECONDS)
    nothing = marked and not unsettled and not rebuilding
    stillness.note_reconcile(context, before, nothing=nothing, profiles=profiles)
    return len(unsettled)


def gateways(reports: Iterable[NodeReport]) -> frozenset[Address]:
    """The gateways that the nodes have found: somebody's own addresses, which no pool may give."""
    return frozenset(gateway for report in reports for gateway in report.gateways)


def other_ips(reports: Iterable[NodeReport]) -> frozenset[Address]:
    """The nodes' own IPs beside those of the HostSubnets: of the other IP version on their links."""
    return frozenset(ip_interface(text).ip for report in reports for text in report.other_links)


def sweep(context: Context) -> None:
    """Returns reservations that nobody confirmed, and ends quarantines whose time is over."""
    if not context.ledger.is_ready():
        reconcile(context)  # Redis was flushed: do not leave admission without it until the next full reconcile
    lapsed = context.ledger.lapsed(context.settings.reservation_lifetime)
    if lapsed:
        _return_lapsed(context, lapsed)
    if _end_quarantines(context) or lapsed:
        context.ask(PUBLISH_TASK)  # the pools have more free addresses now


def _return_lapsed(context: Context, lapsed: dict[Address, str]) -> None:
    """A reservation goes back only when no namespace carries it: a confirmation may merely be late."""
    carried: dict[Address, str] = {}
    for namespace in readable(manifests.namespace, context.cluster.list(Kind.NAMESPACE).items):
        for address in _annotated(namespace):
            carried[address] = namespace.name
    for address, holder in lapsed.items():
        if address in carried:
            context.ask(NAMESPACE_TASK, carried[address])
            continue
        there = context.cluster.get(Kind.EGRESS_ADDRESS, object_name(address))
        if there is None:
            context.ledger.lapse(holder, [address], context.settings.reservation_lifetime)
            _log.info("reservation returned", address=str(address), holder=holder)
            continue
        try:
            claim = manifests.egress_address(there)
        except manifests.ManifestError as error:
            _log.error("object cannot be read", error=str(error))
            context.ledger.claimed(holder_of_broken(there, address), [address])
            continue
        settle = context.ledger.quarantined if claim.phase is Phase.QUARANTINED else context.ledger.claimed
        settle(holder_of(claim), [address])


def _end_quarantines(context: Context) -> int:
    """Gives back what nobody has any more; where a node or the binding still has it, that is seen to first.

    How many were given back.
    """
    now = time.time()
    changes = context.ledger.changes_seen()
    seen = changes.get(Kind.EGRESS_ADDRESS.label, 0) if changes is not None else None
    if seen is not None and _none_is_over(context, seen, now):
        return 0
    claims = context.egress_addresses()
    waiting = [claim for claim in claims if claim.phase is Phase.QUARANTINED]
    over = [claim for claim in waiting if claim.quarantined_until <= now]
    if not over:
        first = min((claim.quarantined_until for claim in waiting), default=now + context.settings.full_interval)
        if seen is not None:
            context.ledger.remember(_QUARANTINES, f"{seen} {first}", context.settings.full_interval)
        return 0
    ended = 0
    maker = makers.of(context)
    hosted = {address for subnet in maker.nodes(context) for address in addresses_of(subnet.egress_ips)}
    bound = {(item.name, address) for item in maker.bindings(context) for address in addresses_of(item.egress_ips)}
    owing = _owing(context, over)
    for claim in over:
        address = parse_address(claim.address)
        if claim.address in owing:
            continue
        if address in hosted:
            context.ask(PLACE_TASK)
        if (claim.namespace, address) in bound:
            context.ask(NAMESPACE_TASK, claim.namespace)
        if address in hosted or (claim.namespace, address) in bound:
            continue
        try:
            context.cluster.delete(Kind.EGRESS_ADDRESS, object_name(address), resource_version=claim.resource_version)
        except ConflictError:
            continue  # its namespace came back just now
        except PermanentError as error:
            _log.error("quarantine cannot be ended", address=claim.address, error=str(error))
            continue
        context.ledger.quarantine_over(name_holder(claim.namespace), [address])
        context.record(
            Step.QUARANTINE,
            claim.namespace,
            address=claim.address,
            message="free again",
            operation=claim.operation,
        )
        ended += 1
    return ended


def _none_is_over(context: Context, seen: int, now: float) -> bool:
    """Whether no EgressAddress has changed since all were last looked at, and the first to be free is not yet."""
    counted, _, first = context.ledger.recall(_QUARANTINES).partition(" ")
    return counted == str(seen) and now < float(first)


def _owing(context: Context, claims: Iterable[EgressAddress]) -> set[str]:
    """Those of `claims` that stay in quarantine until the firewall team knows of the release, which is asked for.

    Where their pool names no profile any more, nobody waits for it.
    """
    owing = [claim for claim in claims if tickets.owes_release(claim)]
    if not owing:
        return set()
    # Not `context.pools`: what cannot be read of a pool does not unsay its profile.
    items = context.cluster.list(Kind.EGRESS_POOL).items
    telling = {item["metadata"]["name"] for item in items if item.get("spec", {}).get("ticketProfile")}
    owing = [claim for claim in owing if claim.pool in telling]
    for profile in sorted({claim.ticket.profile for claim in owing if claim.ticket is not None}):
        context.ask(TICKETS_TASK, profile)
    return {claim.address for claim in owing}


def _broken(items: Iterable[Manifest], claims: Iterable[EgressAddress]) -> list[Holding]:
    """What the EgressAddresses hold that cannot be read: to nobody else are they free."""
    read = {object_name(parse_address(claim.address)) for claim in claims}
    found = []
    for item in items:
        if (name := item["metadata"]["name"]) not in read:
            with suppress(AddressError):
                address = from_object_name(name)
                found.append(Holding(address, holder_of_broken(item, address)))
    return found


def _holdings(
    claims: list[EgressAddress],
    namespaces: list[Namespace],
    listings: Iterable[HostSubnet | NetNamespace],
    *,
    rebuilding: bool,
) -> list[Holding]:
    """Everything that an object holds.

    An EgressAddress first; its namespace's annotation only says that it is no longer on its way out. Where there is
    none, or one that only shows what was set by hand, a HostSubnet or NetNamespace that lists the address: an admin put
    it there. While the index is rebuilt, at last, an annotation alone: admission may have promised the address just
    before. At other times the index knows what admission promised, and an annotation that says more is somebody's own
    invention.
    """
    holdings: dict[Address, Holding] = {}
    carried = [
        Holding(address, name_holder(namespace.name))
        for namespace in namespaces
        if not pools.is_system(namespace.name)
        for address in _annotated(namespace)
    ]
    if rebuilding:
        holdings = {holding.address: holding for holding in carried}
    for item in listings:
        for address in addresses_of(item.egress_ips):
            by_hand = manual_holder if isinstance(item, NetNamespace) else node_holder
            holdings[address] = Holding(address, by_hand(item.name))
    for claim in claims:
        address = parse_address(claim.address)
        holdings[address] = Holding(address, holder_of(claim), claim.phase is Phase.QUARANTINED)
    for holding in carried:
        if holding.address in holdings and holdings[holding.address].holder == holding.holder:
            holdings[holding.address] = holding
    return list(holdings.values())


def _left_behind(bindings: Iterable[NetNamespace], names: AbstractSet[str], claims: list[EgressAddress]) -> set[str]:
    """The namespaces that are gone but whose binding is not, though it is Hawse's to end."""
    ours = {(claim.namespace, parse_address(claim.address)) for claim in claims}
    return {
        binding.name
        for binding in bindings
        if binding.name not in names
        and (
            binding.annotations.get(CREATED_ANNOTATION) == "true"
            or any((binding.name, address) in ours for address in addresses_of(binding.egress_ips))
        )
    }


def _unsettled(
    namespaces: Iterable[Namespace],
    claims: Iterable[EgressAddress],
    bindings: Mapping[str, NetNamespace],
    stock: Stock,
) -> set[str]:
    """The names for which something is not as it should be: whose task has something to do."""
    namespaces, claims = list(namespaces), list(claims)
    claims_of: dict[str, list[EgressAddress]] = {}
    for claim in claims:
        claims_of.setdefault(claim.namespace, []).append(claim)
    claimed = {parse_address(claim.address) for claim in claims}
    live = {namespace.name: namespace for namespace in namespaces}
    names = {
        name
        for name, namespace in live.items()
        if not pools.is_system(name)
        and _is_unsettled(namespace, claims_of.get(name, []), claimed, bindings.get(name), stock)
    }
    names |= {
        claim.namespace
        for claim in claims
        if claim.phase is not Phase.QUARANTINED
        and (claim.namespace not in live or claim.namespace_uid != live[claim.namespace].uid)
    }
    return names | _left_behind(bindings.values(), live.keys(), claims)


def _is_unsettled(
    namespace: Namespace,
    claims: Iterable[EgressAddress],
    claimed: AbstractSet[Address],
    binding: NetNamespace | None,
    stock: Stock,
) -> bool:
    """Whether the namespace lacks what it should have, or has what it should not. `claims` are those of its name,
    `claimed` what anybody has claimed."""
    if namespace.deleting:
        return False
    addresses = set(_annotated(namespace))
    mine = [item for item in claims if item.namespace_uid == namespace.uid and item.phase is not Phase.QUARANTINED]
    held = {parse_address(claim.address) for claim in mine}
    bound = addresses_in(binding)
    released = {parse_address(claim.address) for claim in claims} - held
    if (
        any(stock.standing(claim, namespace).release for claim in mine)
        or any(claim.adopted and parse_address(claim.address) not in bound for claim in mine)
        or bound - claimed - addresses  # set by hand, not yet adopted
        or bound & released - addresses  # a release that was cut short
    ):
        return True
    if not addresses:
        if any(not claim.adopted and claim.pool in stock.pools for claim in mine):
            return not pools.opted_out(namespace.annotations)
        try:
            choice = pools.choose(namespace.name, namespace.labels, namespace.annotations, stock.pools.values())
        except pools.PoolError:
            return False  # said when it was created; nothing to do until somebody corrects it
        return choice is not None
    surplus = {parse_address(claim.address) for claim in mine if claim.origin is not Origin.MANUAL} - addresses
    return pools.opted_out(namespace.annotations) or bool(surplus) or not addresses <= held & bound


def _annotated(namespace: Namespace) -> tuple[Address, ...]:
    try:
        return pools.annotated_addresses(namespace.annotations)
    except AddressError:
        return ()


def _node_ips(subnets: list[HostSubnet]) -> frozenset[Address]:
    return frozenset(addresses_of(subnet.host_ip for subnet in subnets))
