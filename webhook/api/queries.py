"""What a request's query asks for: the same for the API and the pages."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from flask import request

from egress.actions import Trouble
from egress.objects import Phase
from egress.views import Assignment

SORTS = ("namespace", "address", "pool", "phase", "node", "since", "trouble")
"""What assignments can be sorted by."""
E = TypeVar("E", bound=StrEnum)


class BadRequestError(ValueError):
    """What was asked for makes no sense; the message says what does."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which assignments are meant. `namespaces`, unless None, are the only ones that may be shown."""

    text: str = ""
    """In lower case, as names and addresses are."""
    phase: Phase | None = None
    pool: str = ""
    node: str = ""
    trouble: Trouble | None = None
    namespaces: Collection[str] | None = None

    def lets_through(self, item: Assignment) -> bool:
        """Whether `item` is meant."""
        return (
            (self.namespaces is None or item.namespace in self.namespaces)
            and (not self.text or self.text in item.namespace or self.text in item.address)
            and (self.phase is None or item.phase is self.phase)
            and (not self.pool or item.pool == self.pool)
            and (not self.node or item.node == self.node)
            and (self.trouble is None or item.trouble is self.trouble)
        )


def wanted(namespaces: Collection[str] | None) -> Filter:
    """Which assignments the query means, of `namespaces`."""
    text, pool, node = (request.args.get(name, "") for name in ("text", "pool", "node"))
    return Filter(text.strip().lower(), _enum(Phase, "phase"), pool, node, _enum(Trouble, "trouble"), namespaces)


def _enum(kind: type[E], name: str) -> E | None:
    text = request.args.get(name, "")
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise BadRequestError(f"{name} is {text!r}; give it one of {', '.join(kind)}") from None


def flag(name: str) -> bool:
    """What the query says for `name`: true, or false."""
    text = request.args.get(name, "false")
    if text not in ("true", "false"):
        raise BadRequestError(f"{name} is {text!r}; give it true or false")
    return text == "true"


def number(name: str, default: int) -> int:
    """What the query says for `name`, a number that is not negative."""
    text = request.args.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise BadRequestError(f"{name} is {text!r}; give it a number")
    return int(text)
