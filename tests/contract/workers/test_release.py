"""A namespace that lives gives its addresses back: by its own wish, or by its pool's."""

from typing import Any

import pytest

from egress.adapters.ledger import Ledger
from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, SWEEP_TASK
from egress.operations import TransientError
from workers import binding, releasing

A, B = "192.168.1.102", "192.168.1.103"
RANGE = f"{A}-192.168.1.110"
OTHERS = "192.168.1.200-192.168.1.210"
POOL = "egress.hawse.dev/pool"
NETID = 1086658
PROD = {"matchLabels": {"env": "prod"}}


def wish(world: Any, pool: str | None) -> None:
    world.kube.patch("Namespace", "app", {"metadata": {"annotations": {POOL: pool}}})


def label(world: Any, env: str | None) -> None:
    world.kube.patch("Namespace", "app", {"metadata": {"labels": {"env": env}}})


def told(world: Any, name: str = "app") -> set[str]:
    return {event["reason"] for event in world.kube.list("Event") if event["involvedObject"]["name"] == name}


def mismatch(world: Any, address: str = A) -> str:
    found = world.kube.get("EgressAddress", address).get("status", {}).get("conditions", [])
    return next((item["reason"] for item in found if item["type"] == "PoolMismatch"), "")


@pytest.fixture
def flowing(world: Any) -> Any:
    """A namespace with a NetNamespace that is not Hawse's, whose traffic leaves by node2."""
    world.pool("prod", RANGE, namespaceSelector=PROD)
    world.node("node2", "192.168.1.18")
    world.net_namespace("app", NETID)
    world.namespace("app", {})
    label(world, "prod")
    world.reconcile()
    world.acknowledge()
    assert world.claims() == {A: ("app", "Ready")}
    return world


def row(world: Any) -> Any:
    return world.ledger.read_table().rows.get(NETID)


def assert_released(world: Any) -> None:
    """Nothing anywhere says any more that the namespace has an address."""
    assert world.annotation("app") == ""
    assert world.claims() == {A: ("app", "Quarantined")}
    assert world.bound("app") == []
    assert world.hosted("node2") == []
    assert world.holder(A) == ("quarantined", "ns/app")
    assert row(world) is None


def test_a_namespace_that_wants_no_address_any_more_gives_it_back(flowing: Any) -> None:
    wish(flowing, "none")
    flowing.run(NAMESPACE_TASK, "app")
    flowing.settle()
    assert_released(flowing)
    assert "EgressAddressReleased" in told(flowing)
    steps = [(step.step, step.address) for step in flowing.ledger.history("app")]
    assert ("release", A) in steps
    flowing.reconcile()
    assert_released(flowing)
    assert flowing.failures == []


def test_the_reconcile_finds_a_wish_that_nobody_saw(flowing: Any) -> None:
    wish(flowing, "none")
    flowing.reconcile()
    assert_released(flowing)


