"""One pass over a model of the node: it ends in exactly the program, and is fail-closed at every stage on the way."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress.addresses import Address
from egress.delta import (
    Change,
    Delta,
    FlowChange,
    Found,
    RuleChange,
    RulesFound,
    applied,
    change,
    diff,
    dropping,
    is_ours,
    netid_of,
    standing,
    traffic_of,
    usurped,
)
from egress.program import (
    COOKIE,
    Flow,
    Group,
    Layout,
    NodeFacts,
    NodeProgram,
    by_version,
    render,
)
from egress.retreat import retreat
from egress.rules import SPINE_CHAIN, SPINE_CHAINS, TREES, is_own, table_name, tail_of, version_of
from egress.table import Steering, SteeringHop
from lab.model.traffic import translation

Key = tuple[int, int, str]
Chains = dict[str, list[str]]

NODE = "n1"
FOREIGN = {
    "nat": {
        "POSTROUTING": ["-j OPENSHIFT-MASQUERADE", "-j KUBE-POSTROUTING"],
        "OPENSHIFT-MASQUERADE": ["-s 10.128.0.0/14 -m comment --comment masquerade -j MASQUERADE"],
        "KUBE-POSTROUTING": ["-m mark ! --mark 0x4000/0x4000 -j RETURN"],
    },
    "filter": {"INPUT": ["-j KUBE-FIREWALL"], "FORWARD": ["-j KUBE-FORWARD"], "KUBE-FIREWALL": [], "KUBE-FORWARD": []},
}
FOREIGN |= {table_name(table, 6): copy.deepcopy(chains) for table, chains in FOREIGN.items()}
PARENTS = tuple(
    (table_name(table, version), chain)
    for version in (4, 6)
    for table, chain in (("nat", "OPENSHIFT-MASQUERADE"), ("filter", "INPUT"), ("filter", "FORWARD"))
)


# The model of a node


@dataclass
class Model:
    """What a node holds: flows by key as OVS does, groups, the chains of its iptables tables, its own addresses."""

    addresses: set[Address] = field(default_factory=set)
    flows: dict[Key, Flow] = field(default_factory=dict)
    foreign_flows: dict[Key, str] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    tables: dict[str, Chains] = field(default_factory=lambda: copy.deepcopy(FOREIGN))
    connections: set[Address] = field(default_factory=set)
    """The addresses that some connection is translated to."""

    def found(self) -> Found:
        """What a runner's drivers would report."""
        return Found(
            frozenset(self.addresses),
            frozenset(self.flows.values()),
            frozenset(self.groups.values()),
            RulesFound(
                {
                    (t, c): tuple(specs)
                    for t, chains in self.tables.items()
                    for c, specs in chains.items()
                    if is_own(t, c)
                },
                {(table, chain): tuple(self.tables[table][chain]) for table, chain in PARENTS},
            ),
            frozenset(self.foreign_flows),
        )

    def marks(self) -> dict[Address, int]:
        """The marks that the node's SNAT rules give its addresses."""
        return dict(self.found().rules.marks)

    def bundle(self, flows: FlowChange) -> None:
        """One OpenFlow bundle. Removing a group removes the flows that use it, as in OVS."""
        for group in flows.add_groups:
            self.groups[group.group_id] = group
        for flow in flows.add:
            assert flow.key not in self.foreign_flows, "a flow that is not ours was replaced"
            self.flows[flow.key] = flow
        assert not {flow.key for flow in flows.remove} & {flow.key for flow in flows.add}
        for flow in flows.remove:
            del self.flows[flow.key]
        for group in flows.remove_groups:
            del self.groups[group.group_id]
            self.flows = {k: f for k, f in self.flows.items() if f.actions != f"group:{group.group_id}"}
        for flow in self.flows.values():
            if flow.actions.startswith("group:"):
                assert int(flow.actions.removeprefix("group:")) in self.groups, "OVS refuses a flow to no group"

    def restore(self, table: str, script: str) -> None:
        """`iptables-restore --noflush`: all of a table's changes, or none."""
        lines = script.splitlines()
        assert lines[0] == f"*{table.removesuffix('6')}"
        assert lines[-1] == "COMMIT"
        chains = copy.deepcopy(self.tables[table])
        for line in lines[1:-1]:
            if line.startswith(":"):
                chains[line[1:].split()[0]] = []  # --noflush flushes the user chains that are declared
                continue
            verb, chain, *rest = line.split(" ", 2)
            spec = rest[0] if rest else ""
            if verb == "-A":
                chains[chain].append(spec)
            elif verb == "-D":
                chains[chain].remove(spec)
            elif verb == "-I":
                position, spec = spec.split(" ", 1)
                chains[chain].insert(int(position) - 1, spec)
            elif verb == "-F":
                chains[chain].clear()
            elif verb == "-X":
                assert not chains.pop(chain), "a chain with rules cannot be deleted"
                assert not any(chain in spec.split() for specs in chains.values() for spec in specs)
            else:
                raise AssertionError(line)
        for specs in chains.values():
            for spec in specs:
                target = re.search(r"(?:^| )-[jg] (HAWSE-\S+)", spec)
                assert target is None or target[1] in chains, f"no chain {target}"
        self.tables[table] = chains

    def stages(self, todo: Change) -> Iterator[str]:
        """Applies `todo`, and yields after each of its stages."""
        self.bundle(todo.fence)
        yield "fence"
        assert todo.remove_addresses <= self.addresses
        self.addresses -= todo.remove_addresses
        yield "remove_addresses"
        self.connections -= todo.forget
        yield "forget"
        for table, script in todo.rules.scripts.items():
            self.restore(table, script)
            yield "rules"
        self.bundle(todo.admit)
        yield "admit"
        assert not todo.add_addresses & self.addresses
        self.addresses |= todo.add_addresses
        yield "add_addresses"

    def foreign(self) -> object:
        """All that is not ours, for comparison."""
        rules = {
            (table, chain): [spec for spec in specs if not re.fullmatch(r"-j HAWSE-\S+", spec)]
            for table, chains in self.tables.items()
            for chain, specs in chains.items()
            if not is_own(table, chain)
        }
        return copy.deepcopy((rules, self.foreign_flows))


