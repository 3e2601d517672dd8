"""Since when an address list says what it says, so that every process that serves it gives the same date."""

from __future__ import annotations

from typing import NamedTuple

from egress.adapters import scripts
from egress.adapters.ledger.connection import Connection, away

KEPT = 64
"""How many contents of a list are remembered: a process that lags behind by so many makes a date of its own."""
KEPT_SECONDS = 30 * 24 * 3600


class FirstSeen(NamedTuple):
    """When a content was first seen, in seconds since the epoch, and whether no other was in the same whole second."""

    at: float
    alone: bool


class Lists(Connection):
    """The contents that each list lately had."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        super().__init__(url, timeout)
        self._seen = self._redis.register_script(scripts.SEEN)

    def first_seen(self, name: str, digest: str, after: float) -> FirstSeen:
        """When the list `name` came to hold what `digest` is of, after `after`: when the asker saw something else.

        What a list holds again, after something else, counts as new.
        """
        with away():
            at, contents = self._seen([f"hawse:list:{name}"], [digest, f"{after:.6f}", KEPT, KEPT_SECONDS])
        return FirstSeen(float(at), int(contents) == 1)
