"""What is on the cluster's objects, on the nodes and on the link against what should be, looked at when somebody asks.

The nodes say it of themselves; what none of them can know (objects, who is silent or behind) is added here.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

from egress.actions import Trouble
from egress.adapters import manifests
from egress.adapters.cluster import Cluster, Kind, Manifest, NotFoundError
from egress.adapters.ledger import Ledger
from egress.diagnosis import RANK, Fault, FaultKind, Inspection, Piece
from egress.objects import EgressAddress, HostSubnet, NetNamespace, Origin, Phase
from egress.views import Explanation, NamespaceDetail, NodePath, Verification
from webhook.api.facts import Facts
from webhook.api.native import Objects, fault_of
from webhook.api.reading import GRACE_SECONDS, Reading, assignment_of

T = TypeVar("T")
ANSWER_SECONDS = 5.0
"""How long the nodes are waited for."""
_LOOK_SECONDS = 0.05
MOST_FAULTS = 1000


class Diagnosing:
    """Looks for what is wrong. `ask` asks the runners of nodes for what is on them, of one namespace or ("") of all."""

    def __init__(
        self, cluster: Cluster, ledger: Ledger, reading: Reading, ask: Callable[[Iterable[str], str], None]
    ) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._reading = reading
        self._ask = ask

    def explain(self, namespace: str) -> Explanation:
        """The way of a namespace's packets. NotFoundError if Hawse does not know it; TransientError."""
        detail = self._reading.namespace(namespace)
        if detail is None:
            raise NotFoundError(f"there is no namespace {namespace} that Hawse knows of")
        claims = [claim for claim in self._reading.claims(namespace) if claim.phase is not Phase.QUARANTINED]
        if self._reading.network().native:
            return self._explain_natively(detail, claims)
        facts = self._reading.facts()
        rows = [row for row in facts.table.values() if row.namespace == namespace and not row.former]
        senders = {hop.node for row in rows for hop in row.hops}
        manifest = self._cluster.get(Kind.NET_NAMESPACE, namespace)
        nets, unreadable = _read(manifests.net_namespace, [manifest] if manifest is not None else [])
        hosts, others = _read(manifests.host_subnet, self._cluster.list(Kind.HOST_SUBNET).items)
        answers = self._inspect(facts, namespace)
        pieces = list(_pieces(claims, next(iter(nets), None), _hosting(hosts), {row.netid for row in rows}))
        faults = [
            *unreadable,
            *others,
            *_of_claims(claims),
            *(_of_object(piece, namespace) for piece in pieces if piece.found != piece.wanted),
            *_of_nodes(facts, answers, senders),
            *(fault for answer in answers.values() for fault in answer.faults),
        ]
        nodes = [_path(node, answers) for node in sorted(_asked(facts), key=lambda name: (name not in senders, name))]
        addresses = tuple(item.assignment.address for item in detail.addresses)
        return Explanation(namespace, detail.state, addresses, tuple(pieces), tuple(nodes), tuple(_sorted(faults)))

    def verify(self) -> Verification:
        """Everything that is wrong, on every node. TransientError."""
        claims = [claim for claim in self._reading.all_claims() if claim.phase is not Phase.QUARANTINED]
        if self._reading.network().native:
            return self._verify_natively(claims)
        facts = self._reading.facts()
        by_namespace: defaultdict[str, list[EgressAddress]] = defaultdict(list)
        for claim in claims:
            by_namespace[claim.namespace].append(claim)
        nets, unreadable = _read(manifests.net_namespace, self._cluster.list(Kind.NET_NAMESPACE).items)
        bound = {net.name: net for net in nets}
        owners = {claim.address: claim.namespace for claim in claims}
        hosts, others = _read(manifests.host_subnet, self._cluster.list(Kind.HOST_SUBNET).items)
        hosting = _hosting(hosts)
        netids: defaultdict[str, set[int]] = defaultdict(set)
        for row in facts.table.values():
            if not row.former:
                netids[row.namespace].add(row.netid)
        answers = self._inspect(facts, "")
        faults = [*unreadable, *others, *_of_claims(claims), *_of_nodes(facts, answers, set(facts.ips))]
        for namespace, own in by_namespace.items():
            pieces = _pieces(own, bound.get(namespace), hosting, netids[namespace])
            faults += [_of_object(piece, namespace) for piece in pieces if piece.found != piece.wanted]
        for name, net in bound.items():
            for address in set(net.egress_ips) & owners.keys():
                if owners[address] != name:
                    text = f"NetNamespace {name} has it too"
                    faults.append(Fault(FaultKind.CONFLICT, text, "", owners[address], address))
        hidden = sum(answer.total - len(answer.faults) for answer in answers.values())
        faults += [fault for answer in answers.values() for fault in answer.faults]
        first = tuple(_sorted(faults))
        return Verification(len(by_namespace), len(claims), len(answers), first[:MOST_FAULTS], len(first) + hidden)

    def _explain_natively(self, detail: NamespaceDetail, claims: list[EgressAddress]) -> Explanation:
        network, name = self._reading.network(), detail.namespace
        objects = Objects.of(self._cluster, network)
        pieces = tuple(objects.pieces(name, claims))
        wrong = [fault_of(piece, name) for piece in pieces if piece.found != piece.wanted]
        faults = _sorted([*objects.faults, *_of_claims(claims), *wrong])
        addresses = tuple(item.assignment.address for item in detail.addresses)
        return Explanation(name, detail.state, addresses, pieces, (), tuple(faults), network.unseen)

    def _verify_natively(self, claims: list[EgressAddress]) -> Verification:
        network = self._reading.network()
        objects = Objects.of(self._cluster, network)
        by_namespace: defaultdict[str, list[EgressAddress]] = defaultdict(list)
        for claim in claims:
            by_namespace[claim.namespace].append(claim)
        faults = [*objects.faults, *_of_claims(claims)]
        for name, own in by_namespace.items():
            pieces = objects.pieces(name, own)
            faults += [fault_of(piece, name) for piece in pieces if piece.found != piece.wanted]
        found = tuple(_sorted(faults))
        return Verification(len(by_namespace), len(claims), 0, found[:MOST_FAULTS], len(found), network.unseen)

    def _inspect(self, facts: Facts, namespace: str) -> dict[str, Inspection]:
        """What the nodes say within ANSWER_SECONDS."""
        nodes = _asked(facts)
        since, deadline = self._ledger.now(), time.monotonic() + ANSWER_SECONDS
        self._ask(nodes, namespace)
        while True:
            said = self._ledger.inspections(nodes, namespace)
            answers = {node: answer for node, answer in said.items() if answer.at >= since}
            if len(answers) == len(nodes) or time.monotonic() > deadline:
                return answers
            time.sleep(_LOOK_SECONDS)