def mark_in(flow: Flow) -> int | None:
    found = re.search(r"set_field:(0x[0-9a-f]+)->pkt_mark", flow.actions)
    return int(found[1], 16) if found else None


# What must hold


def assert_holds(model: Model, program: NodeProgram, blocked_before: frozenset[Address] = frozenset()) -> None:
    """The model holds exactly the program, save for what a foreign flow blocks."""
    blocked = usurped(program, model.found())
    assert model.addresses == program.addresses - (blocked - blocked_before)
    wanted = {flow for flow in program.flows if flow.key not in model.foreign_flows}
    assert set(model.flows.values()) == wanted
    assert set(model.groups.values()) == program.groups
    rules = program.rules
    if not rules.spine:
        assert not any(is_own(table, chain) for table, chains in model.tables.items() for chain in chains)
        assert not any("HAWSE" in str(chains) for chains in model.tables.values())
        return
    spine_chains = {
        key for key in SPINE_CHAINS if version_of(key[0]) in {version_of(jump.table) for jump in rules.jumps}
    }
    for table, chain in spine_chains:
        expected = [rule.spec for rule in rules.spine if (rule.table, rule.chain) == (table, chain)]
        assert model.tables[table][chain] == expected
    trees: dict[tuple[str, str], list[str]] = {}
    for rule in rules.leaves:
        trees.setdefault((rule.table, rule.chain), []).append(rule.spec)
    own = {(table, chain) for table, chains in model.tables.items() for chain in chains if is_own(table, chain)}
    assert own == trees.keys() | spine_chains
    for (table, chain), leaves in trees.items():
        specs = list(model.tables[table][chain])
        if tail := tail_of(table, chain):
            assert specs.pop() == tail
        assert sorted(specs) == sorted(leaves)
    for jump in rules.jumps:
        specs = model.tables[jump.table][jump.chain]
        assert specs[0] == jump.spec
        assert sum("HAWSE" in spec for spec in specs) == 1


