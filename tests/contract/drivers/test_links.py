"""Addresses, fake and real: recognising, refusing, repeating, leaving others alone, watching."""

from __future__ import annotations

import itertools
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path

import pytest
from pyroute2.netlink import NETLINK_ROUTE

from egress.addresses import Address
from lab.fakes.node import FakeLinks, fake_node
from node_runner.drivers import links as links_driver
from node_runner.drivers.errors import (
    AddressForeign,
    AddressIsNodeIP,
    AddressIsPrimary,
    AddressOutsideSubnet,
    InterfaceMissing,
    KernelTooOld,
)
from node_runner.drivers.links import ADDRESS_METRIC, InterfaceLinks
from node_runner.drivers.netlink import Netlink, attribute, cut
from node_runner.drivers.ports import LinkFacts, Links

from .conftest import NODE_IP, NODE_SIX, Netns, add_link, eventually, run

A, B = IPv4Address("192.168.1.102"), IPv4Address("192.168.1.103")
SIX, SIX_TOO = IPv6Address("2001:db8::102"), IPv6Address("2001:db8::103")
FOREIGN, FOREIGN_SIX = IPv4Address("192.168.1.40"), IPv6Address("2001:db8::40")
LONG = "ens1f0np0d1v234"  # 15 characters: no room for a label


@dataclass(frozen=True)
class Rig:
    links: Links
    fake: FakeLinks | None
    interface: str

    def text(self) -> str:
        if self.fake:
            return self.fake.text()
        shown = run("ip", "-o", "address", "show", "dev", self.interface, "scope", "global")
        return re.sub(r"\d+sec|tentative", "", shown)


@pytest.fixture(params=["fake", "eth0", "a1234567890", LONG])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "fake":
        fake = fake_node(str(NODE_IP), other_ips=[f"{NODE_SIX}/64"]).links
        fake.foreign |= {FOREIGN, FOREIGN_SIX}
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
    assert facts.other_ips == (ip_interface(f"{NODE_SIX}/64"),)
    assert facts.index > 0


def test_addresses_are_added_recognised_and_removed(rig: Rig) -> None:
    before = rig.text()
    assert rig.links.read() == frozenset()
    assert rig.links.apply({A, B, SIX, SIX_TOO}, set()) == {}
    assert rig.links.read() == {A, B, SIX, SIX_TOO}
    assert rig.links.apply(set(), {A, SIX}) == {}
    assert rig.links.read() == {B, SIX_TOO}
    assert rig.links.apply({A, SIX}, {B, SIX_TOO}) == {}
    assert rig.links.read() == {A, SIX}
    assert rig.links.apply(set(), {A, SIX}) == {}
    assert rig.text() == before


def test_doing_it_twice_is_doing_it_once(rig: Rig) -> None:
    rig.links.apply({A, SIX}, set())
    text = rig.text()
    assert rig.links.apply({A, SIX}, {B, SIX_TOO}) == {}
    assert rig.text() == text
    if rig.fake is not None:
        assert rig.fake.writes == 1


