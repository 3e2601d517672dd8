"""Gives addresses a node, moves them off nodes that they must leave, and takes released ones off theirs: one patch per
HostSubnet, however many came together."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from egress.adapters import manifests
from egress.adapters.cluster import ConflictError, Kind, NotFoundError, RefusedError
from egress.addresses import Address, AddressError, addresses_of, object_name, parse_address
from egress.board import Board, Candidate
from egress.hosting import Hosting, cidrs_of, hosting
from egress.messages import PLACE_TASK, PUBLISH_TASK
from egress.moves import Cause, Move, has_arrived, next_move
from egress.objects import MOVE_ANNOTATION, NO_LIMIT, EgressAddress, HostSubnet, Node, Phase
from egress.operations import Outcome, PermanentError, Step, TransientError
from egress.placement import Placement, place
from egress.table import NodeReport
from workers import stillness
from workers.context import Context, readable

_log = structlog.get_logger()
LOCK_SECONDS = 10.0
"""How long a killed run keeps the next one waiting. Two at once do no harm: each patch carries the version it read."""
PATCHING = "patching"
"""The lock that is held while HostSubnets are patched: whoever publishes half of that makes each node's runner run
twice."""
RESCUE, RESCUE_SECONDS = "rescue", 1.0
"""What is foretold when a node is lost that has addresses, and for how long at most: they are about to be placed.
Publishing in between would only tell that they are nowhere, and cost the nodes a pass each."""
ARRIVAL_SECONDS = 30.0
"""How long a planned move is waited for at most before the next: one that its node refuses must not stop the others."""
OWN_SECONDS = 60.0
"""How long it is known which version of a HostSubnet was written here: longer than a watch takes to tell of it."""
_IN_FLIGHT = "move"
Failure = TransientError | PermanentError


@dataclass(frozen=True)
class _View:
    """What a run works with. `candidates` host what they do once the surplus is off them."""

    claims: list[EgressAddress]
    subnets: list[HostSubnet]
    hosting: Hosting
    candidates: list[Candidate]
    settled: bool
    """Whether no node is lost, or has come back a moment ago."""
    changed: Mapping[str, int] = field(default_factory=dict)
    """By kinds' labels, how new the objects are that this is made from."""


@dataclass(frozen=True)
class _Decision:
    """Where addresses go, and which of them leave another node for it."""

    placement: Placement
    moves: Mapping[Address, Move]
    nothing: bool = False
    """Whether everything is where it should be, so that nothing is to be done or tried again."""


def run(context: Context, look: Callable[[Context], _View] | None = None) -> Placement:
    """Places what has no node, moves what must leave its own, clears what is in quarantine or in no NetNamespace any
    more, and leaves what several nodes have to one of them. `look` is what to place, if not all that runners see.

    Raises TransientError when a HostSubnet changed meanwhile: what was not patched is placed by the next run.
    """
    with context.ledger.exclusively("place", LOCK_SECONDS):
        try:
            view = (look or _view)(context)
            decision = _decide(context, view)
            stillness.note(context, stillness.PLACE, nothing=decision.nothing)
            patched = _patch_all(context, view, decision)
        finally:
            context.ledger.fulfil(RESCUE)
    placement = decision.placement
    lost = sorted(candidate.name for candidate in view.candidates if candidate.gone)
    news = context.ledger.is_news("lost nodes", repr(lost))
    if news or placement.nodes or view.hosting.surplus or placement.refused != context.ledger.unplaced():
        context.ledger.set_unplaced(placement.refused)
        context.ask(PUBLISH_TASK)
    _record(context, view, decision, patched)
    for address, reason in sorted(placement.refused.items(), key=lambda item: str(item[0])):
        claim = next((claim for claim in view.claims if claim.address == str(address)), None)
        facts = {"namespace": claim.namespace, "operation": claim.operation} if claim is not None else {}
        _log.warning("not placed", address=str(address), reason=reason, **facts)
    failures = [failure for failure in patched.values() if failure is not None]
    if failures:
        raise next((failure for failure in failures if isinstance(failure, TransientError)), failures[0])
    _answer_wishes(context, view, decision)
    return placement


