"""The shared table and one node in, that node's addresses, flows and rules out, as data. Pure.

Every text here is in the form in which the kernel's own tools print it back (`ovs-ofctl --no-names dump-flows
--no-stats`, `iptables -S`), so that what is wanted and what is there can be compared as they stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from egress.addresses import Address, assign_marks
from egress.table import Steering, SteeringHop

COOKIE = 0x4861777365 << 24
"""The cookie of NetID 0's flow, were there one: "Hawse" in ASCII; the low 24 bits hold the flow's NetID."""
COOKIE_MASK = 0xFFFFFFFFFF << 24
GROUP = 0x48 << 24
"""Added to a NetID it gives the id of the group that spreads the NetID's traffic over several nodes."""

SPINE_CHAIN = "HAWSE-EGRESS"
CLUSTER_CHAIN = "HAWSE-CLUSTER"
SNAT_CHAIN = "HAWSE-SNAT"
INPUT_CHAIN = "HAWSE-INPUT"
GUARD_CHAIN = "HAWSE-GUARD"
GUARD_ADDRESS_CHAIN = "HAWSE-GUARD-ADDR"
STALE_CHAIN = "HAWSE-STALE"
STALE_CONNMARK = 0x48415753
"""The connmark ("HAWS" in ASCII) of a connection that the guard has cut: the runner ends its conntrack entry."""
UNKNOWN_MAC = "<tun0 MAC>"


@dataclass(frozen=True, slots=True)
class Layout:
    """How the cluster's network is laid out. The defaults are OpenShift 3.7's; see `egress.settings`."""

    cluster_networks: tuple[IPv4Network, ...] = (IPv4Network("10.128.0.0/14"),)
    egress_table: int = 100
    next_table: int = 101
    priority: int = 100
    masquerade_chain: str = "OPENSHIFT-MASQUERADE"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node's program depends on, as read from the node. Offline, tun0's MAC is unknown and printed as such."""

    node: str
    tun_mac: str = UNKNOWN_MAC
    vxlan_port: int = 1


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """One flow of ours. `match` and `actions` are texts in OVS's own canonical form."""

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


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """One iptables rule: `spec` is what follows `-A CHAIN` in `iptables -S`."""

    table: str
    chain: str
    spec: str

    def __str__(self) -> str:
        return f"-A {self.chain} {self.spec}"


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The node's iptables rules.

    `jumps` stand first in chains that are not ours and lead into ours. `spine` are the fixed rules of our chains, in
    order. `leaves` are the rules of single addresses: within a chain, which holds nothing else, any two that match the
    same packet do the same with it, so their order means nothing.
    """

    jumps: tuple[Rule, ...] = ()
    spine: tuple[Rule, ...] = ()
    leaves: frozenset[Rule] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeProgram:
    """All that one node must hold. `own` tells which flow (by NetID) hands packets to which of the node's addresses."""

    addresses: frozenset[Address] = frozenset()
    flows: frozenset[Flow] = frozenset()
    groups: frozenset[Group] = frozenset()
    rules: RuleSet = field(default_factory=RuleSet)
    own: Mapping[int, Address] = field(default_factory=dict)
    marks: Mapping[Address, int] = field(default_factory=dict)


LEAF_CHAINS = (
    ("nat", CLUSTER_CHAIN),
    ("nat", SNAT_CHAIN),
    ("filter", INPUT_CHAIN),
    ("filter", GUARD_ADDRESS_CHAIN),
)
SPINE_CHAINS = (("nat", SPINE_CHAIN), ("filter", GUARD_CHAIN), ("filter", STALE_CHAIN))
OWN_CHAINS = frozenset(LEAF_CHAINS + SPINE_CHAINS)


def render(
    table: Iterable[Steering],
    facts: NodeFacts,
    layout: Layout,
    *,
    withheld: AbstractSet[Address] = frozenset(),
    marks: Mapping[Address, int] | None = None,
) -> NodeProgram:
    """The program of node `facts.node`.

    `withheld` are addresses that this node must not hold now (still probing, or refused): their NetIDs are dropped
    here, for to hand their packets on would let the general MASQUERADE send them out with the node's IP. `marks` are
    the marks that the node's rules give its addresses now; they are kept.
    """
    rows = list(table)
    own = {
        row.netid: hop.address
        for row in rows
        for hop in row.hops
        if hop.node == facts.node and hop.address.version == 4 and hop.address not in withheld
    }
    addresses = frozenset(own.values())
    mark_of = assign_marks(addresses, marks)
    flows: set[Flow] = set()
    groups: set[Group] = set()
    for row in rows:
        actions = "drop"
        away = [hop for hop in row.hops if _steerable(hop, facts.node)]
        if row.netid in own:
            actions = (
                f"set_field:{facts.tun_mac}->eth_dst,set_field:{mark_of[own[row.netid]]:#x}->pkt_mark,"
                f"goto_table:{layout.next_table}"
            )
        elif any(hop.node == facts.node and hop.address.version == 4 for hop in row.hops):
            pass  # this node is to host it and does not yet: never pass the packets to somebody else meanwhile
        elif len(away) == 1:
            actions = _tunnel(away[0], facts)
        elif away:
            group = Group(GROUP | row.netid, tuple(_tunnel(hop, facts) for hop in away))
            groups.add(group)
            actions = f"group:{group.group_id}"
        flows.add(flow_of(row.netid, actions, layout))
    return NodeProgram(addresses, frozenset(flows), frozenset(groups), rules_of(mark_of, layout), own, mark_of)


