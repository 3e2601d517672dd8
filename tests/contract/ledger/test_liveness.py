"""Heartbeats, witnesses and lost nodes, on a real server."""

import time
from ipaddress import ip_address

from egress.adapters.ledger import Ledger, Sighting

PATIENCE = 0.2


def beats_for(ledger: Ledger, seconds: float, *nodes: str) -> list[str]:
    """The `nodes` beat for so long; who is silent at the end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        silent = [silence.node for node in nodes for silence in ledger.beat(node, "192.168.1.17", PATIENCE)]
        time.sleep(0.02)
    return sorted(set(silent))


def test_a_node_that_stops_beating_is_silent_to_the_others(ledger: Ledger) -> None:
    assert beats_for(ledger, 0.3, "node1", "node2") == []
    assert beats_for(ledger, 0.3, "node1") == ["node2"]
    (silence,) = ledger.silent(PATIENCE)
    assert (silence.node, silence.node_ip) == ("node2", "192.168.1.17")
    assert silence.seconds > PATIENCE
    assert beats_for(ledger, 0.1, "node1", "node2") == []


def test_when_nobody_could_beat_nobody_is_silent(ledger: Ledger) -> None:
    beats_for(ledger, 0.3, "node1", "node2")
    time.sleep(0.4)
    # Redis was away from all: the first to be back is no reason to count the others as silent.
    assert ledger.beat("node1", "192.168.1.17", PATIENCE) == []
    assert beats_for(ledger, 0.1, "node1") == []
    assert beats_for(ledger, 0.3, "node1") == ["node2"]


def test_a_node_that_is_forgotten_is_not_waited_for(ledger: Ledger) -> None:
    beats_for(ledger, 0.3, "node1", "node2")
    ledger.set_lost({"node2": 5.0})
    ledger.forget_node("node2")
    assert beats_for(ledger, 0.4, "node1") == []
    assert ledger.lost() == {}


def test_only_so_many_look_for_a_silent_node_at_once(ledger: Ledger) -> None:
    assert [ledger.volunteer("node2", 2, 0.2) for _ in range(4)] == [True, True, False, False]
    assert ledger.volunteer("node3", 2, 0.2)
    time.sleep(0.25)
    assert ledger.volunteer("node2", 2, 0.2)


def test_sightings_and_lost_nodes_round_trip(ledger: Ledger) -> None:
    address = ip_address("192.168.1.102")
    seen = Sighting("node1", 12.5, answers=False, held=frozenset({address}), looked_for=frozenset({address}))
    ledger.saw("node2", seen)
    assert ledger.sightings("node2") == [seen]
    assert ledger.sightings("node3") == []
    ledger._redis.hset("hawse:witness:node2", "node9", "{}")
    assert ledger.sightings("node2") == [seen]
    ledger.set_lost({"node2": 12.5, "node3": 13.0})
    ledger.set_lost({"node2": 12.5})
    assert ledger.lost() == {"node2": 12.5}
