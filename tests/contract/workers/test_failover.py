"""Which nodes count as lost, with the workers' tasks on a real cluster and a real ledger."""

import time
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from egress.liveness import Sighting
from egress.messages import FAILOVER_TASK, PLACE_TASK, PUBLISH_TASK
from egress.table import NodeReport
from tests.contract.conftest import later
from workers import metrics, placing

from .conftest import World

PATIENCE = 20.0
A = ip_address("192.168.1.102")
IPS = {"node1": "192.168.1.17", "node2": "192.168.1.18", "node3": "192.168.1.19"}


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"heartbeat_patience": PATIENCE}


@pytest.fixture
def nodes(world: World) -> World:
    """Three nodes, node2 with an address that it has acknowledged for namespace `app`."""
    for name, ip in IPS.items():
        world.node(name, ip, *(["192.168.1.102"] if name == "node2" else []))
    world.net_namespace("app", 5, "192.168.1.102")
    world.reconcile()
    world.acknowledge()
    return world


def beat(world: World, *names: str) -> None:
    """These beat until all others have been silent for long enough to be noticed."""
    for _ in range(3):
        later(world.ledger, PATIENCE / 2)
        for name in names:
            world.ledger.beat(name, IPS[name], PATIENCE)


def saw(world: World, node: str, *witnesses: str, answers: bool = False, held: bool = False) -> None:
    for witness in witnesses:
        world.ledger.saw(node, Sighting(witness, world.ledger.now(), answers, frozenset({A} if held else ())))


def judge(world: World) -> set[str]:
    world.run(FAILOVER_TASK)
    return set(world.ledger.lost())


def test_a_node_of_which_two_others_see_nothing_is_lost_and_its_traffic_is_dropped(nodes: World) -> None:
    beat(nodes, *IPS)
    beat(nodes, "node1", "node3")
    saw(nodes, "node2", "node1")
    assert judge(nodes) == set()
    assert not nodes.tasks
    saw(nodes, "node2", "node3")
    assert judge(nodes) == {"node2"}
    assert {task for task, _ in nodes.tasks} == {PLACE_TASK}
    assert nodes.ledger.failovers().keys() == {A}
    nodes.settle()
    row = nodes.ledger.read_table().rows[5]
    assert row is not None
    assert row.hops == ()


