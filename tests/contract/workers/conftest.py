"""The workers' functions on a real API server and a real Valkey; tasks run when the test says so."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from egress.adapters.cluster import Cluster, Kind
from egress.adapters.ledger import Ledger, Reserved, name_holder
from egress.addresses import AddressError, parse_address, parse_range
from egress.messages import FAILOVER_TASK, NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, SWEEP_TASK
from egress.operations import PermanentError, TransientError
from egress.settings import Settings
from egress.table import Claim, NodeReport
from lab.apiserver.process import EmbeddedCluster
from lab.control_plane import install
from lab.kube import Kube
from workers import makers, namespaces, newcomers, reconciling
from workers.context import Context
from workers.view import Views

T = TypeVar("T")
Json = dict[str, Any]
ADDRESSES = "egress.hawse.dev/addresses"
LABEL = "egress.hawse.dev/egress-node"
MAX_RUNS = 2000


@dataclass
class World:
    """One cluster, one ledger, and the tasks that wait."""

    cluster: EmbeddedCluster
    kube: Kube
    context: Context
    tasks: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def ledger(self) -> Ledger:
        return self.context.ledger

    # What people do

    def pool(self, name: str, *cidrs: str, **spec: object) -> None:
        """An EgressPool for every namespace, unless `namespaceSelector` says otherwise."""
        spec = {"cidrs": list(cidrs), "namespaceSelector": {}, **spec}
        manifest = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": name}}
        self.kube.create(manifest | {"spec": spec})

    def node(self, name: str, host_ip: str, *egress_ips: str, label: bool = True, report: bool = True) -> None:
        """A ready node with its HostSubnet, whose runner has reported."""
        conditions = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
        metadata = {"name": name, "labels": {LABEL: ""} if label else {}}
        self.kube.create(
            {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": {"conditions": conditions}}
        )
        self.kube.create(
            {
                "apiVersion": "network.openshift.io/v1",
                "kind": "HostSubnet",
                "metadata": {"name": name},
                "host": name,
                "hostIP": host_ip,
                "subnet": "10.128.0.0/23",
                "egressIPs": list(egress_ips),
            }
        )
        if report:
            self.ledger.report(NodeReport(name, 0.0, link=f"{host_ip}/24", interface="eth0"))

    def namespace(self, name: str, annotations: Json | None = None, *, address: str = "") -> Json:
        """A namespace; with `address` as if the webhook had given it that."""
        given = {ADDRESSES: address} if address else {}
        if address and self.ledger.is_ready():
            with suppress(AddressError):
                for text in address.split(","):
                    self.ledger.reserve(name_holder(name), 1, [], [parse_address(text)])
        metadata = {"name": name, "annotations": {**(annotations or {}), **given}}
        return self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def net_namespace(self, name: str, netid: int, *egress_ips: str) -> Json:
        """A NetNamespace that is not Hawse's."""
        return self.kube.create(
            {
                "apiVersion": "network.openshift.io/v1",
                "kind": "NetNamespace",
                "metadata": {"name": name},
                "netname": name,
                "netid": netid,
                "egressIPs": list(egress_ips),
            }
        )

    def delete(self, name: str) -> None:
        """Deletes a namespace and waits until it is gone."""
        self.kube.delete("Namespace", name)
        self.until(lambda: self.kube.get("Namespace", name) is None)

    # What Hawse does

    def run(self, task: str, *arguments: str) -> None:
        """One task, as the worker runs it: a failure that may pass puts it back, any other is remembered."""
        try:
            self.ledger.done_with(":".join((task, *arguments)))
            match task:
                case _ if task == NAMESPACE_TASK:
                    if not newcomers.converge(self.context, *arguments):
                        namespaces.converge(self.context, *arguments)
                case _ if task == PLACE_TASK:
                    makers.of(self.context).place(self.context)
                case _ if task == PUBLISH_TASK:
                    makers.of(self.context).publish(self.context)
                case _ if task == FAILOVER_TASK:
                    makers.of(self.context).failover(self.context)
                case _ if task == RECONCILE_TASK:
                    reconciling.reconcile(self.context)
                case _ if task == SWEEP_TASK:
                    reconciling.sweep(self.context)
        except TransientError as error:
            self.failures.append(str(error))
            self.tasks.append((task, arguments))
        except PermanentError as error:
            self.failures.append(str(error))

    def settle(self) -> None:
        """Runs all that waits, and what it brings about, until nothing is left. Nudges to nodes are dropped."""
        for _ in range(MAX_RUNS):
            if not self.tasks:
                return
            task, arguments = self.tasks.pop(0)
            self.run(task, *arguments)
        raise AssertionError(f"never settles: {self.tasks[:5]}, {self.failures[-5:]}")

    def reconcile(self) -> None:
        """A full reconcile and all that follows from it."""
        self.run(RECONCILE_TASK)
        self.settle()

    def acknowledge(self) -> None:
        """Every node takes what the table gives it and lets the rest go, says so, and the workers hear it, until
        nothing changes any more: an address is given on when its node has let it go."""
        for _ in range(4):
            before = self.ledger.change_number()
            self._acknowledge()
            if self.ledger.change_number() == before:
                return

    def _acknowledge(self) -> None:
        table = self.ledger.read_table()
        reports = self.ledger.reports(item["metadata"]["name"] for item in self.kube.list("HostSubnet"))
        for name, report in reports.items():
            claims = tuple(
                Claim(hop.address, netid, held=True)
                for netid, row in table.rows.items()
                if row is not None
                for hop in row.hops
                if hop.node == name
            )
            self.ledger.report(NodeReport(name, 0.0, table.epoch, table.change, report.link, "eth0", claims))
        self.run(PUBLISH_TASK)
        self.settle()

    # What is to be seen

    def annotation(self, name: str) -> str:
        found = self.kube.get("Namespace", name)
        assert found is not None
        text: str = found["metadata"].get("annotations", {}).get(ADDRESSES, "")
        return text

    def bound(self, name: str) -> list[str]:
        found = self.kube.get("NetNamespace", name)
        return list(found.get("egressIPs") or []) if found else []

    def hosted(self, node: str) -> list[str]:
        found = self.kube.get("HostSubnet", node)
        assert found is not None
        return list(found.get("egressIPs") or [])

    def claims(self) -> dict[str, tuple[str, str]]:
        """Each EgressAddress: its namespace and phase."""
        return {
            item["metadata"]["name"]: (item["spec"]["namespace"]["name"], item.get("status", {}).get("phase", ""))
            for item in self.kube.list("EgressAddress")
        }

    def usage(self) -> dict[str, tuple[str, str]]:
        return {str(address): entry for address, entry in self.ledger.usage().items()}

    def versions(self) -> dict[tuple[str, str], str]:
        """Every object's resourceVersion."""
        kinds = ("Namespace", "Node", "HostSubnet", "NetNamespace", "EgressPool", "EgressAddress")
        return {
            (kind, item["metadata"]["name"]): item["metadata"]["resourceVersion"]
            for kind in kinds
            for item in self.kube.list(kind)
        }

    def reserve(self, name: str, cidr: str) -> str:
        """What the webhook does: reserves the next address for a name."""
        outcome = self.ledger.reserve(name_holder(name), 1, [parse_range(cidr)])
        assert isinstance(outcome, Reserved)
        return str(outcome.addresses[0])

    def holder(self, address: str) -> tuple[str, str] | None:
        return self.ledger.usage().get(parse_address(address))

    @staticmethod
    def until(check: Callable[[], T], seconds: float = 60) -> T:
        """The first truthy answer."""
        import time

        deadline = time.monotonic() + seconds
        while not (value := check()):
            assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
            time.sleep(0.02)
        return value


