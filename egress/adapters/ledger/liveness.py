"""Which nodes are alive: the runners' heartbeats, what others see of a silent node, and which nodes count as lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from egress.adapters import scripts
from egress.adapters.ledger.connection import Connection, away, from_key, key_of
from egress.addresses import Address
from egress.liveness import Sighting, Silence

SIGHTING_SECONDS = 15.0
"""How long what was seen of a node is kept."""
NOBODY: Mapping[str, float] = {}
FAILOVER_SECONDS = 3600
"""How long an address that moves off a lost node is waited for, to say how long it took."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a runner hears when it says that it lives: which nodes are silent, and whether its own counts as lost."""

    silent: tuple[Silence, ...]
    lost: bool


class _Sighting(msgspec.Struct, frozen=True):
    at: float
    answers: bool
    held: list[str]


_SIGHTING = msgspec.json.Decoder(_Sighting)


class Liveness(Connection):
    """Who lives. Times are Redis' own; silence counts only while heartbeats come at all."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        super().__init__(url, timeout)
        self._beat = self._redis.register_script(scripts.BEAT)
        self._silent = self._redis.register_script(scripts.SILENT)
        self._expect = self._redis.register_script(scripts.EXPECT)
        self._volunteer = self._redis.register_script(scripts.VOLUNTEER)

    def beat(self, node: str, node_ip: str, patience: float) -> Beat:
        """The node lives; the others that have been silent for more than `patience` seconds and are not lost yet."""
        with away():
            lost, *silences = self._beat(args=[node, node_ip, patience])
        return Beat(tuple(_silences(silences)), lost == "1")

    def expect(self, nodes: Mapping[str, str]) -> None:
        """`nodes`, each with its IP, have runners: one that never beat is silent from now on. No others are waited
        for."""
        with away():
            self._expect(args=[item for pair in nodes.items() for item in pair])

    def silent(self, patience: float) -> list[Silence]:
        """The nodes that have been silent for more than `patience` seconds."""
        with away():
            return _silences(self._silent(args=[patience]))

    def living(self, patience: float) -> dict[str, str]:
        """The nodes that were heard within `patience` seconds, and their IPs."""
        since = self.now() - patience
        with away():
            names = self._redis.zrangebyscore("hawse:beats", since, "+inf")
            ips = self._redis.hmget("hawse:beat-ips", names) if names else []
        return {name: ip for name, ip in zip(names, ips, strict=True) if ip}

    def nodes(self) -> dict[str, str]:
        """The nodes that have runners, and their IPs."""
        with away():
            return dict(self._redis.hgetall("hawse:beat-ips"))

    def volunteer(self, node: str, witness: str, at_most: int, seconds: float) -> bool:
        """Whether `witness` is among the first `at_most` within `seconds` to look for the silent `node`, and has not
        done so already."""
        with away():
            return bool(self._volunteer(args=[node, witness, at_most, int(seconds * 1000)]))

    def saw(self, node: str, sighting: Sighting) -> None:
        """Keeps what a witness saw of the silent `node`."""
        wire = _Sighting(sighting.at, sighting.answers, sorted(map(key_of, sighting.held)))
        key = f"hawse:seen:{node}"
        with away():
            self._redis.pipeline().hset(key, sighting.witness, msgspec.json.encode(wire)).pexpire(
                key, int(SIGHTING_SECONDS * 1000)
            ).execute()

    def sightings(self, node: str) -> list[Sighting]:
        """What was lately seen of `node`, and by whom."""
        with away():
            entries = self._redis.hgetall(f"hawse:seen:{node}")
        result = []
        for witness, text in sorted(entries.items()):
            try:
                wire = _SIGHTING.decode(text)
            except msgspec.DecodeError:  # of another version: it is not counted
                continue
            result.append(Sighting(witness, wire.at, wire.answers, frozenset(map(from_key, wire.held))))
        return result

    def lost(self) -> dict[str, float]:
        """The nodes that count as lost, and since when."""
        with away():
            return _times(self._redis.hgetall("hawse:lost"))

    def returned(self) -> dict[str, float]:
        """The nodes that were lost and are not any more, and since when."""
        with away():
            return _times(self._redis.hgetall("hawse:returned"))

    def set_lost(self, lost: Mapping[str, float], returned: Mapping[str, float] = NOBODY) -> None:
        """Replaces the nodes that count as lost, and those that did a moment ago."""
        with away():
            pipeline = self._redis.pipeline().delete("hawse:lost", "hawse:returned")
            for key, nodes in (("hawse:lost", lost), ("hawse:returned", returned)):
                if nodes:
                    pipeline.hset(key, mapping=dict(nodes))
            pipeline.execute()

    def begin_failover(self, addresses: Iterable[Address], since: float) -> None:
        """The node of these addresses has been away since `since`; one that waits already waits since then."""
        with away():
            pipeline = self._redis.pipeline()
            for address in addresses:
                pipeline.hsetnx("hawse:failovers", key_of(address), since)
            pipeline.expire("hawse:failovers", FAILOVER_SECONDS).execute()

    def failovers(self) -> dict[Address, float]:
        """The addresses whose node was lost and that no other acknowledges yet, and since when."""
        with away():
            entries = self._redis.hgetall("hawse:failovers")
        return {from_key(key): float(since) for key, since in entries.items()}

    def end_failover(self, address: Address) -> bool:
        """Whether the address was waiting; from now on it is not."""
        with away():
            return bool(self._redis.hdel("hawse:failovers", key_of(address)))


def _times(entries: Mapping[str, str]) -> dict[str, float]:
    return {node: float(since) for node, since in entries.items()}


def _silences(flat: list[str]) -> list[Silence]:
    return [
        Silence(node, ip, float(seconds)) for node, ip, seconds in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    ]
