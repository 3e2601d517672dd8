"""The whole control plane with its dashboard, on an embedded API server, with nodes in memory: for what people see."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import urllib3

from egress.adapters.ledger import Ledger
from lab.accounts import Accounts
from lab.apiserver.process import EmbeddedCluster
from lab.control_plane import ControlPlane, install
from lab.kube import Kube
from lab.net.broker import Broker
from lab.stack import wait_for
from lab.tickets.receiver import Desk
from lab.virtual_nodes import VirtualNodes

Json = dict[str, Any]


class Site:
    """All of it, below `directory`. Pool `prod` gives 192.168.1.97 and on to namespaces with the label `team: prod`;
    pool `bank`, which wants an approval and whose ticket system is `desk`, 192.168.1.113 and on. `environment` is set
    for every process of the control plane."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self._directory = directory
        self._environment = environment
        self._stack = ExitStack()
        self.kube: Kube
        self.broker: Broker
        self.cluster: EmbeddedCluster
        self.control: ControlPlane
        self.desk: Desk
        self.nodes: VirtualNodes
        self._given: list[str] = []

    @property
    def url(self) -> str:
        """Of the dashboard, where everybody may do everything."""
        return self.control.api_url

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        directory = self._directory
        accounts = Accounts(directory / "cluster")
        self.broker = stack.enter_context(Broker(directory / "broker", port=0))
        self.cluster = stack.enter_context(EmbeddedCluster(directory / "cluster"))
        self.desk = stack.enter_context(Desk())
        profiles = directory / "profiles.yaml"
        profiles.write_text(json.dumps({"cluster": "site", "profiles": [self.desk.profile(directory)]}))
        self.kube = Kube(self.cluster.url, self.cluster.ca_path, self.cluster.token)
        install(self.kube)
        self.nodes = VirtualNodes(self.broker.unix_url, [IPv4Address("192.168.1.17"), IPv4Address("192.168.1.18")])
        self.nodes.create(self.kube)
        self.control = ControlPlane(
            directory / "control",
            redis_url=self.broker.unix_url,
            kubeconfigs=accounts.kubeconfigs(self.cluster.kubeconfig, directory),
            environment={"HAWSE_TICKET_PROFILES": str(profiles), "HAWSE_ANONYMOUS": "true"} | self._environment,
        )
        stack.callback(self.control.stop)
        stack.enter_context(self.nodes)
        self.control.start()
        self.control.register_webhooks(self.kube)
        self._pool("prod", "192.168.1.96/28")
        self._pool("bank", "192.168.1.112/28", ticketProfile=self.desk.name, approval="required")
        with closing(Ledger(self.broker.unix_url)) as ledger:
            wait_for("the pools", lambda: ledger.is_ready() and len(ledger.offer().pools) == 2, 90)
        wait_for("the API", lambda: _answers(f"{self.url}/pools"), 90)

    def namespace(self, name: str, pool: str) -> str:
        """Makes a namespace; the address that it comes back with."""
        head: Json = {"apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "metadata": {"name": name}}
        self.kube.create(head | {"netname": name, "netid": 0x1000 + len(self._given)})
        metadata = {"name": name, "labels": {"team": pool}}
        made = self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        address: str = made["metadata"]["annotations"]["egress.hawse.dev/addresses"]
        self._given.append(address)
        return address

    def phase(self, address: str) -> str:
        """What the address' object says of it."""
        found = self.kube.get("EgressAddress", address) or {}
        phase: str = found.get("status", {}).get("phase", "")
        return phase

    def node_of(self, address: str) -> str:
        """The node that has the address."""
        found = self.kube.get("EgressAddress", address) or {}
        node: str = found.get("status", {}).get("node", "")
        return node

    def next_address(self) -> IPv4Address:
        """The address that pool prod gives next."""
        addresses = (IPv4Address("192.168.1.97") + number for number in range(14))
        return next(address for address in addresses if str(address) not in self._given)

    def _pool(self, name: str, cidr: str, **fields: object) -> None:
        spec = {"cidrs": [cidr], "namespaceSelector": {"matchLabels": {"team": name}}, **fields}
        head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": name}}
        self.kube.create(head | {"spec": spec})


def _answers(url: str) -> bool:
    try:
        return urllib3.request("GET", url, retries=False, timeout=5).status == 200
    except urllib3.exceptions.HTTPError:
        return False
