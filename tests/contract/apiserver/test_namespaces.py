"""Namespaces: their label, how they terminate, and the controller that empties them."""

from collections.abc import Callable
from pathlib import Path

from lab.apiserver.client import Client
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster
from lab.real_cluster import RealCluster


def test_a_namespace_is_labelled_with_its_name_for_good(cluster: Client, name: str) -> None:
    path = f"/api/v1/namespaces/{name}"
    created = cluster.namespace(name).body
    assert created["metadata"]["labels"] == {"kubernetes.io/metadata.name": name}
    assert (created["spec"], created["status"]) == ({"finalizers": ["kubernetes"]}, {"phase": "Active"})
    kept = cluster.patch(path, {"metadata": {"labels": {"kubernetes.io/metadata.name": "other", "a": "b"}}})
    assert kept.body["metadata"]["labels"] == {"kubernetes.io/metadata.name": name, "a": "b"}


def test_a_terminating_namespace_waits_for_both_kinds_of_finalizers(
    cluster_class: type[EmbeddedCluster] | type[RealCluster],
    tmp_path: Path,
    name: str,
    client_of: Callable[[Cluster], Client],
) -> None:
    """On a cluster of its own, whose controller does not come first."""
    with cluster_class(tmp_path, namespace_controller=False) as running:
        cluster = client_of(running)
        path = f"/api/v1/namespaces/{name}"
        cluster.namespace(name, finalizers=["x.dev/a"])
        marked = cluster.delete(path)
        assert (marked.code, marked.body["status"]["phase"]) == (200, "Terminating")
        assert marked.body["metadata"]["deletionTimestamp"]
        new = cluster.post(f"{path}/configmaps", {"metadata": {"name": "late"}})
        assert (new.code, new.body["reason"]) == (403, "Forbidden")
        assert new.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
        released = cluster.put(f"{path}/finalize", marked.body | {"spec": {"finalizers": []}})
        assert released.code == 200
        assert cluster.get(path).code == 200
        assert cluster.patch(path, {"metadata": {"finalizers": None}}).code == 200
        assert cluster.get(path).code == 404


def test_an_ordinary_write_cannot_take_the_kubernetes_finalizer(cluster: Client, name: str) -> None:
    path = f"/api/v1/namespaces/{name}"
    created = cluster.namespace(name).body
    kept = cluster.put(path, created | {"spec": {"finalizers": []}})
    assert kept.body["spec"] == {"finalizers": ["kubernetes"]}
    assert kept.version == created["metadata"]["resourceVersion"]


def test_the_controller_empties_a_namespace_and_lets_it_go(
    cluster: Client, name: str, eventually: Callable[..., None]
) -> None:
    path = f"/api/v1/namespaces/{name}"
    cluster.namespace(name)
    held = {"metadata": {"name": "held", "finalizers": ["x.dev/a"]}}
    cluster.post(f"{path}/configmaps", held)
    cluster.post(f"{path}/secrets", {"metadata": {"name": "s"}, "stringData": {"a": "b"}})
    cluster.delete(path)
    eventually(lambda: cluster.get(f"{path}/secrets/s").code == 404)
    eventually(lambda: "deletionTimestamp" in cluster.get(f"{path}/configmaps/held").body["metadata"])
    assert cluster.get(path).body["status"]["phase"] == "Terminating"
    cluster.patch(f"{path}/configmaps/held", {"metadata": {"finalizers": None}})
    eventually(lambda: cluster.get(path).code == 404)


def test_the_default_namespace_stays(cluster: Client) -> None:
    refused = cluster.delete("/api/v1/namespaces/default")
    assert (refused.code, refused.body["reason"]) == (403, "Forbidden")
