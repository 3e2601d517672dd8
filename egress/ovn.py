"""OVN-Kubernetes' EgressIP objects: whose traffic they take, what became of their addresses, and why not more. Pure.

The rules are those of ovn-kubernetes' cluster manager: it alone chooses the nodes, among those that carry
`k8s.ovn.org/egress-assignable`; a node must be on a network that holds the address; a node has one address of an
EgressIP at most; an address is of one EgressIP alone; and a node's own IP is nobody's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from egress.addresses import Address, addresses_of, parse_address
from egress.objects import (
    CREATED_ANNOTATION,
    EgressAddress,
    HostSubnet,
    NetNamespace,
    Operator,
    Phase,
    Selector,
)
from egress.planning import Hop, NamespacePlan, Plan, State

ASSIGNABLE_LABEL = "k8s.ovn.org/egress-assignable"
"""On a Node, with any value: OVN-Kubernetes may give it egress addresses."""
NAME_LABEL = "kubernetes.io/metadata.name"
"""On every Namespace, written by the API server: its name."""
OWN_LABEL = "egress.hawse.dev/namespace"
"""On an EgressIP that Hawse made: its namespace."""
_PREFIX = "hawse-"


@dataclass(frozen=True, slots=True)
class EgressIP:
    """An EgressIP. `partial`: it takes only some of a namespace's pods or traffic. `items` are the addresses that have
    a node, as its status says. Texts are as the object holds them."""

    name: str
    egress_ips: tuple[str, ...]
    selector: Selector
    partial: bool = False
    items: tuple[tuple[str, str], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    resource_version: str = ""

    @property
    def only(self) -> str:
        """The one namespace that it selects by its name, with all its traffic; "" if it may select others, or less."""
        labels, requirements = dict(self.selector.match_labels), self.selector.requirements
        if self.partial or len(labels) + len(requirements) != 1:
            return ""
        if labels:
            return labels.get(NAME_LABEL, "")
        (one,) = requirements
        return one.values[0] if one.key == NAME_LABEL and one.operator is Operator.IN and len(one.values) == 1 else ""

    @property
    def own(self) -> bool:
        """Whether Hawse made it."""
        return is_own(self.name, self.labels)

    def node_of(self, address: Address) -> str:
        """The node that has the address; "" for none."""
        return next((node for text, node in self.items if addresses_of([text]) == [address]), "")


@dataclass(frozen=True, slots=True)
class OvnNode:
    """A node as OVN-Kubernetes sees it. `networks` are those whose addresses it can host; empty where none is told."""

    name: str
    ips: tuple[Address, ...] = ()
    assignable: bool = False
    ready: bool = True
    networks: tuple[IPv4Network | IPv6Network, ...] = ()


def own_name(namespace: str) -> str:
    """The name of the EgressIP that Hawse makes for a namespace."""
    return f"{_PREFIX}{namespace}"


def is_own(name: str, labels: Mapping[str, str]) -> bool:
    """Whether Hawse made the EgressIP of this name and these labels."""
    namespace = labels.get(OWN_LABEL, "")
    return bool(namespace) and name == own_name(namespace)


def by_name(addresses: Iterable[Address]) -> list[str]:
    """The texts of addresses in the order in which Hawse writes them: IPv4 first."""
    return [str(address) for address in sorted(set(addresses), key=lambda item: (item.version, int(item)))]


class Coverage:
    """Which EgressIPs take a namespace's traffic.

    The namespace's own is the one that Hawse writes into: the one that it made, else the first that selects this
    namespace alone. Whatever else covers it is somebody else's, and is let be.
    """

    def __init__(self, egress_ips: Iterable[EgressIP]) -> None:
        self.objects = tuple(sorted(egress_ips, key=lambda item: item.name))
        self._single: dict[str, list[EgressIP]] = defaultdict(list)
        self.broad: list[EgressIP] = []
        for item in self.objects:
            if item.only:
                self._single[item.only].append(item)
            elif not item.own:  # of its own a changed selector is put right
                self.broad.append(item)
        for items in self._single.values():
            items.sort(key=lambda item: (not item.own, item.name))

    def binding(self, namespace: str) -> EgressIP | None:
        """The object that says what the namespace leaves with."""
        return next(iter(self._single.get(namespace, ())), None)

    def bindings(self) -> dict[str, EgressIP]:
        """All of these, by namespace."""
        return {namespace: items[0] for namespace, items in self._single.items()}

    def rivals(self, namespace: str, labels: Mapping[str, str]) -> list[EgressIP]:
        """What else selects the namespace, all of it or some. OVN-Kubernetes uses any one of several."""
        others = self._single.get(namespace, [])[1:]
        return others + [item for item in self.broad if item.selector.matches({**labels, NAME_LABEL: namespace})]


def bindings_of(coverage: Coverage) -> list[NetNamespace]:
    """What each namespace leaves with, in the words that the rest of Hawse knows: there is no NetID here.

    Addresses that nobody can say of one namespace alone are listed under `egressip/NAME`, which names no namespace:
    they are taken all the same.
    """
    found = [as_binding(namespace, item) for namespace, item in coverage.bindings().items()]
    known = {binding.name for binding in found}
    # Hawse's own whose selector was changed says nothing, but is there, also when its namespace is not any more.
    strayed = [item for item in coverage.objects if item.own and item.labels[OWN_LABEL] not in known]
    found += [NetNamespace(item.labels[OWN_LABEL], 0, (), {CREATED_ANNOTATION: "true"}) for item in strayed]
    single = {item.name for item in coverage.bindings().values()}
    rest = [item for item in coverage.objects if item.name not in single and not item.own]
    return found + [NetNamespace(f"egressip/{item.name}", 0, item.egress_ips) for item in rest]


def as_binding(namespace: str, item: EgressIP) -> NetNamespace:
    """One namespace's own object, likewise."""
    annotations = {CREATED_ANNOTATION: "true"} if item.own else {}
    return NetNamespace(namespace, 0, item.egress_ips, annotations, item.resource_version)


