"""A whole node with addresses of both IP versions, fake and real: as test_node.py, and that IPv6 stands in nobody's
way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface
from pathlib import Path

import pytest

from egress.addresses import Address
from egress.delta import Found, RulesFound
from egress.diagnosis import FaultKind
from egress.program import Layout
from egress.rules import tail_of, version_of
from egress.table import Steering, SteeringHop
from lab.fakes.node import fake_node
from node_runner.drivers import open_node
from node_runner.drivers.errors import IptablesFailed
from node_runner.drivers.ports import ProbeTiming
from node_runner.programmer import Programmer, Result
from node_runner.retirement import Retirement

from .conftest import (
    FOREIGN_RULES,
    NEIGHBOUR,
    NEIGHBOUR_MAC,
    NEIGHBOUR_SIX,
    NODE,
    NODE_IP,
    NODE_SIX,
    OTHER_IP,
    PARENT,
    Rig,
    add_link,
    need,
    run,
)

LAYOUT = Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv6Network("fd01::/48")))
FOREIGN_SIX = FOREIGN_RULES.replace("10.128.0.0/14", "fd01::/48")
TIMING = ProbeTiming(2, 0.05, 0.05)
A, SIX, SIX_TOO = (ip_address(text) for text in ("192.168.1.102", "2001:db8::102", "2001:db8::5:103"))
Table = dict[int, Steering]


def row(netid: int, *hops: tuple[Address, str], acknowledged: bool = True) -> Table:
    ips = {NODE: NODE_IP}
    placed = tuple(SteeringHop(address, node, ips.get(node, OTHER_IP), acknowledged) for address, node in hops)
    return {netid: Steering(netid, f"ns{netid}", placed)}


PAIR = row(0x10, (A, NODE), (SIX, NODE))
ALONE = row(0x11, (SIX_TOO, NODE))
FOUR = row(0x12, (ip_address("192.168.1.104"), NODE))
ELSEWHERE = row(0x13, (ip_address("2001:db8::105"), "node3"), (ip_address("2001:db8::106"), "node4"))
CLOSED = row(0x14)
TABLE = PAIR | ALONE | FOUR | ELSEWHERE | CLOSED


@pytest.fixture(params=["fake", "nft", "legacy"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A node with both IP versions, in its rules too."""
    if request.param == "fake":
        neighbours = {NEIGHBOUR: NEIGHBOUR_MAC, NEIGHBOUR_SIX: NEIGHBOUR_MAC}
        fake = fake_node(str(NODE_IP), other_ips=[f"{NODE_SIX}/64"], neighbours=neighbours)
        fake.links.foreign.add(ip_address("2001:db8::40"))
        yield Rig(fake.node, fake, "fake", "eth0")
        return
    netns = request.getfixturevalue("netns")
    need(f"ip6tables-{request.param}-restore")
    request.getfixturevalue("open_vswitch")
    run(f"iptables-{request.param}-restore", stdin=FOREIGN_RULES)
    run(f"ip6tables-{request.param}-restore", stdin=FOREIGN_SIX)
    add_link(netns, "eth0", traffic=True)
    node = open_node(NODE_IP, LAYOUT)
    yield Rig(node, None, request.param, "eth0")
    node.close()


def text_of(rig: Rig) -> str:
    """All that the node holds, ip6tables' rules too."""
    if rig.fake is not None:
        return rig.foreign_text()
    lines = run(f"ip6tables-{rig.variant}-save").splitlines()
    six = "\n".join(line.partition(" [")[0] for line in lines if not line.startswith("#"))
    return "\n\n".join((rig.foreign_text(), six))


class Pass:
    """Passes over a node, whose program they leave there. Rules outlive their flow for `retire` passes."""

    def __init__(self, rig: Rig, layout: Layout = LAYOUT, retire: int = 0) -> None:
        self.node = rig.node
        self.programmer = Programmer(NODE, rig.node, layout, TIMING, Retirement(retire, lambda: self.now))
        self.now = 0
        self.fresh = True

    def __call__(self, table: Table, *, untouched: bool = False, changed: set[int] | None = None) -> Result:
        self.now += 1
        result = self.programmer.run(table, resting={}, fresh=self.fresh, untouched=untouched, changed=changed)
        self.fresh = False
        return result

    def faults(self, table: Table) -> set[FaultKind]:
        faults, _ = self.programmer.inspect(table, "", asks=NODE_IP, resting=())
        return {fault.kind for fault in faults}

    def refusals(self, table: Table) -> dict[str, str]:
        return {str(claim.address): claim.reason for claim in self(table).claims if not claim.held}


def found_on(rig: Rig) -> Found:
    flows = rig.node.flows.read(everywhere=True)
    return Found(rig.node.links.read(), flows.flows, flows.groups, rig.node.nat.read(), flows.foreign)


