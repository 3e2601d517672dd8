"""What keeps a node fail-closed when it cannot be programmed. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from egress.addresses import VERSIONS, Address
from egress.delta import FlowChange, Found, RulesFound, dropping, mark_in, snat_rules, traffic_of
from egress.program import Flow, Group, Layout, by_version, flow_of
from egress.rules import SPINE_CHAINS, Rule, branches_of, leaves_of, rules_of, tail_of, version_of
from egress.table import Steering

_TUNNEL_TARGET = re.compile(r"set_field:([0-9A-Fa-f.:]+)->tun_(?:ipv6_)?dst")
_MARK_MATCH = re.compile(r"--mark (0x[0-9a-f]+)(?![0-9a-f/])")


def retreat(table: Iterable[Steering], node: str, found: Found, layout: Layout) -> FlowChange:
    """The drops that need no fact of the node but its flows.

    Every row gets one, unless a flow of ours drops it already, steers it to nodes that the row steers it to, or hands
    its packets to the address that the row gives `node`, all of whose rules stand. So does any other flow of ours that
    hands packets to an address. Where addresses and rules could not be read, `found` is without them: then no rule
    counts as standing.
    """
    rows = list(table)
    given = {((row.netid, hop.address.version), hop.address) for row in rows for hop in row.hops if hop.node == node}
    carrying = {mark: address for address, mark in _whole(found.rules, layout).items() if address in found.addresses}
    steered = {
        (row.netid, version): frozenset(str(hop.node_ip) for hop in hops if hop.acknowledged and hop.node != node)
        for row in rows
        for version, hops in by_version(row, layout)
    }
    groups = {group.group_id: group for group in found.groups}
    sound: set[tuple[int, int, str]] = set()
    drops: dict[tuple[int, int, str], Flow] = {}
    for flow in found.flows:
        mark = mark_in(flow)
        if mark is None:
            good = flow.actions == "drop" or _targets(flow, groups) <= steered.get(traffic_of(flow), frozenset())
        else:
            good = (traffic_of(flow), carrying.get(mark)) in given
            if not good:
                drops[flow.key] = dropping(flow)
        if good:
            sound.add(flow.key)
    for netid, version in steered:
        drop = flow_of(netid, version, "drop", layout)
        if drop.key not in sound and drop.key not in found.foreign_flows:
            drops[drop.key] = drop
    return FlowChange(add=tuple(sorted(drops.values())))


def _targets(flow: Flow, groups: Mapping[int, Group]) -> frozenset[str]:
    """The nodes' IPs that a steering flow sends packets to; an empty text among them where that is not known."""
    text = flow.actions
    if text.startswith("group:"):
        group = groups.get(int(text.removeprefix("group:")))
        text = " ".join(group.buckets) if group is not None else ""
    return frozenset(_TUNNEL_TARGET.findall(text)) or frozenset({""})


def _whole(found: RulesFound, layout: Layout) -> dict[Address, int]:
    """Of `found.marks`, the addresses whose rules all stand, with all that leads to them and nothing in between."""
    marks = found.marks
    rules = rules_of(marks, layout)
    broken = {
        version_of(jump.table)
        for jump in rules.jumps
        if found.parents.get((jump.table, jump.chain), ())[:1] != (jump.spec,)
    }
    broken |= {version_of(key[0]) for key in SPINE_CHAINS if found.own.get(key, ()) != rules.chains.get(key, ())}
    # A chain without its last rule lets packets by that another chain should see.
    there = {
        Rule(table, chain, spec)
        for (table, chain), specs in found.own.items()
        for spec in specs
        if specs[-1] == (tail_of(table, chain) or specs[-1])
    }
    by_mark = {version: Counter(_MARK_MATCH.findall(" ".join(snat_rules(found, version)))) for version in VERSIONS}
    return {
        address: mark
        for address, mark in marks.items()
        if address.version not in broken
        and leaves_of(address, mark, layout) | branches_of(address, mark) <= there
        and by_mark[address.version][f"{mark:#x}"] == len(layout.networks(address.version))
    }
