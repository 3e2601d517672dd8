"""Publishing from what a watch keeps in memory: never from older objects than anybody has seen."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from egress.adapters.cluster import Kind
from egress.messages import PLACE_TASK, PUBLISH_TASK
from egress.objects import Verdict
from egress.table import Steering
from workers.view import Memory

from .conftest import Watched, World

A = "192.168.1.102"


@pytest.fixture
def watched(world: World) -> Iterator[Watched]:
    stop = threading.Event()
    world.pool("prod", A)
    world.node("node1", "192.168.1.11")
    world.net_namespace("app", 77, A)
    world.kube.patch("HostSubnet", "node1", {"egressIPs": [A]})
    yield Watched(world, stop)
    stop.set()


def row(world: World, netid: int = 77) -> Steering | None:
    return world.ledger.read_table().rows.get(netid)


def seen(world: World, kind: Kind, manifest: dict[str, Any]) -> None:
    """The watch process has seen it, and asks for publishing."""
    world.context.saw(kind, manifest["metadata"]["resourceVersion"])
    world.run(PUBLISH_TASK)


def lists(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    """Which kinds are listed from now on."""
    found: list[Kind] = []
    real = world.context.cluster.list
    monkeypatch.setattr(
        world.context.cluster, "list", lambda kind, **options: found.append(kind) or real(kind, **options)
    )
    return found


def test_a_change_is_published_from_the_watch_and_nothing_is_listed(
    world: World, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(PUBLISH_TASK)
    world.acknowledge()
    assert row(world).hops[0].acknowledged  # type: ignore[union-attr]
    listed = lists(world, monkeypatch)
    seen(world, Kind.HOST_SUBNET, world.kube.patch("HostSubnet", "node1", {"egressIPs": []}))
    assert row(world).hops == ()  # type: ignore[union-attr]
    seen(world, Kind.NET_NAMESPACE, world.net_namespace("other", 78, "192.168.1.200"))
    assert row(world, 78) == Steering(78, "other")
    assert not set(listed) & watched._mirrors.keys()


def test_a_watch_that_lags_is_not_believed_once_somebody_has_seen_more(
    world: World, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(PUBLISH_TASK)
    world.net_namespace("other", 78)
    watched.stall()
    listed = lists(world, monkeypatch)
    world.run(PUBLISH_TASK)
    assert not set(listed) & watched._mirrors.keys()
    seen(world, Kind.NET_NAMESPACE, world.kube.patch("NetNamespace", "other", {"egressIPs": ["192.168.1.200"]}))
    assert [kind for kind in listed if kind in watched._mirrors] == [Kind.NET_NAMESPACE]
    assert row(world, 78) == Steering(78, "other")


def test_a_kind_of_which_there_is_no_news_is_listed_once(
    world: World, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(PUBLISH_TASK)
    newest = world.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "later"}})
    version = int(newest["metadata"]["resourceVersion"])
    world.ledger.saw_versions({Kind.HOST_SUBNET.label: version})  # of a worker that began a moment ago, and listed it
    listed = lists(world, monkeypatch)
    for _ in range(2):
        world.run(PUBLISH_TASK)
    assert listed.count(Kind.HOST_SUBNET) == 1


def test_nobody_publishes_from_what_is_older_than_what_another_published_from(world: World, watched: Watched) -> None:
    world.run(PUBLISH_TASK)
    watched.stall()
    mine = world.context.memory
    world.context.memory.__dict__.update(Memory().__dict__)  # another worker, which begins
    fresh = threading.Event()
    others = Watched(world, fresh)
    world.kube.patch("HostSubnet", "node1", {"egressIPs": []})
    world.until(lambda: others._mirrors[Kind.HOST_SUBNET].items()["node1"].egress_ips == ())
    world.run(PUBLISH_TASK)
    assert row(world).hops == ()  # type: ignore[union-attr]
    fresh.set()
    world.context.memory.__dict__.update(Memory().__dict__)
    mine.views = watched.views
    world.run(PUBLISH_TASK)
    assert row(world).hops == ()  # type: ignore[union-attr]


def test_what_the_worker_itself_wrote_is_known_to_the_publishing_that_it_asks_for(
    world: World, watched: Watched
) -> None:
    world.run(PUBLISH_TASK)
    watched.stall()
    world.context.cluster.patch(Kind.HOST_SUBNET, "node1", {"egressIPs": []})
    world.context.ask(PUBLISH_TASK)
    world.settle()
    assert row(world).hops == ()  # type: ignore[union-attr]


def test_a_namespace_is_not_let_out_for_what_a_watch_has_missed(world: World, watched: Watched) -> None:
    # The watch has heard that the addresses were taken away, and not that they were put back.
    world.run(PUBLISH_TASK)
    mirror = watched._mirrors[Kind.NET_NAMESPACE]
    world.kube.patch("NetNamespace", "app", {"egressIPs": []})
    world.until(lambda: mirror.items()["app"].egress_ips == ())
    watched.stall()
    world.kube.patch("NetNamespace", "app", {"egressIPs": [A]})
    world.run(PUBLISH_TASK)
    assert row(world) is not None


def test_a_namespace_is_not_let_out_for_a_claim_that_a_watch_has_missed(world: World, watched: Watched) -> None:
    world.run(PUBLISH_TASK)
    mirror = watched._mirrors[Kind.NET_NAMESPACE]
    watched.stall(Kind.EGRESS_ADDRESS)
    metadata = {"name": A, "labels": {"egress.hawse.dev/namespace": "app"}}
    spec = {"pool": "prod", "namespace": {"name": "app", "uid": "u"}, "origin": "automatic"}
    world.kube.create(
        {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": metadata, "spec": spec}
    )
    world.kube.patch("NetNamespace", "app", {"egressIPs": []})
    world.until(lambda: mirror.items()["app"].egress_ips == ())
    world.run(PUBLISH_TASK)
    assert row(world) is not None
    world.kube.delete("EgressAddress", A)
    world.run(PUBLISH_TASK)


def test_a_namespace_that_has_no_address_any_more_is_let_out(world: World, watched: Watched) -> None:
    world.run(PUBLISH_TASK)
    seen(world, Kind.NET_NAMESPACE, world.kube.patch("NetNamespace", "app", {"egressIPs": []}))
    assert row(world) is None


def test_an_approval_that_was_withdrawn_is_not_taken_for_one(world: World, watched: Watched) -> None:
    metadata = {"name": A, "labels": {"egress.hawse.dev/namespace": "app"}}
    spec = {"pool": "prod", "namespace": {"name": "app", "uid": "u"}, "origin": "automatic", "approval": "required"}
    world.kube.create(
        {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": metadata, "spec": spec}
    )
    world.run(PUBLISH_TASK)
    decide(world, Verdict.APPROVED)
    mirror = watched._mirrors[Kind.EGRESS_ADDRESS]
    world.until(lambda: (item := mirror.item(A)) is not None and item.decision)
    world.run(PUBLISH_TASK)
    world.tasks.clear()
    assert [hop.acknowledged for hop in row(world).hops] == [False]  # type: ignore[union-attr]
    watched.stall(Kind.EGRESS_ADDRESS)
    decide(world, Verdict.WITHDRAWN)
    world.acknowledge()
    assert not any(hop.acknowledged for hop in row(world).hops)  # type: ignore[union-attr]


def decide(world: World, verdict: Verdict) -> None:
    decision = {"verdict": verdict.value, "by": "somebody", "at": "2026-01-01T00:00:00Z", "source": "api"}
    path = f"/apis/egress.hawse.dev/v1alpha1/egressaddresses/{A}/status"
    world.kube.call("PATCH", path, {"status": {"decision": decision}}, "application/merge-patch+json")


def test_placement_lists_nothing_that_is_watched(
    world: World, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.reconcile()
    listed = lists(world, monkeypatch)
    world.run(PLACE_TASK)
    assert not set(listed) & watched._mirrors.keys()


def claim_late(world: World) -> None:
    """A claim of an address that has no node yet, which this worker itself makes."""
    namespace = world.namespace("late")
    spec = {"pool": "more", "namespace": {"name": "late", "uid": namespace["metadata"]["uid"]}, "origin": "automatic"}
    head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress"}
    world.context.cluster.create(Kind.EGRESS_ADDRESS, head | {"metadata": {"name": "192.168.1.120"}, "spec": spec})


def test_placement_is_never_of_older_objects_than_anybody_has_seen(world: World, watched: Watched) -> None:
    world.pool("more", "192.168.1.120")
    world.reconcile()
    watched.stall()
    claim_late(world)
    world.context.ask(PLACE_TASK)
    world.settle()
    assert world.hosted("node1") == [A, "192.168.1.120"]


def test_a_hostsubnet_that_somebody_changed_meanwhile_is_not_overwritten(world: World, watched: Watched) -> None:
    by_hand = "192.168.1.77"
    world.pool("more", "192.168.1.120")
    world.reconcile()
    watched.stall(Kind.HOST_SUBNET)
    changed = world.kube.patch("HostSubnet", "node1", {"egressIPs": [A, by_hand]})  # and nobody has heard of it
    claim_late(world)
    watched.await_("EgressAddress", "192.168.1.120")
    world.run(PLACE_TASK)
    assert "409" in world.failures[-1]
    assert world.hosted("node1") == [A, by_hand]
    world.context.saw(Kind.HOST_SUBNET, changed["metadata"]["resourceVersion"])
    world.run(PLACE_TASK)
    assert world.hosted("node1") == [A, by_hand, "192.168.1.120"]
