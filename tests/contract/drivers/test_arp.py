"""Conflict detection and announcements, fake and real."""

from __future__ import annotations

import socket
import struct
import threading
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from egress.addresses import Address
from lab.fakes.node import FakeArp, fake_node
from lab.host_node import eventually
from node_runner.drivers import asking
from node_runner.drivers.arp import LinkArp
from node_runner.drivers.errors import LinkFailed
from node_runner.drivers.links import InterfaceLinks
from node_runner.drivers.ports import Arp, LinkFacts, ProbeTiming

from .conftest import NEIGHBOUR, NEIGHBOUR_MAC, NODE_IP, Netns, add_link, run

FREE = IPv4Address("192.168.1.102")
QUICK = ProbeTiming(count=2, interval=0.05, wait=0.05)


@pytest.fixture
def neighbour(netns: Netns) -> Netns:
    return add_link(netns, "eth0", traffic=True)


@pytest.fixture(params=["fake", "real"])
def arp(request: pytest.FixtureRequest) -> Arp:
    if request.param == "fake":
        return FakeArp({NEIGHBOUR: NEIGHBOUR_MAC})
    request.getfixturevalue("neighbour")
    return LinkArp()


def mac_of(arp: Arp) -> str:
    return "02:00:c0:a8:01:12" if isinstance(arp, FakeArp) else InterfaceLinks(NODE_IP).facts().mac


def test_whoever_answers_is_named_by_its_mac(arp: Arp) -> None:
    assert arp.probe("eth0", mac_of(arp), [NEIGHBOUR, FREE], QUICK) == {NEIGHBOUR: NEIGHBOUR_MAC}
    assert arp.probe("eth0", mac_of(arp), [FREE], QUICK) == {}
    assert arp.probe("eth0", mac_of(arp), []) == {}


def test_shared_neighbours_make_a_link() -> None:
    link = {FREE: "02:00:00:00:00:99"}
    assert fake_node(neighbours=link).node.arp.probe("eth0", "02:00:00:00:00:01", [FREE]) == link


def listener(namespace: Netns) -> socket.socket:
    with namespace:
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    heard.settimeout(30)
    return heard


def test_an_announcement_comes_in_both_forms(neighbour: Netns) -> None:
    mac = InterfaceLinks(NODE_IP).facts().mac
    with listener(neighbour) as heard:
        LinkArp().announce("eth0", mac, [FREE])
        operations = []
        for _ in range(2):
            frame = heard.recv(128)
            assert frame[:6] == b"\xff" * 6
            operation, sender, sender_ip, _, target_ip = struct.unpack_from("!6xH6s4s6s4s", frame, 14)
            assert sender.hex(":") == frame[6:12].hex(":") == mac
            assert sender_ip == target_ip == FREE.packed
            operations.append(operation)
        assert operations == [1, 2]


def test_no_socket_stays_open(neighbour: Netns) -> None:
    """They are closed by others, a moment later."""
    link = InterfaceLinks(NODE_IP).facts()
    LinkArp().announce("eth0", link.mac, [FREE])
    assert LinkArp().probe("eth0", link.mac, [FREE], QUICK) == {}
    assert LinkArp().who_has(link, NODE_IP, [FREE], QUICK) == {}
    run("ip", "link", "set", "eth0", "down")
    with pytest.raises(LinkFailed):
        LinkArp().announce("eth0", link.mac, [FREE])
    eventually(lambda: len(Path("/proc/thread-self/net/packet").read_text().splitlines()) == 1)  # its heading
    del neighbour


def test_a_neighbour_learns_from_an_announcement(neighbour: Netns) -> None:
    mac = InterfaceLinks(NODE_IP).facts().mac
    with neighbour:
        run("ip", "neigh", "add", str(FREE), "lladdr", "02:de:ad:00:00:01", "dev", "eth0", "nud", "stale")
    LinkArp().announce("eth0", mac, [FREE])
    with neighbour:
        eventually(lambda: mac in run("ip", "neigh", "show", str(FREE)))


def test_a_probe_is_as_rfc_5227_has_it_and_is_repeated(neighbour: Netns) -> None:
    mac = InterfaceLinks(NODE_IP).facts().mac
    with listener(neighbour) as heard:
        began = time.monotonic()
        assert LinkArp().probe("eth0", mac, [FREE]) == {}
        assert time.monotonic() - began > 0.45
        for _ in range(3):
            operation, _, sender_ip, target, target_ip = struct.unpack_from("!6xH6s4s6s4s", heard.recv(128), 14)
            assert (operation, sender_ip, target, target_ip) == (1, bytes(4), bytes(6), FREE.packed)