def test_what_is_rendered_is_what_the_tools_print_back(rig: Rig) -> None:
    passing = Pass(rig)
    result = passing(TABLE)
    assert all(claim.held for claim in result.claims)
    assert len(result.claims) == 4
    there = found_on(rig)
    program = passing.programmer.wanted(TABLE, passing.programmer.sight(TABLE, None, ""), ())
    assert there.flows == program.flows
    assert len(there.flows) == 2 * len(TABLE)
    assert there.groups == program.groups
    assert there.addresses == program.addresses == {A, SIX, SIX_TOO, ip_address("192.168.1.104")}
    rules: dict[tuple[str, str], list[str]] = {}
    for rule in (*program.rules.spine, *sorted(program.rules.leaves)):
        rules.setdefault((rule.table, rule.chain), []).append(rule.spec)
    own = {key: sorted(spec for spec in specs if spec != tail_of(*key)) for key, specs in there.rules.own.items()}
    assert own == {key: sorted(specs) for key, specs in rules.items()}
    assert {version_of(table) for table, _ in own} == {4, 6}
    assert passing.faults(TABLE) == set()


def test_a_second_pass_has_nothing_to_do_nor_has_another_runner(rig: Rig) -> None:
    passing = Pass(rig)
    assert passing(TABLE).wrote
    text = text_of(rig)
    assert not passing(TABLE).wrote
    again = Pass(rig)(TABLE)  # it knows of nothing but what it reads
    assert not again.wrote
    assert not again.taken
    assert text_of(rig) == text


def test_assign_and_release_leave_no_trace_in_whatever_order(rig: Rig) -> None:
    before = text_of(rig)
    passing = Pass(rig)
    for table in (PAIR, PAIR | ALONE, ALONE, FOUR | ALONE, FOUR, TABLE, ELSEWHERE, {}):
        passing(table, untouched=True)
    passing({})  # a pass over a part leaves the rules to the next look at everything
    assert text_of(rig) == before


@pytest.mark.parametrize("untouched", [False, True])
def test_rules_that_outlive_their_flow_leave_no_trace_either(rig: Rig, untouched: bool) -> None:
    before = text_of(rig)
    passing = Pass(rig, retire=2)
    for table in (PAIR, PAIR | ALONE, ALONE, FOUR | ALONE, FOUR, TABLE, ELSEWHERE):
        passing(table, untouched=untouched)
        assert passing.faults(table) == set()
    passing({}, untouched=untouched)
    marks = rig.node.nat.read(six=True).marks
    assert marks.keys() == {A, SIX, SIX_TOO, ip_address("192.168.1.104")}, "TABLE was the last but two"
    assert rig.node.links.read() == set()
    passing({})
    assert text_of(rig) == before
    assert not passing({}).wrote


def test_a_pass_over_a_part_is_a_pass_over_everything(rig: Rig) -> None:
    passing = Pass(rig)
    passing(TABLE)
    reads: list[bool] = []
    read = rig.node.nat.read

    def counted(*, six: bool = False) -> RulesFound:
        reads.append(six)
        return read(six=six)

    table, free = dict(TABLE), [ip_address(f"2001:db8::2:{number:x}") for number in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.node.nat, "read", counted)
        for number, address in enumerate(free):
            table |= row(0x20 + number, (address, NODE))
            result = passing(table, untouched=True, changed={0x20 + number})
            assert address in result.taken
        table = {netid: row for netid, row in table.items() if netid != 0x21}
        passing(table, untouched=True, changed={0x21})
    assert reads == [] or rig.variant == "legacy"  # legacy chains that come or go cannot be told from others'
    assert not Pass(rig)(table).wrote
    assert passing.faults(table) == set()


def drift(rig: Rig, kind: str) -> None:
    """What somebody does to a node."""
    if rig.fake is not None:
        nat = rig.fake.nat
        {
            "snat": lambda: nat.flush("nat6", "HAWSE-SNAT"),
            "jump": lambda: nat.flush("nat6", PARENT),
            "guard": lambda: nat.flush("filter6", "HAWSE-GUARD"),
            "address": lambda: rig.fake and rig.fake.links.take_away(SIX),
            "flow": lambda: rig.fake and rig.fake.flows.wipe(),
        }[kind]()
        return
    tool = f"ip6tables-{rig.variant}"
    commands = {
        "snat": (tool, "-t", "nat", "-F", "HAWSE-SNAT"),
        "jump": (tool, "-t", "nat", "-D", PARENT, "1"),
        "guard": (tool, "-F", "HAWSE-GUARD"),
        "address": ("ip", "address", "del", f"{SIX}/64", "dev", rig.interface),
        "flow": (
            "ovs-ofctl",
            "-O",
            "OpenFlow13",
            "--strict",
            "del-flows",
            "br0",
            "table=100,priority=100,ipv6,reg0=0x10",
        ),
    }
    run(*commands[kind])


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("snat", FaultKind.SNAT_MISSING),
        ("jump", FaultKind.JUMP_MISSING),
        ("guard", FaultKind.RULE_MISSING),
        ("address", FaultKind.ADDRESS_MISSING),
        ("flow", FaultKind.FLOW_MISSING),
    ],
)
def test_drift_is_named_and_put_back(rig: Rig, kind: str, fault: FaultKind) -> None:
    passing = Pass(rig)
    passing(PAIR | ALONE)
    drift(rig, kind)
    assert fault in passing.faults(PAIR | ALONE)
    assert passing(PAIR | ALONE).wrote
    assert passing.faults(PAIR | ALONE) == set()
    assert not passing(PAIR | ALONE).wrote


