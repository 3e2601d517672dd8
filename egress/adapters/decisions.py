"""Writes the firewall team's decision about an address into its object, whichever way it came."""

from __future__ import annotations

from dataclasses import replace

from egress import tickets
from egress.adapters import manifests
from egress.adapters.cluster import Cluster, ConflictError, Kind, Manifest
from egress.addresses import Address, object_name
from egress.objects import Decision, EgressAddress, dated

TRIES = 10


def decide(cluster: Cluster, address: Address, key: str, decision: Decision, now: float) -> EgressAddress:
    """The claim of `address`, which now holds `decision` about the assignment `key`; `now` is in seconds since the
    epoch.

    DecisionError where that assignment is none of the address's, or knows a later decision. Whatever else the API
    server refuses comes through. Nothing else is done: that the claim changed is for the watch to see.
    """
    name = object_name(address)
    for _ in range(TRIES):
        manifest = cluster.get(Kind.EGRESS_ADDRESS, name)
        if manifest is None:
            raise tickets.DecisionError(f"{address} is assigned to nobody")
        claim = tickets.decided(manifests.egress_address(manifest), key, decision, now)
        claim = with_condition(claim, answers=True, now=now)
        try:
            written = cluster.patch(Kind.EGRESS_ADDRESS, name, status_patch(claim), subresource="status")
        except ConflictError:
            continue
        return manifests.egress_address(written)
    raise ConflictError(f"EgressAddress {address} changes all the time")


def with_condition(claim: EgressAddress, *, answers: bool, now: float) -> EgressAddress:
    """The claim with the `FirewallOpen` condition that its ticket and decision mean. Pure."""
    others = [condition for condition in claim.conditions if condition.type != tickets.FIREWALL_OPEN]
    found = tickets.firewall_condition(claim, answers=answers)
    conditions = dated([*others, *([found] if found else [])], claim.conditions, manifests.rfc3339(now))
    return replace(claim, conditions=conditions)


def status_patch(claim: EgressAddress) -> Manifest:
    """The patch of the status that writes the claim's ticket, decision and conditions, if nobody has changed it."""
    return {
        "metadata": {"resourceVersion": claim.resource_version},
        "status": {
            **manifests.ticket_status(claim),
            "conditions": manifests.conditions_manifest(claim.conditions),
        },
    }
