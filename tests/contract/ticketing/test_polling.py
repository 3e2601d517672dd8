"""What a ticket system says when it is asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from egress.messages import PUBLISH_TASK
from egress.objects import Verdict
from lab.tickets import Fault, ServiceNow
from tests.contract.ticketing.conftest import Desk

A = "10.0.0.1"


@pytest.fixture
def snow() -> Iterator[ServiceNow]:
    with ServiceNow() as running:
        yield running


@pytest.fixture
def told(desk: Desk, snow: ServiceNow) -> Desk:
    """A desk whose pool `prod` demands an approval, which ServiceNow is asked for, with one claim told of."""
    poll = {"interval": 0.01}
    credentials = {"tokenFile": desk.secret("token", "t0ken"), "timeout": 5, "settle": 0}
    desk.write({"name": "snow", "type": "servicenow", "url": snow.url, "poll": poll, **credentials})
    desk.pool("prod", "snow")
    desk.claim(A, "shop", uid=desk.namespace("shop"), approval="required")
    desk.run("snow")
    return desk


def verdict(desk: Desk) -> Verdict | None:
    decision = desk.read(A).decision
    return decision.verdict if decision is not None else None


def test_a_decision_is_found_and_a_withdrawn_one_too(told: Desk, snow: ServiceNow) -> None:
    (record,) = snow.records
    told.run_until(lambda: len(snow.requests) > 3, "snow")
    assert verdict(told) is None
    assert told.condition(A) is not None
    snow.set(record["number"], "bob", approval="approved")
    told.asked.clear()
    told.run_until(lambda: verdict(told) is Verdict.APPROVED, "snow")
    assert not told.read(A).withheld
    assert (PUBLISH_TASK, [], 0.0) in told.asked
    assert (told.condition(A) or ())[:2] == (True, "Approved")
    snow.set(record["number"], "bob", approval="requested")
    told.run_until(lambda: verdict(told) is Verdict.WITHDRAWN, "snow")
    assert told.read(A).withheld
    snow.set(record["number"], "bob", approval="approved")
    told.run_until(lambda: verdict(told) is Verdict.APPROVED, "snow")
    snow.set(record["number"], "eve", approval="rejected")
    told.run_until(lambda: verdict(told) is Verdict.REJECTED, "snow")
    steps = [step.message for step in told.ledger.history("shop") if step.step.value == "decision"]
    assert len(steps) == 4


def test_a_system_that_does_not_say_changes_nothing(told: Desk, snow: ServiceNow) -> None:
    (record,) = snow.records
    snow.set(record["number"], "bob", approval="approved")
    told.run_until(lambda: verdict(told) is Verdict.APPROVED, "snow")
    for fault in (Fault.ERROR, Fault.GARBAGE, Fault.DOWN, Fault.BAD):
        snow.misbehave(fault, times=None)
        before = len(snow.requests)
        told.run_until(lambda before=before: len(snow.requests) > before, "snow")  # type: ignore[misc]
        assert verdict(told) is Verdict.APPROVED, fault
        snow.behave()
        told.patient()
