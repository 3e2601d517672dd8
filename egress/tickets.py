"""What the firewall team is to be told of an address, and what its answer means. Pure.

What was told is in the EgressAddress's status, so that nothing is told twice, or forgotten, whatever is killed or
flushed. Before anything is sent the object says so (`begin`), on condition that nobody has changed it: one sender
alone has the word, and who finds it said, and nobody at it, knows that it may have arrived.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from egress.objects import Condition, Decision, EgressAddress, Event, Phase, Ticket, Verdict

FIREWALL_OPEN = "FirewallOpen"
"""The condition that says whether the firewall lets the address out."""
REFERENCE_LENGTH, URL_LENGTH = 1024, 2048
"""How many characters of a ticket's reference and handle, and of its URL, an EgressAddress has room for."""
CLOCK_SKEW = 300.0
"""By how many seconds a decision may seem to be made in the future."""


class DecisionError(ValueError):
    """A decision that cannot be taken; the message says why."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to tell of one assignment.

    `key` is the assignment's, the same in all that is told of it, and `id` the notice's own: the same however often it
    is sent. Times are in seconds since the epoch. `owner` holds what the namespace's configured annotations say.
    `reference` and `handle` are those of the ticket that was opened for the assignment, if one was.
    """

    event: Event
    id: str
    key: str
    at: float
    cluster: str
    namespace: str
    namespace_uid: str
    address: str
    pool: str
    node: str = ""
    previous_node: str = ""
    owner: Mapping[str, str] = field(default_factory=dict)
    justification: str = ""
    operation: str = ""
    link: str = ""
    quarantined_until: float = 0.0
    conflict: str = ""
    approval_required: bool = False
    reference: str = ""
    handle: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a ticket system calls the ticket: `reference` for people, `handle` for its API."""

    reference: str = ""
    url: str = ""
    handle: str = ""


def key_of(claim: EgressAddress) -> str:
    """What tells the claim's current assignment from every other of any address, at any time; "" before the first."""
    return f"hawse-{claim.uid}-{claim.ticket.serial}" if claim.ticket is not None else ""


def conflict_of(claim: EgressAddress) -> str:
    """Why the address is contested, or ""."""
    for condition in claim.conditions:
        if condition.type in ("Placed", "Programmed") and condition.reason in ("Conflict", "AddressInUse"):
            return condition.message
    return ""


def due(claim: EgressAddress, profile: str, wanted: Collection[Event]) -> Event | None:
    """What is to be told next of `claim`, or None. Its pool names `profile`, "" for none, which wants to be told of
    `wanted`; assignments and releases are due in any case.

    What could not be told, and need not be known to understand the rest, holds nothing up.
    """
    ticket = claim.ticket
    if ticket is None or is_over(claim):
        return Event.ASSIGNED if profile and claim.phase is not Phase.QUARANTINED else None
    if ticket.sending is not None:
        return ticket.sending
    if ticket.failed is Event.RELEASED or (ticket.failed is Event.ASSIGNED and not ticket.ended):
        return None
    if ticket.told is None:
        return Event.ASSIGNED
    if ticket.told is Event.ASSIGNED and ticket.ended:
        return Event.RELEASED
    candidates = [Event.QUARANTINED] if ticket.ended else []
    if not ticket.ended and claim.phase is Phase.READY and claim.node != ticket.node:
        candidates.append(Event.MOVED)
    if not ticket.ended and conflict_of(claim) not in ("", ticket.conflict):
        candidates.append(Event.CONFLICT)
    return next((event for event in candidates if event in wanted and event is not ticket.failed), None)


def profile_of(claim: EgressAddress, pools: str) -> str:
    """The profile by which the next thing is told of `claim`, whose pool names `pools`: that of its ticket, as long as
    the assignment is under way; "" for none."""
    return pools if claim.ticket is None or is_over(claim) else claim.ticket.profile


def is_over(claim: EgressAddress) -> bool:
    """Whether all is told of the assignment that the ticket is about, so that the next one begins a new ticket."""
    ticket = claim.ticket
    if ticket is None or not ticket.ended or ticket.sending is not None:
        return False
    if ticket.told in (None, Event.QUARANTINED):
        return True  # what nobody was told of needs no release
    # Taken up again: that it was in quarantine is of no interest any more, nor what could not be told of the past.
    return claim.phase is not Phase.QUARANTINED and (ticket.told is Event.RELEASED or ticket.failed is Event.RELEASED)


def owes_release(claim: EgressAddress) -> bool:
    """Whether the firewall team has yet to hear that the assignment ended, so that nobody else may have the address."""
    ticket = claim.ticket
    return ticket is not None and (ticket.sending is not None or ticket.told is Event.ASSIGNED)


