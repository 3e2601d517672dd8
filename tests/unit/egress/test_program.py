"""The program of one node: the reference example text by text, and what no program may ever hold."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from egress.addresses import KUBE_PROXY_BITS, Address
from egress.program import (
    COOKIE,
    Layout,
    NodeFacts,
    NodeProgram,
    render,
)
from egress.rules import SNAT, SPINE_CHAINS, Rule, RuleSet, is_own, tree_of
from egress.table import Steering, SteeringHop

A = IPv4Address("192.168.1.102")
ADDRESSES = [
    IPv4Address(text)
    for text in (
        "192.168.1.102",
        "192.168.0.1",
        "192.168.64.1",  # folds to the mark of 128.168.0.1
        "128.168.0.1",
        "192.168.128.1",  # folds to the mark of 64.168.0.1
        "64.168.0.1",
        "192.168.192.1",
        "0.168.0.1",
        "10.0.0.7",
    )
]
NODE_IPS = {f"n{i}": IPv4Address(f"10.1.0.{i}") for i in range(1, 5)}
LAYOUTS = [
    Layout(),
    Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv4Network("10.200.0.0/16"))),
    Layout(egress_table=101, next_table=102),
]


@st.composite
def tables(draw: st.DrawFn) -> list[Steering]:
    """Rows as planning makes them: an address once, no two of one NetID on one node."""
    free = list(draw(st.permutations(ADDRESSES)))
    rows = []
    for netid in sorted(draw(st.sets(st.sampled_from([1, 2, 3, 4, 1086658, 0xFFFFFF]), max_size=5))):
        nodes = draw(st.permutations(sorted(NODE_IPS)))
        hops = []
        for node in nodes[: draw(st.integers(0, 3))]:
            if not free:
                break
            hops.append(SteeringHop(free.pop(), node, NODE_IPS[node], acknowledged=draw(st.booleans())))
        hops.sort(key=lambda hop: int(hop.address))
        rows.append(Steering(netid, f"ns{netid}", tuple(hops)))
    return rows


# The reference example of DESIGN §6


HOP = SteeringHop(A, "node2", IPv4Address("192.168.1.18"), acknowledged=True)
ROW = Steering(1086658, "egress-test", (HOP,))


def texts(program: NodeProgram) -> list[str]:
    return [str(flow) for flow in sorted(program.flows)]


def test_every_other_node_steers_to_the_egress_node() -> None:
    program = render([ROW], NodeFacts("node1"), Layout())
    assert texts(program) == [
        "table=100,priority=100,ip,reg0=0x1094c2 "
        "actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:192.168.1.18->tun_dst,output:1"
    ]
    assert (program.addresses, program.rules, program.groups) == (frozenset(), RuleSet(), frozenset())


def test_the_egress_node_marks_the_packets_and_holds_the_address() -> None:
    program = render([ROW], NodeFacts("node2", "0a:58:0a:80:00:01"), Layout())
    assert texts(program) == [
        "table=100,priority=100,ip,reg0=0x1094c2 "
        "actions=set_field:0a:58:0a:80:00:01->eth_dst,set_field:0xc0a80166->pkt_mark,goto_table:101"
    ]
    assert program.addresses == {A}
    spec = "-s 10.128.0.0/14 -m mark --mark 0xc0a80166 -j SNAT --to-source 192.168.1.102"
    assert Rule("nat", "HAWSE-SNAT-01100110", spec) in program.rules.leaves
    nat = [str(rule) for rule in program.rules.spine if rule.table == "nat"]
    assert nat == [
        "-A HAWSE-EGRESS -m mark --mark 0x0 -j RETURN",
        "-A HAWSE-EGRESS -m mark --mark 0x4000/0x4000 -j RETURN",
        "-A HAWSE-EGRESS -s 10.128.0.0/14 -d 10.128.0.0/14 -j HAWSE-CLUSTER",
        "-A HAWSE-EGRESS -j HAWSE-SNAT",
    ]


def test_until_it_is_acknowledged_the_egress_node_is_ready_and_all_others_drop() -> None:
    row = replace(ROW, hops=(replace(HOP, acknowledged=False),))
    assert texts(render([row], NodeFacts("node1"), Layout()))[0].endswith("actions=drop")
    assert render([row], NodeFacts("node2"), Layout()) == render([ROW], NodeFacts("node2"), Layout())


def test_a_row_without_hops_drops() -> None:
    assert texts(render([replace(ROW, hops=())], NodeFacts("node1"), Layout())) == [
        "table=100,priority=100,ip,reg0=0x1094c2 actions=drop"
    ]


def test_several_hops_are_spread_by_a_group_and_the_own_one_wins() -> None:
    second = SteeringHop(IPv4Address("192.168.1.103"), "node3", IPv4Address("192.168.1.19"), acknowledged=True)
    row = replace(ROW, hops=(HOP, second))
    program = render([row], NodeFacts("node1"), Layout())
    (group,) = program.groups
    assert texts(program)[0].endswith(f"actions=group:{group.group_id}")
    assert len(group.buckets) == 2
    assert "192.168.1.18->tun_dst" in group.buckets[0]
    assert "192.168.1.19->tun_dst" in group.buckets[1]
    own = render([row], NodeFacts("node3"), Layout())
    assert own.addresses == {second.address}
    assert own.groups == frozenset()


def test_a_withheld_address_drops_here_even_if_another_node_is_ready() -> None:
    second = SteeringHop(IPv4Address("192.168.1.103"), "node3", IPv4Address("192.168.1.19"), acknowledged=True)
    program = render([replace(ROW, hops=(HOP, second))], NodeFacts("node2"), Layout(), withheld={A})
    assert texts(program)[0].endswith("actions=drop")
    assert (program.addresses, program.rules) == (frozenset(), RuleSet())


def test_an_ipv6_address_here_does_not_stop_ipv4_traffic_elsewhere() -> None:
    second = SteeringHop(IPv6Address("fd00::1"), "node3", IPv4Address("192.168.1.19"), acknowledged=True)
    program = render([replace(ROW, hops=(HOP, second))], NodeFacts("node3"), Layout())
    assert "set_field:192.168.1.18->tun_dst" in texts(program)[0]
    assert program.addresses == frozenset()


# Properties


def cookie_netid(cookie: int) -> int:
    return cookie - COOKIE


def marks_in(actions: str) -> list[int]:
    return [int(text, 16) for text in re.findall(r"set_field:(0x[0-9a-f]+)->pkt_mark", actions)]


@given(tables(), st.sampled_from(sorted(NODE_IPS)), st.sampled_from(LAYOUTS), st.sets(st.sampled_from(ADDRESSES)))
def test_invariants(rows: list[Steering], node: str, layout: Layout, withheld: set[Address]) -> None:
    program = render(rows, NodeFacts(node), layout, withheld=withheld)
    by_netid = {cookie_netid(flow.cookie): flow for flow in program.flows}
    assert len(program.flows) == len(by_netid) == len({flow.key for flow in program.flows})
    assert by_netid.keys() == {row.netid for row in rows}
    buckets = {f"group:{group.group_id}": " ".join(group.buckets) for group in program.groups}
    assert len(buckets) == len(program.groups)
    snat: dict[int, set[str]] = {}
    for rule in program.rules.leaves:
        if tree_of(rule.table, rule.chain) is SNAT and " -j " in rule.spec:
            found = re.fullmatch(r"-s (\S+) -m mark --mark (0x[0-9a-f]+) -j SNAT --to-source (\S+)", rule.spec)
            assert found is not None
            snat.setdefault(int(found[2], 16), set()).add(f"{found[1]} {found[3]}")
    for row in rows:
        flow = by_netid[row.netid]
        assert flow.table == layout.egress_table
        assert flow.match == f"ip,reg0={row.netid:#x}"
        actions = buckets.get(flow.actions, flow.actions)
        reached = set(re.findall(r"set_field:([0-9.]+)->tun_dst", actions))
        ready = {str(hop.node_ip) for hop in row.hops if hop.acknowledged and hop.node != node}
        assert reached <= ready
        mine = [hop.address for hop in row.hops if hop.node == node]
        if mine and mine[0] not in withheld:
            (mark,) = marks_in(actions)
            assert not reached
            assert mine[0] in program.addresses
            assert program.own[row.netid] == mine[0]
            assert snat[mark] == {f"{network} {mine[0]}" for network in layout.cluster_networks}
            assert not mark & KUBE_PROXY_BITS
            assert actions.endswith(f"goto_table:{layout.next_table}")
        else:
            assert not marks_in(actions)
            assert reached == (set() if mine else ready)
            assert bool(reached) != (actions == "drop")
    assert len(snat) == len(program.addresses)
    assert program.addresses == set(program.own.values()) == program.marks.keys()
    assert not program.addresses & withheld
    whole = " ".join([*map(str, program.rules.leaves), *map(str, program.flows)])
    assert not any(re.search(rf"(?<![0-9.]){re.escape(str(address))}(?![0-9.])", whole) for address in withheld)


@given(tables(), st.sampled_from(LAYOUTS))
def test_together_the_nodes_hold_every_address_once(rows: list[Steering], layout: Layout) -> None:
    programs = [render(rows, NodeFacts(node), layout) for node in NODE_IPS]
    held = [address for program in programs for address in program.addresses]
    assert sorted(held) == sorted(hop.address for row in rows for hop in row.hops)


@given(tables(), st.sampled_from(sorted(NODE_IPS)), st.data())
def test_a_program_depends_on_no_order(rows: list[Steering], node: str, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rows))
    assert render(shuffled, NodeFacts(node), Layout()) == render(rows, NodeFacts(node), Layout())


@given(tables(), st.sampled_from(sorted(NODE_IPS)), st.sampled_from(LAYOUTS))
def test_rules_stay_in_our_chains_and_no_two_are_the_same(rows: list[Steering], node: str, layout: Layout) -> None:
    rules = render(rows, NodeFacts(node), layout).rules
    assert all(is_own(rule.table, rule.chain) for rule in (*rules.spine, *rules.leaves))
    assert all((rule.table, rule.chain) in SPINE_CHAINS for rule in rules.spine)
    assert all(tree_of(rule.table, rule.chain) for rule in rules.leaves)
    assert len({*rules.spine, *rules.leaves}) == len(rules.spine) + len(rules.leaves)
    assert not {(rule.table, rule.chain) for rule in rules.spine} & {(rule.table, rule.chain) for rule in rules.leaves}
    assert {(jump.table, jump.chain) for jump in rules.jumps} in (
        set(),
        {("nat", layout.masquerade_chain), ("filter", "INPUT"), ("filter", "FORWARD")},
    )
