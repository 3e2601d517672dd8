"""A node's heartbeat and its eyes, on a real ledger and a link in memory."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface

import pytest
import structlog

from egress.adapters.ledger import Ledger
from egress.addresses import Address
from egress.liveness import Identity, Sighting
from lab.fakes.node import FakeNode, fake_node
from node_runner import heartbeat
from node_runner.heartbeat import Heartbeat
from tests.contract.conftest import later

PATIENCE = 2.0
IPS = {f"node{number}": IPv4Address(f"192.168.1.{16 + number}") for number in (1, 2, 3)}
A, B = IPv4Address("192.168.1.102"), IPv4Address("192.168.1.103")


class Link:
    """Three nodes on one link, and what the workers were told."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.answers: dict[Address, str] = {}
        self.told = 0
        self.fakes: dict[str, FakeNode] = {}
        self.beats = {name: self._heartbeat(name) for name in IPS}
        self.given: dict[str, frozenset[Address]] = {"node2": frozenset({A, B})}

    def _heartbeat(self, name: str) -> Heartbeat:
        fake = self.fakes[name] = fake_node(str(IPS[name]), neighbours=self.answers)
        self.answers[IPS[name]] = "02:00:" + IPS[name].packed.hex(":")
        me = Identity(name, str(IPS[name]))
        return Heartbeat(
            me, self.ledger, fake.node, lambda node: self.given.get(node, frozenset()), self._tell, patience=PATIENCE
        )

    def _tell(self) -> None:
        self.told += 1

    def silence(self, silent: str) -> None:
        """Everybody but `silent` beats until that is noticed, and looks."""
        for beat in self.beats.values():
            beat.beat()
        for _ in range(4):
            later(self.ledger, PATIENCE / 2)
            for name, beat in self.beats.items():
                if name != silent:
                    beat.beat()
        for name, beat in self.beats.items():
            if name != silent:
                beat.look(self.ledger.silent(PATIENCE))

    def seen(self, node: str) -> dict[str, tuple[bool, frozenset[Address]]]:
        return {seen.witness: (seen.answers, seen.held) for seen in self.ledger.sightings(node)}


@pytest.fixture
def link(ledger: Ledger) -> Link:
    return Link(ledger)


def test_a_dead_node_is_seen_to_answer_nothing(link: Link) -> None:
    del link.answers[IPS["node2"]]
    link.silence("node2")
    assert link.seen("node2") == {"node1": (False, frozenset()), "node3": (False, frozenset())}
    assert link.told == 2


def test_what_a_silent_node_answers_for_is_told(link: Link) -> None:
    link.answers[A] = link.answers[IPS["node2"]]
    link.silence("node2")
    assert link.seen("node2") == {"node1": (True, frozenset({A})), "node3": (True, frozenset({A}))}


def test_a_witness_whose_own_link_is_deaf_says_nothing(link: Link) -> None:
    link.answers.clear()
    with structlog.testing.capture_logs() as logs:
        link.silence("node2")
    assert link.seen("node2") == {}
    assert link.told == 0
    assert any("nobody answers on this link" in line["event"] for line in logs)


def test_nor_does_one_without_a_link(link: Link) -> None:
    del link.answers[IPS["node2"]]
    link.fakes["node1"].links.carrier = False
    link.silence("node2")
    assert link.seen("node2").keys() == {"node3"}


def test_of_ipv6_only_a_witness_that_can_ask_says_what_a_silent_node_holds(link: Link) -> None:
    six = ip_address("2001:db8::102")
    link.given["node2"] = frozenset({six})
    facts = link.fakes["node1"].links.facts()
    link.fakes["node1"].links._facts = replace(facts, other_ips=(ip_interface("2001:db8::17/64"),))
    link.answers[six] = link.answers[IPS["node2"]]
    link.silence("node2")
    assert link.seen("node2") == {"node1": (True, frozenset({six}))}


def test_that_a_node_is_dead_is_said_by_those_too_that_cannot_ask_for_its_ipv6(link: Link) -> None:
    link.given["node2"] = frozenset({ip_address("2001:db8::102")})
    del link.answers[IPS["node2"]]
    link.silence("node2")
    assert link.seen("node2") == {"node1": (False, frozenset()), "node3": (False, frozenset())}


def test_a_node_of_another_link_is_not_looked_for(link: Link) -> None:
    link.ledger.expect({name: str(ip) for name, ip in IPS.items()} | {"far": "10.0.0.7"})
    link.silence("far")
    assert link.seen("far") == {}


def test_a_node_that_counts_as_lost_tells_that_it_is_back(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "TELL_SECONDS", 60.0)
    link.ledger.set_lost({"node2": 1.0}, {})
    link.beats["node1"].beat()
    assert link.told == 0
    for _ in range(3):
        link.beats["node2"].beat()
    assert link.told == 1  # and not at each heartbeat


def test_threads_do_the_same_and_end(link: Link, broker: object) -> None:
    del link.answers[IPS["node2"]]
    stop, stop_node2 = threading.Event(), threading.Event()
    run: list[tuple[Callable[..., None], tuple[object, ...]]] = [
        (link.beats["node2"].beat_until, (stop_node2, 0.02)),
        *((link.beats[name].beat_until, (stop, 0.02)) for name in ("node1", "node3")),
        *((link.beats[name].look_until, (stop,)) for name in ("node1", "node3")),
    ]
    threads = [threading.Thread(target=target, args=arguments, daemon=True) for target, arguments in run]
    for thread in threads:
        thread.start()
    time.sleep(0.4)
    assert link.seen("node2") == {}
    stop_node2.set()
    deadline = time.monotonic() + 30
    while len(link.seen("node2")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert link.seen("node2").keys() == {"node1", "node3"}
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_a_ledger_that_is_away_ends_nothing(link: Link) -> None:
    away = Ledger("redis://127.0.0.1:1/0", timeout=0.1)
    beat = Heartbeat(
        Identity("node1", str(IPS["node1"])),
        away,
        link.fakes["node1"].node,
        lambda _: (),
        link._tell,
        patience=PATIENCE,
    )
    with structlog.testing.capture_logs() as logs:
        beat.beat()
        beat.beat()
    assert [line["event"] for line in logs] == ["no heartbeat"]
    away.close()


def test_a_sighting_of_a_stranger_is_kept_for_nobody_else(link: Link) -> None:
    link.ledger.saw("node2", Sighting("node1", 1.0, answers=True))
    assert link.seen("node3") == {}
