"""All of Hawse on a lab of its own: the embedded cluster, the broker, the control plane, and nodes with runners."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import urllib3

from egress.adapters.ledger import Ledger
from egress.operations import TransientError
from lab.accounts import Accounts
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster
from lab.control_plane import ControlPlane, install
from lab.kube import Json, Kube
from lab.net.broker import Broker
from lab.net.channel import RemoteProcess
from lab.net.network import NetworkLab
from lab.net.topology import DEFAULT_NODES, NodeSpec

T = TypeVar("T")
AWAY = (TransientError, ConnectionError, TimeoutError, urllib3.exceptions.HTTPError)
RUNNER = Path(sys.executable).parent / "hawse-node-runner"


class Stack:
    """Everything, below `directory`. Nothing of it outlives this process.

    `egress_nodes` carry the label that lets them host addresses. `settings` goes to every process of Hawse. `cluster`
    makes the API server on a directory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: tuple[NodeSpec, ...] = DEFAULT_NODES,
        egress_nodes: Sequence[str] = ("node2",),
        settings: dict[str, str] | None = None,
        cluster: Callable[[Path], Cluster] = EmbeddedCluster,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.directory = directory
        self.network = NetworkLab(directory / "network", nodes)
        self.cluster = cluster(directory / "cluster")
        self.broker: Broker
        self.control: ControlPlane
        self.kube: Kube
        self.runners: dict[str, RemoteProcess] = {}
        self._egress_nodes = egress_nodes
        self._settings = {
            "HAWSE_CLUSTER_NETWORKS": ",".join(map(str, self.network.cluster_networks)),
            **(settings or {}),
        }
        self._say = say

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts all of it; runners have reported when this returns."""
        self._say("network: a kernel with two nodes, Open vSwitch and iptables")
        self.network.start()
        self._say("broker: Valkey")
        self.broker = Broker(self.directory / "broker", self.network.holder)
        self.broker.start()
        self._say("cluster: an API server")
        accounts = Accounts(self.directory / "cluster")
        self.cluster.start()
        self.kube = Kube(self.cluster.url, self.cluster.ca_path, self.cluster.token)
        install(self.kube)
        for spec in self.network.nodes.values():
            self.kube.create(self._node(spec))
            self.kube.create(self._host_subnet(spec))
        self._say("control plane: webhook, worker, beat and watch")
        self.control = ControlPlane(
            self.directory / "control",
            redis_url=self.broker.unix_url,
            kubeconfigs=accounts.kubeconfigs(self.cluster.kubeconfig, self.directory),
            environment=self._settings,
        )
        self.control.start()
        self.control.register_webhooks(self.kube)
        self._say("node runners: one on each node")
        for name in self.network.nodes:
            self.start_runner(name)
        for name in self.network.nodes:
            wait_for(f"the report of {name}'s runner", lambda name=name: self.reported(name, 0), 60)  # type: ignore[misc]

    def stop(self) -> None:
        """Ends all of it."""
        if hasattr(self, "control"):
            self.control.stop()
        self.cluster.stop()
        if hasattr(self, "broker"):
            self.broker.stop()
        self.network.stop()

    def start_runner(self, name: str, command: Sequence[str | Path] = (RUNNER,)) -> RemoteProcess:
        """Starts the runner of a node, or another command in its place."""
        spec = self.network.nodes[name]
        environment = {
            "HAWSE_REDIS_URL": self.broker.tcp_url,
            "HAWSE_NODE_NAME": spec.host,
            "HAWSE_NODE_IP": str(spec.address),
            "HAWSE_HEALTH_PORT": "0",
            **self._settings,
        }
        self.runners[name] = self.network.spawn(name, command, env=environment, log=f"runner-{name}")
        return self.runners[name]

    def create_namespace(self, name: str, annotations: dict[str, str] | None = None, **labels: str) -> Json:
        """Creates a namespace through the API; what came back."""
        metadata = {"name": name, "annotations": annotations or {}, "labels": labels}
        return self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def create_pool(self, name: str, *cidrs: str, **fields: object) -> Json:
        """Creates an EgressPool; without a selector it serves every namespace."""
        spec = {"cidrs": list(cidrs), "namespaceSelector": {}, **fields}
        manifest = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": name}}
        return self.kube.create(manifest | {"spec": spec})

    def flows(self, node: str) -> list[str]:
        """A node's flows in the egress table, with their packet counts, as Open vSwitch prints them."""
        command = ["ovs-ofctl", "-O", "OpenFlow13", "--no-names", "dump-flows", "br0", "table=100"]
        done = self.network.run(node, command, check=True)
        return [line.strip() for line in done.stdout.splitlines() if "table=100" in line]

    def rules(self, node: str, table: str = "nat", *, ipv6: bool = False) -> list[str]:
        """A node's iptables rules, or ip6tables rules, with their packet counts."""
        command = "ip6tables-save" if ipv6 else "iptables-save"
        done = self.network.run(node, [command, "-c", "-t", table], check=True)
        return [line for line in done.stdout.splitlines() if line.startswith("[")]

    def addresses(self, node: str, *, ipv6: bool = False) -> list[str]:
        """What `ip` says of the addresses of a family on a node's outside interface, a line each."""
        family = "-6" if ipv6 else "-4"
        done = self.network.run(node, ["ip", family, "-o", "address", "show", "dev", "eth0"], check=True)
        return [" ".join(line.split()) for line in done.stdout.splitlines()]

    def reported(self, name: str, since: float) -> bool:
        """Whether the runner of node `name` finished a pass after `since` (seconds since the epoch)."""
        host = self.network.nodes[name].host
        with closing(Ledger(self.broker.unix_url)) as ledger:
            report = ledger.reports([host]).get(host)
        return report is not None and report.at > since

    def said(self, name: str, event: str) -> int:
        """How many times the runner of node `name` has logged `event`."""
        lines = (self.network.workdir / f"runner-{name}.log").read_text().splitlines()
        whole = [line for line in lines if event in line and line.startswith("{") and line.endswith("}")]
        return sum(json.loads(line)["event"] == event for line in whole)

    def hawse(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the command `hawse` as a cluster admin, with the API where there is one."""
        command = [str(RUNNER.with_name("hawse")), *arguments]
        environment = {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)}
        if self.control.has_api:
            environment["HAWSE_SERVER"] = self.control.api_url
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    def lost(self) -> set[str]:
        """The host names of the nodes that count as lost."""
        with closing(Ledger(self.broker.unix_url)) as ledger:
            return set(ledger.lost())

    def _node(self, spec: NodeSpec) -> Json:
        labels = {"kubernetes.io/hostname": spec.host}
        if spec.name in self._egress_nodes:
            labels["egress.hawse.dev/egress-node"] = ""
        conditions = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": spec.host, "labels": labels},
            "status": {"conditions": conditions},
        }

    def _host_subnet(self, spec: NodeSpec) -> Json:
        return {
            "apiVersion": "network.openshift.io/v1",
            "kind": "HostSubnet",
            "metadata": {"name": spec.host},
            "host": spec.host,
            "hostIP": str(spec.address),
            "subnet": str(spec.subnet),
        }


def wait_for(what: str, found: Callable[[], T | None], seconds: float, every: float = 0.1) -> T:
    """The first truthy answer of `found`, every `every` seconds; TimeoutError naming `what` after `seconds`. That
    something is away for a moment is an answer like another."""
    deadline = time.monotonic() + seconds
    while True:
        answer: T | Exception | None
        try:
            answer = found()
        except AWAY as error:
            answer = error
        else:
            if answer:
                return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds:g} s; the last answer was {answer!r}")
        time.sleep(every)
