"""When the status of an EgressAddress is written."""

import pytest

from egress.messages import PUBLISH_TASK
from workers import status
from workers.context import MANY_WAITING

from .conftest import World

A = "192.168.1.102"


@pytest.fixture
def crowd(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A namespace whose address its node is about to acknowledge, and many that wait for their tasks."""
    world.pool("prod", A)
    world.node("node1", "192.168.1.11")
    world.reconcile()
    world.namespace("app")
    world.reconcile()
    assert world.claims() == {A: ("app", "Placed")}
    names = [f"other{number}" for number in range(MANY_WAITING)]
    world.ledger.queue_namespaces(*names, delay=600.0)
    monkeypatch.setattr(world, "settle", world.tasks.clear)
    return names


def test_of_many_at_once_it_is_written_when_the_others_have_had_their_turn(world: World, crowd: list[str]) -> None:
    world.acknowledge()
    assert world.claims() == {A: ("app", "Placed")}
    world.ledger.done_with(f"{PUBLISH_TASK}:in {status.LOOK_SECONDS:g} s")
    world.run(PUBLISH_TASK)
    assert world.claims() == {A: ("app", "Placed")}
    assert (PUBLISH_TASK, ()) in world.tasks  # it is not forgotten
    world.ledger._redis.zrem("hawse:waiting", *crowd)
    world.run(PUBLISH_TASK)
    assert world.claims() == {A: ("app", "Ready")}


@pytest.mark.usefixtures("crowd")
def test_or_when_it_has_waited_long_enough(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.acknowledge()
    assert world.claims() == {A: ("app", "Placed")}
    monkeypatch.setattr(status, "YIELD_SECONDS", 0.0)
    world.run(PUBLISH_TASK)
    assert world.claims() == {A: ("app", "Ready")}


def test_what_is_ready_no_more_is_said_at_once(world: World, crowd: list[str]) -> None:
    world.ledger._redis.zrem("hawse:waiting", *crowd)
    world.acknowledge()
    assert world.claims() == {A: ("app", "Ready")}
    world.ledger.queue_namespaces(*crowd, delay=600.0)
    world.kube.patch("HostSubnet", "node1", {"egressIPs": []})
    world.run(PUBLISH_TASK)
    assert world.claims() == {A: ("app", "Pending")}
