"""The workers' tasks on the simulated cluster: what `workers` does, as generators over the same pure functions.

Each `yield` stands between two calls to the API server or the ledger: there another task may run, or this one may be
killed. A task that raises ConflictError, BusyError or WaitingError is to be tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_interface

from egress.addresses import Address, parse_address
from egress.board import Candidate
from egress.hosting import Hosting, hosting
from egress.moves import has_arrived, next_move
from egress.objects import (
    EgressAddress,
    HostSubnet,
    Namespace,
    NetNamespace,
    Phase,
)
from egress.placement import place
from egress.planning import Plan, plan, with_claims
from egress.table import Steering, acknowledged, carried_over, fences, held_back, table_of, traced, unbound
from lab.model.cluster import ConflictError, SimCluster
from lab.model.ledger import BusyError
from lab.model.namespaces import NamespaceTasks, Task, WaitingError, annotated, holder
from lab.model.node import Rows

ARRIVAL_SECONDS = 30.0
RETRIED = (ConflictError, BusyError)


Published = Callable[[Collection[int], Rows, list[NetNamespace], list[EgressAddress]], None]


class Tasks(NamespaceTasks):
    """The tasks, by the names that `egress.messages` gives them. `published` is called after each publishing, with the
    NetIDs that have a row now, the rows before, and the objects that were read."""

    def __init__(self, cluster: SimCluster) -> None:
        super().__init__(cluster)
        self.published: Published = lambda *_: None
        self._epochs = 0

    # The nodes

    def place(self) -> Task:
        """Gives addresses a node, moves them, takes others off theirs (`workers.placing`)."""
        cluster, ledger = self.cluster, self.cluster.ledger
        with ledger.exclusively("place"):
            claims = list(cluster.claims.values())
            yield
            subnets = list(cluster.host_subnets.values())
            yield
            net_namespaces = list(cluster.net_namespaces.values())
            yield
            found = hosting(claims, subnets, net_namespaces, cluster.pools.values(), gone=ledger.lost)
            given, sources = self._placement(found, subnets)
            for subnet in sorted(subnets, key=lambda subnet: subnet.name not in sources.values()):
                leaving = {address for node, address in found.surplus if node == subnet.name}
                leaving |= {address for address, node in sources.items() if node == subnet.name}
                coming = [str(address) for address, node in given.items() if node == subnet.name]
                kept = [text for text in subnet.egress_ips if parse_address(text) not in leaving]
                changed = replace(subnet, egress_ips=(*kept, *coming))
                if changed != subnet:
                    cluster.patch(cluster.host_subnets, subnet.name, changed)
                    yield

    def _placement(
        self, found: Hosting, subnets: list[HostSubnet]
    ) -> tuple[Mapping[Address, str], Mapping[Address, str]]:
        """Where addresses go, and which nodes they leave for it. The one place that knows how placement is called."""
        ledger, now = self.cluster.ledger, self.cluster.now
        candidates = [self._candidate(subnet, found) for subnet in subnets]
        stranded = [each for each in found.residents if each.node in ledger.lost and not each.fixed]
        leaving = {each.item.address for each in stranded}
        freed = [replace(each, hosted=each.hosted - leaving) if each.gone else each for each in candidates]
        given = place([*found.homeless, *(each.item for each in stranded)], freed, found.siblings).nodes
        if given:
            return given, {each.item.address: each.node for each in stranded if each.item.address in given}
        move = next_move(found.residents, candidates, found.siblings, balance=not ledger.lost).move
        if ledger.move is not None:
            address, node, until = ledger.move
            if now < until and not has_arrived(address, node, ledger.table.rows.values()):
                return {}, {}
        if move is None:
            return {}, {}
        ledger.move = (move.item.address, move.target, now + ARRIVAL_SECONDS)
        return {move.item.address: move.target}, {move.item.address: move.source}

    def _candidate(self, subnet: HostSubnet, found: Hosting) -> Candidate:
        cluster = self.cluster
        node, report = cluster.node_objects[subnet.name], cluster.ledger.reports.get(subnet.name)
        gone = subnet.name in cluster.ledger.lost
        surplus = {address for name, address in found.surplus if name == subnet.name}
        return Candidate(
            subnet.name,
            node.labels,
            "lost" if gone else "" if node.ready and not (report and report.problem) else "not ready",
            gone=gone,
            drained=node.drain,
            link=ip_interface(report.link) if report is not None and report.link else None,
            other_links=tuple(map(ip_interface, report.other_links)) if report is not None else (),
            hosted=frozenset(parse_address(text) for text in subnet.egress_ips) - surplus,
        )

    def plan(self, rows: Mapping[int, Steering], epoch: str) -> Plan:
        """The plan of the objects as they are now."""
        cluster = self.cluster
        subnets = list(cluster.host_subnets.values())
        net_namespaces = with_claims(cluster.net_namespaces.values(), cluster.claims.values())
        held = acknowledged(rows, cluster.ledger.reports, epoch)
        return plan(subnets, net_namespaces, offline=cluster.ledger.lost, acknowledged=held)

    def publish(self) -> Task:
        """Brings the nodes' table to what objects and reports say (`workers.publishing`)."""
        cluster, ledger = self.cluster, self.cluster.ledger
        with ledger.exclusively("publish"):
            current = ledger.table
            expected = (current.epoch, current.change)
            yield
            subnets = list(cluster.host_subnets.values())
            yield
            claims = list(cluster.claims.values())
            yield
            net_namespaces = list(cluster.net_namespaces.values())
            yield
            reports, offline = dict(ledger.reports), ledger.lost
            epoch = ""
            if not current.epoch:
                self._await_reports(subnets)
                self._epochs += 1
                epoch = f"epoch-{self._epochs}"
            yield
            held = acknowledged(current.rows, reports, current.epoch)
            outcome = plan(subnets, with_claims(net_namespaces, claims), offline=offline, acknowledged=held)
            names = unbound(net_namespaces, claims)
            promised = {name: netid for name, netid in ledger.netids.items() if name in names}
            fenced = fences(current.rows, promised, net_namespaces, claims)
            wanted = held_back(fenced | table_of(outcome), current.rows, reports, offline, cluster.now)
            desired = traced(carried_over(wanted, current.rows), claims)
            changes = {
                netid: desired.get(netid)
                for netid in desired.keys() | current.rows.keys()
                if desired.get(netid) != current.rows.get(netid)
            }
            yield
            if (changes or epoch) and not ledger.publish(changes, expected, epoch, cluster.now):
                raise BusyError("the table changed while it was read")
            self.published(desired.keys(), current.rows, net_namespaces, claims)
        yield
        self._note_nodes(outcome)

    def _await_reports(self, subnets: list[HostSubnet]) -> None:
        """A node that could report is waited for; of the others `report_wait` says that it is over."""
        for subnet in subnets:
            node = self.cluster.nodes[subnet.name]
            if node.reachable and subnet.egress_ips and subnet.name not in self.cluster.ledger.reports:
                raise WaitingError(f"waiting for the report of {subnet.name}")

    def _note_nodes(self, outcome: Plan) -> None:
        """Of the status only what a later task reads: the node that has the address (`workers.status`)."""
        cluster = self.cluster
        where = {str(hop.address): hop.node for p in outcome.namespaces.values() for hop in (*p.via, *p.claims)}
        hosted = {(name, text) for name, subnet in cluster.host_subnets.items() for text in subnet.egress_ips}
        for name, claim in cluster.claims.items():
            remembered = claim.node if (claim.node, name) in hosted else ""
            node = where.get(name, remembered)
            if claim.phase is not Phase.QUARANTINED and claim.node != node:
                cluster.patch(cluster.claims, name, replace(claim, node=node))

    # By the clock

    def reconcile(self) -> Task:
        """The index from the objects (`workers.reconciling`)."""
        cluster, ledger = self.cluster, self.cluster.ledger
        with ledger.exclusively("reconcile"):
            rebuilding, listed_at = not ledger.ready, cluster.now
            cluster.now += 0.001
            yield
            listings: list[HostSubnet | NetNamespace] = [*cluster.host_subnets.values()]
            yield
            listings += cluster.net_namespaces.values()
            yield
            namespaces = list(cluster.namespaces.values())
            yield
            claims = list(cluster.claims.values())
            yield
            held = _holdings(claims, namespaces, listings, rebuilding=rebuilding)
            ledger.sync(held, listed_at, ready=rebuilding)

    def sweep(self, lifetime: float = 60.0) -> Task:
        """Lapsed reservations, and quarantines that are over."""
        cluster, ledger = self.cluster, self.cluster.ledger
        carried = {address for namespace in cluster.namespaces.values() for address in annotated(namespace)}
        yield
        for address, entry in list(ledger.addresses.items()):
            if entry.state != "reserved" or entry.at > cluster.now - lifetime or address in carried:
                continue
            claim = cluster.claims.get(str(address))
            if claim is None:
                ledger.free(entry.holder, [address], "reserved")
            else:
                state = "quarantined" if claim.phase is Phase.QUARANTINED else "claimed"
                ledger.settle(state, holder(claim.namespace), [address], cluster.now)
            yield
        over = [
            claim
            for claim in cluster.claims.values()
            if claim.phase is Phase.QUARANTINED and claim.quarantined_until <= cluster.now
        ]
        yield
        hosted = {text for subnet in cluster.host_subnets.values() for text in subnet.egress_ips}
        yield
        bound = {(item.name, text) for item in cluster.net_namespaces.values() for text in item.egress_ips}
        for claim in over:
            if claim.address in hosted or (claim.namespace, claim.address) in bound:
                continue
            yield
            cluster.delete(cluster.claims, claim.address, claim.resource_version)
            yield
            ledger.free(holder(claim.namespace), [parse_address(claim.address)], "quarantined")


