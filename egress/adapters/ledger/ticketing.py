"""What those who tell the ticket systems remember between their runs. A flush costs patience, and doubles nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import msgspec
from redis.exceptions import LockError, RedisError

from egress.adapters.ledger.connection import Connection, away
from egress.adapters.ledger.coordination import BusyError
from egress.forms import learn

BREAKER_OPENS_AFTER = 5
BREAKER_SECONDS, BREAKER_AT_MOST = 30.0, 300.0
_MEMORY_SECONDS = 24 * 3600.0
_CENSUSES = "hawse:tickets:census"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A notice that could not be told: after how many attempts, and before when it is not tried again.

    `over` names the lease (`Ticket.sending_until`) of the attempt, which ended before it ran out. Times are in seconds
    since the epoch.
    """

    attempts: int = 0
    until: float = 0.0
    over: float = 0.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """How a profile's system does: failures in a row, how often it was given a rest since it last answered, and until
    when nothing is sent, in seconds since the epoch."""

    failures: int = 0
    rests: int = 0
    until: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the system is taken for dead: what is sent next, once `until` is over, is a probe."""
        return self.rests > 0

    def failed(self, now: float, retry_after: float | None) -> Breaker:
        """The breaker after one more failure, whose answer asked for a rest of `retry_after` seconds."""
        failures, wait = self.failures + 1, retry_after or 0.0
        if failures < BREAKER_OPENS_AFTER:
            return replace(self, failures=failures)  # it may be about the one ticket
        rests = self.rests + 1 if now >= self.until else max(self.rests, 1)  # those under way together fail together
        wait = max(wait, min(BREAKER_AT_MOST, BREAKER_SECONDS * 2 ** (rests - 1)))
        return Breaker(failures, rests, max(self.until, now + wait))


@dataclass(frozen=True, slots=True)
class TicketCensus:
    """What a run left: notices that are still to be told and those that were given up, for how many seconds a release
    has been owed beyond its quarantine, and whether the breaker is open."""

    due: int = 0
    failed: int = 0
    overdue: float = 0.0
    breaker_open: bool = False
    at: float = 0.0


learn(Waiting, Breaker, TicketCensus)


class Turn:
    """The word for one profile's run, which is lost when it is not renewed."""

    def __init__(self, lock: object) -> None:
        self._lock = lock

    def renew(self) -> bool:
        """Keeps the word for as long again; False if it is lost."""
        try:
            with away():
                self._lock.reacquire()  # type: ignore[attr-defined]
        except LockError:
            return False
        return True


class Ticketing(Connection):
    """The memory of runs: attempts, breakers, turns to poll."""

    @contextmanager
    def ticketing(self, profile: str, seconds: float) -> Iterator[Turn]:
        """The word for a run of `profile`, lost `seconds` after it was last renewed. BusyError if somebody has it."""
        with away():
            lock = self._redis.lock(f"hawse:lock:tickets:{profile}", timeout=seconds, blocking=False)
            if not lock.acquire():
                raise BusyError(f"somebody else tells {profile}")
        try:
            yield Turn(lock)
        finally:
            with suppress(LockError, RedisError):  # it ran out or Redis is away: either way it is no longer ours
                lock.release()

    def waiting(self, profile: str, notices: Collection[str]) -> dict[str, Waiting]:
        """What is remembered of `notices`, by their ids."""
        if not notices:
            return {}
        with away():
            texts = self._redis.mget([_waiting_key(profile, notice) for notice in notices])
        return {
            notice: msgspec.json.decode(text, type=Waiting) for notice, text in zip(notices, texts, strict=True) if text
        }

    def wait(self, profile: str, notice: str, waiting: Waiting) -> None:
        """Remembers that a notice waits."""
        seconds = max(waiting.until - self.now(), 0.0) + _MEMORY_SECONDS
        with away():
            self._redis.set(_waiting_key(profile, notice), msgspec.json.encode(waiting), px=int(seconds * 1000))

    def waits_no_more(self, profile: str, notice: str) -> None:
        """Forgets a notice that was told, or given up: another try is the first of a new series."""
        with away():
            self._redis.delete(_waiting_key(profile, notice))

    def breaker(self, profile: str) -> Breaker:
        """How the profile's system does."""
        with away():
            text = self._redis.get(f"hawse:tickets:breaker:{profile}")
        return msgspec.json.decode(text, type=Breaker) if text else Breaker()

    def set_breaker(self, profile: str, breaker: Breaker) -> None:
        """Keeps how the profile's system does. Called only by who has the word for its run."""
        with away():
            key = f"hawse:tickets:breaker:{profile}"
            self._redis.set(key, msgspec.json.encode(breaker), px=int(_MEMORY_SECONDS * 1000))

    def turn_to_poll(self, profile: str, interval: float) -> int | None:
        """The number of this turn to ask the profile's system, or None within `interval` seconds after the last."""
        key = f"hawse:tickets:poll:{profile}"
        with away():
            if not self._redis.set(f"{key}:wait", "1", nx=True, px=max(1, int(interval * 1000))):
                return None
            return int(self._redis.incr(key))

    def keep_ticket_census(self, profile: str, census: TicketCensus) -> None:
        """Keeps what a run has left, for all who are asked for metrics."""
        with away():
            self._redis.hset(_CENSUSES, profile, msgspec.json.encode(replace(census, at=self.now())))

    def ticket_censuses(self, seconds: float) -> Mapping[str, TicketCensus]:
        """What the last run of each profile left, if that was within `seconds`."""
        since = self.now() - seconds
        with away():
            texts = self._redis.hgetall(_CENSUSES)
        censuses = {profile: msgspec.json.decode(text, type=TicketCensus) for profile, text in texts.items()}
        return {profile: census for profile, census in censuses.items() if census.at > since}


def _waiting_key(profile: str, notice: str) -> str:
    return f"hawse:tickets:waiting:{profile}:{notice}"
