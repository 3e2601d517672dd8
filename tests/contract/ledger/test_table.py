"""The nodes' table and its change log, on a real server."""

import time
from dataclasses import replace
from ipaddress import ip_address

import pytest

from egress.adapters.ledger import BusyError, Ledger, Promise
from egress.adapters.ledger.table import LastChanges, TableRead
from egress.operations import Outcome, Step, StepRecord
from egress.table import Claim, NodeReport, Steering, SteeringHop

HOP = SteeringHop(ip_address("192.168.1.102"), "node2", ip_address("192.168.1.18"), acknowledged=False)
ROW = Steering(0x1094C2, "egress-test", (HOP,))


def test_without_a_table_a_reader_is_told_to_keep_what_it_has(ledger: Ledger) -> None:
    assert ledger.read_table().epoch == ""


def test_a_new_reader_gets_all_and_then_only_changes(ledger: Ledger) -> None:
    assert ledger.publish({ROW.netid: ROW, 7: Steering(7, "seven")}, expected=0, epoch="e1") == 2
    first = ledger.read_table()
    assert (first.epoch, first.change, first.whole) == ("e1", 2, True)
    assert set(first.rows) == {ROW.netid, 7}
    assert ledger.publish({7: None}, expected=2) == 3
    then = ledger.read_table("e1", 2)
    assert (then.change, then.whole, then.rows) == (3, False, {7: None})
    assert ledger.read_table("e1", 3).rows == {}
    assert ledger.read_table("other", 3).whole


def test_a_hop_carries_the_change_that_gave_it(ledger: Ledger) -> None:
    ledger.publish({5: Steering(5, "five"), ROW.netid: ROW}, expected=0, epoch="e1")
    row = ledger.read_table().rows[ROW.netid]
    assert row is not None
    assert row.hops[0].since == 2
    acknowledged = replace(row, hops=(replace(row.hops[0], acknowledged=True),))
    ledger.publish({ROW.netid: acknowledged}, expected=2)
    assert ledger.read_table().rows[ROW.netid] == acknowledged


def test_a_row_of_a_former_netid_says_so(ledger: Ledger) -> None:
    row = Steering(5, "five", former=3)
    ledger.publish({5: row}, expected=0, epoch="e1")
    assert ledger.read_table().rows == {5: row}


def test_an_older_view_never_overwrites_a_newer(ledger: Ledger) -> None:
    ledger.publish({5: Steering(5, "five")}, expected=0, epoch="e1")
    assert ledger.publish({5: None}, expected=0) is None
    assert 5 in ledger.read_table().rows


def test_reports_round_trip(ledger: Ledger) -> None:
    report = NodeReport(
        "node2",
        1.5,
        "e1",
        3,
        "192.168.1.18/24",
        "eth0",
        (Claim(HOP.address, 7, held=False, reason="AddressInUse", message="aa:bb answers"),),
        2,
        "",
    )
    ledger.report(report)
    assert ledger.reports(["node1", "node2"]) == {"node2": report}
    both = replace(report, gateways=(ip_address("2001:db8::1"),), other_links=("2001:db8::18/64", "fd00::18/48"))
    ledger.report(both)
    assert ledger.reports(["node2"]) == {"node2": both}


def test_several_asks_become_one_until_the_work_begins(ledger: Ledger) -> None:
    assert ledger.first_to("publish", 5)
    assert not ledger.first_to("publish", 5)
    ledger.done_with("publish")
    assert ledger.first_to("publish", 5)


def test_history_is_bounded_and_latest_first(ledger: Ledger) -> None:
    for number in range(120):
        ledger.record(StepRecord("a", Step.CLAIM, Outcome.DONE, float(number)))
    history = ledger.history("a")
    assert len(history) == 100
    assert history[0].at == 119.0


@pytest.mark.parametrize("text", ["'; FLUSHALL", "a\nb", "x" * 300])
def test_odd_names_are_only_names(ledger: Ledger, text: str) -> None:
    ledger.publish({9: Steering(9, text)}, expected=0, epoch="e")
    row = ledger.read_table().rows[9]
    assert row is not None
    assert row.namespace == text