def holdings(cluster: SimCluster, *, rebuilding: bool) -> dict[Address, tuple[str, str]]:
    """What the objects hold now: each address with its state and holder."""
    listings: list[HostSubnet | NetNamespace] = [*cluster.host_subnets.values(), *cluster.net_namespaces.values()]
    return _holdings(list(cluster.claims.values()), list(cluster.namespaces.values()), listings, rebuilding=rebuilding)


def _holdings(
    claims: list[EgressAddress],
    namespaces: list[Namespace],
    listings: Iterable[HostSubnet | NetNamespace],
    *,
    rebuilding: bool,
) -> dict[Address, tuple[str, str]]:
    carried = {address: holder(namespace.name) for namespace in namespaces for address in annotated(namespace)}
    held = {address: ("claimed", name) for address, name in carried.items()} if rebuilding else {}
    for item in listings:
        owner = f"manual/node/{item.name}" if isinstance(item, HostSubnet) else f"manual/{item.name}"
        held |= {parse_address(text): ("claimed", owner) for text in item.egress_ips}
    for claim in claims:
        address = parse_address(claim.address)
        quarantined = claim.phase is Phase.QUARANTINED and carried.get(address) != holder(claim.namespace)
        owner = f"manual/{claim.namespace}" if claim.adopted else holder(claim.namespace)
        held[address] = ("quarantined" if quarantined else "claimed", owner)
    return held