def stands(model: Model, mark: int, address: Address, layout: Layout) -> bool:
    """Whether a packet with `mark` that leaves the cluster gets `address` now."""
    table = table_name("nat", address.version)
    nat = model.tables[table]
    own = {(table, chain): specs for chain, specs in nat.items() if is_own(table, chain)}
    networks = [network for network in layout.cluster_networks if network.version == address.version]
    return nat[layout.masquerade_chain][0] == f"-j {SPINE_CHAIN}" and all(
        translation(own, mark, network) == address for network in networks
    )


def assert_fail_closed(model: Model, before: dict[Key, Flow], program: NodeProgram, layout: Layout) -> None:
    """No flow that this pass changed hands packets to a mark whose SNAT rule is not standing."""
    for key, flow in model.flows.items():
        mark = mark_in(flow)
        if mark is None or before.get(key) == flow:
            continue
        assert stands(model, mark, program.own[traffic_of(flow)], layout), flow


def one_pass(model: Model, program: NodeProgram, layout: Layout, stop: int = 99) -> None:
    """Applies the change to `program`, checking every stage; stops after `stop` stages, as if killed."""
    before, foreign = dict(model.flows), model.foreign()
    held = frozenset(model.addresses)
    todo = change(program, model.found())
    expected = applied(program, model.found())
    wanted = {flow.key for flow in program.flows} - model.foreign_flows.keys()
    leaving = {mark for address, mark in model.marks().items() if address in todo.remove_addresses}
    for number, stage in enumerate(model.stages(todo), start=1):
        assert_fail_closed(model, before, program, layout)
        assert model.foreign() == foreign
        # From the first stage on, whatever fails later, every NetID of the table has a flow, and nobody another one.
        assert model.flows.keys() == wanted, stage
        if stage in ("fence", "remove_addresses", "forget"):
            handed = {mark_in(flow) for flow in model.flows.values()} - {None}
            assert not handed & leaving, "packets go to an address that leaves"
        if number == stop:
            return
    assert_holds(model, program, held)
    assert not change(program, model.found())
    assert not change(program, expected)
    assert ignoring_leaf_order(expected) == ignoring_leaf_order(model.found())
    here = standing_addresses(model)
    assert standing(model.found()) == {traffic: a for traffic, a in program.own.items() if a in here}


def ignoring_leaf_order(found: Found) -> Found:
    own = {key: specs if key in SPINE_CHAINS else tuple(sorted(specs)) for key, specs in found.rules.own.items()}
    return replace(found, rules=RulesFound(own, found.rules.parents))


def standing_addresses(model: Model) -> set[Address]:
    """The addresses here that a flow of ours, under any key, hands packets to."""
    marks = {mark_in(flow) for flow in model.flows.values()}
    return {address for address, mark in model.marks().items() if mark in marks and address in model.addresses}


# Random programs

ADDRESSES = [
    IPv4Address(text)
    for text in (
        "192.168.1.102",
        "192.168.0.1",
        "192.168.64.1",  # folds to the mark of 128.168.0.1
        "128.168.0.1",
        "128.168.64.1",  # folds to the mark of 192.168.0.1
        "10.0.0.7",
    )
]
SIX = [IPv6Address(text) for text in ("fd00::1:102", "fd00::1:103", "2001:db8::6767:1", "fd00:0:0:1::c0a8:166")]
EVERY: list[Address] = [*ADDRESSES, *SIX]
NODE_IPS = {f"n{i}": IPv4Address(f"10.1.0.{i}") for i in range(1, 4)}
NETIDS = [1, 2, 3, 4, 1086658]
LAYOUTS = [
    Layout(),
    Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv4Network("10.200.0.0/16"))),
    Layout(egress_table=101, next_table=102),
    Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv6Network("fd01::/48"))),
    Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv6Network("fd01::/48"), IPv6Network("fd05::/64"))),
]
layouts = st.sampled_from(LAYOUTS)
macs = st.sampled_from(["0a:58:0a:80:00:01", "0a:58:0a:80:00:02"])


