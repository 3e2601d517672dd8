"""Translated connections, fake and real: counted, ended, others left alone."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address

import pytest
from pyroute2.netlink import NETLINK_NETFILTER

from egress.addresses import Address
from egress.program import Layout
from egress.rules import CUT_CHAIN, rules_of
from lab.fakes.node import FakeConntrack
from node_runner.drivers.conntrack import _GET, _NFGENMSG, _STALE_ALONE, KernelConntrack
from node_runner.drivers.netlink import Message, Netlink
from node_runner.drivers.ports import Conntrack

from .conftest import NEIGHBOUR, NEIGHBOUR_SIX, Netns, add_link, need, run

A, B = IPv4Address("192.168.1.102"), IPv4Address("192.168.1.103")
SIX = IPv6Address("2001:db8::102")
STALE, STALE_SIX = IPv4Address("192.168.1.104"), IPv6Address("2001:db8::104")
"""Stand for connections that the guard has cut."""
STALE_SPECS = [rule.spec for rule in rules_of({A: 1}, Layout()).spine if rule.chain == CUT_CHAIN]
TOOLS = {4: "iptables-nft", 6: "ip6tables-nft"}
NODAD = {4: (), 6: ("nodad",)}
Lab = tuple[Conntrack, Callable[[Address, int], None]]


@pytest.fixture(params=["fake", "real"])
def table(request: pytest.FixtureRequest) -> Lab:
    """The driver, and how to make connections through an address, or such as the guard has cut."""
    if request.param == "fake":
        fake = FakeConntrack()

        def pretend(address: Address, number: int) -> None:
            if address in (STALE, STALE_SIX):
                fake.stale += number
            else:
                fake.connections[address] += number

        return fake, pretend
    return real_table(request)


def real_table(request: pytest.FixtureRequest) -> Lab:
    netns: Netns = request.getfixturevalue("netns")
    need("iptables-nft", "ip6tables-nft")
    add_link(netns, "eth0", traffic=True)
    for address in (A, B, SIX):
        run(
            "ip",
            "address",
            "add",
            f"{address}/{24 if address.version == 4 else 64}",
            "dev",
            "eth0",
            *NODAD[address.version],
        )
        run(
            TOOLS[address.version], "-t", "nat", "-A", "POSTROUTING",
            "-p", "udp", "--dport", str(int(address) & 0xFFFF), "-j", "SNAT", "--to-source", str(address),
        )  # fmt: skip

    (rule,) = [spec for spec in STALE_SPECS if "CONNMARK" in spec]
    for address in (STALE, STALE_SIX):
        stale = ("-p", "udp", "--dport", str(int(address) & 0xFFFF), *rule.split())
        run(TOOLS[address.version], "-t", "filter", "-A", "OUTPUT", *stale)

    def connect(address: Address, number: int) -> None:
        with ExitStack() as stack:  # all open at once: a port that is free again could be given out again
            for _ in range(number):
                family = socket.AF_INET if address.version == 4 else socket.AF_INET6
                client = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                neighbour = NEIGHBOUR if address.version == 4 else NEIGHBOUR_SIX
                client.sendto(b"hello", (str(neighbour), int(address) & 0xFFFF))

    return KernelConntrack(), connect


def test_only_those_of_the_address_end(table: Lab) -> None:
    conntrack, connect = table
    connect(A, 50)
    connect(B, 3)
    assert dict(conntrack.count([A, B])) == {A: 50, B: 3}
    assert conntrack.forget([A]) == 50
    assert dict(conntrack.count([A, B])) == {B: 3}
    assert conntrack.forget([A]) == 0
    assert conntrack.forget([]) == 0
    assert conntrack.forget([A, B]) == 3


def test_each_ip_version_ends_by_itself(table: Lab) -> None:
    conntrack, connect = table
    connect(A, 4)
    connect(SIX, 50)
    assert dict(conntrack.count([A, SIX])) == {A: 4, SIX: 50}
    assert dict(conntrack.count([SIX])) == {SIX: 50}
    assert conntrack.forget([SIX]) == 50
    assert dict(conntrack.count([A, SIX])) == {A: 4}
    connect(SIX, 2)
    assert conntrack.forget([A, SIX]) == 6


def test_only_those_that_the_guard_has_cut_end(table: Lab) -> None:
    """The rule is the one of HAWSE-CUT."""
    conntrack, connect = table
    connect(A, 3)
    assert conntrack.forget_stale() == 0
    connect(STALE, 50)
    connect(STALE_SIX, 7)
    assert conntrack.forget_stale() == 57
    assert conntrack.forget_stale() == 0
    assert dict(conntrack.count([A])) == {A: 3}


@pytest.mark.usefixtures("netns")
def test_the_kernel_sends_only_what_the_guard_has_cut(request: pytest.FixtureRequest) -> None:
    """So that a pass costs next to nothing on a node with a hundred thousand connections."""
    _, connect = real_table(request)
    connect(A, 20)
    connect(SIX, 20)
    connect(STALE, 2)
    connect(STALE_SIX, 1)
    with Netlink(NETLINK_NETFILTER) as netlink:
        assert sum(1 for _ in netlink.dump(Message(_GET, _STALE_ALONE))) == 3
        assert sum(1 for _ in netlink.dump(Message(_GET, _NFGENMSG.pack(socket.AF_INET, 0, 0)))) >= 22


@pytest.mark.usefixtures("netns")
def test_nothing_tracked_is_nothing_to_forget() -> None:
    assert KernelConntrack().forget([A]) == 0
    assert KernelConntrack().forget_stale() == 0
    assert dict(KernelConntrack().count([A])) == {}
