"""What is on a node against what should be: every difference by its name, and the way of one namespace's packets. Pure.

Unlike `egress.delta`, which says what to write, this says what is wrong, also of what is not Hawse's to write.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_network

from egress.addresses import Address
from egress.delta import Found, mark_in, netid_of, traffic_of
from egress.program import Flow, Layout, NodeProgram, Traffic, by_version
from egress.rules import (
    SNAT_CHAIN,
    SPINE_CHAINS,
    Rule,
    branches_of,
    leaves_of,
    spoken,
    table_name,
    tail_of,
    tree_of,
    version_of,
)
from egress.table import Steering

MOST_FAULTS = 100
"""How many faults one inspection names; it counts all."""


class FaultKind(StrEnum):
    """What is wrong, in the order of a packet's way: what comes first is the cause of what comes later."""

    CONFLICT = "Conflict"
    NET_NAMESPACE = "NetNamespaceDiffers"
    HOST_SUBNET = "HostSubnetDiffers"
    EGRESS_IP = "EgressIPDiffers"
    NODE_LOST = "NodeLost"
    NODE_SILENT = "NodeSilent"
    NODE_PROBLEM = "NodeProblem"
    NODE_BEHIND = "NodeBehind"
    FLOW_SHADOWED = "FlowShadowed"
    FLOW_FOREIGN = "FlowForeign"
    FLOW_MISSING = "FlowMissing"
    TUNNEL_WRONG = "TunnelWrong"
    MARK_WRONG = "MarkWrong"
    FLOW_WRONG = "FlowWrong"
    FLOW_STALE = "FlowStale"
    GROUP_WRONG = "GroupWrong"
    JUMP_MISSING = "JumpMissing"
    RULE_SHADOWED = "RuleShadowed"
    SNAT_MISSING = "SnatMissing"
    RULE_MISSING = "RuleMissing"
    RULE_STALE = "RuleStale"
    ADDRESS_MISSING = "AddressMissing"
    ADDRESS_STALE = "AddressStale"
    ADDRESS_FOREIGN = "AddressForeign"
    NOT_READY = "NotReady"
    """What came of it, as the address' object says."""


