"""Packets through the rules of a node, with either iptables and of either IP version, on the host's own kernel: that of
the lab, on which the end-to-end tests run, has no nf_tables."""

from __future__ import annotations

import socket
from contextlib import closing
from ipaddress import ip_address, ip_network

import pytest

from egress.addresses import assign_marks
from egress.delta import rule_change
from egress.program import Layout
from egress.rules import RuleSet, rules_of
from lab.host_datapath import LINKS, Datapath
from lab.host_node import PARENT
from node_runner.drivers.nat import Iptables

from .conftest import need

LAYOUT = Layout(tuple(ip_network(LINKS[version].cluster) for version in (4, 6)))
ADDRESSES = {
    4: (ip_address("192.168.16.1"), ip_address("192.168.16.2")),
    6: (ip_address("fd00:192:168::101"), ip_address("fd00:192:168::102")),
}
NOBODYS_MARK = 0x7


@pytest.mark.parametrize("version", ADDRESSES)
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_each_mark_leaves_with_its_address(variant: str, version: int) -> None:
    need(f"iptables-{variant}-restore", f"ip6tables-{variant}-restore")
    marks = assign_marks(ADDRESSES[version])
    with closing(Datapath(variant, version)) as datapath:
        iptables = Iptables(PARENT, variant)
        # `use` returns once a connection has come from the address, and fails if none does.
        datapath.use(datapath.link.node, NOBODYS_MARK)
        with datapath.node:
            iptables.apply(rule_change(rules_of(marks, LAYOUT), iptables.read(six=version == 6)))
        for address, mark in marks.items():
            datapath.use(address, mark)
        datapath.use(datapath.link.node, NOBODYS_MARK)
        with datapath.node:
            iptables.apply(rule_change(RuleSet(), iptables.read(six=version == 6)))
        datapath.use(datapath.link.node, marks[ADDRESSES[version][0]])


def test_a_connection_that_came_late_is_not_taken_for_the_next_one() -> None:
    with closing(Datapath("nft")) as datapath:
        datapath.use(datapath.link.node, NOBODYS_MARK)
        with datapath._pod, socket.create_connection((str(datapath.link.neighbour), 80)):
            pass  # its server has not accepted it
        datapath.connections(2, datapath.link.node)
