"""What admins do behind Hawse's back is adopted, put right, or named as a conflict; never fought."""

from ipaddress import ip_address
from typing import Any

import pytest

from egress.messages import NAMESPACE_TASK, PUBLISH_TASK

A, B, C = "192.168.1.102", "192.168.1.103", "192.168.1.104"
RANGE = f"{A}-192.168.1.110"
HAND, OTHER_HAND = "192.168.1.230", "192.168.1.231"
ADDRESSES = "egress.hawse.dev/addresses"


def bind(world: Any, name: str, *addresses: str) -> None:
    world.kube.patch("NetNamespace", name, {"egressIPs": list(addresses)})


def spec(world: Any, address: str) -> dict[str, Any]:
    found: dict[str, Any] = world.kube.get("EgressAddress", address)["spec"]
    return found


def ready(world: Any, address: str) -> tuple[str, str, str]:
    found = world.kube.get("EgressAddress", address)["status"]["conditions"]
    return next((item["status"], item["reason"], item["message"]) for item in found if item["type"] == "Ready")


def told(world: Any, name: str, reason: str) -> list[str]:
    return [
        event["message"]
        for event in world.kube.list("Event")
        if (event["involvedObject"]["name"], event["reason"]) == (name, reason)
    ]


@pytest.fixture
def byhand(world: Any) -> Any:
    """A namespace that no pool serves, with an address that an admin has put on both objects."""
    world.pool("prod", RANGE, namespaceSelector={"matchLabels": {"no": "body"}})
    world.node("node2", "192.168.1.18", HAND)
    world.namespace("byhand")
    world.net_namespace("byhand", 77, HAND)
    world.reconcile()
    return world


# Adoption


def test_what_was_set_by_hand_is_shown_as_all_else_is(byhand: Any) -> None:
    assert byhand.claims() == {HAND: ("byhand", "Placed")}
    found = spec(byhand, HAND)
    assert (found["origin"], found["pool"]) == ("manual", "")
    assert found["namespace"]["uid"] == byhand.kube.get("Namespace", "byhand")["metadata"]["uid"]
    byhand.acknowledge()
    assert byhand.claims() == {HAND: ("byhand", "Ready")}
    assert byhand.annotation("byhand") == ""
    assert byhand.holder(HAND) == ("claimed", "manual/byhand")
    assert told(byhand, "byhand", "EgressAddressAdopted") == [f"{HAND} was set by hand: it stays so"]


def test_adopting_twice_changes_nothing(byhand: Any) -> None:
    byhand.acknowledge()
    versions, change = byhand.versions(), byhand.ledger.change_number()
    for _ in range(2):
        byhand.run(NAMESPACE_TASK, "byhand")
        byhand.reconcile()
    assert byhand.versions() == versions
    assert byhand.ledger.change_number() == change
    assert byhand.failures == []


def test_what_is_taken_away_by_hand_is_gone_without_a_quarantine(byhand: Any) -> None:
    byhand.acknowledge()
    bind(byhand, "byhand")
    byhand.run(PUBLISH_TASK)
    assert byhand.ledger.read_table().rows == {}, "who empties it means it"
    byhand.run(NAMESPACE_TASK, "byhand")
    assert byhand.claims() == {}
    assert byhand.bound("byhand") == []
    byhand.reconcile()
    assert byhand.holder(HAND) == ("claimed", "manual/node/node2"), "it is on a HostSubnet still"


def test_an_address_may_go_from_hand_to_hand(byhand: Any) -> None:
    byhand.namespace("next")
    byhand.net_namespace("next", 78)
    byhand.acknowledge()
    bind(byhand, "byhand")
    bind(byhand, "next", HAND)
    byhand.run(PUBLISH_TASK)
    assert byhand.ledger.read_table().rows.keys() == {78}, "neither is dropped for the other"
    byhand.reconcile()
    byhand.run(NAMESPACE_TASK, "next")
    byhand.settle()
    byhand.reconcile()
    byhand.acknowledge()
    assert byhand.claims() == {HAND: ("next", "Ready")}


def test_placement_never_moves_nor_places_what_was_set_by_hand(byhand: Any) -> None:
    byhand.node("node3", "192.168.1.19", OTHER_HAND)
    byhand.kube.patch("HostSubnet", "node2", {"egressIPs": []})
    byhand.reconcile()
    assert (byhand.hosted("node2"), byhand.hosted("node3")) == ([], [OTHER_HAND])
    assert ready(byhand, HAND)[:2] == ("False", "NotPlaced")
    assert byhand.ledger.unplaced() == {}


def test_the_namespace_goes_and_the_admins_objects_stay(byhand: Any) -> None:
    byhand.delete("byhand")
    byhand.run(NAMESPACE_TASK, "byhand")
    byhand.settle()
    assert byhand.claims() == {}
    assert byhand.bound("byhand") == [HAND]
    byhand.namespace("byhand")
    byhand.reconcile()
    assert spec(byhand, HAND)["namespace"]["uid"] == byhand.kube.get("Namespace", "byhand")["metadata"]["uid"]


