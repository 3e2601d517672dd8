"""A new namespace gets what it is to have by what the watches know, and nothing else is decided from that."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from egress.adapters.cluster import Kind
from egress.addresses import parse_address
from egress.messages import NAMESPACE_TASK, PUBLISH_TASK
from workers import newcomers

from .conftest import Watched, World

A, B = "192.168.1.102", "192.168.1.103"
RANGE = f"{A}-192.168.1.110"
POOL = "egress.hawse.dev/pool"


@pytest.fixture
def watched(world: World) -> Iterator[Watched]:
    stop = threading.Event()
    world.pool("prod", RANGE)
    world.node("node1", "192.168.1.11")
    world.reconcile()
    yield Watched(world, stop)
    stop.set()


def create(world: World, name: str, **fields: Any) -> str:
    """A namespace as the webhook lets it in, of which the watch process has heard."""
    address = world.reserve(name, RANGE)
    world.context.saw(Kind.NAMESPACE, world.namespace(name, address=address, **fields)["metadata"]["resourceVersion"])
    return address


def requests(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the API server from now on."""
    found: list[str] = []
    real = world.context.cluster._call

    def call(method: str, path: str, *rest: Any) -> Any:
        found.append(f"{method} {path.rpartition('/')[2]}")
        return real(method, path, *rest)

    monkeypatch.setattr(world.context.cluster, "_call", call)
    return found


@pytest.mark.parametrize("settings", [{"fence_wait": 60.0}])
def test_a_new_namespace_costs_two_objects_and_no_question(
    world: World, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = create(world, "app")
    asked = requests(world, monkeypatch)
    assert newcomers.converge(world.context, "app")
    assert asked == ["POST egressaddresses"]
    assert world.claims()[address][0] == "app"
    assert world.holder(address) == ("claimed", "ns/app")
    watched.await_("EgressAddress", address)
    assert newcomers.converge(world.context, "app")
    assert world.bound("app") == []  # the nodes are to drop its NetID first
    asked.clear()
    world.run(PUBLISH_TASK)
    world.acknowledge()
    assert "POST netnamespaces" in asked
    assert not {"GET app", f"GET {address}"} & set(asked)
    assert world.bound("app") == [address]
    watched.await_("NetNamespace", "app")
    assert not newcomers.converge(world.context, "app")  # it is new no more


def test_two_addresses_of_which_one_is_claimed_already(world: World, watched: Watched) -> None:
    world.namespace("app", address=f"{A},{B}")
    watched.await_("Namespace", "app")
    namespace = world.kube.get("Namespace", "app")
    assert namespace is not None
    spec = {"pool": "prod", "namespace": {"name": "app", "uid": namespace["metadata"]["uid"]}, "origin": "automatic"}
    head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": {"name": A}}
    world.kube.create(head | {"spec": spec})
    world.ledger.claimed("ns/app", [parse_address(A)])
    watched.await_("EgressAddress", A)
    assert newcomers.converge(world.context, "app")
    assert {name for name, (owner, _) in world.claims().items() if owner == "app"} == {A, B}
    assert sorted(world.bound("app")) == [A, B]


def test_what_is_not_plainly_new_is_left_to_a_closer_look(world: World, watched: Watched) -> None:
    world.namespace("without")
    world.namespace("out", {POOL: "none"}, address=B)
    world.namespace("strange", address="192.168.1.200,x")
    world.namespace("foreign")
    world.ledger.reserve("ns/other", 1, [], [parse_address(A)])
    world.kube.patch("Namespace", "foreign", {"metadata": {"annotations": {"egress.hawse.dev/addresses": A}}})
    create(world, "bound")
    world.net_namespace("bound", 77, "192.168.1.105")
    create(world, "more")
    world.ledger.claimed("ns/more", [parse_address("192.168.1.110")])  # which its annotation does not say
    watched.await_("NetNamespace", "bound")
    world.until(lambda: watched.annotated("foreign"))
    for name in ("without", "out", "strange", "foreign", "bound", "more", "nobody", "kube-system"):
        assert not newcomers.converge(world.context, name), name
    assert world.claims() == {}


def test_nothing_is_done_for_a_namespace_that_is_gone_though_the_watch_lags(world: World, watched: Watched) -> None:
    create(world, "app")
    watched.await_("Namespace", "app")
    watched.stall()
    world.delete("app")
    newest = world.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "later"}})
    world.context.saw(Kind.NAMESPACE, newest["metadata"]["resourceVersion"])  # of its end somebody has heard
    assert not newcomers.converge(world.context, "app")
    world.run(NAMESPACE_TASK, "app")
    assert (world.claims(), world.bound("app")) == ({}, [])


def test_a_netnamespace_that_the_watch_has_not_told_of_stays_what_it_is(world: World, watched: Watched) -> None:
    address = create(world, "app")
    watched.await_("Namespace", "app")
    watched.stall(Kind.NET_NAMESPACE)
    world.net_namespace("app", 77)
    assert not newcomers.converge(world.context, "app")
    world.run(NAMESPACE_TASK, "app")
    assert world.bound("app") == [address]
    assert (world.kube.get("NetNamespace", "app") or {})["netid"] == 77


def test_an_address_that_another_has_claimed_is_given_up(world: World, watched: Watched) -> None:
    address = create(world, "app")
    watched.await_("Namespace", "app")
    watched.stall(Kind.EGRESS_ADDRESS)
    other = world.namespace("other")
    spec = {"pool": "prod", "namespace": {"name": "other", "uid": other["metadata"]["uid"]}, "origin": "manual"}
    head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": {"name": address}}
    world.kube.create(head | {"spec": spec})
    world.run(NAMESPACE_TASK, "app")
    world.settle()
    assert world.claims()[address][0] == "other"
    assert world.annotation("app") not in ("", address)
    assert world.bound("app") == [world.annotation("app")]


def test_without_an_index_nothing_is_known(world: World, watched: Watched) -> None:
    create(world, "app")
    watched.await_("Namespace", "app")
    world.ledger._redis.flushall()
    assert not newcomers.converge(world.context, "app")


def test_after_a_restore_of_the_api_server_the_watch_is_believed_again(world: World, watched: Watched) -> None:
    """Its versions have begun anew, below what was seen before."""
    create(world, "app")
    watched.await_("Namespace", "app")
    world.ledger.saw_versions({Kind.NAMESPACE.label: 10**9})
    assert not newcomers.converge(world.context, "app")
    assert Kind.NAMESPACE.label not in world.ledger.seen_versions()
    assert newcomers.converge(world.context, "app")