RANK = {kind: rank for rank, kind in enumerate(FaultKind)}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as it should be. "" where it concerns no one node, namespace or address."""

    kind: FaultKind
    message: str
    node: str = ""
    namespace: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """A flow, rule or address of one NetID on one node: what should be there, and what is; "" for nothing."""

    what: str
    wanted: str
    found: str
    packets: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """What one node does with one NetID."""

    netid: int
    hosts: bool
    """Whether the node should send it out itself."""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a node says of itself when it is asked: `at` in seconds since the epoch by Redis' clock; the table and the
    change that it compares with; the first of `total` faults; and, of the namespace that was asked for, the traces.

    `problem` is why it can say nothing.
    """

    node: str
    at: float
    epoch: str = ""
    change: int = 0
    faults: tuple[Fault, ...] = ()
    total: int = 0
    traces: tuple[Trace, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Sight:
    """What is on a node and around it. `strangers` are addresses of the table that are on the node, and that Hawse did
    not put there; `answers` the MACs that answer on the link for addresses that this node has; `counts` packets and
    bytes of each flow."""

    found: Found
    strangers: frozenset[Address] = frozenset()
    answers: Mapping[Address, str] = field(default_factory=dict)
    counts: Mapping[Traffic, tuple[int, int]] = field(default_factory=dict)


def examine(
    node: str, rows: Mapping[int, Steering], program: NodeProgram, sight: Sight, layout: Layout, namespace: str = ""
) -> list[Fault]:
    """All that is wrong on `node`, or what of it concerns `namespace`, in the order of a packet's way."""
    names = _Names(rows)
    faults = [
        *_flows(node, program, sight.found, layout, names),
        *_rules(node, program, sight.found, layout, names),
        *_addresses(node, program, sight, names),
    ]
    if namespace:
        faults = [fault for fault in faults if fault.namespace in ("", namespace)]
    return sorted(faults, key=lambda fault: (RANK[fault.kind], fault.namespace, fault.address))


def trace(rows: Iterable[Steering], node: str, program: NodeProgram, sight: Sight, layout: Layout) -> tuple[Trace, ...]:
    """What `node` does with each of `rows`."""
    wanted = {traffic_of(flow): flow for flow in program.flows}
    found = {traffic_of(flow): flow for flow in sight.found.flows}
    there = {(table, chain, spec) for (table, chain), specs in sight.found.rules.own.items() for spec in specs}
    traces = []
    for row in rows:
        pieces: list[Piece] = []
        for version, _ in by_version(row, layout):
            traffic = row.netid, version
            packets, octets = sight.counts.get(traffic, (None, None))
            pieces.append(Piece("flow", _text(wanted.get(traffic)), _text(found.get(traffic)), packets, octets))
            address = program.own.get(traffic)
            if address is not None:
                pieces += _own_pieces(address, program.marks[address], sight.found, there, layout)
        hosts = any(hop.node == node for hop in row.hops)
        traces.append(Trace(row.netid, hosts, tuple(pieces)))
    return tuple(traces)


def _own_pieces(
    address: Address, mark: int, found: Found, there: Collection[tuple[str, str, str]], layout: Layout
) -> Iterator[Piece]:
    """The rules of one of the node's addresses, and the address."""
    leaves = leaves_of(address, mark, layout)
    for rule in sorted(leaves | branches_of(address, mark)):
        stands = rule in there
        if stands and rule not in leaves:
            continue  # what leads to the address's own rules is of interest only where it does not
        yield Piece(f"rule in {spoken(rule.table)}", str(rule), str(rule) if stands else "")
    yield Piece("address", str(address), str(address) if address in found.addresses else "")


class _Names:
    """Which namespace a NetID or an address is of, and which node is to have an address."""

    def __init__(self, rows: Mapping[int, Steering]) -> None:
        self._rows = rows
        self._by_address = {hop.address: (row.namespace, hop.node) for row in rows.values() for hop in row.hops}

    def of_netid(self, netid: int) -> str:
        row = self._rows.get(netid)
        return row.namespace if row is not None else ""

    def of_address(self, address: Address) -> str:
        return self._by_address.get(address, ("", ""))[0]

    def node(self, address: Address) -> str:
        return self._by_address.get(address, ("", ""))[1]


def _flows(node: str, program: NodeProgram, found: Found, layout: Layout, names: _Names) -> Iterator[Fault]:
    there = {flow.key: flow for flow in found.flows}
    for flow in sorted(program.flows):
        netid = netid_of(flow)
        about = {
            "node": node,
            "namespace": names.of_netid(netid),
            "address": str(program.own.get(traffic_of(flow), "")),
        }
        what = f"{flow.match} of table {flow.table}"
        if flow.key in found.foreign_flows:
            yield Fault(FaultKind.FLOW_FOREIGN, f"the flow for {what} is not Hawse's: remove it", **about)
            continue
        other = there.get(flow.key)
        if other is None:
            yield Fault(FaultKind.FLOW_MISSING, f"no flow for {what}; it should be: {flow.actions}", **about)
        elif other.actions != flow.actions:
            kind = _difference(flow, other)
            yield Fault(kind, f"the flow for {what} does {other.actions}; it should be: {flow.actions}", **about)
    wanted_keys = {flow.key for flow in program.flows}
    for flow in sorted(found.flows):
        if flow.key not in wanted_keys:
            text = f"a flow that should be gone: {flow}"
            yield Fault(FaultKind.FLOW_STALE, text, node, names.of_netid(netid_of(flow)))
    traffic = {traffic_of(flow) for flow in program.flows}
    for table, priority, match in sorted(found.foreign_flows - wanted_keys):
        if table != layout.egress_table or priority < layout.priority:
            continue
        for covered in _covered(match, traffic, layout):
            text = f"a flow that is not Hawse's takes its packets first: table={table},priority={priority},{match}"
            namespace = names.of_netid(covered) if covered is not None else ""
            yield Fault(FaultKind.FLOW_SHADOWED, text, node=node, namespace=namespace)
    for group in sorted(program.groups - found.groups):
        netid = group.group_id & 0xFFFFFF
        text = f"no group as it should be: {group}"
        yield Fault(FaultKind.GROUP_WRONG, text, node=node, namespace=names.of_netid(netid))


def _difference(wanted: Flow, found: Flow) -> FaultKind:
    if mark_in(wanted) is not None and mark_in(found) is not None and mark_in(wanted) != mark_in(found):
        return FaultKind.MARK_WRONG
    ours, theirs = _TUN_DST.search(wanted.actions), _TUN_DST.search(found.actions)
    if ours and theirs and ours[1] != theirs[1]:
        return FaultKind.TUNNEL_WRONG
    return FaultKind.FLOW_WRONG


_TUN_DST = re.compile(r"set_field:([0-9a-f.:]+)->tun_(?:ipv6_)?dst")
_REG0 = re.compile(r"reg0=(0x[0-9a-f]+|[0-9]+)")
_IPV6 = re.compile(r"\b(?:ipv6|tcp6|udp6|sctp6|icmp6)\b")
_NW_SRC = re.compile(r"nw_src=([0-9.]+(?:/[0-9]+)?)|ipv6_src=([0-9a-f:.]+(?:/[0-9]+)?)(?=,|$)")


def _covered(match: str, traffic: Collection[Traffic], layout: Layout) -> Iterator[int | None]:
    """Which of our NetIDs a foreign flow takes packets of; None for all of them. One that picks out some packets of
    every namespace, such as the cluster's own DNS, is no concern of ours; nor is one for IPv6 where we have no flow."""
    six = _IPV6.search(match) is not None
    netids = {netid for netid, version in traffic if version == 6 or not six}
    if six and not netids:
        return
    reg0 = _REG0.search(match)
    if reg0 is not None:
        netid = int(reg0[1], 0)
        if netid in netids:
            yield netid
        return
    source = _NW_SRC.search(match)
    if source is not None and _among(source[1] or source[2], layout):
        match = match.replace(source[0], "")
    if not {part for part in match.split(",") if part} - {"ip", "ipv6"}:
        yield None


def _among(source: str, layout: Layout) -> bool:
    """Whether the network `source` holds pods' addresses."""
    network = ip_network(source, strict=False)
    return any(network.version == other.version and network.overlaps(other) for other in layout.cluster_networks)


def _rules(node: str, program: NodeProgram, found: Found, layout: Layout, names: _Names) -> Iterator[Fault]:
    yield from _jumps(node, program, found, layout)
    for key in SPINE_CHAINS:
        yield from _spine(node, key, program.rules.chains.get(key, ()), found.rules.own.get(key, ()))
    marked = {mark: address for address, mark in {**found.rules.marks, **program.marks}.items()}
    named = {str(address): address for address in marked.values()}
    stale = FaultKind.RULE_SHADOWED if program.rules.spine else FaultKind.RULE_STALE
    alone: dict[Rule, Address | None] | None = None
    leaves: dict[tuple[str, str], set[str]] = {key: set() for key in found.rules.own if key not in SPINE_CHAINS}
    for rule in program.rules.leaves:
        leaves.setdefault((rule.table, rule.chain), set()).add(rule.spec)
    for (table, chain), wanted_here in sorted(leaves.items()):
        specs = found.rules.own.get((table, chain), ())
        tail = tail_of(table, chain) if wanted_here else ""
        tree = tree_of(table, chain)
        snat = tree is not None and tree.root == SNAT_CHAIN
        lacking = FaultKind.SNAT_MISSING if snat else FaultKind.RULE_MISSING
        differences = [(lacking, spec, "lacks") for spec in sorted(wanted_here.difference(specs))]
        differences += [
            (stale, spec, "has what should not be there:") for spec in specs if spec not in wanted_here and spec != tail
        ]
        if tail and specs[-1:] != (tail,):
            differences.append((lacking, tail, "does not end with"))
        for kind, spec, verb in differences:
            text = f"table {spoken(table)} {verb} -A {chain} {spec}"
            address = _address_of(spec, marked, named)
            if address is None:
                alone = alone if alone is not None else _alone(program)
                address = alone.get(Rule(table, chain, spec))
            yield Fault(kind, text, node, *_about(address, names))


def _alone(program: NodeProgram) -> dict[Rule, Address | None]:
    """The rules that lead to those of addresses: whose packets each leads on, if they are those of one."""
    found: dict[Rule, Address | None] = {}
    for address, mark in program.marks.items():
        for rule in branches_of(address, mark):
            found[rule] = None if rule in found else address
    return found


def _jumps(node: str, program: NodeProgram, found: Found, layout: Layout) -> Iterator[Fault]:
    parents = found.rules.parents
    for jump in program.rules.jumps:
        specs = parents.get((jump.table, jump.chain), ())
        if jump.spec not in specs:
            yield Fault(FaultKind.JUMP_MISSING, f"table {spoken(jump.table)} has no rule {jump}", node)
        elif specs[0] != jump.spec:
            before = "; ".join(f"-A {jump.chain} {spec}" for spec in specs[: specs.index(jump.spec)])
            yield Fault(FaultKind.RULE_SHADOWED, f"above Hawse's rule in table {spoken(jump.table)}: {before}", node)
    for version in sorted({version_of(jump.table) for jump in program.rules.jumps}):
        nat = table_name("nat", version)
        for spec in _before_ours(parents.get((nat, "POSTROUTING"), ()), layout):
            text = f"above {layout.masquerade_chain} in table {spoken(nat)}: -A POSTROUTING {spec}"
            yield Fault(FaultKind.RULE_SHADOWED, text, node)


def _spine(node: str, key: tuple[str, str], wanted: tuple[str, ...], there: tuple[str, ...]) -> Iterator[Fault]:
    table, chain = key
    missing = "; ".join(str(Rule(table, chain, spec)) for spec in wanted if spec not in there)
    extra = "; ".join(str(Rule(table, chain, spec)) for spec in there if spec not in wanted)
    if missing:
        yield Fault(FaultKind.RULE_MISSING, f"table {spoken(table)} lacks {missing}", node)
    elif there != wanted:
        kind = FaultKind.RULE_SHADOWED if wanted else FaultKind.RULE_STALE
        text = extra or "the same rules, but not in their order"
        yield Fault(kind, f"chain {chain} of table {spoken(table)} is not as it should be: {text}", node)


_TARGET = re.compile(r"-j (ACCEPT|RETURN|MASQUERADE|SNAT|DROP)\b")
_SOURCE = re.compile(r"(?:^| )-s (\S+)")


def _before_ours(specs: tuple[str, ...], layout: Layout) -> Iterator[str]:
    """The rules of POSTROUTING that end all packets of the cluster's pods before our chain is reached. Those with a
    further condition, as the cluster's own have, pick out what they are for."""
    for spec in specs:
        if spec.endswith(f"-j {layout.masquerade_chain}"):
            return
        if not _TARGET.search(spec) or re.search(r"(?:^| )(-d|-o|-p|! )", spec):
            continue
        if re.search(r"-m (?!comment)", spec):
            continue
        source = _SOURCE.search(spec)
        if source is None or _among(source[1], layout):
            yield spec


_MARK = re.compile(r"--mark (0x[0-9a-f]+)(?: |$)")
_ADDRESS = re.compile(r"(?:--to-source|--ctrepldst|-d) ([0-9a-f.:]+)")


def _address_of(spec: str, marked: Mapping[int, Address], named: Mapping[str, Address]) -> Address | None:
    """Which address a rule is about: the one that it names, or else the one that has its mark."""
    address = _ADDRESS.search(spec)
    if address is not None:
        return named.get(address[1])
    mark = _MARK.search(spec)
    return marked.get(int(mark[1], 16)) if mark is not None else None


def _about(address: Address | None, names: _Names) -> tuple[str, str]:
    return (names.of_address(address), str(address)) if address is not None else ("", "")


def _addresses(node: str, program: NodeProgram, sight: Sight, names: _Names) -> Iterator[Fault]:
    held = sight.found.addresses
    for address in sorted(program.addresses - held, key=int):
        yield Fault(FaultKind.ADDRESS_MISSING, f"{address} is not on the interface", node, *_about(address, names))
    for address in sorted((held | sight.strangers) - program.addresses, key=int):
        owner = names.node(address)
        if owner == node and address in sight.strangers:
            continue  # the node refuses it for that, and says so
        whose = f"{owner} is to have it" if owner and owner != node else "no node is to have it now"
        by = ", and was not put there by Hawse" if address in sight.strangers else ""
        text = f"{address} is on the interface{by}; {whose}"
        yield Fault(FaultKind.ADDRESS_STALE, text, node, *_about(address, names))
    for address, mac in sorted(sight.answers.items(), key=lambda item: int(item[0])):
        text = f"{mac} answers for {address} on the link too: find that host, and take the address off it"
        yield Fault(FaultKind.ADDRESS_FOREIGN, text, node, *_about(address, names))


def _text(flow: Flow | None) -> str:
    return str(flow) if flow is not None else ""