@pytest.mark.parametrize("cut", ["_annotate", "release", "unbind", "nothing"])
def test_a_release_opens_last_and_survives_being_cut_short(
    flowing: Any, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import namespaces

    def stop(*_: object, **__: object) -> None:
        raise TransientError("killed")

    wish(flowing, "none")
    owner = {"_annotate": namespaces, "release": releasing, "unbind": binding}.get(cut)
    with monkeypatch.context() as patched:
        if owner is not None:
            patched.setattr(owner, cut, stop)
        patched.setattr(flowing.context.ledger.__class__, "record", lambda *_: None)
        flowing.run(NAMESPACE_TASK, "app")
    flowing.tasks.clear()
    if cut != "nothing":
        assert flowing.bound("app") == [A]
        for task in (PUBLISH_TASK, PLACE_TASK, PUBLISH_TASK):
            flowing.run(task)
        assert row(flowing) is not None, "it has its address, or is dropped: it is not let out with a node's IP"
        assert flowing.claims()[A][1] in ("Ready", "Quarantined", "Placed")
    flowing.tasks.clear()
    for key in flowing.ledger._redis.keys("hawse:pending:*"):
        flowing.ledger._redis.delete(key)
    flowing.reconcile()
    assert_released(flowing)


def fails(*_: object, **__: object) -> None:
    raise TransientError("away")


@pytest.mark.parametrize(("owner", "cut"), [(binding, "unbind"), (binding, "end"), (Ledger, "quarantined")])
@pytest.mark.parametrize("lives", [True, False])
def test_a_release_that_fails_half_way_is_finished_by_its_retry(
    flowing: Any, owner: Any, cut: str, lives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lives:
        wish(flowing, "none")
    else:
        flowing.delete("app")
    with monkeypatch.context() as patched:
        patched.setattr(owner, cut, fails)
        flowing.run(NAMESPACE_TASK, "app")
    assert flowing.claims() == {A: ("app", "Quarantined")}
    for task, *arguments in ((NAMESPACE_TASK, "app"), (PLACE_TASK,), (PUBLISH_TASK,)):
        flowing.ledger.done_with(":".join((task, *arguments)))  # what was asked for has run, and came too early
    flowing.tasks.clear()
    flowing.run(NAMESPACE_TASK, "app")
    flowing.settle()
    if lives:
        assert_released(flowing)
    assert (flowing.bound("app"), flowing.hosted("node2"), row(flowing)) == ([], [], None)
    assert flowing.holder(A) == ("quarantined", "ns/app")


def test_a_released_address_comes_back_when_it_is_wanted_again(flowing: Any) -> None:
    wish(flowing, "none")
    flowing.reconcile()
    flowing.namespace("thief", {POOL: "prod"})
    flowing.reconcile()
    assert flowing.annotation("thief") == B
    wish(flowing, None)
    flowing.reconcile()
    flowing.acknowledge()
    assert flowing.annotation("app") == A
    assert flowing.claims()[A] == ("app", "Ready")
    assert flowing.bound("app") == [A]


def test_a_quarantine_of_a_living_namespace_survives_a_flush_and_ends(flowing: Any) -> None:
    flowing.kube.patch("EgressPool", "prod", {"spec": {"quarantine": "0"}})
    wish(flowing, "none")
    flowing.reconcile()
    flowing.ledger._redis.flushall()
    flowing.tasks.clear()
    flowing.reconcile()
    assert flowing.holder(A) == ("quarantined", "ns/app")
    assert flowing.reserve("other", RANGE) == B
    flowing.run(SWEEP_TASK)
    flowing.settle()
    assert flowing.claims() == {}
    assert flowing.holder(A) is None
    flowing.reconcile()
    assert flowing.annotation("app") == ""


def test_what_was_promised_and_never_claimed_is_given_back_too(world: Any) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    world.namespace("app", address=A)
    wish(world, "none")
    world.run(NAMESPACE_TASK, "app")
    assert (world.annotation("app"), world.claims(), world.holder(A)) == ("", {}, None)


def test_what_was_set_by_hand_beside_it_stays(flowing: Any) -> None:
    flowing.kube.patch("NetNamespace", "app", {"egressIPs": [A, "192.168.1.230"]})
    flowing.reconcile()
    wish(flowing, "none")
    flowing.reconcile()
    assert flowing.bound("app") == ["192.168.1.230"]
    assert flowing.claims() == {A: ("app", "Quarantined"), "192.168.1.230": ("app", "Pending")}


# The pool's selector


def test_a_namespace_that_is_no_longer_selected_keeps_its_address_and_says_so(flowing: Any) -> None:
    label(flowing, "test")
    flowing.run(NAMESPACE_TASK, "app")
    flowing.reconcile()
    assert flowing.claims() == {A: ("app", "Ready")}
    assert mismatch(flowing) == "NotSelected"
    label(flowing, "prod")
    flowing.reconcile()
    assert mismatch(flowing) == ""


def test_a_pool_may_take_back_what_it_no_longer_selects(flowing: Any) -> None:
    flowing.kube.patch("EgressPool", "prod", {"spec": {"onUnselected": "release"}})
    flowing.reconcile()
    assert flowing.claims() == {A: ("app", "Ready")}
    label(flowing, "test")
    flowing.run(NAMESPACE_TASK, "app")
    flowing.settle()
    assert_released(flowing)


def test_a_namespace_that_names_the_pool_is_not_its_selectors(flowing: Any) -> None:
    flowing.kube.patch("EgressPool", "prod", {"spec": {"onUnselected": "release"}})
    wish(flowing, "prod")
    label(flowing, "test")
    flowing.reconcile()
    assert flowing.claims() == {A: ("app", "Ready")}


def test_from_one_pool_to_the_next_without_a_packet_in_between(flowing: Any) -> None:
    """Released by the one and selected by the other: there is no moment at which its row is gone."""
    flowing.kube.patch("EgressPool", "prod", {"spec": {"onUnselected": "release"}})
    flowing.pool("rest", OTHERS, namespaceSelector={"matchLabels": {"env": "test"}})
    flowing.reconcile()
    label(flowing, "test")
    flowing.run(NAMESPACE_TASK, "app")
    while flowing.tasks:
        assert row(flowing) is not None
        task, arguments = flowing.tasks.pop(0)
        flowing.run(task, *arguments)
    assert flowing.annotation("app") == "192.168.1.200"
    assert flowing.bound("app") == ["192.168.1.200"]
    assert flowing.claims() == {A: ("app", "Quarantined"), "192.168.1.200": ("app", "Placed")}
    flowing.acknowledge()
    assert flowing.claims()["192.168.1.200"] == ("app", "Ready")
    assert flowing.hosted("node2") == ["192.168.1.200"]


def test_where_the_next_pool_is_full_the_namespace_stays_closed(flowing: Any) -> None:
    flowing.kube.patch("EgressPool", "prod", {"spec": {"onUnselected": "release"}})
    flowing.pool("rest", "192.168.1.200", namespaceSelector={"matchLabels": {"env": "test"}})
    flowing.namespace("full", {POOL: "rest"})
    flowing.reconcile()
    label(flowing, "test")
    flowing.reconcile()
    found = row(flowing)
    assert found is not None
    assert not any(hop.acknowledged for hop in found.hops)
    assert any("pool rest has no free address" in failure for failure in flowing.failures)


def test_another_pool_in_the_annotation_moves_nothing_and_is_reported(flowing: Any) -> None:
    flowing.pool("rest", OTHERS, namespaceSelector={"matchLabels": {"no": "body"}})
    wish(flowing, "rest")
    flowing.reconcile()
    assert flowing.claims() == {A: ("app", "Ready")}
    assert flowing.annotation("app") == A
    assert mismatch(flowing) == "OtherPoolAsked"


# Conditions of others


def test_a_release_keeps_the_conditions_of_others(flowing: Any) -> None:
    opened = {"type": "Audited", "status": "Unknown", "reason": "Asked", "observedGeneration": 4}
    status = flowing.kube.get("EgressAddress", A)["status"]
    path = f"/apis/egress.hawse.dev/v1alpha1/egressaddresses/{A}/status"
    body = {"status": {"conditions": [*status["conditions"], opened]}}
    flowing.kube.call("PATCH", path, body, "application/merge-patch+json")
    flowing.kube.patch("NetNamespace", "app", {"egressIPs": []})
    flowing.run(PUBLISH_TASK)
    wish(flowing, "none")
    flowing.reconcile()
    kept = flowing.kube.get("EgressAddress", A)["status"]["conditions"]
    assert [(item["type"], item["status"], item["observedGeneration"]) for item in kept] == [("Audited", "Unknown", 4)]
