"""Duplicate address detection and announcements of IPv6 addresses on an Ethernet link (RFC 4861, RFC 4862)."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address

from egress.addresses import Address
from node_runner.drivers.asking import Heard, Link, mac_bytes
from node_runner.drivers.closing import closed_aside
from node_runner.drivers.errors import LinkFailed
from node_runner.drivers.ports import LinkFacts, ProbeTiming, askable

_ICMPV6 = 58
_HOP_LIMIT = 255
"""A packet with another was forwarded by a router, and is not of this link (RFC 4861 §7.1)."""
_SOLICITATION, _ADVERTISEMENT = 135, 136
_OVERRIDE = 0x20000000
_SOURCE_LINK_LAYER, _TARGET_LINK_LAYER = 1, 2
_NOBODY = IPv6Address("::")
_ALL_NODES = IPv6Address("ff02::1")
_SOLICITED_NODES = int(IPv6Address("ff02::1:ff00:0"))
_ETHERNET = struct.Struct("!6s6sH")
_IPV6 = struct.Struct("!IHBB16s16s")
_ICMP = struct.Struct("!BBHI16s")
_SO_ATTACH_FILTER = 26
_FILTER = (
    (0x30, 0, 0, _ETHERNET.size + 6),  # the next header
    (0x15, 0, 3, _ICMPV6),
    (0x30, 0, 0, _ETHERNET.size + _IPV6.size),  # the type
    (0x15, 2, 0, _SOLICITATION),
    (0x15, 1, 0, _ADVERTISEMENT),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFF),
)
"""Classic BPF: solicitations and advertisements alone."""
_GROUPS_A_SOCKET = 100
"""The kernel lets a socket join some hundreds of groups (net.core.optmem_max)."""
_DEFAULT_TIMING = ProbeTiming()


@dataclass(frozen=True, slots=True)
class _Packet:
    """A neighbour solicitation or advertisement for `target`. `mac` is that of its sender: the one that it names, or
    else the frame's."""

    kind: int
    mac: bytes
    source: IPv6Address
    target: IPv6Address

    def frame(self) -> bytes:
        """As an Ethernet frame. A solicitation by nobody names no MAC (RFC 4862 §5.4.2)."""
        asks = self.kind == _SOLICITATION
        destination = _solicited_node(self.target) if asks else _ALL_NODES
        message = _ICMP.pack(self.kind, 0, 0, 0 if asks else _OVERRIDE, self.target.packed)
        if self.source != _NOBODY:
            message += bytes([_SOURCE_LINK_LAYER if asks else _TARGET_LINK_LAYER, 1]) + self.mac
        pseudo = self.source.packed + destination.packed + struct.pack("!II", len(message), _ICMPV6)
        message = message[:2] + struct.pack("!H", _checksum(pseudo + message)) + message[4:]
        head = _ETHERNET.pack(b"\x33\x33" + destination.packed[12:], self.mac, _Packets.ethertype)
        ip = _IPV6.pack(6 << 28, len(message), _ICMPV6, _HOP_LIMIT, self.source.packed, destination.packed)
        return head + ip + message


class _Packets:
    """See asking.Asking."""

    name = "NDP"
    ethertype = 0x86DD
    nobody = _NOBODY

    def question(self, mac: bytes, source: IPv6Address, address: IPv6Address) -> bytes:
        return _Packet(_SOLICITATION, mac, source, address).frame()

    def heard(self, frame: bytes) -> Heard[IPv6Address] | None:
        packet = _parsed(frame)
        if packet is None:
            return None
        probes = packet.kind == _SOLICITATION and packet.source == _NOBODY
        names_target = probes or packet.kind == _ADVERTISEMENT
        return Heard(packet.mac, packet.target if names_target else packet.source, probes)

    def prepare(self, link: socket.socket) -> None:
        """Neighbour discovery alone: a node's link carries much else, which would fill the socket."""
        instructions = b"".join(struct.pack("=HBBI", *instruction) for instruction in _FILTER)
        program = ctypes.create_string_buffer(instructions, len(instructions))
        filtered = struct.pack("@HP", len(_FILTER), ctypes.addressof(program))
        link.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtered)


_PACKETS = _Packets()


