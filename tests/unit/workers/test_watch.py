"""Which change gives work to whom."""

from dataclasses import replace
from typing import Any

import pytest

from egress.adapters.cluster import Change, Kind
from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, TICKETS_TASK
from egress.objects import MOVE_ANNOTATION, RETRY_TICKET_ANNOTATION
from egress.operations import TransientError
from workers.makers.ovn_kubernetes import OvnKubernetes
from workers.makers.runner import Runner
from workers.watch import Watcher, tasks_for


def change(name: str, *, deleted: bool = False, **fields: Any) -> Change:
    return Change({"metadata": {"name": name, "resourceVersion": "1"}, **fields}, deleted)


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize(
    ("kind", "tasks"),
    [
        (Kind.NAMESPACE, [(NAMESPACE_TASK, "app")]),
        (Kind.NET_NAMESPACE, [(PUBLISH_TASK,), (PLACE_TASK,), (NAMESPACE_TASK, "app")]),
        (Kind.HOST_SUBNET, [(PUBLISH_TASK,), (PLACE_TASK,)]),
        (Kind.EGRESS_POOL, [(RECONCILE_TASK,)]),
        (Kind.NODE, [(PLACE_TASK,)]),
    ],
)
def test_each_kind_asks_for_its_tasks(kind: Kind, tasks: list[tuple[str, ...]], deleted: bool) -> None:
    assert tasks_for(kind, change("app", deleted=deleted)) == tasks


def test_a_claim_that_went_asks_for_its_namespace_one_that_is_to_move_for_placing_and_others_for_nothing() -> None:
    spec = {"pool": "p", "namespace": {"name": "app"}}
    assert tasks_for(Kind.EGRESS_ADDRESS, change("10.0.0.1", deleted=True, spec=spec)) == [(NAMESPACE_TASK, "app")]
    assert tasks_for(Kind.EGRESS_ADDRESS, change("10.0.0.1", spec=spec)) == []
    assert tasks_for(Kind.EGRESS_ADDRESS, change("10.0.0.1", deleted=True)) == []
    wished = change("10.0.0.1")
    wished.manifest["metadata"]["annotations"] = {MOVE_ANNOTATION: "node3"}
    assert tasks_for(Kind.EGRESS_ADDRESS, wished) == [(PLACE_TASK,)]


def test_a_claim_that_somebody_decides_about_is_published() -> None:
    spec = {"pool": "p", "namespace": {"name": "app"}, "approval": "required"}
    assert tasks_for(Kind.EGRESS_ADDRESS, change("10.0.0.1", spec=spec)) == [(PUBLISH_TASK,)]
    assert tasks_for(Kind.EGRESS_ADDRESS, change("10.0.0.1", spec=spec | {"approval": "none"})) == []


def test_a_ticket_that_is_to_be_tried_again_asks_for_its_profile() -> None:
    asked = {"name": "10.0.0.1", "resourceVersion": "1", "annotations": {RETRY_TICKET_ANNOTATION: "true"}}
    assert tasks_for(Kind.EGRESS_ADDRESS, Change({"metadata": asked})) == []
    told = Change({"metadata": asked, "status": {"ticket": {"profile": "snow", "serial": 1}}})
    assert tasks_for(Kind.EGRESS_ADDRESS, told) == [(TICKETS_TASK, "snow")]


def test_a_claim_that_is_wished_elsewhere_asks_for_placement() -> None:
    wished = {"name": "10.0.0.1", "resourceVersion": "1", "annotations": {"egress.hawse.dev/move-to": "node2"}}
    assert tasks_for(Kind.EGRESS_ADDRESS, Change({"metadata": wished})) == [(PLACE_TASK,)]


@pytest.mark.parametrize("name", ["default", "kube-system", "openshift-sdn"])
def test_system_namespaces_ask_for_nothing_of_their_own(name: str) -> None:
    assert tasks_for(Kind.NAMESPACE, change(name)) == []
    assert tasks_for(Kind.NET_NAMESPACE, change(name)) == [(PUBLISH_TASK,), (PLACE_TASK,)]


