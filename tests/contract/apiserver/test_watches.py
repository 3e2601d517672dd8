"""Lists, pages and watches."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.apiserver.client import Answer, Client
from lab.apiserver.objects import Json
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}


def _make(cluster: Client, name: str, **labels: str) -> Answer:
    return cluster.post(CONFIG_MAPS, {"metadata": {"name": name, "labels": labels}})


def _seen(event: Json) -> tuple[str, str]:
    return event["type"], event["object"]["metadata"]["name"]


def test_a_watch_goes_on_from_a_list(cluster: Client, name: str) -> None:
    _make(cluster, f"{name}-a", test=name)
    listed = cluster.get(CONFIG_MAPS, labelSelector=f"test={name}")
    assert len(listed.body["items"]) == 1
    with cluster.watch(CONFIG_MAPS, labelSelector=f"test={name}", resourceVersion=listed.version) as watch:
        _make(cluster, f"{name}-b", test=name)
        cluster.patch(f"{CONFIG_MAPS}/{name}-b", {"data": {"a": "b"}})
        cluster.delete(f"{CONFIG_MAPS}/{name}-a")
        events = [watch.next() for _ in range(3)]
    assert [_seen(event) for event in events] == [
        ("ADDED", f"{name}-b"),
        ("MODIFIED", f"{name}-b"),
        ("DELETED", f"{name}-a"),
    ]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))


def test_a_watch_without_a_version_begins_with_what_there_is(cluster: Client, name: str) -> None:
    _make(cluster, name)
    with cluster.watch(CONFIG_MAPS, fieldSelector=f"metadata.name={name}") as watch:
        assert _seen(watch.next()) == ("ADDED", name)


def test_an_object_comes_into_sight_of_a_selector_and_leaves_it(cluster: Client, name: str) -> None:
    start = _make(cluster, name).version
    path = f"{CONFIG_MAPS}/{name}"
    with cluster.watch(CONFIG_MAPS, labelSelector=f"test={name}", resourceVersion=start) as watch:
        cluster.patch(path, {"metadata": {"labels": {"test": name}}})
        cluster.patch(path, {"data": {"a": "b"}})
        left = cluster.patch(path, {"metadata": {"labels": None}})
        events = [watch.next() for _ in range(3)]
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    assert events[2]["object"]["metadata"]["resourceVersion"] == left.version
    assert events[2]["object"]["metadata"]["labels"] == {"test": name}


def test_a_watch_ends_at_its_timeout_and_leaves_a_bookmark(cluster: Client, name: str) -> None:
    start = _make(cluster, name).version
    query = {"timeoutSeconds": 1, "allowWatchBookmarks": "true", "resourceVersion": start}
    with cluster.watch(CONFIG_MAPS, labelSelector=f"test={name}", **query) as watch:
        events = watch.rest()
    # A real server promises bookmarks no more than "if it can": none is right, a wrong one is not.
    for event in events:
        assert event["type"] == "BOOKMARK"
        assert int(event["object"]["metadata"]["resourceVersion"]) >= int(start)
        assert event["object"]["kind"] == "ConfigMap"


def test_initial_events_end_with_a_marked_bookmark(cluster: Client, name: str) -> None:
    _make(cluster, name, test=name)
    query = {"sendInitialEvents": "true", "allowWatchBookmarks": "true", "resourceVersionMatch": "NotOlderThan"}
    with cluster.watch(CONFIG_MAPS, labelSelector=f"test={name}", **query) as watch:
        assert _seen(watch.next()) == ("ADDED", name)
        mark = watch.next()
    assert mark["type"] == "BOOKMARK"
    assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_a_list_in_pages_is_one_consistent_list(cluster: Client, name: str) -> None:
    for number in range(5):
        _make(cluster, f"{name}-{number}", test=name)
    first = cluster.get(CONFIG_MAPS, labelSelector=f"test={name}", limit=2)
    token = first.body["metadata"]["continue"]
    cluster.delete(f"{CONFIG_MAPS}/{name}-3")
    _make(cluster, f"{name}-9", test=name)
    found = [obj["metadata"]["name"] for obj in first.body["items"]]
    while token:
        page = cluster.get(CONFIG_MAPS, **{"labelSelector": f"test={name}", "limit": 2, "continue": token})
        found += [obj["metadata"]["name"] for obj in page.body["items"]]
        token = page.body["metadata"].get("continue")
        assert page.version == first.version
    assert found == [f"{name}-{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("tier=a", "0"),
        ("tier!=a", "12"),
        ("tier in (a,b)", "01"),
        ("tier notin (a)", "12"),
        ("tier", "01"),
        ("!tier", "2"),
    ],
)
def test_label_selectors(cluster: Client, name: str, selector: str, expected: object) -> None:
    for number, labels in enumerate(({"tier": "a"}, {"tier": "b"}, {})):
        _make(cluster, f"{name}-{number}", test=name, **labels)
    items = cluster.get(CONFIG_MAPS, labelSelector=f"test={name},{selector}").body["items"]
    assert "".join(obj["metadata"]["name"][-1] for obj in items) == expected


def test_selectors_that_cannot_be_read_are_a_400(cluster: Client) -> None:
    assert cluster.get(CONFIG_MAPS, labelSelector="a=(b").code == 400
    assert cluster.get(CONFIG_MAPS, fieldSelector="data.x=1").code == 400


def test_a_table_has_its_columns_in_the_first_event_alone(cluster: Client, name: str) -> None:
    _make(cluster, f"{name}-a", test=name)
    listed = cluster.get(CONFIG_MAPS, headers=TABLE, labelSelector=f"test={name}").body
    assert listed["kind"] == "Table"
    assert [column["name"] for column in listed["columnDefinitions"]] == ["Name", "Data", "Age"]
    assert listed["rows"][0]["cells"][:2] == [f"{name}-a", 0]
    assert listed["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    _make(cluster, f"{name}-b", test=name)
    with cluster.watch(CONFIG_MAPS, TABLE, labelSelector=f"test={name}") as watch:
        first, second = (watch.next()["object"] for _ in range(2))
    assert first["columnDefinitions"]
    assert not second["columnDefinitions"]


def test_an_expired_watch_is_told_410(tmp_path: Path, name: str, client_of: Callable[[Cluster], Client]) -> None:
    """Embedded alone: a real server's history is not ours to shorten."""
    with EmbeddedCluster(tmp_path, history=5) as cluster:
        client = client_of(cluster)
        start = _make(client, name).version
        for number in range(10):
            client.patch(f"{CONFIG_MAPS}/{name}", {"data": {"n": str(number)}})
        with client.watch(CONFIG_MAPS, resourceVersion=start) as watch:
            (event,) = watch.rest()
        assert watch.code == 200
        assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
        recent = int(client.get(CONFIG_MAPS).version) - 3
        with client.watch(CONFIG_MAPS, resourceVersion=recent) as watch:
            assert [watch.next()["type"] for _ in range(3)] == ["MODIFIED"] * 3