def test_nobody_publishes_between_the_loss_of_a_node_and_the_placing_of_its_addresses(
    nodes: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who asks for it at that moment would make each node's runner run twice."""
    monkeypatch.setattr(placing, "RESCUE_SECONDS", 60.0)
    beat(nodes, *IPS)
    beat(nodes, "node1", "node3")
    saw(nodes, "node2", "node1", "node3")
    assert judge(nodes) == {"node2"}
    before = nodes.ledger.change_number()
    nodes.run(PUBLISH_TASK)
    assert nodes.ledger.change_number() == before
    assert PUBLISH_TASK in {task for task, _ in nodes.tasks}  # it was not its turn
    nodes.run(PLACE_TASK)
    nodes.run(PUBLISH_TASK)
    assert nodes.ledger.change_number() == before + 1


def test_that_nobody_places_keeps_publishing_for_a_moment_alone(nodes: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the automation is paused."""
    monkeypatch.setattr(placing, "RESCUE_SECONDS", 0.1)
    beat(nodes, *IPS)
    beat(nodes, "node1", "node3")
    saw(nodes, "node2", "node1", "node3")
    assert judge(nodes) == {"node2"}
    before = nodes.ledger.change_number()
    time.sleep(0.15)
    nodes.run(PUBLISH_TASK)
    assert nodes.ledger.change_number() == before + 1


def test_who_waits_for_the_end_of_a_rest_keeps_nobody_from_placing_at_once(nodes: World) -> None:
    """That one may be with a worker that was on the node."""
    nodes.ledger.rest(PLACE_TASK, 60.0)
    nodes.context.ask_again(PLACE_TASK, delay=60.0)
    nodes.tasks.clear()
    nodes.context.ask(PLACE_TASK)
    assert nodes.tasks == []
    beat(nodes, *IPS)
    beat(nodes, "node1", "node3")
    saw(nodes, "node2", "node1", "node3")
    assert judge(nodes) == {"node2"}
    assert (PLACE_TASK, ()) in nodes.tasks
    nodes.ledger.check_rested(PLACE_TASK)


def test_nodes_that_report_a_link_of_the_other_version_are_witnesses_too(world: World) -> None:
    """The HostSubnets have IPv6, the runners were told IPv4: one of them alone is not believed."""
    for name, ip in IPS.items():
        world.node(name, f"fd00::{ip.rpartition('.')[2]}", report=False)
        world.ledger.report(NodeReport(name, 0.0, link=f"{ip}/24", interface="eth0", other_links=("fd00::1/64",)))
    world.reconcile()
    beat(world, *IPS)
    beat(world, "node1", "node3")
    saw(world, "node2", "node1")
    assert judge(world) == set()
    saw(world, "node2", "node3")
    assert judge(world) == {"node2"}


def test_silence_alone_moves_nothing(nodes: World) -> None:
    beat(nodes, *IPS)
    beat(nodes, "node1", "node3")
    assert judge(nodes) == set()
    saw(nodes, "node2", "node1", "node3", answers=True, held=True)
    assert judge(nodes) == set()
    assert nodes.tasks == []


def test_one_that_beats_again_is_back_and_on_probation(nodes: World) -> None:
    beat(nodes, *IPS)
    beat(nodes, "node1", "node3")
    saw(nodes, "node2", "node1", "node3")
    assert judge(nodes) == {"node2"}
    nodes.settle()
    # It answers again, but its runner has not been heard: what others have by now it may still hold.
    saw(nodes, "node2", "node1", "node3", answers=True)
    assert judge(nodes) == {"node2"}
    assert nodes.ledger.beat("node2", IPS["node2"], PATIENCE).lost
    assert judge(nodes) == set()
    assert nodes.ledger.returned().keys() == {"node2"}
    nodes.run(PUBLISH_TASK)
    nodes.settle()
    nodes.acknowledge()
    row = nodes.ledger.read_table().rows[5]
    assert row is not None
    assert [(hop.node, hop.acknowledged) for hop in row.hops] == [("node2", True)]


def test_a_moment_without_any_heartbeat_brings_no_lost_node_back(nodes: World) -> None:
    """Nobody's silence counts then. But who took the lost one for living would wait for it to let go its address."""
    beat(nodes, *IPS)
    beat(nodes, "node1", "node3")
    saw(nodes, "node2", "node1", "node3")
    assert judge(nodes) == {"node2"}
    later(nodes.ledger, PATIENCE * 1.3)
    nodes.ledger.beat("node1", IPS["node1"], PATIENCE)
    assert judge(nodes) == {"node2"}
    assert nodes.ledger.returned() == {}


def test_a_node_whose_link_is_down_is_lost_though_its_runner_speaks(nodes: World) -> None:
    beat(nodes, *IPS)
    report = nodes.ledger.reports(["node2"])["node2"]
    nodes.ledger.report(replace(report, carrier=False))
    assert judge(nodes) == {"node2"}
    nodes.ledger.report(report)
    assert judge(nodes) == set()


def test_a_lone_witness_is_enough_where_there_is_no_other(world: World) -> None:
    for name in ("node1", "node2"):
        world.node(name, IPS[name])
    world.reconcile()
    beat(world, "node1", "node2")
    beat(world, "node1")
    saw(world, "node2", "node1")
    assert judge(world) == {"node2"}


def test_a_node_that_never_spoke_is_waited_for_and_one_that_is_deleted_is_not(nodes: World) -> None:
    assert judge(nodes) == set()  # from now on all are expected
    beat(nodes, "node1", "node3")
    assert [silence.node for silence in nodes.ledger.silent(PATIENCE)] == ["node2"]
    nodes.kube.delete("HostSubnet", "node2")
    assert judge(nodes) == set()
    assert nodes.ledger.silent(PATIENCE) == []


def test_a_failover_is_measured_until_another_node_carries_the_address(nodes: World) -> None:
    before = metrics.failover_duration._sum.get()
    nodes.ledger.begin_failover([A], nodes.ledger.now() - 7.0)
    nodes.run(PUBLISH_TASK)
    assert nodes.ledger.failovers() == {}
    assert 7.0 <= metrics.failover_duration._sum.get() - before < 60.0
    assert "last heard of" in nodes.ledger.history("app")[0].message


def test_after_a_flush_nobody_counts_as_lost(nodes: World) -> None:
    nodes.ledger.set_lost({"node2": 1.0}, {})
    nodes.ledger._redis.flushall()
    assert judge(nodes) == set()
    beat(nodes, "node1", "node3")
    saw(nodes, "node2", "node1", "node3")
    for name in ("node1", "node3"):
        nodes.ledger.report(NodeReport(name, 0.0, link=f"{IPS[name]}/24", interface="eth0"))
    assert judge(nodes) == {"node2"}


def test_a_node_without_a_link_is_no_witness(nodes: World) -> None:
    report = nodes.ledger.reports(["node3"])["node3"]
    nodes.ledger.report(replace(report, carrier=False))
    beat(nodes, *IPS)
    beat(nodes, "node1", "node3")
    saw(nodes, "node2", "node1")
    assert judge(nodes) == {"node2", "node3"}


def test_neither_is_one_that_is_silent_itself(nodes: World) -> None:
    beat(nodes, *IPS)
    beat(nodes, "node1")
    saw(nodes, "node2", "node1")
    saw(nodes, "node3", "node1")
    assert judge(nodes) == {"node2", "node3"}


def test_what_somebody_else_answers_for_keeps_no_dead_node_alive(nodes: World) -> None:
    report = nodes.ledger.reports(["node2"])["node2"]
    refused = replace(report.claims[0], held=False, reason="AddressInUse", message="02:00 answers")
    nodes.ledger.report(replace(report, claims=(refused,)))
    beat(nodes, *IPS)
    beat(nodes, "node1", "node3")
    saw(nodes, "node2", "node1", "node3", held=True)
    assert judge(nodes) == {"node2"}


def test_what_was_not_placed_is_asked_for_again(nodes: World) -> None:
    """The worker was killed between what it decided and what it asked for."""
    nodes.ledger.set_lost({"node2": 1.0})
    beat(nodes, "node1", "node3")
    nodes.run(FAILOVER_TASK)
    assert PLACE_TASK in {task for task, _ in nodes.tasks}


def test_a_failover_of_what_nobody_has_any_more_ends_without_a_word(nodes: World) -> None:
    other = ip_address("192.168.1.150")
    nodes.ledger.begin_failover([other], 1.0)
    nodes.ledger.begin_failover([A], nodes.ledger.now())
    nodes.ledger.set_lost({"node2": 1.0})
    before = metrics.failover_duration._sum.get()
    nodes.run(PUBLISH_TASK)
    assert nodes.ledger.failovers().keys() == {A}  # the dead node itself ends nothing
    assert metrics.failover_duration._sum.get() == before