@st.composite
def tables(draw: st.DrawFn) -> list[Steering]:
    families: list[list[Address]] = [list(draw(st.permutations(ADDRESSES))), list(draw(st.permutations(SIX)))]
    rows = []
    for netid in sorted(draw(st.sets(st.sampled_from(NETIDS), max_size=5))):
        hops = []
        for free in families:
            nodes = draw(st.permutations(sorted(NODE_IPS)))
            for node in nodes[: draw(st.integers(0, min(3, len(free))))]:
                hops.append(SteeringHop(free.pop(), node, NODE_IPS[node], acknowledged=draw(st.booleans())))
        rows.append(Steering(netid, f"ns{netid}", tuple(sorted(hops, key=lambda hop: int(hop.address)))))
    return rows


def program_for(draw: st.DrawFn, model: Model, layout: Layout) -> NodeProgram:
    withheld = draw(st.frozensets(st.sampled_from(EVERY), max_size=2))
    return render(draw(tables()), NodeFacts(NODE, draw(macs)), layout, withheld=withheld, marks=model.marks())


def corrupt(draw: st.DrawFn, model: Model) -> None:
    """Drift: what people, reboots and other programs do to a node."""
    for kind in draw(st.lists(st.sampled_from(CORRUPTIONS), max_size=6)):
        if kind == "address":
            model.addresses.symmetric_difference_update(draw(st.sets(st.sampled_from(EVERY), max_size=2)))
        elif kind == "flow" and model.flows:
            del model.flows[draw(st.sampled_from(sorted(model.flows)))]
        elif kind == "actions" and model.flows:
            key = draw(st.sampled_from(sorted(model.flows)))
            actions = ["drop", "goto_table:101", "set_field:0xc0a80166->pkt_mark,goto_table:101"]
            model.flows[key] = model.flows[key]._replace(actions=draw(st.sampled_from(actions)))
        elif kind == "cookie" and model.flows:
            key = draw(st.sampled_from(sorted(model.flows)))
            model.flows[key] = model.flows[key]._replace(cookie=COOKIE | 77)
        elif kind == "strayflow":
            flow = Flow(100, 100, "ip,reg0=0x63", COOKIE | 99, "set_field:0x63->pkt_mark,goto_table:101")
            model.flows.setdefault(flow.key, flow)
        elif kind == "ovs":
            model.flows.clear()
            model.groups.clear()
        elif kind == "foreignflow":
            key = (100, 100, f"{draw(st.sampled_from(['ip', 'ipv6']))},reg0={draw(st.sampled_from(NETIDS)):#x}")
            model.flows.pop(key, None)
            model.foreign_flows[key] = "somebody else's"
        elif kind == "group" and not any("group:" in flow.actions for flow in model.flows.values()):
            group = Group(draw(st.sampled_from([0x48000000, 0x49000000])) | draw(st.sampled_from(NETIDS)), ("drop",))
            model.groups[group.group_id] = group
        else:
            corrupt_rules(draw, model, kind)


