"""What becomes of claims whose pool, or ticket, names a profile that the file does not have."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

import structlog

from egress import tickets
from egress.adapters.cluster import ConflictError
from egress.adapters.decisions import with_condition
from egress.objects import EgressAddress, Event, Ticket
from egress.operations import Outcome, PermanentError, Step
from workers import metrics
from workers.context import Context
from workers.ticketing.telling import complain, write

_PREFIX = "no ticket profile "
_log = structlog.get_logger()


def say(context: Context, name: str, claims: Iterable[EgressAddress], pools: Mapping[str, str]) -> None:
    """Says on each of `claims` that nobody can be told of it, as there is no profile `name`; `pools` are the profiles
    that pools name. One whose pool has another by now, or none, is let go."""
    where = context.settings.ticket_profiles
    file = f"add it to {where}" if where else "HAWSE_TICKET_PROFILES names no file"
    why = f"{_PREFIX}{name}; {file}, or have the pool name another"
    for claim in claims:
        if claim.ticket is not None and claim.ticket.sending is not None and claim.ticket.sending_until > time.time():
            continue  # somebody is at it who knew the profile
        wanted = pools.get(claim.pool, "")
        event = tickets.due(claim, name, ())
        if wanted != name:
            _let_go(context, claim, wanted)
        elif event is not None:
            _fail(context, claim, tickets.begin(claim, event, name, 0.0), why)


def found(context: Context, claim: EgressAddress, *, answers: bool) -> EgressAddress:
    """The claim, of which nothing counts as given up any more for want of its profile."""
    ticket = claim.ticket
    if ticket is None or ticket.failed is None or not ticket.failure.startswith(_PREFIX):
        return claim
    return _write(context, replace(claim, ticket=tickets.retried(ticket)), answers=answers) or claim


def _fail(context: Context, claim: EgressAddress, ticket: Ticket, why: str) -> None:
    event = ticket.sending
    if event is None:
        return
    begun = claim.ticket is not None and claim.ticket.sending is event
    given_up = tickets.failed(ticket, event, why, received=begun)
    if _write(context, replace(claim, ticket=given_up)) is None:
        return
    metrics.tickets.labels(ticket.profile, event.value, metrics.outcome_label(Outcome.GAVE_UP)).inc()
    context.record(
        Step.TICKET,
        claim.namespace,
        outcome=Outcome.GAVE_UP,
        address=claim.address,
        message=f"{event.value}: {why}",
        operation=claim.operation,
    )
    complain(context, claim, event, why)


def _let_go(context: Context, claim: EgressAddress, wanted: str) -> None:
    ticket = claim.ticket
    if ticket is None:
        return
    after: Ticket | None = None
    if ticket.ended and tickets.owes_release(claim):
        after = replace(ticket, told=Event.RELEASED, sending=None, sending_until=0.0, failed=None, failure="")
    elif wanted and ticket.told is None:  # nobody was told: the pool's new profile begins
        after = Ticket(wanted, ticket.serial)
    if after is not None and _write(context, replace(claim, ticket=after)) is not None:
        _log.warning("nobody waits for the ticket any more", address=claim.address, profile=ticket.profile)


def _write(context: Context, claim: EgressAddress, *, answers: bool = False) -> EgressAddress | None:
    try:
        return write(context, with_condition(claim, answers=answers, now=time.time()))
    except ConflictError:
        return None  # the next run
    except PermanentError as error:
        _log.error("ticket cannot be written down", address=claim.address, error=str(error))
        return None
