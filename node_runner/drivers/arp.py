"""Address conflict detection and announcements on an Ethernet link (RFC 5227)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address

from egress.addresses import Address
from node_runner.drivers.asking import Heard, Link, mac_bytes
from node_runner.drivers.closing import closed_aside
from node_runner.drivers.ports import LinkFacts, ProbeTiming

_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6
_NOBODY = IPv4Address(0)
_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_DEFAULT_TIMING = ProbeTiming()


class _Packets:
    """See asking.Asking."""

    name = "ARP"
    ethertype = 0x0806
    nobody = _NOBODY

    def question(self, mac: bytes, source: IPv4Address, address: IPv4Address) -> bytes:
        return _frame(_REQUEST, mac, source, bytes(6), address)

    def heard(self, frame: bytes) -> Heard[IPv4Address] | None:
        if len(frame) < _ETHERNET.size + _ARP.size:
            return None
        hardware, protocol, mac_size, ip_size, operation, *rest = _ARP.unpack_from(frame, _ETHERNET.size)
        if (hardware, protocol, mac_size, ip_size) != (1, 0x0800, 6, 4):
            return None
        mac, sender, _, target = rest
        probes = operation == _REQUEST and sender == _NOBODY.packed
        return Heard(mac, IPv4Address(target if probes else sender), probes)

    def prepare(self, link: socket.socket) -> None:
        pass


_PACKETS = _Packets()


class LinkArp:
    """ARP on the link of an interface, for IPv4 addresses alone."""

    def probe(
        self, interface: str, mac: str, addresses: Iterable[Address], timing: ProbeTiming = _DEFAULT_TIMING
    ) -> dict[Address, str]:
        """See ports.Arp. All addresses at once; returns early when each has been answered for."""
        return _ask(interface, mac, dict.fromkeys(_checked(addresses), _NOBODY), timing)

    def who_has(
        self, link: LinkFacts, source: Address, addresses: Iterable[Address], timing: ProbeTiming = _DEFAULT_TIMING
    ) -> dict[Address, str]:
        """See ports.Arp. Returns early when each has been answered for."""
        (asking,) = _checked([source])
        return _ask(link.interface, link.mac, dict.fromkeys(_checked(addresses), asking), timing)

    def announce(self, interface: str, mac: str, addresses: Iterable[Address]) -> None:
        """See ports.Arp. In both forms: some devices learn from requests only, some from replies only."""
        wanted = _checked(addresses)
        if not wanted:
            return
        own = mac_bytes(mac)
        with closed_aside(Link(interface, _PACKETS)) as link:
            for address in wanted:
                link.send(_frame(_REQUEST, own, address, bytes(6), address))
                link.send(_frame(_REPLY, own, address, _BROADCAST, address))


def _ask(interface: str, mac: str, asking: dict[IPv4Address, IPv4Address], timing: ProbeTiming) -> dict[Address, str]:
    if not asking:
        return {}
    own = mac_bytes(mac)
    with closed_aside(Link(interface, _PACKETS)) as link:
        return link.ask(own, asking, timing)


def _checked(addresses: Iterable[Address]) -> list[IPv4Address]:
    wanted: set[IPv4Address] = set()
    for address in addresses:
        if not isinstance(address, IPv4Address):
            raise TypeError(f"{address} is not IPv4; IPv6 has NDP")
        wanted.add(address)
    return sorted(wanted)


def _frame(operation: int, mac: bytes, sender: IPv4Address, target_mac: bytes, target: IPv4Address) -> bytes:
    """A broadcast Ethernet frame, as RFC 5227 §2.1.1 and §2.3 send all of theirs."""
    head = _ETHERNET.pack(_BROADCAST, mac, _Packets.ethertype)
    return head + _ARP.pack(1, 0x0800, 6, 4, operation, mac, sender.packed, target_mac, target.packed)
