"""Failover, planned moves, requests, balance and egressCIDRs, on a real API server and a real Valkey."""

import json
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from egress.adapters.cluster import ConflictError, Kind
from egress.messages import PLACE_TASK
from egress.operations import Outcome, Step, TransientError
from workers import placing

A, B, C, D = (f"192.168.1.{last}" for last in (102, 103, 104, 105))
DRAIN = "egress.hawse.dev/drain"
MOVE = "egress.hawse.dev/move-to"
BY_HAND = "192.168.1.201"


@pytest.fixture
def settings() -> dict[str, Any]:
    """As many planned moves as can be."""
    return {"moves_per_minute": 6000}


@pytest.fixture
def ready(world: Any) -> Any:
    """Three nodes, of which the first two host two addresses each, everything acknowledged."""
    world.pool("prod", f"{A}-{D}")
    world.node("node1", "192.168.1.17")
    world.node("node2", "192.168.1.18")
    for name in "abcd":
        world.namespace(name)
    world.reconcile()
    world.node("node3", "192.168.1.19")
    world.acknowledge()
    assert [len(world.hosted(name)) for name in ("node1", "node2", "node3")] == [2, 2, 0]
    return world


def where(world: Any) -> dict[str, str]:
    """The node of each address; one on two nodes fails the test."""
    found: dict[str, str] = {}
    for subnet in world.kube.list("HostSubnet"):
        for address in subnet.get("egressIPs") or []:
            assert address not in found, f"{address} is on {found[address]} and {subnet['metadata']['name']}"
            found[address] = subnet["metadata"]["name"]
    return found


def annotate(world: Any, kind: str, name: str, key: str, value: str | None) -> None:
    world.kube.patch(kind, name, {"metadata": {"annotations": {key: value}}})


def wish(world: Any, address: str) -> str | None:
    found = world.kube.get("EgressAddress", address)
    value: str | None = found["metadata"].get("annotations", {}).get(MOVE)
    return value


def events(world: Any, reason: str) -> list[str]:
    return [event["message"] for event in world.kube.list("Event") if event["reason"] == reason]


def lose(world: Any, *nodes: str) -> None:
    world.ledger.set_lost(dict.fromkeys(nodes, 1.0))


# Nodes that are gone


def test_the_addresses_of_a_lost_node_move_at_once_with_one_patch_for_each_node(ready: Any) -> None:
    before = where(ready)
    lose(ready, "node1")
    ready.run(PLACE_TASK)
    after = where(ready)
    moved = {address for address in before if before[address] != after[address]}
    assert moved == {address for address in before if before[address] == "node1"}
    assert {after[address] for address in moved} == {"node3"}
    records = [step for name in "abcd" for step in ready.ledger.history(name) if step.step is Step.MOVE]
    assert {(record.address, record.node, record.message) for record in records} == {
        (address, "node3", "from node1: its node is lost") for address in moved
    }
    assert ready.ledger.unplaced() == {}


def test_a_host_subnet_without_its_node_is_as_good_as_lost(ready: Any) -> None:
    ready.kube.delete("Node", "node2")
    ready.run(PLACE_TASK)
    assert set(where(ready).values()) == {"node1", "node3"}


def test_an_unready_node_keeps_what_it_has(ready: Any) -> None:
    before = where(ready)
    conditions = [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]
    ready.kube.patch("Node", "node1", {"status": {"conditions": conditions}}, subresource="status")
    ready.run(PLACE_TASK)
    assert where(ready) == before


def test_without_an_eligible_node_an_address_stays_and_the_reason_is_kept(ready: Any) -> None:
    before = where(ready)
    lose(ready, "node1", "node2", "node3")
    ready.run(PLACE_TASK)
    assert where(ready) == before
    assert set(ready.ledger.unplaced().values()) == {"no node is eligible: 3 lost"}
    lose(ready, "node1", "node2")
    ready.run(PLACE_TASK)
    assert set(where(ready).values()) == {"node3"}
    assert ready.ledger.unplaced() == {}


def test_what_an_admin_put_on_a_node_by_hand_stays_there(ready: Any) -> None:
    ready.net_namespace("by-hand", 77, BY_HAND)
    ready.kube.patch("HostSubnet", "node1", {"egressIPs": [*ready.hosted("node1"), BY_HAND]})
    lose(ready, "node1")
    ready.run(PLACE_TASK)
    assert ready.hosted("node1") == [BY_HAND]


def test_a_node_that_comes_back_is_not_filled_at_once_and_nothing_moves_back_and_forth(ready: Any) -> None:
    lose(ready, "node1")
    ready.run(PLACE_TASK)
    settled = where(ready)
    for lost in (["node1"], [], ["node1"], []):
        lose(ready, *lost)
        ready.run(PLACE_TASK)
        assert where(ready) == settled


