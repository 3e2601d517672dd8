"""Reservations: which namespace has which address, and NetIDs that are being taken."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from egress.adapters import scripts
from egress.adapters.ledger.connection import Connection, NotReadyError, away, from_key, hexadecimal, key_of
from egress.addresses import Address, Range, parse_address
from egress.listing import Listed
from egress.objects import EgressAddress, EgressPool


@dataclass(frozen=True, slots=True)
class Reserved:
    """The addresses a reservation got. `untold` is why the workers could not be told of it, "" if they were."""

    addresses: tuple[Address, ...]
    untold: str = ""


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
    """What admission chooses from: the pools, and the nodes' own IPs and gateways, which no pool may give."""

    pools: tuple[EgressPool, ...] = ()
    node_ips: frozenset[Address] = frozenset()
    gateways: frozenset[Address] = frozenset()
    stamp: str = field(default="", compare=False)
    """Tells it from any other that the ledger has had; "" for one that does not come from there."""

    @property
    def withheld(self) -> frozenset[Address]:
        """What no pool may give."""
        return self.node_ips | self.gateways


@dataclass(frozen=True, slots=True)
class Holding:
    """One address that an object of the cluster holds, for the index. `quarantined` means its namespace is gone."""

    address: Address
    holder: str
    quarantined: bool = False


class _Offer(msgspec.Struct, frozen=True, kw_only=True):
    stamp: str = ""  # first, where the scripts find it without reading on
    pools: list[EgressPool]
    node_ips: list[str]
    gateways: list[str] = []


REQUEST_PREFIX = "uid/"
MANUAL_PREFIX = "manual/"
_OFFER = msgspec.json.Decoder(_Offer)
_SEEN = ""
"""A field of `hawse:listed` that is no address: without it an empty hash would say that nothing lists anything."""


def name_holder(namespace: str) -> str:
    """The holder of a reservation for a namespace whose name is known."""
    return f"ns/{namespace}"


def manual_holder(name: str) -> str:
    """The holder of an address that an admin assigned by hand to a NetNamespace."""
    return f"{MANUAL_PREFIX}{name}"


def node_holder(name: str) -> str:
    """The holder of an address that an admin put on a HostSubnet and no NetNamespace has. No namespace is named so."""
    return manual_holder(f"node/{name}")


def holder_of(claim: EgressAddress) -> str:
    """Who has the address of a claim: what an admin has set by hand stays the admin's, though a claim shows it."""
    return manual_holder(claim.namespace) if claim.adopted else name_holder(claim.namespace)


def request_holder(uid: str) -> str:
    """The holder of a reservation for a namespace that has no name yet (generateName): the admission request's uid."""
    return f"{REQUEST_PREFIX}{uid}"