def corrupt_rules(draw: st.DrawFn, model: Model, kind: str) -> None:  # noqa: PLR0912 - one branch for each corruption
    table = draw(st.sampled_from(["nat", "filter", "nat6", "filter6"]))
    chains = model.tables[table]
    own = sorted(chain for chain in chains if is_own(table, chain))
    if kind == "flush-all":
        model.tables = copy.deepcopy(FOREIGN)
    elif kind == "foreignrule":
        chain = draw(st.sampled_from([chain for owner, chain in PARENTS if owner == table]))
        chains[chain].insert(0, "-p udp -j ACCEPT")
    elif kind == "unjump":
        for owner, chain in PARENTS:
            if owner == table:
                chains[chain] = [spec for spec in chains[chain] if "HAWSE" not in spec]
    elif kind == "dupjump":
        for owner, chain in PARENTS:
            if owner == table:
                chains[chain] += [spec for spec in chains[chain] if "HAWSE" in spec]
    elif own:
        specs = chains[draw(st.sampled_from(own))]
        if kind == "flush":
            specs.clear()
        elif kind == "shuffle":
            specs[:] = draw(st.permutations(specs))
        elif kind == "stray":
            specs.append(draw(st.sampled_from(STRAY_RULES_SIX if table == "nat6" else STRAY_RULES)))
        elif kind == "wrong-source":
            other = "fd00::9999" if table == "nat6" else "10.0.0.99"
            specs[:] = [re.sub(r"--to-source \S+", f"--to-source {other}", spec) for spec in specs]
        elif specs and kind == "rule":
            specs.pop(draw(st.integers(0, len(specs) - 1)))
        elif specs and kind == "duprule":
            specs.append(draw(st.sampled_from(specs)))


STRAY_RULES = [
    "-m mark --mark 0x63 -j ACCEPT",
    "-s 10.128.0.0/14 -m mark --mark 0x63 -j SNAT --to-source 10.9.9.9:1024-2048",
    "-s 10.128.0.0/14 -m mark --mark 0x63 -j SNAT --to-source 10.9.9.9-10.9.9.10",
    "-s 10.128.0.0/14 -m mark --mark 0x63 -j SNAT --to-source 0.0.0.0",
    "-s 10.128.0.0/14 -m mark --mark 0xc0a80166 -j SNAT --to-source 10.0.0.7",
]
STRAY_RULES_SIX = [
    "-m mark --mark 0x63 -j ACCEPT",
    "-s fd01::/48 -m mark --mark 0x63 -j SNAT --to-source [fd00::9]:1024-2048",
    "-s fd01::/48 -m mark --mark 0x63 -j SNAT --to-source fd00::9-fd00::a",
    "-s fd01::/48 -m mark --mark 0xc0a80166 -j SNAT --to-source fd00::1:103",
]
CORRUPTIONS = [
    *("address", "flow", "actions", "cookie", "strayflow", "ovs", "foreignflow", "group", "flush-all", "foreignrule"),
    *("unjump", "dupjump", "flush", "shuffle", "stray", "wrong-source", "rule", "duprule"),
]


# The properties


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_from_any_program_to_any_other(data: st.DataObject) -> None:
    model = Model()
    layout = data.draw(layouts)
    for _ in range(data.draw(st.integers(1, 3))):
        one_pass(model, program_for(data.draw, model, layout), layout)


@given(st.data())
@settings(max_examples=600, deadline=None)
def test_from_any_drift_or_half_done_pass(data: st.DataObject) -> None:
    model = Model()
    layout = data.draw(layouts)
    one_pass(model, program_for(data.draw, model, layout), layout)
    one_pass(model, program_for(data.draw, model, layout), layout, stop=data.draw(st.integers(1, 7)))
    corrupt(data.draw, model)
    one_pass(model, program_for(data.draw, model, layout), layout)


@given(st.data())
@settings(deadline=None)
def test_an_empty_program_leaves_nothing(data: st.DataObject) -> None:
    model = Model()
    one_pass(model, program_for(data.draw, model, Layout()), Layout())
    corrupt(data.draw, model)
    foreign = model.foreign()
    one_pass(model, NodeProgram(), Layout())
    assert model.foreign() == foreign
    assert (model.addresses, model.flows, model.groups) == (set(), {}, {})
    assert "HAWSE" not in str(model.tables)


