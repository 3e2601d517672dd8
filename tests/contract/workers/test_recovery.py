"""Redis is flushed, the API server dies, objects are broken, watches are too old (DESIGN.md §11)."""

import threading
from typing import Any

import pytest

from egress.adapters.cluster import Kind, RefusedError
from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, SWEEP_TASK
from egress.operations import TransientError
from egress.table import NodeReport
from lab.kube import KubeError
from workers import publishing
from workers.watch import Watcher

A, B, C = "192.168.1.102", "192.168.1.103", "192.168.1.104"
RANGE = f"{A}-192.168.1.150"
BY_HAND = "192.168.1.201"


@pytest.fixture
def ready(world: Any) -> Any:
    """Two nodes, four namespaces, everything acknowledged."""
    world.pool("prod", RANGE)
    world.node("node1", "192.168.1.17")
    world.node("node2", "192.168.1.18")
    for name in ("a", "b", "c", "d"):
        world.namespace(name)
    world.reconcile()
    world.delete("d")
    world.reconcile()
    world.acknowledge()
    assert {phase for _, phase in world.claims().values()} == {"Ready", "Quarantined"}
    return world


def acknowledged(world: Any) -> set[tuple[str, bool]]:
    rows = world.ledger.read_table().rows.values()
    return {(str(hop.address), hop.acknowledged) for row in rows for hop in row.hops}


def told_anew(world: Any) -> None:
    """After a flush, every runner says what it held before."""
    for name in ("node1", "node2"):
        world.ledger.report(world.before[name])


def flushed(world: Any) -> None:
    world.before = world.ledger.reports(["node1", "node2"])
    world.ledger._redis.flushall()


def test_after_a_flush_the_same_index_comes_back_and_nothing_is_given_twice(ready: Any) -> None:
    usage, versions = ready.usage(), ready.versions()
    flushed(ready)
    told_anew(ready)
    ready.run(SWEEP_TASK)
    assert ready.usage() == usage
    ready.settle()
    assert ready.versions() == versions
    taken = set(usage)
    for number in range(5):
        address = ready.reserve(f"new-{number}", RANGE)
        assert address not in taken
        taken.add(address)


def test_after_a_flush_acknowledged_rows_stay_so_once_the_nodes_have_reported(ready: Any) -> None:
    before = acknowledged(ready)
    assert before == {(A, True), (B, True), (C, True)}
    flushed(ready)
    told_anew(ready)
    ready.run(RECONCILE_TASK)
    ready.settle()
    assert acknowledged(ready) == before
    assert ready.ledger.read_table().epoch


@pytest.mark.parametrize("settings", [{"report_wait": 0.5}])
def test_the_new_table_waits_for_reports_but_not_for_ever(ready: Any) -> None:
    flushed(ready)
    ready.ledger.report(ready.before["node1"])
    with pytest.raises(TransientError, match=r"waiting for the reports of node2"):
        publishing.run(ready.context)
    assert ready.ledger.read_table().epoch == ""
    ready.until(lambda: ready.run(PUBLISH_TASK) or ready.ledger.read_table().epoch, 5)
    states = dict(acknowledged(ready))
    assert {states[address] for address in ready.hosted("node1")} == {True}
    assert {states[address] for address in ready.hosted("node2")} == {False}


def test_a_row_that_cannot_be_read_begins_a_new_table_that_opens_nothing(ready: Any) -> None:
    before, old = acknowledged(ready), ready.ledger.read_table().epoch
    netid, fenced = (ready.kube.get("NetNamespace", name)["netid"] for name in ("a", "b"))
    ready.kube.patch("NetNamespace", "b", {"netid": 77})
    ready.run(PUBLISH_TASK)
    ready.acknowledge()
    # As another version would write it: who has read the table reads no more of it than what changed.
    ready.ledger._publish(args=[ready.ledger.change_number(), "", netid, '{"namespace":"a"}'])
    ready.run(PUBLISH_TASK)
    table = ready.ledger.read_table()
    assert table.epoch not in ("", old)
    assert table.rows.keys() == {netid, 77, fenced, ready.kube.get("NetNamespace", "c")["netid"]}
    assert acknowledged(ready) == before