def test_another_hosts_probe_for_the_same_address_is_a_conflict(neighbour: Netns) -> None:
    mac, other = InterfaceLinks(NODE_IP).facts().mac, bytes.fromhex(NEIGHBOUR_MAC.replace(":", ""))
    probe = struct.pack(
        "!6s6sHHHBBH6s4s6s4s", b"\xff" * 6, other, 0x0806, 1, 0x0800, 6, 4, 1, other, bytes(4), bytes(6), FREE.packed
    )
    over = threading.Event()
    with listener(neighbour) as sender:
        sender.bind(("eth0", 0x0806))

        def keep_probing() -> None:
            while not over.wait(0.02):
                sender.send(probe)

        thread = threading.Thread(target=keep_probing)
        thread.start()
        try:
            assert LinkArp().probe("eth0", mac, [FREE]) == {FREE: NEIGHBOUR_MAC}
        finally:
            over.set()
            thread.join()


def test_of_two_that_probe_at_once_at_most_one_wins(neighbour: Netns) -> None:
    mac = InterfaceLinks(NODE_IP).facts().mac
    theirs: dict[object, str] = {}

    def other() -> None:
        with neighbour:
            theirs.update(LinkArp().probe("eth0", NEIGHBOUR_MAC, [FREE]))

    thread = threading.Thread(target=other)
    thread.start()
    ours = LinkArp().probe("eth0", mac, [FREE])
    thread.join()
    assert ours or theirs
    assert {*ours.values(), *theirs.values()} <= {mac, NEIGHBOUR_MAC}


def test_an_answer_to_the_last_of_hundreds_ends_the_wait(neighbour: Netns) -> None:
    mac = InterfaceLinks(NODE_IP).facts().mac
    many = [IPv4Address(f"192.168.1.{last}") for last in range(2, 250)]
    assert LinkArp().probe("eth0", mac, many, QUICK) == {NEIGHBOUR: NEIGHBOUR_MAC}
    began = time.monotonic()
    assert LinkArp().probe("eth0", mac, [NEIGHBOUR], ProbeTiming(1, 0.0, 30.0)) == {NEIGHBOUR: NEIGHBOUR_MAC}
    assert time.monotonic() - began < 10
    del neighbour


def test_an_interface_that_is_gone_or_down_is_an_error(neighbour: Netns) -> None:
    del neighbour
    with pytest.raises(LinkFailed, match="eth7"):
        LinkArp().probe("eth7", "02:00:00:00:00:01", [FREE])
    run("ip", "link", "set", "eth0", "down")
    with pytest.raises(LinkFailed, match="is the link up"):
        LinkArp().probe("eth0", "02:00:00:00:00:01", [FREE])
    with pytest.raises(LinkFailed, match="no Ethernet MAC"):
        LinkArp().probe("eth0", "02:00:00:00:00:01; reboot", [FREE])


def test_who_has_an_address_is_asked_without_claiming_it(arp: Arp) -> None:
    link = LinkFacts("eth0", 2, mac_of(arp), 24)
    assert arp.who_has(link, NODE_IP, [NEIGHBOUR, FREE], QUICK) == {NEIGHBOUR: NEIGHBOUR_MAC}
    assert arp.who_has(link, NODE_IP, [FREE], QUICK) == {}


def test_several_may_ask_at_once_and_while_another_probes(neighbour: Netns) -> None:
    link = InterfaceLinks(NODE_IP).facts()
    answers: list[dict[Address, str]] = []

    def other() -> None:
        with neighbour:
            theirs = LinkFacts("eth0", 2, NEIGHBOUR_MAC, 24)
            for _ in range(3):
                answers.append(LinkArp().who_has(theirs, NEIGHBOUR, [FREE], QUICK))

    thread = threading.Thread(target=other)
    thread.start()
    while thread.is_alive():
        answers.append(LinkArp().who_has(link, NODE_IP, [FREE], QUICK))
        answers.append(LinkArp().probe("eth0", link.mac, [FREE], QUICK))
        answers.append(LinkArp().who_has(link, NODE_IP, [FREE], QUICK))
    thread.join()
    assert len(answers) >= 6
    assert not any(answers)


def test_an_answer_counts_though_it_is_read_late(neighbour: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was kept from running until the wait was over."""
    del neighbour
    link = InterfaceLinks(NODE_IP).facts()
    send = asking.Link.send

    def send_and_sleep(link: asking.Link[IPv4Address], frame: bytes) -> None:
        send(link, frame)
        time.sleep(0.1)

    clock = time.monotonic
    offset = 0.0

    def jumping() -> float:
        nonlocal offset
        offset += 0.2
        return clock() + offset

    monkeypatch.setattr(asking.Link, "send", send_and_sleep)
    monkeypatch.setattr(asking.time, "monotonic", jumping)
    assert LinkArp().who_has(link, NODE_IP, [NEIGHBOUR], ProbeTiming(1, 0.0, 0.05)) == {NEIGHBOUR: NEIGHBOUR_MAC}
