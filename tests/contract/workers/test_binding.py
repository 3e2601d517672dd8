"""The binding of a namespace, its NetNamespace: made, mended, and not before every node drops its NetID."""

import time
from dataclasses import replace
from typing import Any

import pytest

from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, SWEEP_TASK
from egress.operations import Step, TransientError
from egress.table import NodeReport, Steering
from workers import binding, namespaces

A = "192.168.1.102"
RANGE = f"{A}-192.168.1.110"
NETID = 1086658


def test_an_existing_net_namespace_is_bound_and_an_admins_addresses_stay(world: Any) -> None:
    world.pool("prod", RANGE)
    world.net_namespace("app", 1086658, "10.1.2.3")
    world.namespace("app")
    world.reconcile()
    assert world.bound("app") == ["10.1.2.3", A]
    assert world.kube.get("NetNamespace", "app")["netid"] == 1086658


def test_netid_0_is_refused_with_a_reason(world: Any) -> None:
    world.pool("prod", RANGE)
    world.net_namespace("app", 0)
    world.namespace("app")
    world.reconcile()
    assert world.bound("app") == []
    assert any("NetID 0" in failure for failure in world.failures)


def test_a_net_namespace_made_global_lets_go_of_an_earlier_namespaces_address(world: Any) -> None:
    world.pool("prod", RANGE, quarantine="0s")
    world.pool("other", "192.168.1.200", namespaceSelector={"matchLabels": {"pool": "other"}})
    world.namespace("app")
    world.reconcile()
    assert world.bound("app") == [A]
    world.delete("app")
    world.namespace("app", {"egress.hawse.dev/pool": "other"})
    world.kube.patch("NetNamespace", "app", {"netid": 0})
    world.reconcile()
    assert world.bound("app") == []
    world.run(SWEEP_TASK)
    world.settle()
    assert A not in world.claims()