def test_what_cannot_be_held_is_refused_and_dropped_and_the_rest_goes_on(rig: Rig) -> None:
    table = PAIR | row(0x21, (NEIGHBOUR_SIX, NODE)) | row(0x22, (ip_address("2001:db8:9::1"), NODE))
    table |= row(0x23, (NODE_SIX, NODE)) | row(0x24, (ip_address("2001:db8::40"), NODE))
    table |= row(0x25, (ip_address("2001:db8::"), NODE))
    passing = Pass(rig)
    assert passing.refusals(table) == {
        str(NEIGHBOUR_SIX): "AddressInUse",
        "2001:db8:9::1": "AddressOutsideSubnet",
        str(NODE_SIX): "AddressIsNodeIP",
        "2001:db8::40": "AddressForeign",
        "2001:db8::": "AddressOutsideSubnet",
    }
    flows = {flow.match: flow.actions for flow in rig.node.flows.read().flows}
    assert all(flows[f"ipv6,reg0={netid:#x}"] == "drop" for netid in range(0x21, 0x26))
    assert "pkt_mark" in flows["ipv6,reg0=0x10"]
    assert rig.node.links.read() == {A, SIX}


def test_without_the_chain_in_ip6tables_ipv6_is_refused_and_ipv4_goes_on(rig: Rig) -> None:
    if rig.fake is not None:
        del rig.fake.nat._chains["nat6", PARENT]
    else:
        run(f"ip6tables-{rig.variant}", "-t", "nat", "-F")
        run(f"ip6tables-{rig.variant}", "-t", "nat", "-X", PARENT)
    passing = Pass(rig)
    for untouched in (False, True):
        result = passing(PAIR, untouched=untouched)
        assert {claim.address: (claim.held, claim.reason) for claim in result.claims} == {
            A: (True, ""),
            SIX: (False, "ChainMissing"),
        }
    assert rig.node.links.read() == {A}


