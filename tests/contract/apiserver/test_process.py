"""The embedded cluster as a process: what survives a crash, who may share a directory, when it ends."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.apiserver.client import Client
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import ClusterError

ROOT = Path(__file__).resolve().parents[3]
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def test_a_killed_cluster_comes_back_as_it_was(tmp_path: Path, client_of: Callable[[EmbeddedCluster], Client]) -> None:
    cluster = EmbeddedCluster(tmp_path)
    with cluster:
        client = client_of(cluster)
        url = cluster.url
        made = [client.post(CONFIG_MAPS, {"metadata": {"name": f"c{n}"}}).body for n in range(20)]
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
        with client.watch(CONFIG_MAPS, resourceVersion=made[-1]["metadata"]["resourceVersion"]) as watch:
            assert [watch.next()["type"] for _ in range(2)] == ["DELETED", "ADDED"]


def test_custom_resources_are_served_again_after_a_crash(
    tmp_path: Path, client_of: Callable[[EmbeddedCluster], Client]
) -> None:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    names = {"plural": "things", "kind": "Thing"}
    spec = {"group": "x.dev", "scope": "Cluster", "names": names, "versions": [version]}
    with EmbeddedCluster(tmp_path) as cluster:
        client = client_of(cluster)
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        client.post(path, {"metadata": {"name": "things.x.dev"}, "spec": spec})
        client.post("/apis/x.dev/v1/things", {"metadata": {"name": "a"}, "any": 1})
        cluster.kill()
        cluster.start()
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


def test_stop_ends_open_watches_at_once(tmp_path: Path, client_of: Callable[[EmbeddedCluster], Client]) -> None:
    with EmbeddedCluster(tmp_path) as cluster:
        watch = client_of(cluster).watch(CONFIG_MAPS, resourceVersion=1)
        cluster.stop()
        with watch:
            assert watch.next() == {}
    assert cluster.pid is None


def test_its_files_are_for_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    with EmbeddedCluster(directory) as cluster:
        assert cluster.ca_path.exists()
        assert cluster.kubeconfig.exists()
    modes = {path.name: path.stat().st_mode & 0o077 for path in directory.iterdir()}
    assert [name for name in ("tokens.csv", "ca.key", "server.pem", "kubeconfig", "journal.jsonl") if modes[name]] == []
    assert directory.stat().st_mode & 0o077 == 0


def test_it_dies_with_its_parent(tmp_path: Path, eventually: Callable[..., None]) -> None:
    code = (
        "import os, sys; sys.path.append(sys.argv[1])\n"
        "from pathlib import Path\n"
        "from lab.apiserver.process import EmbeddedCluster\n"
        "print(EmbeddedCluster(Path(sys.argv[2])).start().pid, flush=True); os._exit(0)\n"
    )
    command = [sys.executable, "-P", "-c", code, str(ROOT), str(tmp_path)]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout)
    eventually(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
