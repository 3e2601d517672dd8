"""`hawse move` by Hawse's API, which asks who may and writes down who did: the wish, and what has become of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum

import click

from egress.addresses import Address
from egress.cli.client import ApiError, AwayError, Client, clean, decoded, part
from egress.objects import Phase
from egress.operations import Outcome as StepOutcome
from egress.operations import Step
from egress.views import AddressDetail, NamespaceDetail, Page

LOOK_SECONDS = 0.5


class MoveError(click.ClickException):
    """The address is not moved; the message is one line that says why and what to do. Exit code 1."""


class Outcome(StrEnum):
    """How a move ends."""

    MOVED = "moved"
    UNCHANGED = "unchanged"
    """It was there already."""
    ASKED = "asked"
    """Nobody waited for the end."""


@dataclass(frozen=True, slots=True)
class Move:
    """What was done, as it is printed. `origin` is the node that had the address; "" for none."""

    address: str
    namespace: str
    origin: str
    node: str
    outcome: Outcome

    def __str__(self) -> str:
        subject = f"{self.address} (namespace {clean(self.namespace)})"
        way = f"from {clean(self.origin)} to {self.node}" if self.origin not in ("", self.node) else f"to {self.node}"
        match self.outcome:
            case Outcome.MOVED:
                return f"{subject} has moved {way}"
            case Outcome.UNCHANGED:
                return f"{subject} is on {self.node} already"
            case Outcome.ASKED:
                return f"{subject} is asked to move {way}"

    def data(self) -> dict[str, str]:
        """The same, for programs."""
        return {
            "address": self.address,
            "namespace": self.namespace,
            "from": self.origin,
            "to": self.node,
            "outcome": self.outcome.value,
        }


def by_api(client: Client, address: Address, node: str, why: str, timeout: float | None) -> Move:
    """Asks for the move and waits for its end unless `timeout` (in seconds) is None. ApiError, MoveError."""
    text = str(address)
    page = decoded(client.get("/assignments", text=text, limit=500), Page)
    found = next((item for item in page.items if item.address == text), None)
    if found is None:
        raise MoveError(f"{text} is assigned to nobody: `hawse get assignments` has all")
    before = _look(client, found.namespace)
    client.post(f"/addresses/{part(text)}/move", {"node": node, "why": why})
    known = _refusals(before, text, node)
    if found.node == node and found.phase is Phase.READY and not _of(before, text).move_to:
        return Move(text, found.namespace, node, node, Outcome.UNCHANGED)
    if timeout is None:
        return Move(text, found.namespace, found.node, node, Outcome.ASKED)
    deadline = time.monotonic() + timeout
    while True:
        time.sleep(LOOK_SECONDS)
        try:
            seen = _look(client, found.namespace)
        except AwayError:
            if time.monotonic() > deadline:
                raise
            continue  # the wish is written: it comes back
        now, refusals = _of(seen, text), _refusals(seen, text, node)
        if len(refusals) > len(known):
            raise MoveError(f"{text} does not move to {node}: {clean(refusals[0])}")
        if now.assignment.node == node and now.assignment.phase is Phase.READY and not now.move_to:
            return Move(text, found.namespace, found.node, node, Outcome.MOVED)
        if now.move_to not in ("", node):
            raise MoveError(f"{text} is not moved to {node}: somebody has wished it to {clean(now.move_to)} meanwhile")
        if time.monotonic() > deadline:
            raise MoveError(f"{text} has not moved to {node} in {timeout:g} s; Hawse goes on: {_state(now)}")


def _look(client: Client, namespace: str) -> NamespaceDetail:
    return decoded(client.get(f"/namespaces/{part(namespace)}"), NamespaceDetail)


def _of(detail: NamespaceDetail, address: str) -> AddressDetail:
    found = next((item for item in detail.addresses if item.assignment.address == address), None)
    if found is None:
        raise ApiError(f"{address} is no longer assigned to {clean(detail.namespace)}")
    return found


def _refusals(detail: NamespaceDetail, address: str, node: str) -> list[str]:
    """Why the address was not moved to the node, the latest first."""
    return [
        step.message
        for step in detail.history
        if (step.step, step.outcome, step.address, step.node) == (Step.MOVE, StepOutcome.GAVE_UP, address, node)
    ]


def _state(detail: AddressDetail) -> str:
    item = detail.assignment
    if detail.move_to:
        return "it has not begun; other moves may come first, or hawse-worker does not run"
    return f"it is {item.phase}" + (f", {clean(item.message)}" if item.message else "")
