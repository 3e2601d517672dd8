"""Duplicate address detection and advertisements, fake and real; and both IP versions asked at once."""

from __future__ import annotations

import socket
import struct
import threading
from ipaddress import IPv4Address, IPv6Address, ip_interface

import pytest

from egress.addresses import Address
from lab.fakes.node import FakeArp
from lab.host_node import eventually
from node_runner.drivers.errors import LinkFailed
from node_runner.drivers.links import InterfaceLinks
from node_runner.drivers.ndp import LinkNdp, _parsed
from node_runner.drivers.neighbours import LinkNeighbours
from node_runner.drivers.ports import Arp, LinkFacts, ProbeTiming

from .conftest import NEIGHBOUR, NEIGHBOUR_MAC, NEIGHBOUR_SIX, NODE_IP, NODE_SIX, Netns, add_link, run

FREE = IPv6Address("2001:db8::102")
QUICK = ProbeTiming(count=2, interval=0.05, wait=0.05)


@pytest.fixture
def neighbour(netns: Netns) -> Netns:
    return add_link(netns, "eth0", traffic=True)


@pytest.fixture(params=["fake", "real"])
def arp(request: pytest.FixtureRequest) -> Arp:
    if request.param == "fake":
        return FakeArp({NEIGHBOUR_SIX: NEIGHBOUR_MAC, NEIGHBOUR: NEIGHBOUR_MAC})
    request.getfixturevalue("neighbour")
    return LinkNeighbours()


def facts_of(arp: Arp) -> LinkFacts:
    if isinstance(arp, FakeArp):
        return LinkFacts("eth0", 2, "02:00:c0:a8:01:12", 24, other_ips=(ip_interface(f"{NODE_SIX}/64"),))
    return InterfaceLinks(NODE_IP).facts()


def test_whoever_answers_is_named_by_its_mac(arp: Arp) -> None:
    mac = facts_of(arp).mac
    assert arp.probe("eth0", mac, [NEIGHBOUR_SIX, FREE], QUICK) == {NEIGHBOUR_SIX: NEIGHBOUR_MAC}
    assert arp.probe("eth0", mac, [FREE], QUICK) == {}
    assert arp.probe("eth0", mac, []) == {}


def test_both_ip_versions_are_asked_together(arp: Arp) -> None:
    link, free = facts_of(arp), IPv4Address("192.168.1.102")
    taken: dict[Address, str] = {NEIGHBOUR: NEIGHBOUR_MAC, NEIGHBOUR_SIX: NEIGHBOUR_MAC}
    assert arp.probe("eth0", link.mac, [*taken, FREE, free], QUICK) == taken
    assert arp.who_has(link, NODE_IP, [*taken, FREE, free], QUICK) == taken


def test_who_has_an_address_is_asked_as_the_nodes_own_one_of_its_subnet(arp: Arp) -> None:
    link = facts_of(arp)
    assert arp.who_has(link, NODE_IP, [NEIGHBOUR_SIX, FREE], QUICK) == {NEIGHBOUR_SIX: NEIGHBOUR_MAC}
    assert arp.who_has(link, NODE_IP, [IPv6Address("2001:db8:9::1")], QUICK) == {}
    alone = LinkFacts(link.interface, link.index, link.mac, link.prefix_length)
    assert arp.who_has(alone, NODE_IP, [NEIGHBOUR_SIX], QUICK) == {}, "it has nothing to ask as"
    own = LinkFacts(link.interface, link.index, link.mac, 64, other_ips=(ip_interface(f"{NODE_IP}/24"),))
    assert arp.who_has(own, NODE_SIX, [NEIGHBOUR, NEIGHBOUR_SIX], QUICK).keys() == {NEIGHBOUR, NEIGHBOUR_SIX}


@pytest.mark.usefixtures("neighbour")
def test_one_asks_for_what_is_its_own_alone() -> None:
    with pytest.raises(TypeError, match="IPv4"):
        LinkNdp().announce("eth0", NEIGHBOUR_MAC, [NODE_IP])


def test_of_two_that_probe_for_one_address_at_once_one_loses_at_least(neighbour: Netns) -> None:
    """Whoever hears the other stops asking at once, and so may not be heard itself."""
    found: list[dict[Address, str]] = []
    timing = ProbeTiming(count=6, interval=0.1, wait=0.2)

    def other() -> None:
        with neighbour:
            found.append(LinkNdp().probe("eth0", NEIGHBOUR_MAC, [FREE], timing))

    thread = threading.Thread(target=other)
    thread.start()
    link = InterfaceLinks(NODE_IP).facts()
    mine = LinkNdp().probe("eth0", link.mac, [FREE], timing)
    thread.join()
    assert mine in ({}, {FREE: NEIGHBOUR_MAC})
    assert found in ([{}], [{FREE: link.mac}])
    assert mine or found[0]


