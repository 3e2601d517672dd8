"""Addresses, fake and real: recognising, refusing, repeating, leaving others alone, watching."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import pytest

from lab.fakes.node import FakeLinks, fake_node
from node_runner.drivers.errors import (
    AddressForeign,
    AddressIsNodeIP,
    AddressIsPrimary,
    AddressOutsideSubnet,
    InterfaceMissing,
)
from node_runner.drivers.links import InterfaceLinks
from node_runner.drivers.ports import Links

from .conftest import NODE_IP, Netns, add_link, eventually, run

A, B = IPv4Address("192.168.1.102"), IPv4Address("192.168.1.103")
FOREIGN = IPv4Address("192.168.1.40")
LONG = "ens1f0np0d1v234"  # 15 characters: no room for a label


@dataclass(frozen=True)
class Rig:
    links: Links
    fake: FakeLinks | None
    interface: str

    def text(self) -> str:
        return self.fake.text() if self.fake else run("ip", "-o", "-4", "address", "show", "dev", self.interface)


@pytest.fixture(params=["fake", "eth0", "a1234567890", LONG])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "fake":
        fake = fake_node(str(NODE_IP)).links
        fake.foreign.add(FOREIGN)
        yield Rig(fake, fake, "eth0")
        return
    netns: Netns = request.getfixturevalue("netns")
    add_link(netns, request.param)
    yield Rig(InterfaceLinks(NODE_IP), None, request.param)


def test_the_interface_is_found_by_the_nodes_ip(rig: Rig) -> None:
    facts = rig.links.facts()
    assert facts.interface == rig.interface
    assert facts.prefix_length == 24
    assert len(facts.mac) == 17
    assert facts.index > 0


def test_addresses_are_added_recognised_and_removed(rig: Rig) -> None:
    before = rig.text()
    assert rig.links.read() == frozenset()
    assert rig.links.apply({A, B}, set()) == {}
    assert rig.links.read() == {A, B}
    assert rig.links.apply(set(), {A}) == {}
    assert rig.links.read() == {B}
    assert rig.links.apply({A}, {B}) == {}
    assert rig.links.read() == {A}
    assert rig.links.apply(set(), {A}) == {}
    assert rig.text() == before


def test_doing_it_twice_is_doing_it_once(rig: Rig) -> None:
    rig.links.apply({A}, set())
    text = rig.text()
    assert rig.links.apply({A}, {B}) == {}
    assert rig.text() == text
    if rig.fake is not None:
        assert rig.fake.writes == 1


def test_what_the_node_cannot_hold_is_refused_and_the_rest_done(rig: Rig) -> None:
    expected = {
        NODE_IP: AddressIsNodeIP,
        IPv4Address("192.168.2.5"): AddressOutsideSubnet,
        IPv4Address("192.168.1.255"): AddressOutsideSubnet,
        IPv6Address("fd00::1"): AddressOutsideSubnet,
        FOREIGN: AddressForeign,
    }
    for address, error in expected.items():
        refused = rig.links.refusals([address]).get(address)
        assert type(refused) is error
        assert refused.reason == error.__name__
    assert rig.links.refusals([A]).get(A) is None
    outcome = rig.links.apply({A, *expected}, set())
    assert {address: type(error) for address, error in outcome.items()} == expected
    assert rig.links.read() == {A}
    assert rig.links.refusals([A]).get(A) is None, "its own does not stand in its way"


def test_somebody_elses_change_is_noticed_and_stop_is_heeded(rig: Rig) -> None:
    rig.links.apply({A}, set())
    stop, called, done = threading.Event(), threading.Event(), threading.Event()

    def body() -> None:
        rig.links.watch(called.set, stop)
        done.set()

    # A thread inherits the namespace of the one that starts it.
    threading.Thread(target=body, daemon=True).start()
    time.sleep(0.1)
    called.clear()
    if rig.fake is not None:
        rig.fake.take_away(A)
    else:
        run("ip", "address", "del", f"{A}/24", "dev", rig.interface)
    assert called.wait(2)
    stop.set()
    assert done.wait(1)


@pytest.mark.parametrize("interface", ["eth0", LONG])
def test_ours_are_secondary_permanent_and_no_source_of_the_nodes_own(netns: Netns, interface: str) -> None:
    add_link(netns, interface)
    routes = run("ip", "route", "show", "table", "main").replace(" linkdown", "")
    InterfaceLinks(NODE_IP).apply({A}, set())
    (line,) = [line for line in run("ip", "-o", "address", "show", interface).splitlines() if f"{A}/24" in line]
    assert "scope global secondary" in line
    assert "valid_lft forever" in line
    if interface != LONG:
        assert f"{interface}:eip" in line
    assert run("ip", "route", "show", "table", "main").replace(" linkdown", "") == routes


@pytest.mark.usefixtures("netns")
def test_an_interface_that_is_not_there_is_named() -> None:
    links = InterfaceLinks(NODE_IP)
    for call in (links.facts, links.read, lambda: links.apply({A}, set())):
        with pytest.raises(InterfaceMissing, match=str(NODE_IP)):
            call()


def test_a_thousand_in_one_batch(netns: Netns) -> None:
    add_link(netns, "eth0")
    run("ip", "address", "flush", "dev", "eth0")
    run("ip", "address", "add", f"{NODE_IP}/16", "dev", "eth0")
    links = InterfaceLinks(NODE_IP)
    many = {IPv4Address(f"192.168.{third}.{last}") for third in range(2, 7) for last in range(200)}
    assert links.apply(many, set()) == {}
    assert links.read() == many
    assert links.apply(set(), many) == {}
    assert links.read() == frozenset()


def test_one_that_became_primary_is_not_removed_at_the_nodes_cost(netns: Netns) -> None:
    add_link(netns, "eth0")
    links = InterfaceLinks(NODE_IP)
    run("ip", "address", "flush", "dev", "eth0")
    run("ip", "address", "add", f"{A}/24", "dev", "eth0", "label", "eth0:eip")
    run("ip", "address", "add", f"{NODE_IP}/24", "dev", "eth0")
    for scope, value in (("all", "0"), ("eth0", "0")):
        with open(f"/proc/sys/net/ipv4/conf/{scope}/promote_secondaries", "w", encoding="ascii") as setting:
            setting.write(value)
    assert isinstance(links.apply(set(), {A})[A], AddressIsPrimary)
    assert links.facts().interface == "eth0"
    with open("/proc/sys/net/ipv4/conf/eth0/promote_secondaries", "w", encoding="ascii") as setting:
        setting.write("1")
    assert links.apply(set(), {A}) == {}
    assert links.facts().interface == "eth0"


def test_ours_on_an_interface_the_node_has_left_are_swept(netns: Netns) -> None:
    add_link(netns, "eth0")
    links = InterfaceLinks(NODE_IP)
    links.apply({A}, set())
    run("ip", "link", "add", "br-ex", "type", "bridge")
    run("ip", "address", "del", "192.168.1.40/24", "dev", "eth0")
    run("sysctl", "-qw", "net.ipv4.conf.eth0.promote_secondaries=1")
    run("ip", "address", "del", f"{NODE_IP}/24", "dev", "eth0")
    run("ip", "address", "add", f"{NODE_IP}/24", "dev", "br-ex")
    assert links.read() == frozenset()
    assert links.sweep() == {A}
    assert str(A) not in run("ip", "address")


def test_only_our_interface_and_our_chains_are_reported(netns: Netns) -> None:
    add_link(netns, "eth0")
    stop, called = threading.Event(), threading.Event()
    links = InterfaceLinks(NODE_IP, {"HAWSE-SNAT"})
    thread = threading.Thread(target=links.watch, args=(called.set, stop), daemon=True)
    thread.start()
    time.sleep(0.2)
    called.clear()
    run("ip", "link", "add", "pod7", "type", "bridge")
    run("ip", "address", "add", "10.0.0.1/24", "dev", "pod7")
    run("iptables-nft", "-t", "nat", "-N", "KUBE-SVC-7")
    assert not called.wait(0.3)
    run("iptables-nft", "-t", "nat", "-N", "HAWSE-SNAT")
    assert called.wait(1)
    called.clear()
    run("iptables-nft", "-t", "nat", "-A", "HAWSE-SNAT", "-j", "RETURN")
    assert called.wait(1)
    called.clear()
    run("nft", "flush", "ruleset")
    assert called.wait(1)
    time.sleep(0.1)
    called.clear()
    run("ip", "link", "set", "eth0", "down")
    assert called.wait(1)
    time.sleep(0.1)
    called.clear()
    run("ip", "link", "del", "eth0")
    assert called.wait(1)
    time.sleep(0.1)
    called.clear()
    run("ip", "address", "add", f"{NODE_IP}/24", "dev", "pod7")
    assert called.wait(1)
    stop.set()
    thread.join(1)
    assert not thread.is_alive()


def test_a_cable_that_is_pulled_is_seen() -> None:
    fake = fake_node(str(NODE_IP)).links
    assert fake.facts().carrier
    fake.carrier = False
    assert not fake.facts().carrier


def test_a_real_one_too(netns: Netns) -> None:
    neighbour = add_link(netns, "eth0")
    links = InterfaceLinks(NODE_IP)
    eventually(lambda: links.facts().carrier)
    with neighbour:
        run("ip", "link", "set", "eth0", "down")
    eventually(lambda: not links.facts().carrier)


def test_gateways_are_found_in_the_routes(netns: Netns) -> None:
    add_link(netns, "eth0")
    run("ip", "route", "add", "10.0.0.0/8", "via", "192.168.1.9")
    run("ip", "route", "add", "default", "nexthop", "via", "192.168.1.1", "nexthop", "via", "192.168.1.2")
    run("ip", "link", "add", "pod7", "type", "bridge")
    run("ip", "address", "add", "10.1.0.1/24", "dev", "pod7")
    run("ip", "link", "set", "pod7", "up")
    run("ip", "route", "add", "10.2.0.0/16", "via", "10.1.0.7")
    found = InterfaceLinks(NODE_IP).facts().gateways
    assert [str(gateway) for gateway in found] == ["192.168.1.1", "192.168.1.2", "192.168.1.9"]
