"""One namespace's way: claim, bind, release (DESIGN.md §2, §5)."""

import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

import pytest

from egress.adapters.ledger import request_holder
from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, SWEEP_TASK
from egress.operations import TransientError
from egress.table import NodeReport, Steering
from workers import binding, namespaces

A, B, C = "192.168.1.102", "192.168.1.103", "192.168.1.104"
RANGE = f"{A}-192.168.1.110"
POOL = "egress.hawse.dev/pool"
REQUEST = "egress.hawse.dev/request"
NETID = 1086658


def test_a_namespace_without_an_address_gets_all_of_it(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    assert world.annotation("app") == A
    assert world.claims() == {A: ("app", "Pending")}
    assert world.bound("app") == [A]
    assert world.usage() == {A: ("claimed", "ns/app")}
    net_namespace = world.kube.get("NetNamespace", "app")
    assert net_namespace["netname"] == "app"
    assert 10 <= net_namespace["netid"] <= 0xFFFFFF
    assert world.failures == []


def test_the_webhooks_annotation_becomes_a_claim(world: Any) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    address = world.reserve("app", RANGE)
    world.namespace("app", address=address)
    world.run(NAMESPACE_TASK, "app")
    assert world.claims()[address][0] == "app"
    assert world.holder(address) == ("claimed", "ns/app")


def test_twenty_at_once_get_addresses_and_netids_of_their_own(world: Any) -> None:
    world.pool("prod", "192.168.1.100-192.168.1.130")
    names = [f"app-{number}" for number in range(20)]
    for name in names:
        world.namespace(name)
    world.run("hawse.v1.reconcile")
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(lambda name: world.run(NAMESPACE_TASK, name), [*names, *names]))
    world.settle()
    assert len({world.annotation(name) for name in names} - {""}) == 20
    assert len({item["netid"] for item in world.kube.list("NetNamespace")}) == 20
    assert len(world.claims()) == 20
    assert all(world.bound(name) == [world.annotation(name)] for name in names)


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


