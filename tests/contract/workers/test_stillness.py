"""When a reconcile looks at all there is, and when it need not."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from egress.adapters.cluster import Cluster
from egress.messages import RECONCILE_TASK, SWEEP_TASK
from egress.table import NodeReport
from workers import reconciling

KINDS = ("namespaces", "netnamespaces", "egressaddresses", "egresspools")
POOL = "192.168.1.96/28"


class Counting(Cluster):
    """Counts the lists that are read, by kind."""

    def __init__(self, kubeconfig: str) -> None:
        super().__init__(kubeconfig)
        self.lists: Counter[str] = Counter()

    def _send(self, *arguments: Any, **options: Any) -> Any:
        method, path = arguments[:2]
        if method == "GET" and "limit=" in path:
            self.lists[path.split("?")[0].rsplit("/", 1)[1]] += 1
        return super()._send(*arguments, **options)


@pytest.fixture
def settings() -> dict[str, Any]:
    """Nobody beats here, and nobody is to be silent for it."""
    return {"heartbeat_patience": 3600.0}


@pytest.fixture
def lists(world: Any) -> Callable[..., Counter[str]]:
    """Runs a task and all that follows; what was listed by it."""
    counting = Counting(world.context.settings.kubeconfig)
    world.context = replace(world.context, cluster=counting)

    def run(task: str = RECONCILE_TASK) -> Counter[str]:
        counting.lists.clear()
        world.run(task)
        world.settle()
        return counting.lists.copy()

    return run


@pytest.fixture
def still(world: Any, lists: Callable[..., Counter[str]]) -> Any:
    """All is as it should be, a namespace steered, and the watch counts."""
    world.pool("prod", POOL)
    for number in (1, 2):
        world.node(f"node{number}", f"192.168.1.{16 + number}")
        world.ledger.beat(f"node{number}", f"192.168.1.{16 + number}", 60.0)
    world.ledger.watching(60)
    lists()
    world.namespace("app")
    world.ledger.count_change("namespace")
    lists()
    world.acknowledge()
    for _ in range(3):
        lists()
    assert world.kube.list("EgressAddress")[0]["status"]["phase"] == "Ready"
    return world


def test_a_reconcile_lists_nothing_while_nothing_changes(still: Any, lists: Callable[..., Counter[str]]) -> None:
    assert set(lists()) <= {"hostsubnets"}  # `failover` asks who lives
    lists(SWEEP_TASK)
    assert not lists(SWEEP_TASK)


def test_what_was_counted_goes_on_being_shown(still: Any, lists: Callable[..., Counter[str]]) -> None:
    """Else an alert on what is wrong and stays so would end by itself."""
    key, redis = "hawse:census", still.ledger._redis
    assert still.ledger.census() is not None
    redis.pexpire(key, 2000)
    assert "namespaces" not in lists()
    assert redis.pttl(key) > 30_000
    redis.delete(key)
    assert "namespaces" not in lists()
    census = still.ledger.census()
    assert census is not None
    assert census.assignments["Ready"] == 1


@pytest.mark.parametrize("doubt", ["change", "no watch", "flush", "place", "report", "other link", "lost"])
def test_any_doubt_is_a_reason_to_look(still: Any, lists: Callable[..., Counter[str]], doubt: str) -> None:
    ledger = still.ledger
    match doubt:
        case "change":
            ledger.count_change("hostsubnet")
        case "no watch":
            ledger._redis.delete("hawse:watching")
        case "flush":
            ledger._redis.flushall()
        case "place":
            ledger.forget("still:place")
        case "report":
            ledger.report(NodeReport("node1", 0.0, link="192.168.1.17/25", interface="eth0"))
        case "other link":
            report = ledger.reports(["node1"])["node1"]
            ledger.report(replace(report, other_links=("fd00::17/64",)))
        case "lost":
            ledger.set_lost({"node2": ledger.now()}, {})
    assert set(KINDS) <= lists().keys()


def test_what_a_pause_left_undone_is_not_taken_for_nothing(still: Any, lists: Callable[..., Counter[str]]) -> None:
    """The reconcile runs during a pause, `place` does not."""
    still.kube.patch("HostSubnet", "node1", {"egressIPs": []})
    still.kube.patch("HostSubnet", "node2", {"egressIPs": []})
    still.ledger.count_change("hostsubnet")
    reconciling.reconcile(still.context)
    for task, arguments in still.tasks:
        still.ledger.done_with(":".join((task, *arguments)))
    still.tasks.clear()
    lists()
    assert [*still.hosted("node1"), *still.hosted("node2")]


def test_a_quarantine_that_ends_is_ended(still: Any, lists: Callable[..., Counter[str]]) -> None:
    still.delete("app")
    still.ledger.count_change("namespace")
    still.ledger.count_change("egressaddress")
    lists()
    (claim,) = still.kube.list("EgressAddress")
    assert claim["status"]["phase"] == "Quarantined"
    lists(SWEEP_TASK)
    assert not lists(SWEEP_TASK)["egressaddresses"]
    past = {"status": {"quarantinedUntil": "2020-01-01T00:00:00Z"}}
    still.kube.patch("EgressAddress", claim["metadata"]["name"], past, subresource="status")
    still.ledger.count_change("egressaddress")
    lists(SWEEP_TASK)
    assert still.kube.list("EgressAddress") == []
