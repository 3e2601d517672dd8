"""The runner's loop on a node in memory and a ledger that can go away."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_interface
from typing import Any

import pytest
import structlog

from egress.adapters.ledger import LedgerAwayError, TableRead
from egress.addresses import Address
from egress.liveness import Identity
from egress.messages import FAILOVER_TASK, PUBLISH_TASK
from egress.operations import TransientError
from egress.table import Claim, NodeReport, Steering
from node_runner.drivers.errors import IptablesFailed, LinkFailed, NetlinkFailed
from node_runner.drivers.ports import ANNOUNCE_SCHEDULE
from node_runner.runner import Runner

Row = Callable[..., dict[int, Steering]]
NETID = 0x1094C2
A = IPv4Address("192.168.1.102")
B = IPv4Address("192.168.1.103")
NODE3 = IPv4Address("192.168.1.19")


class FakeLedger:
    """A table with its change log, as the ledger answers for it, and the reports that came."""

    def __init__(self) -> None:
        self.away = False
        self.epoch = ""
        self.log: list[tuple[int, Steering | None]] = []
        self.reports: list[NodeReport] = []
        self.asked: list[tuple[str, int]] = []

    def begin(self, epoch: str, rows: dict[int, Steering]) -> None:
        """A new table."""
        self.epoch, self.log = epoch, list(rows.items())

    def change(self, netid: int, row: Steering | None) -> None:
        """One more change."""
        self.log.append((netid, row))

    def read_table(self, epoch: str, change: int) -> TableRead:
        """See Ledger."""
        if self.away:
            raise LedgerAwayError("away")
        self.asked.append((epoch, change))
        if not self.epoch:
            return TableRead("", 0, whole=False, rows={})
        whole = epoch != self.epoch
        rows = dict(self.log if whole else self.log[change:])
        return TableRead(self.epoch, len(self.log), whole, rows)

    def report(self, report: NodeReport) -> None:
        """See Ledger."""
        if self.away:
            raise LedgerAwayError("away")
        self.reports.append(report)

    @property
    def last(self) -> NodeReport:
        return self.reports[-1]


class Told:
    """Counts how often the workers were told."""

    def __init__(self) -> None:
        self.times = 0
        self.tasks: list[str] = []

    def __call__(self, task: str) -> None:
        self.times += task == PUBLISH_TASK
        self.tasks.append(task)


class Clock:
    """Time that stands still until a test moves it."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def runner(lab: Any, ledger: Any, told: Told) -> Runner:
    return Runner(Identity("node2", "192.168.1.18"), lab.programmer, ledger, told, retry=0.05)


def restarted(lab: Any, ledger: Any, told: Told) -> Runner:
    return Runner(Identity("node2", "192.168.1.18"), lab.programmer, ledger, told, retry=0.05)


def test_it_reports_what_it_holds_and_tells_the_workers_once(
    runner: Runner, ledger: FakeLedger, told: Told, row: Row
) -> None:
    ledger.begin("e1", row())
    runner.step()
    assert ledger.last.claims == (Claim(A, NETID, held=True),)
    assert (ledger.last.epoch, ledger.last.applied) == ("e1", 1)
    assert (ledger.last.link, ledger.last.interface, ledger.last.problem) == ("192.168.1.18/24", "eth0", "")
    assert told.times == 1
    ledger.begin("e1", row(acknowledged=True))
    ledger.change(NETID, row(acknowledged=True)[NETID])
    runner.step()
    assert told.times == 1


def test_its_addresses_of_the_other_ip_version_are_reported_and_told_when_they_change(
    runner: Runner, lab: Any, ledger: FakeLedger, told: Told
) -> None:
    ledger.begin("e1", {})
    runner.step()
    assert ledger.last.other_links == ()
    before = told.times
    lab.fake.links._facts = replace(lab.fake.links._facts, other_ips=(ip_interface("2001:db8::18/64"),))
    runner.step()
    assert ledger.last.other_links == ("2001:db8::18/64",)
    assert told.times == before + 1


