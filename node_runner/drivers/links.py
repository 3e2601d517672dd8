"""The egress addresses on the node's interface, through netlink."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from threading import Event
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NETLINK_ROUTE, NLM_F_CREATE, NLM_F_EXCL
from pyroute2.netlink.rtnl import RTM_DELADDR, RTM_GETADDR, RTM_GETLINK, RTM_NEWADDR
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_SECONDARY

from egress.addresses import Address
from node_runner.drivers.errors import (
    AddressForeign,
    AddressIsNodeIP,
    AddressIsPrimary,
    AddressOutsideSubnet,
    InterfaceMissing,
    InterfaceNameTooLong,
    NetlinkFailed,
    NodeError,
    NotSupported,
)
from node_runner.drivers.netlink import Message, Netlink, attribute, attributes
from node_runner.drivers.ports import LinkFacts, LinkSight
from node_runner.drivers.watch import watch

LABEL_SUFFIX = ":eip"
LONGEST_LABELLED = 15 - len(LABEL_SUFFIX)
"""A label has 15 characters and must begin with the interface's name."""
ADDRESS_PROTOCOL = 72
"""'H': the IFA_PROTO (Linux 5.18) of our addresses where the name leaves no room for the label; 0 to 3 are taken."""

_DUMP_ATTEMPTS = 5
_MAIN_TABLE = 254
_GATEWAYS_SECONDS = 60.0

_IFINFOMSG = struct.Struct("=xxxxixxxxxxxx")  # family, type; interface index; flags, change
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_CARRIER = 1, 3, 33
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface index
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_FLAGS, _IFA_PROTO = 1, 2, 3, 8, 11


