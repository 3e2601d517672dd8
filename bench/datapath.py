"""What a node's rules cost its packets: new connections out of the cluster, and to the node, by the node's addresses.

A pod, a node and a host outside are network namespaces on this machine's kernel; the node has real iptables. A rule in
table mangle marks the packets in place of Open vSwitch, whose kernel module most build machines lack: what the flow
costs does not depend on the number of addresses. The floor is one rule that translates, and nothing else. Beside it the
same addresses in linear chains, as OpenShift SDN lays them out.

All take turns, each with one of its addresses after another, so that a busy machine is as busy for all of them. A
measured value is the least of some batches: whatever else runs only ever adds. Two nodes alike differ by 1 us a
connection and more, for as long as they are there: so they are made anew some times, and each figure is of all of them.

That is not fine enough for a ratio of one in fifty. For it two nodes take turns, one with an address and one with all;
then they change roles, and what they differ by is out of the mean of the two ratios.
"""

from __future__ import annotations

import gc
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from statistics import geometric_mean, median
from typing import NamedTuple

from bench.rows import Row, row_of
from egress.addresses import Address, assign_marks
from egress.delta import rule_change
from egress.program import Layout
from egress.rules import rules_of
from lab.host_datapath import Datapath, missing
from lab.host_node import PARENT, run
from node_runner.drivers.nat import Iptables, Variant

SIZES = (1, 100, 1_000, 4_000)
ROUNDS, ADDRESSES, BATCHES = 3, 5, 16
"""How often the nodes are made, with how many of its addresses each is measured, and of how many batches the least
counts."""
PAIRS, CHANGES, TURNS = 4, 4, 40
"""For the ratios: how many pairs of nodes are made, how often each changes roles and goes back, and of how many batches
the least counts."""
CONNECTIONS, DATAGRAMS = 16, 40
GOAL = 1.02
_WHY = (
    "of its eight packets one walks HAWSE-SNAT and one HAWSE-PASS, each past 13.5 rules more than with one address; "
    "perf, of 68 such rules: 0.3 to 0.5 us with nft, 1.1 us with legacy, half in mark_mt and half in ipt_do_table, for "
    "each is a call and three lines of cache; the rest is rules that come from beyond the first two caches"
)
_WHY_TO_NODE = (
    "its first packet walks HAWSE-REJECT, past 13.5 rules more; perf: 0.1 us; the rest is what nodes alike differ by"
)
_FIRST = int(IPv4Address("192.168.16.1"))


class Chains(StrEnum):
    """How a node's rules are laid out."""

    FLOOR = "one rule"
    TREES = "trees"
    LINEAR = "linear"


Key = tuple[Chains, int]
"""A layout and how many addresses."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node with the rules of `marks`."""

    datapath: Datapath
    marks: Mapping[Address, int]


class Times(NamedTuple):
    """Microseconds: a connection out of the cluster, the datagram that begins one, a connection to the node."""

    connection: float
    datagram: float
    request: float


class Ratios(NamedTuple):
    """A connection out of the cluster and one to the node, with many addresses by one with few."""

    connection: float
    request: float


def rows() -> Iterator[Row | str]:
    """For each variant of iptables and each size: connections a second, and what the rules add to each."""
    for variant in Variant:
        lack = missing() or ("" if shutil.which(f"iptables-{variant}-restore") else f"there is no iptables-{variant}")
        if lack:
            yield f"{variant} is not measured: {lack}"
            continue
        times: dict[Key, list[Times]] = {key: [] for key in _keys()}
        dice = random.Random(1)  # noqa: S311 - which addresses are measured is no secret
        for _ in range(ROUNDS):
            with ExitStack() as stack:
                found = _measured({key: _node(variant, key, stack) for key in _keys()}, dice)
            for key, values in found.items():
                times[key] += values
        yield from _rows(variant, times)
        yield from _ratios(variant, dice)


def _keys() -> Iterator[Key]:
    yield Chains.FLOOR, 1
    for size in SIZES:
        yield Chains.TREES, size
        yield Chains.LINEAR, size


def _node(variant: Variant, key: Key, stack: ExitStack) -> Node:
    layout, size = key
    marks = assign_marks(IPv4Address(_FIRST + number) for number in range(size))
    datapath = Datapath(variant)
    stack.callback(datapath.close)
    with datapath.node:
        if layout == Chains.TREES:
            iptables = Iptables(PARENT, variant)
            iptables.apply(rule_change(rules_of(marks, Layout()), iptables.read()))
        else:
            run(f"iptables-{variant}-restore", "--noflush", stdin=_plain(marks, reject=layout == Chains.LINEAR))
    return Node(datapath, marks)


