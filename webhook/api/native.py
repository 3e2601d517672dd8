"""What `hawse explain` and `hawse verify` show where the cluster's own network programs the nodes: its objects and
their status, against what should be. No flow, rule or address of a node is looked at, and that is said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from egress.adapters import egressips, manifests
from egress.adapters.cluster import Cluster, Kind, Manifest
from egress.addresses import addresses_of, parse_address
from egress.diagnosis import Fault, FaultKind, Piece
from egress.networks import Network
from egress.objects import EgressAddress, HostSubnet, NetNamespace, Origin
from egress.ovn import NAME_LABEL, Coverage

T = TypeVar("T")
_NONE = "there is none"


@dataclass(frozen=True, slots=True)
class Objects:
    """The network's objects as they are, those that cannot be read as faults."""

    faults: tuple[Fault, ...]
    bound: dict[str, NetNamespace]
    hosting: dict[str, list[str]]
    coverage: Coverage
    labels: dict[str, dict[str, str]]
    native: Network

    @classmethod
    def of(cls, cluster: Cluster, native: Network) -> Objects:
        """All of them, with one list of each kind. TransientError."""
        faults: list[Fault] = []
        if native is Network.OPENSHIFT_SDN:
            nets = _read(
                manifests.net_namespace, cluster.list(Kind.NET_NAMESPACE).items, FaultKind.NET_NAMESPACE, faults
            )
            hosts = _read(manifests.host_subnet, cluster.list(Kind.HOST_SUBNET).items, FaultKind.HOST_SUBNET, faults)
            return cls(tuple(faults), {net.name: net for net in nets}, _hosting(hosts), Coverage([]), {}, native)
        items = _read(egressips.egress_ip, cluster.list(Kind.EGRESS_IP).items, FaultKind.EGRESS_IP, faults)
        coverage, labels = Coverage(items), {}
        if coverage.broad:
            namespaces = map(manifests.namespace, cluster.list(Kind.NAMESPACE).items)
            labels = {namespace.name: dict(namespace.labels) for namespace in namespaces}
        return cls(tuple(faults), {}, {}, coverage, labels, native)

    def pieces(self, namespace: str, claims: Collection[EgressAddress]) -> Iterator[Piece]:
        """What each object that concerns the namespace should say, and what it says."""
        if self.native is Network.OPENSHIFT_SDN:
            yield from self._of_sdn(namespace, claims)
        else:
            yield from self._of_ovn(namespace, claims)

    def _of_sdn(self, namespace: str, claims: Collection[EgressAddress]) -> Iterator[Piece]:
        net = self.bound.get(namespace)
        if any(claim.origin is not Origin.MANUAL for claim in claims):
            found = _joined(net.egress_ips) if net is not None else _NONE
            yield Piece(f"NetNamespace {namespace}: egressIPs", _joined(claim.address for claim in claims), found)
        for claim in claims:
            wanted = "none" if claim.withheld else claim.node or "one"
            found = _joined(self.hosting.get(claim.address, ())) or "none"
            yield Piece(f"HostSubnets with {claim.address}", wanted, found)

    def _of_ovn(self, namespace: str, claims: Collection[EgressAddress]) -> Iterator[Piece]:
        binding = self.coverage.binding(namespace)
        wanted = _joined(claim.address for claim in claims if not claim.withheld)
        if wanted or binding is not None:
            name = binding.name if binding is not None else f"of namespace {namespace}"
            found = _joined(map(str, addresses_of(binding.egress_ips))) if binding is not None else _NONE
            yield Piece(f"EgressIP {name}: egressIPs", wanted, found)
        for claim in claims:
            if binding is not None and not claim.withheld:
                node = binding.node_of(parse_address(claim.address))
                yield Piece(f"EgressIP {binding.name}: node of {claim.address}", node or "one", node or "none")
        for rival in self.coverage.rivals(namespace, {NAME_LABEL: namespace, **self.labels.get(namespace, {})}):
            yield Piece(f"EgressIP {rival.name}, which takes this namespace too", _NONE, _joined(rival.egress_ips))


def fault_of(piece: Piece, namespace: str) -> Fault:
    """What is wrong, where the piece is not as it should be."""
    kind = FaultKind.NET_NAMESPACE if piece.what.startswith("NetNamespace") else FaultKind.HOST_SUBNET
    if piece.what.startswith("EgressIP"):
        kind = FaultKind.CONFLICT if piece.wanted == _NONE else FaultKind.EGRESS_IP
    return Fault(kind, f"{piece.what}: {piece.found}; it should be: {piece.wanted}", "", namespace)


def _read(parse: Callable[[Manifest], T], items: Iterable[Manifest], kind: FaultKind, faults: list[Fault]) -> list[T]:
    values = []
    for item in items:
        try:
            values.append(parse(item))
        except manifests.ManifestError as error:
            faults.append(Fault(kind, f"it cannot be read: {error}"))
    return values


def _hosting(hosts: Iterable[HostSubnet]) -> dict[str, list[str]]:
    hosting: defaultdict[str, list[str]] = defaultdict(list)
    for host in hosts:
        for address in host.egress_ips:
            hosting[address].append(host.name)
    return dict(hosting)


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(sorted(texts))
