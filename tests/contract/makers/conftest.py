"""The makers on a real API server and a real Valkey, with stand-ins for the networks' own controllers.

One server for all: every test begins on an empty cluster, and the audit log of the server says who wrote what.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from egress.adapters.cluster import Cluster
from egress.adapters.ledger import Ledger
from egress.adapters.networks import Detector
from egress.messages import NAMESPACE_TASK
from egress.settings import Settings
from lab.accounts import Accounts, user_of
from lab.control_plane import ROOT, install
from lab.kube import Kube, KubeError
from lab.real_cluster import RealCluster
from tests.contract.workers.conftest import World
from workers.context import Context

Json = dict[str, Any]
DEPLOY = ROOT / "deploy"
OURS = ("EgressAddress", "EgressPool", "EgressIP", "NetNamespace", "HostSubnet", "Node", "Namespace")
SYSTEM = ("default", "kube-system", "kube-public", "kube-node-lease", "hawse-system")


@dataclass
class Server:
    """The API server, and the client of each of Hawse's processes."""

    cluster: RealCluster
    kube: Kube
    kubeconfigs: dict[str, Path]
    audit: Path
    read: int = field(default=0)

    def writes(self, user: str = user_of("worker")) -> set[tuple[str, str, str]]:
        """What `user` has written since this was asked last: verb, resource with its subresource, and name. Refused
        writes too; Events are left out."""
        lines = self.audit.read_bytes()[self.read :]
        lines = lines[: lines.rfind(b"\n") + 1]  # the last may be half written
        self.read += len(lines)
        found = set()
        for event in map(json.loads, lines.splitlines()):
            about = event["objectRef"]
            if event["user"]["username"] != user or about["resource"] == "events":
                continue
            resource = "/".join(filter(None, (about["resource"], about.get("subresource", ""))))
            name = about.get("name") or (event.get("responseObject") or {}).get("metadata", {}).get("name", "")
            found.add((event["verb"], resource, name))
        return found


@pytest.fixture(scope="session")
def server(real_binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the kinds of OVN-Kubernetes and of Hawse's runners."""
    with started(tmp_path_factory.mktemp("makers")) as running:
        yield running


@contextmanager
def started(directory: Path, *, runners: bool = True) -> Iterator[Server]:
    """One for as long as somebody needs it. Without `runners` it has no HostSubnet and no NetNamespace."""
    accounts = Accounts(directory / "cluster")
    audit = directory / "audit.log"
    with RealCluster(directory / "cluster", audit=audit) as running:
        kube = Kube(running.url, running.ca_path, running.token)
        if runners:
            install(kube)
        else:
            kube.apply_files([DEPLOY / "base" / "namespace.yaml", DEPLOY / "base" / "rbac.yaml"])
            kube.apply_files((DEPLOY / "crds").glob("egress*.yaml"))
        kube.apply_files([DEPLOY / "components" / name / "rbac.yaml" for name in ("ovn-kubernetes", "label-nodes")])
        for manifest in yaml.safe_load_all((ROOT / "lab" / "native" / "crds.yaml").read_text()):
            if manifest["spec"]["names"]["kind"] == "EgressIP":
                kube.create(manifest)
        World.until(lambda: _served(kube))
        yield Server(running, kube, accounts.kubeconfigs(running.kubeconfig, directory), audit)


def _served(kube: Kube) -> bool:
    try:
        return kube.list("EgressIP") == kube.list("EgressPool") == kube.list("EgressAddress") == []
    except KubeError:
        return False


@pytest.fixture
def settings() -> dict[str, Any]:
    """Changes to the settings."""
    return {"network": "ovn-kubernetes"}


@pytest.fixture
def tidy() -> bool:
    """Whether the next test finds the cluster empty."""
    return True


@pytest.fixture
def world(server: Server, ledger: Ledger, settings: dict[str, Any], tidy: bool) -> Iterator[World]:
    """The workers' functions with the rights of the workers' role."""
    waiting: list[tuple[str, tuple[Any, ...]]] = []

    def send(task: str, arguments: list[Any], queue: str, delay: float = 0.0) -> None:
        del queue, delay
        if task == NAMESPACE_TASK:  # of many at once
            waiting.extend((task, (name,)) for name in arguments)
        else:
            waiting.append((task, tuple(arguments)))

    kubeconfig = str(server.kubeconfigs["worker"])
    current = Settings(kubeconfig=kubeconfig, report_wait=0.0, status_interval=0.0, fence_wait=0.0, **settings)
    cluster = Cluster(kubeconfig)
    context = Context(current, ledger, cluster, send, network=Detector(cluster, current.network))
    server.writes()
    yield World(server.cluster, server.kube, context, waiting)
    if tidy:
        _empty(server.kube)


def _empty(kube: Kube) -> None:
    def remove(item: Json) -> None:
        kind, name = item["kind"], item["metadata"]["name"]
        if item["metadata"].get("finalizers"):
            kube.patch(kind, name, {"metadata": {"finalizers": None}})
        kube.delete(kind, name)

    found = [{"kind": kind, **item} for kind in OURS for item in kube.list(kind)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(remove, [item for item in found if item["metadata"]["name"] not in SYSTEM]))
    World.until(lambda: {item["metadata"]["name"] for item in kube.list("Namespace")} <= set(SYSTEM), 300)
