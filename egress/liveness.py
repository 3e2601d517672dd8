"""Whether a node that has fallen silent is lost: what other nodes see of it on the link, and what follows. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from egress.addresses import Address

WITNESSES = 3
"""How many nodes look for a silent one at a time."""
_FIRST_LOOK, _LAST_LOOK = 0.5, 5.0


@dataclass(frozen=True, slots=True)
class Silence:
    """A node whose runner has not been heard of for `seconds`; `node_ip` is its own IP, "" if it is not known."""

    node: str
    node_ip: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one node, the witness, saw of a silent one on their link: whether its IP answered, and which of its egress
    addresses did. `at` is when, in seconds since the epoch by Redis' clock."""

    witness: str
    at: float
    answers: bool
    held: frozenset[Address] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which node a runner is on: the name of its HostSubnet, and its own IP on the outside link."""

    node: str
    ip: str


class Verdict(StrEnum):
    """What is to be thought of a silent node."""

    UNKNOWN = "unknown"
    ALIVE = "alive"
    LOST = "lost"


def look_interval(silence: float) -> float:
    """Seconds between two looks for a node that has been silent for `silence` seconds: at once first, rarer later."""
    return min(max(silence / 2, _FIRST_LOOK), _LAST_LOOK)


def judge(silence: Silence, sightings: Collection[Sighting], witnesses: int, now: float, timeout: float) -> Verdict:
    """The verdict over a silent node, of which `witnesses` living nodes share the link.

    Lost is a node of which two witnesses see nothing at all, neither its IP nor any address of it; where there is one
    witness only, that one. One that answers lives, whatever became of its runner: it goes on forwarding, and what it
    holds is not taken from it. But where, after `timeout` seconds, two witnesses see its IP answer and none of its
    addresses, it is lost as well: nobody will put them back. What was seen before it fell silent,
    or too long ago, does not count.
    """
    recent = look_interval(silence.seconds) + 2.0
    fresh = [seen for seen in sightings if seen.at >= now - min(silence.seconds, recent)]
    if any(seen.held for seen in fresh):
        return Verdict.ALIVE
    enough = len({seen.witness for seen in fresh}) >= min(2, max(1, witnesses))
    if any(seen.answers for seen in fresh):
        return Verdict.LOST if enough and silence.seconds > timeout else Verdict.ALIVE
    return Verdict.LOST if enough else Verdict.UNKNOWN
