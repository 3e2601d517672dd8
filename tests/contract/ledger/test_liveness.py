"""Heartbeats, witnesses and lost nodes, on a real server."""

from ipaddress import ip_address

from egress.adapters.ledger import Ledger
from egress.liveness import Sighting
from tests.contract.conftest import later

PATIENCE, INTERVAL = 20.0, 5.0
IP = "192.168.1.17"
ADDRESS = ip_address("192.168.1.102")


def beats(ledger: Ledger, times: int, *nodes: str) -> list[str]:
    """The `nodes` beat so many times, an interval after each other; who is silent at the end."""
    silent: list[str] = []
    for _ in range(times):
        later(ledger, INTERVAL)
        silent = [silence.node for node in nodes for silence in ledger.beat(node, IP, PATIENCE).silent]
    return sorted(set(silent))


def test_a_node_that_stops_beating_is_silent_to_the_others(ledger: Ledger) -> None:
    assert beats(ledger, 6, "node1", "node2") == []
    assert beats(ledger, 6, "node1") == ["node2"]
    (silence,) = ledger.silent(PATIENCE)
    assert (silence.node, silence.node_ip) == ("node2", IP)
    assert silence.seconds > PATIENCE
    assert ledger.living(PATIENCE) == {"node1": IP}
    assert beats(ledger, 2, "node1", "node2") == []


def test_when_nobody_could_beat_nobody_is_silent(ledger: Ledger) -> None:
    beats(ledger, 6, "node1", "node2")
    later(ledger, 2 * PATIENCE)
    # Redis was away from all: the first to be back is no reason to count the others as silent.
    assert ledger.beat("node1", IP, PATIENCE).silent == ()
    assert beats(ledger, 2, "node1") == []
    assert beats(ledger, 6, "node1") == ["node2"]


def test_a_node_that_never_beat_is_waited_for_and_one_that_is_gone_is_not(ledger: Ledger) -> None:
    beats(ledger, 2, "node1", "node2")
    ledger.expect({"node1": IP, "node3": "192.168.1.19"})
    assert beats(ledger, 8, "node1") == ["node3"]
    assert {silence.node: silence.node_ip for silence in ledger.silent(PATIENCE)} == {"node3": "192.168.1.19"}
    ledger.expect({"node1": IP})
    assert beats(ledger, 2, "node1") == []


def test_only_so_many_look_for_a_silent_node_at_once(ledger: Ledger) -> None:
    witnesses = ("a", "a", "b", "c")
    assert [ledger.volunteer("node2", name, 2, 60) for name in witnesses] == [True, False, True, False]
    assert ledger.volunteer("node3", "a", 2, 60)
    assert 0 < ledger._redis.pttl("hawse:asked:node2") <= 60_000
    ledger._redis.delete("hawse:asked:node2")  # its time is over
    assert ledger.volunteer("node2", "a", 2, 60)


def test_sightings_round_trip(ledger: Ledger) -> None:
    seen = Sighting("node1", 12.5, answers=False, held=frozenset({ADDRESS}))
    ledger.saw("node2", seen)
    assert ledger.sightings("node2") == [seen]
    assert ledger.sightings("node3") == []
    ledger._redis.hset("hawse:seen:node2", "node9", "{}")
    assert ledger.sightings("node2") == [seen]


def test_a_node_hears_that_it_counts_as_lost(ledger: Ledger) -> None:
    assert not ledger.beat("node2", IP, PATIENCE).lost
    ledger.set_lost({"node2": 12.5, "node3": 13.0}, {})
    assert ledger.beat("node2", IP, PATIENCE).lost
    assert ledger.lost() == {"node2": 12.5, "node3": 13.0}
    ledger.set_lost({"node3": 13.0}, {"node2": 14.0})
    assert not ledger.beat("node2", IP, PATIENCE).lost
    assert (ledger.lost(), ledger.returned()) == ({"node3": 13.0}, {"node2": 14.0})


def test_a_failover_is_timed_from_its_first_loss_and_ends_once(ledger: Ledger) -> None:
    ledger.begin_failover([ADDRESS], 12.5)
    ledger.begin_failover([ADDRESS], 14.0)
    assert ledger.failovers() == {ADDRESS: 12.5}
    assert ledger.end_failover(ADDRESS)
    assert not ledger.end_failover(ADDRESS)
    assert ledger.failovers() == {}


def test_nobody_looks_for_a_node_that_counts_as_lost_already(ledger: Ledger) -> None:
    beats(ledger, 2, "node1", "node2", "node3")
    ledger.set_lost({"node2": 12.5}, {})
    assert beats(ledger, 8, "node1") == ["node3"]
    assert sorted(silence.node for silence in ledger.silent(PATIENCE)) == ["node2", "node3"]


def test_when_nobody_could_beat_a_node_that_counts_as_lost_is_silent_still(ledger: Ledger) -> None:
    beats(ledger, 6, "node1", "node2")
    beats(ledger, 6, "node1")
    ledger.set_lost({"node2": 12.5}, {})
    later(ledger, 2 * PATIENCE)
    assert ledger.beat("node1", IP, PATIENCE).silent == ()
    assert [silence.node for silence in ledger.silent(PATIENCE)] == ["node2"]
    ledger.beat("node2", IP, PATIENCE)
    assert ledger.silent(PATIENCE) == []
