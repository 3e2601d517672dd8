"""What is due to be told, and what a decision means."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress import tickets
from egress.objects import Condition, Decision, EgressAddress, Event, Phase, Ticket, Verdict
from egress.tickets import DecisionError, Notice, Receipt

ALL = tuple(Event)
NOW = 1_800_000_000.0
FREE = EgressAddress("192.0.2.7", "prod", "app", "ns-1", uid="o-1")
READY = replace(FREE, phase=Phase.READY, node="node1")


def notice(claim: EgressAddress, event: Event, ticket: Ticket) -> Notice:
    key = tickets.key_of(replace(claim, ticket=ticket))
    return Notice(
        event, f"{key}-{event}", key, NOW, "c1", claim.namespace, claim.namespace_uid, claim.address, claim.pool,
        claim.node, conflict=tickets.conflict_of(claim),
    )  # fmt: skip


def tell(claim: EgressAddress, profile: str = "snow", wanted: tuple[Event, ...] = ALL) -> tuple[EgressAddress, Notice]:
    """The claim after what is due was told, and what was."""
    event = tickets.due(claim, profile, wanted)
    assert event is not None
    ticket = tickets.begin(claim, event, profile, NOW + 15)
    said = notice(claim, event, ticket)
    return replace(claim, ticket=tickets.told(ticket, said, Receipt("CHG1", "https://t/1", "h1"), NOW)), said


def release(claim: EgressAddress) -> EgressAddress:
    return replace(tickets.ended(claim), phase=Phase.QUARANTINED, node="")


def test_an_address_without_a_profile_is_nobodys_business() -> None:
    assert tickets.due(READY, "", ALL) is None
    assert tickets.due(release(READY), "snow", ALL) is None


def test_the_whole_way_of_an_address_is_told_in_order_and_each_thing_once() -> None:
    events = []
    claim, said = tell(FREE)
    events.append(said.event)
    claim = replace(claim, phase=Phase.READY, node="node1")
    claim = replace(claim, ticket=replace(claim.ticket, node="node1"))
    assert tickets.due(claim, "snow", ALL) is None
    claim, said = tell(replace(claim, node="node2"))
    events.append(said.event)
    assert tickets.due(claim, "snow", ALL) is None
    assert not tickets.owes_release(replace(FREE, phase=Phase.QUARANTINED))
    claim = release(claim)
    assert tickets.owes_release(claim)
    claim, said = tell(claim)
    events.append(said.event)
    assert not tickets.owes_release(claim)
    claim, said = tell(claim)
    events.append(said.event)
    assert tickets.due(claim, "snow", ALL) is None
    assert events == [Event.ASSIGNED, Event.MOVED, Event.RELEASED, Event.QUARANTINED]
    assert claim.ticket is not None
    assert (claim.ticket.reference, claim.ticket.handle, claim.ticket.serial) == ("CHG1", "h1", 1)


def test_what_a_profile_does_not_want_is_not_due_but_for_the_release() -> None:
    claim, _ = tell(READY)
    assert tickets.due(replace(claim, node="node2"), "snow", (Event.ASSIGNED,)) is None
    claim = release(claim)
    assert tickets.due(claim, "snow", ()) is Event.RELEASED
    claim, _ = tell(claim)
    assert tickets.due(claim, "snow", ()) is None


def test_a_namespace_that_takes_its_address_up_again_gets_another_ticket_after_the_release_was_told() -> None:
    first, _ = tell(READY)
    again = replace(release(first), phase=Phase.READY, node="node1", namespace_uid="ns-2")
    assert tickets.due(again, "snow", ALL) is Event.RELEASED
    again, said = tell(again)
    assert said.key == tickets.key_of(first)
    again, said = tell(again)
    assert said.event is Event.ASSIGNED
    assert said.key == "hawse-o-1-2" != tickets.key_of(first)


def test_what_may_have_been_received_is_told_to_its_end_whatever_has_become_of_the_address() -> None:
    under_way = replace(READY, ticket=tickets.begin(READY, Event.ASSIGNED, "snow", NOW + 15))
    assert tickets.due(under_way, "snow", ALL) is Event.ASSIGNED
    over = release(under_way)
    assert tickets.owes_release(over)
    assert tickets.due(over, "", ALL) is Event.ASSIGNED
    over, said = tell(over)
    assert said.key == tickets.key_of(under_way)
    assert tickets.due(over, "snow", ALL) is Event.RELEASED


def test_an_assignment_that_ended_untold_is_forgotten() -> None:
    ticket = tickets.failed(tickets.begin(READY, Event.ASSIGNED, "snow", NOW), Event.ASSIGNED, "no", received=False)
    failed = replace(READY, ticket=ticket)
    assert tickets.due(failed, "snow", ALL) is None
    gone = release(failed)
    assert not tickets.owes_release(gone)
    assert tickets.due(gone, "snow", ALL) is None
    back = replace(gone, phase=Phase.READY)
    assert tickets.due(back, "snow", ALL) is Event.ASSIGNED
    assert tickets.begin(back, Event.ASSIGNED, "snow", NOW).serial == 2


def test_an_assignment_that_may_have_been_received_is_released_though_it_was_given_up() -> None:
    ticket = tickets.failed(tickets.begin(READY, Event.ASSIGNED, "snow", NOW), Event.ASSIGNED, "silent", received=True)
    failed = replace(READY, ticket=ticket)
    assert tickets.due(failed, "snow", ALL) is None
    assert tickets.due(replace(failed, ticket=tickets.retried(ticket)), "snow", ALL) is Event.ASSIGNED
    gone = release(failed)
    assert tickets.owes_release(gone)
    assert tickets.due(gone, "snow", ALL) is Event.RELEASED
    gone, heard = tell(gone)
    assert heard.key == tickets.key_of(failed)
    assert not tickets.owes_release(gone)


def test_what_failed_is_due_again_once_somebody_asks_and_a_failed_move_holds_up_no_release() -> None:
    claim, _ = tell(READY)
    assert claim.ticket is not None
    moved = replace(claim, node="node2", ticket=tickets.failed(claim.ticket, Event.MOVED, "gone", received=False))
    assert tickets.due(moved, "snow", ALL) is None
    assert tickets.due(release(moved), "snow", ALL) is Event.RELEASED
    assert tickets.due(replace(moved, ticket=tickets.retried(moved.ticket)), "snow", ALL) is Event.MOVED  # type: ignore[arg-type]


def test_a_conflict_is_told_once_while_it_lasts() -> None:
    claim, _ = tell(READY)
    contested = replace(claim, phase=Phase.FAILED, conditions=(Condition("Programmed", False, "AddressInUse", "by x"),))
    assert tickets.due(contested, "snow", ALL) is Event.CONFLICT
    told, said = tell(contested)
    assert said.conflict == "by x"
    assert tickets.due(told, "snow", ALL) is None


def decision(verdict: Verdict, at: float = NOW) -> Decision:
    return Decision(verdict, "alice", at, "callback")


def test_a_decision_counts_for_its_assignment_alone_and_only_forwards() -> None:
    claim, said = tell(replace(READY, approval_required=True))
    assert claim.withheld
    claim = tickets.decided(claim, said.key, decision(Verdict.APPROVED), NOW)
    assert not claim.withheld
    for key, at in ((said.key, NOW), (said.key, NOW - 1), ("hawse-o-1-2", NOW + 1), (said.key, NOW + 301)):
        with pytest.raises(DecisionError):
            tickets.decided(claim, key, decision(Verdict.WITHDRAWN, at), NOW)
    assert tickets.decided(claim, said.key, decision(Verdict.WITHDRAWN, NOW + 1), NOW).withheld
    assert tickets.ended(claim).withheld
    with pytest.raises(DecisionError):
        tickets.decided(release(claim), said.key, decision(Verdict.APPROVED, NOW + 1), NOW)


def test_what_the_condition_says() -> None:
    def said(claim: EgressAddress, *, answers: bool = True) -> tuple[bool | None, str] | None:
        found = tickets.firewall_condition(claim, answers=answers)
        return (found.status, found.reason) if found else None

    assert said(READY) is None
    assert said(replace(READY, approval_required=True)) == (None, "NotAsked")
    claim, _ = tell(READY)
    assert said(claim) == (None, "Requested")
    assert said(claim, answers=False) == (None, "Told")
    assert said(replace(claim, decision=decision(Verdict.APPROVED))) == (True, "Approved")
    assert said(replace(claim, decision=decision(Verdict.REJECTED))) == (False, "Rejected")
    assert said(replace(claim, decision=decision(Verdict.WITHDRAWN))) == (False, "Withdrawn")
    failed = replace(claim, ticket=replace(Ticket("snow"), failed=Event.ASSIGNED, failure="no"))
    assert said(failed) == (None, "TicketFailed")


STEPS = st.lists(
    st.sampled_from(["tell", "die", "fail", "retry", "release", "take up", "move", "drop profile"]), max_size=40
)


def attempt(claim: EgressAddress, step: str, profile: str, heard: list[str]) -> EgressAddress:
    """Tells what is due: to the end, or dies before that is written down, or is given up, heard by then or not."""
    event = tickets.due(claim, profile, ALL)
    if event is None:
        return claim
    ticket = tickets.begin(claim, event, profile, NOW)
    said = notice(claim, event, ticket)
    if step == "fail":
        unheard = claim.ticket is None or claim.ticket.sending is None
        return replace(claim, ticket=tickets.failed(ticket, event, "no", received=not unheard))
    if said.id not in heard:  # a ticket system takes for one what has one id
        heard.append(said.id)
    return replace(claim, ticket=tickets.told(ticket, said, Receipt(), NOW) if step == "tell" else ticket)


def happen(claim: EgressAddress, step: str) -> EgressAddress:
    """What befalls the address itself, where it can."""
    match step, claim.phase:
        case "retry", _ if claim.ticket is not None:
            return replace(claim, ticket=tickets.retried(claim.ticket))
        case "release", Phase.READY:
            return release(claim)
        case "take up", Phase.QUARANTINED:
            return replace(claim, phase=Phase.READY, node="node1")
        case "move", Phase.READY:
            return replace(claim, node="node2" if claim.node == "node1" else "node1")
    return claim


@settings(max_examples=400)
@given(STEPS)
def test_whatever_happens_each_assignment_is_told_once_and_released_once(steps: list[str]) -> None:
    claim, profile = READY, "snow"
    heard: list[str] = []
    for step in [*steps, "retry", *["tell"] * 6]:
        if step in ("tell", "die", "fail"):
            claim = attempt(claim, step, profile, heard)
        elif step == "drop profile":
            profile = "" if profile else "snow"
        else:
            claim = happen(claim, step)
    keys = [text.rsplit("-", 1) for text in heard]
    for key in {key for key, _ in keys}:
        told = [event for other, event in keys if other == key]
        assert told[0] == Event.ASSIGNED  # nothing is told of what nobody has heard of
        if Event.QUARANTINED in told:
            assert told.index(Event.QUARANTINED) > told.index(Event.RELEASED)
    assert claim.ticket is None or claim.ticket.sending is None
    if claim.phase is Phase.QUARANTINED:
        assert not tickets.owes_release(claim)