def test_a_node_that_holds_an_address_for_another_netid_has_not_acknowledged_it(ready: Any) -> None:
    # After a flush, and just as well while all is there: both NetNamespaces changed between two looks.
    ready.net_namespace("x", 77, BY_HAND)
    ready.net_namespace("y", 78)
    ready.kube.patch("HostSubnet", "node2", {"egressIPs": [*ready.hosted("node2"), BY_HAND]})
    ready.run(PUBLISH_TASK)
    ready.acknowledge()
    assert (BY_HAND, True) in acknowledged(ready)
    ready.kube.patch("NetNamespace", "x", {"egressIPs": []})
    ready.kube.patch("NetNamespace", "y", {"egressIPs": [BY_HAND]})
    ready.run(PUBLISH_TASK)
    assert (BY_HAND, False) in acknowledged(ready)
    assert (BY_HAND, True) not in acknowledged(ready)
    flushed(ready)
    told_anew(ready)
    ready.run(PUBLISH_TASK)
    assert (BY_HAND, True) not in acknowledged(ready)


@pytest.mark.parametrize("when", range(8))
def test_a_flush_at_any_moment_of_an_assignment_loses_and_doubles_nothing(world: Any, when: int) -> None:
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18")
    for name in ("a", "b"):
        world.namespace(name)
    world.run(RECONCILE_TASK)
    for _ in range(when):
        if world.tasks:
            task, arguments = world.tasks.pop(0)
            world.run(task, *arguments)
    world.ledger._redis.flushall()
    world.ledger.report(NodeReport("node2", 0.0, link="192.168.1.18/24"))
    world.tasks.clear()  # the broker's queues went too
    world.run(SWEEP_TASK)
    world.settle()
    world.reconcile()
    assert {world.annotation("a"), world.annotation("b")} == {A, B}
    assert {address: name for address, (name, _) in world.claims().items()} == {
        world.annotation("a"): "a",
        world.annotation("b"): "b",
    }
    assert {address: holder for address, (_, holder) in world.usage().items()} == {
        world.annotation("a"): "ns/a",
        world.annotation("b"): "ns/b",
    }
    assert set(world.hosted("node2")) == {A, B}


@pytest.mark.parametrize("when", range(0, 10, 2))
def test_an_api_server_that_dies_in_the_middle_is_waited_for(world: Any, when: int) -> None:
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18")
    for name in ("a", "b"):
        world.namespace(name)
    world.run(RECONCILE_TASK)
    calls = 0
    send = world.context.cluster._send

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == when:
            world.cluster.kill()
        return send(*arguments)

    world.context.cluster._send = counted
    waiting, world.tasks[:] = list(world.tasks), []
    for task, arguments in waiting:
        world.run(task, *arguments)
    world.context.cluster._send = send
    world.cluster.start()
    world.settle()
    world.reconcile()
    assert {name for name, _ in world.claims().values()} == {"a", "b"}
    assert {tuple(world.bound("a")), tuple(world.bound("b"))} == {(A,), (B,)}
    assert set(world.hosted("node2")) == {A, B}


def test_an_unconfirmed_reservation_goes_back_and_a_late_one_does_not(world: Any) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    world.reserve("refused-later", RANGE)
    world.namespace("late", address=world.reserve("late", RANGE))
    world.context = type(world.context)(
        type(world.context.settings)(
            kubeconfig=world.context.settings.kubeconfig,
            reservation_lifetime=0.0,
            report_wait=0.0,
            status_interval=0.0,
            fence_wait=0.0,
        ),
        world.ledger,
        world.context.cluster,
        world.context.send,
    )
    world.run(SWEEP_TASK)
    assert world.usage() == {B: ("reserved", "ns/late")}
    world.settle()
    assert world.usage() == {B: ("claimed", "ns/late")}


def test_broken_objects_stop_nobody(world: Any) -> None:
    def broken(kind: str, group: str, name: str, **fields: object) -> None:
        world.kube.create({"apiVersion": group, "kind": kind, "metadata": {"name": name}, **fields})

    hawse, openshift = "egress.hawse.dev/v1alpha1", "network.openshift.io/v1"
    broken("EgressAddress", hawse, "not-an-address", spec={"pool": "x", "namespace": {"name": "x"}})
    broken("EgressAddress", hawse, "255.255.255.255", spec={"pool": "x", "namespace": {"name": "x"}})
    broken("EgressPool", hawse, "bad", spec={"cidrs": ["10.0.0.0/99"], "namespaceSelector": {}})
    broken("EgressPool", hawse, "bad2", spec={"cidrs": ["300.1.1.1"], "namespaceSelector": {}})
    broken("HostSubnet", openshift, "badhost", host="x", hostIP="300.1.1.1", subnet="", egressIPs=["300.1.1.2", A])
    broken("NetNamespace", openshift, "badnet", netname="badnet", netid=77, egressIPs=["300.1.1.3"])
    world.namespace("forged", address="nonsense")
    world.namespace("outside", address="10.99.0.1")
    world.pool("prod", f"{B}-192.168.1.150")
    world.node("node2", "192.168.1.18")
    world.namespace("app")
    world.reconcile()
    world.run(SWEEP_TASK)
    world.acknowledge()
    assert world.claims()[world.annotation("app")] == ("app", "Ready")
    assert world.annotation("forged") in world.claims()


