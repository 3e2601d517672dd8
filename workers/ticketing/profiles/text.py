"""A notice in words, for tickets that people read, and as the `data` of an event, for machines."""

from __future__ import annotations

import time
from typing import Any

from egress.objects import Event
from egress.tickets import Notice

LONGEST = 1000
"""Characters of one value that a ticket shows: a namespace's annotations may hold 256 kB."""
_TITLES = {
    Event.ASSIGNED: "open the firewall for {address} (namespace {namespace})",
    Event.MOVED: "{address} (namespace {namespace}) is on another node",
    Event.CONFLICT: "{address} (namespace {namespace}) is contested",
    Event.RELEASED: "close the firewall for {address} (namespace {namespace})",
    Event.QUARANTINED: "{address} (namespace {namespace}) is in quarantine",
}


def title(notice: Notice, limit: int) -> str:
    """What it is about, in one line of at most `limit` characters."""
    cluster = f"[{notice.cluster}] " if notice.cluster else ""
    return _clean(cluster + _TITLES[notice.event].format(address=notice.address, namespace=notice.namespace))[:limit]


def lines(notice: Notice) -> list[str]:
    """All that is known, one `Name: value` each; what is not known is left out. The last one is `marker`."""
    told = {
        "Address": notice.address,
        "Namespace": notice.namespace,
        **{f"Owner ({name})": value for name, value in notice.owner.items()},
        "Cluster": notice.cluster,
        "Pool": notice.pool,
        "Node": notice.node,
        "Previous node": notice.previous_node,
        "Conflict": notice.conflict,
        "In quarantine until": _when(notice.quarantined_until) if notice.quarantined_until else "",
        "Justification": notice.justification,
        "Traffic is dropped until this is approved": "yes" if notice.approval_required else "",
        "Ticket": notice.reference,
        "Operation": notice.operation,
        "Dashboard": notice.link,
    }
    return [f"{name}: {_clean(value)}" for name, value in told.items() if value] + [marker(notice)]


def marker(notice: Notice) -> str:
    """The line by which a comment is known to be this notice's."""
    return f"Hawse notice {notice.id}."


def data(notice: Notice) -> dict[str, Any]:
    """The notice as plain values, all names always there."""
    return {
        "event": notice.event.value,
        "key": notice.key,
        "namespace": notice.namespace,
        "namespaceUid": notice.namespace_uid,
        "owner": dict(notice.owner),
        "cluster": notice.cluster,
        "address": notice.address,
        "pool": notice.pool,
        "node": notice.node,
        "previousNode": notice.previous_node,
        "justification": notice.justification,
        "operation": notice.operation,
        "link": notice.link,
        "quarantinedUntil": _when(notice.quarantined_until) if notice.quarantined_until else None,
        "conflict": notice.conflict,
        "approvalRequired": notice.approval_required,
        "reference": notice.reference,
    }


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _clean(text: str) -> str:
    """One line of printable text."""
    return "".join(char if char.isprintable() else " " for char in text[:LONGEST])
