"""The egress addresses on the node's interface, through netlink."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from pathlib import Path
from threading import Event
from typing import NamedTuple

from pyroute2.netlink import NETLINK_ROUTE, NLM_F_CREATE, NLM_F_EXCL
from pyroute2.netlink.rtnl import RTM_DELADDR, RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE, RTM_NEWADDR
from pyroute2.netlink.rtnl.ifaddrmsg import (
    IFA_F_DADFAILED,
    IFA_F_NODAD,
    IFA_F_NOPREFIXROUTE,
    IFA_F_SECONDARY,
    IFA_F_TEMPORARY,
)

from egress.addresses import VERSIONS, Address, make_address
from node_runner.drivers.errors import (
    AddressForeign,
    AddressIsNodeIP,
    AddressIsPrimary,
    AddressOutsideSubnet,
    InterfaceMissing,
    InterfaceNameTooLong,
    KernelTooOld,
    NetlinkFailed,
    NodeError,
)
from node_runner.drivers.netlink import Message, Netlink, Piece, attribute, attributes, cut
from node_runner.drivers.ports import LinkFacts, LinkSight
from node_runner.drivers.watch import watch

LABEL_SUFFIX = ":eip"
LONGEST_LABELLED = 15 - len(LABEL_SUFFIX)
"""A label has 15 characters and must begin with the interface's name."""
ADDRESS_PROTOCOL = 72
"""'H': the IFA_PROTO (Linux 5.18) of our addresses where the name leaves no room for the label; 0 to 3 are taken."""
ADDRESS_METRIC = 0x48415753
"""'HAWS': the IFA_RT_PRIORITY (Linux 4.18) of our IPv6 addresses, which have no labels. It is the metric of the prefix
route that an address makes, and ours make none."""

_DUMP_ATTEMPTS = 5
_MAIN_TABLE = 254
_GATEWAYS_SECONDS = 60.0

_IFINFOMSG = struct.Struct("=xxxxixxxxxxxx")  # family, type; interface index; flags, change
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_CARRIER = 1, 3, 33
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface index
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_RT_PRIORITY, _IFA_PROTO = 1, 2, 3, 6, 8, 9, 11
_CACHEINFO = struct.Struct("=IIII")  # seconds for which it is preferred, and valid; when it was made, and changed
_RTMSG = struct.Struct("=BBBBBBBBI")  # family; two prefix lengths, TOS; table, protocol, scope, type; flags
_RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH = 4, 5, 9
_RTNEXTHOP = struct.Struct("=HxxI")  # length; flags, hops; interface index
_FOREVER = 0xFFFFFFFF
_GLOBAL = 0  # RT_SCOPE_UNIVERSE
_PASSING = IFA_F_TEMPORARY | IFA_F_DADFAILED
_SIX = 1 << 128
"""Added to the number of an IPv6 address: no IPv4 address has it."""
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class _Held(NamedTuple):
    """An address as an interface of the node holds it: its `_number`, and the interface's index. `lasting`: it is of
    global scope and does not change by itself, as temporary ones do. A tuple, as `Rule` is."""

    number: int
    link: int
    prefix_length: int
    label: str
    ours: bool
    secondary: bool
    lasting: bool

    @property
    def address(self) -> Address:
        return _address(self.number)

    @property
    def network(self) -> IPv4Interface | IPv6Interface:
        return _interface(self.address, self.prefix_length)


class _Dumped:
    """A piece of a dump of addresses; each is parsed, unless it is one of `known`. Nothing is done with thousands of
    ours one by one that can be done with pieces."""

    def __init__(self, piece: Piece, known: Mapping[bytes, _Held | None]) -> None:
        self.last = piece.last
        self.parsed = {body: known[body] if body in known else _parsed(body) for body in piece.bodies}
        self.others = [entry for entry in self.parsed.values() if entry is not None and not entry.ours]
        self.ours_by_link: dict[int, set[int]] = defaultdict(set)
        for entry in self.parsed.values():
            if entry is not None and entry.ours:
                self.ours_by_link[entry.link].add(entry.number)


