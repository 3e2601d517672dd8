"""The program of one node: the reference example text by text, and what no program may ever hold."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from egress.addresses import KUBE_PROXY_BITS, Address
from egress.delta import traffic_of
from egress.program import (
    Layout,
    NodeFacts,
    NodeProgram,
    render,
)
from egress.rules import (
    KNOWN_KEY,
    SNAT_CHAIN,
    SPINE_CHAINS,
    STALE_CONNMARK,
    Rule,
    RuleSet,
    branches_of,
    is_own,
    leaves_of,
    table_name,
    tail_of,
    tree_of,
    version_of,
)
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
SIX = [
    IPv6Address(text)
    for text in (
        "fd00::c0a8:166",  # folds to something else than the mark of 192.168.1.102
        "::c0a8:1:0:0:0:67",
        "fd00::1",
        "fd00:0:0:1::1",
        "2001:db8::4000",
        "2001:db8::ffff:ffff",
    )
]
NODE_IPS: dict[str, Address] = {f"n{i}": IPv4Address(f"10.1.0.{i}") for i in range(1, 4)}
NODE_IPS["n4"] = IPv6Address("fd02::4")
LAYOUTS = [
    Layout(),
    Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv4Network("10.200.0.0/16"))),
    Layout(egress_table=101, next_table=102),
    Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv6Network("fd01::/48"))),
    Layout(cluster_networks=(IPv6Network("fd01::/48"), IPv6Network("fd05::/48"))),
]


@st.composite
def tables(draw: st.DrawFn) -> list[Steering]:
    """Rows as planning makes them: an address once, no two of one NetID and one IP version on one node."""
    families: list[list[Address]] = [list(draw(st.permutations(ADDRESSES))), list(draw(st.permutations(SIX)))]
    rows = []
    for netid in sorted(draw(st.sets(st.sampled_from([1, 2, 3, 4, 1086658, 0xFFFFFF]), max_size=5))):
        hops = []
        for free in families:
            nodes = draw(st.permutations(sorted(NODE_IPS)))
            for node in nodes[: draw(st.integers(0, min(3, len(free))))]:
                hops.append(SteeringHop(free.pop(), node, NODE_IPS[node], acknowledged=draw(st.booleans())))
        hops.sort(key=lambda hop: (hop.address.version, int(hop.address)))
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


DUAL = Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv6Network("fd01::/48")))
PAIR = replace(ROW, hops=(HOP, replace(HOP, address=IPv6Address("2001:db8::102"))))


def test_a_pair_on_one_node_has_a_flow_a_mark_and_rules_for_each() -> None:
    program = render([PAIR], NodeFacts("node2", "0a:58:0a:80:00:01"), DUAL)
    assert texts(program) == [
        "table=100,priority=100,ip,reg0=0x1094c2 "
        "actions=set_field:0a:58:0a:80:00:01->eth_dst,set_field:0xc0a80166->pkt_mark,goto_table:101",
        "table=100,priority=100,ipv6,reg0=0x1094c2 "
        "actions=set_field:0a:58:0a:80:00:01->eth_dst,set_field:0x20010cba->pkt_mark,goto_table:101",
    ]
    spec = "-s fd01::/48 -m mark --mark 0x20010cba -j SNAT --to-source 2001:db8::102"
    assert Rule("nat6", "HAWSE-SNAT-10111010", spec) in program.rules.leaves
    assert [str(jump) for jump in program.rules.jumps if jump.table == "nat6"] == [
        "-A OPENSHIFT-MASQUERADE -j HAWSE-EGRESS"
    ]
    assert "-A HAWSE-EGRESS -s fd01::/48 -d fd01::/48 -j HAWSE-CLUSTER" in map(str, program.rules.spine)
    reject = "-d 2001:db8::102/128 -j REJECT --reject-with icmp6-port-unreachable"
    assert Rule("filter6", "HAWSE-REJECT-00000010", reject) in program.rules.leaves


def test_elsewhere_a_pair_is_steered_by_the_nodes_ipv4_address() -> None:
    steered = "move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:192.168.1.18->tun_dst,output:1"
    program = render([PAIR], NodeFacts("node1"), DUAL)
    assert [flow.actions for flow in program.flows] == [steered, steered]
    over = replace(PAIR, hops=tuple(replace(hop, node_ip=IPv6Address("fd02::2")) for hop in PAIR.hops))
    (flow, _) = render([over], NodeFacts("node1"), DUAL).flows
    assert "set_field:fd02::2->tun_ipv6_dst" in flow.actions


def test_the_ip_version_that_a_namespace_has_no_address_of_is_dropped() -> None:
    matches = {flow.match: flow.actions for flow in render([ROW], NodeFacts("node2"), DUAL).flows}
    assert matches["ipv6,reg0=0x1094c2"] == "drop"
    assert "pkt_mark" in matches["ip,reg0=0x1094c2"]
    (alone,) = render([ROW], NodeFacts("node2"), Layout()).flows  # no pod has IPv6 there
    assert alone.match == "ip,reg0=0x1094c2"
    unknown = {flow.match: flow.actions for flow in render([ROW], NodeFacts("node2"), Layout(unknown_ipv6=True)).flows}
    assert unknown["ipv6,reg0=0x1094c2"] == "drop"


def test_without_a_network_of_its_ip_version_an_address_is_dropped_and_not_held() -> None:
    program = render([PAIR], NodeFacts("node2"), Layout())
    assert texts(program)[1].endswith("ipv6,reg0=0x1094c2 actions=drop")
    assert program.addresses == {A}


@given(st.integers(0, (1 << 128) - 1))
def test_the_chains_of_an_ipv6_address_have_names_that_iptables_takes(number: int) -> None:
    address = IPv6Address(number)
    rules = branches_of(address, 0x1234) | leaves_of(address, 0x1234, DUAL)
    assert all(len(rule.chain) <= 28 and tree_of(rule.table, rule.chain) for rule in rules)
    assert all(len(rule.spec.rpartition(" -g ")[2]) <= 28 for rule in rules if " -g " in rule.spec)


# Properties


def marks_in(actions: str) -> list[int]:
    return [int(text, 16) for text in re.findall(r"set_field:(0x[0-9a-f]+)->pkt_mark", actions)]


@given(
    tables(), st.sampled_from(sorted(NODE_IPS)), st.sampled_from(LAYOUTS), st.sets(st.sampled_from([*ADDRESSES, *SIX]))
)
def test_invariants(rows: list[Steering], node: str, layout: Layout, withheld: set[Address]) -> None:
    program = render(rows, NodeFacts(node), layout, withheld=withheld)
    by_match = {flow.match: flow for flow in program.flows}
    assert len(program.flows) == len(by_match) == len({flow.key for flow in program.flows})
    buckets = {f"group:{group.group_id}": " ".join(group.buckets) for group in program.groups}
    assert len(buckets) == len(program.groups)
    snat: dict[tuple[int, int], set[str]] = {}
    for rule in program.rules.leaves:
        tree = tree_of(rule.table, rule.chain)
        if tree is not None and tree.root == SNAT_CHAIN and " -j " in rule.spec:
            found = re.fullmatch(r"-s (\S+) -m mark --mark (0x[0-9a-f]+) -j SNAT --to-source (\S+)", rule.spec)
            assert found is not None
            key = version_of(rule.table), int(found[2], 16)
            snat.setdefault(key, set()).add(f"{found[1]} {found[3]}")
    expected = 0
    for row in rows:
        for version, protocol in ((4, "ip"), (6, "ipv6")):
            hops = [hop for hop in row.hops if hop.address.version == version]
            flow = by_match.get(f"{protocol},reg0={row.netid:#x}")
            if version == 6 and not hops and not layout.networks(6):
                assert flow is None
                continue
            expected += 1
            assert flow is not None
            assert (flow.table, traffic_of(flow)) == (layout.egress_table, (row.netid, version))
            actions = buckets.get(flow.actions, flow.actions)
            reached = set(re.findall(r"set_field:([0-9a-f.:]+)->tun_(?:ipv6_)?dst", actions))
            ready = {str(hop.node_ip) for hop in hops if hop.acknowledged and hop.node != node}
            assert reached <= ready
            mine = [hop.address for hop in hops if hop.node == node]
            if mine and mine[0] not in withheld and layout.networks(version):
                (mark,) = marks_in(actions)
                assert not reached
                assert mine[0] in program.addresses
                assert program.own[row.netid, version] == mine[0]
                assert snat[version, mark] == {f"{network} {mine[0]}" for network in layout.networks(version)}
                assert not mark & KUBE_PROXY_BITS
                assert actions.endswith(f"goto_table:{layout.next_table}")
            else:
                assert not marks_in(actions)
                assert reached == (set() if mine else ready)
                assert bool(reached) != (actions == "drop")
    assert len(program.flows) == expected
    assert len({mark for _, mark in snat}) == len(snat) == len(program.addresses)
    assert program.addresses == set(program.own.values()) == program.marks.keys()
    assert not program.addresses & withheld
    whole = " ".join([*map(str, program.rules.leaves), *map(str, program.flows)])
    absent = [re.escape(str(address)) for address in withheld]
    assert not any(re.search(rf"(?<![0-9a-f.:]){text}(?![0-9a-f.:])", whole) for text in absent)


@given(tables(), st.sampled_from(LAYOUTS))
def test_together_the_nodes_hold_every_address_once(rows: list[Steering], layout: Layout) -> None:
    programs = [render(rows, NodeFacts(node), layout) for node in NODE_IPS]
    held = [address for program in programs for address in program.addresses]
    hops = [hop for row in rows for hop in row.hops if layout.networks(hop.address.version)]
    assert Counter(held) == Counter(hop.address for hop in hops)


@given(tables(), st.sampled_from(sorted(NODE_IPS)), st.data())
def test_a_program_depends_on_no_order(rows: list[Steering], node: str, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rows))
    assert render(shuffled, NodeFacts(node), Layout()) == render(rows, NodeFacts(node), Layout())


def jumps_of(rules: RuleSet, layout: Layout) -> set[tuple[tuple[str, int], str]]:
    """Where rules are jumped to from: of each IP version that any are for."""
    parents = [("nat", layout.masquerade_chain), ("filter", "INPUT"), ("filter", "FORWARD")]
    versions = {version_of(rule.table) for rule in rules.leaves}
    return {((table, version), chain) for version in versions for table, chain in parents}


@given(tables(), st.sampled_from(sorted(NODE_IPS)), st.sampled_from(LAYOUTS))
def test_rules_stay_in_our_chains_and_no_two_are_the_same(rows: list[Steering], node: str, layout: Layout) -> None:
    rules = render(rows, NodeFacts(node), layout).rules
    assert all(is_own(rule.table, rule.chain) for rule in (*rules.spine, *rules.leaves))
    assert all((rule.table, rule.chain) in SPINE_CHAINS for rule in rules.spine)
    assert all(tree_of(rule.table, rule.chain) for rule in rules.leaves)
    assert len({*rules.spine, *rules.leaves}) == len(rules.spine) + len(rules.leaves)
    assert not {(rule.table, rule.chain) for rule in rules.spine} & {(rule.table, rule.chain) for rule in rules.leaves}
    jumps = {(table_name(*table), chain) for table, chain in jumps_of(rules, layout)}
    assert {(jump.table, jump.chain) for jump in rules.jumps} == jumps
    for key, specs in rules.chains.items():
        leaves = [rule.spec for rule in rules.leaves if (rule.table, rule.chain) == key]
        assert leaves or key in SPINE_CHAINS, "a chain that holds nothing is none"
        if leaves:
            tail = tail_of(*key)
            assert specs == (*sorted(leaves), tail)[: len(leaves) + bool(tail)]


def test_no_mark_makes_what_the_guard_tells_a_connection_mean_something_else() -> None:
    """No mark has kube-proxy's bits. So none is the key, with which all connections without a connmark were right; and
    none XOR the key is the connmark of what was cut."""
    assert KNOWN_KEY & KUBE_PROXY_BITS
    assert (KNOWN_KEY ^ STALE_CONNMARK) & KUBE_PROXY_BITS
