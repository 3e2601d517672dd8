"""As many addresses as a node may have: packets get each its own, and nothing is written twice."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from egress.addresses import assign_marks
from egress.delta import rule_change
from egress.program import Layout
from egress.rules import RuleSet, rules_of
from lab.host_datapath import Datapath
from lab.model.traffic import translation
from node_runner.drivers.nat import Iptables, Variant

from .conftest import need, run

MANY = 4_000
FIRST = int(IPv4Address("192.168.60.1"))
"""From here on the third octet comes to have kube-proxy's bits: some marks are not the address."""


@pytest.fixture(params=list(Variant))
def variant(request: pytest.FixtureRequest) -> Variant:
    """Which iptables the node has."""
    found: Variant = request.param
    return found


@pytest.fixture
def datapath(variant: Variant) -> Iterator[Datapath]:
    """A pod, a node and a neighbour; the test runs on the node."""
    need("ip", f"iptables-{variant}-restore")
    made = Datapath(variant)
    try:
        with made.node:
            yield made
    finally:
        made.close()


def test_four_thousand_addresses(datapath: Datapath, variant: Variant) -> None:
    iptables = Iptables(variant=variant)
    before = iptables.read()
    marks = assign_marks(IPv4Address(FIRST + number) for number in range(MANY))
    rules = rules_of(marks, Layout())
    iptables.apply(rule_change(rules, before))
    there = iptables.read()
    assert not rule_change(rules, there)
    assert there.marks == marks
    assert max(len(specs) for specs in there.own.values()) < 150, "no chain is long"

    (network,) = Layout().cluster_networks
    assert all(translation(there.own, mark, network) == address for address, mark in marks.items())
    for number in (0, 1_234, MANY - 1):  # the kernel agrees
        address = IPv4Address(FIRST + number)
        datapath.use(address, marks[address])
    datapath.use(datapath.link.node, 0x63)  # no address has this mark

    gone = marks.popitem()[0]
    fewer = rule_change(rules_of(marks, Layout()), there)
    assert len(str(fewer).splitlines()) < 30, "one address less touches its own rules"
    iptables.apply(fewer)
    assert iptables.read().marks == marks
    assert str(gone) not in run(f"iptables-{variant}-save")

    iptables.apply(rule_change(RuleSet(), iptables.read()))
    assert iptables.read() == before