class _Addresses:
    """The addresses of the node's interfaces at one moment, an iterable. Of `others` there are a few."""

    def __init__(self, pieces: Iterable[_Dumped]) -> None:
        self._pieces = tuple(pieces)
        self.others = [entry for piece in self._pieces for entry in piece.others]

    def __iter__(self) -> Iterator[_Held]:
        return (entry for piece in self._pieces for entry in piece.parsed.values() if entry is not None)

    def ours_on(self, index: int) -> frozenset[int]:
        """The numbers of our addresses on an interface."""
        return frozenset().union(*(piece.ours_by_link.get(index, ()) for piece in self._pieces))


@dataclass(frozen=True, slots=True)
class _Ours:
    """The same addresses twice: as numbers, which compare in no time."""

    numbers: frozenset[int] = frozenset()
    addresses: frozenset[Address] = frozenset()


class InterfaceLinks:
    """The interface that carries `node_ip`, found anew at each call: an interface may be replaced at any time.

    `chains` are the iptables chains whose changes `watch` reports, where iptables is nft; a name that ends with a
    hyphen stands for all that begin so.
    """

    def __init__(self, node_ip: Address, chains: Iterable[str] = ()) -> None:
        self._node_ip = node_ip
        self._chains = frozenset(chains)
        self._gateways: tuple[int, float, tuple[Address, ...]] = (0, 0.0, ())
        self._port = 0
        self._dumped: dict[bytes, _Dumped] = {}
        self._ours = _Ours()
        self._marks_six = False

    def facts(self) -> LinkFacts:
        """See ports.Links."""
        return self._facts(self._held())

    def read(self) -> frozenset[Address]:
        """See ports.Links."""
        held = self._held()
        return self._ours_on(held, self._primary(held).link)

    def look(self, addresses: Iterable[Address]) -> LinkSight:
        """See ports.Links. One dump."""
        held = self._held()
        facts = self._facts(held)
        return LinkSight(facts, self._ours_on(held, facts.index), self._refusals(addresses, held, facts))

    def apply(self, add: AbstractSet[Address], remove: AbstractSet[Address]) -> dict[Address, NodeError]:
        """See ports.Links. One batch; removals first."""
        if not add and not remove:
            return {}
        held = self._held()
        facts = self._facts(held)
        refused = self._refusals(add, held, facts)
        requests: list[tuple[Address, Message]] = []
        there: dict[int, list[_Held]] = {_number(address): [] for address in sorted(remove, key=_number)}
        for entry in held if there else ():
            if entry.number in there:
                there[entry.number].append(entry)
        for number, found in there.items():
            address = _address(number)
            ours = [entry for entry in found if entry.ours]
            if found and not ours:
                refused[address] = _foreign(address)
            for entry in ours:
                if _would_drag(entry, held, facts.interface):
                    refused[address] = _dragging(address, facts.interface)
                else:
                    requests.append((address, _removal(entry, address)))
        here = held.ours_on(facts.index) - there.keys()
        subnets = self._subnets(facts)
        requests += [
            (address, _addition(address, _length(address, subnets), facts))
            for address in sorted(add, key=_number)
            if address not in refused and _number(address) not in here
        ]
        return refused | self._perform(requests, facts)

    def sweep(self) -> frozenset[Address]:
        """See ports.Links."""
        held = self._held()
        index = self._primary(held).link
        strays = [entry for entry in held if entry.ours and entry.link != index]
        with Netlink(NETLINK_ROUTE) as netlink:
            netlink.batch([_removal(entry, entry.address) for entry in strays])
        return frozenset(entry.address for entry in strays)

    def refusals(self, addresses: Iterable[Address]) -> dict[Address, NodeError]:
        """See ports.Links."""
        held = self._held()
        return self._refusals(addresses, held, self._facts(held))

    def watch(self, callback: Callable[[], None], stop: Event) -> None:
        """See ports.Links."""
        watch(callback, stop, self._index, self._chains)

    def _index(self) -> int | None:
        try:
            return self._primary(self._held()).link
        except InterfaceMissing:
            return None

    def _held(self) -> _Addresses:
        """What the kernel dumps now. Most of it is byte for byte what it was: what is not is cut up and parsed."""
        known = self._dumped
        with Netlink(NETLINK_ROUTE, self._port) as netlink:
            self._port = netlink.port
            request = Message(RTM_GETADDR, _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
            for _ in range(_DUMP_ATTEMPTS):
                told: dict[bytes, Piece | None] = {}
                for data in netlink.pieces(request):
                    told[data] = piece = None if data in known else cut(data)
                    if piece.last if piece else known[data].last:
                        break
                if not any(piece.interrupted for piece in told.values() if piece):
                    parsed: dict[bytes, _Held | None] = {}
                    for data in known.keys() - told.keys():
                        parsed |= known[data].parsed
                    self._dumped = {
                        data: _Dumped(piece, parsed) if piece else known[data] for data, piece in told.items()
                    }
                    return _Addresses(self._dumped.values())
        raise NetlinkFailed("the node's addresses change faster than they can be read; try again")

    def _ours_on(self, held: _Addresses, index: int) -> frozenset[Address]:
        """Our addresses on an interface. To build a set of addresses takes long; of numbers it does not."""
        numbers = held.ours_on(index)
        known = self._ours
        if numbers != known.numbers:
            came = frozenset(map(_address, numbers - known.numbers))
            went = frozenset(map(_address, known.numbers - numbers))
            known = self._ours = _Ours(numbers, known.addresses - went | came)
        return known.addresses

    def _primary(self, held: _Addresses) -> _Held:
        number = _number(self._node_ip)
        for entry in held.others:
            if entry.number == number:
                return entry
        raise InterfaceMissing(
            f"no interface of this node carries {self._node_ip}: bring the interface up, or correct the node's IP "
            "in its HostSubnet"
        )

    def _facts(self, held: _Addresses) -> LinkFacts:
        primary = self._primary(held)
        try:
            with Netlink(NETLINK_ROUTE) as netlink:
                link = attributes(netlink.get(Message(RTM_GETLINK, _IFINFOMSG.pack(primary.link))), _IFINFOMSG.size)
        except NetlinkFailed as error:
            raise InterfaceMissing(
                f"the interface of {self._node_ip} (index {primary.link}) has just gone: {error}"
            ) from error
        others = _own_subnets(held.others, primary)
        return LinkFacts(
            link[_IFLA_IFNAME].rstrip(b"\0").decode("ascii", "replace"),
            primary.link,
            link.get(_IFLA_ADDRESS, b"").hex(":"),
            primary.prefix_length,
            link.get(_IFLA_CARRIER, b"\1") != b"\0",
            self._known_gateways(primary, others),
            others,
        )

    def _subnets(self, facts: LinkFacts) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The node's own IPs with the subnets that its egress addresses may be of."""
        return (_interface(self._node_ip, facts.prefix_length), *facts.other_ips)

    def _known_gateways(self, primary: _Held, others: tuple[IPv4Interface | IPv6Interface, ...]) -> tuple[Address, ...]:
        """Read once a minute: a node may have thousands of routes, and gateways seldom change."""
        index, read_at, gateways = self._gateways
        if index != primary.link or time.monotonic() - read_at > _GATEWAYS_SECONDS:
            subnets = (primary.network, *others)
            found: set[Address] = set()
            for family in {_FAMILIES[subnet.version] for subnet in subnets}:
                found |= _gateways(_routes(family), primary.link, subnets)
            gateways = tuple(sorted(found, key=_number))
            self._gateways = (primary.link, time.monotonic(), gateways)
        return gateways

    def _refusals(self, addresses: Iterable[Address], held: _Addresses, facts: LinkFacts) -> dict[Address, NodeError]:
        subnets = self._subnets(facts)
        spans = [(_number(own.network.network_address), _number(own.network.broadcast_address)) for own in subnets]
        own_ips = {_number(own.ip) for own in subnets}
        reserved = {number for first, last in spans for number in _reserved(first, last)}
        foreign = {entry.number for entry in held.others}
        refused: dict[Address, NodeError] = {}
        for address in addresses:
            number = _number(address)
            if number in own_ips:
                refused[address] = AddressIsNodeIP(f"{address} is the node's own IP; assign another address")
            elif not any(first <= number <= last for first, last in spans):
                refused[address] = _outside(address, subnets, facts.interface)
            elif number in reserved:
                refused[address] = AddressOutsideSubnet(
                    f"{address} is the network or broadcast address of its subnet; assign another address"
                )
            elif number in foreign:
                refused[address] = _foreign(address)
        return refused

    def _perform(self, requests: list[tuple[Address, Message]], facts: LinkFacts) -> dict[Address, NodeError]:
        with Netlink(NETLINK_ROUTE) as netlink:
            failed = netlink.batch([message for _, message in requests])
        errors: dict[Address, NodeError] = {}
        for position, code in failed.items():
            address, message = requests[position]
            adding = message.kind == RTM_NEWADDR
            # Somebody did the same between our look and now, or, for EEXIST, put a foreign one there: look again.
            if adding and code == errno.EEXIST:
                if address not in self.read():
                    errors[address] = _foreign(address)
            elif adding or code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                verb = "add" if adding else "remove"
                errors[address] = NetlinkFailed(
                    f"cannot {verb} {address} on {facts.interface}: {os.strerror(code)}"
                    + _HINTS.get((address.version, code), "")
                )
        added = {address for address, message in requests if message.kind == RTM_NEWADDR} - errors.keys()
        doubted = {
            address
            for address in added
            if (not self._marks_six if address.version == 6 else len(facts.interface) > LONGEST_LABELLED)
        }
        if doubted:
            unmarked = self._unrecognisable(doubted, facts)
            six = {address for address in doubted if address.version == 6}
            self._marks_six = self._marks_six or (bool(six) and not six & unmarked.keys())
            errors |= unmarked
        return errors

    def _unrecognisable(self, added: AbstractSet[Address], facts: LinkFacts) -> dict[Address, NodeError]:
        """An old kernel drops what it does not know without a word; an address that cannot be told from others is taken
        away again at once."""
        lost = [entry for entry in self._held().others if entry.address in added and entry.link == facts.index]
        with Netlink(NETLINK_ROUTE) as netlink:
            netlink.batch([_removal(entry, entry.address) for entry in lost])
        return {
            entry.address: KernelTooOld(
                f"this kernel (older than 4.18) keeps nothing that would tell {entry.address} from others: host it on "
                "another node"
            )
            if entry.address.version == 6
            else InterfaceNameTooLong(
                f"{facts.interface} has more than {LONGEST_LABELLED} characters and this kernel (older than 5.18) "
                "keeps no protocol of an address, so ours could not be told from others: rename the interface"
            )
            for entry in lost
        }


_HINTS = {
    **{(version, errno.EPERM): "; the runner needs CAP_NET_ADMIN" for version in VERSIONS},
    (6, errno.EACCES): "; IPv6 is disabled on it, see `sysctl net.ipv6.conf`",
    (6, errno.EOPNOTSUPP): "; this kernel has no IPv6",
}


def _number(address: Address) -> int:
    return int(address) if address.version == 4 else int(address) + _SIX


def _address(number: int) -> Address:
    return make_address(number, 4) if number < _SIX else make_address(number - _SIX, 6)


@lru_cache(64)
def _interface(address: Address, prefix_length: int) -> IPv4Interface | IPv6Interface:
    if isinstance(address, IPv4Address):
        return IPv4Interface((int(address), prefix_length))
    return IPv6Interface((int(address), prefix_length))


def _length(address: Address, subnets: Iterable[IPv4Interface | IPv6Interface]) -> int:
    """The prefix length that the node's own IP has in the subnet of `address`."""
    return next(own.network.prefixlen for own in subnets if address in own.network)


def _own_subnets(others: Iterable[_Held], primary: _Held) -> tuple[IPv4Interface | IPv6Interface, ...]:
    """The node's own addresses of the other IP version on its interface, the lowest of each subnet that has room."""
    found: dict[object, _Held] = {}
    for entry in others:
        if entry.link != primary.link or not entry.lasting:
            continue
        room = entry.address.max_prefixlen - entry.prefix_length
        if entry.address.version == primary.address.version or not room:
            continue
        first = found.setdefault(entry.network.network, entry)
        if entry.number < first.number:
            found[entry.network.network] = entry
    return tuple(entry.network for entry in sorted(found.values(), key=lambda entry: entry.number))


def _reserved(first: int, last: int) -> tuple[int, ...]:
    """A subnet's network and broadcast address; of IPv6, the anycast address of its routers."""
    if last - first < 2:
        return ()
    return (first, last) if last < _SIX else (first,)


def _outside(
    address: Address, subnets: Iterable[IPv4Interface | IPv6Interface], interface: str
) -> AddressOutsideSubnet:
    there = [str(own.network) for own in subnets if own.version == address.version]
    if not there:
        return AddressOutsideSubnet(
            f"{interface} has no IPv{address.version} address of the node's own whose subnet could hold {address}; "
            "host it on a node that has"
        )
    return AddressOutsideSubnet(
        f"{address} is not in {' or '.join(there)}, the subnet of {interface}; host it on a node of its subnet"
    )


def _routes(family: int) -> list[bytes]:
    """The routes of the main table. A kernel older than 5.0 gives those of all tables, among them one for each address
    of the node."""
    request = Message(RTM_GETROUTE, _RTMSG.pack(family, 0, 0, 0, _MAIN_TABLE, 0, 0, 0, 0))
    try:
        with Netlink(NETLINK_ROUTE) as netlink:
            return [route for route in netlink.dump(request) if _RTMSG.unpack_from(route)[4] == _MAIN_TABLE]
    except NetlinkFailed as error:
        if error.code == errno.ENOENT:  # no such table: it comes with its first route
            return []
        raise


def _gateways(routes: Iterable[bytes], index: int, subnets: Iterable[IPv4Interface | IPv6Interface]) -> set[Address]:
    """The next hops that `routes` have on an interface and in one of its subnets."""
    found = {ip_address(gateway) for route in routes for at, gateway in _next_hops(route) if at == index}
    return {gateway for gateway in found if any(gateway in own.network for own in subnets)}


def _next_hops(route: bytes) -> Iterator[tuple[int, bytes]]:
    """The interfaces and gateways of a route."""
    found = attributes(route, _RTMSG.size)
    if _RTA_GATEWAY in found and _RTA_OIF in found:
        yield int.from_bytes(found[_RTA_OIF], sys.byteorder), found[_RTA_GATEWAY]
    several = found.get(_RTA_MULTIPATH, b"")
    while len(several) >= _RTNEXTHOP.size:
        length, index = _RTNEXTHOP.unpack_from(several)
        gateway = attributes(several[:length], _RTNEXTHOP.size).get(_RTA_GATEWAY)
        if gateway is not None:
            yield index, gateway
        several = several[max(length, _RTNEXTHOP.size) + 3 & ~3 :]


def _parsed(body: bytes) -> _Held | None:
    family, prefix_length, flags, scope, index = _IFADDRMSG.unpack_from(body)
    found = attributes(body, _IFADDRMSG.size)
    # Only IPv4 always has both; of IPv6 there is a local one where the other is a peer's.
    local = found.get(_IFA_LOCAL) or (found.get(_IFA_ADDRESS) if family == socket.AF_INET6 else None)
    if local is None or family not in _FAMILIES.values():
        return None
    if _IFA_FLAGS in found:
        (flags,) = struct.unpack("=I", found[_IFA_FLAGS])
    label = found.get(_IFA_LABEL, b"").rstrip(b"\0").decode("ascii", "replace")
    protocol = found.get(_IFA_PROTO, b"\0")[0]
    metric = int.from_bytes(found.get(_IFA_RT_PRIORITY, b""), sys.byteorder)
    ours = label.endswith(LABEL_SUFFIX) or protocol == ADDRESS_PROTOCOL
    ours = ours or (family == socket.AF_INET6 and metric == ADDRESS_METRIC)
    number = int.from_bytes(local, "big")
    return _Held(
        number if family == socket.AF_INET else number + _SIX,
        index,
        prefix_length,
        label,
        ours,
        bool(flags & IFA_F_SECONDARY),
        scope == _GLOBAL and not flags & (_PASSING if family == socket.AF_INET6 else IFA_F_SECONDARY),
    )


def _addition(address: Address, prefix_length: int, facts: LinkFacts) -> Message:
    if isinstance(address, IPv6Address):
        body = _addition_six(address, prefix_length, facts)
    else:
        # No broadcast and no scope: as `ip address add` does. No IFA_F_NOPREFIXROUTE: a secondary address makes no
        # prefix route, and should the kernel promote it to primary one day, the subnet must stay reachable.
        mark = attribute(_IFA_PROTO, bytes([ADDRESS_PROTOCOL]))
        if len(facts.interface) <= LONGEST_LABELLED:
            mark = attribute(_IFA_LABEL, f"{facts.interface}{LABEL_SUFFIX}".encode() + b"\0")
        body = (
            _IFADDRMSG.pack(socket.AF_INET, prefix_length, 0, 0, facts.index)
            + attribute(_IFA_LOCAL, address.packed)
            + attribute(_IFA_ADDRESS, address.packed)
            + mark
        )
    return Message(RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_EXCL)


def _addition_six(address: IPv6Address, prefix_length: int, facts: LinkFacts) -> bytes:
    """Usable at once, for the link was asked already. Preferred for no time at all, that is deprecated: not chosen as
    the source of the node's own packets. Without a prefix route: the node's own address has made that."""
    return (
        _IFADDRMSG.pack(socket.AF_INET6, prefix_length, 0, 0, facts.index)
        + attribute(_IFA_LOCAL, address.packed)
        + attribute(_IFA_ADDRESS, address.packed)
        + attribute(_IFA_FLAGS, struct.pack("=I", IFA_F_NODAD | IFA_F_NOPREFIXROUTE))
        + attribute(_IFA_CACHEINFO, _CACHEINFO.pack(0, _FOREVER, 0, 0))
        + attribute(_IFA_RT_PRIORITY, struct.pack("=I", ADDRESS_METRIC))
        + attribute(_IFA_PROTO, bytes([ADDRESS_PROTOCOL]))
    )


def _removal(entry: _Held, address: Address) -> Message:
    """The kernel removes an IPv4 `address` only where all of these agree: a foreign one of another label is safe."""
    packed = address.packed
    body = (
        _IFADDRMSG.pack(_FAMILIES[address.version], entry.prefix_length, 0, 0, entry.link)
        + attribute(_IFA_LOCAL, packed)
        + attribute(_IFA_ADDRESS, packed)
    )
    if address.version == 4:
        body += attribute(_IFA_LABEL, entry.label.encode() + b"\0")
    return Message(RTM_DELADDR, body)


def _would_drag(entry: _Held, held: _Addresses, interface: str) -> bool:
    """Whether the kernel would remove others with it: it is the primary of its subnet, and they are not promoted.

    Ours are secondary from birth; one becomes primary when somebody removes the node's IP and puts it back.
    """
    if entry.secondary or entry.address.version == 6:
        return False
    others = any(
        other.secondary and other.link == entry.link and other.network.network == entry.network.network
        for other in held.others
    )
    return others and not any(_promotes(scope) for scope in ("all", interface))


def _promotes(scope: str) -> bool:
    try:
        return Path("/proc/sys/net/ipv4/conf", scope, "promote_secondaries").read_text().strip() == "1"
    except OSError:
        return False


def _dragging(address: Address, interface: str) -> AddressIsPrimary:
    return AddressIsPrimary(
        f"{address} has become the primary address of {interface}'s subnet and to remove it would remove others: "
        f"run `sysctl net.ipv4.conf.{interface}.promote_secondaries=1`"
    )


def _foreign(address: Address) -> AddressForeign:
    return AddressForeign(
        f"{address} is on this node already and was not put there by Hawse: remove it (`ip address show to {address}`) "
        "or assign another address"
    )