@dataclass(frozen=True, slots=True)
class _Held:
    """An IPv4 address as some interface of the node holds it."""

    address: IPv4Address
    number: int
    index: int
    prefix_length: int
    label: str
    ours: bool
    secondary: bool

    @property
    def network(self) -> IPv4Interface:
        return IPv4Interface((int(self.address), self.prefix_length))


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
        if not isinstance(node_ip, IPv4Address):
            raise NotSupported.ipv6(node_ip)
        self._node_ip = node_ip
        self._chains = frozenset(chains)
        self._gateways: tuple[int, float, tuple[Address, ...]] = (0, 0.0, ())
        self._dumped: dict[bytes, _Held | None] = {}
        self._ours = _Ours()

    def facts(self) -> LinkFacts:
        """See ports.Links."""
        return self._facts(self._primary(self._held()))

    def read(self) -> frozenset[Address]:
        """See ports.Links."""
        held = self._held()
        return self._ours_on(held, self._primary(held).index)

    def look(self, addresses: Iterable[Address]) -> LinkSight:
        """See ports.Links. One dump."""
        held = self._held()
        facts = self._facts(self._primary(held))
        return LinkSight(facts, self._ours_on(held, facts.index), self._refusals(addresses, held, facts))

    def apply(self, add: AbstractSet[Address], remove: AbstractSet[Address]) -> dict[Address, NodeError]:
        """See ports.Links. One batch; removals first."""
        if not add and not remove:
            return {}
        held = self._held()
        facts = self._facts(self._primary(held))
        refused = self._refusals(add, held, facts)
        requests: list[tuple[IPv4Address, Message]] = []
        there: dict[int, list[_Held]] = {int(address): [] for address in sorted(remove, key=int)}
        for entry in held:
            if entry.number in there:
                there[entry.number].append(entry)
        for number, found in there.items():
            address = IPv4Address(number)
            ours = [entry for entry in found if entry.ours]
            if found and not ours:
                refused[address] = _foreign(address)
            for entry in ours:
                if _would_drag(entry, held, facts.interface):
                    refused[address] = _dragging(address, facts.interface)
                else:
                    requests.append((entry.address, _removal(entry)))
        here = {entry.number for entry in held if entry.ours and entry.index == facts.index} - there.keys()
        requests += [
            (address, _addition(address, facts))
            for address in sorted(add, key=int)
            if isinstance(address, IPv4Address) and address not in refused and int(address) not in here
        ]
        return refused | self._perform(requests, facts)

    def sweep(self) -> frozenset[Address]:
        """See ports.Links."""
        held = self._held()
        index = self._primary(held).index
        strays = [entry for entry in held if entry.ours and entry.index != index]
        with Netlink(NETLINK_ROUTE) as netlink:
            netlink.batch([_removal(entry) for entry in strays])
        return frozenset(entry.address for entry in strays)

    def refusals(self, addresses: Iterable[Address]) -> dict[Address, NodeError]:
        """See ports.Links."""
        held = self._held()
        return self._refusals(addresses, held, self._facts(self._primary(held)))

    def watch(self, callback: Callable[[], None], stop: Event) -> None:
        """See ports.Links."""
        watch(callback, stop, self._index, self._chains)

    def _index(self) -> int | None:
        try:
            return self._primary(self._held()).index
        except InterfaceMissing:
            return None

    def _held(self) -> list[_Held]:
        known = self._dumped  # most of a dump is byte for byte what it was; only what is not is parsed
        with Netlink(NETLINK_ROUTE) as netlink:
            request = Message(RTM_GETADDR, _IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 0))
            for _ in range(_DUMP_ATTEMPTS):
                dumped = {body: known[body] if body in known else _parsed(body) for body in netlink.dump(request)}
                if not netlink.interrupted:
                    self._dumped = dumped
                    return [entry for entry in dumped.values() if entry is not None]
        raise NetlinkFailed("the node's addresses change faster than they can be read; try again")

    def _ours_on(self, held: Iterable[_Held], index: int) -> frozenset[Address]:
        """Our addresses on an interface. To build a set of addresses takes long; of numbers it does not."""
        numbers = frozenset(entry.number for entry in held if entry.ours and entry.index == index)
        known = self._ours
        if numbers != known.numbers:
            came = frozenset(IPv4Address(number) for number in numbers - known.numbers)
            went = frozenset(IPv4Address(number) for number in known.numbers - numbers)
            known = self._ours = _Ours(numbers, known.addresses - went | came)
        return known.addresses

    def _primary(self, held: list[_Held]) -> _Held:
        number = int(self._node_ip)
        for entry in held:
            if entry.number == number and not entry.ours:
                return entry
        raise InterfaceMissing(
            f"no interface of this node carries {self._node_ip}: bring the interface up, or correct the node's IP "
            "in its HostSubnet"
        )

    def _facts(self, primary: _Held) -> LinkFacts:
        try:
            with Netlink(NETLINK_ROUTE) as netlink:
                link = attributes(netlink.get(Message(RTM_GETLINK, _IFINFOMSG.pack(primary.index))), _IFINFOMSG.size)
        except NetlinkFailed as error:
            raise InterfaceMissing(
                f"the interface of {self._node_ip} (index {primary.index}) has just gone: {error}"
            ) from error
        return LinkFacts(
            link[_IFLA_IFNAME].rstrip(b"\0").decode("ascii", "replace"),
            primary.index,
            link.get(_IFLA_ADDRESS, b"").hex(":"),
            primary.prefix_length,
            link.get(_IFLA_CARRIER, b"\1") != b"\0",
            self._known_gateways(primary),
        )

    def _known_gateways(self, primary: _Held) -> tuple[Address, ...]:
        """Read once a minute: a node may have thousands of routes, and gateways seldom change."""
        index, read_at, gateways = self._gateways
        if index != primary.index or time.monotonic() - read_at > _GATEWAYS_SECONDS:
            with IPRoute() as route:
                gateways = _gateways(route.get_routes(family=socket.AF_INET, table=_MAIN_TABLE), primary)
            self._gateways = (primary.index, time.monotonic(), gateways)
        return gateways

    def _refusals(self, addresses: Iterable[Address], held: list[_Held], facts: LinkFacts) -> dict[Address, NodeError]:
        subnet = IPv4Interface((int(self._node_ip), facts.prefix_length)).network
        first, last = int(subnet.network_address), int(subnet.broadcast_address)
        foreign = {entry.number for entry in held if not entry.ours}
        refused: dict[Address, NodeError] = {}
        for address in addresses:
            if not isinstance(address, IPv4Address):
                refused[address] = NotSupported.ipv6(address)
            elif address == self._node_ip:
                refused[address] = AddressIsNodeIP(f"{address} is the node's own IP; assign another address")
            elif not first <= int(address) <= last:
                refused[address] = AddressOutsideSubnet(
                    f"{address} is not in {subnet}, the subnet of {facts.interface}; host it on a node of its subnet"
                )
            elif subnet.prefixlen < 31 and int(address) in (first, last):
                refused[address] = AddressOutsideSubnet(
                    f"{address} is the network or broadcast address of {subnet}; assign another address"
                )
            elif int(address) in foreign:
                refused[address] = _foreign(address)
        return refused

    def _perform(self, requests: list[tuple[IPv4Address, Message]], facts: LinkFacts) -> dict[Address, NodeError]:
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
                    + ("; the runner needs CAP_NET_ADMIN" if code == errno.EPERM else "")
                )
        added = {address for address, message in requests if message.kind == RTM_NEWADDR} - errors.keys()
        if added and len(facts.interface) > LONGEST_LABELLED:
            errors |= self._unrecognisable(added, facts)
        return errors

    def _unrecognisable(self, added: AbstractSet[IPv4Address], facts: LinkFacts) -> dict[Address, NodeError]:
        """A kernel before 5.18 drops the protocol without a word; such an address is taken away again at once."""
        lost = [
            entry for entry in self._held() if entry.address in added and entry.index == facts.index and not entry.ours
        ]
        with Netlink(NETLINK_ROUTE) as netlink:
            netlink.batch([_removal(entry) for entry in lost])
        return {
            entry.address: InterfaceNameTooLong(
                f"{facts.interface} has more than {LONGEST_LABELLED} characters and this kernel (older than 5.18) "
                "keeps no protocol of an address, so ours could not be told from others: rename the interface"
            )
            for entry in lost
        }


