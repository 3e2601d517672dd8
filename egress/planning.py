"""Cluster objects in, what each namespace's outgoing traffic must do out, and why. Pure.

The rules are those of OpenShift's namespace-wide egress IP (docs/reference.md has the table); where an input is
contradictory the affected traffic is dropped and every party is named. The result does not depend on input order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import StrEnum

from egress.addresses import Address, AddressError, parse_address
from egress.objects import EgressAddress, HostSubnet, NetNamespace, Phase

MAX_NETID = 0xFFFFFF
Acknowledgement = tuple[Address, str, int]
"""An address, the node that holds it, and the NetID whose packets the node sends out with it. A node that holds the
address for one NetID has no flow for another yet, and would let its packets out with the node's own IP."""


class State(StrEnum):
    """What becomes of a namespace's packets that leave the cluster."""

    NORMAL = "normal"
    VIA = "via"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Hop:
    """An address of a namespace and the node that hosts it."""

    address: Address
    node: str
    node_ip: Address


@dataclass(frozen=True, slots=True)
class NamespacePlan:
    """One namespace's outcome.

    `via` are the addresses its traffic leaves with now; `claims` are placed without contradiction, but not yet
    acknowledged by their node, and so carry nothing yet; `withheld` are placed, and nobody has approved them. `reasons`
    says why an address is not in use.
    """

    name: str
    netid: int
    state: State
    via: tuple[Hop, ...] = ()
    claims: tuple[Hop, ...] = ()
    reasons: tuple[str, ...] = ()
    withheld: tuple[Hop, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Every namespace's outcome by name, and the contradictions found, each named once with all its parties."""

    namespaces: Mapping[str, NamespacePlan]
    conflicts: tuple[str, ...]

    def by_netid(self) -> dict[int, NamespacePlan]:
        """What the nodes must know: the outcome per NetID, without NetIDs that need no flow.

        Namespaces that share a NetID are all dropped, so any of them stands for the NetID; the first by name is taken.
        """
        table: dict[int, NamespacePlan] = {}
        for name in sorted(self.namespaces):
            outcome = self.namespaces[name]
            if outcome.state is not State.NORMAL:
                table.setdefault(outcome.netid, outcome)
        return table


def plan(
    host_subnets: Iterable[HostSubnet],
    net_namespaces: Collection[NetNamespace],
    *,
    offline: AbstractSet[str] = frozenset(),
    acknowledged: AbstractSet[Acknowledgement] | None = None,
    withheld: AbstractSet[Address] = frozenset(),
) -> Plan:
    """The plan of a whole cluster.

    `offline` names nodes that host nothing for now. `acknowledged` holds what the nodes have claimed; None means
    that they have claimed all of it. Nothing leaves with addresses that are `withheld`.
    """
    outcomes, conflicts = plan_by_cause(
        host_subnets, net_namespaces, offline=offline, acknowledged=acknowledged, withheld=withheld
    )
    return Plan(dict(sorted(outcomes.items())), tuple(sorted(set().union(*conflicts.values()))))


class By(StrEnum):
    """What a contradiction is about."""

    ADDRESS = "address"
    """An address that several have."""
    NETID = "netid"
    """A NetID that cannot be steered by."""
    NODE = "node"
    """A HostSubnet that cannot be read."""
    HOST_IP = "hostIP"
    """An IP that several nodes have."""
    NAMESPACE = "namespace"
    """A namespace whose addresses are on one node."""


Cause = tuple[By, Address | int | str]
"""What a contradiction is about, and which: the address, the NetID, the name of the node or namespace."""


def plan_by_cause(
    host_subnets: Iterable[HostSubnet],
    net_namespaces: Collection[NetNamespace],
    *,
    offline: AbstractSet[str] = frozenset(),
    acknowledged: AbstractSet[Acknowledgement] | None = None,
    withheld: AbstractSet[Address] = frozenset(),
) -> tuple[dict[str, NamespacePlan], dict[Cause, set[str]]]:
    """The same as `plan`: every namespace's outcome by its name, and the contradictions by what each is about."""
    hosting = _Hosting.of(host_subnets)
    view = _View(offline, acknowledged, withheld)
    owners: dict[Address, set[str]] = defaultdict(set)
    sharing: dict[int, list[NetNamespace]] = defaultdict(list)
    for namespace in net_namespaces:
        sharing[namespace.netid].append(namespace)
        for address in _parsed(namespace.egress_ips)[0]:
            owners[address].add(namespace.name)

    conflicts = hosting.conflicts()
    for address, names in owners.items():
        if len(names) > 1:
            conflicts[By.ADDRESS, address].add(f"address {address} is in NetNamespaces {_listed(names)}")

    outcomes: dict[str, NamespacePlan] = {}
    for netid, group in sharing.items():
        refusal = _refusal(netid, group)
        if refusal is not None:
            conflicts[By.NETID, netid].add(refusal)
            for namespace in group:
                state = State.NORMAL if not 0 < netid <= MAX_NETID else State.DROP
                affected = state is State.DROP or namespace.egress_ips
                reasons = (refusal,) if affected else ()
                outcomes[namespace.name] = NamespacePlan(namespace.name, netid, state, reasons=reasons)
            continue
        for namespace in group:
            outcomes[namespace.name] = _outcome(namespace, hosting, owners, view)
    for outcome in outcomes.values():
        for reason in outcome.reasons:
            if reason.startswith("addresses "):
                conflicts[By.NAMESPACE, outcome.name].add(reason)
    return outcomes, conflicts


def with_claims(net_namespaces: Iterable[NetNamespace], claims: Iterable[EgressAddress]) -> list[NetNamespace]:
    """The NetNamespaces, each as if it listed what its namespace has claimed too.

    A namespace with a claim is never left without an egress address: somebody who empties its NetNamespace by hand
    would let its packets out with the nodes' IPs until Hawse has put the addresses back. Not what was set by hand: who
    takes that away means it.
    """
    claimed: dict[str, list[str]] = defaultdict(list)
    for claim in claims:
        if claim.phase is not Phase.QUARANTINED and not claim.adopted:
            claimed[claim.namespace].append(claim.address)
    result = []
    for namespace in net_namespaces:
        missing = sorted(set(claimed.get(namespace.name, ())) - set(namespace.egress_ips))
        result.append(replace(namespace, egress_ips=(*namespace.egress_ips, *missing)))
    return result


def withheld(claims: Iterable[EgressAddress]) -> frozenset[Address]:
    """The addresses that nothing leaves with, for want of an approval. Released ones too: whatever lists them still."""
    return frozenset(parse_address(claim.address) for claim in claims if claim.withheld)


def _refusal(netid: int, group: list[NetNamespace]) -> str | None:
    """Why nothing can be steered by this NetID, or None. Sharing without egress addresses is nobody's concern."""
    with_addresses = sorted(namespace.name for namespace in group if namespace.egress_ips)
    if not with_addresses:
        return None
    if netid == 0:
        # A drop for NetID 0 would cut every global project off, so the namespace gets no egress address at all.
        return f"NetID 0 is the cluster's global network: egress addresses of {_listed(with_addresses)} are refused"
    if not 0 < netid <= MAX_NETID:
        return f"NetID {netid} of {_listed(with_addresses)} is outside 1-{MAX_NETID}: its egress addresses are refused"
    if len(group) > 1:
        names = [namespace.name for namespace in group]
        return f"NetID {netid} is shared by NetNamespaces {_listed(names)}: their traffic cannot be told apart"
    return None


@dataclass(frozen=True, slots=True)
class _View:
    """What keeps an address that is placed from carrying traffic."""

    offline: AbstractSet[str]
    acknowledged: AbstractSet[Acknowledgement] | None
    withheld: AbstractSet[Address]


def _outcome(
    namespace: NetNamespace, hosting: _Hosting, owners: Mapping[Address, set[str]], view: _View
) -> NamespacePlan:
    if not namespace.egress_ips:
        return NamespacePlan(namespace.name, namespace.netid, State.NORMAL)
    addresses, reasons = _parsed(namespace.egress_ips)
    contested = [address for address in addresses if len(owners[address]) > 1]
    if contested:
        reasons += [f"address {address} is in NetNamespaces {_listed(owners[address])}" for address in contested]
        return NamespacePlan(namespace.name, namespace.netid, State.DROP, reasons=tuple(sorted(reasons)))

    placed: list[Hop] = []
    for address in addresses:
        hop = hosting.hop(address)
        if isinstance(hop, Hop):
            placed.append(hop)
        else:
            reasons.append(hop)
    crowd: dict[tuple[str, int], list[Address]] = defaultdict(list)  # a pair of IPv4 and IPv6 may share a node
    for hop in placed:
        crowd[hop.node, hop.address.version].append(hop.address)
    via: list[Hop] = []
    claims: list[Hop] = []
    withheld: list[Hop] = []
    for hop in placed:
        together = crowd[hop.node, hop.address.version]
        if len(together) > 1:
            reasons.append(
                f"addresses {_listed(map(str, together))} of namespace {namespace.name} are all on node {hop.node}"
            )
        elif hop.address in view.withheld:
            withheld.append(hop)
            reasons.append(f"nobody has approved {hop.address}")
        elif hop.node in view.offline:
            reasons.append(f"node {hop.node}, which hosts {hop.address}, is offline")
        elif view.acknowledged is not None and (hop.address, hop.node, namespace.netid) not in view.acknowledged:
            claims.append(hop)
            reasons.append(f"node {hop.node} has not acknowledged {hop.address}")
        else:
            via.append(hop)
    return NamespacePlan(
        namespace.name,
        namespace.netid,
        State.VIA if via else State.DROP,
        tuple(via),
        tuple(claims),
        tuple(sorted(set(reasons))),
        tuple(withheld),
    )


class _Hosting:
    """Which nodes say that they host an address."""

    def __init__(
        self,
        nodes: Mapping[Address, AbstractSet[str]],
        ips: Mapping[str, Address],
        own: Mapping[Address, AbstractSet[str]],
        bad: Mapping[str, AbstractSet[str]],
    ) -> None:
        self._nodes = nodes
        self._ips = ips
        self._own = own
        self._bad = bad

    def conflicts(self) -> dict[Cause, set[str]]:
        """The contradictions between HostSubnets."""
        found: dict[Cause, set[str]] = defaultdict(set)
        for name, errors in self._bad.items():
            found[By.NODE, name].update(errors)
        for address, hosts in self._nodes.items():
            if len(hosts) > 1:
                found[By.ADDRESS, address].add(self._double(address))
            if address in self._own:
                found[By.ADDRESS, address].add(self._taken(address))
        for address, hosts in self._own.items():
            if len(hosts) > 1:
                found[By.HOST_IP, address].add(self._ambiguous(address))
        return found

    @classmethod
    def of(cls, host_subnets: Iterable[HostSubnet]) -> _Hosting:
        nodes: dict[Address, set[str]] = defaultdict(set)
        ips: dict[str, Address] = {}
        own: dict[Address, set[str]] = defaultdict(set)
        bad: dict[str, set[str]] = defaultdict(set)
        for host in host_subnets:
            try:
                ips[host.name] = parse_address(host.host_ip)
                own[ips[host.name]].add(host.name)
            except AddressError as error:
                bad[host.name].add(f"HostSubnet {host.name}: hostIP: {error}")
            addresses, errors = _parsed(host.egress_ips)
            if errors:
                bad[host.name].update(f"HostSubnet {host.name}: {error}" for error in errors)
            for address in addresses:
                nodes[address].add(host.name)
        return cls(nodes, ips, own, bad)

    def hop(self, address: Address) -> Hop | str:
        """The one node that hosts `address`, or why there is none."""
        hosts = self._nodes.get(address, ())
        if not hosts:
            return f"no node hosts {address}"
        if address in self._own:
            return self._taken(address)
        if len(hosts) > 1:
            return self._double(address)
        (node,) = hosts
        node_ip = self._ips.get(node)
        if node_ip is None:
            return f"node {node}, which hosts {address}, has no usable hostIP"
        if len(self._own[node_ip]) > 1:
            return self._ambiguous(node_ip)
        return Hop(address, node, node_ip)

    def _double(self, address: Address) -> str:
        return f"address {address} is on nodes {_listed(self._nodes[address])}"

    def _taken(self, address: Address) -> str:
        return f"address {address} is the own IP of node {_listed(self._own[address])}"

    def _ambiguous(self, node_ip: Address) -> str:
        return f"hostIP {node_ip} is of HostSubnets {_listed(self._own[node_ip])}"


def _parsed(texts: Iterable[str]) -> tuple[list[Address], list[str]]:
    """The distinct addresses among `texts` in numeric order, and one error for each text that is none."""
    addresses: set[Address] = set()
    errors: list[str] = []
    for text in texts:
        try:
            addresses.add(parse_address(text))
        except AddressError as error:
            errors.append(f"egressIPs: {error}")
    return sorted(addresses, key=lambda address: (address.version, int(address))), errors


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))