def flow_of(netid: int, actions: str, layout: Layout) -> Flow:
    """Our flow for `netid`."""
    return Flow(layout.egress_table, layout.priority, f"ip,reg0={netid:#x}", COOKIE | netid, actions)


def _steerable(hop: SteeringHop, node: str) -> bool:
    return hop.acknowledged and hop.node != node and hop.address.version == 4 and hop.node_ip.version == 4


def _tunnel(hop: SteeringHop, facts: NodeFacts) -> str:
    return f"move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:{hop.node_ip}->tun_dst,output:{facts.vxlan_port}"


def rules_of(marks: Mapping[Address, int], layout: Layout) -> RuleSet:
    """The rules of the node's addresses, each with its mark.

    nat: what kube-proxy has marked returns; marked packets to in-cluster destinations are MASQUERADEd, all others get
    their address by SNAT. filter: new connections to an egress address are REJECTed; and a packet whose mark and whose
    connection's translation are not of the same address is rejected. A connection keeps its translation whatever the
    nat rules say: begun before the assignment, the node's IP; begun before a release, the address. The connmark tells
    the runner to end it, so that it may begin anew.
    """
    if not marks:
        return RuleSet()  # a node without addresses carries no chain of ours at all
    leaves = frozenset[Rule]().union(*(leaves_of(address, mark, layout) for address, mark in marks.items()))
    spine = [Rule("nat", SPINE_CHAIN, "-m mark --mark 0x4000/0x4000 -j RETURN")]
    spine += [
        Rule("nat", SPINE_CHAIN, f"-s {source} -d {destination} -j {CLUSTER_CHAIN}")
        for source in layout.cluster_networks
        for destination in layout.cluster_networks
    ]
    spine.append(Rule("nat", SPINE_CHAIN, f"-j {SNAT_CHAIN}"))
    spine += [Rule("filter", GUARD_CHAIN, f"-d {network} -j RETURN") for network in layout.cluster_networks]
    spine.append(Rule("filter", GUARD_CHAIN, f"-j {GUARD_ADDRESS_CHAIN}"))
    spine.append(Rule("filter", STALE_CHAIN, f"-j CONNMARK --set-xmark {STALE_CONNMARK:#x}/0xffffffff"))
    spine.append(Rule("filter", STALE_CHAIN, "-p tcp -j REJECT --reject-with tcp-reset"))
    spine.append(Rule("filter", STALE_CHAIN, "-j DROP"))
    jumps = (
        Rule("nat", layout.masquerade_chain, f"-j {SPINE_CHAIN}"),
        Rule("filter", "INPUT", f"-j {INPUT_CHAIN}"),
        Rule("filter", "FORWARD", f"-j {GUARD_CHAIN}"),
    )
    return RuleSet(jumps, tuple(spine), leaves)


def leaves_of(address: Address, mark: int, layout: Layout) -> frozenset[Rule]:
    """The rules of one address."""
    exactly = f"-m mark --mark {mark:#x}"
    new = "-m conntrack --ctstate NEW -j REJECT --reject-with icmp-port-unreachable"
    elsewhere = f"-m conntrack ! --ctrepldst {address} --ctstatus CONFIRMED"
    # Only the direction of the pod's packets: the answers carry no mark.
    here = f"-m conntrack --ctrepldst {address} --ctstatus CONFIRMED --ctdir ORIGINAL"
    leaves = {
        Rule("nat", CLUSTER_CHAIN, f"{exactly} -j MASQUERADE"),
        Rule("filter", INPUT_CHAIN, f"-d {address}/32 {new}"),
        # What belongs to no connection, as the last packets of one that was ended, is translated to nothing.
        Rule("filter", GUARD_ADDRESS_CHAIN, f"{exactly} -m conntrack --ctstate INVALID -j DROP"),
        Rule("filter", GUARD_ADDRESS_CHAIN, f"{exactly} {elsewhere} -j {STALE_CHAIN}"),
        Rule("filter", GUARD_ADDRESS_CHAIN, f"-m mark ! --mark {mark:#x} {here} -j {STALE_CHAIN}"),
    }
    return frozenset(leaves).union(
        Rule("nat", SNAT_CHAIN, f"-s {network} {exactly} -j SNAT --to-source {address}")
        for network in layout.cluster_networks
    )
