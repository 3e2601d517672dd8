"""A cluster as processes: what survives a crash, who may share a directory, when it ends."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lab.apiserver.client import Client
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster, ClusterError
from lab.real_cluster import RealCluster

ROOT = Path(__file__).resolve().parents[3]
ClusterClass = type[EmbeddedCluster] | type[RealCluster]
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def test_a_killed_cluster_comes_back_as_it_was(
    cluster_class: ClusterClass, tmp_path: Path, client_of: Callable[[Cluster], Client]
) -> None:
    cluster = cluster_class(tmp_path)
    with cluster:
        client = client_of(cluster)
        url = cluster.url
        for number in range(20):
            client.post(CONFIG_MAPS, {"metadata": {"name": f"c{number}"}})
        client.delete(f"{CONFIG_MAPS}/c0")
        before = client.get(CONFIG_MAPS)
        cluster.kill()
        cluster.start()
        assert cluster.url == url
        after = client.get(CONFIG_MAPS)
        assert after.body["items"] == before.body["items"]
        assert len(after.body["items"]) == 19
        later = client.post(CONFIG_MAPS, {"metadata": {"name": "later"}})
        assert int(later.version) > int(before.version)
        with client.watch(CONFIG_MAPS, resourceVersion=after.version) as watch:
            assert watch.next()["object"]["metadata"]["name"] == "later"


def test_after_a_restart_watches_go_on_from_its_start_alone(
    cluster_class: ClusterClass, tmp_path: Path, client_of: Callable[[Cluster], Client]
) -> None:
    """Whoever watched before must list again, though nothing is lost: the server kept no history of changes."""
    with cluster_class(tmp_path) as cluster:
        client = client_of(cluster)
        versions = [client.post(CONFIG_MAPS, {"metadata": {"name": f"c{n}"}}).version for n in range(2)]
        cluster.restart()
        with client.watch(CONFIG_MAPS, resourceVersion=versions[0]) as watch:
            (event,) = watch.rest()
        assert watch.code == 200
        assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_custom_resources_are_served_again_after_a_crash(
    cluster_class: ClusterClass,
    tmp_path: Path,
    client_of: Callable[[Cluster], Client],
    eventually: Callable[..., None],
) -> None:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    names = {"plural": "things", "kind": "Thing"}
    spec = {"group": "x.dev", "scope": "Cluster", "names": names, "versions": [version]}
    thing = {"apiVersion": "x.dev/v1", "kind": "Thing", "metadata": {"name": "a"}, "any": 1}
    with cluster_class(tmp_path) as cluster:
        client = client_of(cluster)
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        client.post(path, {"metadata": {"name": "things.x.dev"}, "spec": spec})
        eventually(lambda: client.post("/apis/x.dev/v1/things", thing).code == 201)
        cluster.kill()
        cluster.start()
        eventually(lambda: client.get("/apis/x.dev/v1/things/a").code == 200)
        assert client.get("/apis/x.dev/v1/things/a").body["any"] == 1


def test_a_torn_last_line_of_the_journal_is_forgotten(
    tmp_path: Path, client_of: Callable[[EmbeddedCluster], Client]
) -> None:
    with EmbeddedCluster(tmp_path) as cluster:
        client = client_of(cluster)
        client.post(CONFIG_MAPS, {"metadata": {"name": "a"}})
        cluster.kill()
        with (tmp_path / "journal.jsonl").open("ab") as journal:
            journal.write(b'{"revision":99,"type":"ADD')
        cluster.start()
        assert client.get(f"{CONFIG_MAPS}/a").code == 200
        assert client.post(CONFIG_MAPS, {"metadata": {"name": "b"}}).code == 201
        cluster.restart()
        assert client.get(f"{CONFIG_MAPS}/b").code == 200


def test_two_servers_do_not_share_a_directory(tmp_path: Path) -> None:
    with EmbeddedCluster(tmp_path), pytest.raises(ClusterError, match="in use by another embedded cluster"):
        EmbeddedCluster(tmp_path).start()


def test_stop_ends_open_watches_at_once(
    cluster_class: ClusterClass, tmp_path: Path, client_of: Callable[[Cluster], Client]
) -> None:
    with cluster_class(tmp_path) as cluster:
        watch = client_of(cluster).watch(CONFIG_MAPS, resourceVersion=1)
        cluster.stop()
        with watch:
            assert watch.next() == {}
    assert cluster.pid is None


def test_its_files_are_for_its_owner_alone(cluster_class: ClusterClass, tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    with cluster_class(directory) as cluster:
        assert cluster.ca_path.exists()
        assert cluster.kubeconfig.exists()
    secret = {"tokens.csv", "ca.key", "server.pem", "kubeconfig", "journal.jsonl", "controller.token", "etcd"}
    modes = {path.name: path.stat().st_mode & 0o077 for path in directory.iterdir() if path.name in secret}
    assert modes.keys() >= {"tokens.csv", "ca.key", "server.pem", "kubeconfig"}
    assert not any(modes.values()), modes
    assert directory.stat().st_mode & 0o077 == 0


def test_it_dies_with_its_parent(cluster_class: ClusterClass, tmp_path: Path, eventually: Callable[..., None]) -> None:
    code = (
        "import os, sys; sys.path.append(sys.argv[1])\n"
        "from pathlib import Path\n"
        f"from {cluster_class.__module__} import {cluster_class.__name__} as Cluster\n"
        "cluster = Cluster(Path(sys.argv[2])).start()\n"
        "print(cluster.pid, cluster.url, flush=True); os._exit(0)\n"
    )
    command = [sys.executable, "-P", "-c", code, str(ROOT), str(tmp_path)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=150, check=True).stdout
    pid, url = said.split()
    eventually(lambda: not _runs(int(pid)))
    eventually(lambda: not _listens(url))


def _listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port)) == 0


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