@given(st.data())
@settings(deadline=None)
def test_a_new_layout_leaves_nothing_of_the_old_one(data: st.DataObject) -> None:
    model = Model()
    for layout in (data.draw(layouts), data.draw(layouts)):
        one_pass(model, program_for(data.draw, model, layout), layout)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_node_that_cannot_be_programmed_drops_whatever_is_not_sure(data: st.DataObject) -> None:
    model = Model()
    layout = data.draw(layouts)
    one_pass(model, program_for(data.draw, model, layout), layout, stop=data.draw(st.integers(1, 7)))
    corrupt(data.draw, model)
    table, foreign = data.draw(tables()), model.foreign()
    own = {(row.netid, hop.address.version): hop.address for row in table for hop in row.hops if hop.node == NODE}
    known = data.draw(st.booleans())
    found = model.found() if known else replace(model.found(), addresses=frozenset(), rules=RulesFound())
    model.bundle(retreat(table, NODE, found, layout))
    assert model.foreign() == foreign
    needed = [(asked, *of_version) for asked in table for of_version in by_version(asked, layout)]
    for asked, version, hops in needed:
        key = (layout.egress_table, layout.priority, f"{'ipv6' if version == 6 else 'ip'},reg0={asked.netid:#x}")
        flow = model.flows.get(key)
        assert flow or key in model.foreign_flows
        assert flow is None or not flow.actions.startswith("goto_table")
        elsewhere = {str(hop.node_ip) for hop in hops if hop.acknowledged and hop.node != NODE}
        if flow is not None and "->tun_dst" in flow.actions:  # it may be of an earlier table
            assert flow.actions.partition("set_field:")[2].partition("->tun_dst")[0] in elsewhere
    for flow in model.flows.values():
        if (mark := mark_in(flow)) is not None:
            address = own[traffic_of(flow)]
            assert known
            assert address in model.addresses
            assert stands(model, mark, address, layout)
    assert not retreat(table, NODE, replace(found, flows=frozenset(model.flows.values())), layout)


@given(st.data())
@settings(deadline=None)
def test_a_node_that_cannot_be_programmed_goes_on_with_what_is_sure(data: st.DataObject) -> None:
    model = Model()
    table, layout = data.draw(tables()), data.draw(layouts)
    one_pass(model, render(table, FACTS, layout), layout)
    assert not retreat(table, NODE, model.found(), layout)


@given(st.frozensets(st.integers(0, 9)), st.frozensets(st.integers(0, 9)))
def test_diff_turns_actual_into_desired(desired: frozenset[int], actual: frozenset[int]) -> None:
    delta = diff(desired, actual)
    assert (actual - delta.remove) | delta.add == desired
    assert not delta.add & actual
    assert delta.remove <= actual
    assert bool(delta) == (desired != actual)
    assert not Delta()


# Examples that say why


A, B = ADDRESSES[0], ADDRESSES[5]
FACTS = NodeFacts(NODE, "0a:58:0a:80:00:01")


def row(netid: int, *addresses: Address, node: str = NODE) -> Steering:
    hops = tuple(SteeringHop(address, node, NODE_IPS[node], acknowledged=True) for address in addresses)
    return Steering(netid, f"ns{netid}", hops)


def model_with(*rows: Steering) -> Model:
    model = Model()
    one_pass(model, render(rows, FACTS, Layout()), Layout())
    return model


def next_change(model: Model, *rows: Steering) -> Change:
    return change(render(rows, FACTS, Layout(), marks=model.marks()), model.found())


def test_a_claim_is_fenced_then_ruled_then_admitted_then_addressed() -> None:
    todo = next_change(Model(), row(5, A))
    assert [flow.actions for flow in todo.fence.add] == ["drop"]
    assert "--to-source 192.168.1.102" in todo.rules.scripts["nat"]
    assert [mark_in(flow) for flow in todo.admit.add] == [0xC0A80166]
    assert todo.add_addresses == {A}


def test_a_claim_that_drops_already_needs_no_fence() -> None:
    model = model_with(row(5))
    todo = next_change(model, row(5, A))
    assert not todo.fence
    assert todo.admit


def test_a_flow_is_not_admitted_before_the_guard_stands_again() -> None:
    # As a retreat leaves it: the flow drops, the nat rules stand. Meanwhile somebody has flushed FORWARD.
    model = model_with(row(5, A))
    model.flows = {key: dropping(flow) for key, flow in model.flows.items()}
    model.tables["filter"]["FORWARD"].clear()
    todo = next_change(model, row(5, A))
    assert list(todo.rules.scripts) == ["filter"]
    assert not todo.fence
    assert [mark_in(flow) for flow in todo.admit.add] == [0xC0A80166]


