"""Pools in use: how full they say they are, and what becomes of addresses when a pool is edited or deleted."""

from ipaddress import ip_address
from typing import Any

import pytest

from egress.adapters.ledger import Offer
from egress.messages import NAMESPACE_TASK, PUBLISH_TASK, RECONCILE_TASK, SWEEP_TASK
from egress.table import NodeReport
from workers.reconciling import gateways, other_ips

A, B, C = "192.168.1.102", "192.168.1.103", "192.168.1.104"
RANGE = f"{A}-192.168.1.110"
POOL = "egress.hawse.dev/pool"
FINALIZER = "egress.hawse.dev/in-use"


def status(world: Any, pool: str = "prod") -> tuple[int, int, int, int]:
    """Capacity, allocated, quarantined and free, which must add up."""
    found = world.kube.get("EgressPool", pool)["status"]
    assert found["allocated"] + found["quarantined"] + found["free"] == found["capacity"]
    return tuple(found[key] for key in ("capacity", "allocated", "quarantined", "free"))  # type: ignore[return-value]


def conditions(world: Any, kind: str, name: str) -> dict[str, tuple[str, str, str]]:
    found = world.kube.get(kind, name).get("status", {}).get("conditions", [])
    return {item["type"]: (item["status"], item["reason"], item["message"]) for item in found}


def edit(world: Any, **spec: object) -> None:
    world.kube.patch("EgressPool", "prod", {"spec": spec})


# How full


def test_the_status_follows_every_step_of_an_assignment(world: Any) -> None:
    world.pool("prod", RANGE, excluded=[C], quarantine="0")
    world.reconcile()
    assert status(world) == (8, 0, 0, 8)
    world.namespace("app", address=world.reserve("app", RANGE))
    world.run(PUBLISH_TASK)
    assert status(world) == (8, 1, 0, 7), "what is promised is not free"
    world.settle()
    world.run(NAMESPACE_TASK, "app")
    world.settle()
    assert status(world) == (8, 1, 0, 7)
    world.delete("app")
    world.run(NAMESPACE_TASK, "app")
    world.settle()
    assert status(world) == (8, 0, 1, 7)
    world.run(SWEEP_TASK)
    world.settle()
    assert status(world) == (8, 0, 0, 8)


def test_what_is_withheld_from_pools_is_no_capacity(world: Any) -> None:
    world.pool("prod", "192.168.1.96/29")
    world.node("node2", "192.168.1.98")
    world.reconcile()
    assert status(world) == (5, 0, 0, 5)


