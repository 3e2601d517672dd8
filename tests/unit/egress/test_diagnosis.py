"""What is taken for wrong, and what is not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.addresses import Address
from egress.delta import Found, RulesFound, applied
from egress.diagnosis import FaultKind, Sight, examine, trace
from egress.program import Flow, Layout, NodeFacts, NodeProgram, render
from egress.table import Steering, SteeringHop

LAYOUT = Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv6Network("fd01::/48")))
NODES = {"node1": IPv4Address("192.168.1.17"), "node2": IPv4Address("192.168.1.18")}
CLUSTERS = (
    '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
    '-m comment --comment "rules for masquerading OpenShift traffic" -j OPENSHIFT-MASQUERADE',
)
EMPTY = RulesFound(
    {},
    {
        (f"{table}{six}", chain): specs
        for six in ("", "6")
        for table, chain, specs in (
            ("nat", "OPENSHIFT-MASQUERADE", ()),
            ("nat", "POSTROUTING", CLUSTERS),
            ("filter", "INPUT", ()),
            ("filter", "FORWARD", ()),
        )
    },
)
TABLE = {
    7: Steering(7, "shop", (SteeringHop(IPv4Address("192.168.1.102"), "node1", NODES["node1"], acknowledged=True),)),
    8: Steering(8, "bank", (SteeringHop(IPv4Address("192.168.1.103"), "node2", NODES["node2"], acknowledged=True),)),
}


def program_of(table: dict[int, Steering]) -> NodeProgram:
    return render(table.values(), NodeFacts("node1", "0a:58:0a:80:00:01"), LAYOUT)


def holding(table: dict[int, Steering]) -> Found:
    return applied(program_of(table), Found(rules=EMPTY))


def kinds(found: Found, table: dict[int, Steering] = TABLE, namespace: str = "") -> list[tuple[FaultKind, str]]:
    faults = examine("node1", table, program_of(table), Sight(found), LAYOUT, namespace)
    return [(fault.kind, fault.namespace) for fault in faults]


@st.composite
def tables(draw: st.DrawFn) -> dict[int, Steering]:
    rows: dict[int, Steering] = {}
    addresses = draw(st.lists(st.integers(1, 200), unique=True, max_size=12))
    for number in addresses:
        netid = draw(st.integers(1, 9))
        node = draw(st.sampled_from(sorted(NODES)))
        six = draw(st.booleans())
        address: Address = IPv6Address("2001:db8::") + number if six else IPv4Address("192.168.1.0") + number
        hop = SteeringHop(address, node, NODES[node], acknowledged=draw(st.booleans()))
        row = rows.get(netid, Steering(netid, f"ns{netid}"))
        if (node, address.version) not in {(known.node, known.address.version) for known in row.hops}:
            rows[netid] = replace(row, hops=(*row.hops, hop))
    return rows


@given(tables())
def test_a_node_that_holds_its_program_has_no_fault(table: dict[int, Steering]) -> None:
    found = holding(table)
    assert kinds(found, table) == []
    for seen in trace(table.values(), "node1", program_of(table), Sight(found), LAYOUT):
        assert all(piece.wanted == piece.found for piece in seen.pieces)


@given(tables(), tables())
def test_a_node_that_holds_another_program_has_faults(table: dict[int, Steering], other: dict[int, Steering]) -> None:
    differs = program_of(table) != program_of(other)
    assert bool(kinds(holding(other), table)) == differs


@pytest.mark.parametrize(
    ("match", "priority", "shadowed"),
    [
        ("ip,reg0=0x7", 200, ["shop"]),
        ("ip,reg0=0x7,nw_dst=192.0.2.1", 200, ["shop"]),
        ("ip,reg0=0x9", 200, []),
        ("ip", 200, [""]),
        ("", 101, [""]),
        ("ip,nw_src=10.128.0.0/14", 200, [""]),
        ("ip,nw_src=172.30.0.0/16", 200, []),
        ("tcp,nw_dst=192.168.1.17,tp_dst=53", 200, []),
        ("udp,tp_dst=4789", 300, []),
        ("ip,reg0=0x7", 50, []),
        ("ipv6,reg0=0x7,tp_dst=80", 200, ["shop"]),
        ("ipv6", 200, [""]),
        ("ipv6,ipv6_src=fd01::/48", 200, [""]),
        ("ipv6,ipv6_src=fd09::/48", 200, []),
    ],
)
def test_which_flow_of_others_takes_our_packets(match: str, priority: int, shadowed: list[str]) -> None:
    found = replace(holding(TABLE), foreign_flows=frozenset({(100, priority, match)}))
    assert kinds(found) == [(FaultKind.FLOW_SHADOWED, name) for name in shadowed]


def test_a_flow_for_ipv6_is_no_concern_where_there_is_none_of_ours() -> None:
    layout = Layout()
    program = render(TABLE.values(), NodeFacts("node1", "0a:58:0a:80:00:01"), layout)
    found = applied(program, Found(rules=EMPTY))
    for match in ("ipv6", "ipv6,reg0=0x7", "tcp6,reg0=0x7"):
        there = replace(found, foreign_flows=frozenset({(100, 200, match)}))
        assert examine("node1", TABLE, program, Sight(there), layout) == []


def test_a_flow_in_another_table_is_no_concern() -> None:
    assert kinds(replace(holding(TABLE), foreign_flows=frozenset({(90, 200, "ip,reg0=0x7")}))) == []


def test_a_flow_on_our_key_is_named_once() -> None:
    found = holding(TABLE)
    ours: Flow = next(flow for flow in found.flows if flow.match == "ip,reg0=0x8")
    found = replace(found, flows=found.flows - {ours}, foreign_flows=frozenset({ours.key}))
    assert kinds(found) == [(FaultKind.FLOW_FOREIGN, "bank")]


@pytest.mark.parametrize(
    ("spec", "is_wrong"),
    [
        ("-s 10.128.0.0/14 -j MASQUERADE", True),
        ("-j RETURN", True),
        ('-m comment --comment "all of it" -j ACCEPT', True),
        ("-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", False),
        ("-s 172.17.0.0/16 -j MASQUERADE", False),
        ("-s 10.128.0.0/14 -d 10.128.0.0/14 -j RETURN", False),
        ("-m mark --mark 0x4000/0x4000 -j MASQUERADE", False),
        ("-j SOMEBODYS-CHAIN", False),
    ],
)
def test_which_rule_before_the_clusters_is_in_the_way(spec: str, is_wrong: bool) -> None:
    found = holding(TABLE)
    parents = {**found.rules.parents, ("nat", "POSTROUTING"): (CLUSTERS[0], spec, CLUSTERS[1])}
    found = replace(found, rules=RulesFound(found.rules.own, parents))
    assert kinds(found) == ([(FaultKind.RULE_SHADOWED, "")] if is_wrong else [])
    behind = {**parents, ("nat", "POSTROUTING"): (*CLUSTERS, spec)}
    assert kinds(replace(found, rules=RulesFound(found.rules.own, behind))) == []


def test_faults_come_in_the_order_of_a_packets_way() -> None:
    found = replace(holding(TABLE), flows=frozenset(), addresses=frozenset())
    assert [kind for kind, _ in kinds(found)] == [
        *[FaultKind.FLOW_MISSING] * 4,
        FaultKind.ADDRESS_MISSING,
    ]
    assert kinds(found, namespace="bank") == [(FaultKind.FLOW_MISSING, "bank")] * 2  # of each IP version