def test_what_the_node_cannot_hold_is_refused_and_the_rest_done(rig: Rig) -> None:
    expected = {
        NODE_IP: AddressIsNodeIP,
        IPv4Address("192.168.2.5"): AddressOutsideSubnet,
        IPv4Address("192.168.1.255"): AddressOutsideSubnet,
        IPv6Address("fd00::1"): AddressOutsideSubnet,
        IPv6Address(int(A)): AddressOutsideSubnet,  # its number is that of an IPv4 address which could be held
        IPv6Address("2001:db8::"): AddressOutsideSubnet,
        NODE_SIX: AddressIsNodeIP,
        FOREIGN: AddressForeign,
        FOREIGN_SIX: AddressForeign,
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
    if rig.fake is not None:
        rig.fake.take_away(A)
    else:
        until_it_listens(called, rig.interface)
        run("ip", "address", "del", f"{A}/24", "dev", rig.interface)
    assert called.wait(10)
    stop.set()
    assert done.wait(10)


def until_it_listens(called: threading.Event, interface: str) -> None:
    """Until a watch that sets `called` has told of a change that does no harm, and of all before it."""
    numbers = itertools.count()

    def heard() -> bool:
        run("ip", "link", "set", interface, "alias", str(next(numbers)))
        return called.wait(0.5)

    eventually(heard)
    # The kernel looks for a second whether another has the address that it made of the MAC, and tells of that too.
    eventually(lambda: "tentative" not in run("ip", "-6", "address", "show", "dev", interface))
    called.clear()
    while called.wait(0.5):
        called.clear()


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


def source_to(address: str) -> str:
    """Which address the node's own packets to `address` have."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.connect((address, 9))
        return str(client.getsockname()[0])


def test_ipv6_ones_are_usable_at_once_known_by_their_metric_and_no_source_of_the_nodes_own(netns: Netns) -> None:
    add_link(netns, LONG, traffic=True)
    routes = run("ip", "-6", "route", "show", "table", "main")
    source = source_to("2001:db8::3")
    InterfaceLinks(NODE_IP).apply({IPv6Address("2001:db8::1"), SIX}, set())
    lines = run("ip", "-6", "-o", "address", "show", LONG).splitlines()
    (line,) = [line for line in lines if f"{SIX}/64" in line]
    assert f"metric {ADDRESS_METRIC} scope global nodad deprecated noprefixroute" in line
    assert "valid_lft forever preferred_lft 0sec" in line
    assert "tentative" not in line
    assert run("ip", "-6", "route", "show", "table", "main") == routes
    assert source_to("2001:db8::3") == source  # to which ::1 is nearer
    assert InterfaceLinks(NODE_IP).read() == {IPv6Address("2001:db8::1"), SIX}, "another runner knows them"


def test_one_that_a_kernel_without_protocols_holds_is_known_by_its_metric_alone(netns: Netns) -> None:
    add_link(netns, "eth0")
    options = ("nodad", "noprefixroute", "preferred_lft", "0", "valid_lft", "forever")
    run("ip", "-6", "address", "add", f"{SIX}/64", "dev", "eth0", *options, "metric", str(ADDRESS_METRIC))
    run("ip", "-6", "address", "add", f"{SIX_TOO}/64", "dev", "eth0", *options)
    links = InterfaceLinks(NODE_IP)
    assert links.read() == {SIX}
    assert type(links.refusals([SIX_TOO])[SIX_TOO]) is AddressForeign


def test_one_that_an_old_kernel_keeps_no_mark_of_is_taken_away_again(
    netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a kernel before 4.18: the attributes are not sent."""
    add_link(netns, "eth0")
    monkeypatch.setattr(links_driver, "_addition_six", _unmarked)
    links = InterfaceLinks(NODE_IP)
    assert type(links.apply({SIX}, set())[SIX]) is KernelTooOld
    assert str(SIX) not in run("ip", "-6", "address", "show", "eth0")


def test_nor_does_an_ipv4_address_on_a_long_name_say_that_the_kernel_keeps_them(
    netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_link(netns, LONG)  # so that the kernel is asked what it kept
    monkeypatch.setattr(links_driver, "_addition_six", _unmarked)
    links = InterfaceLinks(NODE_IP)
    assert links.apply({A}, set()) == {}
    assert type(links.apply({SIX}, set())[SIX]) is KernelTooOld


def _unmarked(address: IPv6Address, prefix_length: int, facts: LinkFacts) -> bytes:
    return (
        struct.pack("=BBBBI", socket.AF_INET6, prefix_length, 0, 0, facts.index)
        + attribute(1, address.packed)
        + attribute(2, address.packed)
    )


def test_subnets_of_ipv6_are_those_of_the_nodes_own_lasting_addresses(netns: Netns) -> None:
    add_link(netns, "eth0")
    run("ip", "-6", "address", "add", "fd00:5::7/48", "dev", "eth0", "nodad")
    run("ip", "-6", "address", "add", "2001:db8:7::7/128", "dev", "eth0", "nodad")
    run("ip", "-6", "address", "add", "2001:db8:8::8/64", "dev", "lo", "nodad")
    links = InterfaceLinks(NODE_IP)
    assert links.facts().other_ips == (ip_interface("2001:db8::18/64"), ip_interface("fd00:5::7/48"))
    inside, outside = IPv6Address("fd00:5:0:9::1"), IPv6Address("2001:db8:8::9")
    assert links.apply({inside, SIX}, set()) == {}
    assert links.facts().other_ips == (ip_interface("2001:db8::18/64"), ip_interface("fd00:5::7/48"))
    assert f"{inside}/48" in run("ip", "-6", "address", "show", "eth0")
    assert type(links.refusals([outside])[outside]) is AddressOutsideSubnet


def test_without_an_ipv6_address_of_its_own_a_node_takes_none_and_says_so(netns: Netns) -> None:
    add_link(netns, "eth0")
    Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").write_text("1")
    links = InterfaceLinks(NODE_IP)
    assert links.facts().other_ips == ()
    assert "eth0 has no IPv6 address of the node's own" in str(links.apply({SIX}, set())[SIX])


def test_gateways_of_both_ip_versions_are_found(netns: Netns) -> None:
    add_link(netns, "eth0", traffic=True)
    run("ip", "route", "add", "default", "via", "192.168.1.1", "dev", "eth0")
    run("ip", "-6", "route", "add", "default", "via", "2001:db8::1", "dev", "eth0")
    run("ip", "-6", "route", "add", "2001:db8:99::/64", "via", "fe80::1", "dev", "eth0")  # no pool has that one
    assert InterfaceLinks(NODE_IP).facts().gateways == (IPv4Address("192.168.1.1"), IPv6Address("2001:db8::1"))


@pytest.mark.parametrize("address", [A, SIX])
def test_ours_on_another_interface_are_swept(netns: Netns, address: Address) -> None:
    add_link(netns, "eth0")
    links = InterfaceLinks(NODE_IP)
    links.apply({address}, set())
    run("ip", "link", "set", "eth0", "name", "eth9")
    run("ip", "address", "del", f"{NODE_IP}/24", "dev", "eth9")
    add_link(netns, "eth0")
    if address == A:  # it went with the primary, or was promoted
        links.sweep()
    else:
        assert links.sweep() == {address}
    assert str(address) not in run("ip", "address", "show", "eth9")


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


def test_of_a_long_list_only_what_changed_is_cut_up_again_and_every_change_is_seen(
    netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_link(netns, "eth0")
    links = InterfaceLinks(NODE_IP)
    cut_up: list[bytes] = []
    monkeypatch.setattr(links_driver, "cut", lambda data: cut_up.append(data) or cut(data))
    many = {IPv4Address(int(NODE_IP) - int(NODE_IP) % 256 + host) for host in range(50, 250)}
    first, last = min(many), max(many)
    assert links.apply(many, set()) == {}
    assert links.read() == many
    cut_up.clear()
    assert links.read() == many
    run("ip", "address", "del", f"{last}/24", "dev", "eth0")
    assert links.read() == many - {last}
    assert not any(first.packed in data for data in cut_up)
    run("ip", "address", "add", f"{last}/24", "dev", "eth0")
    run("ip", "address", "del", f"{first}/24", "dev", "eth0")
    assert links.read() == many - {first, last}
    assert isinstance(links.refusals([last])[last], AddressForeign)
    with Netlink(NETLINK_ROUTE, links._port) as other:  # the answers to another port are not the same, but as true
        assert other.port == links._port
        assert links.read() == many - {first, last}
        assert links._port != other.port


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
    until_it_listens(called, "eth0")
    run("ip", "link", "add", "pod7", "type", "bridge")
    run("ip", "address", "add", "10.0.0.1/24", "dev", "pod7")
    run("iptables-nft", "-t", "nat", "-N", "KUBE-SVC-7")
    assert not called.wait(0.3)
    run("iptables-nft", "-t", "nat", "-N", "HAWSE-SNAT")
    assert called.wait(10)
    called.clear()
    run("iptables-nft", "-t", "nat", "-A", "HAWSE-SNAT", "-j", "RETURN")
    assert called.wait(10)
    called.clear()
    run("nft", "flush", "ruleset")
    assert called.wait(10)
    time.sleep(0.1)
    called.clear()
    run("ip", "link", "set", "eth0", "down")
    assert called.wait(10)
    time.sleep(0.1)
    called.clear()
    run("ip", "link", "del", "eth0")
    assert called.wait(10)
    time.sleep(0.1)
    called.clear()
    run("ip", "address", "add", f"{NODE_IP}/24", "dev", "pod7")
    assert called.wait(10)
    stop.set()
    thread.join(10)
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
    run("ip", "route", "add", "10.3.0.0/16", "via", "192.168.1.7", "table", "99")
    found = InterfaceLinks(NODE_IP).facts().gateways
    assert [str(gateway) for gateway in found] == ["192.168.1.1", "192.168.1.2", "192.168.1.9"]


def test_a_node_may_have_no_routes(netns: Netns) -> None:
    add_link(netns, "eth0")
    run("ip", "route", "flush", "table", "main")
    assert InterfaceLinks(NODE_IP).facts().gateways == ()
