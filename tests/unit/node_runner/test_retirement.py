"""The rules of an address outlive its flow, of which the kernel may have cached what is over."""

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from egress.program import Layout
from egress.table import Steering
from node_runner.drivers.errors import IptablesFailed
from node_runner.drivers.ports import ProbeTiming
from node_runner.programmer import Programmer
from node_runner.retirement import RETIRE_SECONDS, Retirement

Row = Callable[..., dict[int, Steering]]
A, B = IPv4Address("192.168.1.102"), IPv4Address("192.168.1.103")
AWAY = {"node": "node1", "node_ip": IPv4Address("192.168.1.17")}


class Clock:
    """Seconds that a test lets go by."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(lab: Any) -> Clock:
    """The clock of the lab's runner, to which its node is new."""
    clock = Clock()
    restart(lab, clock)
    return clock


def restart(lab: Any, clock: Clock) -> None:
    """Another runner: it remembers nothing."""
    lab.programmer = Programmer("node2", lab.node, Layout(), ProbeTiming(), Retirement(clock=clock))


@pytest.mark.parametrize("partial", [False, True])
def test_the_rules_go_when_no_packet_can_have_the_mark_any_more(
    lab: Any, row: Row, clock: Clock, partial: bool
) -> None:
    lab.run(row())
    lab.run(row(None), untouched=partial)
    assert lab.order == ["flows", "addresses", "forget"]
    assert (lab.flow(), lab.addresses, lab.snat) == ("drop", set(), True)
    clock.now += RETIRE_SECONDS - 0.1
    assert not lab.run(row(None)).wrote
    assert (lab.order, lab.snat) == ([], True)
    clock.now += 0.1
    assert not lab.run(row(None)).wrote, "nobody has touched the node: that would be counted as drift"
    assert lab.order == ["forget", "rules"], "packets that came late may have begun connections"
    assert not lab.fake.nat.read().own
    assert not lab.run(row(None)).wrote
    assert lab.order == []


def test_whoever_sends_meanwhile_keeps_the_rules_of_all(lab: Any, row: Row, clock: Clock) -> None:
    """Passes over a part of the table leave those of the others alone."""
    other = row(str(B), netid=7)
    lab.run({**row(), **other})
    lab.run({**row(None), **other}, untouched=True)
    lab.run({**row(None), **row(None, netid=7)}, untouched=True)
    lab.run({**row(None), **other}, untouched=True)
    assert (lab.flow(), lab.addresses) == ("drop", {str(B)})
    assert lab.fake.nat.read().marks.keys() == {A, B}
    clock.now += RETIRE_SECONDS
    lab.run({**row(None), **other})
    assert lab.fake.nat.read().marks.keys() == {B}


@pytest.mark.parametrize("partial", [False, True])
def test_an_address_that_comes_back_finds_its_rules(lab: Any, row: Row, clock: Clock, partial: bool) -> None:
    lab.run(row())
    lab.run(row(None))
    clock.now += RETIRE_SECONDS / 2
    lab.run(row(), untouched=partial)
    assert "rules" not in lab.order
    assert lab.addresses == {str(A)}
    clock.now += RETIRE_SECONDS
    assert not lab.run(row()).wrote
    lab.run(row(None))
    clock.now += RETIRE_SECONDS - 0.1
    lab.run(row(None))
    assert lab.snat, "its time has begun anew"


def test_a_mark_is_given_to_nobody_else_meanwhile(lab: Any, row: Row, clock: Clock) -> None:
    lab.run(row())
    before = lab.fake.nat.read().marks[A]
    lab.run({**row(None), **row(str(B), netid=7)})
    assert lab.fake.nat.read().marks == {A: before, B: int(B)}


def test_a_runner_without_memory_counts_from_its_first_pass(lab: Any, row: Row, clock: Clock) -> None:
    lab.run(row())
    lab.run(row(None))
    clock.now += RETIRE_SECONDS - 0.1
    restart(lab, clock)
    lab.run(row(None), fresh=True)
    clock.now += RETIRE_SECONDS - 0.1
    lab.run(row(None))
    assert lab.snat
    clock.now += 0.1
    lab.run(row(None))
    assert not lab.fake.nat.read().own


def test_it_counts_from_the_pass_whose_flows_were_written(
    lab: Any, row: Row, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from one that had to leave them as they were."""
    lab.run(row())

    def fail(*_: object, **__: object) -> None:
        raise IptablesFailed("no")

    with monkeypatch.context() as broken:
        broken.setattr(lab.fake.flows, "apply", fail)
        with pytest.raises(IptablesFailed):
            lab.run(row(**AWAY))
    clock.now += RETIRE_SECONDS
    lab.run(row(**AWAY))
    assert (lab.flow(), lab.snat) == ("drop", True)
    clock.now += RETIRE_SECONDS
    lab.run(row(**AWAY))
    assert not lab.snat


def test_rules_that_somebody_adds_go_at_once_and_are_counted(lab: Any, row: Row, clock: Clock) -> None:
    lab.run(row())
    planted = f"-s 10.128.0.0/14 -m mark --mark {int(B):#x} -j SNAT --to-source {B}"
    lab.fake.nat.put("nat", "HAWSE-SNAT", planted)
    assert lab.run(row()).wrote
    assert lab.fake.nat.read().marks.keys() == {A}


def test_what_is_refused_keeps_its_rules_as_long(lab: Any, row: Row, clock: Clock) -> None:
    """It had a flow until a moment ago, whoever has its address now."""
    lab.run(row())
    lab.fake.links.take_away(A)
    lab.fake.arp.neighbours[A] = "aa:bb"
    refused = lab.run(row()).refused
    assert (lab.flow(), lab.addresses, lab.snat) == ("drop", set(), True)
    clock.now += RETIRE_SECONDS
    lab.run(row(), resting=refused)
    assert (lab.flow(), lab.snat) == ("drop", False)


def test_an_inspection_finds_no_fault_in_them(lab: Any, row: Row, clock: Clock) -> None:
    lab.run(row())
    lab.run(row(None))
    assert lab.programmer.inspect(row(None), "", asks=None, resting=())[0] == []
    clock.now += RETIRE_SECONDS
    lab.run(row(None))
    assert lab.programmer.inspect(row(None), "", asks=None, resting=())[0] == []
