"""What a namespace has no more: its claims wait in quarantine, or go where only an admin had set them by hand."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from egress import tickets
from egress.adapters import manifests
from egress.adapters.cluster import Kind
from egress.adapters.ledger import name_holder
from egress.addresses import Address, object_name, parse_address
from egress.messages import PLACE_TASK, PUBLISH_TASK, TICKETS_TASK
from egress.objects import EgressAddress, Phase
from egress.operations import Step
from egress.stock import MISMATCH
from workers import makers
from workers.context import Context
from workers.status import foreign

DEFAULT_QUARANTINE = 600.0


def end(context: Context, name: str, claims: list[EgressAddress]) -> None:
    """Ends all that a namespace had that is gone.

    The claims go first: one that stands keeps the namespace's packets from leaving, whatever its NetNamespace says. If
    this ends in between, the reconcile finds a NetNamespace whose namespace is gone.
    """
    release(context, name, claims)
    context.ledger.return_netid(name)  # first: what a later namespace of the name finds must not be this one's
    makers.of(context).end(context, name, [claim.address for claim in claims if not claim.adopted])
    if claims:
        context.ask(PUBLISH_TASK)


def release(
    context: Context, name: str, claims: Iterable[EgressAddress], *, kept: Collection[Address] = (), why: str = ""
) -> None:
    """Puts `claims`, all of namespace `name`, into quarantine, but for those of addresses that are `kept`.

    The claim's object stays until the quarantine ends, so that it outlives any restart of ours. An adopted one is
    deleted: the address is its admin's, and has never been a pool's. What follows from a quarantine is seen to for
    those that are in it already, too: the run that put them there may have been cut short.
    """
    claims = [claim for claim in claims if parse_address(claim.address) not in kept]
    adopted = [claim for claim in claims if claim.adopted]
    there = [claim for claim in claims if not claim.adopted and claim.phase is Phase.QUARANTINED]
    leaving = [claim for claim in claims if not claim.adopted and claim.phase is not Phase.QUARANTINED]
    for claim in adopted:
        drop(context, claim, why)
    if there:
        context.ledger.quarantined(name_holder(name), [parse_address(claim.address) for claim in there])
    periods = {pool.name: pool.quarantine for pool in context.pools()} if leaving else {}
    for claim in leaving:
        _quarantine(context, claim, time.time() + periods.get(claim.pool, DEFAULT_QUARANTINE))
        context.ledger.quarantined(name_holder(name), [parse_address(claim.address)])
        context.record(Step.RELEASE, name, address=claim.address, message=why, operation=claim.operation)
        if claim.ticket is not None:
            context.ask(TICKETS_TASK, claim.ticket.profile)
        if claim.namespace_uid:
            text = f"{claim.address} is released{f': {why}' if why else ''}"
            context.tell(name, claim.namespace_uid, "EgressAddressReleased", text)
    if there or leaving:
        context.ask(PLACE_TASK)
    if claims:
        context.ask(PUBLISH_TASK)


def _quarantine(context: Context, claim: EgressAddress, until: float) -> None:
    claim = tickets.ended(claim)
    patch = {
        "metadata": {"resourceVersion": claim.resource_version},
        "status": {
            "phase": Phase.QUARANTINED.value,
            "node": "",
            "quarantinedUntil": manifests.rfc3339(until),
            **manifests.ticket_status(claim),
            "conditions": manifests.conditions_manifest(item for item in foreign(claim) if item.type != MISMATCH),
        },
    }
    name = object_name(parse_address(claim.address))
    context.cluster.patch(Kind.EGRESS_ADDRESS, name, patch, subresource="status")


def drop(context: Context, claim: EgressAddress, why: str) -> None:
    """Deletes a claim that only showed what was set by hand."""
    name = object_name(parse_address(claim.address))
    context.cluster.delete(Kind.EGRESS_ADDRESS, name, resource_version=claim.resource_version)
    context.record(Step.RELEASE, claim.namespace, address=claim.address, message=why)
