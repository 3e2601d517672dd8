"""Translated connections, fake and real: counted, ended, others left alone."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

import pytest

from lab.fakes.node import FakeConntrack
from node_runner.drivers.conntrack import KernelConntrack
from node_runner.drivers.ports import Conntrack

from .conftest import NEIGHBOUR, Netns, add_link, need, run

A, B = IPv4Address("192.168.1.102"), IPv4Address("192.168.1.103")


@pytest.fixture(params=["fake", "real"])
def table(request: pytest.FixtureRequest) -> Iterator[tuple[Conntrack, Callable[[IPv4Address, int], None]]]:
    """The driver, and how to make connections through an address."""
    if request.param == "fake":
        fake = FakeConntrack()
        yield fake, lambda address, number: fake.connections.update({address: number})
        return
    netns: Netns = request.getfixturevalue("netns")
    need("iptables-nft")
    add_link(netns, "eth0", traffic=True)
    for address in (A, B):
        run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        run(
            "iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-p", "udp", "--dport", str(int(address) & 0xFFFF),
            "-j", "SNAT", "--to-source", str(address),
        )  # fmt: skip

    def connect(address: IPv4Address, number: int) -> None:
        for _ in range(number):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"hello", (str(NEIGHBOUR), int(address) & 0xFFFF))

    yield KernelConntrack(), connect


def test_only_those_of_the_address_end(table: tuple[Conntrack, Callable[[IPv4Address, int], None]]) -> None:
    conntrack, connect = table
    connect(A, 50)
    connect(B, 3)
    assert dict(conntrack.count([A, B])) == {A: 50, B: 3}
    assert conntrack.forget([A]) == 50
    assert dict(conntrack.count([A, B])) == {B: 3}
    assert conntrack.forget([A]) == 0
    assert conntrack.forget([]) == 0
    assert conntrack.forget([A, B]) == 3


@pytest.mark.usefixtures("netns")
def test_nothing_tracked_is_nothing_to_forget() -> None:
    assert KernelConntrack().forget([A]) == 0
    assert dict(KernelConntrack().count([A])) == {}
