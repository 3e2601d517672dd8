"""When a silent node counts as lost."""

from ipaddress import ip_address

import pytest

from egress.liveness import Sighting, Silence, Verdict, judge, look_interval

NOW, TIMEOUT = 1000.0, 120.0
ADDRESS = ip_address("192.168.1.102")
SILENCE = Silence("node2", "192.168.1.18", 1.5)


def saw(witness: str, *, ago: float = 0.2, answers: bool = False, held: bool = False) -> Sighting:
    return Sighting(witness, NOW - ago, answers, frozenset({ADDRESS} if held else ()))


@pytest.mark.parametrize(
    ("sightings", "witnesses", "verdict"),
    [
        ([], 2, Verdict.UNKNOWN),
        ([saw("node1")], 2, Verdict.UNKNOWN),
        ([saw("node1"), saw("node1", ago=0.4)], 2, Verdict.UNKNOWN),
        ([saw("node1"), saw("node3")], 2, Verdict.LOST),
        ([saw("node1")], 1, Verdict.LOST),
        ([saw("node1"), saw("node3"), saw("node4", answers=True)], 3, Verdict.ALIVE),
        ([saw("node1"), saw("node3"), saw("node4", held=True)], 3, Verdict.ALIVE),
        ([saw("node1", ago=1.6), saw("node3", ago=2.0)], 2, Verdict.UNKNOWN),  # seen before it fell silent
        ([saw("node1", answers=True, ago=1.6), saw("node3"), saw("node4")], 3, Verdict.LOST),
    ],
)
def test_two_witnesses_must_see_nothing(sightings: list[Sighting], witnesses: int, verdict: Verdict) -> None:
    assert judge(SILENCE, sightings, witnesses, NOW, TIMEOUT) is verdict


def test_a_node_that_answers_without_its_addresses_is_lost_in_the_end() -> None:
    seen = [saw("node1", answers=True), saw("node3", answers=True)]
    assert judge(Silence("node2", "", 119.0), seen, 2, NOW, TIMEOUT) is Verdict.ALIVE
    assert judge(Silence("node2", "", 121.0), seen, 2, NOW, TIMEOUT) is Verdict.LOST
    assert judge(Silence("node2", "", 121.0), seen[:1], 2, NOW, TIMEOUT) is Verdict.ALIVE


def test_what_it_holds_is_never_taken_from_a_node() -> None:
    seen = [saw("node1"), saw("node3", answers=True), saw("node4", held=True)]
    assert judge(Silence("node2", "", 1e6), seen, 3, NOW, TIMEOUT) is Verdict.ALIVE


def test_what_was_seen_too_long_ago_does_not_count() -> None:
    old = [saw("node1", ago=8.0), saw("node3", ago=8.0)]
    assert judge(Silence("node2", "", 60.0), old, 2, NOW, TIMEOUT) is Verdict.UNKNOWN


def test_it_is_looked_for_at_once_and_rarely_later() -> None:
    assert look_interval(1.0) == 0.5
    assert look_interval(8.0) == 4.0
    assert look_interval(3600.0) == 5.0
