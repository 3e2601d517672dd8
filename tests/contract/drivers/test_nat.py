"""iptables alone: which variant, what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from egress.delta import RuleChange, RulesFound, rule_change
from egress.program import Layout
from egress.rules import RuleSet, rules_of
from lab.fakes.node import FakeNat, fake_node
from node_runner.commands import printed
from node_runner.drivers import nat as nat_driver
from node_runner.drivers.errors import ChainMissing, Ip6tablesFailed, IptablesFailed
from node_runner.drivers.nat import Iptables, Variant
from node_runner.drivers.ports import Nat

from .conftest import FOREIGN_RULES, NODE, PARENT, Netns, need, program_of, run

RULES = program_of(fake_node().node, (1, [("192.168.1.102", NODE)])).rules
MORE = program_of(
    fake_node().node, *((number, [(f"192.168.1.{number}", NODE)]) for number in (102, 103, 119, 250))
).rules
LESS = RuleSet()
DUAL = Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv6Network("fd01::/48")))
RULES_SIX = rules_of({IPv6Address("2001:db8::102"): 0x66}, DUAL)


@pytest.fixture(params=["fake", "nft", "legacy"])
def nat(request: pytest.FixtureRequest) -> Nat:
    """A node without the masquerade chain."""
    if request.param == "fake":
        return FakeNat(present=False)
    request.getfixturevalue("netns")
    need(f"iptables-{request.param}-restore")
    run(
        f"iptables-{request.param}-restore", stdin="*filter\n:INPUT ACCEPT\nCOMMIT\n*nat\n:POSTROUTING ACCEPT\nCOMMIT\n"
    )
    return Iptables(variant=request.param)


def test_a_missing_chain_names_the_setting(nat: Nat) -> None:
    assert ("nat", PARENT) not in nat.read().parents
    with pytest.raises(ChainMissing, match="masquerade chain"):
        nat.apply(rule_change(RULES, nat.read()))
    assert not any(key[0] == "nat" for key in nat.read().own)


def test_a_chain_that_only_ip6tables_lacks_is_named_as_its(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("netns")
    need("iptables-nft-restore", "ip6tables-nft-restore")
    run("iptables-nft-restore", stdin=FOREIGN_RULES)
    nat = Iptables(variant="nft")
    with pytest.raises(Ip6tablesFailed, match="table nat of nft ip6tables"):
        nat.apply(rule_change(RULES_SIX, nat.read(six=True)))
    nat.apply(rule_change(RULES, nat.read()))  # IPv4 goes on


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.usefixtures("netns")
def test_ip6tables_is_read_where_asked_for_or_where_rules_of_ours_are_there(variant: Variant) -> None:
    need(f"ip6tables-{variant}-restore")
    run(f"iptables-{variant}-restore", stdin=FOREIGN_RULES)
    run(f"ip6tables-{variant}-restore", stdin=FOREIGN_RULES.replace("10.128.0.0/14", "fd01::/48"))
    nat = Iptables(variant=variant)
    assert ("nat6", PARENT) in nat.read(six=True).parents
    assert not Iptables(variant="nft" if variant == "legacy" else "legacy").read(six=True).own
    if variant is Variant.LEGACY:
        assert ("nat6", PARENT) in Iptables(variant=variant).read().parents  # it might hold some
    assert ("nat6", PARENT) not in nat.read().parents
    assert not nat.unchanged(six=True)
    nat.apply(rule_change(RULES_SIX, nat.read(six=True)))
    for again in (nat, Iptables(variant=variant)):
        found = again.read()
        assert {table for table, _ in found.own} == {"nat6", "filter6"}
        assert not rule_change(RULES_SIX, found)
        assert again.unchanged(six=True)
    run(f"ip6tables-{variant}", "-t", "nat", "-F", "HAWSE-SNAT")
    assert not nat.unchanged()
    assert rule_change(RULES_SIX, nat.read())


@pytest.mark.usefixtures("netns")
def test_asking_makes_no_legacy_tables_of_ip6tables() -> None:
    need("iptables-legacy-restore")
    run("iptables-legacy-restore", stdin=FOREIGN_RULES)
    iptables = Iptables()
    assert iptables.variant() is Variant.LEGACY
    iptables.apply(rule_change(RULES, iptables.read()))
    iptables.read()
    assert iptables.unchanged()
    with open("/proc/thread-self/net/ip6_tables_names", encoding="ascii") as names:
        assert names.read() == ""


def test_a_node_without_addresses_needs_no_chain(nat: Nat) -> None:
    assert not rule_change(program_of(fake_node().node).rules, nat.read())


def test_a_deleted_rule_that_is_not_there_is_an_error_and_changes_nothing(nat: Nat) -> None:
    before = nat.read()
    script = "*filter\n:HAWSE-GUARD - [0:0]\n-D INPUT -j HAWSE-INPUT\nCOMMIT\n"
    with pytest.raises((IptablesFailed, ChainMissing)):
        nat.apply(RuleChange({"filter": script}))
    assert nat.read() == before


def test_a_change_that_was_made_ready_for_is_as_any_other(nat: Nat) -> None:
    before = nat.read()
    nat.ready()
    chain = RuleChange({"filter": "*filter\n:HAWSE-GUARD - [0:0]\n-A HAWSE-GUARD -j RETURN\nCOMMIT\n"})
    nat.ready()
    with pytest.raises((IptablesFailed, ChainMissing)):
        nat.apply(RuleChange({"filter": "*filter\n:HAWSE-GUARD - [0:0]\n-D INPUT -j HAWSE-INPUT\nCOMMIT\n"}))
    assert nat.read() == before
    nat.ready()
    nat.apply(chain)
    nat.close()
    nat.apply(RuleChange({"filter": "*filter\n-A HAWSE-GUARD -j DROP\nCOMMIT\n"}))
    assert nat.read().own == {("filter", "HAWSE-GUARD"): ("-j RETURN", "-j DROP")}


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.usefixtures("netns")
def test_the_variant_that_holds_the_chain_is_found(variant: Variant) -> None:
    need("iptables-nft-restore", "iptables-legacy-restore")
    iptables = Iptables()
    assert iptables.variant() is None
    for other in Variant:  # both have tables; one has the chain
        run(f"iptables-{other}-restore", stdin="*nat\n:POSTROUTING ACCEPT\nCOMMIT\n")
    run(f"iptables-{variant}-restore", stdin=FOREIGN_RULES)
    assert iptables.variant() is variant
    iptables.apply(rule_change(RULES, iptables.read()))
    assert "HAWSE-SNAT" in run(f"iptables-{variant}-save")


@pytest.mark.usefixtures("netns")
def test_the_first_read_finds_the_variant_and_is_the_only_process(monkeypatch: pytest.MonkeyPatch) -> None:
    need("iptables-nft-restore", "iptables-legacy-restore")
    started: list[str] = []

    def counted(argv: Sequence[str], *, timeout: float) -> str:
        started.append(argv[0])
        return printed(argv, timeout=timeout)

    monkeypatch.setattr(nat_driver, "printed", counted)
    run("iptables-legacy-restore", stdin=FOREIGN_RULES)
    iptables = Iptables()
    first = iptables.read()
    assert iptables.variant() is Variant.LEGACY
    assert started == ["iptables-legacy-save"]
    assert iptables.read() == first == Iptables(variant=Variant.LEGACY).read()
    run("iptables-legacy-restore", stdin="*nat\n:POSTROUTING ACCEPT\nCOMMIT\n")  # the chain is gone
    run("iptables-nft-restore", stdin=FOREIGN_RULES)
    assert ("nat", PARENT) not in iptables.read().parents
    assert ("nat", PARENT) in iptables.read().parents
    assert iptables.variant() is Variant.NFT


@pytest.mark.usefixtures("netns")
def test_asking_makes_no_legacy_tables() -> None:
    need("iptables-nft-restore")
    run("iptables-nft-restore", stdin=FOREIGN_RULES)
    iptables = Iptables()
    iptables.check()
    iptables.apply(rule_change(RULES, iptables.read()))
    with open("/proc/thread-self/net/ip_tables_names", encoding="ascii") as names:
        assert names.read() == ""


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.usefixtures("netns")
def test_a_jump_from_a_chain_that_is_no_longer_set_is_found_and_removed(variant: Variant) -> None:
    need(f"iptables-{variant}-restore")
    run(f"iptables-{variant}-restore", stdin=FOREIGN_RULES)
    before = Iptables(variant=variant)
    before.apply(rule_change(RULES, before.read()))
    after = Iptables("POSTROUTING", variant)
    found: RulesFound = after.read()
    assert found.parents["nat", PARENT][0] == "-j HAWSE-EGRESS"
    jumps = tuple(jump._replace(chain="POSTROUTING") if jump.table == "nat" else jump for jump in RULES.jumps)
    after.apply(rule_change(replace(RULES, jumps=jumps), found))
    found = after.read()
    assert ("nat", PARENT) not in found.parents
    assert found.parents["nat", "POSTROUTING"][0] == "-j HAWSE-EGRESS"


def test_netns_is_what_isolates(netns: Netns) -> None:
    """The suite's own promise: what it writes is not seen outside."""
    need("iptables-nft-restore")
    run("iptables-nft-restore", stdin=FOREIGN_RULES)
    outside = Netns()
    try:
        with outside:
            assert PARENT not in run("iptables-nft-save")
    finally:
        outside.close()
    assert PARENT in run("iptables-nft-save")
    del netns