class Reservations(Connection):
    """The index of addresses in use. It follows the cluster's objects, and can be rebuilt from them."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        super().__init__(url, timeout)
        self._reserve = self._redis.register_script(scripts.RESERVE)
        self._settle = self._redis.register_script(scripts.SETTLE)
        self._sync = self._redis.register_script(scripts.SYNC)
        self._take_netid = self._redis.register_script(scripts.TAKE_NETID)
        self._ready = self._redis.register_script(scripts.READY)
        self._offer = self._redis.register_script(scripts.OFFER)
        self._read_offer: Offer | None = None
        self._holders = self._redis.register_script(scripts.HOLDERS)

    def offer(self) -> Offer:
        """The pools as last seen by the workers; NotReadyError while the index is not built."""
        seen = self._read_offer
        with away():
            reply = self._offer(args=[seen.stamp if seen is not None else ""])
        if reply is None:
            raise NotReadyError("the index is being rebuilt")
        if seen is not None and reply[0] == seen.stamp:
            return seen
        stamp, text = reply
        try:
            wire = _OFFER.decode(text)
        except msgspec.DecodeError as error:  # written by another version: the next reconcile replaces it
            raise NotReadyError(f"the pools cannot be read: {error}") from None
        node_ips, gateways = (frozenset(map(parse_address, texts)) for texts in (wire.node_ips, wire.gateways))
        self._read_offer = Offer(tuple(wire.pools), node_ips, gateways, stamp)
        return self._read_offer

    def last_offer(self) -> Offer:
        """The pools as this process last read them, which may be others by now; see `admit`."""
        return self._read_offer or self.offer()

    def set_offer(self, offer: Offer) -> None:
        """Replaces the pools."""
        node_ips, gateways = (sorted(map(str, addresses)) for addresses in (offer.node_ips, offer.gateways))
        wire = _Offer(pools=list(offer.pools), node_ips=node_ips, gateways=gateways)
        stamp = hashlib.blake2b(msgspec.json.encode(wire), digest_size=20).hexdigest()
        with away():
            self._redis.set("hawse:offer", msgspec.json.encode(msgspec.structs.replace(wire, stamp=stamp)))

    def set_listed(self, listed: Mapping[Address, Listed]) -> None:
        """Replaces what is known of which objects list an address. Writes only what differs."""
        wanted = {_SEEN: ""}
        for address, lists in listed.items():
            wanted[key_of(address)] = _encoded(lists)
        with away():
            known = self._redis.hgetall("hawse:listed")
            news = dict(wanted.items() - known.items())
            gone = known.keys() - wanted.keys()
            pipeline = self._redis.pipeline()
            if news:
                pipeline.hset("hawse:listed", mapping=news)
            if gone:
                pipeline.hdel("hawse:listed", *gone)
            pipeline.execute()

    def note_listed(self, listed: Mapping[Address, Listed]) -> None:
        """What lists these addresses now; of all others it stays what is known."""
        there = {key_of(address): _encoded(lists) for address, lists in listed.items() if lists != Listed()}
        gone = [key_of(address) for address, lists in listed.items() if lists == Listed()]
        with away():
            pipeline = self._redis.pipeline()
            if there:
                pipeline.hset("hawse:listed", mapping=there)
            if gone:
                pipeline.hdel("hawse:listed", *gone)
            pipeline.execute()

    def listed(self, addresses: Sequence[Address]) -> dict[Address, Listed] | None:
        """Which objects list each of `addresses`, without those that none lists; None while nothing is known of any."""
        with away():
            seen, *values = self._redis.hmget("hawse:listed", [_SEEN, *map(key_of, addresses)])
        if seen is None:
            return None
        return {address: _listed(value) for address, value in zip(addresses, values, strict=True) if value}

    def reserve(
        self,
        holder: str,
        count: int,
        ranges: Iterable[Range],
        requested: Sequence[Address] = (),
        *,
        pairs: bool = False,
    ) -> Reserved | Held | Exhausted:
        """Reserves `requested`, or the lowest free `count` addresses of `ranges`, in one atomic step. With `pairs` half
        of them are of IPv4, and half of IPv6.

        A holder that has addresses of these ranges already, even in quarantine, gets the same again. NotReadyError
        while the index is not built.
        """
        with away():
            reply = self._reserve(args=[holder, count, ",".join(map(key_of, requested)), flat(ranges), int(pairs)])
        match reply:
            case ["ok", *addresses]:
                return Reserved(tuple(from_key(key) for key in addresses))
            case ["held", address]:
                return Held(from_key(address))
            case ["full", used, total]:
                return Exhausted(int(used), int(total))
        raise NotReadyError("the index is being rebuilt")

    def held_by(self, holder: str) -> tuple[Address, ...]:
        """The addresses that `holder` has, in whatever state."""
        with away():
            text = self._redis.hget("hawse:holders", holder)
        return tuple(from_key(key) for key in (text or "").split(",") if key)

    def holders(self, addresses: Sequence[Address]) -> dict[Address, str]:
        """Who has each of `addresses`, without those that nobody has. NotReadyError while the index is not built."""
        return {address: holder for address, (_, holder) in self.entries(addresses).items()}

    def entries(self, addresses: Sequence[Address]) -> dict[Address, tuple[str, str]]:
        """The state (reserved, claimed or quarantined) and holder of each of `addresses` that somebody has.

        NotReadyError while the index is not built.
        """
        with away():
            values = self._holders(args=[key_of(address) for address in addresses])
        if values is None:
            raise NotReadyError("the index is being rebuilt")
        return {address: as_entry(value) for address, value in zip(addresses, values, strict=True) if value}

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
        keys = [key_of(address) for address in addresses]
        if keys:
            with away():
                self._settle(args=[state, holder, only, until, *keys])

    def sync(self, holdings: Iterable[Holding], listed_at: float, *, ready: bool) -> None:
        """Brings the index to what the cluster's objects hold, as listed at `listed_at` by `now()`.

        `ready` declares it complete: from then on reservations are made. Without it, it stays what it was.
        """
        args: list[str] = [f"{listed_at:.6f}", "1" if ready else "0"]
        for holding in holdings:
            args += [key_of(holding.address), "quarantined" if holding.quarantined else "claimed", holding.holder]
        with away():
            self._sync(args=args)

    def lapsed(self, older_than: float) -> dict[Address, str]:
        """Reservations made more than `older_than` seconds ago, and their holders."""
        now = self.now()
        with away():
            keys = self._redis.zrangebyscore("hawse:reserved", "-inf", now - older_than)
            values = self._redis.hmget("hawse:addresses", keys) if keys else []
        return {from_key(key): as_entry(value)[1] for key, value in zip(keys, values, strict=True) if value is not None}

    def usage(self) -> dict[Address, tuple[str, str]]:
        """Every address in use: its state (reserved, claimed or quarantined) and holder."""
        with away():
            entries = self._redis.hgetall("hawse:addresses")
        return {from_key(key): as_entry(value) for key, value in entries.items()}

    def is_ready(self) -> bool:
        """Whether the index is built, so that reservations can be made."""
        with away():
            return bool(self._ready())

    def is_index_new(self) -> bool:
        """Whether the index was built within the last minute. A namespace whose creation is under way may have been
        given an address by the one before, of which this one knows nothing: no object says so yet. Also while there is
        none: it was ready when it was asked, and Redis was flushed since."""
        with away():
            return bool(self._redis.exists("hawse:index-new")) or not self._ready()

    def take_netid(self, namespace: str, candidates: Iterable[int]) -> int | None:
        """A NetID for `namespace` that no other namespace takes at the same time, or None if all candidates went."""
        with away():
            reply = self._take_netid(args=[namespace, *candidates])
        return int(reply) if reply else None

    def see_netids(self, netids: Collection[int]) -> None:
        """Replaces what is known of the NetIDs that NetNamespaces have: none of them is taken."""
        with away():
            self._redis.pipeline().delete("hawse:netids-seen").sadd("hawse:netids-seen", "all", *netids).execute()

    def promised_netids(self, namespaces: Collection[str]) -> dict[str, int]:
        """The NetIDs that were taken for those of `namespaces` that have one."""
        names = sorted(namespaces)
        if not names:
            return {}
        with away():
            found = self._redis.hmget("hawse:netid-of", names)
        return {name: int(netid) for name, netid in zip(names, found, strict=True) if netid}

    def fenced(self, rows: Mapping[str, str]) -> list[str]:
        """Notes that every node has applied these rows, each of its namespace; those of which it was not known.

        A row is whatever text tells it from any other and any later one.
        """
        if not rows:
            return []
        names = list(rows)
        with away():
            known = self._redis.hmget("hawse:fenced", names)
            self._redis.hset("hawse:fenced", mapping=dict(rows))
        return [name for name, row in zip(names, known, strict=True) if row != rows[name]]

    def return_netid(self, namespace: str) -> None:
        """Forgets the NetID that was taken for `namespace`, and that it waits for it or need not any more."""
        with away():
            netid = self._redis.hget("hawse:netid-of", namespace)
            pipeline = self._redis.pipeline().delete(f"hawse:pending:fence:{namespace}")
            pipeline.hdel("hawse:fenced", namespace).hdel("hawse:netid-of", namespace)
            if netid is not None:
                pipeline.hdel("hawse:netids", netid)
            pipeline.execute()


def flat(ranges: Iterable[Range]) -> str:
    """Ranges as the scripts take them."""
    return ",".join(
        f"{hexadecimal(piece.first, piece.version)},{hexadecimal(piece.last, piece.version)}" for piece in ranges
    )


def as_entry(text: str) -> tuple[str, str]:
    """State and holder. At admission nobody has checked the name yet, so the holder may hold the separator too."""
    state, _, rest = text.partition("|")
    return state, rest.rpartition("|")[0]


def _encoded(lists: Listed) -> str:
    return f"{','.join(lists.hosts)}|{','.join(lists.namespaces)}"


def _listed(text: str) -> Listed:
    hosts, _, namespaces = text.partition("|")
    return Listed(tuple(filter(None, hosts.split(","))), tuple(filter(None, namespaces.split(","))))