def test_a_status_that_is_right_is_not_written(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    version = world.kube.get("EgressPool", "prod")["metadata"]["resourceVersion"]
    for _ in range(3):
        world.reconcile()
    assert world.kube.get("EgressPool", "prod")["metadata"]["resourceVersion"] == version


@pytest.mark.parametrize("settings", [{"status_interval": 5.0}])
def test_a_burst_writes_a_status_at_most_once_a_second_and_looks_again(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    written = []
    real = world.context.cluster.patch
    monkeypatch.setattr(
        world.context.cluster,
        "patch",
        lambda kind, name, *rest, **more: written.append(kind.name) or real(kind, name, *rest, **more),
    )
    world.ledger._redis.set("hawse:pending:census", "1", ex=100)  # somebody has counted just now
    for name in ("a", "b", "c"):
        world.namespace(name)
        world.run(RECONCILE_TASK)
    for name in ("a", "b", "c"):
        world.run(NAMESPACE_TASK, name)
    world.tasks.clear()
    world.run(PUBLISH_TASK)
    assert "EGRESS_POOL" not in written
    assert world.tasks == [(PUBLISH_TASK, ())], "the last change is not left out"
    world.ledger.done_with("census")
    world.settle()
    assert written.count("EGRESS_POOL") == 1
    assert status(world)[1] == 3


def test_the_pools_of_a_burst_are_each_counted_for_themselves(world: Any) -> None:
    world.pool("prod", f"{A}-{B}", "192.168.1.120", namespaceSelector={"matchLabels": {"no": "body"}})
    world.pool("rest", "192.168.1.200/29")
    for number in range(4):
        world.namespace(f"rest-{number}")
    for number in range(3):
        world.namespace(f"prod-{number}", {POOL: "prod"})
    world.reconcile()
    assert status(world, "rest") == (6, 4, 0, 2)
    assert status(world) == (3, 3, 0, 0)
    assert {world.annotation(f"prod-{number}") for number in range(3)} == {A, B, "192.168.1.120"}


# Several addresses for one namespace


def test_eight_addresses_for_a_namespace(world: Any) -> None:
    world.pool("prod", RANGE, addressesPerNamespace=8)
    for number in range(8):
        world.node(f"node{number}", f"192.168.1.{11 + number}")
    world.namespace("app")
    world.reconcile()
    world.acknowledge()
    addresses = world.annotation("app").split(",")
    assert addresses == [f"192.168.1.{last}" for last in range(102, 110)]
    assert world.bound("app") == addresses
    assert world.claims() == dict.fromkeys(addresses, ("app", "Ready"))
    assert [len(world.hosted(f"node{number}")) for number in range(8)] == [1] * 8
    assert status(world) == (9, 8, 0, 1)
    world.delete("app")
    world.reconcile()
    world.namespace("app")
    world.reconcile()
    assert set(world.annotation("app").split(",")) == set(addresses)


def test_a_changed_number_of_addresses_is_for_new_namespaces(world: Any) -> None:
    world.pool("prod", RANGE, addressesPerNamespace=2)
    world.namespace("app")
    world.reconcile()
    before = world.versions()
    for number in (1, 3):
        edit(world, addressesPerNamespace=number)
        world.reconcile()
        assert world.annotation("app") == f"{A},{B}"
        after = world.versions()
        assert {key: after[key] for key in before if key[0] != "EgressPool"} == {
            key: version for key, version in before.items() if key[0] != "EgressPool"
        }
    world.namespace("next")
    world.reconcile()
    assert len(world.annotation("next").split(",")) == 3


# Who gets nothing


def test_gateways_are_no_pools_to_give(world: Any) -> None:
    world.pool("prod", f"{A}-{B}")
    world.reconcile()
    offer = world.ledger.offer()
    world.ledger.set_offer(Offer(offer.pools, offer.node_ips, frozenset([ip_address(A)])))
    assert ip_address(A) in world.ledger.offer().gateways
    world.namespace("app")
    world.run(NAMESPACE_TASK, "app")
    assert world.annotation("app") == B
    world.run(PUBLISH_TASK)
    assert status(world) == (1, 1, 0, 0)


def test_gateways_come_from_what_the_nodes_report() -> None:
    found = NodeReport("node1", 0.0, gateways=(ip_address("192.168.1.1"),))
    assert gateways([found, NodeReport("node2", 0.0)]) == {ip_address("192.168.1.1")}


def test_the_nodes_own_ips_of_the_other_ip_version_come_from_their_reports() -> None:
    found = NodeReport("node1", 0.0, other_links=("2001:db8::17/64", "fd00::17/48"))
    assert other_ips([found, NodeReport("node2", 0.0)]) == {ip_address("2001:db8::17"), ip_address("fd00::17")}


def test_a_full_pool_that_admits_gives_the_address_when_one_is_free(world: Any) -> None:
    world.pool("prod", A, onExhausted="admit", quarantine="0")
    world.namespace("first")
    world.reconcile()
    world.namespace("second")
    world.reconcile()
    assert world.annotation("second") == ""
    assert any("pool prod has no free address: 1 of 1 in use" in failure for failure in world.failures)
    world.delete("first")
    world.run(NAMESPACE_TASK, "first")
    world.settle()
    world.run(SWEEP_TASK)
    world.settle()
    world.reconcile()
    assert world.annotation("second") == A


# A pool that is edited while in use


def test_an_address_that_the_pool_lost_stays_and_is_reported(world: Any) -> None:
    world.pool("prod", RANGE, quarantine="0")
    world.node("node2", "192.168.1.18")
    world.namespace("app")
    world.reconcile()
    world.acknowledge()
    edit(world, cidrs=[f"{B}-{C}"])
    world.reconcile()
    assert world.claims() == {A: ("app", "Ready")}
    assert world.bound("app") == [A]
    state, reason, message = conditions(world, "EgressAddress", A)["PoolMismatch"]
    assert (state, reason) == ("True", "NotCovered")
    assert message == f"EgressPool prod has {A} no more: {A} stays with app"
    assert conditions(world, "EgressPool", "prod")["InUseOutside"][2].startswith(f"{A}:")
    assert status(world) == (2, 0, 0, 2)
    world.delete("app")
    world.run(NAMESPACE_TASK, "app")
    world.settle()
    world.run(SWEEP_TASK)
    world.namespace("other")
    world.reconcile()
    assert world.annotation("other") == B
    assert "InUseOutside" not in conditions(world, "EgressPool", "prod")


def test_an_address_that_fits_again_says_nothing_more(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    for cidr in (B, RANGE):
        edit(world, cidrs=[cidr])
        world.reconcile()
        assert ("PoolMismatch" in conditions(world, "EgressAddress", A)) == (cidr == B)
    edit(world, excluded=[A])
    world.reconcile()
    assert conditions(world, "EgressAddress", A)["PoolMismatch"][1] == "NotCovered"
    assert conditions(world, "EgressAddress", A)["Bound"][0] == "True"


def test_a_pool_that_cannot_be_read_says_so_and_stops_no_other(world: Any) -> None:
    world.pool("bad", "10.0.0.1-10.0.0.9", "10.0.0.5", namespaceSelector={"matchLabels": {"no": "body"}})
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    assert conditions(world, "EgressPool", "bad")["Valid"][:2] == ("False", "Unreadable")
    assert "$.spec.cidrs[1]" in conditions(world, "EgressPool", "bad")["Valid"][2]
    assert "capacity" not in world.kube.get("EgressPool", "bad")["status"]
    assert status(world) == (9, 1, 0, 8)
    world.kube.patch("EgressPool", "bad", {"spec": {"cidrs": ["10.0.0.5"]}})
    world.reconcile()
    assert status(world, "bad") == (1, 0, 0, 1)
    assert conditions(world, "EgressPool", "bad") == {"Valid": ("True", "Valid", "")}


def test_pools_that_overlap_say_so_and_give_nothing_twice(world: Any) -> None:
    world.pool("prod", f"{A}-{B}")
    world.pool("two", f"{B}-{C}", namespaceSelector={"matchLabels": {"no": "body"}})
    world.namespace("app", {POOL: "two"})
    for name in ("x", "y"):
        world.namespace(name)
    world.reconcile()
    assert conditions(world, "EgressPool", "two")["Overlapping"][2] == f"{B} in prod too"
    claimed = [name for name, _ in world.claims().values()]
    assert len(claimed) == len(set(claimed)) == len(world.claims())


# A pool that is deleted while in use


def test_a_pool_in_use_waits_and_gives_nothing_more(world: Any) -> None:
    world.pool("prod", RANGE, quarantine="0")
    world.node("node2", "192.168.1.18")
    world.namespace("app")
    world.reconcile()
    assert world.kube.get("EgressPool", "prod")["metadata"]["finalizers"] == [FINALIZER]
    world.acknowledge()
    world.kube.delete("EgressPool", "prod")
    world.namespace("late")
    world.reconcile()
    assert world.annotation("late") == ""
    assert conditions(world, "EgressPool", "prod")["Deleting"][1] == "InUse"
    assert A in conditions(world, "EgressPool", "prod")["Deleting"][2]
    assert conditions(world, "EgressAddress", A)["PoolMismatch"][1] == "PoolDeleting"
    assert world.claims()[A] == ("app", "Ready")
    # An address of it that loses its node gets another.
    world.kube.patch("HostSubnet", "node2", {"egressIPs": []})
    world.reconcile()
    assert world.hosted("node2") == [A]
    world.delete("app")
    world.run(NAMESPACE_TASK, "app")
    world.settle()
    assert world.kube.get("EgressPool", "prod") is not None, "the address is in quarantine"
    world.run(SWEEP_TASK)
    world.settle()
    assert world.claims() == {}
    assert world.kube.get("EgressPool", "prod") is None


def test_a_pool_that_nobody_uses_goes_at_once(world: Any) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    world.kube.delete("EgressPool", "prod")
    world.reconcile()
    assert world.kube.get("EgressPool", "prod") is None


def test_a_pool_waits_for_what_it_has_promised(world: Any) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    address = world.reserve("app", RANGE)
    world.kube.delete("EgressPool", "prod")
    world.reconcile()
    assert address in conditions(world, "EgressPool", "prod")["Deleting"][2]
    world.namespace("app", address=address)
    world.run(NAMESPACE_TASK, "app")
    assert world.claims()[address][0] == "app"
    assert world.kube.get("EgressAddress", address)["spec"]["pool"] == "prod"


def test_a_pool_does_not_go_while_admission_may_still_offer_it(world: Any) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    world.kube.delete("EgressPool", "prod")
    world.run(PUBLISH_TASK)
    assert world.kube.get("EgressPool", "prod") is not None
    world.reconcile()
    assert world.kube.get("EgressPool", "prod") is None


def test_a_finalizer_of_somebody_elses_stays(world: Any) -> None:
    world.pool("prod", RANGE)
    world.kube.patch("EgressPool", "prod", {"metadata": {"finalizers": ["example.dev/theirs"]}})
    world.reconcile()
    assert set(world.kube.get("EgressPool", "prod")["metadata"]["finalizers"]) == {"example.dev/theirs", FINALIZER}
    world.kube.delete("EgressPool", "prod")
    world.reconcile()
    assert world.kube.get("EgressPool", "prod")["metadata"]["finalizers"] == ["example.dev/theirs"]


def test_a_pool_that_was_torn_away_leaves_its_addresses_working(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    world.kube.delete("EgressPool", "prod")
    world.kube.patch("EgressPool", "prod", {"metadata": {"finalizers": None}})
    world.reconcile()
    assert world.bound("app") == [A]
    assert conditions(world, "EgressAddress", A)["PoolMismatch"][1] == "PoolGone"
    world.pool("prod", RANGE)
    world.reconcile()
    assert "PoolMismatch" not in conditions(world, "EgressAddress", A)


def test_after_a_flush_quarantined_addresses_still_keep_their_pool(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    world.delete("app")
    world.reconcile()
    world.kube.delete("EgressPool", "prod")
    world.ledger._redis.flushall()
    world.tasks.clear()
    world.run(SWEEP_TASK)
    world.settle()
    assert status(world) == (9, 0, 1, 8)
    assert A in conditions(world, "EgressPool", "prod")["Deleting"][2]


def test_an_address_that_its_pool_excludes_before_it_is_claimed_is_the_namespaces_all_the_same(world: Any) -> None:
    world.pool("prod", RANGE, addressesPerNamespace=2)
    world.reconcile()
    world.namespace("app", address=f"{A},{B}")
    edit(world, excluded=[B])
    world.reconcile()
    claims = world.claims()
    assert {claims[A][0], claims[B][0]} == {"app"}
    assert world.bound("app") == [A, B]
    world.reconcile()
    assert conditions(world, "EgressAddress", B)["PoolMismatch"][1] == "NotCovered"
