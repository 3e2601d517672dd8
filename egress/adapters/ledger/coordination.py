"""Who does what next: locks, asks that become one, waits, and the history of what was done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import msgspec
import structlog
from redis.exceptions import LockError, RedisError

from egress.adapters import scripts
from egress.adapters.ledger.connection import Connection, away, from_key, key_of
from egress.addresses import Address
from egress.operations import StepRecord, TransientError

HISTORY_PER_NAMESPACE, HISTORY_SECONDS = 100, 30 * 24 * 3600
"""How many steps are kept, and for how long after the last."""
WAIT_KEPT_SECONDS = 3600
"""For how long it is known since when something is waited for."""
_log = structlog.get_logger()
_STEP = msgspec.json.Decoder(StepRecord)
_NO_KEY = -2
"""What Redis gives as the time that a key has left which is not there."""


@dataclass(frozen=True, slots=True)
class Census:
    """How many there are: EgressAddresses by phase, addresses in use by state, each pool's addresses by state, and
    contradictions between objects."""

    assignments: Mapping[str, int]
    reservations: Mapping[str, int]
    pools: Mapping[str, Mapping[str, int]]
    conflicts: int


_CENSUS = msgspec.json.Decoder(Census)


LOCK_LOOK_SECONDS = 0.015
"""After how long to look whether a lock is free: most runs are over by then."""


class _NodeFacts(msgspec.Struct, frozen=True):
    link: str = ""
    problem: str = ""
    carrier: bool = True
    gateways: tuple[str, ...] = ()
    other_links: tuple[str, ...] = ()


_FACTS = msgspec.json.Decoder(_NodeFacts)


def _facts(text: str | None) -> object:
    try:
        return _FACTS.decode(text) if text else None
    except msgspec.DecodeError:
        return text  # another version's: whatever it says now, it is different then


class BusyError(TransientError):
    """Somebody else is at it, or has just been: it is done, or to be asked for again in `seconds`."""

    def __init__(self, message: str, seconds: float = LOCK_LOOK_SECONDS) -> None:
        super().__init__(message)
        self.seconds = seconds


class Coordination(Connection):
    """What the workers' processes agree on between themselves. None of it matters to correctness, only to effort."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        super().__init__(url, timeout)
        self._raise = self._redis.register_script(scripts.RAISE)
        self._record = self._redis.register_script(scripts.RECORD)
        self._wait, self._next, self._turn, self._since = map(
            self._redis.register_script, (scripts.WAIT, scripts.NEXT, scripts.TURN, scripts.SINCE)
        )

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

    def foretell(self, name: str, seconds: float) -> None:
        """Somebody will be at `name` in a moment: until `fulfil`, or for `seconds`, it is not free."""
        with away():
            self._redis.set(f"hawse:lock:{name}", "foretold", px=int(seconds * 1000))

    def fulfil(self, name: str) -> None:
        """What was foretold has come about."""
        with away():
            self._redis.delete(f"hawse:lock:{name}")

    def check_free(self, *names: str) -> None:
        """BusyError while somebody holds one of the locks `names`, or will in a moment."""
        with away():
            if self._redis.exists(*(f"hawse:lock:{name}" for name in names)):
                raise BusyError(f"somebody is at {' or '.join(names)}")

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
            left = int(self._redis.pttl(f"hawse:rest:{what}"))
        if left != _NO_KEY:
            raise BusyError(f"{what} rests", max(1, left) / 1000)

    def first_to(self, what: str, seconds: float) -> bool:
        """True for the first who asks for `what` until `done_with` or `seconds` later: several asks become one."""
        with away():
            return bool(self._redis.set(f"hawse:pending:{what}", "1", nx=True, px=max(1, int(seconds * 1000))))

    def queue_namespaces(self, *names: str, delay: float = 0.0) -> None:
        """Has namespaces wait for their tasks, which are due `delay` seconds from now, behind all that are due earlier.
        One that waits keeps its place: its task looks at everything, however often it was asked for."""
        with away():
            self._wait([], [delay, *names])

    def next_namespaces(self, number: int) -> list[str]:
        """Takes up to `number` of those whose task is due, the earliest first; nobody else gets them."""
        with away():
            return list(self._next([], [number]))

    def next_turn(self) -> float | None:
        """In how many seconds the next namespace's task is due; None if none waits."""
        with away():
            text = self._turn([], [])
        return float(text) if text else None

    def lengths(self, lists: Sequence[str]) -> list[int]:
        """How long each of these lists of the broker is."""
        pipeline = self._redis.pipeline(transaction=False)
        for name in lists:
            pipeline.llen(name)
        with away():
            return [int(length) for length in pipeline.execute()]

    def namespaces_waiting(self) -> int:
        """How many namespaces wait for their task."""
        with away():
            return int(self._redis.zcard("hawse:waiting"))

    def done_with(self, *what: str) -> None:
        """Lets the next ask for each of `what` through. Call it before reading what the work depends on."""
        with away():
            self._redis.delete(*(f"hawse:pending:{each}" for each in what))

    def is_news(self, what: str, value: str) -> bool:
        """Whether `what` had another value, or none, when this was last asked."""
        with away():
            return bool(self._redis.set(f"hawse:last:{what}", value, get=True) != value)

    def waiting_for(self, what: str, seconds: float) -> bool:
        """True until `seconds` after the first call for `what` since `done_with` it."""
        with away():
            return float(self._since([f"hawse:pending:{what}"], [WAIT_KEPT_SECONDS])) < seconds

    def remember(self, what: str, value: str, seconds: float) -> None:
        """Keeps one text for `seconds`, in place of what was kept under `what`."""
        with away():
            self._redis.set(f"hawse:note:{what}", value, px=max(1, int(seconds * 1000)))

    def recall(self, what: str) -> str:
        """What is kept under `what`, or "" if nothing is any more."""
        with away():
            return self._redis.get(f"hawse:note:{what}") or ""

    def forget(self, *what: str) -> None:
        """Keeps nothing under any of `what` any more."""
        with away():
            self._redis.delete(*(f"hawse:note:{each}" for each in what))

    def count_change(self, kind: str) -> None:
        """Counts a change of an object of `kind`."""
        with away():
            self._redis.hincrby("hawse:seen-changes", kind, 1)

    def watching(self, seconds: float) -> None:
        """Says that for the next `seconds` every change is counted."""
        with away():
            self._redis.set("hawse:watching", "1", px=max(1, int(seconds * 1000)))

    def changes_seen(self) -> Mapping[str, int] | None:
        """How many changes of each kind were counted so far; None while nobody counts."""
        with away():
            watching, seen = self._redis.pipeline().get("hawse:watching").hgetall("hawse:seen-changes").execute()
        return {kind: int(number) for kind, number in seen.items()} if watching else None

    def node_facts(self) -> str:
        """What the runners said of their nodes last, but for the addresses: the same text while they say the same."""
        with away():
            names = sorted(self._redis.hkeys("hawse:beat-ips"))
            texts = self._redis.mget([f"hawse:node:{name}" for name in names]) if names else []
        return repr([(name, _facts(text)) for name, text in zip(names, texts, strict=True)])

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

    def prolong_census(self, seconds: float) -> bool:
        """Keeps the last census for `seconds` from now; whether there is one."""
        with away():
            return bool(self._redis.pexpire("hawse:census", int(seconds * 1000)))

    def census(self) -> Census | None:
        """The last census, or None if there was none lately, or none that can be read: another version's."""
        with away():
            text = self._redis.get("hawse:census")
        try:
            return _CENSUS.decode(text) if text else None
        except msgspec.DecodeError as error:
            _log.warning("the census cannot be read", error=str(error))
            return None

    def record(self, *steps: StepRecord) -> None:
        """Adds each step to its namespace's history, which keeps the last hundred."""
        if not steps:
            return
        keys = [f"hawse:history:{step.namespace}" for step in steps]
        with away():
            self._record(keys, [HISTORY_PER_NAMESPACE, HISTORY_SECONDS, *map(msgspec.json.encode, steps)])

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
