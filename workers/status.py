"""The status of the EgressAddress objects: what an admin sees of each address's way."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import structlog

from egress import tickets
from egress.adapters import manifests
from egress.adapters.cluster import ConflictError, Kind, NotFoundError
from egress.addresses import Address, AddressError, object_name, parse_address
from egress.objects import Condition, EgressAddress, HostSubnet, NetNamespace, Phase, dated
from egress.operations import Outcome, PermanentError, Step, TransientError
from egress.planning import Plan
from egress.table import Claim, NodeReport
from workers.context import Context

_log = structlog.get_logger()
UPDATE_SECONDS = 1.0
SECONDS_EACH = 0.05
"""By how much longer a status on its way to another is left alone, for each other that is: in a burst most are Ready by
then, and written once."""
YIELD_SECONDS, LOOK_SECONDS = 30.0, 1.0
"""For how long statuses on their way wait while many namespaces wait for their tasks, and how often that is looked
at."""
OWN = frozenset({"Claimed", "Bound", "Placed", "Programmed", "Ready"})
"""The conditions that are written here."""
CONFLICT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the status is made from: the plan, what the nodes said of each address, why addresses have no node, which
    NetNamespaces list an address and which HostSubnets, which a node cannot let go, and on whose word an address is
    programmed, where that is not its node's."""

    plan: Plan
    said: Mapping[tuple[Address, str], Claim]
    unplaced: Mapping[Address, str]
    bound: Collection[tuple[str, Address]]
    hosted: Collection[tuple[str, Address]]
    kept: Mapping[Address, str]
    word: str = ""

    @classmethod
    def of(
        cls,
        plan: Plan,
        subnets: Iterable[HostSubnet],
        net_namespaces: Iterable[NetNamespace],
        reports: Mapping[str, NodeReport],
        unplaced: Mapping[Address, str],
        word: str = "",
    ) -> Self:
        """The same, from the objects and reports."""
        said = {(claim.address, node): claim for node, report in reports.items() for claim in report.claims}
        return cls.said_so(plan, subnets, net_namespaces, said, unplaced, word)

    @classmethod
    def said_so(
        cls,
        plan: Plan,
        subnets: Iterable[HostSubnet],
        net_namespaces: Iterable[NetNamespace],
        said: Mapping[tuple[Address, str], Claim],
        unplaced: Mapping[Address, str],
        word: str = "",
    ) -> Self:
        """The same, from what the nodes said of each address."""
        kept = {
            address: f"node {node} cannot let it go: {claim.message}"
            for (address, node), claim in said.items()
            if not claim.held and not claim.netid
        }
        return cls(plan, said, unplaced, _listing(net_namespaces), _listing(subnets), kept, word)


def _listing(items: Iterable[HostSubnet | NetNamespace]) -> frozenset[tuple[str, Address]]:
    found = set()
    for item in items:
        for text in item.egress_ips:
            with suppress(AddressError):
                found.add((item.name, parse_address(text)))
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Left:
    """The namespaces whose addresses still have another status than they should, and whether that is for this run's
    want of time, or for theirs: those on their way were written a moment ago."""

    names: set[str]
    soon: bool
    at_once: bool = False
    """Whether only time was wanting."""


def update(context: Context, claims: Sequence[EgressAddress], seen: Seen, *, yielding: bool = False) -> Left:
    """Writes the status of every one of `claims` that differs from what is so. What somebody else changed meanwhile, or
    the API server refuses, is left to the next run.

    So is what there was no time for: the nodes' table is not to wait for it. With `yielding` nor is anything else, so
    that only what failed is written, and what was Ready and is no longer.
    """
    left, soon = set[str](), False
    until = time.monotonic() + UPDATE_SECONDS
    on_their_way = sum(claim.phase in (Phase.PENDING, Phase.PLACED) for claim in claims)
    interval = context.settings.status_interval
    recently = interval + SECONDS_EACH * (on_their_way - 1) if interval and on_their_way else interval
    _tell_conflicts(context, seen.plan)
    for place, claim in enumerate(claims):
        if claim.phase is Phase.QUARANTINED:
            continue
        wanted = assess(claim, seen, manifests.rfc3339(time.time()))
        if wanted == claim:
            continue
        if time.monotonic() > until:
            return Left(left | {each.namespace for each in claims[place:]}, soon=True, at_once=True)
        on_its_way = claim.phase in (Phase.PENDING, Phase.PLACED) and wanted.phase is not Phase.FAILED
        recent = wanted.phase not in (Phase.READY, Phase.FAILED) and _is_recent(claim, recently)
        if recent or (yielding and on_its_way):
            left.add(claim.namespace)
            soon = True
            continue
        name = object_name(parse_address(claim.address))
        patch = {
            "metadata": {"resourceVersion": claim.resource_version},
            "status": manifests.egress_address_status(wanted),
        }
        try:
            context.cluster.patch(Kind.EGRESS_ADDRESS, name, patch, subresource="status")
        except (ConflictError, NotFoundError):
            left.add(claim.namespace)
            continue
        except PermanentError as error:  # a policy of the cluster's, perhaps: it stops none of the others
            _log.error("status not written", namespace=claim.namespace, address=claim.address, error=str(error))
            left.add(claim.namespace)
            continue
        _tell(context, claim, wanted)
    return Left(left, soon)