def broken_claim(world: Any, address: str, **spec: object) -> None:
    """An EgressAddress as another version might write it."""
    crd = world.kube.get("CustomResourceDefinition", "egressaddresses.egress.hawse.dev")
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    (version,) = crd["spec"]["versions"]
    version |= {"schema": {"openAPIV3Schema": anything}}
    world.kube.patch("CustomResourceDefinition", "egressaddresses.egress.hawse.dev", {"spec": {"versions": [version]}})
    head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": {"name": address}}
    world.until(lambda: created(world, head | {"spec": spec}))


def created(world: Any, manifest: Any) -> bool:
    try:
        return bool(world.kube.create(manifest))
    except KubeError:
        return False


def test_the_address_of_a_claim_that_cannot_be_read_is_nobody_elses(world: Any) -> None:
    world.pool("prod", RANGE)
    broken_claim(world, A, pool="prod")
    world.namespace("app")
    world.reconcile()
    assert world.annotation("app") == B
    assert world.holder(A) == ("claimed", f"object/{A}")
    world.kube.delete("EgressAddress", A)
    world.reconcile()
    assert world.holder(A) is None


def test_who_was_given_the_address_of_a_claim_that_cannot_be_read_gets_another(world: Any) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    world.namespace("app", address=A)
    broken_claim(world, A, pool="prod")
    world.run(NAMESPACE_TASK, "app")
    world.settle()
    assert (world.annotation("app"), world.bound("app")) == (B, [B])
    assert world.holder(A) == ("claimed", f"object/{A}")


def test_a_namespace_keeps_the_address_of_its_own_claim_that_cannot_be_read(world: Any) -> None:
    world.pool("prod", RANGE)
    world.reconcile()
    world.namespace("app", address=A)
    broken_claim(world, A, namespace={"name": "app"}, origin="of another version")
    world.reconcile()
    assert (world.annotation("app"), world.holder(A)) == (A, ("claimed", "ns/app"))


