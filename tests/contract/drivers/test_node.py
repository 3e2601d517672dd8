"""One whole node, fake and real: what a pass writes, what it leaves alone, and what is left of it at the end."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from egress.delta import Change, Found, change
from egress.program import Layout, NodeFacts, NodeProgram, render
from egress.rules import tail_of
from egress.table import Steering, SteeringHop
from node_runner.drivers.errors import AddressForeign, NameInvalid
from node_runner.drivers.flows import Bridge
from node_runner.drivers.nat import Iptables
from node_runner.drivers.ports import Node

from .conftest import NODE, NODE_IP, PARENT, Rig, foreign_flow, program_of, run

EGRESS_TEST = (0x1094C2, [("192.168.1.102", NODE)])
STEERED = (0x20, [("192.168.1.103", "node3")])
SPREAD = (0x30, [("192.168.1.104", "node3"), ("192.168.1.105", "node4")])
DROPPED: tuple[int, list[tuple[str, str]]] = (0x40, [])


def found(node: Node) -> Found:
    flows = node.flows.read(everywhere=True)
    return Found(node.links.read(), flows.flows, flows.groups, node.nat.read(), flows.foreign)


def converge(node: Node, program: NodeProgram) -> Change:
    """One pass, in the order that `Change` gives."""
    todo = change(program, found(node))
    node.flows.apply(todo.fence)
    assert not node.links.apply(frozenset(), todo.remove_addresses)
    node.nat.apply(todo.rules)
    node.flows.apply(todo.admit)
    assert not node.links.apply(todo.add_addresses, frozenset())
    return todo


def test_what_is_rendered_is_what_the_tools_print_back(rig: Rig) -> None:
    program = program_of(rig.node, EGRESS_TEST, STEERED, SPREAD, DROPPED, (0x50, [("192.168.1.106", NODE)]))
    converge(rig.node, program)
    there = found(rig.node)
    assert there.flows == program.flows
    assert there.groups == program.groups
    assert there.addresses == program.addresses
    spine = {(rule.table, rule.chain): [] for rule in program.rules.spine}
    for rule in program.rules.spine:
        spine[rule.table, rule.chain].append(rule.spec)
    leaves: dict[tuple[str, str], set[str]] = {}
    for rule in program.rules.leaves:
        leaves.setdefault((rule.table, rule.chain), set()).add(rule.spec)
    assert {key: list(specs) for key, specs in there.rules.own.items() if key in spine} == spine
    trees = {key: list(specs) for key, specs in there.rules.own.items() if key not in spine}
    assert all(specs.pop() == tail for key, specs in trees.items() if (tail := tail_of(*key)))
    assert {key: set(specs) for key, specs in trees.items()} == leaves
    assert all(len(specs) == len(set(specs)) for specs in there.rules.own.values())


def test_odd_marks_and_several_cluster_networks_print_back_too(rig: Rig) -> None:
    """Addresses whose third octet has kube-proxy's bits get another mark; every rule is made once per network."""
    networks = (IPv4Network("10.128.0.0/14"), IPv4Network("10.0.0.0/16"), IPv4Network("172.30.7.9/32"))
    layout = Layout(cluster_networks=networks)
    facts = NodeFacts(NODE, rig.node.flows.facts().tun_mac, 1)
    rows = [
        Steering(netid, "ns", (SteeringHop(IPv4Address(address), NODE, NODE_IP, acknowledged=True),))
        for netid, address in ((1, "192.168.64.5"), (2, "192.168.192.5"), (0xFFFFFF, "0.0.0.7"), (3, "10.0.0.1"))
    ]
    program = render(rows, facts, layout)
    rig.node.nat.apply(change(program, found(rig.node)).rules)
    rig.node.flows.apply(change(program, found(rig.node)).fence)
    todo = change(program, found(rig.node))
    assert not todo.rules
    assert not todo.fence
    assert not todo.admit


def test_a_second_pass_has_nothing_to_do(rig: Rig) -> None:
    program = program_of(rig.node, EGRESS_TEST, STEERED, SPREAD, DROPPED)
    assert converge(rig.node, program)
    text = rig.foreign_text()
    again = converge(rig.node, program)
    assert not again, again
    assert rig.foreign_text() == text


def test_assign_and_release_leave_no_trace(rig: Rig) -> None:
    before = rig.foreign_text()
    converge(rig.node, program_of(rig.node, EGRESS_TEST, STEERED, SPREAD, DROPPED))
    assert rig.foreign_text() != before
    converge(rig.node, program_of(rig.node, EGRESS_TEST, STEERED))
    converge(rig.node, program_of(rig.node))
    assert rig.foreign_text() == before
    assert not any("HAWSE" in line for line in rig.rules_text().splitlines())


def test_addresses_come_and_go_one_by_one(rig: Rig) -> None:
    rows = [(number, [(f"192.168.1.{100 + number}", NODE)]) for number in range(1, 30)]
    converge(rig.node, program_of(rig.node, *rows))
    for kept in (rows[:-1], rows[1:], rows[5:7], rows):
        program = program_of(rig.node, *kept)
        converge(rig.node, program)
        assert found(rig.node).addresses == program.addresses
        assert not change(program, found(rig.node))