def _plain(marks: Mapping[Address, int], *, reject: bool) -> str:
    """For each address a rule that translates and, with `reject`, one that rejects new connections to it."""
    nat = [
        f"-I {PARENT} 1 -s 10.128.0.0/14 -m mark --mark {mark:#x} -j SNAT --to-source {address}"
        for address, mark in marks.items()
    ]
    rejecting = [f"-A INPUT -d {address} -m conntrack --ctstate NEW -j REJECT" for address in marks if reject]
    return "\n".join(["*nat", *nat, "COMMIT", "*filter", *rejecting, "COMMIT", ""])


def _measured(nodes: Mapping[Key, Node], dice: random.Random) -> dict[Key, list[Times]]:
    times: dict[Key, list[Times]] = {key: [] for key in nodes}
    order = list(nodes)
    gc.disable()
    try:
        for _ in range(ADDRESSES):
            where = dice.random()
            used = {key: list(node.marks)[int(where * len(node.marks))] for key, node in nodes.items()}
            for key, node in nodes.items():
                node.datapath.use(used[key], node.marks[used[key]])
            batches: dict[Key, list[Times]] = {key: [] for key in nodes}
            for number in range(BATCHES):
                dice.shuffle(order)
                for key in order:
                    batches[key].append(_batch(nodes[key].datapath, used[key], number))
            for key, found in batches.items():
                times[key].append(Times(*(min(values) for values in zip(*found, strict=True))))
    finally:
        gc.enable()
    return times


def _batch(datapath: Datapath, address: Address, number: int) -> Times:
    return Times(
        datapath.connections(CONNECTIONS, address) * 1e6,
        datapath.datagrams(DATAGRAMS, 1024 + number * DATAGRAMS) * 1e6,
        datapath.requests(CONNECTIONS) * 1e6,
    )


def _rows(variant: Variant, times: Mapping[Key, list[Times]]) -> Iterator[Row]:
    floor = Times(*(median(values) for values in zip(*times[Chains.FLOOR, 1], strict=True)))
    for layout, label in ((Chains.TREES, variant.value), (Chains.LINEAR, f"{variant}, linear chains")):
        for size in SIZES:
            rates = [1e6 / each.connection for each in times[layout, size]]
            name = f"new connections, {label}"
            yield row_of(name, size, "1/s", rates, floor=1e6 / floor.connection, more_is_better=True)
    for layout, label in ((Chains.TREES, variant.value), (Chains.LINEAR, f"{variant}, linear chains")):
        for size in SIZES:
            added = [each.connection - floor.connection for each in times[layout, size]]
            yield row_of(f"added to a connection, {label}", size, "us", added)
        for size in SIZES:
            added = [each.datagram - floor.datagram for each in times[layout, size]]
            yield row_of(f"added to a connection's first packet, {label}", size, "us", added)
        for size in SIZES:
            added = [each.request - floor.request for each in times[layout, size]]
            yield row_of(f"added to a connection to the node, {label}", size, "us", added)


def _ratios(variant: Variant, dice: random.Random) -> Iterator[Row]:
    """What a connection costs with all addresses, by what it costs with one."""
    marks = assign_marks(IPv4Address(_FIRST + number) for number in range(SIZES[-1]))
    out, to_node = [], []
    for _ in range(PAIRS):
        with closing(Datapath(variant)) as first, closing(Datapath(variant)) as second:
            tools = {datapath: Iptables(PARENT, variant) for datapath in (first, second)}
            for _ in range(CHANGES):
                address = dice.choice(list(marks))
                both = [_by_turns(tools, few, many, marks, address) for few, many in ((first, second), (second, first))]
                out.append(geometric_mean(each.connection for each in both))
                to_node.append(geometric_mean(each.request for each in both))
    name = f"connection at {SIZES[-1]:,} by one at 1, {variant}"
    yield row_of(name, SIZES[-1], "ratio", out, goal=GOAL, why=_WHY)
    name = f"connection to the node, the same, {variant}"
    yield row_of(name, SIZES[-1], "ratio", to_node, goal=GOAL, why=_WHY_TO_NODE)


def _by_turns(
    tools: Mapping[Datapath, Iptables], few: Datapath, many: Datapath, marks: Mapping[Address, int], address: Address
) -> Ratios:
    for datapath, wanted in ((few, {address: marks[address]}), (many, marks)):
        with datapath.node:
            tools[datapath].apply(rule_change(rules_of(wanted, Layout()), tools[datapath].read()))
        datapath.use(address, marks[address])
    out: dict[Datapath, list[float]] = {few: [], many: []}
    to_node: dict[Datapath, list[float]] = {few: [], many: []}
    gc.disable()
    try:
        for number in range(TURNS):
            for datapath in (few, many) if number % 2 else (many, few):
                out[datapath].append(datapath.connections(CONNECTIONS, address))
                to_node[datapath].append(datapath.requests(CONNECTIONS))
    finally:
        gc.enable()
    return Ratios(min(out[many]) / min(out[few]), min(to_node[many]) / min(to_node[few]))