@pytest.mark.parametrize("settings", [{"reservation_lifetime": 0.0}])
def test_one_that_cannot_be_read_or_deleted_keeps_no_quarantine_from_its_end(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pool("prod", RANGE, quarantine="0")
    for name in ("a", "b"):
        world.namespace(name)
    world.reconcile()
    for name in ("a", "b"):
        world.delete(name)
    world.reconcile()
    assert {phase for _, phase in world.claims().values()} == {"Quarantined"}
    assert world.reserve("late", f"{C}-192.168.1.150") == C
    broken_claim(world, C, pool="prod")
    real = world.context.cluster.delete

    def refuse(kind: Kind, name: str, **options: Any) -> None:
        if name == A:
            raise RefusedError("a policy says no")
        real(kind, name, **options)

    monkeypatch.setattr(world.context.cluster, "delete", refuse)
    world.failures.clear()
    world.run(SWEEP_TASK)
    assert world.failures == []
    assert {item["metadata"]["name"] for item in world.kube.list("EgressAddress")} == {A, C}
    assert world.holder(C) == ("claimed", f"object/{C}")


def test_a_status_that_is_refused_stops_no_other(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.pool("prod", RANGE)
    world.node("node2", "192.168.1.18")
    for name in ("a", "b"):
        world.namespace(name)
    real = world.context.cluster.patch

    def refuse(kind: Kind, name: str, patch: Any, **options: Any) -> Any:
        if options.get("subresource") == "status" and name == A:
            raise RefusedError("a policy says no")
        return real(kind, name, patch, **options)

    monkeypatch.setattr(world.context.cluster, "patch", refuse)
    world.reconcile()
    world.acknowledge()
    assert world.claims() == {A: (world.claims()[A][0], ""), B: (world.claims()[B][0], "Ready")}
    assert world.failures == []


def test_a_manual_claim_without_a_uid_is_its_namespaces(world: Any) -> None:
    world.pool("prod", RANGE)
    world.kube.create(
        {
            "apiVersion": "egress.hawse.dev/v1alpha1",
            "kind": "EgressAddress",
            "metadata": {"name": C, "labels": {"egress.hawse.dev/namespace": "app"}},
            "spec": {"pool": "prod", "namespace": {"name": "app"}, "origin": "manual"},
        }
    )
    world.namespace("app")
    world.reconcile()
    assert world.claims()[C] == ("app", world.claims()[C][1])
    assert world.claims()[C][1] != "Quarantined"
    assert world.annotation("app") == C


# Watches


@pytest.fixture
def watching(world: Any) -> Any:
    """Starts watchers of kinds; they end with the test."""
    stop = threading.Event()
    threads = []

    def start(*kinds: Kind) -> None:
        for kind in kinds:
            thread = threading.Thread(target=Watcher(kind, world.context).run, args=(stop,), daemon=True)
            thread.start()
            threads.append(thread)

    yield start
    stop.set()
    world.cluster.kill()  # what ends a watch that has nothing to say
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def seen(world: Any, task: str, *arguments: str) -> bool:
    """Whether the task was asked for; what was seen is forgotten, as a worker would take it."""
    found = False
    while world.tasks:  # watchers add to it all the while: each is looked at as it is taken
        name, rest = world.tasks.pop(0)
        world.ledger.done_with(":".join((name, *rest)))
        found |= (name, rest) == (task, arguments)
    return found


def test_a_change_becomes_a_task(world: Any, watching: Any) -> None:
    watching(Kind.NAMESPACE, Kind.HOST_SUBNET, Kind.EGRESS_POOL)
    world.until(lambda: seen(world, RECONCILE_TASK))
    world.namespace("app")
    world.until(lambda: seen(world, NAMESPACE_TASK, "app"))
    world.node("node2", "192.168.1.18")
    world.until(lambda: seen(world, PLACE_TASK))
    world.pool("prod", RANGE)
    world.until(lambda: seen(world, RECONCILE_TASK))


@pytest.mark.parametrize("history", [10])
def test_a_watch_that_is_too_old_lists_again(world: Any, watching: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, watch, lists, let = world.context.cluster.list, world.context.cluster.watch, [], threading.Event()
    monkeypatch.setattr(world.context.cluster, "list", lambda kind: lists.append(kind) or real(kind))
    monkeypatch.setattr(world.context.cluster, "watch", lambda *what: let.wait(60) and watch(*what))
    let.set()
    watching(Kind.NAMESPACE)
    world.until(lambda: seen(world, RECONCILE_TASK))
    world.ledger.done_with(RECONCILE_TASK)  # a worker is at it
    let.clear()  # nobody watches before there is more than the history holds
    world.cluster.kill()
    world.cluster.start()
    for number in range(30):
        world.namespace(f"while-away-{number}")
    let.set()
    world.until(lambda: seen(world, RECONCILE_TASK), 30)
    world.namespace("after")
    world.until(lambda: seen(world, NAMESPACE_TASK, "after"), 30)
    assert len(lists) > 1


def test_a_watch_resumes_when_the_api_server_and_redis_come_back(world: Any, watching: Any, broker: Any) -> None:
    watching(Kind.NAMESPACE)
    world.until(lambda: seen(world, RECONCILE_TASK))
    world.cluster.kill()
    world.cluster.start()
    world.namespace("after-one")
    world.until(lambda: seen(world, NAMESPACE_TASK, "after-one"), 30)
    broker.kill()
    world.namespace("while-redis-is-away")
    broker.start()
    world.until(lambda: seen(world, NAMESPACE_TASK, "while-redis-is-away"), 30)


def test_an_ask_that_the_broker_did_not_take_is_asked_again(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise TransientError("the broker is away")

    with monkeypatch.context() as patched:
        patched.setitem(world.context.__dict__, "send", away)
        with pytest.raises(TransientError):
            world.context.ask(PLACE_TASK)
    world.context.ask(PLACE_TASK)
    world.context.ask(PLACE_TASK)
    assert world.tasks == [(PLACE_TASK, ())]
