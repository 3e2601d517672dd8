"""One namespace's way: claim, bind, release (DESIGN.md §2, §5)."""

import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

import pytest

from egress.adapters import manifests
from egress.adapters.ledger import request_holder
from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, SWEEP_TASK
from egress.table import NodeReport
from workers import namespaces

A, B, C = "192.168.1.102", "192.168.1.103", "192.168.1.104"
RANGE = f"{A}-192.168.1.110"
POOL = "egress.hawse.dev/pool"
REQUEST = "egress.hawse.dev/request"


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
    world.pool("prod", f"{A}-{B}", quarantine="60s")
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
    over = {"quarantinedUntil": manifests.rfc3339(time.time() - 1)}
    world.kube.patch("EgressAddress", A, {"status": over}, subresource="status")
    world.run(SWEEP_TASK)
    assert A not in world.claims()
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
    assert world.holder(B) == ("claimed", "manual/node/node2")
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


def test_an_annotation_of_thousands_of_addresses_costs_no_look_at_each(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    invented = ",".join(f"10.9.{number // 250}.{number % 250}" for number in range(2000))
    world.namespace("app", {"egress.hawse.dev/addresses": invented})
    real, looks = world.context.cluster.get, []
    monkeypatch.setattr(world.context.cluster, "get", lambda *what, **how: looks.append(what) or real(*what, **how))
    world.run(NAMESPACE_TASK, "app")
    assert world.annotation("app") == A
    assert len(looks) < 10


def test_a_namespace_named_like_a_node_does_not_get_what_is_only_on_that_node(world: Any) -> None:
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18", B)
    world.reconcile()
    world.namespace("node2", {"egress.hawse.dev/addresses": B})  # while the webhook is away
    world.run(NAMESPACE_TASK, "node2")
    assert world.annotation("node2") == A
