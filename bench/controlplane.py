"""The control plane: from a namespace's CREATE until every node steers its traffic, and what it costs to do nothing.

A real API server, the real processes and a real broker on this machine; the nodes are real runners on nodes in memory.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from bench.rows import Row, row_of
from egress.adapters import manifests
from egress.adapters.cluster import Kind
from egress.adapters.ledger import Ledger
from egress.messages import CONTROL_QUEUE, TABLE_QUEUE
from egress.objects import ADDRESSES_ANNOTATION, CREATED_ANNOTATION, Condition, EgressAddress, Phase
from lab.accounts import Accounts
from lab.cluster import ClusterError
from lab.control_plane import ControlPlane, install
from lab.etcd import put
from lab.kube import Json, Kube
from lab.net.broker import Broker
from lab.net.guarded import Guarded
from lab.operations import NodeLog, logged, waterfall
from lab.real_cluster import RealCluster, binaries
from lab.stack import wait_for
from lab.virtual_nodes import AT_ONCE, VirtualNodes
from node_runner.drivers.ports import ProbeTiming
from workers import stillness
from workers.context import NAMESPACE_LABEL

NODES = [IPv4Address("192.168.0.11") + number for number in range(3)]
SINGLE, PROBED, BURST, CLIENTS = 30, 10, 1000, 20
P50_MS, P95_MS, BURST_SECONDS, PATCHES = 350.0, 600.0, 20.0, 50.0
BURST_WHY = (
    "all processes and the virtual nodes take most of the 40 processor seconds that two cores have in 20 s; how "
    "many, the processor's speed at the time says (the API server takes 11 to 17 for the same requests): a third "
    "each for the API server and for the worker's one interpreter, whose requests are most of its part (py-spy); "
    "the rest waits for turns and rests (0026)"
)
MANY, IDLE_SECONDS, IDLE_PERCENT = 10_000, 40.0, 2.0
FIRST_IDLE = IPv4Address("192.168.80.0")
OPERATION = "egress.hawse.dev/operation"
LEASES = {"HAWSE_LEASE_DURATION": "15", "HAWSE_LEASE_RENEW_DEADLINE": "10", "HAWSE_LEASE_RETRY": "2"}
"""As they are unless somebody sets them; the lab's are for killing processes."""
_TICKS = os.sysconf("SC_CLK_TCK")
_REQUESTS = re.compile(r"^apiserver_request_total\{([^}]*)\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Made:
    """A namespace that was created: when its creation was asked for and answered, and its operation."""

    began: float
    answered: float
    operation: str


class Bench:
    """All of the control plane, below a directory."""

    def __init__(self, directory: Path, probe: ProbeTiming = AT_ONCE) -> None:
        self._directory = directory
        self._probe = probe
        self._stack = ExitStack()
        self.log = NodeLog(len(NODES))
        self.kube: Kube
        self.control: ControlPlane
        self.nodes: VirtualNodes
        self._broker: Broker
        self._cluster: RealCluster
        self.ledger: Ledger

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            before = structlog.get_config()
            stack.callback(lambda: structlog.configure(**before))
            structlog.configure(processors=[structlog.contextvars.merge_contextvars, self.log])
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
        self._broker = stack.enter_context(Broker(directory / "broker", port=0))
        self._cluster = stack.enter_context(RealCluster(directory / "cluster"))
        cluster, url = self._cluster, self._broker.unix_url
        self.kube = Kube(cluster.url, cluster.ca_path, cluster.token)
        install(self.kube)
        self.nodes = VirtualNodes(url, NODES, prefix_length=17, probe=self._probe, beating=True)
        self.nodes.create(self.kube)
        profiles = directory / "profiles.yaml"
        profiles.write_text(json.dumps({"cluster": "bench", "profiles": []}))
        self.control = ControlPlane(
            directory / "control",
            redis_url=url,
            kubeconfigs=accounts.kubeconfigs(cluster.kubeconfig, directory),
            environment={"HAWSE_TICKET_PROFILES": str(profiles), "HAWSE_ANONYMOUS": "true", **LEASES},
        )
        stack.callback(self.control.stop)
        stack.enter_context(self.nodes)
        self.control.start()
        self.control.register_webhooks(self.kube)
        spec = {"cidrs": ["192.168.64.0/18"], "namespaceSelector": {"matchLabels": {"egress": "yes"}}}
        head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": "prod"}}
        self.kube.create(head | {"spec": spec})
        self.ledger = stack.enter_context(closing(Ledger(url)))
        wait_for("the pool", lambda: self.ledger.is_ready() and bool(self.ledger.offer().pools), 60)

    def create(self, name: str, **labels: str) -> Made:
        """Creates a namespace; with `egress="yes"` it gets an address."""
        began = time.time()
        manifest: Json = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        metadata = self.kube.create(manifest)["metadata"]
        return Made(began, time.time(), metadata.get("annotations", {}).get(OPERATION, ""))

    def create_many(self, prefix: str, number: int, **labels: str) -> list[Made]:
        """Creates namespaces as CLIENTS clients do at once."""
        with ThreadPoolExecutor(CLIENTS) as clients:
            return list(clients.map(lambda each: self.create(f"{prefix}{each}", **labels), range(number)))

    def requests(self) -> Counter[tuple[str, str]]:
        """What the API server has answered so far, by verb and kind."""
        found: Counter[tuple[str, str]] = Counter()
        for labels, number in _REQUESTS.findall(self.kube.text("/metrics")):
            known = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            kind = known["resource"] + (f"/{known['subresource']}" if known["subresource"] else "")
            found[known["verb"], kind] += int(float(number))
        return found

    def cpu(self) -> dict[str, float]:
        """The processor seconds that each process has used so far."""
        return {name: _cpu(process.guard.pid) for name, process in self._processes().items()}

    @property
    def etcd(self) -> Path:
        """etcd's socket."""
        return self._cluster.etcd_socket

    def is_still(self) -> bool:
        """Whether everything has been looked at, nothing was to be done, and nothing has changed since."""
        noted = [self.ledger.recall(what) for what in (stillness.RECONCILE, stillness.PLACE, stillness.PUBLISH)]
        return all(noted) and noted[0] == stillness.view(self.ledger) and not self.waiting()

    def waiting(self) -> int:
        """How many tasks wait in the queues, and namespaces for theirs."""
        names = [f"hawse-broker:{queue}" for queue in (CONTROL_QUEUE, TABLE_QUEUE)]
        return sum(self.ledger.lengths(names)) + self.ledger.namespaces_waiting()

    def _processes(self) -> Mapping[str, Guarded]:
        return {**self.control.processes, **self._cluster.processes, "broker": self._broker.process}


def _cpu(pid: int) -> float:
    """User and system time of a process and all below it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return 0.0  # it has ended
    return sum(map(int, fields[11:15])) / _TICKS + sum(map(_cpu, children))


def rows() -> Iterator[Row | str]:
    """See Row. The floor of a latency is a namespace's bare CREATE, that of the burst as many from as many clients."""
    try:
        binaries()
    except ClusterError as error:
        yield f"Not measured: {error}."
        return
    with tempfile.TemporaryDirectory() as directory, Bench(Path(directory)) as bench:
        yield from _single(bench, SINGLE, "without the probe's wait", P50_MS, P95_MS)
        yield from _burst(bench)
        yield from _idle(bench)
    with tempfile.TemporaryDirectory() as directory, Bench(Path(directory), ProbeTiming()) as bench:
        yield from _single(bench, PROBED, "with the probe's wait of 0.5 s", 0.0, 0.0)


def _single(bench: Bench, runs: int, how: str, p50: float, p95: float) -> Iterator[Row | str]:
    """One namespace at a time, with a pause between."""
    bare = [made.answered - made.began for made in (bench.create(f"bare{number}") for number in range(20))]
    wait_for("quiet", lambda: not bench.waiting(), 60)
    taken, began, answered = [], {}, {}
    for number in range(runs):
        made = bench.create(f"single{number}", egress="yes")
        taken.append((bench.log.await_active([made.operation], 30) - made.began) * 1000)
        began[made.operation], answered[made.operation] = made.began, made.answered
        time.sleep(0.5 + 0.01 * number)  # not always at the same moment of what runs by the clock
    floor = statistics.median(bare) * 1000
    logs = [bench.control.log(component) for component in ("webhook", "worker")]
    trace = waterfall(began, answered, logged(logs), bench.log.steps)
    yield "\n".join([f"Where the time goes, {how}: medians of {runs}, by operation id.", *trace])
    name = f"namespace, CREATE to steered everywhere, {how}"
    yield row_of(f"{name}, p50", 1, "ms", taken, floor=floor, goal=p50)
    high = statistics.quantiles(taken, n=20)[-1]
    yield Row(f"{name}, p95", 1, "ms", high, min(taken), max(taken), runs, floor, p95)


def _burst(bench: Bench) -> Iterator[Row | str]:
    """Many at once."""
    began = time.time()
    bench.create_many("plain", BURST)
    floor = time.time() - began
    wait_for("quiet", lambda: not bench.waiting(), 60)
    cpu, requests, began = bench.cpu(), bench.requests(), time.time()
    made = bench.create_many("many", BURST, egress="yes")
    seconds = bench.log.await_active([each.operation for each in made], 150) - began
    used = {name: after - cpu[name] for name, after in bench.cpu().items()}
    asked = bench.requests() - requests
    last = max(each.answered for each in made) - began
    yield f"The burst was created within {last:.1f} s. CPU seconds: {_list(used)}."
    each = {" ".join(what): number / BURST for what, number in asked.most_common(16)}
    yield f"API requests for each namespace: {_list(each)}."
    name = f"namespaces, burst from {CLIENTS} clients to steered everywhere"
    yield row_of(name, BURST, "s", [seconds], floor=floor, goal=BURST_SECONDS, why=BURST_WHY)
    patches = asked["PATCH", "hostsubnets"]
    yield row_of("namespaces, HostSubnet patches of a burst", BURST, "count", [patches], goal=PATCHES, why=BURST_WHY)
    yield row_of("namespaces, CPU of all processes in a burst", BURST, "s", [sum(used.values())])
    wait_for("empty queues", lambda: not bench.waiting(), 60)


def _idle(bench: Bench) -> Iterator[Row | str]:
    """Many namespaces, all steered, and nothing happens. They are put there while the control plane is away: it finds
    them as after an upgrade."""
    bench.control.stop()
    _populate(bench)
    bench.control.start()
    wait_for("a reconcile that finds nothing", bench.is_still, 150)
    time.sleep(1.0)
    before, began = bench.cpu(), time.time()
    time.sleep(IDLE_SECONDS)
    took = time.time() - began
    used = {name: 100 * (after - before[name]) / took for name, after in bench.cpu().items()}
    yield f"Idle for {took:.0f} s with {MANY} namespaces, % of a core: {_list(used)}."
    own = sum(used[name] for name in bench.control.processes)
    yield row_of("idle, all of the control plane", MANY, "%", [own], goal=IDLE_PERCENT)
    for name in ("broker", "etcd", "kube-apiserver"):
        yield row_of(f"idle, {name}", MANY, "%", [used[name]])


def _populate(bench: Bench) -> None:
    """MANY namespaces with all that makes them steered, spread over the nodes."""
    now = manifests.rfc3339(int(time.time()))
    hosted: dict[str, list[str]] = {name: [] for name in bench.nodes.nodes}
    # A NetID that two NetNamespaces share is a conflict, and is looked at for ever.
    taken = {binding["netid"] for binding in bench.kube.list("NetNamespace")}
    netids = list(set(range(0x100000, 0x100000 + MANY + len(taken))) - taken)
    made: list[Json] = []
    for number in range(MANY):
        name, uid, address = f"idle{number}", str(uuid.uuid4()), str(FIRST_IDLE + number)
        node = f"node{1 + number % len(NODES)}"
        hosted[node].append(address)
        metadata: Json = {"name": name, "uid": uid, "labels": {"egress": "yes"}}
        metadata["annotations"] = {ADDRESSES_ANNOTATION: address}
        head = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        made.append(head | {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        metadata = {"name": name, "annotations": {CREATED_ANNOTATION: "true"}}
        binding = Kind.NET_NAMESPACE.head | {"metadata": metadata, "netname": name, "netid": netids.pop()}
        made.append(binding | {"egressIPs": [address]})
        said = dict.fromkeys(("Claimed", "Bound", "Placed", "Programmed", "Ready"), "") | {"Placed": f"on node {node}"}
        conditions = tuple(Condition(kind, True, kind, message, now) for kind, message in said.items())
        claim = EgressAddress(address, "prod", name, uid, node=node, phase=Phase.READY, conditions=conditions)
        manifest = manifests.egress_address_manifest(claim) | {"status": manifests.egress_address_status(claim)}
        manifest["metadata"]["labels"] = {NAMESPACE_LABEL: name}
        made.append(manifest)
    put(bench.etcd, made)
    for node, addresses in hosted.items():
        there = bench.kube.get("HostSubnet", node) or {}
        bench.kube.patch("HostSubnet", node, {"egressIPs": [*there.get("egressIPs", ()), *addresses]})


def _list(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number:.2f}" for name, number in numbers.items())
