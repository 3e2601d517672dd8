"""What a notice says, from the objects that it is about. Pure."""

from __future__ import annotations

import zlib

from egress import tickets
from egress.objects import EgressAddress, Event, Namespace
from egress.ticket_profiles import Profiles
from egress.tickets import Notice


def notice_id(claim: EgressAddress, event: Event) -> str:
    """The id of the notice of `event`: the same however often it is sent, another for each thing to tell.

    `claim.ticket` is that of the telling. What a move or a conflict says is part of it: one that was told and not
    written down, and has changed since, is another.
    """
    key, ticket = tickets.key_of(claim), claim.ticket
    if ticket is None or event not in (Event.MOVED, Event.CONFLICT):
        return f"{key}-{event.value}"
    subject = claim.node if event is Event.MOVED else tickets.conflict_of(claim)
    return f"{key}-{event.value}-{ticket.notes + 1}-{zlib.crc32(subject.encode()):08x}"


def compose(claim: EgressAddress, event: Event, namespace: Namespace | None, profiles: Profiles, now: float) -> Notice:
    """The notice of `event`. `claim` has begun its ticket; `namespace` is None where it is gone."""
    ticket = claim.ticket
    assert ticket is not None  # noqa: S101 - begun
    if namespace is not None and namespace.uid != claim.namespace_uid:
        namespace = None  # another of the name
    annotations = namespace.annotations if namespace is not None else {}
    return Notice(
        event,
        notice_id(claim, event),
        tickets.key_of(claim),
        now,
        profiles.cluster,
        claim.namespace,
        claim.namespace_uid,
        claim.address,
        claim.pool,
        claim.node,
        ticket.node if event is Event.MOVED else "",
        {name: annotations[name] for name in profiles.owner_annotations if name in annotations},
        annotations.get(profiles.justification_annotation, ""),
        claim.operation,
        f"{profiles.dashboard.rstrip('/')}/assignments/{claim.address}" if profiles.dashboard else "",
        claim.quarantined_until,
        tickets.conflict_of(claim) if event is Event.CONFLICT else "",
        claim.approval_required,
        ticket.reference,
        ticket.handle,
    )