# What is there


def _view(context: Context) -> _View:
    whole = context.views.everything(context.ledger)
    subnets = whole.subnets
    machines = context.cluster.list(Kind.NODE).items
    nodes = {node.name: node for node in readable(manifests.node, machines)}
    existing = {str(machine["metadata"]["name"]) for machine in machines}
    reports = context.ledger.reports(subnet.name for subnet in subnets)
    lost, returned = context.ledger.lost(), context.ledger.returned()
    reluctant = {
        item.node: "whose runner is silent" for item in context.ledger.silent(context.settings.heartbeat_patience)
    }
    reluctant |= dict.fromkeys(returned, "that is back too short a time")
    gone = {subnet.name: "without a Node object" for subnet in subnets if subnet.name not in existing}
    gone |= dict.fromkeys(lost, "lost")
    found = hosting(
        whole.claims, subnets, whole.net_namespaces, context.pools(), gone=gone.keys(), all_read=whole.all_read
    )
    candidates = []
    for subnet in subnets:
        name = subnet.name
        kept = _without(subnet, {address for node, address in found.surplus if node == name})
        candidate = _candidate(context, kept, nodes.get(name), reports.get(name), gone.get(name, ""))
        candidates.append(replace(candidate, reluctant=reluctant.get(name, "")))
    # A node that never had anything, or any runner, unsettles nobody.
    harm = [subnet.name for subnet in subnets if subnet.name in lost and (subnet.egress_ips or subnet.name in reports)]
    settled = not returned and not harm
    return _View(whole.claims, subnets, found, candidates, settled=settled, changed=whole.changed)


def _candidate(
    context: Context, subnet: HostSubnet, node: Node | None, report: NodeReport | None, gone: str
) -> Candidate:
    drained = node is not None and (node.drain or (node.unschedulable and context.settings.drain_cordoned))
    if node is not None and node.problem and context.ledger.is_news(f"node problem:{node.name}", node.problem):
        _log.error("node's annotation is not counted", node=node.name, error=node.problem)
    barred = gone
    if not barred and (node is None or not node.ready):
        barred = "not ready"
    elif not barred and node is not None and (node.unschedulable or drained):
        barred = "drained" if drained else "cordoned"
    elif not barred and report is not None and report.problem:
        barred = "that cannot be programmed"
    return Candidate(
        subnet.name,
        node.labels if node is not None else {},
        barred,
        gone=bool(gone),
        drained=drained,
        link=ipaddress.ip_interface(report.link) if report is not None and report.link else None,
        other_links=tuple(map(ipaddress.ip_interface, report.other_links)) if report is not None else (),
        hosted=frozenset(addresses_of(subnet.egress_ips)),
        capacity=node.capacity if node is not None else NO_LIMIT,
        cidrs=cidrs_of(subnet),
    )


def _without(subnet: HostSubnet, addresses: set[Address]) -> HostSubnet:
    return replace(subnet, egress_ips=tuple(text for text in subnet.egress_ips if _parsed(text) not in addresses))


# For a maker that looks at the cluster in another way, see `run`.
View = _View
candidate_of = _candidate
without = _without


# What to do


