"""Tells one ticket system one thing of one claim, and writes down what became of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import structlog

from egress import tickets
from egress.adapters import manifests
from egress.adapters.cluster import ConflictError, Kind
from egress.adapters.decisions import status_patch, with_condition
from egress.adapters.ledger import Waiting
from egress.addresses import object_name, parse_address
from egress.objects import EgressAddress, Event, Namespace, Ticket
from egress.operations import Outcome, PermanentError, Step, backoff
from egress.ticket_profiles import AddressListProfile, Profile, Profiles, ProfilesError
from egress.tickets import Notice, Receipt
from workers import metrics
from workers.context import Context, readable
from workers.ticketing.errors import NotReachedError, TicketAwayError
from workers.ticketing.notices import compose, notice_id
from workers.ticketing.profiles.base import TicketSystem

LEASE_MARGIN = 5.0
"""Seconds beyond the call's own time that whoever tells has the word: to write down what became of it. At most: where
calls are shorter, as long as one may take."""
RETRY_AFTER_AT_MOST = 3600.0
TRIES = 20
_log = structlog.get_logger()
_jitter = random.SystemRandom()


class End(StrEnum):
    """How a telling ended: received; not, but it may be; given up; or somebody else was at it."""

    TOLD = "told"
    AWAY = "retry"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a telling ended, the claim after it, and what the system asked for. `spoke`: the system was spoken to."""

    end: End
    claim: EgressAddress | None = None
    retry_after: float | None = None
    spoke: bool = True


@dataclass(frozen=True)
class Teller:
    """One profile's run, as its threads share it."""

    context: Context
    profiles: Profiles
    profile: Profile
    system: TicketSystem

    def tell(self, claim: EgressAddress, event: Event, before: Waiting, *, probing: bool) -> Answer:
        """Tells `event` of `claim`. What fails while `probing`, a system that seems dead, is not the ticket's fault."""
        if self._needs_no_call(claim, event):
            return self._take_down(claim, event)
        resumed = claim.ticket is not None and claim.ticket.sending is event
        until = float(int(time.time() + self.profile.timeout + self._margin) + 1)
        begun = tickets.begin(claim, event, self.profile.name, until)
        try:
            claim = write(self.context, replace(claim, ticket=begun))
        except (ConflictError, PermanentError) as error:  # somebody else is at it, or it has changed, or is gone
            _log.info("ticket not begun", address=claim.address, error=str(error))
            return Answer(End.SKIPPED, spoke=False)
        notice = compose(claim, event, self._namespaces.get(claim.namespace), self.profiles, time.time())
        try:
            receipt = self._call(notice, resumed=resumed)
        except PermanentError as error:
            return self._give_up(claim, begun, notice, str(error), received=resumed)
        except TicketAwayError as error:
            attempts = before.attempts + (0 if probing else 1)
            if attempts >= self.context.settings.ticket_attempts:
                received = resumed or not isinstance(error, NotReachedError)
                given_up = self._give_up(claim, begun, notice, str(error), received=received)
                return replace(given_up, end=End.AWAY, retry_after=error.retry_after)
            if isinstance(error, NotReachedError) and not resumed:
                self._settle(claim, begun, lambda ticket: replace(ticket, sending=None, sending_until=0.0))
            return self._later(claim, notice, Waiting(attempts, over=until), error)
        return self._told(claim, begun, notice, receipt)

    def _call(self, notice: Notice, *, resumed: bool) -> Receipt:
        """What the system says; TicketAwayError or PermanentError where it does not."""
        try:
            with metrics.ticket_duration.labels(self.profile.name).time():
                return self.system.tell(notice, resumed=resumed)
        except (PermanentError, TicketAwayError):
            raise
        except ProfilesError as error:  # a secret that is not there yet
            raise NotReachedError(str(error)) from None
        except Exception as error:  # noqa: BLE001 - one profile's mistake must not keep the others' claims from being told
            _log.exception("the profile failed", profile=self.profile.name, address=notice.address)
            why = f"the profile {self.profile.name} failed: {type(error).__name__}"
            raise TicketAwayError(why, self.profile.settle or None) from None

    @property
    def _margin(self) -> float:
        return max(min(LEASE_MARGIN, self.profile.timeout), self.profile.settle)

    def _needs_no_call(self, claim: EgressAddress, event: Event) -> bool:
        """Whether what is due is only to be written down: nobody wants to hear it, or it is a node's first."""
        ticket = claim.ticket
        if event is Event.MOVED and ticket is not None and ticket.sending is None and not ticket.node:
            return True
        if event in (Event.ASSIGNED, Event.RELEASED):
            return isinstance(self.profile, AddressListProfile)
        return event not in self.profile.events

    def _take_down(self, claim: EgressAddress, event: Event) -> Answer:
        begun = tickets.begin(claim, event, self.profile.name, 0.0)
        if event is Event.MOVED:
            after = replace(begun, node=claim.node, sending=None, sending_until=0.0)
        else:
            begun_claim = replace(claim, ticket=begun)
            after = tickets.told(begun, compose(begun_claim, event, None, self.profiles, 0.0), Receipt(), time.time())
        changed = with_condition(replace(claim, ticket=after), answers=self.profile.answers, now=time.time())
        try:
            return Answer(End.TOLD, write(self.context, changed), spoke=False)
        except (ConflictError, PermanentError):
            return Answer(End.SKIPPED, spoke=False)

    def _told(self, claim: EgressAddress, begun: Ticket, notice: Notice, receipt: Receipt) -> Answer:
        after = self._settle(claim, begun, lambda ticket: tickets.told(ticket, notice, receipt, time.time()))
        self.context.ledger.waits_no_more(self.profile.name, notice.id)
        self._note(claim, notice, Outcome.DONE, " ".join((notice.event.value, receipt.reference)).strip())
        if notice.event is Event.ASSIGNED and receipt.reference:
            text = f"the firewall team was told of {claim.address}: ticket {receipt.reference}"
            self.context.tell(claim.namespace, claim.namespace_uid, "EgressTicketOpened", text)
        return Answer(End.TOLD, after)

    def _give_up(self, claim: EgressAddress, begun: Ticket, notice: Notice, why: str, *, received: bool) -> Answer:
        after = self._settle(claim, begun, lambda ticket: tickets.failed(ticket, notice.event, why, received=received))
        self.context.ledger.waits_no_more(self.profile.name, notice.id)
        self._note(claim, notice, Outcome.GAVE_UP, f"{notice.event.value}: {why}")
        complain(self.context, claim, notice.event, why)
        return Answer(End.FAILED, after)

    def _later(self, claim: EgressAddress, notice: Notice, waiting: Waiting, error: TicketAwayError) -> Answer:
        asked = min(error.retry_after or 0.0, RETRY_AFTER_AT_MOST)
        cap = self.context.settings.ticket_retry_cap
        wait = max(backoff(max(waiting.attempts, 1), _jitter, cap), asked)
        self.context.ledger.wait(self.profile.name, notice.id, replace(waiting, until=time.time() + wait))
        self._note(claim, notice, Outcome.RETRY, f"{notice.event.value}: {error}", waiting.attempts)
        return Answer(End.AWAY, None, asked or None)

    def _settle(self, claim: EgressAddress, begun: Ticket, change: Callable[[Ticket], Ticket]) -> EgressAddress | None:
        """Writes down what became of what `begun` has begun, whoever has changed the object meanwhile; None if that is
        somebody else's business by now."""
        name, uid = object_name(parse_address(claim.address)), claim.uid
        for _ in range(TRIES):
            assert claim.ticket is not None  # noqa: S101 - begun
            changed = replace(claim, ticket=change(claim.ticket))
            try:
                return write(self.context, with_condition(changed, answers=self.profile.answers, now=time.time()))
            except ConflictError:
                manifest = self.context.cluster.get(Kind.EGRESS_ADDRESS, name)
            except PermanentError as error:
                _log.error("ticket cannot be written down", address=claim.address, error=str(error))
                return None
            if manifest is None:
                return None
            claim = manifests.egress_address(manifest)
            if claim.uid != uid or not _goes_on(claim.ticket, begun):
                return None
        raise ConflictError(f"EgressAddress {claim.address} changes all the time")

    def _note(self, claim: EgressAddress, notice: Notice, outcome: Outcome, message: str, attempt: int = 1) -> None:
        metrics.tickets.labels(self.profile.name, notice.event.value, metrics.outcome_label(outcome)).inc()
        self.context.record(
            Step.TICKET,
            claim.namespace,
            outcome=outcome,
            attempt=max(attempt, 1),
            address=claim.address,
            message=f"{self.profile.name}: {message}",
            operation=claim.operation,
        )

    @cached_property
    def _namespaces(self) -> Mapping[str, Namespace]:
        """Listed once a run, and only by one that has something to tell; two threads at once may do it twice."""
        items = self.context.cluster.list(Kind.NAMESPACE).items
        return {namespace.name: namespace for namespace in readable(manifests.namespace, items)}


