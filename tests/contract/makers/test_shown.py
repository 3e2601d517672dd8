"""What people see, and what the firewall team is told, where OVN-Kubernetes programs the nodes: the same as with
runners, and what nobody can know is said to be so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import urllib3

from egress.adapters.ledger import Ledger
from egress.networks import Network
from lab.control_plane import ControlPlane
from lab.native.ovn import add_node
from lab.net.broker import Broker
from lab.tickets.receiver import Desk
from tests.contract.makers.conftest import started
from tests.contract.makers.test_processes import A, given, ovn_kubernetes, phase
from tests.contract.workers.conftest import World
from workers.census import CensusCollector

pytestmark = pytest.mark.timeout(300)
UNSEEN = Network.OVN_KUBERNETES.unseen


def test_tickets_pages_command_and_metrics(real_binaries: Path, broker: Broker, ledger: Ledger, tmp_path: Path) -> None:
    with started(tmp_path, runners=False) as server, Desk() as desk:
        desk.closed = False
        profiles = tmp_path / "profiles.yaml"
        profiles.write_text(json.dumps({"cluster": "native", "profiles": [desk.profile(tmp_path)]}))
        kube = server.kube
        control = ControlPlane(
            tmp_path / "control", redis_url=broker.unix_url, kubeconfigs=server.kubeconfigs,
            environment={
                "HAWSE_TICKET_PROFILES": str(profiles), "HAWSE_ANONYMOUS": "true", "HAWSE_RECONCILE_INTERVAL": "2",
            },
        )  # fmt: skip
        try:
            control.start()
            control.register_webhooks(kube)
            spec = {"cidrs": [f"{A}-192.168.1.110"], "namespaceSelector": {}, "ticketProfile": desk.name}
            head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": "prod"}}
            kube.create(head | {"spec": spec})
            add_node(kube, "node1", "192.168.1.17/24")
            World.until(lambda: given(kube, "shop"), 90)
            with ovn_kubernetes(kube):
                World.until(lambda: phase(kube, A) == "Ready", 90)
                (ticket,) = World.until(lambda: desk.tickets, 90)
                assert ticket["subject"] == A
                assert ticket["data"]["namespace"] == "shop"
                _shows(control, ledger)
            assert control.dead() == {}
        finally:
            control.stop()


def _shows(control: ControlPlane, ledger: Ledger) -> None:
    pages = {
        path: urllib3.request("GET", control.api_url + path).data.decode()
        for path in ("/", "/nodes", "/verification", "/namespaces/shop/path", "/namespaces/shop", "/assignments")
    }
    for path in ("/", "/nodes", "/verification", "/namespaces/shop/path"):
        assert UNSEEN in pages[path], path
    assert all(A in pages[path] for path in ("/namespaces/shop/path", "/namespaces/shop", "/assignments"))

    status = _hawse(control, "status")
    assert (status.returncode, status.stderr) == (0, ""), status.stdout
    assert UNSEEN in status.stdout
    explained = _hawse(control, "explain", "shop")
    assert explained.returncode == 0, explained.stdout
    assert UNSEEN in explained.stdout
    assert "EgressIP hawse-shop" in explained.stdout

    def metrics() -> dict[tuple[str, str], float]:
        samples = [sample for metric in CensusCollector(ledger).collect() for sample in metric.samples]
        return {(sample.name, "/".join(sample.labels.values())): sample.value for sample in samples}

    World.until(lambda: metrics().get(("hawse_assignments", "Ready")) == 1)
    assert metrics()["hawse_pool_addresses", "prod/allocated"] == 1


def _hawse(control: ControlPlane, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("hawse")), *arguments]
    environment = {**os.environ, "HAWSE_SERVER": control.api_url, "KUBECONFIG": "/nowhere"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
