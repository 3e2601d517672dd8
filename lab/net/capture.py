"""What went over a wire: tcpdump inside the lab, its file read here."""

from __future__ import annotations

import signal
import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.net.channel import Channel, RemoteProcess
from lab.net.topology import Address

_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}
_DISCOVERY = {135: "solicitation", 136: "advertisement"}
_ARP_OPERATIONS = {1: "request", 2: "reply"}


@dataclass(frozen=True)
class Packet:
    """A frame; `time` in seconds of the host's wall clock.

    `protocol` is "tcp", "udp", "icmp", "icmp6", "arp" or the number in hexadecimal; of IPv6, that of the first header.
    For ARP `source` and `destination` are the sender's and the target's address, and `arp` is "request" or "reply". Of
    IPv6's neighbour discovery `neighbour` is "solicitation" or "advertisement", and `target` the address in question.
    `syn` marks a connection's first packet.
    """

    time: float
    source_mac: str
    destination_mac: str
    protocol: str
    source: Address | None = None
    destination: Address | None = None
    source_port: int | None = None
    destination_port: int | None = None
    syn: bool = False
    arp: str | None = None
    neighbour: str | None = None
    target: IPv6Address | None = None
    data: bytes = b""

    @property
    def gratuitous(self) -> bool:
        """An ARP packet in which a host announces its own address, or the advertisement to all that is IPv6's."""
        if self.neighbour == "advertisement":
            return self.destination is not None and self.destination.is_multicast
        return self.arp is not None and self.source == self.destination


class Capture:
    """A running tcpdump. The file stays in the work directory."""

    def __init__(self, process: RemoteProcess, channel: Channel, inside: str, path: Path) -> None:
        self.path = path
        self._process = process
        self._channel = channel
        self._inside = inside

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def packets(self) -> list[Packet]:
        """What has been seen so far, all of it once the capture is stopped."""
        data = self.path.read_bytes() if self.path.exists() else self._channel.read(self._inside)
        return read_pcap(data)

    def stop(self) -> list[Packet]:
        """End it and return everything seen."""
        if not self.path.exists():
            self._process.kill(signal.SIGINT)
            self._process.wait(60)
            self.path.write_bytes(self._channel.read(self._inside))
        return self.packets()


def read_pcap(data: bytes) -> list[Packet]:
    """The Ethernet frames of a pcap file; a last one that is not whole yet is left out. Raises ValueError."""
    if data[:4] not in (b"\xd4\xc3\xb2\xa1", b""):
        raise ValueError("not a little-endian pcap file with microseconds")
    packets = []
    offset = 24
    while offset + 16 <= len(data):
        seconds, micros, length = struct.unpack_from("<III", data, offset)
        frame = data[offset + 16 : offset + 16 + length]
        if len(frame) < length:
            break
        packets.append(_packet(seconds + micros / 1e6, frame))
        offset += 16 + length
    return packets


def _packet(time: float, frame: bytes) -> Packet:
    target, sender = frame[0:6].hex(":"), frame[6:12].hex(":")
    (kind,) = struct.unpack_from("!H", frame, 12)
    body = frame[14:]
    if kind == _ARP:
        (operation,) = struct.unpack_from("!H", body, 6)
        name = _ARP_OPERATIONS.get(operation, str(operation))
        source, destination = IPv4Address(body[14:18]), IPv4Address(body[24:28])
        return Packet(time, sender, target, "arp", source, destination, arp=name, data=body)
    if kind == _IPV6:
        return _ipv6_packet(time, sender, target, body)
    if kind != _IPV4:
        return Packet(time, sender, target, f"{kind:#06x}", data=body)
    header = (body[0] & 0x0F) * 4
    protocol = _PROTOCOLS.get(body[9], f"{body[9]:#x}")
    source, destination = IPv4Address(body[12:16]), IPv4Address(body[16:20])
    first_fragment = struct.unpack_from("!H", body, 6)[0] & 0x1FFF == 0
    if protocol not in ("tcp", "udp") or not first_fragment:
        return Packet(time, sender, target, protocol, source, destination, data=body[header:])
    return _segment(Packet(time, sender, target, protocol, source, destination, data=body[header:]))


def _ipv6_packet(time: float, sender: str, target: str, body: bytes) -> Packet:
    protocol = _PROTOCOLS.get(body[6], f"{body[6]:#x}")
    data = body[40:]
    packet = Packet(time, sender, target, protocol, IPv6Address(body[8:24]), IPv6Address(body[24:40]), data=data)
    if protocol in ("tcp", "udp"):
        return _segment(packet)
    if protocol == "icmp6" and data[0] in _DISCOVERY:
        return replace(packet, neighbour=_DISCOVERY[data[0]], target=IPv6Address(data[8:24]))
    return packet


def _segment(packet: Packet) -> Packet:
    """A packet of TCP or UDP with its ports."""
    source_port, destination_port = struct.unpack_from("!HH", packet.data)
    syn = packet.protocol == "tcp" and packet.data[13] & 0x12 == 0x02
    return replace(packet, source_port=source_port, destination_port=destination_port, syn=syn)
