"""Asks a ticket system what it has decided, where it does not say so by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import structlog

from egress import tickets
from egress.adapters import decisions
from egress.adapters.cluster import ConflictError
from egress.addresses import parse_address
from egress.messages import PUBLISH_TASK
from egress.objects import Decision, EgressAddress, Event, Verdict
from egress.operations import PermanentError, Step
from egress.ticket_profiles import JiraProfile, Poll, Profile, ServiceNowProfile
from workers.context import Context
from workers.ticketing.profiles.base import TicketSystem

DECIDED_EVERY = 5
"""Of the turns to ask, only each so manieth asks for what was decided already: that changes rarely."""
TURN_STRIDE = 20
"""By how many tickets each turn begins further on than the last: no more than any system is asked for at once."""
SOURCE_LENGTH, WORDS = 63, 253
"""How long a decision's source, and the name of whoever decided, may be."""
_log = structlog.get_logger()


def poll_of(profile: Profile) -> Poll | None:
    """How often the profile's system is asked, or None if it is not."""
    return profile.poll if isinstance(profile, ServiceNowProfile | JiraProfile) else None


def source_of(profile: Profile) -> str:
    """What a decision names as the way it came, when the profile's system was asked for it."""
    return f"poll of {profile.name}"[:SOURCE_LENGTH]


def poll(
    context: Context,
    profile: Profile,
    system: TicketSystem,
    claims: Iterable[EgressAddress],
    *,
    goes_on: Callable[[], bool] = lambda: True,
) -> bool:
    """Asks for the open tickets among `claims`, if it is time to, and writes what was decided, as long as it `goes_on`.
    Whether it did ask.

    TicketAwayError, or PermanentError, if the system does not say.
    """
    often = poll_of(profile)
    open_ones = [claim for claim in claims if _is_open(claim)]
    if often is None or not open_ones:
        return False
    turn = context.ledger.turn_to_poll(profile.name, often.interval)
    if turn is None:
        return False
    asked = {tickets.key_of(claim): claim for claim in open_ones if _is_to_ask(claim, turn)}
    if not asked:
        return False
    items = list(asked.items())
    # Each turn begins elsewhere, so that a system too slow to be asked for all is asked for all in time.
    first = turn * TURN_STRIDE % len(items)
    wanted = {key: claim.ticket for key, claim in items[first:] + items[:first] if claim.ticket is not None}
    for key, said in system.decisions(wanted):
        known = asked.get(key)
        news = news_of(known, said, source_of(profile), time.time()) if known is not None else None
        if known is not None and news is not None:
            _apply(context, known, key, news)
        if not goes_on():
            _log.warning("not all was asked for: the ticket system is slow", profile=profile.name, tickets=len(wanted))
            break
    return True


def news_of(claim: EgressAddress, said: Decision | None, source: str, now: float) -> Decision | None:
    """What the system's word `said` changes of the claim's decision, or None. Pure.

    What was decided another way, by a person or a callback, is not undone by a system that merely still says what it
    said before: it may be tightened by a later word, and never loosened.
    """
    known = claim.decision
    ours = known is not None and known.source == source
    if said is None:
        if known is None or not ours or known.verdict is not Verdict.APPROVED:
            return None
        reason = "the ticket system does not say approved any more"
        return Decision(Verdict.WITHDRAWN, known.by, now, source, reason)
    said = replace(said, source=source, at=min(said.at, now))
    if known is None:
        return said
    if known.verdict is said.verdict:
        return None
    if ours:  # the system's clock may be behind ours: what it says now is later than what it said then
        return said if said.at > known.at else replace(said, at=now)
    return said if said.at > known.at and said.verdict is not Verdict.APPROVED else None


def _is_open(claim: EgressAddress) -> bool:
    ticket = claim.ticket
    return ticket is not None and ticket.told is Event.ASSIGNED and not ticket.ended and ticket.sending is None


def _is_to_ask(claim: EgressAddress, turn: int) -> bool:
    """An approval that traffic hangs on may be taken back at any time."""
    approved = claim.approval_required and not claim.withheld
    return claim.decision is None or approved or turn % DECIDED_EVERY == 0


def _apply(context: Context, claim: EgressAddress, key: str, decision: Decision) -> None:
    decision = replace(decision, by=decision.by[:WORDS], reason=decision.reason[: WORDS * 4])
    try:
        decisions.decide(context.cluster, parse_address(claim.address), key, decision, time.time())
    except (tickets.DecisionError, ConflictError, PermanentError) as error:  # one claim's keeps no other's waiting
        _log.warning("decision not taken", address=claim.address, decision=decision.verdict.value, error=str(error))
        return
    context.record(
        Step.DECISION,
        claim.namespace,
        address=claim.address,
        message=f"{decision.verdict.value} by {decision.by}, {decision.source}",
        operation=claim.operation,
    )
    if claim.approval_required:
        context.ask(PUBLISH_TASK)
