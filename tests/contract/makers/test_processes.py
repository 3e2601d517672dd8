"""Webhook, worker, beat and watch as processes on a cluster of OVN-Kubernetes: it has no kind of the runners'."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from egress.adapters.ledger import Ledger
from lab.control_plane import ControlPlane
from lab.kube import Kube
from lab.native.ovn import OvnController, add_node
from lab.net.broker import Broker
from lab.real_cluster import kubectl
from tests.contract.makers.conftest import DEPLOY, Server, started
from tests.contract.workers.conftest import World

A = "192.168.1.102"
pytestmark = pytest.mark.timeout(300)


@contextmanager
def ovn_kubernetes(kube: Kube) -> Iterator[None]:
    """Its controller at work."""
    stop, controller = threading.Event(), OvnController(kube)

    def work() -> None:
        while not stop.wait(0.1):
            controller.sync()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_namespace_gets_its_address_and_gives_it_back_and_draining_takes_it_back(
    real_binaries: Path, broker: Broker, ledger: Ledger, tmp_path: Path
) -> None:
    assert not ledger.is_ready()  # nothing of another test's
    with started(tmp_path, runners=False) as server:
        kube = server.kube
        control = ControlPlane(
            tmp_path / "control", redis_url=broker.unix_url, kubeconfigs=server.kubeconfigs,
            environment={"HAWSE_RECONCILE_INTERVAL": "2", "HAWSE_SWEEP_INTERVAL": "0.5"},
        )  # fmt: skip
        try:
            control.start()
            control.register_webhooks(kube)
            spec = {"cidrs": [f"{A}-192.168.1.110"], "namespaceSelector": {}, "quarantine": "0s"}
            head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": "prod"}}
            kube.create(head | {"spec": spec})
            add_node(kube, "node1", "192.168.1.17/24")
            World.until(lambda: given(kube, "first"), 90)
            with ovn_kubernetes(kube):
                World.until(lambda: phase(kube, A) == "Ready", 90)
                kube.delete("Namespace", "first")
                World.until(lambda: kube.list("EgressIP") == [] and kube.list("EgressAddress") == [], 90)
                World.until(lambda: given(kube, "second"), 90)
                World.until(lambda: phase(kube, A) == "Ready", 90)
                _drain(server, tmp_path)
                assert kube.list("EgressIP") == kube.list("EgressAddress") == kube.list("EgressPool") == []
            assert control.dead() == {}
        finally:
            control.stop()


def given(kube: Kube, name: str) -> bool:
    """Whether a new namespace comes back with an address: not before the reconcile has told the webhook of the pool."""
    if kube.get("Namespace", name) is None:
        kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    found = kube.get("Namespace", name)
    assert found is not None
    return "egress.hawse.dev/addresses" in (found["metadata"].get("annotations") or {})


def _drain(server: Server, home: Path) -> None:
    """deploy/drain.sh, as docs/uninstall.md has it."""
    folder = Path(kubectl() or "").parent
    own = {"KUBECONFIG": str(server.cluster.kubeconfig), "HOME": str(home)}  # kubectl keeps a cache there
    environment = own | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", DEPLOY / "drain.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def phase(kube: Kube, address: str) -> str:
    found = kube.get("EgressAddress", address)
    return str((found or {}).get("status", {}).get("phase", ""))


@pytest.mark.parametrize("process", ["worker", "watch", "api"])
def test_where_two_would_program_the_nodes_no_process_starts(server: Server, broker: Broker, process: str) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("HAWSE_")}
    environment = own | {
        "HAWSE_REDIS_URL": broker.unix_url,
        "HAWSE_KUBECONFIG": str(server.kubeconfigs[process]),
        "HAWSE_HEALTH_PORT": "0",
    }
    command = [str(Path(sys.executable).parent / f"hawse-{process}")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 2
    assert "two would program the nodes: " in done.stderr
    assert "set HAWSE_NETWORK to runner, openshift-sdn or ovn-kubernetes" in " ".join(done.stderr.split())