def test_a_release_closes_the_flow_before_the_address_and_the_rule() -> None:
    todo = next_change(model_with(row(5, A)), row(5))
    assert [flow.actions for flow in todo.fence.add] == ["drop"]
    assert todo.remove_addresses == {A}
    assert "-X HAWSE-SNAT" in str(todo.rules)
    assert not todo.admit
    assert todo.forget == {A}


def test_the_second_address_costs_its_own_rules_alone() -> None:
    model = model_with(row(5, A))
    there = {chain for chains in model.tables.values() for chain in chains}
    lines = str(next_change(model, row(5, A), row(6, B)).rules).splitlines()
    assert [line for line in lines if line.startswith(("-D", "-F", "-X"))] == []
    assert not there & {line[1:].split()[0] for line in lines if line.startswith(":")}
    touched = {line.split()[1] for line in lines if line.startswith(("-A", "-I"))} & there
    assert touched == {tree.root for tree in TREES[4]}
    assert sum(str(B) in line or f"--mark {int(B):#x} " in line for line in lines) == 6


def test_an_address_that_goes_takes_the_chains_with_it_that_no_other_needs() -> None:
    model = model_with(row(5, A), row(6, B))
    alone = {table: set(chains) for table, chains in model_with(row(5, A)).tables.items()}
    todo = next_change(model, row(5, A), row(6))
    assert sum(line.startswith("-D") for line in str(todo.rules).splitlines()) == 6
    one_pass(model, render([row(5, A), row(6)], FACTS, Layout(), marks=model.marks()), Layout())
    assert {table: set(chains) for table, chains in model.tables.items()} == alone


def test_connections_end_when_an_address_changes_hands_on_its_node() -> None:
    todo = next_change(model_with(row(5, A), row(6)), row(5), row(6, A))
    assert todo.forget == {A}
    assert (todo.add_addresses, todo.remove_addresses) == (frozenset(), frozenset())


def test_two_namespaces_that_swap_addresses_lose_their_connections() -> None:
    assert next_change(model_with(row(5, A), row(6, B)), row(5, B), row(6, A)).forget == {A, B}


def test_connections_survive_when_only_tun0_s_mac_changes() -> None:
    model = model_with(row(5, A))
    other = replace(FACTS, tun_mac="0a:58:0a:80:00:09")
    todo = change(render([row(5, A)], other, Layout(), marks=model.marks()), model.found())
    assert todo.fence.add
    assert todo.forget == frozenset()


@pytest.mark.parametrize("stop", range(7))
@pytest.mark.parametrize("rows", [(row(5), row(6, B)), (row(6, B),), (row(5, A, node="n2"), row(6, B)), ()])
def test_however_early_a_pass_is_killed_the_connections_of_a_released_address_end(
    stop: int, rows: tuple[Steering, ...]
) -> None:
    model = model_with(row(5, A), row(6, B))
    model.connections = {A, B}
    for _ in zip(range(stop), model.stages(next_change(model, *rows)), strict=False):
        pass
    for _ in model.stages(next_change(model, *rows)):
        pass
    assert model.connections == ({B} if rows else set())


def test_an_address_that_somebody_removed_and_that_is_then_released_loses_its_connections() -> None:
    model = model_with(row(5, A), row(6, B))
    model.addresses.discard(A)
    assert next_change(model, row(5), row(6, B)).forget == {A}


def test_a_foreign_flow_keeps_its_key_and_its_address_is_reported() -> None:
    model = Model(foreign_flows={(100, 100, "ip,reg0=0x5"): "drop"})
    program = render([row(5, A), row(6, B)], FACTS, Layout())
    assert usurped(program, model.found()) == {A}
    todo = change(program, model.found())
    assert todo.add_addresses == {B}
    assert {netid_of(flow) for flow in (*todo.fence.add, *todo.admit.add)} == {6}


