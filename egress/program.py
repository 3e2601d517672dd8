"""The shared table and one node in, that node's addresses, flows and rules out, as data. Pure.

Every text here is in the form in which the kernel's own tools print it back (`ovs-ofctl --no-names dump-flows
--no-stats`, `iptables -S`), so that what is wanted and what is there can be compared as they stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from egress.addresses import VERSIONS, Address, assign_marks
from egress.rules import RuleSet, rules_of
from egress.table import Steering, SteeringHop

COOKIE = 0x4861777365 << 24
"""The cookie of NetID 0's flow, were there one: "Hawse" in ASCII; the low 24 bits hold the flow's NetID."""
COOKIE_MASK = 0xFFFFFFFFFF << 24
GROUPS = {4: 0x48 << 24, 6: 0x49 << 24}
"""By IP version; added to a NetID it gives the id of the group that spreads the NetID's traffic over several nodes."""

UNKNOWN_MAC = "<tun0 MAC>"

Traffic = tuple[int, int]
"""What one flow takes: the packets of a NetID and an IP version."""
_MATCHES = {4: "ip", 6: "ipv6"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How the cluster's network is laid out. The defaults are OpenShift 3.7's; see `egress.settings`."""

    cluster_networks: tuple[IPv4Network | IPv6Network, ...] = (IPv4Network("10.128.0.0/14"),)
    egress_table: int = 100
    next_table: int = 101
    priority: int = 100
    masquerade_chain: str = "OPENSHIFT-MASQUERADE"
    unknown_ipv6: bool = False
    """Whether the node's pods have IPv6 all the same where no cluster network is one of IPv6."""

    _texts: Mapping[int, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        texts = {
            version: tuple(str(network) for network in self.cluster_networks if network.version == version)
            for version in VERSIONS
        }
        object.__setattr__(self, "_texts", texts)  # asked for once an address

    def networks(self, version: int) -> tuple[str, ...]:
        """The pods' networks of one IP version, as iptables prints them."""
        return self._texts[version]


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node's program depends on, as read from the node. Offline, tun0's MAC is unknown and printed as such."""

    node: str
    tun_mac: str = UNKNOWN_MAC
    vxlan_port: int = 1


class Flow(NamedTuple):
    """One flow of ours. `match` and `actions` are texts in OVS's own canonical form. A tuple, as `Rule` is."""

    table: int
    priority: int
    match: str
    cookie: int
    actions: str

    @property
    def key(self) -> tuple[int, int, str]:
        """What OVS identifies a flow by: adding a second flow with this key replaces the first."""
        return self.table, self.priority, self.match

    def __str__(self) -> str:
        return f"table={self.table},priority={self.priority},{self.match} actions={self.actions}"


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """A select group: each connection takes one of `buckets` (their actions), by hash."""

    group_id: int
    buckets: tuple[str, ...]

    def __str__(self) -> str:
        return f"group_id={self.group_id},type=select," + ",".join(f"bucket=actions={b}" for b in self.buckets)


@dataclass(frozen=True, slots=True)
class NodeProgram:
    """All that one node must hold. `own` tells which flow hands packets to which of the node's addresses. `retiring`
    are addresses that it is not to hold, or not yet, whose rules it keeps for a while, with their marks."""

    addresses: frozenset[Address] = frozenset()
    flows: frozenset[Flow] = frozenset()
    groups: frozenset[Group] = frozenset()
    rules: RuleSet = field(default_factory=RuleSet)
    own: Mapping[Traffic, Address] = field(default_factory=dict)
    marks: Mapping[Address, int] = field(default_factory=dict)
    retiring: Mapping[Address, int] = field(default_factory=dict)


def render(
    table: Iterable[Steering],
    facts: NodeFacts,
    layout: Layout,
    *,
    withheld: AbstractSet[Address] = frozenset(),
    marks: Mapping[Address, int] | None = None,
    retiring: Mapping[Address, int] | None = None,
) -> NodeProgram:
    """The program of node `facts.node`.

    `withheld` are addresses that this node must not hold now (still probing, or refused): their NetIDs are dropped
    here, for to hand their packets on would let the general MASQUERADE send them out with the node's IP. `marks` are
    the marks that the node's rules give its addresses now; they are kept. `retiring`, which are among them, keep their
    rules even where the node is not to hold them.
    """
    rows = list(table)
    known = {version for version in VERSIONS if layout.networks(version)}
    own: dict[Traffic, Address] = {
        (row.netid, hop.address.version): hop.address
        for row in rows
        for hop in row.hops
        if hop.node == facts.node and hop.address.version in known and not (withheld and hop.address in withheld)
    }
    addresses = frozenset(own.values())
    mark_of = assign_marks(addresses, marks)
    flows: set[Flow] = set()
    groups: set[Group] = set()
    for row in rows:
        for version, hops in by_version(row, layout):
            actions = "drop"
            if (address := own.get((row.netid, version))) is not None:
                actions = (
                    f"set_field:{facts.tun_mac}->eth_dst,set_field:{mark_of[address]:#x}->pkt_mark,"
                    f"goto_table:{layout.next_table}"
                )
            elif any(hop.node == facts.node for hop in hops):
                pass  # this node is to host it and does not yet: never pass the packets to somebody else meanwhile
            elif len(buckets := [_tunnel(hop.node_ip, facts.vxlan_port) for hop in hops if hop.acknowledged]) == 1:
                actions = buckets[0]
            elif buckets:
                group = Group(GROUPS[version] | row.netid, tuple(buckets))
                groups.add(group)
                actions = f"group:{group.group_id}"
            flows.add(flow_of(row.netid, version, actions, layout))
    staying = {
        address: mark
        for address, mark in (retiring or {}).items()
        if address not in addresses and address.version in known  # a rule names the pods' network
    }
    rules = rules_of({**staying, **mark_of}, layout)
    return NodeProgram(addresses, frozenset(flows), frozenset(groups), rules, own, mark_of, staying)


def by_version(row: Steering, layout: Layout) -> list[tuple[int, list[SteeringHop]]]:
    """The IP versions that a row needs a flow for, a drop where nothing else is to become of it, each with its hops.

    Where pods have no IPv6, no row needs one for it, unless it has an IPv6 address. Where they have one that nobody has
    told us of, they are not to leave by it either.
    """
    four: list[SteeringHop] = []
    six: list[SteeringHop] = []
    for hop in row.hops:
        (four if hop.address.version == 4 else six).append(hop)
    both = six or layout.networks(6) or layout.unknown_ipv6
    return [(4, four), (6, six)] if both else [(4, four)]


def flow_of(netid: int, version: int, actions: str, layout: Layout) -> Flow:
    """Our flow for the packets of `netid` of IP `version`."""
    match = f"{_MATCHES[version]},reg0={netid:#x}"
    return Flow(layout.egress_table, layout.priority, match, COOKIE | netid, actions)


@lru_cache(1 << 12)
def _tunnel(node_ip: Address, vxlan_port: int) -> str:
    """What steers packets to a node; thousands of flows do, to few nodes."""
    field_name = "tun_dst" if node_ip.version == 4 else "tun_ipv6_dst"
    return f"move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:{node_ip}->{field_name},output:{vxlan_port}"