def test_a_binding_of_hawses_own_is_only_published() -> None:
    own = {"annotations": {"egress.hawse.dev/created": "true"}, "name": "app", "resourceVersion": "1"}
    made = Change({"metadata": own, "egressIPs": ["192.168.1.102"]}, deleted=False)
    assert tasks_for(Kind.NET_NAMESPACE, made) == [(PUBLISH_TASK,)]
    emptied = Change({"metadata": own, "egressIPs": []}, deleted=False)
    for other in (emptied, replace(made, deleted=True)):
        assert tasks_for(Kind.NET_NAMESPACE, other) == [(PUBLISH_TASK,), (PLACE_TASK,), (NAMESPACE_TASK, "app")]


def test_every_kind_that_work_hangs_on_is_watched() -> None:
    others = {Kind.LEASE, Kind.SECRET, Kind.MUTATING_WEBHOOKS, Kind.VALIDATING_WEBHOOKS, Kind.NETWORK}
    own = {Kind.EGRESS_POOL, Kind.EGRESS_ADDRESS, Kind.NAMESPACE, Kind.NODE}
    assert set(Runner.watched) == set(Kind) - others - {Kind.EGRESS_IP}
    assert set(OvnKubernetes.watched) == {*own, Kind.EGRESS_IP}


def test_an_egress_ip_of_somebody_elses_may_concern_any_namespace() -> None:
    foreign = change("hawse-shop", deleted=True)
    assert tasks_for(Kind.EGRESS_IP, foreign) == [(PUBLISH_TASK,), (RECONCILE_TASK,)]
    own = {"name": "hawse-shop", "labels": {"egress.hawse.dev/namespace": "shop"}, "resourceVersion": "1"}
    assert tasks_for(Kind.EGRESS_IP, Change({"metadata": own})) == [(PUBLISH_TASK,)]
    assert tasks_for(Kind.EGRESS_IP, Change({"metadata": own}, deleted=True)) == [
        (PUBLISH_TASK,),
        (NAMESPACE_TASK, "shop"),
    ]


class _Asked:
    """In place of a Context: what was asked for."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.ledger = self
        self.changes = 0

    def count_change(self, _: str) -> None:
        self.changes += 1

    def saw(self, *_: object) -> None:
        """For whoever looks at the objects from now on."""

    def ask(self, task: str, *_: str) -> None:
        self.tasks.append(task)


def test_only_what_placement_looks_at_is_news_of_a_node() -> None:
    asked: Any = _Asked()
    watcher = Watcher(Kind.NODE, asked)

    def seen(*, deleted: bool = False, **fields: Any) -> bool:
        asked.tasks.clear()
        before = asked.changes
        watcher._handle(change("n1", deleted=deleted, **fields))
        assert (asked.changes > before) == bool(asked.tasks)
        return asked.tasks == [PLACE_TASK]

    ready = {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "x"}]}
    assert seen(status=ready)
    assert not seen(status={"conditions": [*ready["conditions"], {"type": "DiskPressure", "status": "False"}]})
    assert seen(status={"conditions": [{"type": "Ready", "status": "False"}]})
    assert seen(status=ready)
    assert seen(status=ready, spec={"unschedulable": True})
    assert seen(deleted=True)
    assert seen(status=ready)
    assert seen(status="broken")


def test_what_could_not_be_told_is_told_when_the_watch_resumes() -> None:
    asked: Any = _Asked()
    watcher, heard = Watcher(Kind.EGRESS_POOL, asked), asked.ask

    def away(*_: str) -> None:
        raise TransientError("Redis is away")

    new = Change({"metadata": {"name": "prod", "resourceVersion": "2", "uid": "u", "generation": 2}})
    asked.ask = away
    with pytest.raises(TransientError):
        watcher._handle(new)
    asked.ask = heard
    watcher._handle(new)
    assert asked.tasks == [RECONCILE_TASK]


def test_a_pools_status_is_no_news() -> None:
    asked: Any = _Asked()
    watcher = Watcher(Kind.EGRESS_POOL, asked)

    def seen(generation: int, *, deleted: bool = False) -> bool:
        asked.tasks.clear()
        metadata = {"name": "prod", "resourceVersion": "1", "uid": "u", "generation": generation}
        watcher._handle(Change({"metadata": metadata}, deleted))
        return asked.tasks == [RECONCILE_TASK]

    assert seen(1)
    assert not seen(1)
    assert seen(2)
    assert seen(2, deleted=True)
    assert seen(2)
