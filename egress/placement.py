"""Which node hosts which address. Pure and deterministic: the same input gives the same output, in whatever order.

The objective, each part only where those before it leave a choice:

1. Only eligible nodes, and of these the reluctant ones (`Candidate.reluctant`) only for what no other takes. A node is
   eligible for an address when it takes new addresses at all (`Candidate.barred`), the
   pool selects it (by its nodeSelector, or without one by the label `egress.hawse.dev/egress-node`; an address of no
   pool goes by the nodes' egressCIDRs), a subnet of its link holds the address, it has room (the pool's
   maxAddressesPerNode, which counts the pool's own addresses alone, and what the cloud lets the node have), and it
   hosts no other address of the namespace and the IP version.
2. What is hosted stays.
3. As many addresses as can be get a node.
4. A namespace's addresses of one IP version are spread over the values of the pool's topologyKey.
5. A node with fewer addresses, of whatever pool, comes first.
6. The pool's addresses are spread over the values of its topologyKey; then the node's name decides.

From nothing, two nodes that are eligible for the same addresses and have the same room differ by one address at most,
unless 4 wants it otherwise. For part 3, addresses of the same call are moved out of each other's way. That finds room
wherever there is any, if each namespace has one address and each node one limit; otherwise, and beyond `ATTEMPTS`, an
address may stay without a node though an arrangement exists. docs/decisions/0015-placement.md has the reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from egress.addresses import Address
from egress.board import Board, Candidate, Unplaced, without_reluctant

NO_WISHES: Mapping[Address, str] = {}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each address goes, and for each that goes nowhere, why."""

    nodes: Mapping[Address, str]
    refused: Mapping[Address, str]


def place(
    wanted: Collection[Unplaced],
    candidates: Iterable[Candidate],
    siblings: Mapping[str, Iterable[Address]],
    wishes: Mapping[Address, str] = NO_WISHES,
) -> Placement:
    """A node for each of `wanted`, by the objective above. `siblings`: every address of each namespace. `wishes`: the
    node that an address goes to before all others are placed, if it is eligible."""
    nodes = list(candidates)
    placed = _place(wanted, without_reluctant(nodes), siblings, wishes)
    if not placed.refused or not any(node.reluctant for node in nodes):
        return placed
    given: dict[str, set[Address]] = {}
    for address, name in placed.nodes.items():
        given.setdefault(name, set()).add(address)
    nodes = [replace(node, hosted=node.hosted | given.get(node.name, set())) for node in nodes]
    rest = _place([item for item in wanted if item.address in placed.refused], nodes, siblings, wishes)
    return Placement({**placed.nodes, **rest.nodes}, rest.refused)


def _place(
    wanted: Collection[Unplaced],
    candidates: Iterable[Candidate],
    siblings: Mapping[str, Iterable[Address]],
    wishes: Mapping[Address, str],
) -> Placement:
    board = Board(candidates, {item.namespace: siblings.get(item.namespace, ()) for item in wanted})
    sizes = Counter(item.namespace for item in wanted)
    # Whoever has the least choice comes first. A namespace's addresses come together: so the nodes stay level.
    homeless: list[Unplaced] = []
    rank = {item.address: (board.choices(item), -sizes[item.namespace], *order(item)) for item in wanted}
    for item in sorted(wanted, key=lambda item: (item.address not in wishes, rank[item.address])):
        name = wishes.get(item.address)
        if name is None or board.objection(item, name) is not None:
            name = board.best(item)
        if name is None:
            homeless.append(item)
        else:
            board.put(item, name)
    homeless = [item for item in homeless if not board.make_room(item)]
    return Placement(board.given(), {item.address: board.why_not(item) for item in homeless})


def order(item: Unplaced) -> tuple[str, int, int]:
    """By namespace, then by address."""
    return item.namespace, item.address.version, int(item.address)
