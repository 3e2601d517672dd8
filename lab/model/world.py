"""The whole simulation: a cluster, its tasks under way, its nodes' passes, and what may go wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from egress.objects import CREATED_ANNOTATION, EgressAddress, EgressPool, NetNamespace
from egress.table import NodeReport
from lab.model import invariants
from lab.model.cluster import SimCluster
from lab.model.namespaces import Task, WaitingError
from lab.model.node import Rows
from lab.model.tasks import RETRIED, Tasks

MAX_ROUNDS = 40
WORK = ("reconcile", "namespaces", "failover", "place", "publish", "nodes", "publish", "sweep")
SILENT = 11.0
"""Seconds after which a node that says nothing is no longer waited for."""


class World:
    """A cluster with workers and nodes, watched: every write to a node is checked for leaks."""

    def __init__(self, *nodes: str) -> None:
        self.cluster = SimCluster({name: f"192.168.1.{number}" for number, name in enumerate(nodes, 11)})
        self.tasks = Tasks(self.cluster)
        self.tasks.published = self._published
        self.tasks.binding = lambda netid: invariants.dropped_everywhere(self.cluster, netid)
        self.tasks.claiming = lambda text: invariants.is_free(self.cluster, text, self.by_hand | self.moved)
        self.under_way: list[Task] = []
        self.late: dict[str, NodeReport] = {}
        self.by_hand: set[str] = set()
        self.moved: set[str] = set()
        self.ever: set[str] = set()
        self._uid = 0
        for node in self.cluster.nodes.values():
            node.checked = lambda: invariants.fail_closed(self.cluster.nodes)

    # The workers

    def start(self, name: str, *arguments: str) -> Task:
        """Begins a task; it is under way until it ends or is killed."""
        task: Task = getattr(self.tasks, name)(*arguments)
        self.under_way.append(task)
        return task

    def go_on(self, task: Task, steps: int | None = None) -> None:
        """Lets a task make so many steps, or go on to its end."""
        try:
            while steps is None or steps > 0:
                next(task)
                steps = steps - 1 if steps is not None else None
        except (StopIteration, WaitingError, *RETRIED):
            self.under_way.remove(task)

    def kill(self, task: Task) -> None:
        """A worker dies in the middle of a task."""
        task.close()
        self.under_way.remove(task)

    def run(self, name: str, *arguments: str) -> None:
        """A task from its beginning to its end."""
        self.go_on(self.start(name, *arguments))

    # People

    def pool(self, pool: EgressPool) -> None:
        """A pool, new or edited."""
        self.cluster.pools[pool.name] = pool
        self.ever |= covered(pool).difference(self.cluster.ips)

    def new_uid(self) -> str:
        """A namespace's uid, never used before."""
        self._uid += 1
        return f"uid-{self._uid}"

    def net_namespace(self, name: str, netid: int, egress_ips: Collection[str]) -> None:
        """A NetNamespace that is not Hawse's. It goes with its namespace only where somebody deletes it."""
        self.by_hand |= set(egress_ips)
        self.cluster.create(self.cluster.net_namespaces, name, NetNamespace(name, netid, tuple(egress_ips)))

    def everybody_leaves(self) -> None:
        """All namespaces are deleted, and what was set by hand is taken away."""
        cluster = self.cluster
        cluster.namespaces.clear()
        for name, there in list(cluster.net_namespaces.items()):
            if there.annotations.get(CREATED_ANNOTATION) != "true":
                del cluster.net_namespaces[name]
        for name, subnet in list(cluster.host_subnets.items()):
            kept = tuple(text for text in subnet.egress_ips if text in cluster.claims)
            cluster.patch(cluster.host_subnets, name, replace(subnet, egress_ips=kept))

    # The nodes

    def node_pass(self, name: str, *, late: bool = False) -> None:
        """One pass of a node's runner. A `late` report is still on its way."""
        node, ledger = self.cluster.nodes[name], self.cluster.ledger
        if not (node.powered and node.running):
            return
        report = node.run_pass(ledger.table if node.ledger else None, self.cluster.now)
        if report is None or not node.ledger:
            return
        self.late.pop(name, None)
        if late:
            self.late[name] = report
        else:
            ledger.reports[name] = report

    def arrive(self) -> None:
        """The reports that were late come, those of nodes that are cut off meanwhile excepted."""
        for name, report in self.late.items():
            if self.cluster.nodes[name].ledger:
                self.cluster.ledger.reports[name] = replace(report, heard=self.cluster.now)
        self.late.clear()

    # All of it

    def settle(self) -> None:
        """Everybody who can work does, until nobody has anything to do; then what must hold of that is checked."""
        self.arrive()
        for task in list(self.under_way):
            self.go_on(task)
        before: object = None
        rested = False
        for _ in range(MAX_ROUNDS):
            self.round()
            after = self._state()
            if before == after and not rested:
                rested = True
                for node in self.cluster.nodes.values():
                    node.rest()
            elif before == after:
                invariants.fail_closed(self.cluster.nodes)
                invariants.settled(self.tasks, self.by_hand, self.moved, self.ever)
                return
            else:
                rested = False
            before = after
        raise invariants.Violation("it never settles")

    def round(self, order: Sequence[str] = WORK) -> None:
        """Every task runs once and every runner makes a pass, in this order; who cannot speak has been silent long."""
        self.cluster.now += SILENT
        for report in self.cluster.ledger.reports:
            node = self.cluster.nodes[report]
            if node.reachable:
                old = self.cluster.ledger.reports[report]
                self.cluster.ledger.reports[report] = replace(old, heard=self.cluster.now)
        for work in order:
            match work:
                case "namespaces":
                    for name in self._names():
                        self.run("namespace", name)
                case "nodes":
                    for name in self.cluster.nodes:
                        self.node_pass(name)
                case "failover":
                    lost = {name for name, node in self.cluster.nodes.items() if not node.powered or not node.link}
                    self.cluster.ledger.lost = frozenset(lost)
                case _:
                    self.run(work)

    def _names(self) -> list[str]:
        """The namespaces that are there, or of which something is left."""
        cluster = self.cluster
        return sorted({*cluster.namespaces, *cluster.net_namespaces, *(c.namespace for c in cluster.claims.values())})

    def _state(self) -> object:
        """Whatever a task or a pass could change, without times."""
        cluster = self.cluster
        return (
            [dict(kind) for kind in (cluster.namespaces, cluster.net_namespaces, cluster.host_subnets, cluster.claims)],
            cluster.ledger.table,
            dict(cluster.ledger.netids),
            {name: replace(report, at=0.0, heard=0.0) for name, report in cluster.ledger.reports.items()},
            {address: (entry.state, entry.holder) for address, entry in cluster.ledger.addresses.items()},
            {name: node.found() for name, node in cluster.nodes.items()},
        )

    def _published(
        self, rows: Collection[int], before: Rows, bindings: list[NetNamespace], claims: list[EgressAddress]
    ) -> None:
        invariants.rows_cover(rows, before, bindings, claims)


def covered(pool: EgressPool) -> set[str]:
    """What a pool of this link may give, counted out and not computed as `egress.pools` does; nodes' IPs included."""
    found: set[str] = set()
    for text in pool.cidrs:
        first, dash, last = text.partition("-")
        if dash:
            found |= {str(IPv4Address(value)) for value in range(int(IPv4Address(first)), int(IPv4Address(last)) + 1)}
        else:
            found |= {str(address) for address in IPv4Network(text).hosts()}
    return found.difference(pool.excluded)
