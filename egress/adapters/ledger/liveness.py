"""Which nodes are alive: the runners' heartbeats, what others see of a silent node, and which nodes count as lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from egress.adapters import scripts
from egress.adapters.ledger.connection import Connection, away, from_key, key_of
from egress.addresses import Address

WITNESS_SECONDS = 5.0
"""How long a witness's word is kept."""


@dataclass(frozen=True, slots=True)
class Silence:
    """A node whose runner has not been heard of for `seconds`; `node_ip` is what it gave as its own."""

    node: str
    node_ip: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one node saw on the link of a silent one: whether its own IP answered, and which of its addresses did.

    `at` is when, by Redis' clock.
    """

    witness: str
    at: float
    answers: bool
    held: frozenset[Address] = frozenset()
    looked_for: frozenset[Address] = frozenset()


class _Sighting(msgspec.Struct, frozen=True):
    at: float
    answers: bool
    held: list[str]
    looked_for: list[str]


_SIGHTING = msgspec.json.Decoder(_Sighting)


class Liveness(Connection):
    """Who lives. Times are Redis' own; silence counts only while heartbeats come at all."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        super().__init__(url, timeout)
        self._beat = self._redis.register_script(scripts.BEAT)
        self._silent = self._redis.register_script(scripts.SILENT)
        self._volunteer = self._redis.register_script(scripts.VOLUNTEER)

    def beat(self, node: str, node_ip: str, patience: float) -> list[Silence]:
        """The node lives; the others that have been silent for more than `patience` seconds."""
        with away():
            return _silences(self._beat(args=[node, node_ip, patience]))

    def silent(self, patience: float) -> list[Silence]:
        """The nodes that have been silent for more than `patience` seconds."""
        with away():
            return _silences(self._silent(args=[patience]))

    def forget_node(self, node: str) -> None:
        """The node is gone for good: nobody waits for its heartbeat."""
        with away():
            self._redis.pipeline().zrem("hawse:beats", node).hdel("hawse:beat-ips", node).hdel(
                "hawse:lost", node
            ).execute()

    def volunteer(self, node: str, at_most: int, seconds: float) -> bool:
        """Whether the caller is among the first `at_most` within `seconds` to look for the silent `node`."""
        with away():
            return bool(self._volunteer(args=[node, at_most, int(seconds * 1000)]))

    def saw(self, node: str, sighting: Sighting) -> None:
        """Keeps what a witness saw of the silent `node`."""
        wire = _Sighting(
            sighting.at,
            sighting.answers,
            sorted(map(key_of, sighting.held)),
            sorted(map(key_of, sighting.looked_for)),
        )
        key = f"hawse:witness:{node}"
        with away():
            self._redis.pipeline().hset(key, sighting.witness, msgspec.json.encode(wire)).pexpire(
                key, int(WITNESS_SECONDS * 1000)
            ).execute()

    def sightings(self, node: str) -> list[Sighting]:
        """What was lately seen of `node`, and by whom."""
        with away():
            entries = self._redis.hgetall(f"hawse:witness:{node}")
        result = []
        for witness, text in sorted(entries.items()):
            try:
                wire = _SIGHTING.decode(text)
            except msgspec.DecodeError:  # of another version: it is not counted
                continue
            result.append(
                Sighting(
                    witness,
                    wire.at,
                    wire.answers,
                    frozenset(map(from_key, wire.held)),
                    frozenset(map(from_key, wire.looked_for)),
                )
            )
        return result

    def lost(self) -> dict[str, float]:
        """The nodes that count as lost, and since when."""
        with away():
            entries = self._redis.hgetall("hawse:lost")
        return {node: float(since) for node, since in entries.items()}

    def set_lost(self, lost: Mapping[str, float]) -> None:
        """Replaces the nodes that count as lost."""
        with away():
            pipeline = self._redis.pipeline().delete("hawse:lost")
            if lost:
                pipeline.hset("hawse:lost", mapping=dict(lost))
            pipeline.execute()


def _silences(reply: Iterable[str]) -> list[Silence]:
    flat = list(reply)
    return [
        Silence(node, ip, float(seconds)) for node, ip, seconds in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    ]