def _read(parse: Callable[[object], T], items: Iterable[Manifest]) -> tuple[list[T], list[Fault]]:
    """The objects, and those that cannot be read."""
    values, faults = [], []
    for item in items:
        try:
            values.append(parse(item))
        except manifests.ManifestError as error:
            kind = FaultKind.NET_NAMESPACE if item.get("kind") == "NetNamespace" else FaultKind.HOST_SUBNET
            faults.append(Fault(kind, f"it cannot be read: {error}"))
    return values, faults


def _asked(facts: Facts) -> list[str]:
    """The nodes that can answer: those with a runner that are not lost."""
    return sorted(({*facts.ips, *facts.reports}) - facts.lost.keys())


def _path(node: str, answers: dict[str, Inspection]) -> NodePath:
    answer = answers.get(node)
    if answer is None:
        return NodePath(node, 0.0, (), "its runner has not answered")
    return NodePath(node, answer.at, answer.traces, answer.problem)


def _of_claims(claims: Iterable[EgressAddress]) -> Iterator[Fault]:
    for claim in claims:
        item = assignment_of(claim)
        if item.trouble is None:
            continue
        kind = FaultKind.CONFLICT if item.trouble is Trouble.CONFLICT else FaultKind.NOT_READY
        text = f"{item.trouble}: {item.reason}: {item.message}" if item.message else f"{item.trouble}: {item.reason}"
        yield Fault(kind, text, item.node, item.namespace, item.address)


def _hosting(hosts: Iterable[HostSubnet]) -> dict[str, list[str]]:
    """The HostSubnets that have each address."""
    hosting: defaultdict[str, list[str]] = defaultdict(list)
    for host in hosts:
        for address in host.egress_ips:
            hosting[address].append(host.name)
    return hosting


def _pieces(
    claims: Collection[EgressAddress], bound: NetNamespace | None, hosting: dict[str, list[str]], netids: set[int]
) -> Iterator[Piece]:
    given = [claim for claim in claims if claim.address and claim.origin is not Origin.MANUAL]
    if given or (netids and claims):
        name = claims and next(iter(claims)).namespace
        wanted = ", ".join(sorted(claim.address for claim in claims))
        has = ", ".join(sorted(bound.egress_ips)) if bound is not None else "there is none"
        yield Piece(f"NetNamespace {name}: egressIPs", wanted, has)
        if bound is not None and netids:
            wanted_id = str(bound.netid) if bound.netid in netids else ", ".join(map(str, sorted(netids)))
            yield Piece(f"NetNamespace {name}: netid", wanted_id, str(bound.netid))
    for claim in claims:
        if claim.node:
            where = ", ".join(sorted(hosting.get(claim.address, ()))) or "none"
            yield Piece(f"HostSubnets with {claim.address}", claim.node, where)


def _of_object(piece: Piece, namespace: str) -> Fault:
    kind = FaultKind.NET_NAMESPACE if piece.what.startswith("NetNamespace") else FaultKind.HOST_SUBNET
    if kind is FaultKind.HOST_SUBNET and "," in piece.found:
        kind = FaultKind.CONFLICT  # on several nodes
    return Fault(kind, f"{piece.what}: {piece.found}; it should be: {piece.wanted}", "", namespace)


def _of_nodes(facts: Facts, answers: dict[str, Inspection], concerned: Collection[str]) -> Iterator[Fault]:
    """The nodes that are lost (of those `concerned`), silent, behind, without a link or not to be programmed."""
    for node in sorted(facts.lost.keys() & set(concerned)):
        yield Fault(FaultKind.NODE_LOST, "it counts as lost: its addresses go to others", node)
    for node in _asked(facts):
        answer, report = answers.get(node), facts.reports.get(node)
        if answer is None:
            yield Fault(
                FaultKind.NODE_SILENT, "its runner has not answered: does it run, and does it reach Redis?", node
            )
        elif answer.problem or (report is not None and report.problem):
            text = answer.problem or (report.problem if report is not None else "")
            yield Fault(FaultKind.NODE_PROBLEM, text, node)
        if report is not None and not report.carrier:
            yield Fault(FaultKind.NODE_PROBLEM, "its interface has no link", node)
        if node in facts.lagging and facts.now - facts.lagging[node] > GRACE_SECONDS and report is not None:
            text = f"it has applied change {report.applied} of {facts.change}, as its runner last said"
            yield Fault(FaultKind.NODE_BEHIND, text, node)


def _sorted(faults: Iterable[Fault]) -> list[Fault]:
    unique = dict.fromkeys(faults)
    return sorted(unique, key=lambda fault: (RANK[fault.kind], fault.namespace, fault.address, fault.node))