def test_a_new_table_holds_nothing_of_an_older_one(ledger: Ledger) -> None:
    ledger.publish({5: Steering(5, "five")}, expected=0, epoch="e1")
    ledger._redis.delete("hawse:epoch")
    assert ledger.publish({6: Steering(6, "six")}, expected=1) is None
    assert ledger.publish({6: Steering(6, "six")}, expected=1, epoch="e2") == 2
    assert set(ledger.read_table().rows) == {6}


def test_a_reader_that_is_ahead_of_the_table_reads_all_of_it(ledger: Ledger) -> None:
    ledger.publish({5: Steering(5, "five")}, expected=0, epoch="e1")
    read = ledger.read_table("e1", 9)
    assert (read.change, read.whole, set(read.rows)) == (1, True, {5})


@pytest.mark.parametrize("text", ["{", "{}", '{"namespace":"a","hops":[{"address":"x"}]}'])
def test_a_table_with_a_row_that_cannot_be_read_is_as_none(ledger: Ledger, text: str) -> None:
    six = Steering(6, "six")
    ledger.publish({5: Steering(5, "five"), 6: six}, expected=0, epoch="e1")
    ledger._redis.hset("hawse:table", "5", text)
    assert ledger.read_table() == TableRead("", 0, whole=False, rows={6: six})
    assert ledger.read_table("e1", 1).epoch == "e1", "who need not read it goes on"
    assert ledger.publish({6: six}, expected=2, epoch="e2") == 3
    assert ledger.read_table() == TableRead("e2", 3, whole=True, rows={6: six})


def test_asks_for_a_netid_at_the_same_time_get_different_ones(ledger: Ledger) -> None:
    assert ledger.take_netid("a", [10, 11]) == 10
    assert ledger.take_netid("b", [10, 11]) == 11
    assert ledger.take_netid("a", [12]) == 10
    assert ledger.take_netid("c", [10, 11]) is None
    ledger.return_netid("a")
    assert ledger.take_netid("c", [10, 11]) == 10


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"at":1}',
        '{"at":1,"epoch":"","applied":0,"link":"x","interface":"","claims":[],"repairs":0,"problem":""}',
        '{"at":1,"epoch":"","applied":0,"link":"","interface":"","claims":[{"address":"x","netid":1,"held":true}],'
        '"repairs":0,"problem":""}',
    ],
)
def test_a_report_that_cannot_be_read_is_as_none(ledger: Ledger, text: str) -> None:
    report = NodeReport("node1", 1.5)
    ledger.report(report)
    run = ledger._redis.info("server")["run_id"]
    ledger._redis.set("hawse:node:node2", text.replace("{", f'{{"run":"{run}",', 1))
    assert ledger.reports(["node1", "node2"]) == {"node1": report}


def test_news_is_what_differs_from_the_last_time(ledger: Ledger) -> None:
    assert [ledger.is_news("x", value) for value in ("a", "a", "b", "a")] == [True, False, True, True]


def test_the_change_that_wrote_a_row_is_known_to_its_own_namespace_alone(ledger: Ledger) -> None:
    assert ledger.last_changes({"five": 5}) == LastChanges("", 0.0, {})
    ledger.publish({5: Steering(5, "five"), 6: Steering(6, "six")}, expected=0, epoch="e1")
    last = ledger.last_changes({"five": 5, "other": 6, "seven": 7})
    assert (last.epoch, last.changes) == ("e1", {"five": 1})
    assert abs(last.began - ledger.now()) < 5
    ledger.publish({5: None}, expected=2)
    assert ledger.last_changes({"five": 5}).changes == {}


def test_a_row_that_is_known_to_be_applied_is_news_once(ledger: Ledger) -> None:
    assert ledger.fenced({}) == []
    assert ledger.fenced({"a": "5:e1:1", "b": "6:e1:2"}) == ["a", "b"]
    assert ledger.fenced({"a": "5:e1:1", "b": "6:e1:3"}) == ["b"]