def _tell(context: Context, before: EgressAddress, after: EgressAddress) -> None:
    """The Event, the step and the log line for what changed, where the namespace's owner should know of it."""
    message = next((condition.message for condition in after.conditions if condition.type == "Ready"), "")
    moved = bool(before.node and after.node and before.node != after.node)
    if moved:
        text = f"{after.address} moves from {before.node} to {after.node}"
        context.tell(after.namespace, after.namespace_uid, "EgressAddressMoved", text)
    if after.phase is before.phase:
        return
    if after.phase in (Phase.READY, Phase.FAILED):
        outcome = Outcome.DONE if after.phase is Phase.READY else Outcome.RETRY
        context.record(
            Step.PROGRAM,
            after.namespace,
            outcome=outcome,
            address=after.address,
            node=after.node,
            message=message,
            operation=after.operation,
        )
        reason = "EgressAddressReady" if after.phase is Phase.READY else "EgressAddressFailed"
        text = message or f"traffic leaves with {after.address} by {after.node}"
        context.tell(after.namespace, after.namespace_uid, reason, text, warning=after.phase is Phase.FAILED)
    elif before.phase is Phase.READY and not moved:
        text = f"{after.address} is out of use: {message}" if message else f"{after.address} is out of use"
        _log.warning(
            "out of use",
            namespace=after.namespace,
            address=after.address,
            node=after.node,
            error=message,
            operation=after.operation,
        )
        context.tell(after.namespace, after.namespace_uid, "EgressAddressLost", text, warning=True)


def _tell_conflicts(context: Context, plan: Plan) -> None:
    """Tells each namespace of the contradictions that it is a party of, once an hour each."""
    for name, outcome in plan.namespaces.items():
        for conflict in sorted(set(outcome.reasons).intersection(plan.conflicts)):
            if not context.ledger.first_to(f"event:{name}:{conflict}", CONFLICT_SECONDS):
                continue
            try:
                manifest = context.cluster.get(Kind.NAMESPACE, name)
            except TransientError:
                context.ledger.done_with(f"event:{name}:{conflict}")  # it was not told
                raise
            if manifest is not None:
                context.tell(name, manifests.namespace(manifest).uid, "EgressConflict", conflict, warning=True)


def _is_recent(claim: EgressAddress, seconds: float) -> bool:
    """Whether the claim was made, or its status last changed, less than `seconds` ago."""
    times = [claim.created, *(condition.last_transition for condition in claim.conditions)]
    return bool(seconds) and max(times) > manifests.rfc3339(time.time() - seconds)


def assess(claim: EgressAddress, seen: Seen, now: str) -> EgressAddress:
    """`claim` with the status that the plan and the nodes' words give it. Pure; `now` is RFC 3339."""
    address = parse_address(claim.address)
    outcome = seen.plan.namespaces.get(claim.namespace)
    via = {hop.address: hop.node for hop in outcome.via} if outcome else {}
    claims = {hop.address: hop.node for hop in outcome.claims} if outcome else {}
    withheld = {hop.address: hop.node for hop in outcome.withheld} if outcome else {}
    # Where nothing of the namespace is active every reason concerns the address: a shared NetID names none.
    reasons = [reason for reason in outcome.reasons if not via or _names(reason, claim.address)] if outcome else []
    bound = (claim.namespace, address) in seen.bound
    node = via.get(address) or claims.get(address) or withheld.get(address) or ""
    answer = seen.said.get((address, node))
    refused = answer is not None and not answer.held and bool(answer.reason)

    conditions = [Condition("Claimed", True, "Claimed")]
    why = "; ".join(reasons)
    in_conflict = not set(reasons).isdisjoint(seen.plan.conflicts)
    conditions.append(Condition("Bound", bound, "Bound" if bound else "NotBound", "" if bound else why))
    if node:
        conditions.append(Condition("Placed", True, "Placed", f"on node {node}"))
    else:
        unplaced = [seen.unplaced[address]] if address in seen.unplaced else []
        reason = "Conflict" if in_conflict else "NotPlaced"
        conditions.append(Condition("Placed", False, reason, "; ".join([*reasons, *unplaced])))
    if address in via:
        conditions.append(Condition("Programmed", True, "Programmed", seen.word))
    elif claim.withheld and not in_conflict:
        verdict = claim.decision.verdict.value.capitalize() if claim.decision is not None else "AwaitingApproval"
        conditions.append(Condition("Programmed", False, verdict, f"nobody has approved {claim.address}"))
    elif refused and answer is not None:
        message = "; ".join(filter(None, [answer.message, seen.kept.get(address)]))
        conditions.append(Condition("Programmed", False, answer.reason, message))
    else:
        conditions.append(Condition("Programmed", False, "Conflict" if in_conflict else "Waiting", why))
    ready = all(condition.status for condition in conditions)
    last = next((condition for condition in conditions if not condition.status), None)
    conditions.append(Condition("Ready", ready, "Ready" if ready else last.reason, last.message if last else ""))  # type: ignore[union-attr]
    conditions += foreign(claim)
    if claim.withheld and not any(condition.type == tickets.FIREWALL_OPEN for condition in conditions):
        conditions += filter(None, [tickets.firewall_condition(claim, answers=True)])

    phase = Phase.PENDING
    if ready:
        phase = Phase.READY
    elif refused and not claim.withheld:
        phase = Phase.FAILED
    elif node:
        phase = Phase.PLACED
    # While several HostSubnets have the address, the node that had it is remembered: it is the one to keep it.
    remembered = claim.node if (claim.node, address) in seen.hosted else ""
    return replace(claim, node=node or remembered, phase=phase, conditions=dated(conditions, claim.conditions, now))


def foreign(claim: EgressAddress) -> list[Condition]:
    """The conditions that are not written here: they stay as they are."""
    return [condition for condition in claim.conditions if condition.type not in OWN]


def _names(reason: str, address: str) -> bool:
    """Whether `reason` names the address itself, and not one that begins with it."""
    return address in re.findall(r"[0-9A-Fa-f:.]+", reason)
