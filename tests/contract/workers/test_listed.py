"""What the workers tell admission of the objects' lists, on a real API server and a real Valkey."""

from typing import Any

import pytest

from egress.addresses import parse_address
from egress.listing import Listed
from egress.messages import PUBLISH_TASK

World = Any  # conftest's classes cannot be imported
BY_HAND = parse_address("192.168.1.200")


@pytest.fixture
def world(world: World) -> World:
    world.pool("prod", "192.168.1.102-192.168.1.105")
    world.node("node1", "192.168.1.17")
    world.node("node2", "192.168.1.18")
    world.reconcile()
    return world


def listed(world: World, *addresses: str) -> list[Listed | None]:
    found = world.ledger.listed([parse_address(text) for text in addresses])
    return [found.get(parse_address(text)) for text in addresses]


def test_what_was_assigned_and_what_was_patched_by_hand_is_told(world: World) -> None:
    world.namespace("shop", address="192.168.1.102")
    world.reconcile()
    (host,) = [node for node in ("node1", "node2") if world.hosted(node)]
    assert listed(world, "192.168.1.102") == [Listed((host,), ("shop",))]

    for node in ("node1", "node2"):
        world.kube.patch("HostSubnet", node, {"egressIPs": ["192.168.1.200", *world.hosted(node)]})
    world.net_namespace("one", 5, "192.168.1.200")
    world.net_namespace("two", 6, "192.168.1.200")
    world.run(PUBLISH_TASK)
    assert listed(world, "192.168.1.200") == [Listed(("node1", "node2"), ("one", "two"))]

    world.kube.patch("HostSubnet", "node1", {"egressIPs": []})
    world.kube.delete("NetNamespace", "one")
    world.run(PUBLISH_TASK)
    assert listed(world, "192.168.1.200", "192.168.1.201") == [Listed(("node2",), ("two",)), None]


def test_a_flush_is_made_good_by_the_next_reconcile(world: World) -> None:
    world.kube.patch("HostSubnet", "node1", {"egressIPs": ["192.168.1.200"]})
    world.ledger._redis.flushall()
    assert world.ledger.listed([BY_HAND]) is None
    world.reconcile()
    assert listed(world, "192.168.1.200") == [Listed(("node1",))]


def test_a_broken_entry_hides_no_other(world: World) -> None:
    world.kube.patch("HostSubnet", "node1", {"egressIPs": ["1.2.3", "192.168.1.200"]})
    world.reconcile()
    assert listed(world, "192.168.1.200") == [Listed(("node1",))]