def test_what_placement_asks_of_a_node_is_told_when_it_changes(
    runner: Runner, ledger: FakeLedger, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.begin("e1", {})
    runner.step()
    assert told.times == 1  # the link is known now
    runner.step()
    assert told.times == 1

    def broken(*_: object, **__: object) -> None:
        raise LinkFailed("down")

    with monkeypatch.context() as patched:
        patched.setattr(runner._programmer, "run", broken)
        runner.step()
        runner.step()
    assert (ledger.last.problem, told.times) == ("LinkFailed: down", 2)
    assert (ledger.last.last_problem, ledger.last.last_problem_at) == ("LinkFailed: down", ledger.last.at)
    failed_at = ledger.last.at
    runner.step()
    assert (ledger.last.problem, told.times) == ("", 3)
    assert (ledger.last.last_problem, ledger.last.last_problem_at) == ("LinkFailed: down", failed_at), (
        "it is remembered"
    )


def test_a_table_never_read_leaves_the_node_as_it_is(
    lab: Any, runner: Runner, ledger: FakeLedger, told: Told, row: Row
) -> None:
    lab.run(row())
    writes = lab.fake.writes
    runner.step()
    assert lab.fake.writes == writes
    assert ledger.last.claims == (Claim(A, NETID, held=True),)
    assert (ledger.last.epoch, ledger.last.applied) == ("", 0)
    assert told.times == 1


def test_redis_away_leaves_the_node_as_it_is_and_still_repairs_it(
    lab: Any, runner: Runner, ledger: FakeLedger, row: Row
) -> None:
    ledger.begin("e1", row())
    runner.step()
    state = (lab.flow(), lab.addresses)
    ledger.away = True
    runner.step()
    lab.fake.links.take_away(A)
    runner.step()
    assert (lab.flow(), lab.addresses) == state


def test_a_flush_leaves_the_node_as_it_is_and_says_what_it_holds(
    lab: Any, runner: Runner, ledger: FakeLedger, told: Told, row: Row
) -> None:
    ledger.begin("e1", row(acknowledged=True))
    runner.step()
    writes, times = lab.fake.writes, told.times
    ledger.epoch = ""
    runner.step()
    assert lab.fake.writes == writes
    assert (ledger.last.epoch, ledger.last.applied) == ("", 0)
    assert ledger.last.claims == (Claim(A, NETID, held=True),)
    assert told.times == times + 1


def test_a_new_epoch_is_the_whole_table(lab: Any, runner: Runner, ledger: FakeLedger, row: Row) -> None:
    ledger.begin("e1", {**row(), **row(None, netid=7)})
    runner.step()
    assert lab.flow(7) == "drop"
    ledger.begin("e2", row())
    runner.step()
    assert ledger.asked[-1] == ("e1", 2)
    assert lab.flow(7) == ""
    assert ledger.last.epoch == "e2"


def test_only_changes_are_read_and_a_removed_row_takes_its_flow(
    lab: Any, runner: Runner, ledger: FakeLedger, row: Row
) -> None:
    ledger.begin("e1", row())
    runner.step()
    ledger.change(NETID, None)
    runner.step()
    assert (lab.flow(), lab.addresses) == ("", set())
    runner.step()
    assert ledger.asked == [("", 0), ("e1", 1), ("e1", 2)]


@pytest.mark.parametrize(
    "touch",
    [
        lambda fake: fake.links.take_away(A),
        lambda fake: fake.flows.wipe(),
        lambda fake: fake.nat.flush("nat", "HAWSE-SNAT"),
    ],
    ids=["address", "flows", "rules"],
)
def test_drift_is_counted_and_nothing_else_is(
    lab: Any, runner: Runner, ledger: FakeLedger, row: Row, touch: Callable[[Any], None]
) -> None:
    ledger.begin("e1", row())
    runner.step()
    ledger.change(NETID, row(acknowledged=True)[NETID])
    ledger.change(7, row(str(B), netid=7)[7])
    runner.step()
    runner.step()
    assert ledger.last.repairs == 0
    touch(lab.fake)
    runner.step()
    runner.step()
    assert ledger.last.repairs == 1
    assert all(claim.held for claim in ledger.last.claims)


def test_neither_a_failed_pass_nor_an_address_won_at_last_is_drift(
    lab: Any, runner: Runner, ledger: FakeLedger, row: Row, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    def fail(_: object) -> None:
        raise IptablesFailed("no")

    lab.fake.arp.neighbours[B] = "aa:bb"
    ledger.begin("e1", {**row(), **row(str(B), netid=7)})
    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.nat, "apply", fail)
        runner.step()
    assert ledger.last.problem == "IptablesFailed: no"
    assert (ledger.last.applied, ledger.last.claims) == (0, ())
    runner.step()
    assert [claim.held for claim in ledger.last.claims] == [True, False]
    lab.fake.arp.neighbours.clear()
    clock.now += 0.06
    runner.step()
    assert [claim.held for claim in ledger.last.claims] == [True, True]
    assert ledger.last.repairs == 0


def test_a_refusal_rests_and_is_told_at_once(
    lab: Any, runner: Runner, ledger: FakeLedger, told: Told, row: Row, clock: Clock
) -> None:
    lab.fake.arp.neighbours[A] = "aa:bb"
    ledger.begin("e1", row())
    runner.step()
    assert told.times == 1
    lab.calls.clear()
    runner.step()
    assert lab.order == []
    assert told.times == 1
    clock.now += 0.06
    runner.step()
    assert lab.order == ["probe"]
    assert ledger.last.claims[0].reason == "AddressInUse"


def test_an_address_is_announced_on_schedule_and_no_longer_than_it_is_held(
    lab: Any, runner: Runner, ledger: FakeLedger, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ledger.begin("e1", row())
    runner.step()
    for after in ANNOUNCE_SCHEDULE[1:-1]:
        now = 1000.0 + after
        runner.step()
    assert announced(lab) == [A] * (len(ANNOUNCE_SCHEDULE) - 1)
    ledger.change(NETID, None)
    runner.step()
    now = 1000.0 + ANNOUNCE_SCHEDULE[-1]
    runner.step()
    assert len(lab.fake.arp.announced) == len(ANNOUNCE_SCHEDULE) - 1


def announced(lab: Any) -> list[Address]:
    return [address for _, address in lab.fake.arp.announced]


def test_an_announcement_that_fails_is_made_again_and_fails_no_pass(
    lab: Any, runner: Runner, ledger: FakeLedger, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LinkFailed("down")

    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ledger.begin("e1", row())
    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.arp, "announce", fail)
        for now in (1000.0, 1001.0, 1003.0, 1007.0, 1100.0):  # noqa: B007 - the clock
            runner.step()
            assert (ledger.last.problem, ledger.last.claims) == ("", (Claim(A, NETID, held=True),))
    now = 1100.5
    runner.step()
    assert announced(lab) == []
    now = 1101.0
    runner.step()
    runner.step()
    assert announced(lab) == [A]


def test_a_restarted_runner_announces_what_it_holds(
    lab: Any, runner: Runner, ledger: Any, told: Told, row: Row
) -> None:
    ledger.begin("e1", {**row(), **row("192.168.1.200", "node1", netid=9), **row(str(B), netid=7)})
    runner.step()
    lab.fake.arp.announced.clear()
    runner.step()
    assert announced(lab) == []
    again = restarted(lab, ledger, told)
    again.step()
    again.step()
    assert sorted(announced(lab)) == [A, B]


def test_what_a_failed_pass_had_taken_is_announced_by_the_next_one(
    lab: Any, runner: Runner, ledger: FakeLedger, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise NetlinkFailed("no")

    ledger.begin("e1", row())
    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.conntrack, "forget_stale", fail)
        runner.step()
    assert (lab.addresses, announced(lab)) == ({str(A)}, [])
    runner.step()
    assert announced(lab) == [A]


def test_an_address_put_back_is_announced_again(lab: Any, runner: Runner, ledger: FakeLedger, row: Row) -> None:
    ledger.begin("e1", row())
    runner.step()
    lab.fake.links.take_away(A)
    runner.step()
    assert announced(lab) == [A, A]


def test_a_restart_without_memory_changes_nothing(
    lab: Any, runner: Runner, ledger: FakeLedger, told: Told, row: Row
) -> None:
    ledger.begin("e1", {**row(acknowledged=True), **row(None, netid=7)})
    runner.step()
    writes = lab.fake.writes
    again = restarted(lab, ledger, told)
    again.step()
    assert lab.fake.writes == writes
    assert ledger.last.repairs == 0
    assert ledger.last.claims == (Claim(A, NETID, held=True),)


def test_a_restart_releases_what_is_no_longer_its_own(
    lab: Any, runner: Runner, ledger: FakeLedger, told: Told, row: Row
) -> None:
    ledger.begin("e1", row())
    runner.step()
    ledger.begin("e1", row("192.168.1.102", "node1", acknowledged=True, node_ip=IPv4Address("192.168.1.17")))
    again = restarted(lab, ledger, told)
    again.step()
    assert lab.addresses == set()
    assert "tun_dst" in lab.flow()
    assert ledger.last.claims == ()


def test_the_loop_goes_on_whoever_is_away_and_ends_at_once(lab: Any, ledger: FakeLedger, row: Row) -> None:
    def away(_: str) -> None:
        raise TransientError("the broker is away")

    runner = restarted(lab, ledger, away)  # type: ignore[arg-type]
    stop = threading.Event()
    loop = threading.Thread(target=runner.run, args=(stop, 0.02))
    ledger.away = True
    loop.start()
    time.sleep(0.1)
    ledger.begin("e1", row())
    ledger.away = False
    deadline = time.monotonic() + 5
    while not lab.addresses and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    runner.wake()
    loop.join(2)
    assert not loop.is_alive()
    assert lab.addresses == {str(A)}


def test_the_loop_looks_as_soon_as_somebody_touches_the_flows(
    lab: Any, ledger: FakeLedger, told: Told, row: Row
) -> None:
    runner = restarted(lab, ledger, told)
    ledger.begin("e1", row())
    stop = threading.Event()
    lab.fake.flows.present = False
    loop = threading.Thread(target=runner.run, args=(stop, 60))
    watch = threading.Thread(target=runner.watch, args=(lab.fake.flows, runner.touched, stop))
    loop.start()
    watch.start()
    try:
        lab.fake.flows.present = True  # the watch comes back by itself, and with it a look
        eventually(lab.flow)
        for _ in range(2):
            lab.fake.flows.wipe()
            eventually(lab.flow)
    finally:
        stop.set()
        runner.wake()
        loop.join(5)
        watch.join(5)
    assert not loop.is_alive()
    assert not watch.is_alive()


def eventually(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_drop_that_somebody_may_wait_for_is_told(runner: Runner, ledger: FakeLedger, told: Told, row: Row) -> None:
    ledger.begin("e1", {})
    runner.step()
    before = told.times
    ledger.change(NETID, row(None)[NETID])
    runner.step()
    assert told.times == before + 1
    runner.step()
    assert told.times == before + 1


def test_what_becomes_of_each_row_is_logged_with_its_operation(
    runner: Runner, ledger: FakeLedger, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.begin("e1", row(netid=7))
    runner.step()
    with structlog.testing.capture_logs() as logs:
        for changed in (row(None), row(), row(node="node3", node_ip=NODE3, acknowledged=True)):
            ledger.change(NETID, replace(changed[NETID], operation="op-1"))
            runner.step()
        ledger.change(NETID, None)
        runner.step()
    told = [(entry["traffic"], entry["operation"]) for entry in logs if entry["event"] == "programmed"]
    assert told == [("dropped", "op-1"), ("sent out", "op-1"), ("steered", "op-1"), ("left alone", "")]


def test_a_link_that_goes_or_comes_is_for_the_workers_to_judge(
    runner: Runner, lab: Any, ledger: FakeLedger, told: Told
) -> None:
    ledger.begin("e1", {})
    runner.step()
    assert FAILOVER_TASK not in told.tasks
    lab.fake.links.carrier = False
    runner.step()
    assert not ledger.last.carrier
    assert told.tasks.count(FAILOVER_TASK) == 1
    lab.fake.links.carrier = True
    runner.step()
    runner.step()
    assert ledger.last.carrier
    assert told.tasks.count(FAILOVER_TASK) == 2


@pytest.fixture
def hasty(lab: Any, ledger: Any, told: Told) -> Runner:
    return Runner(Identity("node2", "192.168.1.18"), lab.programmer, ledger, told, retry=0.05, patience=0.05)


def test_without_its_link_and_the_table_a_node_gives_its_addresses_up(
    hasty: Runner, lab: Any, ledger: FakeLedger, row: Row, clock: Clock
) -> None:
    ledger.begin("e1", row(acknowledged=True))
    hasty.step()
    assert lab.addresses == {str(A)}
    ledger.away, lab.fake.links.carrier = True, False
    hasty.step()
    clock.now += 0.06
    hasty.step()
    assert lab.addresses == set()
    assert lab.flow() == "drop"
    assert ledger.last.repairs == 0
    lab.fake.links.carrier = True
    hasty.step()
    assert lab.addresses == set()  # others may have it by now; only the table can tell
    ledger.away = False
    hasty.step()
    assert ledger.asked[-1] == ("", 0)
    assert lab.addresses == {str(A)}


def test_without_the_ledger_alone_it_keeps_them(
    hasty: Runner, lab: Any, ledger: FakeLedger, row: Row, clock: Clock
) -> None:
    ledger.begin("e1", row(acknowledged=True))
    hasty.step()
    ledger.away = True
    for _ in range(3):
        hasty.step()
        clock.now += 0.06
    assert lab.addresses == {str(A)}
    assert "set_field" in lab.flow()


def test_without_a_link_it_lets_them_go_and_takes_them_back_with_it(
    hasty: Runner, lab: Any, ledger: FakeLedger, row: Row
) -> None:
    ledger.begin("e1", row(acknowledged=True))
    hasty.step()
    lab.fake.links.carrier = False
    for _ in range(2):
        hasty.step()
        assert lab.addresses == set()
        assert lab.flow() == "drop"
        assert [(claim.held, claim.reason) for claim in ledger.last.claims] == [(False, "NoCarrier")]
    lab.fake.links.carrier = True
    hasty.step()
    assert lab.addresses == {str(A)}
    assert "set_field" in lab.flow()
    assert ledger.last.repairs == 0


def test_what_another_took_meanwhile_is_left_to_it(hasty: Runner, lab: Any, ledger: FakeLedger, row: Row) -> None:
    ledger.begin("e1", row(acknowledged=True))
    hasty.step()
    lab.fake.links.carrier = False
    hasty.step()
    lab.fake.arp.neighbours[A] = "0a:00:00:00:00:09"
    lab.fake.links.carrier = True
    hasty.step()
    assert lab.addresses == set()
    assert ledger.last.claims[0].reason == "AddressInUse"


def test_a_link_that_goes_is_looked_at_at_once(hasty: Runner, lab: Any, ledger: FakeLedger, row: Row) -> None:
    ledger.begin("e1", row(acknowledged=True))
    stop = threading.Event()
    loop = threading.Thread(target=hasty.run, args=(stop, 60.0))
    loop.start()
    try:
        eventually(lambda: lab.addresses == {str(A)})
        lab.fake.links.carrier = False
        hasty.look_anew()  # the kernel tells of it
        eventually(lambda: lab.addresses == set())
    finally:
        stop.set()
        hasty.wake()
        loop.join(10)


def test_they_go_before_anything_else_is_looked_at(
    hasty: Runner, lab: Any, ledger: FakeLedger, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.begin("e1", row(acknowledged=True))
    hasty.step()
    ledger.away, lab.fake.links.carrier = True, False
    held: list[set[str]] = []
    read = lab.fake.flows.read

    def slow(**options: Any) -> Any:
        held.append(lab.addresses)
        return read(**options)

    monkeypatch.setattr(lab.fake.flows, "read", slow)
    hasty.step()
    assert held
    assert held[0] == set()


def test_a_link_that_was_down_for_long_while_a_pass_went_on_counts(
    hasty: Runner, lab: Any, ledger: FakeLedger, row: Row, clock: Clock
) -> None:
    ledger.begin("e1", row(acknowledged=True))
    hasty.step()
    ledger.away = True
    hasty.step()
    lab.fake.links.carrier = False
    hasty.look_anew()  # the kernel tells of it
    clock.now += 0.06
    lab.fake.links.carrier = True
    hasty.look_anew()
    hasty.step()
    assert lab.addresses == set()


def test_a_cut_that_ends_in_time_is_forgotten(
    hasty: Runner, lab: Any, ledger: FakeLedger, row: Row, clock: Clock
) -> None:
    ledger.begin("e1", row(acknowledged=True))
    hasty.step()
    ledger.away, lab.fake.links.carrier = True, False
    hasty.step()
    lab.fake.links.carrier = True
    hasty.step()
    assert lab.addresses == {str(A)}
    clock.now += 0.06
    lab.fake.links.carrier = False
    hasty.step()
    lab.fake.links.carrier = True
    hasty.step()
    assert lab.addresses == {str(A)}


def test_they_are_gone_before_anybody_hears_that_the_link_is(
    hasty: Runner, lab: Any, ledger: FakeLedger, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.begin("e1", row(acknowledged=True))
    hasty.step()
    facts, report = lab.fake.links.facts, ledger.report
    held: list[tuple[bool, set[str]]] = []
    asked: list[bool] = []

    def falling() -> Any:  # after the first look of the pass
        asked.append(lab.fake.links.carrier)
        lab.fake.links.carrier = len(asked) < 2
        return facts()

    def noting(told: Any) -> None:
        held.append((told.carrier, lab.addresses))
        report(told)

    monkeypatch.setattr(lab.fake.links, "facts", falling)
    monkeypatch.setattr(ledger, "report", noting)
    hasty.step()
    assert asked[0]
    assert held == [(False, set())]


def test_it_knows_what_the_table_gives_other_nodes(runner: Runner, ledger: FakeLedger, row: Row) -> None:
    assert runner.addresses_of("node3") == frozenset()
    ledger.begin("e1", row(node="node3", node_ip=NODE3) | row(str(B), netid=7))
    runner.step()
    assert runner.addresses_of("node3") == {A}
    assert runner.addresses_of("node2") == {B}


def test_a_nudge_trusts_what_is_known_and_the_clock_does_not(
    runner: Runner, lab: Any, ledger: FakeLedger, row: Row
) -> None:
    ledger.begin("e1", row())
    runner.step()
    lab.fake.flows.wipe()  # and nobody has told
    runner.wake()
    runner.step()
    assert lab.flow() == ""
    runner.step()
    assert lab.flow() != ""
    assert ledger.last.repairs == 1


def test_who_is_told_of_a_change_looks_though_it_was_nudged(
    runner: Runner, lab: Any, ledger: FakeLedger, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_runner.runner.ECHO_SECONDS", 0.0)
    ledger.begin("e1", row())
    runner.step()
    lab.fake.flows.wipe()
    runner.touched()
    runner.wake()
    runner.step()
    assert lab.flow() != ""


def test_what_it_hears_of_its_own_writing_while_it_goes_on_is_no_touch(
    runner: Runner, lab: Any, ledger: FakeLedger, row: Row, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """A pass may wait half a second between its first flow and its last: for the link to answer."""
    monkeypatch.setattr("node_runner.runner.ECHO_SECONDS", 0.3)
    ledger.begin("e1", row(None))
    runner.step()
    clock.now += 0.35
    apply = lab.fake.nat.apply

    def told_meanwhile(change: Any) -> None:
        runner.touched()
        apply(change)

    monkeypatch.setattr(lab.fake.nat, "apply", told_meanwhile)
    ledger.change(NETID, row()[NETID])
    runner.wake()
    runner.step()
    assert lab.addresses == {str(A)}
    lab.fake.flows.wipe()  # and nobody tells
    runner.wake()
    runner.step()
    assert lab.flow() == ""


@pytest.mark.parametrize("echo", [True, False])
def test_that_its_own_address_has_come_is_no_reason_to_read_everything(
    runner: Runner, lab: Any, ledger: FakeLedger, row: Row, monkeypatch: pytest.MonkeyPatch, echo: bool
) -> None:
    """The interface tells of it; what follows is most often the row that says that this node has acknowledged."""
    monkeypatch.setattr("node_runner.runner.ECHO_SECONDS", 60.0 if echo else 0.0)
    ledger.begin("e1", row())
    runner.step()
    reads: list[str] = []

    def count(driver: Any, name: str) -> None:
        call = getattr(driver, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            reads.append(name)
            return call(*arguments, **options)

        monkeypatch.setattr(driver, name, counted)

    count(lab.fake.flows, "facts")
    count(lab.fake.flows, "read")
    count(lab.fake.nat, "read")
    runner.look_anew()
    ledger.change(NETID, row(acknowledged=True)[NETID])
    runner.wake()
    runner.step()
    assert sorted(reads) == ([] if echo else ["facts", "read", "read"])
    assert lab.addresses == {str(A)}


def test_its_own_writing_brings_one_look_a_moment_later(lab: Any, ledger: FakeLedger, told: Told, row: Row) -> None:
    runner = restarted(lab, ledger, told)
    ledger.begin("e1", row())
    stop = threading.Event()
    loop = threading.Thread(target=runner.run, args=(stop, 60))
    watch = threading.Thread(target=runner.watch, args=(lab.fake.flows, runner.touched, stop))
    loop.start()
    watch.start()
    try:
        eventually(lambda: lab.addresses)
        lab.fake.flows.wipe()  # told within the moment in which it may be the runner's own doing
        eventually(lab.flow)
    finally:
        stop.set()
        runner.wake()
        loop.join(5)
        watch.join(5)
    assert not loop.is_alive()


def test_nudges_do_not_put_the_look_by_the_clock_off(lab: Any, ledger: FakeLedger, told: Told, row: Row) -> None:
    runner = restarted(lab, ledger, told)
    ledger.begin("e1", row())
    stop = threading.Event()
    loop = threading.Thread(target=runner.run, args=(stop, 0.5))
    loop.start()
    try:
        eventually(lab.flow)
        lab.fake.flows.wipe()  # and nobody tells
        deadline = time.monotonic() + 5
        while not lab.flow() and time.monotonic() < deadline:
            runner.wake()
            time.sleep(0.05)
        assert lab.flow()
    finally:
        stop.set()
        runner.wake()
        loop.join(5)
