"""The real ledger, objects and runners, seen as the simulated cluster: the same invariants can be asked of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from egress.adapters import manifests
from egress.adapters.cluster import Cluster, Kind, Manifest
from egress.adapters.ledger import Ledger
from egress.addresses import parse_address
from egress.liveness import Identity
from egress.operations import TransientError
from egress.table import NodeReport
from lab.model.cluster import SimCluster
from lab.model.ledger import Entry
from lab.model.node import LAYOUT, KilledError, SimNode, Table
from node_runner.drivers.ports import ProbeTiming
from node_runner.programmer import Programmer
from node_runner.runner import Runner

PATIENCE = 1e6
"""How long a node may be silent: these tests let no time pass, and lose no node."""


class WorkerKilledError(BaseException):
    """A worker's process ends here."""


class FragileCluster(Cluster):
    """A connection to the API server in whose use a worker may die: before a request, or after it was carried out."""

    def __init__(self, kubeconfig: str) -> None:
        super().__init__(kubeconfig)
        self._calls_left: int | None = None
        self._after = False

    def die_at(self, calls: int | None, *, after: bool = False) -> None:
        """The worker dies with the request after the next `calls`; None: it lives."""
        self._calls_left, self._after = calls, after

    def _send(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 as the method it overrides
        dies = self._calls_left == 0
        if self._calls_left is not None:
            self._calls_left -= 1
        if dies and not self._after:
            raise WorkerKilledError
        response = super()._send(*arguments, **options)
        if dies:
            raise WorkerKilledError
        return response


class RealRunner:
    """A real runner of a simulated node: its passes are made by hand, and it may be killed in one."""

    def __init__(self, node: SimNode, ledger: Ledger, tell: Callable[[str], None]) -> None:
        self.node = node
        self._ledger = ledger
        self._tell = tell
        self._said: NodeReport | None = None
        self._start()

    def _start(self) -> None:
        programmer = Programmer(self.node.name, self.node.drivers, LAYOUT, ProbeTiming(), self.node.retirement())
        me = Identity(self.node.name, self.node.node_ip)
        self._runner = Runner(me, programmer, self._ledger, self._tell, retry=0.0)
        self._runner.observe = self._note

    def _note(self, report: NodeReport, seconds: float) -> None:
        del seconds
        self._said = report

    def step(self) -> None:
        """One pass. The node answers for what the table, as the runner reads it, tells it."""
        if not (self.node.powered and self.node.running):
            return
        self.node.clock += 1
        table = table_of(self._ledger)
        if table.epoch:
            self.node.read_table()
            self.node.begin(table.rows)
        try:
            self._ledger.beat(self.node.name, self.node.node_ip, PATIENCE)
            self._runner.step()
            if table.epoch and self._said is not None:
                self.node.end(table.rows, problem=self._said.problem)
        except KilledError:
            self._start()
        finally:
            self.node.stop_at(None)


def table_of(ledger: Ledger) -> Table:
    """The nodes' table."""
    try:
        read = ledger.read_table()
    except TransientError:
        return Table()
    return Table(read.epoch, read.change, {netid: row for netid, row in read.rows.items() if row is not None})


def snapshot(cluster: Cluster, ledger: Ledger, nodes: Iterable[SimNode]) -> SimCluster:
    """All that there is at this moment, as the simulated cluster has it."""
    nodes = list(nodes)
    seen = SimCluster({node.name: node.node_ip for node in nodes})
    seen.nodes = {node.name: node for node in nodes}

    def listed(kind: Kind) -> tuple[Manifest, ...]:
        return cluster.list(kind).items

    seen.namespaces = {item.name: item for item in map(manifests.namespace, listed(Kind.NAMESPACE))}
    seen.net_namespaces = {item.name: item for item in map(manifests.net_namespace, listed(Kind.NET_NAMESPACE))}
    seen.host_subnets = {item.name: item for item in map(manifests.host_subnet, listed(Kind.HOST_SUBNET))}
    seen.claims = {item.address: item for item in map(manifests.egress_address, listed(Kind.EGRESS_ADDRESS))}
    seen.pools = {item.name: item for item in map(manifests.egress_pool, listed(Kind.EGRESS_POOL))}
    seen.ledger.table = table_of(ledger)
    seen.ledger.reports = ledger.reports(seen.host_subnets)
    seen.ledger.addresses = {
        parse_address(str(address)): Entry(state, name, 0.0) for address, (state, name) in ledger.usage().items()
    }
    return seen