def test_a_namespace_that_came_back_unseen_has_a_claim_of_its_own(byhand: Any) -> None:
    byhand.delete("byhand")
    byhand.namespace("byhand")
    byhand.reconcile()
    assert byhand.claims()[HAND][0] == "byhand"
    assert spec(byhand, HAND)["namespace"]["uid"] == byhand.kube.get("Namespace", "byhand")["metadata"]["uid"]


def test_a_flush_forgets_nothing_of_it(byhand: Any) -> None:
    versions = byhand.versions()
    byhand.ledger._redis.flushall()
    byhand.tasks.clear()
    byhand.reconcile()
    assert byhand.claims()[HAND][0] == "byhand"
    assert byhand.holder(HAND) == ("claimed", "manual/byhand")
    assert {key: value for key, value in byhand.versions().items() if key[0] != "EgressAddress"} == {
        key: value for key, value in versions.items() if key[0] != "EgressAddress"
    }


def test_by_hand_beside_what_a_pool_gave(world: Any) -> None:
    world.pool("prod", RANGE)
    world.net_namespace("app", 77)
    world.namespace("app")
    world.reconcile()
    bind(world, "app", A, HAND)
    world.reconcile()
    assert {address: name for address, (name, _) in world.claims().items()} == {A: "app", HAND: "app"}
    assert world.annotation("app") == A
    bind(world, "app", HAND)
    world.reconcile()
    assert world.bound("app") == [HAND, A], "what Hawse gave is put back, what was set by hand stays"


def test_an_address_of_a_pool_that_was_set_by_hand_is_given_to_nobody(world: Any) -> None:
    world.pool("prod", RANGE, namespaceSelector={"matchLabels": {"env": "prod"}})
    world.net_namespace("byhand", 77, A)
    world.namespace("byhand")
    world.reconcile()
    assert world.claims()[A][0] == "byhand"
    assert world.reserve("app", RANGE) == B
    found = world.kube.get("EgressPool", "prod")["status"]
    world.run(PUBLISH_TASK)
    found = world.kube.get("EgressPool", "prod")["status"]
    assert (found["allocated"], found["free"]) == (2, 7)