def test_the_cookie_tells_our_flows_and_their_netid() -> None:
    (flow,) = render([row(0xFFFFFF)], FACTS, Layout()).flows
    assert is_ours(flow.cookie)
    assert netid_of(flow) == 0xFFFFFF
    assert not is_ours(0)
    assert not is_ours(COOKIE + (1 << 24))


# The layout before trees


def linear(marks: dict[Address, int]) -> dict[str, Chains]:
    """What the version before this one left on a node: a chain of all addresses for each purpose."""
    nat, filters = copy.deepcopy(FOREIGN["nat"]), copy.deepcopy(FOREIGN["filter"])
    nat["OPENSHIFT-MASQUERADE"].insert(0, "-j HAWSE-EGRESS")
    nat["HAWSE-EGRESS"] = [
        "-m mark --mark 0x4000/0x4000 -j RETURN",
        "-s 10.128.0.0/14 -d 10.128.0.0/14 -j HAWSE-CLUSTER",
        "-j HAWSE-SNAT",
    ]
    nat["HAWSE-CLUSTER"] = [f"-m mark --mark {mark:#x} -j MASQUERADE" for mark in marks.values()]
    nat["HAWSE-SNAT"] = [
        f"-s 10.128.0.0/14 -m mark --mark {mark:#x} -j SNAT --to-source {address}" for address, mark in marks.items()
    ]
    filters["INPUT"].insert(0, "-j HAWSE-INPUT")
    filters["FORWARD"].insert(0, "-j HAWSE-GUARD")
    filters["HAWSE-INPUT"] = [f"-d {address}/32 -m conntrack --ctstate NEW -j REJECT" for address in marks]
    filters["HAWSE-GUARD"] = ["-d 10.128.0.0/14 -j RETURN", "-j HAWSE-GUARD-ADDR"]
    filters["HAWSE-GUARD-ADDR"] = [
        spec
        for address, mark in marks.items()
        for spec in (
            f"-m mark --mark {mark:#x} -m conntrack --ctstate INVALID -j DROP",
            f"-m mark --mark {mark:#x} -m conntrack ! --ctrepldst {address} --ctstatus CONFIRMED -j HAWSE-STALE",
            f"-m mark ! --mark {mark:#x} -m conntrack --ctrepldst {address} --ctstatus CONFIRMED -j HAWSE-STALE",
        )
    ]
    filters["HAWSE-STALE"] = ["-j DROP"]
    return copy.deepcopy(FOREIGN) | {"nat": nat, "filter": filters}


@pytest.mark.parametrize("stop", range(8))
def test_an_upgrade_replaces_the_rules_table_by_table_and_nothing_else_changes(stop: int) -> None:
    rows, marks = (row(5, A), row(6, B)), {A: int(A), B: 0x0B000007}  # a mark that would not be chosen anew
    old = render(rows, FACTS, Layout(), marks=marks)
    model = Model(set(old.addresses), {flow.key: flow for flow in old.flows}, tables=linear(marks), connections={A, B})
    program = render(rows, FACTS, Layout(), marks=model.marks())
    assert program.marks == marks
    todo = change(program, model.found())
    assert replace(todo, rules=RuleChange()) == Change()
    for _ in zip(range(stop), model.stages(todo), strict=False):
        for address, mark in marks.items():
            assert stands(model, mark, address, Layout())
    one_pass(model, program, Layout())
    assert model.connections == {A, B}
    assert not any("HAWSE-STALE" in chains or "HAWSE-GUARD-ADDR" in chains for chains in model.tables.values())


def test_a_node_that_cannot_be_programmed_after_an_upgrade_drops_what_the_old_rules_served() -> None:
    """It cannot tell whether they guard as they should."""
    model = Model({A}, tables=linear({A: int(A)}))
    model.flows = {flow.key: flow for flow in render((row(5, A),), FACTS, Layout()).flows}
    (drop,) = retreat([row(5, A)], NODE, model.found(), Layout()).add
    assert drop.actions == "drop"