class LinkNdp:
    """NDP on the link of an interface, for IPv6 addresses alone."""

    def probe(
        self, interface: str, mac: str, addresses: Iterable[Address], timing: ProbeTiming = _DEFAULT_TIMING
    ) -> dict[Address, str]:
        """See ports.Arp. All addresses at once; returns early when each has been answered for."""
        return _ask(interface, mac, dict.fromkeys(_checked(addresses), _NOBODY), timing)

    def who_has(
        self, link: LinkFacts, source: Address, addresses: Iterable[Address], timing: ProbeTiming = _DEFAULT_TIMING
    ) -> dict[Address, str]:
        """See ports.Arp. Returns early when each has been answered for."""
        asking = {
            address: own
            for address in _checked(addresses)
            if isinstance(own := askable(link, source, address), IPv6Address)
        }
        return _ask(link.interface, link.mac, asking, timing)

    def announce(self, interface: str, mac: str, addresses: Iterable[Address]) -> None:
        """See ports.Arp. By unsolicited advertisements to all nodes, which override what they know."""
        wanted = _checked(addresses)
        if not wanted:
            return
        own = mac_bytes(mac)
        with closed_aside(Link(interface, _PACKETS)) as link:
            for address in wanted:
                link.send(_Packet(_ADVERTISEMENT, own, address, address).frame())


def _ask(interface: str, mac: str, asking: dict[IPv6Address, IPv6Address], timing: ProbeTiming) -> dict[Address, str]:
    if not asking:
        return {}
    own = mac_bytes(mac)
    probed = [address for address, source in asking.items() if source == _NOBODY]
    with closed_aside(Link(interface, _PACKETS)) as link, _joined(interface, probed):
        return link.ask(own, asking, timing)


def _checked(addresses: Iterable[Address]) -> list[IPv6Address]:
    wanted: set[IPv6Address] = set()
    for address in addresses:
        if not isinstance(address, IPv6Address):
            raise TypeError(f"{address} is not IPv6; IPv4 has ARP")
        wanted.add(address)
    return sorted(wanted)


def _solicited_node(address: IPv6Address) -> IPv6Address:
    return IPv6Address(_SOLICITED_NODES | int(address) & 0xFFFFFF)


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


@contextmanager
def _joined(interface: str, addresses: Iterable[IPv6Address]) -> Iterator[None]:
    """While these groups are joined: switches that snoop on MLD pass others' probes only to whoever has joined."""
    groups = sorted({_solicited_node(address) for address in addresses})
    with ExitStack() as stack:
        try:
            index = socket.if_nametoindex(interface)
            for start in range(0, len(groups), _GROUPS_A_SOCKET):
                member = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
                for group in groups[start : start + _GROUPS_A_SOCKET]:
                    membership = group.packed + struct.pack("@I", index)
                    member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        except OSError as error:
            raise LinkFailed(
                f"cannot listen for NDP on {interface}: {os.strerror(error.errno or 0)}; is IPv6 enabled on it?"
            ) from error
        yield


def _parsed(frame: bytes) -> _Packet | None:
    """The checksum is not looked at: on a virtual link nobody may have filled it in yet."""
    start = _ETHERNET.size + _IPV6.size
    if len(frame) < start + _ICMP.size:
        return None
    _, frame_mac, _ = _ETHERNET.unpack_from(frame)
    _, length, header, hops, source, _ = _IPV6.unpack_from(frame, _ETHERNET.size)
    kind, code, _, _, target = _ICMP.unpack_from(frame, start)
    if header != _ICMPV6 or hops != _HOP_LIMIT or code or kind not in (_SOLICITATION, _ADVERTISEMENT):
        return None
    wanted = _SOURCE_LINK_LAYER if kind == _SOLICITATION else _TARGET_LINK_LAYER
    mac = _option(frame[start + _ICMP.size : start + length], wanted) or frame_mac
    return _Packet(kind, mac, IPv6Address(source), IPv6Address(target))


def _option(options: bytes, wanted: int) -> bytes | None:
    """The MAC in the option of kind `wanted`, if there is one."""
    offset = 0
    while offset + 8 <= len(options) and (length := options[offset + 1] * 8):
        if options[offset] == wanted and length == 8:
            return options[offset + 2 : offset + 8]
        offset += length
    return None
