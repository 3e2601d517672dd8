"""The kernel still gives packets the mark of a flow that is gone, as on a machine where Open vSwitch is late."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from egress.addresses import Address
from lab.stack import Stack, wait_for
from node_runner.retirement import RETIRE_SECONDS

from .test_ipv6 import TO_WEB, about, holds, leaks, place

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("stack", ["embedded"], indirect=True),  # what a node does, whatever the API server
]
BY_HAND = [tuple(map(ip_address, pair)) for pair in (
    ("192.168.1.203", "192.168.1.204"), ("fd00:192:168:1::303", "fd00:192:168:1::304"),
)]  # fmt: skip
LATE = 2.0
"""Seconds for which it is late when all else is done: no packet may have another source than the address of before."""


@pytest.fixture
def by_hand(team, stack: Stack, request: pytest.FixtureRequest) -> Iterator[tuple[Address, ...]]:  # noqa: ANN001
    """Two addresses that a test writes into the objects itself."""
    stack.create_namespace(team.name)
    yield request.param
    stack.kube.patch("NetNamespace", team.name, {"egressIPs": []})
    for address in request.param:
        place(stack, address, None)


@pytest.mark.parametrize("by_hand", BY_HAND, ids=["ipv4", "ipv6"], indirect=True)
def test_what_is_cached_of_a_flow_never_lets_a_nodes_ip_out(team, stack: Stack, by_hand: tuple[Address, ...]) -> None:  # noqa: ANN001
    """At a change of the address, at a move to another node, and at a release; and then the rules go."""
    first, second = by_hand
    network = stack.network
    six = first.version == 6

    def change(to: Address, node: str | None) -> set[Address]:
        """Gives the namespace `to`, on `node`; the sources of what node2 sends out while its cache is late."""
        with network.hold_cache("node2"), network.capture("outside", TO_WEB) as capture:
            before = team.flow("node2", ipv6=six)
            end = time.time() + RETIRE_SECONDS  # from then on the rules may be gone, though the cache is not up to date
            stack.kube.patch("NetNamespace", team.name, {"egressIPs": [str(to)]})
            for address in by_hand:
                place(stack, address, node if address == to else None)
            for address in by_hand:
                there = address == to and node == "node2"
                wait_for("the node", lambda address=address, there=there: holds(stack, "node2", address) == there, 60)  # type: ignore[misc]
            wait_for("the flow", lambda: team.flow("node2", ipv6=six) not in {before, "drop" if node else ""}, 60)
            done = time.time()
            time.sleep(LATE)
            seen = [packet for packet in capture.stop() if packet.time < end]
        assert not leaks(seen, stack)
        mac = "02:00:" + network.nodes["node2"].address.packed.hex(":")
        late = [packet for packet in seen if packet.time > done and packet.source_mac == mac]
        return {packet.source for packet in late if packet.source is not None}

    stack.kube.patch("NetNamespace", team.name, {"egressIPs": [str(first)]})
    place(stack, first, "node2")
    # Seldom enough that no packet comes between two steps of a pass: each connection that is ended stays so.
    stream = network.traffic(team.pods["node2"], interval=0.37, protocol="udp", ipv6=six)

    def sends_as(source: Address) -> None:
        """Waits until the stream itself does: its connection is ended and begun anew, by what was cached of its own."""
        team.steered(source)
        since = time.time()
        wait_for(
            "the stream",
            lambda: any(each.time > since and each.source == source for each in network.datagrams()[-3:]),
            60,
        )

    sends_as(first)
    assert change(second, "node2") == {first}, "nothing was cached, so nothing is shown"
    sends_as(second)
    assert change(second, "node1") == {second}
    sends_as(second)
    place(stack, second, "node2")
    wait_for("the address", lambda: holds(stack, "node2", second), 60)
    sends_as(second)
    assert change(second, None) == {second}
    stream.stop()
    wait_for("the rules to go", lambda: not any(about(stack, "node2", address) for address in by_hand), 60)