def test_one_address_in_two_annotations_stays_with_one(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app", address=A)
    world.namespace("other", address=A)
    world.reconcile()
    assert {world.annotation("app"), world.annotation("other")} == {A, B}
    assert {address: name for address, (name, _) in world.claims().items()} == {
        world.annotation("app"): "app",
        world.annotation("other"): "other",
    }
    assert world.bound("app") == [world.annotation("app")]
    assert world.bound("other") == [world.annotation("other")]


def test_a_namespace_that_loses_one_of_two_gets_another_and_keeps_the_one(world: Any) -> None:
    world.pool("prod", RANGE, addressesPerNamespace=2)
    world.namespace("app", address=A, annotations={POOL: "prod"})
    world.run("hawse.v1.reconcile")
    world.run(NAMESPACE_TASK, "app")
    world.namespace("other", address=f"{A},{B}")
    world.reconcile()
    assert sorted(world.annotation("other").split(",")) == [B, C]
    assert world.annotation("app") == A


def test_a_namespace_that_loses_the_address_it_asked_for_says_so_and_stops(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app", address=A)
    world.run("hawse.v1.reconcile")
    world.run(NAMESPACE_TASK, "app")
    world.ledger.freed("ns/app", [ip_address(A)])  # as after a flush that forgot it
    world.namespace("other", {REQUEST: A}, address=A)
    world.run(NAMESPACE_TASK, "other")
    world.settle()
    assert world.annotation("other") == ""
    assert any(f"address {A}" in failure and "in use" in failure for failure in world.failures)
    assert {event["reason"] for event in world.kube.list("Event")} >= {"AddressLost", "AddressInUse"}


def test_everything_twice_changes_nothing(world: Any) -> None:
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18")
    for name in ("a", "b", "c"):
        world.namespace(name)
    world.delete("c")
    world.reconcile()
    world.acknowledge()
    world.acknowledge()
    versions, change = world.versions(), world.ledger.change_number()
    events = len(world.kube.list("Event"))
    for _ in range(2):
        for name in ("a", "b", "c"):
            world.run(NAMESPACE_TASK, name)
        world.run(SWEEP_TASK)
        world.reconcile()
    assert world.versions() == versions
    assert world.ledger.change_number() == change
    assert len(world.kube.list("Event")) == events
    assert world.failures == []


def test_a_second_run_neither_writes_nor_asks_for_claims(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    monkeypatch.setattr(world.context.cluster, "create", None)
    monkeypatch.setattr(world.context.cluster, "patch", None)
    world.run(NAMESPACE_TASK, "app")
    assert world.failures == []


def test_a_namespace_that_opts_out_gets_nothing(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app", {POOL: "none"})
    world.reconcile()
    assert (world.annotation("app"), world.claims(), world.bound("app")) == ("", {}, [])


def test_system_namespaces_are_untouched_whatever_they_carry(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("kube-x", address=A)
    world.namespace("app")
    world.reconcile()
    assert world.annotation("app") == A
    assert world.claims() == {A: ("app", "Pending")}


def test_a_pool_made_after_the_namespace_serves_it(world: Any) -> None:
    world.namespace("app")
    world.reconcile()
    assert world.annotation("app") == ""
    world.pool("prod", RANGE)
    world.reconcile()
    assert world.bound("app") == [A]


def test_a_binding_lost_is_put_back_even_when_its_pool_is_gone(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    world.kube.delete("EgressPool", "prod")
    world.kube.delete("NetNamespace", "app")
    world.reconcile()
    assert world.bound("app") == [A]


def test_a_claim_deleted_by_hand_is_made_again(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    world.kube.delete("EgressAddress", A)
    world.run(NAMESPACE_TASK, "app")
    assert world.claims()[A][0] == "app"


# Release


def test_a_namespace_on_its_way_out_keeps_its_address(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    world.kube.patch("Namespace", "app", {"metadata": {"finalizers": ["example.dev/wait"]}})
    world.kube.delete("Namespace", "app")
    assert world.kube.get("Namespace", "app")["metadata"]["deletionTimestamp"]
    world.run(NAMESPACE_TASK, "app")
    world.reconcile()
    assert world.claims()[A][1] != "Quarantined"
    assert world.bound("app") == [A]
    assert world.holder(A) == ("claimed", "ns/app")


def test_a_released_address_waits_in_quarantine_and_is_then_free(world: Any) -> None:
    world.pool("prod", f"{A}-{B}", quarantine="1s")
    world.node("node2", "192.168.1.18")
    world.namespace("app")
    world.reconcile()
    assert world.hosted("node2") == [A]
    world.delete("app")
    world.reconcile()
    assert world.claims() == {A: ("app", "Quarantined")}
    assert world.kube.get("NetNamespace", "app") is None
    assert world.hosted("node2") == []
    assert world.holder(A) == ("quarantined", "ns/app")
    world.run(SWEEP_TASK)
    assert world.claims() == {A: ("app", "Quarantined")}
    world.namespace("other")
    world.reconcile()
    assert world.annotation("other") == B
    world.until(lambda: world.run(SWEEP_TASK) or A not in world.claims())
    assert world.holder(A) is None
    world.namespace("third")
    world.reconcile()
    assert world.annotation("third") == A


def test_the_same_name_back_in_time_gets_the_same_address(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    world.delete("app")
    world.reconcile()
    world.namespace("other")
    world.namespace("app")
    world.reconcile()
    assert world.annotation("app") == A
    assert world.claims()[A] == ("app", "Pending")
    assert world.holder(A) == ("claimed", "ns/app")
    claim = world.kube.get("EgressAddress", A)
    assert claim["spec"]["namespace"]["uid"] == world.kube.get("Namespace", "app")["metadata"]["uid"]
    assert not claim["status"].get("quarantinedUntil")


def test_the_same_name_back_before_anybody_noticed_gets_the_same_address(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    world.delete("app")
    world.namespace("app", address=world.reserve("app", RANGE))
    world.reconcile()
    assert world.annotation("app") == A
    assert world.claims()[A] == ("app", "Pending")
    assert world.bound("app") == [A]


def test_a_former_address_of_the_name_is_not_bound_beside_the_new_one(world: Any) -> None:
    world.pool("prod", f"{A}-{B}")
    world.pool("stage", "192.168.1.200-192.168.1.210", namespaceSelector={"matchLabels": {"no": "body"}})
    world.namespace("app")
    world.reconcile()
    world.delete("app")
    world.namespace("app", {POOL: "stage"})
    world.reconcile()
    assert world.claims()[A] == ("app", "Quarantined")
    assert world.bound("app") == ["192.168.1.200"]


def test_a_former_address_goes_from_the_binding_of_a_name_that_now_opts_out(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    world.delete("app")
    world.namespace("app", {POOL: "none"})
    world.reconcile()
    assert world.claims()[A] == ("app", "Quarantined")
    assert world.bound("app") == []


def test_a_quarantine_that_ends_as_its_namespace_returns_takes_nothing_away(world: Any) -> None:
    world.pool("prod", RANGE, quarantine="0")
    world.namespace("app")
    world.reconcile()
    world.delete("app")
    world.run(NAMESPACE_TASK, "app")
    assert world.claims()[A][1] == "Quarantined"
    assert world.reserve("app", RANGE) == A  # admission, while the sweep is on its way
    world.namespace("app", address=A)
    world.run(SWEEP_TASK)
    assert world.reserve("other", RANGE) == B
    world.tasks.clear()
    world.run(NAMESPACE_TASK, "app")
    assert world.claims()[A] == ("app", "")
    assert world.holder(A) == ("claimed", "ns/app")


def test_a_quarantine_that_ends_after_a_flush_takes_nothing_from_a_namespace_that_is_back(world: Any) -> None:
    world.pool("prod", RANGE, quarantine="0")
    world.namespace("app")
    world.reconcile()
    world.delete("app")
    world.run(NAMESPACE_TASK, "app")
    world.namespace("app", address=A)
    world.ledger._redis.flushall()
    world.run(SWEEP_TASK)
    assert world.reserve("other", RANGE) == B
    world.settle()
    assert world.claims()[A] == ("app", "Pending")


def test_a_namespace_on_its_way_out_gets_no_address_any_more(world: Any) -> None:
    world.namespace("app")
    world.kube.patch("Namespace", "app", {"metadata": {"finalizers": ["example.dev/wait"]}})
    world.kube.delete("Namespace", "app")
    world.pool("prod", RANGE)
    world.reconcile()
    world.run(NAMESPACE_TASK, "app")
    assert (world.annotation("app"), world.claims()) == ("", {})


def test_an_admins_net_namespace_outlives_the_namespace(world: Any) -> None:
    world.pool("prod", RANGE)
    world.net_namespace("app", 5, "10.1.2.3")
    world.namespace("app")
    world.reconcile()
    world.delete("app")
    world.reconcile()
    assert world.bound("app") == ["10.1.2.3"]


# Placement


def test_a_burst_costs_one_patch_per_host_subnet(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.pool("prod", "192.168.1.100-192.168.1.160")
    for number in (1, 2, 3):
        world.node(f"node{number}", f"192.168.1.{16 + number}")
    names = [f"app-{number}" for number in range(50)]
    for name in names:
        world.namespace(name)
    world.run("hawse.v1.reconcile")
    for name in names:
        namespaces.converge(world.context, name)
    patched = []
    real = world.context.cluster.patch
    monkeypatch.setattr(
        world.context.cluster,
        "patch",
        lambda kind, name, *rest, **more: patched.append((kind.name, name)) or real(kind, name, *rest, **more),
    )
    world.run(PLACE_TASK)
    assert sorted(patched) == [("HOST_SUBNET", f"node{number}") for number in (1, 2, 3)]
    assert sorted(len(world.hosted(f"node{number}")) for number in (1, 2, 3)) == [16, 17, 17]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({"label": False}, "without label"),
        ({"report": False}, "has not reported yet"),
        ({"host_ip": "10.0.0.1"}, f"in a subnet without {A}"),
    ],
)
def test_what_no_node_can_host_says_why(world: Any, node: dict[str, Any], reason: str) -> None:
    world.pool("prod", RANGE)
    world.node("node2", **{"host_ip": "192.168.1.18", **node})
    world.namespace("app")
    world.reconcile()
    assert world.hosted("node2") == []
    conditions = {c["type"]: c for c in world.kube.get("EgressAddress", A)["status"]["conditions"]}
    assert conditions["Placed"]["status"] == "False"
    assert reason in conditions["Placed"]["message"]


def test_an_address_becomes_ready_once_its_node_has_said_so(world: Any) -> None:
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18")
    world.namespace("app")
    world.reconcile()
    assert world.claims()[A] == ("app", "Placed")
    world.acknowledge()
    status = world.kube.get("EgressAddress", A)["status"]
    assert (status["phase"], status["node"]) == ("Ready", "node2")
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ("Claimed", "Bound", "Placed", "Programmed", "Ready"), "True"
    )


@pytest.mark.parametrize(("before", "stays"), [("node2", "node2"), ("node1", "node1"), ("", "node1")])
def test_an_address_on_two_nodes_stays_on_the_one_it_was_on(world: Any, before: str, stays: str) -> None:
    # Two places at once, when a flush took their lock.
    world.pool("prod", RANGE)
    for name, host_ip in (("node1", "192.168.1.17"), ("node2", "192.168.1.18"), ("node3", "192.168.1.19")):
        world.node(name, host_ip)
    world.namespace("app")
    world.reconcile()
    world.kube.patch("HostSubnet", "node1", {"egressIPs": ["10.1.2.3", A]})
    world.kube.patch("HostSubnet", "node2", {"egressIPs": [A]})
    world.kube.patch("HostSubnet", "node3", {"egressIPs": [A]})
    world.kube.patch("EgressAddress", A, {"status": {"node": before}}, subresource="status")
    world.run(PUBLISH_TASK)  # it may come first
    world.run(PLACE_TASK)
    assert [node for node in ("node1", "node2", "node3") if A in world.hosted(node)] == [stays]
    assert "10.1.2.3" in world.hosted("node1")
    world.settle()
    world.acknowledge()
    assert world.claims()[A] == ("app", "Ready")


def test_an_admins_own_claim_on_two_nodes_is_left_to_the_admin(world: Any) -> None:
    world.pool("prod", RANGE)
    claim = {"pool": "prod", "namespace": {"name": "app"}, "origin": "manual"}
    world.kube.create(
        {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": {"name": A}, "spec": claim}
    )
    world.node("node1", "192.168.1.17", A)
    world.node("node2", "192.168.1.18", A)
    world.run(PLACE_TASK)
    assert (world.hosted("node1"), world.hosted("node2")) == ([A], [A])


def test_what_has_no_node_is_placed_when_a_report_says_that_it_can_be(world: Any) -> None:
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18", report=False)
    world.namespace("app")
    world.reconcile()
    assert world.hosted("node2") == []
    world.ledger.report(NodeReport("node2", 0.0, link="192.168.1.18/24", problem="BridgeMissing: br0"))
    world.run(PUBLISH_TASK)
    world.settle()
    assert world.hosted("node2") == []
    world.ledger.report(NodeReport("node2", 0.0, link="192.168.1.18/24"))
    world.run(PUBLISH_TASK)
    world.settle()
    assert world.hosted("node2") == [A]
    world.run(PUBLISH_TASK)
    assert world.tasks == []


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


# What others write


def events(world: Any, reason: str) -> int:
    return sum(event["reason"] == reason for event in world.kube.list("Event"))


def test_an_annotation_that_hawse_did_not_write_is_replaced(world: Any) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    world.kube.create(forged("app", C))
    world.reconcile()
    assert world.annotation("app") == A
    assert world.claims() == {A: ("app", "Pending")}
    assert world.usage() == {A: ("claimed", "ns/app")}
    assert events(world, "AnnotationIgnored") == 1


def test_a_forged_annotation_is_not_held_by_being_listed(world: Any) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    world.kube.create(forged("app", A))
    world.run(RECONCILE_TASK)
    assert world.usage() == {}
    assert world.reserve("other", RANGE) == A


def test_a_forged_annotation_goes_where_no_pool_serves(world: Any) -> None:
    world.pool("prod", RANGE, namespaceSelector={"matchLabels": {"no": "body"}})
    world.reconcile()
    world.kube.create(forged("app", A))
    world.reconcile()
    assert (world.annotation("app"), world.claims()) == ("", {})


def test_a_claim_deleted_by_hand_is_made_again_even_when_the_index_has_forgotten_it(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("zero")
    world.namespace("app", address=C)
    world.reconcile()
    assert world.bound("app") == [C]
    world.kube.delete("EgressAddress", C)
    world.run(RECONCILE_TASK)
    world.settle()
    assert world.claims()[C][0] == "app"
    assert world.annotation("app") == C
    assert world.holder(C) == ("claimed", "ns/app")


def test_what_an_admin_assigned_by_hand_is_not_given_out(world: Any) -> None:
    world.pool("prod", RANGE)
    world.net_namespace("byhand", 77, A)
    world.node("node2", "192.168.1.18", A, B)
    world.namespace("app")
    world.reconcile()
    assert world.annotation("app") == C
    assert world.holder(A) == ("claimed", "manual/byhand")
    assert world.holder(B) == ("claimed", "manual/node2")
    world.kube.patch("HostSubnet", "node2", {"egressIPs": [A]})
    world.reconcile()
    assert world.holder(B) is None


def test_a_complaint_is_made_once(world: Any) -> None:
    world.pool("prod", A)
    world.namespace("first")
    world.reconcile()
    for name in ("a", "b"):
        world.namespace(name)
    for _ in range(3):
        world.run(NAMESPACE_TASK, "a")
        world.run(NAMESPACE_TASK, "b")
    assert events(world, "PoolExhausted") == 2


def test_a_reconcile_waits_for_the_one_that_runs(world: Any) -> None:
    world.pool("prod", RANGE)
    with world.ledger.exclusively("reconcile"):
        world.run(RECONCILE_TASK)
        assert world.tasks == [(RECONCILE_TASK, ())]
        assert not world.ledger.is_ready()
    world.settle()
    assert world.ledger.is_ready()


def forged(name: str, address: str) -> dict[str, Any]:
    """A namespace as its user may write it while the webhook is away."""
    annotations = {"egress.hawse.dev/addresses": address}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}}


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


def test_an_address_of_a_request_without_a_name_is_only_that_requests(world: Any) -> None:
    """While the webhook is away a tenant writes what another's request was promised."""
    world.pool("prod", RANGE)
    world.run(RECONCILE_TASK)
    operation = "705ab4f5-6393-11e8-b7cc-42010a800002"
    world.ledger.reserve(request_holder(operation), 1, [], [ip_address(A)])
    world.kube.create(forged("thief", A))
    world.reconcile()
    assert world.annotation("thief") == B
    owner = forged("team-x7x", A)
    owner["metadata"]["annotations"]["egress.hawse.dev/operation"] = operation
    world.kube.create(owner)
    world.reconcile()
    assert world.annotation("team-x7x") == A
    assert world.claims()[A][0] == "team-x7x"


def test_a_claim_made_by_hand_is_released_with_its_namespace(world: Any) -> None:
    world.pool("prod", RANGE)
    made = world.namespace("app", {POOL: "none"})
    spec = {"pool": "prod", "namespace": {"name": "app", "uid": made["metadata"]["uid"]}, "origin": "manual"}
    head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": {"name": A}}
    world.kube.create(head | {"spec": spec})
    world.reconcile()
    world.delete("app")
    world.reconcile()
    assert world.claims()[A] == ("app", "Quarantined")


def test_what_is_asked_for_later_keeps_nobody_quiet_now(world: Any) -> None:
    world.context.ask(PUBLISH_TASK, delay=5)
    world.context.ask(PUBLISH_TASK, delay=5)
    assert world.tasks == [(PUBLISH_TASK, ())]
    world.context.ask(PUBLISH_TASK)
    world.context.ask(PUBLISH_TASK)
    assert world.tasks == [(PUBLISH_TASK, ())] * 2


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