def _decide(context: Context, view: _View) -> _Decision:
    """Whatever has no node or a dead one is placed at once. A run that finds nothing of the kind may make a planned
    move."""
    found = view.hosting
    gone = {candidate.name for candidate in view.candidates if candidate.gone}
    stranded = [resident for resident in found.residents if resident.node in gone and not resident.fixed]
    leaving = {resident.item.address for resident in stranded}
    wanted = [*found.homeless, *(resident.item for resident in stranded)]
    candidates = [replace(each, hosted=each.hosted - leaving) if each.gone else each for each in view.candidates]
    placement = place(wanted, candidates, found.siblings, _wishes(view))
    refused = dict(placement.refused)
    for address, (node, reason) in found.poolless.items():
        if not node or node in gone:
            refused[address] = reason
    placement = Placement(placement.nodes, refused)
    if placement.nodes:
        moves = {
            resident.item.address: Move(resident.item, resident.node, target, Cause.LOST)
            for resident in stranded
            if (target := placement.nodes.get(resident.item.address)) is not None
        }
        return _Decision(placement, moves)
    outlook = next_move(found.residents, view.candidates, found.siblings, balance=view.settled)
    homes = {resident.item.address: resident for resident in found.residents}
    for address, reason in outlook.stuck.items():
        home = homes[address]
        facts = {"namespace": home.item.namespace, "node": home.node}
        _log.warning("cannot leave its node", address=str(address), reason=reason, **facts)
    move = outlook.move
    if move is None or not _may_move(context, view):
        nothing = move is None and not outlook.stuck and not wanted and not refused and not found.surplus
        return _Decision(placement, {}, nothing=nothing and view.settled and not _wishes(view))
    context.ledger.remember(_IN_FLIGHT, f"{move.item.address} {move.target}", ARRIVAL_SECONDS)
    return _Decision(Placement({move.item.address: move.target}, refused), {move.item.address: move})


def _may_move(context: Context, view: _View) -> bool:
    """Whether it is time for another planned move: the last one has arrived, and it was long enough ago.

    In either case somebody looks again: for this move, or for the one after it.
    """
    per_minute = context.settings.moves_per_minute
    if not per_minute:
        return False
    context.ask(PLACE_TASK, delay=max(1.0, 60.0 / per_minute))
    return not _is_in_flight(context, view) and context.ledger.first_to("move", 60.0 / per_minute)


def _is_in_flight(context: Context, view: _View) -> bool:
    """Whether the address of the last planned move is on its way: it is still to be on that node, the node has not
    acknowledged it, and not too much time has passed."""
    text, _, node = context.ledger.recall(_IN_FLIGHT).partition(" ")
    if not text:
        return False
    address = parse_address(text)
    if not any(each.node == node and each.item.address == address for each in view.hosting.residents):
        return False
    return not has_arrived(address, node, context.ledger.read_table().rows.values())


def _wishes(view: _View) -> dict[Address, str]:
    return {
        parse_address(claim.address): claim.move_to
        for claim in view.claims
        if claim.move_to and claim.phase is not Phase.QUARANTINED
    }


# What is done


def _patch_all(context: Context, view: _View, decision: _Decision) -> dict[str, Failure | None]:
    """One patch for each HostSubnet that changes: those that were patched, and those that could not be, and why.

    An address is off its old node before it is on the new one: whoever ends in between leaves it on none, where it is
    dropped and the next run places it. On two it would be dropped as well, but stay a conflict until the next run,
    which would have to guess. A HostSubnet that cannot be patched stops only the addresses that leave it.
    """
    if not decision.placement.nodes and not view.hosting.surplus:
        return {}
    if view.changed:  # from here on nobody may place from what is older
        context.ledger.saw_versions(view.changed)
    sources = {move.source for move in decision.moves.values()}
    patched: dict[str, Failure | None] = {}
    with context.ledger.exclusively(PATCHING, LOCK_SECONDS):
        for subnet in sorted(view.subnets, key=lambda subnet: (subnet.name not in sources, subnet.name)):
            kept = _without(subnet, _leaving(view, decision, subnet.name)).egress_ips
            coming = _coming(decision, subnet.name, patched)
            if not coming and kept == subnet.egress_ips:
                continue
            egress_ips = [*kept, *map(str, coming)]
            patch = {"metadata": {"resourceVersion": subnet.resource_version}, "egressIPs": egress_ips}
            try:
                written = context.cluster.patch(Kind.HOST_SUBNET, subnet.name, patch)
                patched[subnet.name] = None
            except (ConflictError, NotFoundError, RefusedError) as error:
                _log.warning("HostSubnet not patched", node=subnet.name, error=str(error))
                patched[subnet.name] = error
            else:
                context.ledger.remember(own_patch(subnet.name), written["metadata"]["resourceVersion"], OWN_SECONDS)
    return patched