def hosts_of(nodes: Iterable[OvnNode], coverage: Coverage) -> list[HostSubnet]:
    """The nodes with what they host, in the words that the rest of Hawse knows."""
    hosted: dict[str, list[str]] = defaultdict(list)
    for item in coverage.objects:
        for text, node in item.items:
            hosted[node].append(text)
    return [
        HostSubnet(node.name, str(ip), tuple(hosted[node.name]) if place == 0 else ())
        for node in nodes
        for place, ip in enumerate(node.ips)
    ]


def plan(
    claims: Iterable[EgressAddress],
    coverage: Coverage,
    labels: Mapping[str, Mapping[str, str]],
    nodes: Collection[OvnNode],
    withheld: AbstractSet[Address] = frozenset(),
) -> Plan:
    """What becomes of each namespace that has a claim. `labels` are the namespaces' own; only what is broader than one
    namespace is compared with them."""
    by_namespace: dict[str, set[Address]] = defaultdict(set)
    for claim in claims:
        if claim.phase is not Phase.QUARANTINED:
            by_namespace[claim.namespace].add(parse_address(claim.address))
    holders: dict[Address, list[EgressIP]] = defaultdict(list)
    for item in coverage.objects:
        for address in dict.fromkeys(addresses_of(item.egress_ips)):
            holders[address].append(item)
    where = {node.name: node for node in nodes}
    conflicts: set[str] = set()
    outcomes = {}
    for namespace, addresses in sorted(by_namespace.items()):
        binding = coverage.binding(namespace)
        rivals = [_rivalry(item, namespace) for item in coverage.rivals(namespace, labels.get(namespace, {}))]
        conflicts.update(rivals)
        via, held, reasons = [], [], list(rivals)
        for address in sorted(addresses, key=lambda item: (item.version, int(item))):
            node = binding.node_of(address) if binding is not None else ""
            hop = Hop(address, node, _ip_of(where.get(node), address))
            if address in withheld:
                reasons.append(f"nobody has approved {address}")
                if node:
                    held.append(hop)
                continue
            if binding is None or address not in addresses_of(binding.egress_ips):
                reasons.append(f"no EgressIP of namespace {namespace} has {address}")
                continue
            if shared := _shared(address, binding, holders[address]):
                conflicts.add(shared)
                reasons.append(shared)
            if not node:
                reasons.append(f"EgressIP {binding.name}: {_why_not(address, binding, nodes)}")
            elif not rivals:
                via.append(hop)
        outcomes[namespace] = NamespacePlan(
            namespace, 0, State.VIA if via else State.NORMAL, tuple(via), (), tuple(reasons), tuple(held)
        )
    return Plan(outcomes, tuple(sorted(conflicts)))


def _ip_of(node: OvnNode | None, address: Address) -> Address:
    return node.ips[0] if node is not None and node.ips else address


def _rivalry(item: EgressIP, namespace: str) -> str:
    some = "some of the traffic of " if item.partial else ""
    return (
        f"EgressIP {item.name}, which is not Hawse's, takes {some}namespace {namespace} too: OVN-Kubernetes uses "
        "either; delete it, or change its selector"
    )


def _shared(address: Address, binding: EgressIP, holders: Collection[EgressIP]) -> str:
    if len(holders) < 2:
        return ""
    names = " and ".join(sorted(item.name for item in holders))
    here = binding.node_of(address)
    return "" if here else f"address {address} is in EgressIPs {names}: OVN-Kubernetes gives it to one of them"


def _why_not(address: Address, binding: EgressIP, nodes: Collection[OvnNode]) -> str:
    """Why OVN-Kubernetes gives `address` no node, as far as the objects show it."""
    owner = next((node.name for node in nodes if address in node.ips), "")
    if owner:
        return f"{address} is the own IP of node {owner}"
    assignable = [node for node in nodes if node.assignable]
    if not assignable:
        return f"no node may host {address}: label one with {ASSIGNABLE_LABEL}"
    ready = [node for node in assignable if node.ready]
    if not ready:
        return f"no node that may host {address} is ready"
    fit = [node for node in ready if not node.networks or any(address in network for network in node.networks)]
    if not fit:
        return f"no node that may host addresses is on a network that holds {address}"
    taken = {node for _, node in binding.items}
    if all(node.name in taken for node in fit):
        return f"every node that could host {address} has another address of it: label one more with {ASSIGNABLE_LABEL}"
    return f"OVN-Kubernetes has given {address} no node yet; `kubectl get events` may say why"
