"""A mirror follows its kind: through changes, kills and restarts of the API server, and lost history."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from egress.adapters.cluster import Cluster, Kind, Manifest
from egress.adapters.manifests import ManifestError
from egress.adapters.mirror import Mirror, Snapshot
from lab.apiserver.process import EmbeddedCluster
from lab.kube import Kube

Items = dict[str, str]


@pytest.fixture
def history() -> int:
    """How many changes the API server remembers for watches."""
    return 1000


@pytest.fixture
def server(tmp_path: Path, history: int) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(tmp_path / "cluster", history=history, namespace_controller=False) as running:
        yield running


@pytest.fixture
def kube(server: EmbeddedCluster) -> Kube:
    return Kube(server.url, server.ca_path, server.token)


@pytest.fixture
def cluster(server: EmbeddedCluster) -> Cluster:
    return Cluster(str(server.kubeconfig))


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    stop = threading.Event()
    yield stop
    stop.set()


def label_of(manifest: Manifest) -> str:
    """The label `n`; a node that says it is broken cannot be read."""
    text: str = (manifest["metadata"].get("labels") or {}).get("n", "")
    if text == "broken":
        raise ManifestError("Node", manifest["metadata"]["name"], "$.metadata.labels.n", "is broken")
    return text


def node(name: str, label: str = "") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"n": label}}}


def truth(kube: Kube) -> Items:
    return {item["metadata"]["name"]: (item["metadata"].get("labels") or {}).get("n", "") for item in kube.list("Node")}


def until(check: Callable[[], object], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_follows_what_is_made_changed_and_deleted(kube: Kube, cluster: Cluster, stop: threading.Event) -> None:
    kube.create(node("a", "1"))
    changes: list[int] = []
    mirror = Mirror(cluster, Kind.NODE, label_of, lambda: changes.append(1))
    assert not mirror.synced()
    assert mirror.verdict() == "/api/v1/nodes is not listed yet"
    assert mirror.items() == {}
    mirror.start(stop)
    until(mirror.synced)
    assert (mirror.items(), mirror.verdict(), mirror.alive()) == ({"a": "1"}, None, None)
    kube.create(node("b", "2"))
    until(lambda: mirror.items() == {"a": "1", "b": "2"})
    kube.patch("Node", "b", {"metadata": {"labels": {"n": "3"}}})
    until(lambda: mirror.items() == {"a": "1", "b": "3"})
    kube.delete("Node", "a")
    until(lambda: mirror.items() == {"b": "3"})
    until(lambda: len(changes) == mirror.version == 4)


def test_a_snapshot_never_changes_and_what_is_the_same_is_no_new_version(
    kube: Kube, cluster: Cluster, stop: threading.Event
) -> None:
    kube.create(node("a", "1"))
    mirror = Mirror(cluster, Kind.NODE, label_of)
    mirror.start(stop)
    until(mirror.synced)
    before = mirror.snapshot()
    kube.patch("Node", "a", {"metadata": {"annotations": {"of": "no interest"}}})
    kube.create(node("b"))
    until(lambda: "b" in mirror.items())
    assert before == Snapshot(1, {"a": "1"})
    assert mirror.version == 2
    with pytest.raises(TypeError):
        before.items["b"] = ""  # type: ignore[index]


def test_what_cannot_be_read_is_left_out_and_stops_nothing(kube: Kube, cluster: Cluster, stop: threading.Event) -> None:
    kube.create(node("a", "broken"))
    kube.create(node("b", "1"))
    mirror = Mirror(cluster, Kind.NODE, label_of)
    mirror.start(stop)
    until(mirror.synced)
    assert mirror.items() == {"b": "1"}
    assert mirror.news(None).unread
    kube.patch("Node", "b", {"metadata": {"labels": {"n": "broken"}}})
    kube.patch("Node", "a", {"metadata": {"labels": {"n": "2"}}})
    until(lambda: mirror.items() == {"a": "2"})
    assert mirror.news(None).unread
    assert (mirror.item("a"), mirror.item("b")) == ("2", None)
    kube.delete("Node", "b")
    until(lambda: not mirror.news(None).unread)


def test_while_the_server_is_away_the_last_state_stays(
    server: EmbeddedCluster, kube: Kube, cluster: Cluster, stop: threading.Event
) -> None:
    kube.create(node("a", "1"))
    mirror = Mirror(cluster, Kind.NODE, label_of)
    mirror.start(stop)
    until(mirror.current)
    server.kill()
    until(lambda: not mirror.current())
    assert (mirror.items(), mirror.synced()) == ({"a": "1"}, True)
    server.start()
    kube.create(node("b", "2"))
    until(lambda: mirror.items() == {"a": "1", "b": "2"})
    until(mirror.current)


@pytest.mark.parametrize("history", [5])
def test_what_went_by_unseen_is_listed_again(
    server: EmbeddedCluster, kube: Kube, cluster: Cluster, stop: threading.Event
) -> None:
    """The server has forgotten where the watch was when it comes back."""
    for name in "abc":
        kube.create(node(name, "1"))
    mirror = Mirror(cluster, Kind.NODE, label_of)
    mirror.start(stop)
    until(lambda: len(mirror.items()) == 3)
    server.stop()
    until(lambda: not mirror.current())
    # Other clients change it behind the mirror's back: the mirror's own connection is refused until it looks again.
    server.start()
    kube.delete("Node", "a")
    for number in range(30):
        kube.patch("Node", "b", {"metadata": {"labels": {"n": str(number)}}})
    until(lambda: mirror.items() == {"b": "29", "c": "1"})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("history", [40])
def test_it_comes_to_the_truth_whatever_happens(
    server: EmbeddedCluster, kube: Kube, cluster: Cluster, stop: threading.Event, seed: int
) -> None:
    """Random changes and crashes. Each snapshot on the way is a state that there was: `pair-x` and `pair-y` never
    differ by more than the one that is written first."""
    chosen = random.Random(seed)
    torn: list[Items] = []
    mirror = Mirror(cluster, Kind.NODE, label_of)
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.0005):
            items = mirror.items()
            if "pair-x" in items and "pair-y" in items and not 0 <= int(items["pair-x"]) - int(items["pair-y"]) <= 1:
                torn.append(dict(items))

    kube.create(node("pair-x", "0"))
    kube.create(node("pair-y", "0"))
    mirror.start(stop)
    until(mirror.synced)
    looker = threading.Thread(target=look)
    looker.start()
    try:
        known: set[str] = set()
        for step in range(1, 121):
            for name in ("pair-x", "pair-y"):
                kube.patch("Node", name, {"metadata": {"labels": {"n": str(step)}}})
            name = f"n{chosen.randrange(12)}"
            if name in known and chosen.random() < 0.4:
                kube.delete("Node", name)
                known.discard(name)
            elif name in known:
                kube.patch("Node", name, {"metadata": {"labels": {"n": str(step)}}})
            else:
                kube.create(node(name, str(step)))
                known.add(name)
            if step % 40 == 0:
                chosen.choice((server.kill, server.stop))()
                server.start()
        wanted = truth(kube)
        until(lambda: mirror.items() == wanted)
    finally:
        done.set()
        looker.join()
    assert torn == []
    assert mirror.alive() is None