def test_an_expired_page_is_told_410(tmp_path: Path, name: str, client_of: Callable[[Cluster], Client]) -> None:
    with EmbeddedCluster(tmp_path) as cluster:
        client = client_of(cluster)
        for number in range(3):
            _make(client, f"{name}-{number}")
        token = client.get(CONFIG_MAPS, limit=1).body["metadata"]["continue"]
        cluster.restart()
        gone = client.get(CONFIG_MAPS, **{"limit": 1, "continue": token})
    assert (gone.code, gone.body["reason"]) == (410, "Expired")


def test_a_version_from_the_future_is_refused(cluster: Client) -> None:
    # A real server waits three seconds for it to come, then says so.
    refused = cluster.get(CONFIG_MAPS, resourceVersion=10**15)
    assert (refused.code, refused.body["reason"]) == (504, "Timeout")


def test_many_watchers_hear_every_change_of_a_burst(cluster: Client, name: str) -> None:
    start = cluster.get(CONFIG_MAPS).version
    watches = [cluster.watch(CONFIG_MAPS, labelSelector=f"test={name}", resourceVersion=start) for _ in range(5)]
    threads = [threading.Thread(target=_make, args=(cluster, f"{name}-{n}"), kwargs={"test": name}) for n in range(40)]
    for thread in threads:
        thread.start()
    heard = [[watch.next() for _ in range(40)] for watch in watches]
    for thread in threads:
        thread.join()
    for watch in watches:
        watch.__exit__()
    assert len({json.dumps(events) for events in heard}) == 1
    assert {_seen(event) for event in heard[0]} == {("ADDED", f"{name}-{n}") for n in range(40)}