def test_the_jump_stands_first_whatever_is_put_before_it(rig: Rig) -> None:
    program = program_of(rig.node, EGRESS_TEST)
    converge(rig.node, program)
    if rig.fake is not None:
        specs = rig.fake.nat._chains["nat", PARENT]
        specs.insert(0, "-j ACCEPT")
    else:
        run(f"iptables-{rig.variant}", "-t", "nat", "-I", PARENT, "1", "-j", "ACCEPT")
    assert set(converge(rig.node, program).rules.scripts) == {"nat"}
    specs_now = rig.node.nat.read().parents["nat", PARENT]
    assert specs_now[:2] == ("-j HAWSE-EGRESS", "-j ACCEPT")
    assert specs_now.count("-j HAWSE-EGRESS") == 1


def test_drift_is_put_back(rig: Rig) -> None:
    program = program_of(rig.node, EGRESS_TEST, STEERED, SPREAD)
    converge(rig.node, program)
    text = rig.foreign_text()
    address = IPv4Address("192.168.1.102")
    if rig.fake is not None:
        rig.fake.flows.wipe()
        rig.fake.flows.put(foreign_flow(0xFFFF))
        rig.fake.nat.flush("nat", "HAWSE-SNAT")
        rig.fake.nat.flush("nat", PARENT)
        rig.fake.nat.put("nat", PARENT, "-s 10.128.0.0/14 -j MASQUERADE")
        rig.fake.links.take_away(address)
    else:
        run("ovs-ofctl", "-O", "OpenFlow13", "del-flows", "br0", "cookie=0x4861777365000000/0xffffffffff000000")
        run("ovs-ofctl", "-O", "OpenFlow13", "del-groups", "br0")
        run(f"iptables-{rig.variant}", "-t", "nat", "-F", "HAWSE-SNAT")
        run(f"iptables-{rig.variant}", "-t", "nat", "-D", PARENT, "1")
        run("ip", "address", "del", f"{address}/24", "dev", rig.interface)
    todo = converge(rig.node, program)
    assert todo.fence or todo.admit
    assert todo.rules
    assert todo.add_addresses == {address}
    assert sorted(rig.foreign_text().splitlines()) == sorted(text.splitlines())


def test_a_foreign_flow_on_our_key_stays_and_takes_the_address_out_of_use(rig: Rig) -> None:
    program = program_of(rig.node, (0xFFFF, [("192.168.1.110", NODE)]), EGRESS_TEST)
    converge(rig.node, program)
    there = found(rig.node)
    assert foreign_flow(0xFFFF).key in there.foreign_flows
    assert there.addresses == {IPv4Address("192.168.1.102")}
    assert not change(program, there)


def test_a_foreign_address_is_refused_and_stays(rig: Rig) -> None:
    address = IPv4Address("192.168.1.40")
    before = rig.foreign_text()
    assert isinstance(rig.node.links.refusals([address]).get(address), AddressForeign)
    for outcome in (rig.node.links.apply({address}, set()), rig.node.links.apply(set(), {address})):
        assert isinstance(outcome[address], AddressForeign)
    assert rig.foreign_text() == before


def test_several_hosts_make_a_select_group_that_follows_them(rig: Rig) -> None:
    converge(rig.node, program_of(rig.node, SPREAD))
    (group,) = rig.node.flows.read().groups
    assert [bucket.count("->tun_dst") for bucket in group.buckets] == [1, 1]
    third = (SPREAD[0], [*SPREAD[1][:1], ("192.168.1.106", "node4")])
    converge(rig.node, program_of(rig.node, third))
    wider = program_of(rig.node, (SPREAD[0], [("192.168.1.104", "node4"), ("192.168.1.105", "node3")]))
    converge(rig.node, wider)
    assert rig.node.flows.read().groups == wider.groups
    converge(rig.node, program_of(rig.node, (SPREAD[0], SPREAD[1][:1])))
    assert rig.node.flows.read(everywhere=True).groups == frozenset()
    assert len(rig.node.flows.read().flows) == 1


@pytest.mark.parametrize("text", ["192.168.1.102; reboot", "$(reboot)", "192.168.1.102\nCOMMIT", "-j ACCEPT", "::1%x"])
def test_a_text_that_is_no_address_never_becomes_one(text: str) -> None:
    """What reaches a driver is an IPv4Address, an int or a matched MAC; this is where texts are turned away."""
    from egress.addresses import AddressError, parse_address

    with pytest.raises(AddressError):
        parse_address(text)


@pytest.mark.parametrize("name", ["--db=tcp:evil", "br0; reboot", "X\nCOMMIT", "", "a" * 29])
def test_a_configured_name_that_a_tool_could_misread_is_refused(name: str) -> None:
    for make in (Bridge, Iptables, lambda text: Bridge(vxlan=text), lambda text: Bridge(tun=text)):
        with pytest.raises(NameInvalid):
            make(name)