def test_system_namespaces_and_names_without_a_namespace_are_not_adopted(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("kube-x")
    world.net_namespace("kube-x", 5, HAND)
    world.net_namespace("no-such-namespace", 6, OTHER_HAND)
    world.reconcile()
    assert world.claims() == {}


def test_entries_that_are_no_addresses_are_left_alone(world: Any) -> None:
    world.pool("prod", RANGE)
    world.net_namespace("app", 77, "300.1.1.3", HAND)
    world.node("node2", HAND)
    world.namespace("app")
    world.reconcile()
    assert world.claims() == {A: ("app", "Placed")}, "a node's own IP is nobody's egress address"
    assert world.bound("app") == ["300.1.1.3", HAND, A]


# Conflicts, which are named to both sides


def test_an_address_of_hawses_in_another_net_namespace_is_a_conflict_of_both(world: Any) -> None:
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18")
    for netid, name in ((77, "app"), (78, "other")):
        world.net_namespace(name, netid)
        world.namespace(name)
    world.reconcile()
    world.acknowledge()
    mine, theirs = world.annotation("app"), world.annotation("other")
    bind(world, "other", theirs, mine)
    world.reconcile()
    conflict = f"address {mine} is in NetNamespaces app and other"
    assert world.claims()[mine][0] == "app"
    assert ready(world, mine) == ("False", "Conflict", conflict)
    for name in ("app", "other"):
        assert told(world, name, "EgressConflict") == [conflict]
    for found in world.ledger.read_table().rows.values():
        assert not any(hop.acknowledged for hop in found.hops)
    world.reconcile()
    assert told(world, "app", "EgressConflict") == [conflict], "once"
    bind(world, "other", theirs)
    world.reconcile()
    world.acknowledge()
    assert ready(world, mine)[0] == "True"


def test_one_address_set_by_hand_in_two_net_namespaces(byhand: Any) -> None:
    byhand.namespace("next")
    byhand.net_namespace("next", 78, HAND)
    byhand.reconcile()
    assert byhand.claims()[HAND][0] == "byhand"
    assert ready(byhand, HAND)[1:] == ("Conflict", f"address {HAND} is in NetNamespaces byhand and next")
    assert told(byhand, "next", "EgressConflict")
    bind(byhand, "byhand")
    byhand.reconcile()
    byhand.reconcile()
    byhand.acknowledge()
    assert byhand.claims() == {HAND: ("next", "Ready")}


def test_an_address_that_is_lost_to_another_names_both_to_both(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    world.ledger.freed("ns/app", [ip_address(A)])  # as after a flush that forgot it
    world.namespace("other", address=A)
    world.run(NAMESPACE_TASK, "other")
    world.settle()
    assert world.annotation("other") == B
    (message,) = told(world, "other", "AddressLost")
    assert message == f"{A} is held by namespace app, and other has it in its annotation too"
    assert told(world, "app", "EgressConflict") == [message]


# Drift of objects


def test_an_address_taken_from_a_host_subnet_is_put_back(world: Any) -> None:
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18")
    world.namespace("app")
    world.reconcile()
    world.acknowledge()
    world.kube.patch("HostSubnet", "node2", {"egressIPs": []})
    world.reconcile()
    world.acknowledge()
    assert world.hosted("node2") == [A]
    assert world.claims() == {A: ("app", "Ready")}
    assert told(world, "app", "EgressAddressLost") == []


def test_an_owner_hears_when_the_address_goes_out_of_use_and_when_it_moves(world: Any) -> None:
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18")
    world.node("node3", "192.168.1.19", label=False)
    world.namespace("app")
    world.reconcile()
    world.acknowledge()
    world.kube.patch("HostSubnet", "node2", {"egressIPs": []})
    world.run(PUBLISH_TASK)
    (message,) = told(world, "app", "EgressAddressLost")
    assert f"{A} is out of use: no node hosts {A}" in message
    world.kube.patch("HostSubnet", "node2", {"egressIPs": [A]})
    world.run(PUBLISH_TASK)
    world.acknowledge()
    world.kube.patch("HostSubnet", "node3", {"egressIPs": [A]})
    world.kube.patch("HostSubnet", "node2", {"egressIPs": []})
    world.run(PUBLISH_TASK)
    assert told(world, "app", "EgressAddressMoved") == [f"{A} moves from node2 to node3"]


# Objects that go back in time


def restore(world: Any, kind: str, name: str, manifest: dict[str, Any]) -> None:
    """Puts an object back as it was, with a uid of its own: what a backup of single objects brings."""
    body = {key: value for key, value in manifest.items() if key != "status"}
    keep = ("name", "annotations", "labels", "finalizers")
    body["metadata"] = {key: value for key, value in manifest["metadata"].items() if key in keep}
    world.kube.create({"kind": kind, **body})
    assert world.kube.get(kind, name) is not None


def test_a_claim_of_a_namespace_that_is_no_more(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app")
    world.reconcile()
    old = world.kube.get("EgressAddress", A)
    world.delete("app")
    world.reconcile()
    world.kube.delete("EgressAddress", A)
    world.reconcile()
    restore(world, "EgressAddress", A, old)
    world.reconcile()
    assert world.claims() == {A: ("app", "Quarantined")}
    assert world.holder(A) == ("quarantined", "ns/app")


def test_a_claim_that_its_namespace_gave_up_long_ago(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("app", address=B)
    world.reconcile()
    live = world.kube.get("Namespace", "app")["metadata"]["uid"]
    spec = {"pool": "prod", "namespace": {"name": "app", "uid": live}}
    restore(
        world, "EgressAddress", C, {"apiVersion": "egress.hawse.dev/v1alpha1", "metadata": {"name": C}, "spec": spec}
    )
    world.reconcile()
    assert world.claims() == {B: ("app", "Pending"), C: ("app", "Quarantined")}
    assert world.annotation("app") == B
    assert world.bound("app") == [B]


def test_an_annotation_that_is_lost_is_written_again(world: Any) -> None:
    world.pool("prod", RANGE, addressesPerNamespace=2)
    world.namespace("app")
    world.reconcile()
    world.kube.patch("EgressPool", "prod", {"spec": {"addressesPerNamespace": 1}})
    world.kube.patch("Namespace", "app", {"metadata": {"annotations": {ADDRESSES: None}}})
    world.reconcile()
    assert world.annotation("app") == f"{A},{B}"
    assert {phase for _, phase in world.claims().values()} == {"Pending"}


@pytest.mark.parametrize("flushed", [False, True])
def test_two_namespaces_that_say_they_have_the_same_address(world: Any, flushed: bool) -> None:
    world.pool("prod", RANGE)
    for name in ("app", "other"):
        world.namespace(name)
    world.reconcile()
    mine = world.annotation("app")
    world.kube.patch("Namespace", "other", {"metadata": {"annotations": {ADDRESSES: mine}}})
    if flushed:
        world.ledger._redis.flushall()
        world.tasks.clear()
    world.reconcile()
    world.reconcile()
    holders = {address: name for address, (name, phase) in world.claims().items() if phase != "Quarantined"}
    assert holders[mine] == "app"
    assert world.annotation("app") == mine
    theirs = world.annotation("other")
    assert holders[theirs] == "other"
    assert world.bound("app") == [mine]
    assert world.bound("other") == [theirs]
    events = {event["reason"] for event in world.kube.list("Event")}
    assert events & {"AddressLost", "AnnotationIgnored"}


def test_an_annotation_of_an_address_that_waits_after_another(world: Any) -> None:
    world.pool("prod", RANGE)
    world.namespace("gone")
    world.reconcile()
    world.delete("gone")
    world.reconcile()
    metadata = {"name": "app", "annotations": {ADDRESSES: A}}
    world.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    world.reconcile()
    assert world.annotation("app") == B
    assert world.claims() == {A: ("gone", "Quarantined"), B: ("app", "Pending")}
