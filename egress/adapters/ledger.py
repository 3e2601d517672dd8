"""The ledger in Redis: reservations, the nodes' table with its change log, what the nodes report, the history.

All of it but the history can be rebuilt from the cluster's objects and the nodes' reports, at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

import msgspec
import redis
import structlog
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import LockError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from egress.adapters import scripts
from egress.addresses import Address, AddressError, Range, make_address, parse_address
from egress.objects import EgressPool
from egress.operations import StepRecord, TransientError
from egress.table import Claim, NodeReport, Steering, SteeringHop

if TYPE_CHECKING:
    from collections.abc import Iterator

HISTORY_PER_NAMESPACE = 100
_log = structlog.get_logger()


class LedgerAwayError(TransientError):
    """Redis cannot be reached or does not answer in time."""


class NotReadyError(TransientError):
    """Redis was flushed, and its index is not rebuilt yet."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """The addresses a reservation got."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A requested address is another's."""

    address: Address


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The pool has too few free addresses: `used` of `total` are taken."""

    used: int
    total: int


@dataclass(frozen=True, slots=True)
class Offer:
    """What admission chooses from: the pools, and the nodes' own IPs, which no pool may give."""

    pools: tuple[EgressPool, ...] = ()
    node_ips: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class Holding:
    """One address that an object of the cluster holds, for the index. `quarantined` means its namespace is gone."""

    address: Address
    holder: str
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class TableRead:
    """What a reader of the table missed: all of it (`whole`) or the rows that changed. A None row is gone.

    An empty `epoch` means that no table is published now: keep what you have.
    """

    epoch: str
    change: int
    whole: bool
    rows: Mapping[int, Steering | None]


class _Hop(msgspec.Struct, frozen=True):
    address: str
    node: str
    node_ip: str
    ack: bool
    since: int


class _Row(msgspec.Struct, frozen=True):
    namespace: str
    hops: list[_Hop]


class _Claim(msgspec.Struct, frozen=True):
    address: str
    netid: int
    held: bool
    reason: str = ""
    message: str = ""


class _Report(msgspec.Struct, frozen=True, omit_defaults=True):
    at: float
    epoch: str
    applied: int
    link: str
    interface: str
    claims: list[_Claim]
    repairs: int
    problem: str
    run: str = ""  # filled in by the script


class _Offer(msgspec.Struct, frozen=True):
    pools: list[EgressPool]
    node_ips: list[str]


REQUEST_PREFIX = "uid/"
MANUAL_PREFIX = "manual/"
_ROW = msgspec.json.Decoder(_Row)
_REPORT = msgspec.json.Decoder(_Report)
_OFFER = msgspec.json.Decoder(_Offer)
_STEP = msgspec.json.Decoder(StepRecord)


def name_holder(namespace: str) -> str:
    """The holder of a reservation for a namespace whose name is known."""
    return f"ns/{namespace}"


def manual_holder(name: str) -> str:
    """The holder of an address that an admin assigned by hand, to a NetNamespace or else a HostSubnet of that name."""
    return f"{MANUAL_PREFIX}{name}"


def request_holder(uid: str) -> str:
    """The holder of a reservation for a namespace that has no name yet (generateName): the admission request's uid."""
    return f"{REQUEST_PREFIX}{uid}"


