"""The status of the EgressAddress objects: what an admin sees of each address's way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from egress.adapters import manifests
from egress.adapters.cluster import ConflictError, Kind, NotFoundError
from egress.addresses import Address, object_name, parse_address
from egress.objects import Condition, EgressAddress, Phase
from egress.operations import Outcome, Step
from egress.planning import Plan
from egress.table import Claim, NodeReport
from workers.context import Context


def update(context: Context, plan: Plan, reports: Mapping[str, NodeReport]) -> None:
    """Writes the status of every EgressAddress that differs from what is so. A conflict is left to the next run."""
    said = {(claim.address, node): claim for node, report in reports.items() for claim in report.claims}
    unplaced = context.ledger.unplaced()
    for claim in context.egress_addresses():
        if claim.phase is Phase.QUARANTINED:
            continue
        wanted = assess(claim, plan, said, unplaced, manifests.rfc3339(time.time()))
        if wanted == claim:
            continue
        name = object_name(parse_address(claim.address))
        patch = {
            "metadata": {"resourceVersion": claim.resource_version},
            "status": manifests.egress_address_status(wanted),
        }
        try:
            context.cluster.patch(Kind.EGRESS_ADDRESS, name, patch, subresource="status")
        except (ConflictError, NotFoundError):
            continue
        if wanted.phase is not claim.phase and wanted.phase in (Phase.READY, Phase.FAILED):
            outcome = Outcome.DONE if wanted.phase is Phase.READY else Outcome.RETRY
            message = wanted.conditions[-1].message
            context.record(
                Step.PROGRAM,
                claim.namespace,
                outcome=outcome,
                address=claim.address,
                node=wanted.node,
                message=message,
            )
            reason = "EgressAddressReady" if wanted.phase is Phase.READY else "EgressAddressFailed"
            text = message or f"traffic leaves with {claim.address} by {wanted.node}"
            context.tell(claim.namespace, claim.namespace_uid, reason, text, warning=wanted.phase is Phase.FAILED)


def assess(
    claim: EgressAddress,
    plan: Plan,
    said: Mapping[tuple[Address, str], Claim],
    unplaced: Mapping[Address, str],
    now: str,
) -> EgressAddress:
    """`claim` with the status that the plan and the nodes' words give it. Pure; `now` is RFC 3339.

    `unplaced` says of addresses why no node can host them.
    """
    address = parse_address(claim.address)
    outcome = plan.namespaces.get(claim.namespace)
    via = {hop.address: hop.node for hop in outcome.via} if outcome else {}
    claims = {hop.address: hop.node for hop in outcome.claims} if outcome else {}
    mentioned = [reason for reason in outcome.reasons if claim.address in reason] if outcome else []
    bound = address in via or address in claims or bool(mentioned)
    node = via.get(address) or claims.get(address) or ""
    answer = said.get((address, node))
    refused = answer is not None and not answer.held and bool(answer.reason)

    conditions = [Condition("Claimed", True, "Claimed")]
    conditions.append(Condition("Bound", bound, "Bound" if bound else "NotBound"))
    if node:
        conditions.append(Condition("Placed", True, "Placed", f"on node {node}"))
    else:
        why = [*mentioned, *([unplaced[address]] if address in unplaced else [])]
        conditions.append(Condition("Placed", False, "NotPlaced", "; ".join(why)))
    if address in via:
        conditions.append(Condition("Programmed", True, "Programmed"))
    elif refused and answer is not None:
        conditions.append(Condition("Programmed", False, answer.reason, answer.message))
    else:
        conditions.append(Condition("Programmed", False, "Waiting", "; ".join(mentioned)))
    ready = all(condition.status for condition in conditions)
    last = next((condition for condition in conditions if not condition.status), None)
    conditions.append(Condition("Ready", ready, "Ready" if ready else last.reason, last.message if last else ""))  # type: ignore[union-attr]

    phase = Phase.PENDING
    if ready:
        phase = Phase.READY
    elif refused:
        phase = Phase.FAILED
    elif node:
        phase = Phase.PLACED
    return replace(claim, node=node, phase=phase, conditions=_dated(conditions, claim, now))


def _dated(conditions: list[Condition], claim: EgressAddress, now: str) -> tuple[Condition, ...]:
    """Each condition with the time at which its status last changed."""
    before = {condition.type: condition for condition in claim.conditions}
    result = []
    for condition in conditions:
        old = before.get(condition.type)
        since = old.last_transition if old is not None and old.status == condition.status else now
        result.append(replace(condition, last_transition=since))
    return tuple(result)
