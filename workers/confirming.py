"""What would open a way out is asked for before it is published: a watch may lag.

Everything else that is published from a view a little too old keeps a namespace's traffic where it was, or drops it.
Left alone is what has no egress address: whoever does that to a namespace which has got one lets its traffic out with
the nodes' IPs. And whoever lets traffic out that an approval was withdrawn from does what somebody has forbidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

import structlog

from egress.adapters.cluster import Kind, Manifest
from egress.addresses import Address, object_name
from egress.objects import EgressAddress, NetNamespace
from egress.table import Steering
from workers.context import NAMESPACE_LABEL, Context

_log = structlog.get_logger()
MOST_ASKED = 64
"""Where more than that would be asked for, it takes less to list everything."""


class Confirmed(Enum):
    """Whether what opens something is planned from the objects as they are."""

    YES = "yes"
    OLDER = "from older ones: it is noted which are newer"
    TOO_MANY = "nobody asked"


def confirm(context: Context, changes: Mapping[int, Steering | None]) -> Confirmed:
    """Asks for the objects that open something, and compares them with those that were planned from."""
    planner = context.memory.planner
    names = {name for netid, row in changes.items() if row is None for name in planner.parties(netid)}
    addresses = _newly_approved(context, changes)
    if len(names) + len(addresses) > MOST_ASKED:
        return Confirmed.TOO_MANY
    newer: dict[str, int] = {}
    for name in names:
        binding = context.cluster.get(Kind.NET_NAMESPACE, name)
        _compare(newer, Kind.NET_NAMESPACE, [binding] if binding is not None else [], planner.net_namespaces)
        claims = context.cluster.list(Kind.EGRESS_ADDRESS, label=f"{NAMESPACE_LABEL}={name}").items
        _compare(newer, Kind.EGRESS_ADDRESS, claims, planner.claims)
    for address in addresses:
        claim = context.cluster.get(Kind.EGRESS_ADDRESS, object_name(address))
        _compare(newer, Kind.EGRESS_ADDRESS, [claim] if claim is not None else [], planner.claims)
    if newer:
        _log.info("planned from what is older", versions=newer)
        context.ledger.saw_versions(newer)
    return Confirmed.OLDER if newer else Confirmed.YES


def _newly_approved(context: Context, changes: Mapping[int, Steering | None]) -> set[Address]:
    """The addresses that begin to carry traffic, where somebody has to approve of it."""
    planner = context.memory.planner
    found = set[Address]()
    for netid, row in changes.items():
        before = planner.rows.get(netid)
        carried = {hop.address for hop in before.hops if hop.acknowledged} if before is not None else set()
        for hop in row.hops if row is not None else ():
            if hop.acknowledged and hop.address not in carried:
                claims = planner.claims_at(hop.address)
                found.update(hop.address for claim in claims if claim.approval_required)
    return found


def _compare(
    newer: dict[str, int],
    kind: Kind,
    found: Iterable[Manifest],
    known: Mapping[str, NetNamespace] | Mapping[str, EgressAddress],
) -> None:
    """Notes in `newer` what is another than it is known. What is gone meanwhile only kept something closed."""
    for manifest in found:
        version, planned = str(manifest["metadata"]["resourceVersion"]), known.get(manifest["metadata"]["name"])
        if planned is None or planned.resource_version != version:
            newer[kind.label] = max(newer.get(kind.label, 0), int(version))