class Ledger:
    """A connection to the ledger. Every method raises LedgerAwayError when Redis does not answer in time."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        self._redis: Any = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[RedisConnectionError],
        )
        self._reserve = self._redis.register_script(scripts.RESERVE)
        self._settle = self._redis.register_script(scripts.SETTLE)
        self._sync = self._redis.register_script(scripts.SYNC)
        self._publish = self._redis.register_script(scripts.PUBLISH)
        self._changes = self._redis.register_script(scripts.CHANGES)
        self._take_netid = self._redis.register_script(scripts.TAKE_NETID)
        self._ready = self._redis.register_script(scripts.READY)
        self._offer = self._redis.register_script(scripts.OFFER)
        self._holders = self._redis.register_script(scripts.HOLDERS)
        self._report = self._redis.register_script(scripts.REPORT)
        self._reports = self._redis.register_script(scripts.REPORTS)

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    # Reservations

    def offer(self) -> Offer:
        """The pools as last seen by the workers; NotReadyError while the index is not built."""
        with _away():
            text = self._offer()
        if text is None:
            raise NotReadyError("the index is being rebuilt")
        try:
            wire = _OFFER.decode(text)
        except msgspec.DecodeError as error:  # written by another version: the next reconcile replaces it
            raise NotReadyError(f"the pools cannot be read: {error}") from None
        return Offer(tuple(wire.pools), frozenset(map(parse_address, wire.node_ips)))

    def set_offer(self, offer: Offer) -> None:
        """Replaces the pools."""
        text = msgspec.json.encode(_Offer(list(offer.pools), sorted(map(str, offer.node_ips))))
        with _away():
            self._redis.set("hawse:offer", text)

    def reserve(
        self, holder: str, count: int, ranges: Iterable[Range], requested: Sequence[Address] = ()
    ) -> Reserved | Held | Exhausted:
        """Reserves `requested`, or the lowest free `count` addresses of `ranges`, in one atomic step.

        A holder that has addresses of these ranges already, even in quarantine, gets the same again. NotReadyError
        while the index is not built.
        """
        flat = ",".join(f"{_hex(piece.first, piece.version)},{_hex(piece.last, piece.version)}" for piece in ranges)
        with _away():
            reply = self._reserve(args=[holder, count, ",".join(map(_key, requested)), flat])
        match reply:
            case ["ok", *addresses]:
                return Reserved(tuple(_from_key(key) for key in addresses))
            case ["held", address]:
                return Held(_from_key(address))
            case ["full", used, total]:
                return Exhausted(int(used), int(total))
        raise NotReadyError("the index is being rebuilt")

    def held_by(self, holder: str) -> tuple[Address, ...]:
        """The addresses that `holder` has, in whatever state."""
        with _away():
            text = self._redis.hget("hawse:holders", holder)
        return tuple(_from_key(key) for key in (text or "").split(",") if key)

    def holders(self, addresses: Sequence[Address]) -> dict[Address, str]:
        """Who has each of `addresses`, without those that nobody has. NotReadyError while the index is not built."""
        with _away():
            values = self._holders(args=[_key(address) for address in addresses])
        if values is None:
            raise NotReadyError("the index is being rebuilt")
        return {address: _entry(value)[1] for address, value in zip(addresses, values, strict=True) if value}

    def claimed(self, holder: str, addresses: Iterable[Address]) -> None:
        """Follows objects that exist: `addresses` are `holder`'s, for as long as they do."""
        self._settled("claimed", holder, addresses)

    def quarantined(self, holder: str, addresses: Iterable[Address]) -> None:
        """Follows objects in quarantine: nobody but `holder` gets `addresses`."""
        self._settled("quarantined", holder, addresses)

    def freed(self, holder: str, addresses: Iterable[Address]) -> None:
        """Gives `addresses` back, unless somebody else has them by now."""
        self._settled("free", holder, addresses)

    def lapse(self, holder: str, addresses: Iterable[Address], older_than: float) -> None:
        """Gives reservations back that were made more than `older_than` seconds ago; one made anew meanwhile stays."""
        self._settled("free", holder, addresses, "reserved", f"{self.now() - older_than:.6f}")

    def quarantine_over(self, holder: str, addresses: Iterable[Address]) -> None:
        """Gives `addresses` back, unless `holder` is back and has reserved them meanwhile."""
        self._settled("free", holder, addresses, "quarantined")

    def _settled(self, state: str, holder: str, addresses: Iterable[Address], only: str = "", until: str = "") -> None:
        keys = [_key(address) for address in addresses]
        if keys:
            with _away():
                self._settle(args=[state, holder, only, until, *keys])

    def now(self) -> float:
        """Redis's clock, in seconds since the epoch: the one that stamps reservations."""
        with _away():
            seconds, microseconds = self._redis.time()
        return float(seconds) + float(microseconds) / 1e6

    def sync(self, holdings: Iterable[Holding], listed_at: float, *, ready: bool) -> None:
        """Brings the index to what the cluster's objects hold, as listed at `listed_at` by `now()`.

        `ready` declares it complete: from then on reservations are made. Without it, it stays what it was.
        """
        args: list[str] = [f"{listed_at:.6f}", "1" if ready else "0"]
        for holding in holdings:
            args += [_key(holding.address), "quarantined" if holding.quarantined else "claimed", holding.holder]
        with _away():
            self._sync(args=args)

    def lapsed(self, older_than: float) -> dict[Address, str]:
        """Reservations made more than `older_than` seconds ago, and their holders."""
        now = self.now()
        with _away():
            keys = self._redis.zrangebyscore("hawse:reserved", "-inf", now - older_than)
            values = self._redis.hmget("hawse:addresses", keys) if keys else []
        return {_from_key(key): _entry(value)[1] for key, value in zip(keys, values, strict=True) if value is not None}

    def usage(self) -> dict[Address, tuple[str, str]]:
        """Every address in use: its state (reserved, claimed or quarantined) and holder."""
        with _away():
            entries = self._redis.hgetall("hawse:addresses")
        return {_from_key(key): _entry(value) for key, value in entries.items()}

    def is_ready(self) -> bool:
        """Whether the index is built, so that reservations can be made."""
        with _away():
            return bool(self._ready())

    def take_netid(self, namespace: str, candidates: Iterable[int]) -> int | None:
        """A NetID for `namespace` that no other namespace takes at the same time, or None if all candidates went."""
        with _away():
            reply = self._take_netid(args=[namespace, *candidates])
        return int(reply) if reply else None

    def return_netid(self, namespace: str) -> None:
        """Forgets the NetID that was taken for `namespace`."""
        with _away():
            netid = self._redis.hget("hawse:netid-of", namespace)
            if netid is not None:
                self._redis.pipeline().hdel("hawse:netid-of", namespace).hdel("hawse:netids", netid).execute()

    # The table

    def read_table(self, epoch: str = "", change: int = 0) -> TableRead:
        """What changed since `change` of table `epoch`; the whole table for a reader that has none or another."""
        with _away():
            head, *rest = self._changes(args=[epoch, change])
        if not head:
            return TableRead("", 0, whole=False, rows={})
        number, kind, *flat = rest
        rows = {int(netid): _row(int(netid), text) for netid, text in zip(flat[::2], flat[1::2], strict=True)}
        return TableRead(head, int(number), kind == "all", rows)

    def publish(self, changes: Mapping[int, Steering | None], *, expected: int, epoch: str = "") -> int | None:
        """Writes changed rows; the new change number, or None when somebody published since change `expected`.

        `epoch` begins a new table: the caller has put all of it into `changes`.
        """
        args: list[Any] = [expected, epoch]
        for netid, row in sorted(changes.items()):
            args += [netid, _encoded(row) if row is not None else ""]
        with _away():
            reply = int(self._publish(args=args))
        return None if reply < 0 else reply

    def change_number(self) -> int:
        """The number of the last change, whether or not a table is published."""
        with _away():
            return int(self._redis.get("hawse:change") or 0)

    @contextmanager
    def exclusively(self, name: str, timeout: float = 30.0) -> Iterator[None]:
        """Holds the lock `name`, or raises TransientError after waiting a little for it."""
        with _away():
            lock = self._redis.lock(f"hawse:lock:{name}", timeout=timeout, blocking_timeout=2.0)
            if not lock.acquire():
                raise TransientError(f"somebody else is at {name}")
        try:
            yield
        finally:
            with suppress(LockError, RedisError):  # it ran out or Redis is away: either way it is no longer ours
                lock.release()

    def first_to(self, what: str, seconds: float) -> bool:
        """True for the first who asks for `what` until `done_with` or `seconds` later: several asks become one."""
        with _away():
            return bool(self._redis.set(f"hawse:pending:{what}", "1", nx=True, px=max(1, int(seconds * 1000))))

    def done_with(self, what: str) -> None:
        """Lets the next ask for `what` through. Call it before reading what the work depends on."""
        with _away():
            self._redis.delete(f"hawse:pending:{what}")

    def is_news(self, what: str, value: str) -> bool:
        """Whether `what` had another value, or none, when this was last asked."""
        with _away():
            return bool(self._redis.set(f"hawse:last:{what}", value, get=True) != value)

    def waiting_for(self, what: str, seconds: float) -> bool:
        """True until `seconds` after the first call for `what` since `done_with` it."""
        key, now = f"hawse:pending:{what}", self.now()
        with _away():
            self._redis.set(key, f"{now:.3f}", nx=True, ex=3600)
            since = float(self._redis.get(key) or now)
        return now - since < seconds

    # Nodes

    def report(self, report: NodeReport) -> None:
        """Stores what a runner says of its node."""
        claims = [_Claim(str(c.address), c.netid, c.held, c.reason, c.message) for c in report.claims]
        wire = _Report(
            report.at,
            report.epoch,
            report.applied,
            report.link,
            report.interface,
            claims,
            report.repairs,
            report.problem,
        )
        with _away():
            self._report(args=[report.node, msgspec.json.encode(wire)])

    def reports(self, nodes: Iterable[str]) -> dict[str, NodeReport]:
        """What the runners of `nodes` last said.

        A node is absent that has said nothing since Redis started, or what cannot be read: a runner of another version.
        """
        names = sorted(nodes)
        if not names:
            return {}
        with _away():
            run, *texts = self._reports(args=names)
        result: dict[str, NodeReport] = {}
        for name, text in zip(names, texts, strict=True):
            try:
                wire = _REPORT.decode(text) if text else None
                if wire is not None and wire.run == run:
                    result[name] = _node_report(name, wire)
            except (msgspec.DecodeError, AddressError) as error:
                _log.error("report cannot be read", node=name, error=str(error))
        return result

    def set_unplaced(self, reasons: Mapping[Address, str]) -> None:
        """Replaces what is known of the addresses that no node can host, and why."""
        with _away():
            pipeline = self._redis.pipeline().delete("hawse:unplaced")
            if reasons:
                pipeline.hset("hawse:unplaced", mapping={_key(address): text for address, text in reasons.items()})
            pipeline.execute()

    def unplaced(self) -> dict[Address, str]:
        """The addresses that no node could host when they were last placed, and why."""
        with _away():
            entries = self._redis.hgetall("hawse:unplaced")
        return {_from_key(key): text for key, text in entries.items()}

    # History

    def record(self, step: StepRecord) -> None:
        """Adds a step to its namespace's history, which keeps the last hundred."""
        key = f"hawse:history:{step.namespace}"
        with _away():
            self._redis.pipeline().lpush(key, msgspec.json.encode(step)).ltrim(
                key, 0, HISTORY_PER_NAMESPACE - 1
            ).expire(key, 30 * 24 * 3600).execute()

    def history(self, namespace: str) -> tuple[StepRecord, ...]:
        """A namespace's steps, the latest first."""
        with _away():
            return tuple(_STEP.decode(text) for text in self._redis.lrange(f"hawse:history:{namespace}", 0, -1))

    def ping(self) -> float:
        """Seconds that Redis took to answer."""
        before = time.monotonic()
        with _away():
            self._redis.ping()
        return time.monotonic() - before


@contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise LedgerAwayError(f"Redis is away: {error}") from error
    except RedisError as error:
        raise TransientError(f"Redis refused: {error}") from error


def _hex(value: int, version: int) -> str:
    return f"{value:08x}" if version == 4 else f"{value:032x}"


def _key(address: Address) -> str:
    return _hex(int(address), address.version)


def _from_key(key: str) -> Address:
    return make_address(int(key, 16), 4 if len(key) == 8 else 6)


def _entry(text: str) -> tuple[str, str]:
    """State and holder. At admission nobody has checked the name yet, so the holder may hold the separator too."""
    state, _, rest = text.partition("|")
    return state, rest.rpartition("|")[0]


def _node_report(name: str, wire: _Report) -> NodeReport:
    claims = tuple(Claim(parse_address(c.address), c.netid, c.held, c.reason, c.message) for c in wire.claims)
    if wire.link:
        try:
            ip_interface(wire.link)
        except ValueError as error:
            raise AddressError(f"link: {error}") from None
    return NodeReport(
        name, wire.at, wire.epoch, wire.applied, wire.link, wire.interface, claims, wire.repairs, wire.problem
    )


def _encoded(row: Steering) -> bytes:
    hops = [_Hop(str(hop.address), hop.node, str(hop.node_ip), hop.acknowledged, hop.since) for hop in row.hops]
    return msgspec.json.encode(_Row(row.namespace, hops))


def _row(netid: int, text: str) -> Steering | None:
    if not text:
        return None
    try:
        row = _ROW.decode(text)
        hops = tuple(
            SteeringHop(parse_address(hop.address), hop.node, parse_address(hop.node_ip), hop.ack, hop.since)
            for hop in row.hops
        )
    except (msgspec.DecodeError, AddressError) as error:
        raise TransientError(f"the table's row of NetID {netid} cannot be read: {error}") from None
    return Steering(netid, row.namespace, hops)
