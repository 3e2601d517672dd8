"""Which address moves next from a node that lives: because somebody asks, because its node is drained, or for balance.

One at a time, for each move interrupts its namespace. Pure and deterministic. docs/decisions/0015-placement.md has the
reasons.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from egress.addresses import Address
from egress.board import Board, Candidate, Unplaced, unselected, without_reluctant
from egress.hosting import Resident
from egress.placement import order
from egress.table import Steering


class Cause(StrEnum):
    """Why an address moves."""

    LOST = "its node is lost"
    REQUESTED = "somebody asked for it"
    DRAIN = "its node is drained"
    UNSELECTED = "its pool does not select its node any more"
    BALANCE = "its node hosts many more than others"


@dataclass(frozen=True, slots=True)
class Move:
    """An address, where it is, where it goes and why."""

    item: Unplaced
    source: str
    target: str
    cause: Cause


@dataclass(frozen=True, slots=True)
class Outlook:
    """The next planned move, if there is one, and why addresses that must leave their nodes before it cannot."""

    move: Move | None
    stuck: Mapping[Address, str]


def is_unbalanced(more: int, fewer: int) -> bool:
    """Whether a node with `more` addresses gives one to a node with `fewer`: only if it has more than half as many
    again and two. Each such move brings the two closer, and none leads to its own reverse."""
    return 2 * more > 3 * fewer + 4


def next_move(
    residents: Collection[Resident],
    candidates: Iterable[Candidate],
    siblings: Mapping[str, Iterable[Address]],
    *,
    balance: bool,
) -> Outlook:
    """The next planned move. Requests come first, then nodes that must be left, then balance if allowed.

    What cannot move stays and stops no other.
    """
    nodes = {candidate.name: candidate for candidate in without_reluctant(candidates)}
    board = Board(
        nodes.values(), {resident.item.namespace: siblings[resident.item.namespace] for resident in residents}
    )
    ordered = sorted(residents, key=lambda resident: (resident.node, order(resident.item)))
    for resident in ordered:
        target = resident.move_to
        if target and target != resident.node and board.objection(resident.item, target) is None:
            return Outlook(Move(resident.item, resident.node, target, Cause.REQUESTED), {})
    movable = [resident for resident in ordered if not resident.fixed and not nodes[resident.node].gone]
    stuck: dict[Address, str] = {}
    for resident in movable:
        cause = _must_leave(resident, nodes)
        if cause is None:
            continue
        best = board.better(resident.item, resident.node)
        if best is not None:
            return Outlook(Move(resident.item, resident.node, best, cause), stuck)
        stuck[resident.item.address] = board.why_not(resident.item)
    return Outlook(_for_balance(movable, nodes, board) if balance else None, stuck)


def _must_leave(resident: Resident, nodes: Mapping[str, Candidate]) -> Cause | None:
    if nodes[resident.node].drained:
        return Cause.DRAIN
    return Cause.UNSELECTED if unselected(resident.item, nodes[resident.node]) else None


def _for_balance(residents: list[Resident], nodes: Mapping[str, Candidate], board: Board) -> Move | None:
    for resident in sorted(residents, key=lambda resident: -board.load(resident.node)):
        item, source = resident.item, resident.node
        load = board.load(source)
        if nodes[source].barred or not is_unbalanced(load, board.floor(item)):
            continue
        target = board.better(item, source)
        if target is not None and target != source and is_unbalanced(load, board.load(target)):
            return Move(item, source, target, Cause.BALANCE)
    return None


def has_arrived(address: Address, node: str, rows: Iterable[Steering | None]) -> bool:
    """Whether the nodes' table has the address as `node`'s, acknowledged."""
    return any(
        hop.address == address and hop.node == node and hop.acknowledged
        for row in rows
        if row is not None
        for hop in row.hops
    )
