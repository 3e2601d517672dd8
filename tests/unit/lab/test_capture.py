"""A pcap file's frames, of both families."""

import struct
from ipaddress import IPv6Address

from lab.net.capture import Packet, read_pcap

NODE, WEB = IPv6Address("fd00:192:168:1::17"), IPv6Address("fd00:192:168:1::5")
ETHERNET = bytes.fromhex("020000000005 020000000017 86dd")


def frame(next_header: int, payload: bytes, destination: IPv6Address = WEB) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), next_header, 63)
    return ETHERNET + head + NODE.packed + destination.packed + payload


def read(*frames: bytes) -> list[Packet]:
    head = struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    return read_pcap(head + b"".join(struct.pack("<IIII", 1, 500000, len(f), len(f)) + f for f in frames))


def test_tcp_and_udp_of_ipv6() -> None:
    syn = struct.pack("!HHIIBBHHH", 40000, 80, 1, 0, 5 << 4, 0x02, 0, 0, 0)
    first, second = read(frame(6, syn), frame(17, struct.pack("!HHHH", 40001, 9, 8, 0)))
    assert (first.time, first.protocol, first.source, first.destination) == (1.5, "tcp", NODE, WEB)
    assert (first.source_port, first.destination_port, first.syn) == (40000, 80, True)
    assert (second.protocol, second.source_port, second.destination_port, second.syn) == ("udp", 40001, 9, False)


def test_neighbour_discovery() -> None:
    body = bytes.fromhex("8800000020000000") + NODE.packed
    answer, announcement, echo = read(
        frame(58, body), frame(58, body, IPv6Address("ff02::1")), frame(58, bytes.fromhex("8000000000000000"))
    )
    assert (answer.neighbour, answer.target, answer.gratuitous) == ("advertisement", NODE, False)
    assert announcement.gratuitous
    assert (echo.protocol, echo.neighbour, echo.target) == ("icmp6", None, None)


def test_what_has_an_extension_header_is_shown_by_its_number() -> None:
    (packet,) = read(frame(0, bytes(8)))
    assert (packet.protocol, packet.source_port) == ("0x0", None)
