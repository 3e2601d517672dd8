"""Address conflict detection and announcements on an Ethernet link (RFC 5227), over one packet socket."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from egress.addresses import Address
from node_runner.drivers.closing import closed_aside
from node_runner.drivers.errors import LinkFailed
from node_runner.drivers.ports import MAC, LinkFacts, ProbeTiming

_ETH_P_ARP = 0x0806
_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6
_NOBODY = IPv4Address(0)
_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_RECEIVE_BUFFER = 1 << 20
"""A thousand probed addresses may answer at once."""
_BACKLOG_SECONDS = 1.0
_DEFAULT_TIMING = ProbeTiming()


@dataclass(frozen=True, slots=True)
class _Packet:
    operation: int
    sender_mac: bytes
    sender: IPv4Address
    target_mac: bytes
    target: IPv4Address

    def frame(self) -> bytes:
        """The packet as a broadcast Ethernet frame, as RFC 5227 §2.1.1 and §2.3 send both of theirs."""
        head = _ETHERNET.pack(_BROADCAST, self.sender_mac, _ETH_P_ARP)
        return head + _ARP.pack(
            1, 0x0800, 6, 4, self.operation, self.sender_mac, self.sender.packed, self.target_mac, self.target.packed
        )


class LinkArp:
    """ARP on the link of an interface, for IPv4 addresses alone."""

    def probe(
        self, interface: str, mac: str, addresses: Iterable[Address], timing: ProbeTiming = _DEFAULT_TIMING
    ) -> dict[Address, str]:
        """See ports.Arp. All addresses at once; returns early when each has been answered for.

        An address is taken if any ARP packet names it as its sender, or if another host probes for it at this moment:
        both then lose, as RFC 5227 §2.1.1 has it, and the caller tries again.
        """
        return _ask(interface, mac, _NOBODY, _checked(addresses), timing)

    def who_has(
        self, link: LinkFacts, source: Address, addresses: Iterable[Address], timing: ProbeTiming = _DEFAULT_TIMING
    ) -> dict[Address, str]:
        """See ports.Arp. Returns early when each has been answered for."""
        (asking,) = _checked([source])
        return _ask(link.interface, link.mac, asking, _checked(addresses), timing)

    def announce(self, interface: str, mac: str, addresses: Iterable[Address]) -> None:
        """See ports.Arp. In both forms: some devices learn from requests only, some from replies only."""
        wanted = _checked(addresses)
        if not wanted:
            return
        own = mac_bytes(mac)
        with closed_aside(_open(interface)) as link:
            for address in wanted:
                _send(link, interface, _Packet(_REQUEST, own, address, bytes(6), address))
                _send(link, interface, _Packet(_REPLY, own, address, _BROADCAST, address))


def _ask(
    interface: str, mac: str, source: IPv4Address, wanted: list[IPv4Address], timing: ProbeTiming
) -> dict[Address, str]:
    """Asks for `wanted` as `source`, repeatedly; those that somebody has, or, where `source` is nobody, claims."""
    if not wanted:
        return {}
    own = mac_bytes(mac)
    taken: dict[Address, str] = {}
    with closed_aside(_open(interface)) as link:
        for number in range(1, timing.count + 1):
            for address in wanted:
                if address not in taken:
                    _send(link, interface, _Packet(_REQUEST, own, source, bytes(6), address))
            # From now, not from the start: a thousand frames take a while to send.
            end = time.monotonic() + (timing.interval if number < timing.count else timing.wait)
            _listen(link, own, frozenset(wanted), taken, end, claims=source == _NOBODY)
            if len(taken) == len(wanted):
                break
    return taken


def _checked(addresses: Iterable[Address]) -> list[IPv4Address]:
    wanted: set[IPv4Address] = set()
    for address in addresses:
        if not isinstance(address, IPv4Address):
            raise TypeError(f"{address} is not IPv4; IPv6 has NDP")
        wanted.add(address)
    return sorted(wanted)


def mac_bytes(mac: str) -> bytes:
    """A MAC as it stands in a frame; LinkFailed if it is none."""
    if not MAC.fullmatch(mac):
        raise LinkFailed(f"{mac!r} is no Ethernet MAC; ARP and NDP need an Ethernet interface")
    return bytes.fromhex(mac.replace(":", ""))


def _open(interface: str) -> socket.socket:
    """A packet socket that has never seen another interface: it receives only from bind() on."""
    try:
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        link.bind((interface, _ETH_P_ARP))
    except OSError as error:
        raise LinkFailed(
            f"cannot open {interface} for ARP: {error.strerror}; is it there, and has the runner CAP_NET_RAW?"
        ) from error
    return link


def _send(link: socket.socket, interface: str, packet: _Packet) -> None:
    try:
        link.send(packet.frame())
    except OSError as error:
        raise LinkFailed(f"cannot send ARP on {interface}: {os.strerror(error.errno or 0)}; is the link up?") from error


def _listen(
    link: socket.socket,
    own: bytes,
    wanted: frozenset[IPv4Address],
    taken: dict[Address, str],
    end: float,
    *,
    claims: bool,
) -> None:
    """Adds to `taken` what other hosts answer for until `end`, and with `claims` also what they probe for."""
    # What has come by the end counts, though this process was kept from reading it: else a busy node would hear nobody.
    while len(taken) < len(wanted) and (now := time.monotonic()) < end + _BACKLOG_SECONDS:
        ready, _, _ = select.select([link], [], [], max(0.0, end - now))
        if not ready:
            return
        try:
            frame, origin = link.recvfrom(128)
        except OSError as error:
            raise LinkFailed(f"cannot receive ARP: {error.strerror}; is the link up?") from error
        packet = None if origin[2] == socket.PACKET_OUTGOING else _parsed(frame)
        if packet is None or packet.sender_mac == own:
            continue
        probe = packet.sender == _NOBODY and packet.operation == _REQUEST
        claimed = packet.target if probe and claims else packet.sender
        if claimed in wanted:
            taken.setdefault(claimed, packet.sender_mac.hex(":"))


def _parsed(frame: bytes) -> _Packet | None:
    if len(frame) < _ETHERNET.size + _ARP.size:
        return None
    hardware, protocol, mac_size, ip_size, operation, *rest = _ARP.unpack_from(frame, _ETHERNET.size)
    if (hardware, protocol, mac_size, ip_size) != (1, 0x0800, 6, 4):
        return None
    sender_mac, sender, target_mac, target = rest
    return _Packet(operation, sender_mac, IPv4Address(sender), target_mac, IPv4Address(target))
