"""How long placement takes: from nothing, for one more, and for a lost node; and how that grows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

from bench.rows import Row, milliseconds, row_of
from egress.addresses import Address
from egress.board import EGRESS_LABEL, Candidate, Unplaced
from egress.hosting import Resident, hosting
from egress.moves import next_move
from egress.objects import EgressAddress, EgressPool, HostSubnet, NetNamespace
from egress.placement import place

NODES, ZONES, POOLS = 300, 3, 4
SIZES = (1_000, 3_000, 10_000)
FROM_NOTHING_MS, ONE_MORE_MS = 1000.0, 20.0
RUNS_FROM_NOTHING, RUNS_ONE_MORE = 5, 30
_FIRST = int(IPv4Address("10.0.0.0"))


def rows() -> Iterator[Row]:
    """See Row. Everything is measured with pools that use all there is: a topologyKey and a limit for each node."""
    for size in SIZES:
        yield from _of(size)


def _of(size: int) -> Iterator[Row]:
    items, nodes, siblings = _items(size), _nodes(), _siblings(_items(size + 1))
    goal = FROM_NOTHING_MS if size == SIZES[-1] else 0.0
    floor = _floor(items, nodes)
    times = milliseconds(lambda: place(items, nodes, siblings), RUNS_FROM_NOTHING)
    yield row_of("placement from nothing, 300 nodes", size, "ms", times, floor=floor, goal=goal)

    placement = place(items, nodes, siblings)
    hosted: dict[str, set[Address]] = {node.name: set() for node in nodes}
    for address, name in placement.nodes.items():
        hosted[name].add(address)
    full = [replace(node, hosted=frozenset(hosted[node.name])) for node in nodes]
    loads = [len(addresses) for addresses in hosted.values()]
    yield row_of("placement imbalance, 300 nodes", size, "count", [max(loads) - min(loads)], goal=1.0)

    one = _items(size + 1)[-1:]
    goal = ONE_MORE_MS if size == SIZES[-1] else 0.0
    times = milliseconds(lambda: place(one, full, siblings), RUNS_ONE_MORE)
    yield row_of("placement of one more, 300 nodes", size, "ms", times, floor=_floor(one, full), goal=goal)

    lost = full[0]
    moving = [item for item in items if placement.nodes[item.address] == lost.name]
    left = [replace(lost, barred="lost", gone=True, hosted=frozenset()), *full[1:]]
    times = milliseconds(lambda: place(moving, left, siblings), RUNS_ONE_MORE)
    yield row_of("placement of a lost node's, 300 nodes", size, "ms", times, floor=_floor(moving, left))

    residents = [Resident(item, placement.nodes[item.address]) for item in items]
    times = milliseconds(lambda: next_move(residents, full, siblings, balance=True), RUNS_FROM_NOTHING)
    yield row_of("placement finds nothing to move, 300 nodes", size, "ms", times)

    claims = [
        EgressAddress(str(item.address), item.pool.name, item.namespace, "") for item in items if item.pool is not None
    ]
    pools = {item.pool.name: item.pool for item in items if item.pool is not None}
    subnets = [HostSubnet(node.name, str(node.link), tuple(map(str, sorted(node.hosted, key=int)))) for node in full]
    bound = [NetNamespace(name, 1, tuple(map(str, addresses))) for name, addresses in siblings.items()]
    times = milliseconds(lambda: hosting(claims, subnets, bound, pools.values()), RUNS_FROM_NOTHING)
    yield row_of("placement reads what objects say, 300 nodes", size, "ms", times)


def _floor(items: list[Unplaced], nodes: list[Candidate]) -> float:
    """What it costs only to sort the addresses and deal them out to the nodes in turn."""

    def deal() -> dict[Address, str]:
        ordered = sorted(items, key=lambda item: int(item.address))
        turn = itertools.cycle(sorted(node.name for node in nodes))
        return {item.address: next(turn) for item in ordered}

    return min(milliseconds(deal, RUNS_ONE_MORE))


def _items(size: int) -> list[Unplaced]:
    """Namespaces with one address each, but every tenth with two; over some pools of one network."""
    share = -(-SIZES[-1] // POOLS) + 2
    pools = [
        EgressPool(
            f"pool{number}",
            (f"{IPv4Address(_FIRST + 1024 + number * share)}-{IPv4Address(_FIRST + 1024 + (number + 1) * share - 1)}",),
            topology_key="zone",
            max_addresses_per_node=200,
        )
        for number in range(POOLS)
    ]
    items = []
    for number in range(size):
        namespace = f"ns{number - 1 if number % 10 == 9 else number}"
        items.append(Unplaced(IPv4Address(_FIRST + 1024 + number), namespace, pools[number // share]))
    return items


def _nodes() -> list[Candidate]:
    return [
        Candidate(
            f"node{number:03}",
            {EGRESS_LABEL: "", "zone": f"zone{number % ZONES}"},
            link=IPv4Interface(f"{IPv4Address(_FIRST + 1 + number)}/16"),
        )
        for number in range(NODES)
    ]


def _siblings(items: list[Unplaced]) -> dict[str, list[Address]]:
    siblings: dict[str, list[Address]] = {}
    for item in items:
        siblings.setdefault(item.namespace, []).append(item.address)
    return siblings
