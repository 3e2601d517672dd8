"""Who does what next: locks, asks that become one, waits, and the history of what was done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import msgspec
import structlog
from redis.exceptions import LockError, RedisError

from egress.adapters import scripts
from egress.adapters.ledger.connection import Connection, away, from_key, key_of
from egress.addresses import Address
from egress.operations import StepRecord, TransientError

HISTORY_PER_NAMESPACE = 100
_log = structlog.get_logger()
_STEP = msgspec.json.Decoder(StepRecord)


@dataclass(frozen=True, slots=True)
class Census:
    """How many there are: EgressAddresses by phase, addresses in use by state, each pool's addresses by state, and
    contradictions between objects."""

    assignments: Mapping[str, int]
    reservations: Mapping[str, int]
    pools: Mapping[str, Mapping[str, int]]
    conflicts: int


_CENSUS = msgspec.json.Decoder(Census)


class BusyError(TransientError):
    """Somebody else is at it, or has just been: it is done, or to be asked for again in a moment."""


class Coordination(Connection):
    """What the workers' processes agree on between themselves. None of it matters to correctness, only to effort."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        super().__init__(url, timeout)
        self._raise = self._redis.register_script(scripts.RAISE)

    def saw_versions(self, versions: Mapping[str, int]) -> None:
        """Somebody has seen the objects of these kinds at these resourceVersions: nobody plans from older ones."""
        with away():
            self._raise(["hawse:versions"], [item for pair in versions.items() for item in pair])

    def seen_versions(self) -> dict[str, int]:
        """The highest resourceVersion of each kind that anybody has seen."""
        with away():
            return {kind: int(version) for kind, version in self._redis.hgetall("hawse:versions").items()}

    def forget_version(self, kind: str) -> None:
        """The API server's versions of this kind begin anew: it was restored from a backup."""
        with away():
            self._redis.hdel("hawse:versions", kind)

    @contextmanager
    def exclusively(self, name: str, timeout: float = 30.0) -> Iterator[None]:
        """Holds the lock `name`, or raises BusyError at once if somebody has it. It is lost after `timeout` seconds."""
        with away():
            lock = self._redis.lock(f"hawse:lock:{name}", timeout=timeout, blocking=False)
            if not lock.acquire():
                raise BusyError(f"somebody else is at {name}")
        try:
            yield
        finally:
            with suppress(LockError, RedisError):  # it ran out or Redis is away: either way it is no longer ours
                lock.release()

    def check_free(self, name: str) -> None:
        """BusyError while somebody holds the lock `name`."""
        with away():
            if self._redis.exists(f"hawse:lock:{name}"):
                raise BusyError(f"somebody is at {name}")

    def rest(self, what: str, seconds: float) -> None:
        """Lets nobody be at `what` for `seconds`."""
        with away():
            self._redis.set(f"hawse:rest:{what}", "1", px=max(1, int(seconds * 1000)))

    def end_rest(self, *what: str) -> None:
        """Lets somebody be at `what` at once."""
        with away():
            self._redis.delete(*(f"hawse:rest:{each}" for each in what))

    def check_rested(self, what: str) -> None:
        """BusyError while `what` rests."""
        with away():
            if self._redis.exists(f"hawse:rest:{what}"):
                raise BusyError(f"{what} rests")

    def first_to(self, what: str, seconds: float) -> bool:
        """True for the first who asks for `what` until `done_with` or `seconds` later: several asks become one."""
        with away():
            return bool(self._redis.set(f"hawse:pending:{what}", "1", nx=True, px=max(1, int(seconds * 1000))))

    def done_with(self, what: str) -> None:
        """Lets the next ask for `what` through. Call it before reading what the work depends on."""
        with away():
            self._redis.delete(f"hawse:pending:{what}")

    def is_news(self, what: str, value: str) -> bool:
        """Whether `what` had another value, or none, when this was last asked."""
        with away():
            return bool(self._redis.set(f"hawse:last:{what}", value, get=True) != value)

    def waiting_for(self, what: str, seconds: float) -> bool:
        """True until `seconds` after the first call for `what` since `done_with` it."""
        key, now = f"hawse:pending:{what}", self.now()
        with away():
            self._redis.set(key, f"{now:.3f}", nx=True, ex=3600)
            since = float(self._redis.get(key) or now)
        return now - since < seconds

    def remember(self, what: str, value: str, seconds: float) -> None:
        """Keeps one text for `seconds`, in place of what was kept under `what`."""
        with away():
            self._redis.set(f"hawse:note:{what}", value, px=max(1, int(seconds * 1000)))

    def recall(self, what: str) -> str:
        """What is kept under `what`, or "" if nothing is any more."""
        with away():
            return self._redis.get(f"hawse:note:{what}") or ""

    def set_unplaced(self, reasons: Mapping[Address, str]) -> None:
        """Replaces what is known of the addresses that no node can host, and why."""
        with away():
            pipeline = self._redis.pipeline().delete("hawse:unplaced")
            if reasons:
                pipeline.hset("hawse:unplaced", mapping={key_of(address): text for address, text in reasons.items()})
            pipeline.execute()

    def unplaced(self) -> dict[Address, str]:
        """The addresses that no node could host when they were last placed, and why."""
        with away():
            entries = self._redis.hgetall("hawse:unplaced")
        return {from_key(key): text for key, text in entries.items()}

    def keep_census(self, census: Census, seconds: float) -> None:
        """Keeps `census` for `seconds`."""
        with away():
            self._redis.set("hawse:census", msgspec.json.encode(census), px=int(seconds * 1000))

    def census(self) -> Census | None:
        """The last census, or None if there was none lately, or none that can be read: another version's."""
        with away():
            text = self._redis.get("hawse:census")
        try:
            return _CENSUS.decode(text) if text else None
        except msgspec.DecodeError as error:
            _log.warning("the census cannot be read", error=str(error))
            return None

    def record(self, step: StepRecord) -> None:
        """Adds a step to its namespace's history, which keeps the last hundred."""
        key = f"hawse:history:{step.namespace}"
        with away():
            self._redis.pipeline().lpush(key, msgspec.json.encode(step)).ltrim(
                key, 0, HISTORY_PER_NAMESPACE - 1
            ).expire(key, 30 * 24 * 3600).execute()

    def history(self, namespace: str) -> tuple[StepRecord, ...]:
        """A namespace's steps, the latest first, but for those that a newer version wrote and this one cannot read."""
        with away():
            texts = self._redis.lrange(f"hawse:history:{namespace}", 0, -1)
        steps = []
        for text in texts:
            try:
                steps.append(_STEP.decode(text))
            except msgspec.DecodeError as error:
                _log.warning("a step cannot be read", namespace=namespace, error=str(error))
        return tuple(steps)