# Conflicts


def interfere(world: Any, monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """The first patch of each of these HostSubnets meets a newer version. Gives the patches in their order."""
    patch, done, waiting = world.context.cluster.patch, [], set(names)

    def meddled(kind: Kind, name: str, body: Any, **options: Any) -> Any:
        if kind is Kind.HOST_SUBNET:
            done.append(name)
            if name in waiting:
                waiting.remove(name)
                annotate(world, "HostSubnet", name, "touched", "yes")
        return patch(kind, name, body, **options)

    monkeypatch.setattr(world.context.cluster, "patch", meddled)
    return done


@pytest.mark.parametrize("changed", [["node1"], ["node2"], ["node3"], ["node1", "node3"], ["node1", "node2", "node3"]])
def test_a_host_subnet_that_changed_meanwhile_loses_no_address_and_stops_no_other(
    ready: Any, monkeypatch: pytest.MonkeyPatch, changed: list[str]
) -> None:
    ready.node("node4", "192.168.1.20")
    before = where(ready)
    lose(ready, "node1", "node2")
    done = interfere(ready, monkeypatch, *changed)
    with pytest.raises(ConflictError):
        placing.run(ready.context)
    assert done[:2] == ["node1", "node2"]  # off the old one first
    assert len(done) == len(set(done))
    between = where(ready)
    stayed = {address for address, node in before.items() if node in changed}
    assert {address for address in between if between[address] in ("node1", "node2")} == stayed
    for _ in changed:  # a node may get its first patch only now
        with suppress(ConflictError):
            placing.run(ready.context)
    placing.run(ready.context)
    assert where(ready).keys() == before.keys()
    assert set(where(ready).values()) == {"node3", "node4"}


def test_a_run_that_is_killed_between_two_patches_leaves_the_address_on_no_node_for_the_next(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = where(ready)
    lose(ready, "node1")
    patch = ready.context.cluster.patch

    def killed(kind: Kind, name: str, body: Any, **options: Any) -> Any:
        if kind is Kind.HOST_SUBNET and name == "node3":
            raise KeyboardInterrupt
        return patch(kind, name, body, **options)

    monkeypatch.setattr(ready.context.cluster, "patch", killed)
    with pytest.raises(KeyboardInterrupt):
        placing.run(ready.context)
    assert set(where(ready).values()) == {"node2"}
    monkeypatch.undo()
    placing.run(ready.context)
    assert where(ready).keys() == before.keys()


# Planned moves


def drained(world: Any, *names: str) -> int:
    return sum(len(world.hosted(name)) for name in names)


@pytest.mark.parametrize(
    "leave",
    [
        lambda world: annotate(world, "Node", "node1", DRAIN, ""),
        lambda world: world.kube.patch(
            "Node", "node1", {"metadata": {"labels": {"egress.hawse.dev/egress-node": None}}}
        ),
    ],
    ids=["annotation", "label"],
)
def test_a_node_that_is_to_be_left_loses_its_addresses_one_at_a_time(ready: Any, leave: Any) -> None:
    leave(ready)
    ready.tasks.clear()
    ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 1
    assert (PLACE_TASK, ()) in ready.tasks  # for the one after it
    ready.settle()
    assert drained(ready, "node1") == 1  # the first has not arrived yet
    ready.acknowledge()
    ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 0
    assert len(where(ready)) == 4


def test_a_move_that_never_arrives_is_not_waited_for_for_ever(ready: Any) -> None:
    annotate(ready, "Node", "node1", DRAIN, "true")
    ready.run(PLACE_TASK)
    ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 1
    assert 0 < ready.ledger._redis.pttl("hawse:note:move") <= placing.ARRIVAL_SECONDS * 1000
    ready.ledger._redis.delete("hawse:note:move")  # as it is when that time is over
    time.sleep(0.02)  # the pace of moves, 10 ms here, is not what this is about
    ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 0


def test_an_annotation_that_says_false_drains_nothing(ready: Any) -> None:
    annotate(ready, "Node", "node1", DRAIN, "false")
    ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 2


def test_a_cordoned_node_keeps_what_it_has_and_gets_no_more(ready: Any) -> None:
    for name in ("node1", "node3"):
        ready.kube.patch("Node", name, {"spec": {"unschedulable": True}})
    before = where(ready)
    ready.run(PLACE_TASK)
    assert where(ready) == before
    lose(ready, "node2")
    ready.run(PLACE_TASK)
    assert where(ready) == before
    assert set(ready.ledger.unplaced().values()) == {"no node is eligible: 2 cordoned, 1 lost"}


@pytest.mark.parametrize("settings", [{"moves_per_minute": 6000, "drain_cordoned": True}])
def test_a_cordoned_node_is_drained_where_the_setting_says_so(ready: Any) -> None:
    ready.kube.patch("Node", "node1", {"spec": {"unschedulable": True}})
    ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 1


@pytest.mark.parametrize("settings", [{"moves_per_minute": 1}])
def test_no_more_moves_than_the_setting_allows(ready: Any) -> None:
    annotate(ready, "Node", "node1", DRAIN, "")
    for _ in range(3):
        ready.run(PLACE_TASK)
        ready.acknowledge()
    assert drained(ready, "node1") == 1


@pytest.mark.parametrize("settings", [{"moves_per_minute": 0}])
def test_planned_moves_can_be_turned_off(ready: Any) -> None:
    annotate(ready, "Node", "node1", DRAIN, "")
    annotate(ready, "EgressAddress", A, MOVE, "node3")
    ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 2
    assert wish(ready, A) == "node3"  # it waits
    lose(ready, "node1")
    ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 0


def test_addresses_that_cannot_leave_a_drained_node_stay(ready: Any) -> None:
    before = where(ready)
    for name in ("node1", "node2", "node3"):
        annotate(ready, "Node", name, DRAIN, "")
    ready.run(PLACE_TASK)
    assert where(ready) == before


# Requests


def test_a_requested_move_is_made_and_its_annotation_goes(ready: Any) -> None:
    source = where(ready)[A]
    annotate(ready, "EgressAddress", A, MOVE, "node3")
    ready.run(PLACE_TASK)
    assert where(ready)[A] == "node3"
    assert wish(ready, A) is None
    moves = [step for step in ready.ledger.history("a") if step.step is Step.MOVE]
    assert [(move.node, move.message) for move in moves] == [("node3", f"from {source}: somebody asked for it")]
    ready.acknowledge()
    ready.run(PLACE_TASK)
    assert where(ready)[A] == "node3"


def test_a_request_waits_for_the_one_before_it(ready: Any) -> None:
    annotate(ready, "EgressAddress", A, MOVE, "node3")
    annotate(ready, "EgressAddress", B, MOVE, "node3")
    ready.run(PLACE_TASK)
    ready.run(PLACE_TASK)
    assert [wish(ready, address) for address in (A, B)].count("node3") == 1
    ready.settle()
    ready.acknowledge()
    ready.run(PLACE_TASK)
    assert where(ready)[A] == where(ready)[B] == "node3"
    assert wish(ready, A) is wish(ready, B) is None


def test_a_request_that_cannot_be_met_is_refused_with_the_reason(ready: Any) -> None:
    before = where(ready)
    annotate(ready, "Node", "node3", DRAIN, "")
    for address, node in ((A, "node3"), (B, "nowhere"), (C, before[C])):
        annotate(ready, "EgressAddress", address, MOVE, node)
    ready.run(PLACE_TASK)
    assert where(ready) == before
    assert [wish(ready, address) for address in (A, B, C)] == [None, None, None]
    assert sorted(events(ready, "MoveRefused")) == [
        f"{A} does not move to node3: the node is not eligible: drained",
        f"{B} does not move to nowhere: the node is not eligible: without a HostSubnet",
    ]
    told = [step for step in ready.ledger.history("b") if step.step is Step.MOVE]
    assert [(step.outcome, step.address, step.node, step.message) for step in told] == [
        (Outcome.GAVE_UP, B, "nowhere", "the node is not eligible: without a HostSubnet")
    ]


def test_a_request_for_an_address_in_quarantine_ends(ready: Any) -> None:
    ready.delete("a")
    annotate(ready, "EgressAddress", A, MOVE, "node3")
    ready.reconcile()
    assert A not in where(ready)
    assert wish(ready, A) is None


# Balance


def crowd(world: Any) -> None:
    """All addresses that can be on node1 go there: eight of an admin's and the namespaces' four."""
    by_hand = [f"192.168.1.{last}" for last in range(201, 209)]
    for name in ("node2", "node3"):
        world.kube.patch("HostSubnet", name, {"egressIPs": []})
    world.kube.patch("HostSubnet", "node1", {"egressIPs": [A, B, C, D, *by_hand]})


def test_a_node_that_is_clearly_fuller_gives_addresses_away_one_at_a_time(ready: Any) -> None:
    crowd(ready)
    ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 11
    ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 11
    for _ in range(8):
        ready.acknowledge()
        ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 8
    assert len(ready.hosted("node2")) == len(ready.hosted("node3")) == 2


def test_nothing_is_balanced_while_a_node_is_lost(ready: Any) -> None:
    crowd(ready)
    lose(ready, "node3")
    ready.run(PLACE_TASK)
    assert drained(ready, "node1") == 12


# The cloud's limit


def test_the_clouds_limit_is_kept_and_one_that_cannot_be_read_is_none(ready: Any) -> None:
    key = "cloud.network.openshift.io/egress-ipconfig"
    limit = [{"interface": "eth0", "ifaddr": {"ipv4": "192.168.1.0/24"}, "capacity": {"ipv4": 1, "ipv6": 15}}]
    annotate(ready, "Node", "node3", key, json.dumps(limit))
    lose(ready, "node1")
    ready.run(PLACE_TASK)
    assert [len(ready.hosted(name)) for name in ("node2", "node3")] == [3, 1]
    annotate(ready, "Node", "node3", key, '[{"capacity": "many"}]')
    lose(ready, "node1", "node2")
    ready.run(PLACE_TASK)
    assert len(ready.hosted("node3")) == 4


# egressCIDRs


@pytest.fixture
def ranged(world: Any) -> Any:
    """Two nodes of three have egressCIDRs, and none the label."""
    for number in (1, 2, 3):
        world.node(f"node{number}", f"192.168.1.{16 + number}", label=False)
    for name in ("node1", "node2"):
        world.kube.patch("HostSubnet", name, {"egressCIDRs": ["192.168.1.192/26"]})
    return world


X, Y, Z = (f"192.168.1.{last}" for last in (200, 201, 202))


def test_an_address_of_a_net_namespace_goes_to_a_node_whose_egress_cidrs_hold_it(ranged: Any) -> None:
    ranged.net_namespace("x", 77, X, Y)
    ranged.net_namespace("y", 78, Z, "10.9.9.9")
    ranged.run(PLACE_TASK)
    assert where(ranged).keys() == {X, Y, Z}
    assert where(ranged)[X] != where(ranged)[Y]
    assert set(where(ranged).values()) == {"node1", "node2"}


def test_it_leaves_the_node_with_its_net_namespace_and_what_an_admin_hosts_stays(ranged: Any) -> None:
    ranged.net_namespace("x", 77, X)
    ranged.kube.patch("HostSubnet", "node3", {"egressIPs": [Z]})
    ranged.run(PLACE_TASK)
    assert where(ranged).keys() == {X, Z}
    ranged.kube.patch("NetNamespace", "x", {"egressIPs": []})
    ranged.run(PLACE_TASK)
    assert where(ranged) == {Z: "node3"}


def test_nothing_leaves_a_node_while_a_net_namespace_cannot_be_read(
    ranged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranged.net_namespace("x", 77, X)
    ranged.run(PLACE_TASK)
    listed = ranged.context.cluster.list

    def broken(kind: Kind, **options: Any) -> Any:
        found = listed(kind, **options)
        if kind is Kind.NET_NAMESPACE:
            return replace(found, items=tuple({**item, "netid": "seventy-seven"} for item in found.items))
        return found

    monkeypatch.setattr(ranged.context.cluster, "list", broken)
    ranged.run(PLACE_TASK)
    assert where(ranged).keys() == {X}


def test_it_moves_off_a_lost_node_to_another_with_the_cidr_and_to_no_other(ranged: Any) -> None:
    ranged.net_namespace("x", 77, X)
    ranged.run(PLACE_TASK)
    first = where(ranged)[X]
    lose(ranged, first)
    ranged.run(PLACE_TASK)
    second = where(ranged)[X]
    assert {first, second} == {"node1", "node2"}
    lose(ranged, first, second)
    ranged.run(PLACE_TASK)
    assert where(ranged)[X] == second


def test_an_admins_own_choice_comes_before_the_cidrs(ranged: Any) -> None:
    ranged.net_namespace("x", 77, X)
    ranged.run(PLACE_TASK)
    ranged.kube.patch("HostSubnet", "node3", {"egressIPs": [X]})
    ranged.run(PLACE_TASK)
    assert where(ranged) == {X: "node3"}


def test_a_pools_address_goes_where_its_pool_wants_it_whatever_cidrs_hold_it(ranged: Any) -> None:
    ranged.kube.patch("Node", "node3", {"metadata": {"labels": {"egress.hawse.dev/egress-node": ""}}})
    ranged.pool("prod", "192.168.1.200/29")
    ranged.namespace("a")
    ranged.reconcile()
    ranged.run(PLACE_TASK)
    (address,) = ranged.claims()
    assert where(ranged) == {address: "node3"}


def test_redis_away_stops_every_decision(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> dict[str, float]:
        raise TransientError("Redis is away")

    before = where(ready)
    annotate(ready, "Node", "node1", DRAIN, "")
    monkeypatch.setattr(ready.ledger, "lost", away)
    with pytest.raises(TransientError):
        placing.run(ready.context)
    assert where(ready) == before