def begin(claim: EgressAddress, event: Event, profile: str, until: float) -> Ticket:
    """The ticket while `event` is being told, by one who has the word until `until`."""
    ticket = claim.ticket
    if ticket is None:
        ticket = Ticket(profile)
    elif is_over(claim):
        ticket = Ticket(profile, serial=ticket.serial + 1)
    return replace(ticket, sending=event, sending_until=until)


def told(ticket: Ticket, notice: Notice, receipt: Receipt, now: float) -> Ticket:
    """The ticket once `notice` was received. What is too long for the object, of what the system calls it, is cut."""
    receipt = Receipt(
        receipt.reference[:REFERENCE_LENGTH],
        receipt.url if len(receipt.url) <= URL_LENGTH else "",
        receipt.handle if len(receipt.handle) <= REFERENCE_LENGTH else "",
    )
    ticket = replace(
        ticket,
        sending=None,
        sending_until=0.0,
        failed=None,
        failure="",
        at=now,
        reference=receipt.reference or ticket.reference,
        url=receipt.url or ticket.url,
        handle=receipt.handle or ticket.handle,
    )
    match notice.event:
        case Event.MOVED:
            return replace(ticket, node=notice.node, notes=ticket.notes + 1)
        case Event.CONFLICT:
            return replace(ticket, conflict=notice.conflict, notes=ticket.notes + 1)
        case Event.ASSIGNED:
            return replace(ticket, told=notice.event, node=notice.node)
    return replace(ticket, told=notice.event)


def failed(ticket: Ticket, event: Event, why: str, *, received: bool) -> Ticket:
    """The ticket once nobody tries any more to tell `event`. `received`: it may have been received all the same; then
    an assignment counts as told, so that its release is."""
    told = Event.ASSIGNED if event is Event.ASSIGNED and received else ticket.told
    return replace(ticket, told=told, sending=None, sending_until=0.0, failed=event, failure=why)


def retried(ticket: Ticket) -> Ticket:
    """The ticket once somebody wants what failed to be tried again: as what may have been received, for it may, but for
    an assignment of which nobody was told."""
    sure = ticket.failed is Event.ASSIGNED and ticket.told is None
    return replace(ticket, failed=None, failure="", sending=None if sure else ticket.failed, sending_until=0.0)


def ended(claim: EgressAddress) -> EgressAddress:
    """The claim once its assignment is over: nobody's approval holds any more, and the release is owed."""
    ticket = replace(claim.ticket, ended=True) if claim.ticket is not None else None
    conditions = tuple(condition for condition in claim.conditions if condition.type != FIREWALL_OPEN)
    return replace(claim, ticket=ticket, decision=None, conditions=conditions)


def decided(claim: EgressAddress, key: str, decision: Decision, now: float) -> EgressAddress:
    """The claim with a new decision about the assignment `key`. DecisionError where it is about another or none, or
    older than the last one, which makes a replay harmless for ever."""
    if claim.phase is Phase.QUARANTINED or claim.ticket is None or claim.ticket.ended or key != key_of(claim):
        raise DecisionError(f"{claim.address} is not assigned under {key} any more")
    if decision.at > now + CLOCK_SKEW:
        raise DecisionError("the decision is from the future")
    if claim.decision is not None and decision.at <= claim.decision.at:
        raise DecisionError("a later decision about the assignment is known already")
    return replace(claim, decision=decision)


def firewall_condition(claim: EgressAddress, *, answers: bool) -> Condition | None:
    """What `FirewallOpen` is to say, without its time; None before anything was told. `answers`: the profile's system
    says what it has decided."""
    ticket, decision = claim.ticket, claim.decision
    if decision is not None:
        reason = decision.verdict.value.capitalize()
        text = f"{decision.verdict.value} by {decision.by}" + (f": {decision.reason}" if decision.reason else "")
        return Condition(FIREWALL_OPEN, decision.verdict is Verdict.APPROVED, reason, text)
    if ticket is not None and ticket.failed in (Event.ASSIGNED, Event.RELEASED):
        return Condition(FIREWALL_OPEN, None, "TicketFailed", ticket.failure)
    if claim.phase is Phase.QUARANTINED:
        return None
    if ticket is not None and ticket.told is Event.ASSIGNED and not ticket.ended:
        about = f"ticket {ticket.reference}" if ticket.reference else f"the firewall team was told by {ticket.profile}"
        text = f"{about}; no answer yet" if answers else about
        return Condition(FIREWALL_OPEN, None, "Requested" if answers else "Told", text)
    if claim.approval_required:
        return Condition(FIREWALL_OPEN, None, "NotAsked", "nobody was asked for the approval yet")
    return None
