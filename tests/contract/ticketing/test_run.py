"""One run for a profile: what is told, once, whatever fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from egress.adapters.cluster import ClusterAwayError, Kind
from egress.objects import RETRY_TICKET_ANNOTATION, Decision, Event, Verdict
from lab.tickets import Fault, Receiver
from tests.contract.ticketing.conftest import Desk
from workers.ticketing import telling
from workers.ticketing.polling import news_of

A, B = "10.0.0.1", "10.0.0.2"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def told(desk: Desk, receiver: Receiver) -> Desk:
    """A desk whose pool `prod` is told of by the webhook `fw`, with one claim of namespace `shop`."""
    desk.write(desk.webhook(receiver.url))
    desk.pool("prod", "fw")
    uid = desk.namespace("shop", **{"openshift.io/requester": "ann", "egress.hawse.dev/justification": "bank"})
    desk.claim(A, "shop", uid=uid)
    return desk


def said(receiver: Receiver) -> list[tuple[str, str]]:
    """Of each ticket the event and the address."""
    return [(ticket["type"].split(".")[-2], ticket["data"]["address"]) for ticket in receiver.tickets]


def test_an_assignment_is_told_once_with_all_that_the_firewall_team_asks(told: Desk, receiver: Receiver) -> None:
    told.run()
    told.run()
    assert said(receiver) == [("assigned", A)]
    assert len(receiver.requests) == 1
    claim = told.read(A)
    assert claim.ticket is not None
    assert (claim.ticket.told, claim.ticket.reference, claim.ticket.sending) == (Event.ASSIGNED, "FW-1", None)
    assert told.condition(A) == (None, "Told", "ticket FW-1")
    (step,) = told.ledger.history("shop")
    assert (step.step.value, step.address, step.message) == ("ticket", A, "fw: assigned FW-1")


def test_a_release_refers_to_the_ticket_and_the_next_assignment_is_another(told: Desk, receiver: Receiver) -> None:
    told.run()
    told.release(A)
    told.run()
    assert said(receiver) == [("assigned", A), ("released", A)]
    assert told.condition(A) is None
    told.place(A, "n1")
    told.run()
    assert said(receiver)[2:] == [("assigned", A)]
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 3
    ticket = told.read(A).ticket
    assert ticket is not None
    assert ticket.serial == 2


def test_an_assignment_and_its_release_are_told_whatever_events_a_profile_names(told: Desk, receiver: Receiver) -> None:
    told.write(told.webhook(receiver.url, events=[]))
    told.run()
    told.release(A)
    told.run()
    assert said(receiver) == [("assigned", A), ("released", A)]


def test_what_a_list_says_is_written_down_without_a_call(told: Desk, receiver: Receiver) -> None:
    told.write({"name": "fw", "type": "address-list"})
    told.run()
    assert told.read(A).ticket.told is Event.ASSIGNED  # type: ignore[union-attr]
    told.release(A)
    told.run()
    assert told.read(A).ticket.told is Event.RELEASED  # type: ignore[union-attr]
    assert not receiver.requests


def test_the_first_node_is_no_move_and_each_later_one_is(told: Desk, receiver: Receiver) -> None:
    told.write(told.webhook(receiver.url, events=["assigned", "moved", "released"]))
    told.run()
    told.place(A, "n1")
    told.run()
    assert said(receiver) == [("assigned", A)]
    told.place(A, "n2")
    told.run()
    told.place(A, "n1")
    told.run()
    told.run()
    assert said(receiver) == [("assigned", A), ("moved", A), ("moved", A)]


@pytest.mark.parametrize("fault", [Fault.DOWN, Fault.SLOW, Fault.ERROR, Fault.UNAVAILABLE, Fault.BUSY_UNTIL])
def test_a_system_that_fails_is_asked_again_later_and_told_once(told: Desk, receiver: Receiver, fault: Fault) -> None:
    told.write(told.webhook(receiver.url, timeout=2))  # it is what ends the waiting
    receiver.misbehave(fault)
    told.run()
    assert said(receiver) == []
    before = len(receiver.requests)
    told.run()
    assert len(receiver.requests) == before, "it was not left in peace"
    assert told.asked, "nobody looks at it again"
    told.patient()
    told.run_until(lambda: said(receiver))
    told.run()
    assert said(receiver) == [("assigned", A)]
    assert told.read(A).ticket.told is Event.ASSIGNED  # type: ignore[union-attr]


@pytest.mark.parametrize("fault", [Fault.FILED_AND_SILENT, Fault.FILED_AND_DOWN])
def test_what_was_filed_without_an_answer_is_filed_once(told: Desk, receiver: Receiver, fault: Fault) -> None:
    told.write(told.webhook(receiver.url, timeout=2))  # it is what ends the waiting
    receiver.misbehave(fault)
    told.run()
    assert told.read(A).ticket.sending is Event.ASSIGNED  # type: ignore[union-attr]
    told.run_until(lambda: told.read(A).ticket.told)  # type: ignore[union-attr]
    assert said(receiver) == [("assigned", A)]
    assert len(receiver.requests) == 2
    assert told.read(A).ticket.reference == "FW-1"  # type: ignore[union-attr]


def test_retry_after_is_honoured(told: Desk, receiver: Receiver) -> None:
    receiver.misbehave(Fault.BUSY)
    told.run()
    key = f"hawse-{told.read(A).uid}-1-assigned"
    waiting = told.ledger.waiting("fw", [key])[key]
    assert 5 < waiting.until - time.time() <= 7


def test_a_refusal_for_good_is_seen_and_waits_for_somebody(told: Desk, receiver: Receiver) -> None:
    receiver.misbehave(Fault.BAD)
    told.run()
    told.patient()
    told.run()
    assert len(receiver.requests) == 1
    status, reason, text = told.condition(A) or (True, "", "")
    assert (status, reason) == (None, "TicketFailed")
    assert "400" in text
    assert any(A in event and "400" in event for event in told.events("shop"))
    wish = {"metadata": {"annotations": {RETRY_TICKET_ANNOTATION: "yes"}}}
    told.context.cluster.patch(Kind.EGRESS_ADDRESS, A, wish)
    told.run()
    assert said(receiver) == [("assigned", A)]
    found = told.kube.get("EgressAddress", A)
    assert found is not None
    assert RETRY_TICKET_ANNOTATION not in found["metadata"].get("annotations", {})
    assert told.condition(A) == (None, "Told", "ticket FW-1")


@pytest.mark.parametrize("settings", [{"ticket_attempts": 2}])
def test_a_ticket_that_fails_too_often_is_given_up(told: Desk, receiver: Receiver) -> None:
    receiver.misbehave(Fault.ERROR, times=2)
    told.run()
    told.run_until(lambda: told.read(A).ticket.failed)  # type: ignore[union-attr]
    assert len(receiver.requests) == 2
    assert told.condition(A)[:2] == (None, "TicketFailed")  # type: ignore[index]
    told.run()
    assert len(receiver.requests) == 2
    told.release(A)  # a server that answers 500 may have taken it all the same
    told.run()
    assert said(receiver)[-1] == ("released", A)


def test_a_dead_system_is_left_in_peace_and_no_ticket_is_given_up(told: Desk, receiver: Receiver) -> None:
    for number in range(2, 40):
        told.claim(f"10.0.0.{number}", "shop")
    receiver.misbehave(Fault.ERROR, times=None)
    told.run()
    sent = len(receiver.requests)
    assert 5 <= sent <= 8, "those under way when it opened, and no more"
    told.asked.clear()
    told.run()
    assert len(receiver.requests) == sent
    assert not told.asked, "an open breaker fills no queue"
    breaker = told.ledger.breaker("fw")
    assert breaker.is_open
    assert 20 < breaker.until - time.time() <= 30
    # The probe, and the doubled rest after it.
    told.ledger.set_breaker("fw", replace(breaker, until=time.time() - 1))
    told.run()
    assert len(receiver.requests) == sent + 1
    assert 50 < told.ledger.breaker("fw").until - time.time() <= 60
    receiver.behave()
    told.ledger.set_breaker("fw", replace(told.ledger.breaker("fw"), until=time.time() - 1))
    told.run_until(lambda: len(receiver.tickets) == 39)
    assert not told.ledger.breaker("fw").is_open


def test_a_flush_between_any_two_runs_doubles_nothing(told: Desk, receiver: Receiver) -> None:
    receiver.misbehave(Fault.FILED_AND_DOWN)
    told.run()
    told.ledger._redis.flushall()
    told.run()  # somebody may still be at it: his lease says so
    assert len(receiver.requests) == 1
    told.run_until(lambda: told.read(A).ticket.told)  # type: ignore[union-attr]
    told.ledger._redis.flushall()
    told.run()
    assert said(receiver) == [("assigned", A)]


def test_a_telling_that_could_not_be_written_down_is_one_ticket(
    told: Desk, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = telling.write, iter([True, False])

    def away_once_told(*arguments: object) -> object:
        if next(calls, True):
            return write(*arguments)  # type: ignore[arg-type]
        raise ClusterAwayError("gone")

    monkeypatch.setattr(telling, "write", away_once_told)
    with pytest.raises(ClusterAwayError):
        told.run()
    assert said(receiver) == [("assigned", A)]
    told.run_until(lambda: told.read(A).ticket.told)  # type: ignore[union-attr]
    assert said(receiver) == [("assigned", A)]


def test_the_status_may_change_while_it_is_told(told: Desk, receiver: Receiver) -> None:
    original = receiver.answer

    def answer(request: object) -> object:
        told.place(A, "n7")
        return original(request)  # type: ignore[arg-type]

    receiver.answer = answer  # type: ignore[method-assign,assignment]
    told.run()
    claim = told.read(A)
    assert claim.node == "n7"
    assert claim.ticket is not None
    assert claim.ticket.told is Event.ASSIGNED
    assert claim.ticket.reference == "FW-1"


def test_a_profile_that_is_not_there_is_said_and_told_once_it_is(desk: Desk, receiver: Receiver) -> None:
    desk.pool("prod", "fw")
    uid = desk.namespace("shop")
    desk.claim(A, "shop", uid=uid)
    desk.run()
    status, reason, text = desk.condition(A) or (True, "", "")
    assert (status, reason) == (None, "TicketFailed")
    assert text.startswith("no ticket profile fw; ")
    desk.run()
    assert len(desk.ledger.history("shop")) == 1, "said once"
    desk.write(desk.webhook(receiver.url))
    desk.run()
    assert said(receiver) == [("assigned", A)]


def test_a_profile_that_nobody_names_any_more_holds_no_release_up(told: Desk, receiver: Receiver) -> None:
    told.run()
    told.write()
    told.context.cluster.patch(Kind.EGRESS_POOL, "prod", {"spec": {"ticketProfile": None}})
    told.release(A)
    told.run()
    assert told.read(A).ticket.told is Event.RELEASED  # type: ignore[union-attr]
    assert said(receiver) == [("assigned", A)]


def test_a_pool_that_cannot_be_read_is_not_one_without_a_profile(told: Desk, receiver: Receiver) -> None:
    told.run()
    told.write()
    told.release(A)
    told.context.cluster.patch(Kind.EGRESS_POOL, "prod", {"spec": {"cidrs": ["10.0.0.0/16", "10.0.0.0/8"]}})
    assert told.context.pools() == []
    told.run()
    ticket = told.read(A).ticket
    assert ticket is not None
    assert (ticket.told, ticket.failed) == (Event.ASSIGNED, Event.RELEASED), "the release is owed"


def test_a_bad_file_is_said_once_and_the_old_one_stays(told: Desk, receiver: Receiver) -> None:
    told.run()
    (told.directory / "profiles.yaml").write_text("profiles: 7")
    told.claim(B, "shop")
    told.run()
    assert said(receiver) == [("assigned", A), ("assigned", B)]


def test_a_system_that_is_not_there_has_received_nothing(told: Desk, receiver: Receiver) -> None:
    receiver.stop()
    told.run()
    ticket = told.read(A).ticket
    assert ticket is not None
    assert ticket.sending is None
    receiver.start()
    told.patient()
    told.run()
    assert said(receiver) == [("assigned", A)]


def test_two_at_once_tell_one_thing(told: Desk, receiver: Receiver) -> None:
    with told.ledger.ticketing("fw", 5):
        told.run()
    assert not receiver.requests
    assert told.asked == [("hawse.v1.tickets", ["fw"], 1.0)]


def test_what_was_approved_and_is_not_any_more(told: Desk) -> None:
    claim = told.read(A)
    poll, now = "poll of fw", 1000.0
    approved = Decision(Verdict.APPROVED, "bob", 900.0, "snow")
    assert news_of(claim, approved, poll, now) == replace(approved, source=poll)
    polled = replace(claim, decision=replace(approved, source=poll))
    withdrawn = news_of(polled, None, poll, now)
    assert withdrawn is not None
    assert (withdrawn.verdict, withdrawn.at) == (Verdict.WITHDRAWN, now)
    by_hand = replace(claim, decision=Decision(Verdict.WITHDRAWN, "eve", 950.0, "dashboard"))
    assert news_of(by_hand, approved, poll, now) is None
    assert news_of(by_hand, replace(approved, at=960.0), poll, now) is None, "never loosened"
    approved_by_hand = replace(claim, decision=Decision(Verdict.APPROVED, "eve", 950.0, "dashboard"))
    assert news_of(approved_by_hand, None, poll, now) is None
    rejected = Decision(Verdict.REJECTED, "bob", 960.0, "snow")
    assert news_of(approved_by_hand, rejected, poll, now) == replace(rejected, source=poll)