def test_binding_is_conditional(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.pool("prod", RANGE)
    world.net_namespace("app", 5)
    world.namespace("app")
    world.run("hawse.v1.reconcile")
    read = world.context.cluster.get

    def get_and_let_an_admin_in(kind: Any, name: str) -> Any:
        answer = read(kind, name)
        if kind.name == "NET_NAMESPACE":
            monkeypatch.undo()
            world.kube.patch("NetNamespace", "app", {"egressIPs": ["10.1.2.3"]})
        return answer

    monkeypatch.setattr(world.context.cluster, "get", get_and_let_an_admin_in)
    world.run(NAMESPACE_TASK, "app")
    assert world.bound("app") == ["10.1.2.3"]
    world.settle()
    assert world.bound("app") == ["10.1.2.3", A]


# Bindings that somebody takes away


@pytest.fixture
def flowing(world: Any) -> Any:
    """A namespace with a NetNamespace that is not Hawse's, whose traffic leaves by node2."""
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18")
    world.net_namespace("app", NETID)
    world.namespace("app")
    world.reconcile()
    world.acknowledge()
    assert world.claims()[A] == ("app", "Ready")
    return world


def row(world: Any, netid: int) -> Steering | None:
    found: Steering | None = world.ledger.read_table().rows.get(netid)
    return found


def test_an_emptied_net_namespace_opens_nothing(flowing: Any) -> None:
    before = row(flowing, NETID)
    assert before is not None
    assert before.hops[0].acknowledged
    flowing.kube.patch("NetNamespace", "app", {"egressIPs": []})
    flowing.run(PUBLISH_TASK)
    assert row(flowing, NETID) == before
    bound = {c["type"]: c["status"] for c in flowing.kube.get("EgressAddress", A)["status"]["conditions"]}["Bound"]
    assert bound == "False"
    flowing.reconcile()
    assert flowing.bound("app") == [A]
    assert row(flowing, NETID) == before


def test_a_deleted_net_namespace_leaves_a_drop_and_comes_back_with_its_netid(flowing: Any) -> None:
    flowing.kube.delete("NetNamespace", "app")
    flowing.run(PUBLISH_TASK)
    assert row(flowing, NETID) == Steering(NETID, "app")
    flowing.run(PUBLISH_TASK)
    assert row(flowing, NETID) == Steering(NETID, "app")
    flowing.reconcile()
    assert flowing.kube.get("NetNamespace", "app")["netid"] == NETID
    flowing.acknowledge()
    assert flowing.claims()[A] == ("app", "Ready")


def test_a_netid_that_somebody_else_has_by_now_is_not_taken(flowing: Any) -> None:
    flowing.kube.delete("NetNamespace", "app")
    flowing.run(PUBLISH_TASK)
    flowing.net_namespace("other", NETID)
    flowing.run(PUBLISH_TASK)
    assert row(flowing, NETID) is None
    flowing.reconcile()
    assert flowing.kube.get("NetNamespace", "app")["netid"] != NETID


def test_the_drop_of_a_deleted_net_namespace_ends_with_the_claim(flowing: Any) -> None:
    flowing.kube.delete("NetNamespace", "app")
    flowing.run(PUBLISH_TASK)
    flowing.delete("app")
    flowing.reconcile()
    assert flowing.claims()[A] == ("app", "Quarantined")
    assert row(flowing, NETID) is None


def test_a_netid_that_changes_stays_dropped_until_the_address_is_given_up(flowing: Any) -> None:
    flowing.kube.patch("NetNamespace", "app", {"netid": 77})
    flowing.run(PUBLISH_TASK)
    assert row(flowing, NETID) == Steering(NETID, "app", former=1)
    flowing.acknowledge()
    assert row(flowing, NETID) == Steering(NETID, "app", former=1)
    assert flowing.claims()[A] == ("app", "Ready")
    flowing.net_namespace("other", NETID)
    flowing.run(PUBLISH_TASK)
    assert row(flowing, NETID) is None, "it is somebody else's now"
    flowing.kube.patch("NetNamespace", "app", {"netid": 78})
    flowing.run(PUBLISH_TASK)
    assert row(flowing, 77) == Steering(77, "app", former=1)
    flowing.delete("app")
    flowing.reconcile()
    assert flowing.ledger.read_table().rows == {}


@pytest.mark.parametrize("hawses_own", [True, False])
def test_a_release_that_is_cut_short_is_finished_by_the_reconcile(
    world: Any, hawses_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pool("prod", RANGE, quarantine="0")
    world.node("node2", "192.168.1.18")
    if not hawses_own:
        world.net_namespace("app", NETID)
    world.namespace("app")
    world.reconcile()
    world.delete("app")

    def cut(*_: object) -> None:
        raise TransientError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(binding, "end", cut)
        world.run(NAMESPACE_TASK, "app")
    world.tasks.clear()
    assert world.claims()[A][1] == "Quarantined"
    assert world.bound("app") == [A]
    world.run(SWEEP_TASK)
    assert A in world.claims()  # it is not over while something has the address
    world.tasks.clear()
    world.ledger.done_with(f"{NAMESPACE_TASK}:app")
    world.ledger.done_with(PLACE_TASK)
    world.reconcile()
    assert world.bound("app") == []
    assert (world.kube.get("NetNamespace", "app") is None) == hawses_own
    world.run(SWEEP_TASK)
    assert A not in world.claims()


def test_a_quarantine_does_not_end_while_a_node_has_the_address(world: Any) -> None:
    world.pool("prod", RANGE, quarantine="0")
    world.node("node2", "192.168.1.18")
    world.namespace("app")
    world.reconcile()
    world.delete("app")
    world.run(NAMESPACE_TASK, "app")
    world.tasks.clear()
    world.ledger.done_with(PLACE_TASK)
    assert world.hosted("node2") == [A]
    world.run(SWEEP_TASK)
    assert world.claims()[A][1] == "Quarantined"
    assert world.holder(A) == ("quarantined", "ns/app")
    world.settle()
    assert world.hosted("node2") == []
    world.run(SWEEP_TASK)
    assert world.claims() == {}


# A NetID is dropped before it is used


def heard(world: Any, node: str, *, applied: bool) -> None:
    """What a living runner says, with or without the last change."""
    table = world.ledger.read_table()
    change = table.change if applied else max(0, table.change - 1)
    world.ledger.report(NodeReport(node, world.ledger.now(), table.epoch, change, "192.168.1.18/24", "eth0"))


def netid_promised(world: Any) -> int:
    netid: int = world.ledger.promised_netids(["app"])["app"]
    return netid


WAITS = [{"fence_wait": 10.0}]


@pytest.fixture
def fenced(world: Any) -> Any:
    """A namespace with a claim, whose NetNamespace waits for the nodes."""
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18")
    world.node("node3", "192.168.1.19", report=False)
    world.run(PUBLISH_TASK)
    world.ledger._redis.set("hawse:epoch-at", 0)  # long ago: node3 never had a runner
    heard(world, "node2", applied=True)
    world.run(RECONCILE_TASK)
    world.tasks.clear()
    world.namespace("app", address=A)
    world.run(NAMESPACE_TASK, "app")
    assert world.kube.get("NetNamespace", "app") is None
    assert world.failures == []
    assert world.claims()[A][0] == "app"
    return world


@pytest.mark.parametrize("settings", WAITS)
def test_what_is_worked_on_together_waits_for_no_node_and_asks_at_the_end(
    fenced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "_is_soon_dropped", lambda *_: pytest.fail("it waits for what is not asked for yet"))
    fenced.namespace("other", address="192.168.1.103")
    fenced.tasks.clear()
    fenced.ledger.done_with(PUBLISH_TASK, PLACE_TASK)
    context = replace(fenced.context, patience=60.0)
    with context.gathering() as together:
        namespaces.converge(together, "app")
        namespaces.converge(together, "other")
        assert fenced.tasks == []
        assert context.ledger.history("other") == ()
    assert fenced.tasks == [(PUBLISH_TASK, ()), (PLACE_TASK, ())]
    assert [step.step for step in context.ledger.history("other")] == [Step.CLAIM]


@pytest.mark.parametrize("settings", WAITS)
def test_a_net_namespace_is_made_once_the_nodes_drop_its_netid(fenced: Any) -> None:
    fenced.tasks.clear()
    fenced.run(PUBLISH_TASK)
    netid = netid_promised(fenced)
    assert row(fenced, netid) == Steering(netid, "app")
    heard(fenced, "node2", applied=False)
    fenced.run(NAMESPACE_TASK, "app")
    assert fenced.kube.get("NetNamespace", "app") is None
    fenced.tasks.clear()
    fenced.ledger.done_with(f"{NAMESPACE_TASK}:app")
    heard(fenced, "node2", applied=True)
    fenced.run(PUBLISH_TASK)
    assert (NAMESPACE_TASK, ("app",)) in fenced.tasks, "the publishing that saw the node's word goes on with it"
    fenced.run(NAMESPACE_TASK, "app")
    made = fenced.kube.get("NetNamespace", "app")
    assert (made["netid"], made["egressIPs"]) == (netid, [A])
    fenced.run(PUBLISH_TASK)
    assert row(fenced, netid) is not None


@pytest.mark.parametrize("settings", [{"fence_wait": 0.2}])
def test_a_node_that_lives_and_never_drops_does_not_keep_a_namespace_without_network(fenced: Any) -> None:
    time.sleep(0.3)
    fenced.run(NAMESPACE_TASK, "app")
    assert fenced.bound("app") == [A]


@pytest.mark.parametrize("settings", [{"fence_wait": 0.2}])
def test_a_promised_netid_that_somebody_else_has_meanwhile_is_not_used(fenced: Any) -> None:
    netid = netid_promised(fenced)
    fenced.net_namespace("other", netid)
    fenced.run(PUBLISH_TASK)
    heard(fenced, "node2", applied=True)
    time.sleep(0.3)
    fenced.tasks.clear()
    fenced.run(NAMESPACE_TASK, "app")
    assert fenced.kube.get("NetNamespace", "app") is None
    fenced.run(NAMESPACE_TASK, "app")
    assert netid_promised(fenced) != netid


@pytest.mark.parametrize("settings", WAITS)
def test_a_namespace_that_goes_while_it_waits_leaves_no_drop_and_no_netid(fenced: Any) -> None:
    fenced.run(PUBLISH_TASK)
    netid = netid_promised(fenced)
    fenced.tasks.clear()
    fenced.delete("app")
    fenced.run(NAMESPACE_TASK, "app")
    fenced.run(PUBLISH_TASK)
    assert row(fenced, netid) is None
    assert fenced.ledger.promised_netids(["app"]) == {}
    assert fenced.claims()[A] == ("app", "Quarantined")
    # The next of that name waits anew.
    fenced.namespace("app", address=A)
    fenced.run(NAMESPACE_TASK, "app")
    assert fenced.claims()[A][1] != "Quarantined"
    assert fenced.kube.get("NetNamespace", "app") is None


@pytest.mark.parametrize("settings", WAITS)
def test_what_a_release_that_was_cut_short_left_opens_nothing(fenced: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The NetID is dropped no more, but all that says so is still there."""
    fenced.run(PUBLISH_TASK)
    heard(fenced, "node2", applied=True)
    fenced.run(PUBLISH_TASK)
    fenced.run(NAMESPACE_TASK, "app")
    assert fenced.bound("app") == [A]
    fenced.delete("app")
    with monkeypatch.context() as patched:
        patched.setattr(fenced.ledger.__class__, "return_netid", lambda *_: None)
        fenced.run(NAMESPACE_TASK, "app")
    fenced.run(PUBLISH_TASK)
    heard(fenced, "node2", applied=True)
    assert fenced.ledger.read_table().rows == {}
    fenced.namespace("app", address=A)
    fenced.run(NAMESPACE_TASK, "app")
    assert fenced.kube.get("NetNamespace", "app") is None


def test_a_promised_netid_that_somebody_else_has_by_now_is_not_taken(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    netid = world.kube.get("NetNamespace", "app")["netid"]
    world.run(RECONCILE_TASK)
    world.kube.delete("NetNamespace", "app")
    world.net_namespace("other", netid)
    world.run(NAMESPACE_TASK, "app")
    assert world.failures == []
    assert world.kube.get("NetNamespace", "app")["netid"] != netid


def test_a_row_names_the_admission_that_it_came_from(world: Any) -> None:
    operation = "705ab4f5-6393-11e8-b7cc-42010a800002"
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18")
    world.net_namespace("app", NETID)
    world.namespace("app", {"egress.hawse.dev/operation": operation})
    world.reconcile()
    found = row(world, NETID)
    assert found is not None
    assert found.operation == operation
    world.acknowledge()
    assert row(world, NETID).operation == operation  # type: ignore[union-attr]
