"""One namespace's way: claim, bind, release (DESIGN.md §2, §5)."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from egress.messages import NAMESPACE_TASK, PLACE_TASK, SWEEP_TASK
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
    world.namespace("other", {REQUEST: A}, address=A)
    world.reconcile()
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