def _gateways(routes: Iterable[Any], primary: _Held) -> tuple[Address, ...]:
    """The next hops that `routes` have on the primary address's interface and in its subnet."""
    hops = [hop for route in routes for hop in (route, *(route.get("multipath") or ()))]
    found = {
        IPv4Address(gateway) for hop in hops if hop.get("oif") == primary.index and (gateway := hop.get("gateway"))
    }
    return tuple(sorted(gateway for gateway in found if gateway in primary.network.network))


def _parsed(body: bytes) -> _Held | None:
    _family, prefix_length, flags, _scope, index = _IFADDRMSG.unpack_from(body)
    found = attributes(body, _IFADDRMSG.size)
    local = found.get(_IFA_LOCAL)
    if local is None:
        return None
    if _IFA_FLAGS in found:
        (flags,) = struct.unpack("=I", found[_IFA_FLAGS])
    label = found.get(_IFA_LABEL, b"").rstrip(b"\0").decode("ascii", "replace")
    protocol = found.get(_IFA_PROTO, b"\0")[0]
    ours = label.endswith(LABEL_SUFFIX) or protocol == ADDRESS_PROTOCOL
    return _Held(
        IPv4Address(local),
        int.from_bytes(local, "big"),
        index,
        prefix_length,
        label,
        ours,
        bool(flags & IFA_F_SECONDARY),
    )


def _addition(address: IPv4Address, facts: LinkFacts) -> Message:
    # No broadcast and no scope: as `ip address add` does. No IFA_F_NOPREFIXROUTE: a secondary address makes no prefix
    # route, and should the kernel promote it to primary one day, the subnet must stay reachable.
    mark = attribute(_IFA_PROTO, bytes([ADDRESS_PROTOCOL]))
    if len(facts.interface) <= LONGEST_LABELLED:
        mark = attribute(_IFA_LABEL, f"{facts.interface}{LABEL_SUFFIX}".encode() + b"\0")
    body = (
        _IFADDRMSG.pack(socket.AF_INET, facts.prefix_length, 0, 0, facts.index)
        + attribute(_IFA_LOCAL, address.packed)
        + attribute(_IFA_ADDRESS, address.packed)
        + mark
    )
    return Message(RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_EXCL)


def _removal(entry: _Held) -> Message:
    """The kernel removes the address only where all of these agree: a foreign one of another label is safe."""
    body = (
        _IFADDRMSG.pack(socket.AF_INET, entry.prefix_length, 0, 0, entry.index)
        + attribute(_IFA_LOCAL, entry.address.packed)
        + attribute(_IFA_ADDRESS, entry.address.packed)
        + attribute(_IFA_LABEL, entry.label.encode() + b"\0")
    )
    return Message(RTM_DELADDR, body)


def _would_drag(entry: _Held, held: list[_Held], interface: str) -> bool:
    """Whether the kernel would remove others with it: it is the primary of its subnet, and they are not promoted.

    Ours are secondary from birth; one becomes primary when somebody removes the node's IP and puts it back.
    """
    if entry.secondary:
        return False
    others = any(
        other.secondary
        and other.index == entry.index
        and other.network.network == entry.network.network
        and not other.ours
        for other in held
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