@pytest.mark.parametrize("kind", ["fake", "nft", "legacy"])
def test_that_somebody_has_changed_rules_is_known_without_reading(kind: str, request: pytest.FixtureRequest) -> None:
    """Not that, but how: so a pass over a part may count on what was read, and on what it wrote itself."""
    nat: Nat = FakeNat()
    if kind != "fake":
        request.getfixturevalue("netns")
        need(f"iptables-{kind}-restore")
        run(f"iptables-{kind}-restore", stdin=FOREIGN_RULES)
        nat = Iptables(variant=kind)
    assert not nat.unchanged()  # never read
    found = nat.read()
    assert nat.unchanged()
    for wanted in (RULES, MORE, RULES, LESS, RULES):  # chains come and go
        nat.apply(rule_change(wanted, found))
        assert nat.unchanged()
        found = nat.read()
        assert nat.unchanged()
    chain, spec = next((rule.chain, rule.spec) for rule in RULES.leaves if "MASQUERADE" in rule.spec)
    nat.apply(RuleChange({"nat": f"*nat\n-D {chain} {spec}\nCOMMIT\n"}))
    nat.apply(RuleChange({"nat": f"*nat\n-A {chain} {spec}\nCOMMIT\n"}))
    assert nat.unchanged()
    if isinstance(nat, FakeNat):
        nat.flush("nat", chain)
    else:
        run(f"iptables-{kind}", "-t", "nat", "-F", chain)
    assert not nat.unchanged()
    nat.apply(RuleChange({"nat": f"*nat\n-A {chain} {spec}\nCOMMIT\n"}))
    assert not nat.unchanged()  # it knows no better for having written
    assert nat.read() == found
    assert nat.unchanged()


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.usefixtures("netns")
def test_one_process_of_each_tool_that_is_needed_stays_until_it_is_closed(variant: Variant) -> None:
    need(f"ip6tables-{variant}-restore")
    run(f"iptables-{variant}-restore", stdin=FOREIGN_RULES)
    run(f"ip6tables-{variant}-restore", stdin=FOREIGN_RULES.replace("10.128.0.0/14", "fd01::/48"))
    before = children()
    nat = Iptables(variant=variant)
    assert not (children() - before)  # nothing is started before it is needed
    nat.apply(rule_change(RULES, nat.read()))
    stays = children() - before
    assert len(stays) == 1
    nat.apply(rule_change(MORE, nat.read()))
    assert children() - before == stays
    nat.apply(rule_change(RULES_SIX, nat.read(six=True)))
    assert len(children() - before) == 2
    nat.close()
    assert children() == before
    nat.apply(rule_change(LESS, nat.read()))
    del nat
    assert children() == before


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.usefixtures("netns")
def test_one_that_stays_for_good_is_there_before_the_first_change_of_rules_that_are_ours(variant: Variant) -> None:
    need(f"iptables-{variant}-restore")
    run(f"iptables-{variant}-restore", stdin=FOREIGN_RULES)
    before = children()
    nat = Iptables(variant=variant)
    nat.read()
    assert children() == before  # a node without egress addresses has no use for it
    Iptables(variant=variant).apply(rule_change(RULES, nat.read()))
    nat.read()
    stays = children() - before
    assert len(stays) == (variant is Variant.NFT)
    nat.read()
    nat.apply(rule_change(MORE, nat.read()))
    assert children() - before >= stays
    nat.close()
    assert children() == before


def children() -> set[str]:
    return set(Path("/proc/thread-self/children").read_text().split())
