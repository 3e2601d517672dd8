"""One run for one ticket profile: tells its system what is due, asks it what was decided, and ends in good time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress

import structlog

from egress import tickets
from egress.adapters import manifests
from egress.adapters.cluster import ConflictError, Kind, Manifest
from egress.adapters.ledger import Breaker, BusyError, TicketCensus, Turn, Waiting
from egress.adapters.retrying import retry
from egress.addresses import parse_address
from egress.messages import TICKETS_TASK
from egress.objects import RETRY_TICKET_ANNOTATION, EgressAddress, Event, Phase
from egress.operations import PermanentError
from egress.ticket_profiles import ProfilesError
from workers.context import Context, readable
from workers.ticketing import missing
from workers.ticketing.errors import TicketAwayError
from workers.ticketing.polling import poll, poll_of
from workers.ticketing.systems import Systems
from workers.ticketing.telling import Answer, End, Teller, id_of, is_waiting

BUDGET = 20.0
"""Seconds after which a run begins nothing more, and asks for the next one."""
POLL_SECONDS = 5.0
"""How much longer a run asks for what was decided."""
TURN_SECONDS = 5.0
"""After how long somebody else may run for the profile, if this process is killed."""
THREADS = 4
BUSY_SECONDS = 1.0
LATER = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""After how many seconds a run asks for the next one: few, for asks of the same delay become one."""
_log = structlog.get_logger()


def run(context: Context, systems: Systems, name: str) -> None:
    """Runs for the profile `name`. Who comes while somebody is at it has another run follow."""
    try:
        with context.ledger.ticketing(name, TURN_SECONDS) as turn:
            delay = _Run(context, systems, name, turn).run()
    except BusyError:
        delay = BUSY_SECONDS
    if delay is not None:
        context.ask(TICKETS_TASK, name, delay=delay)