class Watched:
    """Views whose watches can be stopped: what they know then grows old."""

    def __init__(self, world: World, stop: threading.Event) -> None:
        self.views = Views.watching(world.context.cluster, stop)
        world.context.memory.views = self.views
        self._mirrors = self.views._mirrors
        for mirror in self._mirrors.values():
            assert mirror.await_version(0, 10)
        self._takes = {kind: mirror._take for kind, mirror in self._mirrors.items()}

    def await_(self, kind: str, name: str) -> None:
        """Until the watch of a kind has told of an object."""
        mirror = next(mirror for mirror in self._mirrors.values() if mirror.kind.head["kind"] == kind)
        World.until(lambda: mirror.item(name) is not None)

    def annotated(self, name: str) -> str:
        """The addresses of a namespace, as the watch has told."""
        namespace = self._mirrors[Kind.NAMESPACE].item(name)
        return namespace.annotations.get(ADDRESSES, "") if namespace is not None else ""

    def stall(self, *kinds: Kind) -> None:
        """News of these kinds no longer arrives, and nobody is told so."""
        for kind in kinds or self._mirrors:
            mirror = self._mirrors[kind]
            mirror._take = lambda *_, **__: None  # type: ignore[method-assign]
            mirror.reach = lambda *_: None  # type: ignore[method-assign]


@pytest.fixture
def history() -> int:
    """How many changes the API server remembers for watches."""
    return 1000


@pytest.fixture
def cluster(tmp_path: Path, history: int) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(tmp_path / "cluster", history=history) as running:
        yield running


@pytest.fixture
def settings() -> dict[str, Any]:
    """Changes to the settings."""
    return {}


@pytest.fixture
def world(cluster: EmbeddedCluster, ledger: Ledger, settings: dict[str, Any]) -> World:
    kube = Kube(cluster.url, cluster.ca_path, cluster.token)
    install(kube)
    tasks: list[tuple[str, tuple[Any, ...]]] = []
    lock = threading.Lock()

    def send(task: str, arguments: list[Any], queue: str, delay: float = 0.0) -> None:
        del delay  # the test says when
        if not queue.startswith("node."):
            with lock:
                if task == NAMESPACE_TASK:  # in their list each is once
                    tasks.extend((task, (name,)) for name in arguments if (task, (name,)) not in tasks)
                else:
                    tasks.append((task, tuple(arguments)))
        else:
            with suppress(TransientError):
                ledger.done_with(f"{task}:{queue}")

    current = Settings(
        kubeconfig=str(cluster.kubeconfig),
        **{"report_wait": 0.0, "status_interval": 0.0, "fence_wait": 0.0, **settings},
    )
    return World(cluster, kube, Context(current, ledger, Cluster(str(cluster.kubeconfig)), send), tasks)