def test_questions_claim_nothing(neighbour: Netns) -> None:
    """Several witnesses ask at once, and while another node probes."""
    answers: list[dict[Address, str]] = []
    link = InterfaceLinks(NODE_IP).facts()
    theirs = LinkFacts("eth0", 2, NEIGHBOUR_MAC, 24, other_ips=(ip_interface(f"{NEIGHBOUR_SIX}/64"),))

    def other() -> None:
        with neighbour:
            for _ in range(3):
                answers.append(LinkNdp().who_has(theirs, NEIGHBOUR, [FREE], QUICK))

    thread = threading.Thread(target=other)
    thread.start()
    while thread.is_alive():
        answers.append(LinkNdp().who_has(link, NODE_IP, [FREE], QUICK))
        answers.append(LinkNdp().probe("eth0", link.mac, [FREE], QUICK))
    thread.join()
    assert len(answers) >= 5
    assert not any(answers)


def neighbour_entry(neighbour: Netns) -> str:
    with neighbour:
        return run("ip", "-6", "neighbour", "show", str(FREE), "dev", "eth0")


def test_an_announcement_moves_what_the_neighbours_know(neighbour: Netns) -> None:
    with neighbour:
        run("ip", "-6", "neighbour", "replace", str(FREE), "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "stale")
    link = InterfaceLinks(NODE_IP).facts()
    listener = _listening(neighbour)
    LinkNdp().announce("eth0", link.mac, [FREE])
    eventually(lambda: link.mac in neighbour_entry(neighbour))
    frame = listener.recv(512)
    listener.close()
    assert frame[:6] == bytes.fromhex("333300000001")
    packet = _parsed(frame)
    assert packet is not None
    assert (packet.kind, packet.mac.hex(":"), packet.source, packet.target) == (136, link.mac, FREE, FREE)
    assert struct.unpack_from("!I", frame, 58) == (0x20000000,)  # override; neither solicited nor a router's


def _listening(neighbour: Netns) -> socket.socket:
    """What the neighbour hears of advertisements, after those that its kernel has a reason for."""
    with neighbour:
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD))
    listener.settimeout(30)
    receive = listener.recv

    class Filtered:
        def recv(self, size: int) -> bytes:
            while True:
                frame = receive(size)
                packet = _parsed(frame)
                if packet is not None and packet.kind == 136 and packet.target == FREE:
                    return frame

        def close(self) -> None:
            listener.close()

    return Filtered()  # type: ignore[return-value]


def test_an_interface_that_is_gone_or_down_is_an_error(neighbour: Netns) -> None:
    del neighbour
    with pytest.raises(LinkFailed, match="eth7"):
        LinkNdp().probe("eth7", "02:00:00:00:00:01", [FREE])
    with pytest.raises(LinkFailed, match="no Ethernet MAC"):
        LinkNdp().probe("eth0", "02:00:00:00:00:01; reboot", [FREE])
    run("ip", "link", "set", "eth0", "down")
    with pytest.raises(LinkFailed, match=r"is the link up|is IPv6 enabled"):
        LinkNdp().probe("eth0", "02:00:00:00:00:01", [FREE])


@pytest.mark.parametrize("length", [0, 1, 13, 14, 53, 54, 77, 78, 80])
def test_a_frame_that_is_cut_off_is_no_packet(length: int) -> None:
    frame = bytes.fromhex("333300000001" + "020000000099" + "86dd" + "6000000000203aff") + bytes(80)
    assert _parsed(frame[:length]) is None


def test_many_are_asked_at_once(neighbour: Netns) -> None:
    """More groups than one socket may join."""
    many = [IPv6Address((0x20010DB8 << 96) | number) for number in range(0x1000, 0x1000 + 400)]
    with neighbour:
        run("ip", "-6", "address", "add", f"{many[300]}/64", "dev", "eth0", "nodad")
    link = InterfaceLinks(NODE_IP).facts()
    assert LinkNdp().probe("eth0", link.mac, many, QUICK) == {many[300]: NEIGHBOUR_MAC}