class _Run:
    def __init__(self, context: Context, systems: Systems, name: str, turn: Turn) -> None:
        self._context = context
        self._systems = systems
        self._name = name
        self._turn = turn
        self._until = time.monotonic() + BUDGET
        self._breaker = context.ledger.breaker(name)
        self._due = 0

    def run(self) -> float | None:
        """After how many seconds another run is needed, before the reconcile asks for one anyway; None: not at all."""
        profiles = self._systems.profiles()
        pools = _profiles_of_pools(self._context.cluster.list(Kind.EGRESS_POOL).items)
        claims = self._claims(pools)
        profile = profiles.get(self._name)
        if profile is None:
            missing.say(self._context, self._name, claims, pools)
            self._count(claims)
            return None
        claims = [missing.found(self._context, claim, answers=profile.answers) for claim in claims]
        teller = Teller(self._context, profiles, profile, self._systems.get(profile))
        delay = self._tell(teller, claims)
        if self._rests() is None:
            self._poll(teller, claims)
        often = poll_of(profile)
        if often is not None and often.interval < LATER[-1]:
            delay = min(delay, often.interval) if delay is not None else often.interval
        self._count(self._claims(pools))
        return None if self._breaker.is_open and self._rests() is not None else delay

    def _claims(self, pools: Mapping[str, str]) -> list[EgressAddress]:
        """Those that the profile is told of; of what somebody wants to be tried again, it was not given up."""
        items = self._context.cluster.list(Kind.EGRESS_ADDRESS).items
        claims = []
        for item in items:
            for claim in readable(lambda item: manifests.egress_address(item, strict=True), [item]):
                if tickets.profile_of(claim, pools.get(claim.pool, "")) != self._name:
                    continue
                if RETRY_TICKET_ANNOTATION in (item["metadata"].get("annotations") or {}):
                    with suppress(ConflictError, PermanentError):
                        claims.append(retry(self._context.cluster, parse_address(claim.address), time.time()))
                        continue
                claims.append(claim)
        return claims

    def _tell(self, teller: Teller, claims: list[EgressAddress]) -> float | None:
        if self._rests() is not None:
            self._due = len(list(self._wanted(teller, claims)))
            return self._rests()
        wanted = list(self._wanted(teller, claims))
        waiting = self._context.ledger.waiting(self._name, [id_of(*each, self._name) for each in wanted])
        queue: list[tuple[EgressAddress, Event, Waiting]] = []
        delays = []
        for claim, event in wanted:
            before = waiting.get(id_of(claim, event, self._name), Waiting())
            seconds = is_waiting(claim, event, before, time.time())
            if seconds:
                delays.append(seconds)
            else:
                queue.append((claim, event, before))
        queue.reverse()
        delays += self._work_off(teller, queue)
        self._due = len(delays)
        return next((rung for rung in LATER if rung >= min(delays)), LATER[-1]) if delays else None

    def _wanted(self, teller: Teller, claims: list[EgressAddress]) -> Iterator[tuple[EgressAddress, Event]]:
        for claim in claims:
            event = tickets.due(claim, self._name, teller.profile.events)
            if event is not None:
                yield claim, event

    def _work_off(self, teller: Teller, queue: list[tuple[EgressAddress, Event, Waiting]]) -> list[float]:
        """Tells what is in `queue`, the last first, while time and the system allow. In how many seconds each that is
        left is to be tried, at the earliest."""
        delays: list[float] = []
        flying: set[Future[Answer]] = set()
        goes_on = True
        with ThreadPoolExecutor(THREADS) as threads:
            while True:
                goes_on = goes_on and self._rests() is None and time.monotonic() < self._until
                probing = self._breaker.is_open
                while goes_on and queue and len(flying) < (1 if probing else THREADS):
                    claim, event, before = queue.pop()
                    flying.add(threads.submit(teller.tell, claim, event, before, probing=probing))
                if not flying:
                    break
                done, flying = wait(flying, timeout=1.0, return_when=FIRST_COMPLETED)
                goes_on = self._turn.renew() and goes_on
                for future in done:
                    answer = future.result()
                    self._judge(answer)
                    if answer.end is End.AWAY and answer.claim is None:
                        delays.append(max(answer.retry_after or 0.0, LATER[0]))
                    elif answer.claim is not None:
                        queue += [(*each, Waiting()) for each in self._wanted(teller, [answer.claim])]
        return delays + [self._rests() or 0.0] * len(queue)

    def _judge(self, answer: Answer) -> None:
        """What an answer says of the system."""
        if not answer.spoke or answer.end is End.SKIPPED:
            return
        if answer.end is End.AWAY:
            self._set_breaker(self._breaker.failed(time.time(), answer.retry_after))
        else:
            self._set_breaker(Breaker())

    def _set_breaker(self, breaker: Breaker) -> None:
        if breaker.is_open and not self._breaker.is_open:
            _log.error("the ticket system seems dead", profile=self._name, failures=breaker.failures)
        if self._breaker.is_open and not breaker.is_open:
            _log.info("the ticket system is back", profile=self._name)
        if breaker != self._breaker:
            self._context.ledger.set_breaker(self._name, breaker)
        self._breaker = breaker

    def _rests(self) -> float | None:
        """For how many seconds nothing may be sent; None if it may."""
        seconds = self._breaker.until - time.time()
        return seconds if seconds > 0 else None

    def _poll(self, teller: Teller, claims: list[EgressAddress]) -> None:
        try:
            asked = poll(self._context, teller.profile, teller.system, claims, goes_on=self._polls_on)
        except (TicketAwayError, ProfilesError) as error:
            _log.warning("the ticket system does not say what was decided", profile=self._name, error=str(error))
            self._judge(Answer(End.AWAY, retry_after=getattr(error, "retry_after", None)))
        except PermanentError as error:
            _log.error("the ticket system does not say what was decided", profile=self._name, error=str(error))
        else:
            if asked:
                self._set_breaker(Breaker())

    def _polls_on(self) -> bool:
        return self._turn.renew() and time.monotonic() < self._until + POLL_SECONDS

    def _count(self, claims: list[EgressAddress]) -> None:
        """Leaves what there is to see of the profile."""
        now = time.time()
        over = [
            now - claim.quarantined_until
            for claim in claims
            if claim.phase is Phase.QUARANTINED and tickets.owes_release(claim)
        ]
        failed = sum(claim.ticket is not None and claim.ticket.failed is not None for claim in claims)
        census = TicketCensus(self._due, failed, max([0.0, *over]), self._breaker.is_open)
        self._context.ledger.keep_ticket_census(self._name, census)


def _profiles_of_pools(items: Iterable[Manifest]) -> dict[str, str]:
    """The profile that each pool names, "" for none, whatever else is wrong with the pool."""
    return {item["metadata"]["name"]: str(item.get("spec", {}).get("ticketProfile") or "") for item in items}
