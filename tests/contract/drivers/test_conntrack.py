"""Translated connections, fake and real: counted, ended, others left alone."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest
from pyroute2.netlink import NETLINK_NETFILTER

from egress.program import Layout
from egress.rules import CUT_CHAIN, rules_of
from lab.fakes.node import FakeConntrack
from node_runner.drivers.conntrack import _GET, _NFGENMSG, _STALE_ALONE, KernelConntrack
from node_runner.drivers.netlink import Message, Netlink
from node_runner.drivers.ports import Conntrack

from .conftest import NEIGHBOUR, Netns, add_link, need, run

A, B = IPv4Address("192.168.1.102"), IPv4Address("192.168.1.103")
STALE = IPv4Address("192.168.1.104")
"""Stands for connections that the guard has cut."""
STALE_SPECS = [rule.spec for rule in rules_of({A: 1}, Layout()).spine if rule.chain == CUT_CHAIN]
Lab = tuple[Conntrack, Callable[[IPv4Address, int], None]]


@pytest.fixture(params=["fake", "real"])
def table(request: pytest.FixtureRequest) -> Lab:
    """The driver, and how to make connections through an address, or such as the guard has cut."""
    if request.param == "fake":
        fake = FakeConntrack()

        def pretend(address: IPv4Address, number: int) -> None:
            if address == STALE:
                fake.stale += number
            else:
                fake.connections[address] += number

        return fake, pretend
    return real_table(request)


def real_table(request: pytest.FixtureRequest) -> Lab:
    netns: Netns = request.getfixturevalue("netns")
    need("iptables-nft")
    add_link(netns, "eth0", traffic=True)
    for address in (A, B):
        run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        run(
            "iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-p", "udp", "--dport", str(int(address) & 0xFFFF),
            "-j", "SNAT", "--to-source", str(address),
        )  # fmt: skip

    (rule,) = [spec for spec in STALE_SPECS if "CONNMARK" in spec]
    stale = ("-p", "udp", "--dport", str(int(STALE) & 0xFFFF), *rule.split())
    run("iptables-nft", "-t", "filter", "-A", "OUTPUT", *stale)

    def connect(address: IPv4Address, number: int) -> None:
        with ExitStack() as stack:  # all open at once: a port that is free again could be given out again
            for _ in range(number):
                client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                client.sendto(b"hello", (str(NEIGHBOUR), int(address) & 0xFFFF))

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


def test_only_those_that_the_guard_has_cut_end(table: Lab) -> None:
    """The rule is the one of HAWSE-CUT."""
    conntrack, connect = table
    connect(A, 3)
    assert conntrack.forget_stale() == 0
    connect(STALE, 50)
    assert conntrack.forget_stale() == 50
    assert conntrack.forget_stale() == 0
    assert dict(conntrack.count([A])) == {A: 3}


@pytest.mark.usefixtures("netns")
def test_the_kernel_sends_only_what_the_guard_has_cut(request: pytest.FixtureRequest) -> None:
    """So that a pass costs next to nothing on a node with a hundred thousand connections."""
    _, connect = real_table(request)
    connect(A, 20)
    connect(STALE, 2)
    with Netlink(NETLINK_NETFILTER) as netlink:
        assert sum(1 for _ in netlink.dump(Message(_GET, _STALE_ALONE))) == 2
        assert sum(1 for _ in netlink.dump(Message(_GET, _NFGENMSG.pack(socket.AF_INET, 0, 0)))) >= 22


@pytest.mark.usefixtures("netns")
def test_nothing_tracked_is_nothing_to_forget() -> None:
    assert KernelConntrack().forget([A]) == 0
    assert KernelConntrack().forget_stale() == 0
    assert dict(KernelConntrack().count([A])) == {}