@pytest.mark.parametrize("what", ["read", "written"])
def test_an_ip6tables_that_fails_keeps_only_ipv6_out(
    rig: Rig, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing, before = Pass(rig), PAIR if what == "read" else row(0x10, (A, NODE))
    passing(before)
    tool = tmp_path / f"ip6tables-{rig.variant}-{'save' if what == 'read' else 'restore'}"
    if rig.fake is not None:
        rig.fake.nat.six_cannot_be.add(what)
    else:
        tool.write_text("#!/bin/sh\necho 'no such extension' >&2\nexit 2\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for _ in range(2):
        result = passing(PAIR | FOUR | ALONE)
        assert {claim.address: claim.reason for claim in result.claims} == {
            A: "",
            next(hop.address for hop in FOUR[0x12].hops): "",
            SIX: "Ip6tablesFailed",
            SIX_TOO: "Ip6tablesFailed",
        }
        flows = {flow.match: flow.actions for flow in rig.node.flows.read().flows}
        assert all("pkt_mark" in flows[f"ip,reg0={netid:#x}"] for netid in (0x10, 0x12))
        assert {flows[f"ipv6,reg0={netid:#x}"] for netid in (0x10, 0x11, 0x12)} == {"drop"}
        assert not any(address.version == 6 for address in rig.node.links.read())
    if rig.fake is not None:
        rig.fake.nat.six_cannot_be.clear()
    else:
        tool.unlink()
    assert all(claim.held for claim in passing(PAIR | FOUR | ALONE).claims)
    assert passing.faults(PAIR | FOUR | ALONE) == set()


def test_an_ip6tables_that_cannot_be_read_cuts_nothing_of_ipv4_though_all_else_fails(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The retreat leaves what is known to be right."""
    passing = Pass(rig)
    passing(PAIR)
    if rig.fake is not None:
        rig.fake.nat.six_cannot_be.add("read")
    else:
        tool = tmp_path / f"ip6tables-{rig.variant}-save"
        tool.write_text("#!/bin/sh\nexit 2\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def fails(*_: object) -> None:
        raise IptablesFailed("no")

    monkeypatch.setattr(type(rig.node.nat), "apply", fails)
    with pytest.raises(IptablesFailed):
        passing(PAIR | FOUR)
    flows = {flow.match: flow.actions for flow in rig.node.flows.read().flows}
    assert "pkt_mark" in flows["ip,reg0=0x10"]
    assert flows["ipv6,reg0=0x10"] == flows["ip,reg0=0x12"] == "drop"


def test_without_an_ipv6_network_of_the_pods_ipv6_is_refused_and_ipv4_goes_on(rig: Rig) -> None:
    passing = Pass(rig, replace(LAYOUT, cluster_networks=LAYOUT.cluster_networks[:1]))
    passing(FOUR)
    for table in (FOUR | PAIR, PAIR):
        result = passing(table, untouched=True)
        assert [claim.reason for claim in result.claims if not claim.held] == ["NoClusterNetwork"]
    flows = {flow.match: flow.actions for flow in rig.node.flows.read().flows}
    assert flows.keys() == {"ip,reg0=0x10", "ipv6,reg0=0x10"}
    assert flows["ipv6,reg0=0x10"] == "drop"


def test_what_a_node_holds_is_known_without_a_table(rig: Rig) -> None:
    Pass(rig)(PAIR | ALONE)
    _, claims = Pass(rig).programmer.holds()
    assert {(claim.address, claim.netid) for claim in claims} == {(A, 0x10), (SIX, 0x10), (SIX_TOO, 0x11)}


@pytest.mark.parametrize("fails", ["apply", "read"])
def test_where_rules_fail_what_stands_goes_on_and_the_rest_drops(rig: Rig, fails: str) -> None:
    passing = Pass(rig)
    passing(PAIR)

    def failing(*_: object, **__: object) -> None:
        raise IptablesFailed("another app holds the lock")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.node.nat, fails, failing)
        with pytest.raises(IptablesFailed):
            passing(PAIR | ALONE | CLOSED)
    flows = {flow.match: flow.actions for flow in rig.node.flows.read().flows}
    goes_on = fails == "apply"  # what cannot be read counts as gone
    assert all(("pkt_mark" in flows[f"{version},reg0=0x10"]) == goes_on for version in ("ip", "ipv6"))
    assert all(flows[f"{version},reg0={netid}"] == "drop" for version in ("ip", "ipv6") for netid in ("0x11", "0x14"))
    passing(PAIR | ALONE | CLOSED)
    assert passing.faults(PAIR | ALONE | CLOSED) == set()


def test_a_node_whose_ip_is_ipv6_holds_both_too(request: pytest.FixtureRequest) -> None:
    netns = request.getfixturevalue("netns")
    need("ip6tables-nft-restore")
    request.getfixturevalue("open_vswitch")
    run("iptables-nft-restore", stdin=FOREIGN_RULES)
    run("ip6tables-nft-restore", stdin=FOREIGN_SIX)
    add_link(netns, "eth0", traffic=True)
    node = open_node(NODE_SIX, LAYOUT)
    facts = node.links.facts()
    assert (facts.prefix_length, facts.other_ips) == (64, (ip_interface(f"{NODE_IP}/24"),))
    passing = Pass(Rig(node, None, "nft", "eth0"))
    assert all(claim.held for claim in passing(PAIR | FOUR).claims)
    assert passing.faults(PAIR | FOUR) == set()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Notes the name of each ip6tables tool that is started, in a file."""
    log, folder = tmp_path / "started", tmp_path / "bin"
    folder.mkdir()
    for tool in ("save", "restore"):
        for name in (f"ip6tables-{tool}", f"ip6tables-nft-{tool}", f"ip6tables-legacy-{tool}"):
            script = folder / name
            script.write_text(f'#!/bin/sh\necho {name} >> {log}\nexec /usr/sbin/{name} "$@"\n')
            script.chmod(0o755)
    log.touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return log


def test_a_node_without_ipv6_addresses_starts_no_ip6tables(rig: Rig, started: Path) -> None:
    passing = Pass(rig)
    legacy = rig.variant == "legacy"  # it cannot be asked for a chain, so it is read once
    passing(FOUR | ELSEWHERE)
    assert started.read_text().split() == ["ip6tables-legacy-save"] * legacy
    passing(FOUR | CLOSED)
    passing(FOUR)
    assert started.read_text().split() == ["ip6tables-legacy-save"] * legacy
    passing(FOUR | PAIR)
    passing(FOUR)
    before = started.read_text() if rig.fake is None else ""
    passing(FOUR)
    passing(FOUR)
    assert started.read_text().count("save") - before.count("save") <= legacy  # until it was seen to hold nothing
    assert not any(version_of(table) == 6 for table, _ in rig.node.nat.read(six=True).own)