def test_a_promised_netid_is_fenced_as_long_as_its_row_is_the_one_that_all_have_applied(ledger: Ledger) -> None:
    assert ledger.take_netid("a", [5]) == 5
    ledger.fenced({"a": "5:e1:1"})
    assert not ledger.promise("a").fenced  # there is no table
    ledger.publish({5: Steering(5, "a"), 6: Steering(6, "b")}, expected=0, epoch="e1")
    assert ledger.promise("a").fenced
    ledger.publish({5: Steering(5, "b")}, expected=2)
    ledger.fenced({"a": "5:e1:3"})
    assert not ledger.promise("a").fenced  # it is another's row
    ledger.publish({5: Steering(5, "a")}, expected=3)
    assert not ledger.promise("a").fenced  # by now there is a later one
    ledger.fenced({"a": "5:e1:4"})
    assert ledger.promise("a").fenced
    ledger.return_netid("a")
    ledger.take_netid("a", [5])
    assert not ledger.promise("a").fenced


def test_netids_of_net_namespaces_are_not_taken(ledger: Ledger) -> None:
    assert ledger.promise("a") == Promise(None, seen=False, fenced=False, known=False)
    ledger.see_netids({10, 11})
    assert ledger.promise("a") == Promise(None, seen=False, fenced=False, known=True)
    assert ledger.take_netid("a", [10, 11, 12]) == 12
    assert ledger.promise("a") == Promise(12, seen=False, fenced=False, known=True)
    ledger.see_netids({12})
    assert ledger.promise("a") == Promise(12, seen=True, fenced=False, known=True)


def test_a_wait_is_counted_from_its_beginning(ledger: Ledger) -> None:
    assert ledger.waiting_for("it", 60)
    ledger._redis.set("hawse:pending:it", f"{ledger.now() - 61:.3f}")
    assert not ledger.waiting_for("it", 60)
    ledger.done_with("it")
    assert ledger.waiting_for("it", 60)


def test_one_at_a_time_and_whoever_comes_second_is_told_at_once(ledger: Ledger) -> None:
    with ledger.exclusively("place"):
        began = time.monotonic()
        with pytest.raises(BusyError, match="somebody else is at place"), ledger.exclusively("place"):
            pass
        assert time.monotonic() - began < 20
        with ledger.exclusively("publish"):
            pass
    with ledger.exclusively("place"):
        pass


def test_what_rests_lets_nobody_at_it_until_it_has(ledger: Ledger) -> None:
    ledger.check_rested("publish")
    ledger.rest("publish", 60)
    with pytest.raises(BusyError, match="publish rests"):
        ledger.check_rested("publish")
    ledger.check_rested("place")
    assert 0 < ledger._redis.pttl("hawse:rest:publish") <= 60_000
    ledger._redis.delete("hawse:rest:publish")  # it has
    ledger.check_rested("publish")


def test_namespaces_wait_for_their_turn_each_once(ledger: Ledger) -> None:
    assert ledger.next_turn() is None
    ledger.queue_namespaces("later", delay=30.0)
    assert 20 < (ledger.next_turn() or 0) <= 30
    assert ledger.next_namespaces(9) == []
    for name in ("a", "b", "a"):
        ledger.queue_namespaces(name)
    assert ledger.next_turn() == 0.0
    assert ledger.namespaces_waiting() == 3
    assert ledger.next_namespaces(1) == ["a"]
    ledger.queue_namespaces("a")
    assert ledger.next_namespaces(9) == ["b", "a"]
    ledger.queue_namespaces("later", delay=60.0)  # it keeps its place
    assert (ledger.next_turn() or 0) <= 30
    ledger.queue_namespaces("later")  # unless somebody wants it sooner
    assert ledger.next_namespaces(9) == ["later"]
    assert ledger.next_turn() is None