def is_waiting(claim: EgressAddress, event: Event, waiting: Waiting, now: float) -> float:
    """For how many seconds `event` may not be told yet: somebody is at it, or it failed a moment ago; 0 if it may."""
    ticket = claim.ticket
    leased = 0.0
    if ticket is not None and ticket.sending is event and ticket.sending_until != waiting.over:
        leased = ticket.sending_until
    return max(leased, waiting.until) - now if max(leased, waiting.until) > now else 0.0


def id_of(claim: EgressAddress, event: Event, profile: str) -> str:
    """The id that the notice of `event` will have."""
    return notice_id(replace(claim, ticket=tickets.begin(claim, event, profile, 0.0)), event)


def write(context: Context, claim: EgressAddress) -> EgressAddress:
    """Writes the claim's ticket, decision and conditions, if nobody has changed it; the claim as it is then."""
    name = object_name(parse_address(claim.address))
    written = context.cluster.patch(Kind.EGRESS_ADDRESS, name, status_patch(claim), subresource="status")
    return manifests.egress_address(written)


def complain(context: Context, claim: EgressAddress, event: Event, why: str) -> None:
    """Says where the namespace's owner looks that the firewall team could not be told."""
    text = f"the firewall team could not be told that {claim.address} is {event.value}: {why}"
    if claim.namespace_uid:
        context.tell(claim.namespace, claim.namespace_uid, "EgressTicketFailed", text, warning=True)


def _goes_on(ticket: Ticket | None, begun: Ticket) -> bool:
    """Whether what `begun` has begun is still to be written down."""
    return ticket is not None and (ticket.serial, ticket.sending, ticket.notes) == (
        begun.serial,
        begun.sending,
        begun.notes,
    )