def own_patch(node: str) -> str:
    """Under what the version is kept to which this last patched a node's HostSubnet."""
    return f"patched:{node}"


def _leaving(view: _View, decision: _Decision, node: str) -> set[Address]:
    surplus = {address for name, address in view.hosting.surplus if name == node}
    return surplus | {address for address, move in decision.moves.items() if move.source == node}


def _coming(decision: _Decision, node: str, patched: Mapping[str, Failure | None]) -> list[Address]:
    """What `node` gets, without what its old node could not let go."""
    return [
        address
        for address, name in decision.placement.nodes.items()
        if name == node and (address not in decision.moves or not patched.get(decision.moves[address].source))
    ]


def _record(context: Context, view: _View, decision: _Decision, patched: Mapping[str, Failure | None]) -> None:
    """Writes down what was done; after all of it, for without Redis nothing may be left half done."""
    operations = {claim.address: claim.operation for claim in view.claims}
    namespaces = {item.address: item.namespace for item in view.hosting.homeless}
    owners = {claim.address: claim.namespace for claim in view.claims}
    for node in [name for name, failure in patched.items() if failure is None]:
        for text in sorted(map(str, _leaving(view, decision, node) - decision.moves.keys())):
            facts = {"namespace": owners.get(text, ""), "operation": operations.get(text, "")}
            _log.info("leaves its node", address=text, node=node, **facts)
        for address in _coming(decision, node, patched):
            move, text = decision.moves.get(address), str(address)
            operation = operations.get(text, "")
            if move is None:
                context.record(Step.PLACE, namespaces[address], address=text, node=node, operation=operation)
            else:
                namespace, why = move.item.namespace, f"from {move.source}: {move.cause}"
                context.record(Step.MOVE, namespace, address=text, node=node, message=why, operation=operation)


def _answer_wishes(context: Context, view: _View, decision: _Decision) -> None:
    """Takes the request away of each address that is where somebody wanted it, or cannot go there; the latter is told
    to its namespace. One that only waits for its turn keeps it."""
    wishing = [claim for claim in view.claims if claim.move_to]
    if not wishing:
        return
    there = {resident.item.address: resident.node for resident in view.hosting.residents}
    there.update(decision.placement.nodes)
    items = {resident.item.address: resident.item for resident in view.hosting.residents}
    items |= {item.address: item for item in view.hosting.homeless}
    board = Board(view.candidates, view.hosting.siblings)
    for claim in wishing:
        address = parse_address(claim.address)
        item, reason = items.get(address), ""
        if there.get(address) != claim.move_to:
            objection = (
                board.objection(item, claim.move_to) if item is not None else "not for an address without a pool"
            )
            if objection is None:
                continue
            reason = f"the node is not eligible: {objection}"
        _end_wish(context, claim, reason)


def _end_wish(context: Context, claim: EgressAddress, refusal: str) -> None:
    metadata = {"resourceVersion": claim.resource_version, "annotations": {MOVE_ANNOTATION: None}}
    name = object_name(parse_address(claim.address))
    try:
        context.cluster.patch(Kind.EGRESS_ADDRESS, name, {"metadata": metadata})
    except (ConflictError, NotFoundError):
        return  # its status was written meanwhile: the next run does it
    if refusal:
        facts = {"namespace": claim.namespace, "address": claim.address, "node": claim.move_to}
        _log.warning("move refused", **facts, operation=claim.operation, reason=refusal)
        message = f"{claim.address} does not move to {claim.move_to}: {refusal}"
        context.record(
            Step.MOVE, claim.namespace, outcome=Outcome.GAVE_UP, message=refusal, address=claim.address,
            node=claim.move_to, operation=claim.operation,
        )  # fmt: skip
        context.tell(claim.namespace, claim.namespace_uid, "MoveRefused", message, warning=True)


def _parsed(text: str) -> Address | None:
    try:
        return parse_address(text)
    except AddressError:
        return None  # planning reports it, by its HostSubnet's name
