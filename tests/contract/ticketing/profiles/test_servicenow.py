"""The profile `servicenow`: what the Table API receives, and what is read back."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest

from egress.objects import Decision, Event, Ticket, Verdict
from egress.operations import PermanentError
from egress.tickets import Notice, Receipt
from lab.tickets import ServiceNow
from workers.ticketing.profiles.base import TicketAwayError, TicketSystem

KEY = "hawse-7c2e-1"


def _filed(system: TicketSystem, notice: Notice) -> Ticket:
    receipt = system.tell(notice, resumed=False)
    return Ticket("desk", reference=receipt.reference, url=receipt.url, handle=receipt.handle)


def test_an_assignment_is_a_record(office: Any, servicenow: ServiceNow, notice: Any) -> None:
    system = office.system("servicenow", servicenow.url, fields={"category": "Network", "correlation_id": "mine"})
    receipt = system.tell(notice(), resumed=False)

    (record,) = servicenow.records
    page = quote(f"change_request.do?sys_id={record['sys_id']}", safe="")
    assert receipt == Receipt("CHG0030001", f"{servicenow.url}/nav_to.do?uri={page}", record["sys_id"])
    (request,) = servicenow.requests
    assert (request.method, request.path) == ("POST", "/api/now/table/change_request")
    assert request.headers["content-type"] == "application/json"
    pair = base64.b64encode(b"hawse:p4ss/w+rd&<ever>").decode()
    assert request.headers["authorization"] == f"Basic {pair}"
    description = (
        "Address: 192.0.2.7\nNamespace: shop\nOwner (openshift.io/requester): alice\nCluster: prod 1\n"
        'Pool: internet\nNode: node-1\nJustification: pays "cards" of (code)<b>customers</b>(/code)\n'
        "Traffic is dropped until this is approved: yes\nOperation: 4f0c\n"
        "Dashboard: https://hawse.example/namespaces/shop\nHawse notice hawse-7c2e-1-assigned."
    )
    assert request.json() == {
        "short_description": "[prod 1] open the firewall for 192.0.2.7 (namespace shop)",
        "description": description,
        "category": "Network",
        "correlation_id": KEY,
        "correlation_display": "hawse",
    }


def test_a_bearer_token_will_do(office: Any, servicenow: ServiceNow, notice: Any) -> None:
    servicenow.authorization = "Bearer t0ken-never-seen"
    profile = {"usernameFile": "", "passwordFile": "", "tokenFile": office.path("token"), "table": "incident"}
    office.system("servicenow", servicenow.url, **profile).tell(notice(), resumed=False)

    assert servicenow.records[0]["table"] == "incident"


@pytest.mark.parametrize("fault", ["filed-and-silent", "filed-and-down", "garbage", "oversize"])
def test_what_was_filed_without_an_answer_is_found_again(
    office: Any, servicenow: ServiceNow, notice: Any, fault: str
) -> None:
    system = office.system("servicenow", servicenow.url, timeout=2)
    servicenow.misbehave(fault)
    with pytest.raises(TicketAwayError) as caught:
        system.tell(notice(), resumed=False)
    assert caught.value.retry_after == 30, "the system may still be at it"

    receipt = system.tell(notice(), resumed=True)

    (record,) = servicenow.records
    assert (receipt.reference, receipt.handle) == (record["number"], record["sys_id"])


def test_what_was_not_filed_is_filed_when_resumed(office: Any, servicenow: ServiceNow, notice: Any) -> None:
    other = notice()
    system = office.system("servicenow", servicenow.url)
    system.tell(other, resumed=False)
    mine = Notice(Event.ASSIGNED, "i2", "hawse-7c2e-11", 0.0, "c", "shop", "u", "192.0.2.8", "internet")

    assert system.tell(mine, resumed=True).reference == "CHG0030002"
    assert [record["correlation_id"] for record in servicenow.records] == [KEY, "hawse-7c2e-11"]


def test_a_table_without_correlation_is_refused_and_nobodys_record_taken(
    office: Any, servicenow: ServiceNow, notice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.tickets.servicenow._NAMES", {"sys_id", "number", "short_description", "sys_updated_by"})
    system = office.system("servicenow", servicenow.url)
    system.tell(notice(), resumed=False)
    other = Notice(Event.ASSIGNED, "i2", "hawse-other-1", 0.0, "c", "shop", "u", "192.0.2.8", "internet")

    with pytest.raises(PermanentError, match="has no correlation_id"):
        system.tell(other, resumed=True)


@pytest.mark.parametrize("event", [Event.MOVED, Event.CONFLICT, Event.QUARANTINED, Event.RELEASED])
def test_what_comes_later_is_a_work_note_written_once(
    office: Any, servicenow: ServiceNow, notice: Any, event: Event
) -> None:
    system = office.system("servicenow", servicenow.url, closeFields={"state": "3"}, timeout=2)
    ticket = _filed(system, notice())
    later = notice(event, handle=ticket.handle, reference=ticket.reference, conflict="two nodes")
    servicenow.misbehave("filed-and-silent")
    with pytest.raises(TicketAwayError):
        system.tell(later, resumed=False)

    assert system.tell(later, resumed=True) == Receipt()

    (record,) = servicenow.records
    (note,) = servicenow.work_notes(record["sys_id"])
    assert note.endswith(f"Hawse notice hawse-7c2e-1-{event}.")
    assert record["state"] == ("3" if event is Event.RELEASED else "-5")
    assert [request.method for request in servicenow.requests] == ["POST", "PATCH", "GET"]


def test_a_note_that_never_arrived_is_written_when_resumed(office: Any, servicenow: ServiceNow, notice: Any) -> None:
    system = office.system("servicenow", servicenow.url)
    ticket = _filed(system, notice())
    system.tell(notice(Event.MOVED, handle=ticket.handle), resumed=False)

    system.tell(notice(Event.RELEASED, handle=ticket.handle), resumed=True)

    assert len(servicenow.work_notes(ticket.handle)) == 2


def test_a_release_may_have_its_own_record_and_no_more_than_one(
    office: Any, servicenow: ServiceNow, notice: Any
) -> None:
    system = office.system("servicenow", servicenow.url, release="own", timeout=2)
    ticket = _filed(system, notice())
    later = notice(Event.RELEASED, handle=ticket.handle, reference=ticket.reference)
    servicenow.misbehave("filed-and-silent")
    with pytest.raises(TicketAwayError):
        system.tell(later, resumed=False)

    receipt = system.tell(later, resumed=True)

    first, second = servicenow.records
    assert (receipt.reference, receipt.handle) == (second["number"], second["sys_id"])
    assert second["correlation_id"] == f"{KEY}-release"
    assert "Ticket: CHG0030001" in second["description"]
    assert servicenow.work_notes(first["sys_id"]) == []


def test_without_a_handle_the_record_is_searched_for(office: Any, servicenow: ServiceNow, notice: Any) -> None:
    system = office.system("servicenow", servicenow.url)
    ticket = _filed(system, notice())

    system.tell(notice(Event.RELEASED), resumed=False)

    assert len(servicenow.work_notes(ticket.handle)) == 1
    assert len(servicenow.records) == 1


def test_a_release_is_heard_though_somebody_has_deleted_the_record(
    office: Any, servicenow: ServiceNow, notice: Any
) -> None:
    system = office.system("servicenow", servicenow.url)
    ticket = _filed(system, notice())
    servicenow.delete("CHG0030001")

    with pytest.raises(PermanentError, match="404"):
        system.tell(notice(Event.MOVED, handle=ticket.handle), resumed=False)
    for resumed in (False, True):
        released = notice(Event.RELEASED, handle=ticket.handle, reference=ticket.reference)
        assert system.tell(released, resumed=resumed).reference == "CHG0030002"
    (record,) = servicenow.records
    assert record["correlation_id"] == f"{KEY}-release"


def test_what_is_known_of_decisions_is_given_at_once(office: Any, servicenow: ServiceNow) -> None:
    system = office.system("servicenow", servicenow.url)
    tickets = {}
    for number in range(60):
        filed = Notice(Event.ASSIGNED, f"i{number}", f"hawse-u-{number}", 0.0, "c", "n", "u", "192.0.2.7", "internet")
        tickets[filed.key] = _filed(system, filed)
    answers = iter(system.decisions(tickets))
    first = [next(answers)[0] for _ in range(50)]
    assert first == list(tickets)[:50]
    servicenow.misbehave("unavailable")
    with pytest.raises(TicketAwayError):
        next(answers)


def test_a_release_is_heard_though_the_record_is_unknown(office: Any, servicenow: ServiceNow, notice: Any) -> None:
    system = office.system("servicenow", servicenow.url)

    assert system.tell(notice(Event.RELEASED), resumed=False).reference == "CHG0030001"
    with pytest.raises(PermanentError, match="there is no record of hawse-7c2e-1"):
        system.tell(notice(Event.MOVED), resumed=False)


def test_decisions_are_read_in_batches(office: Any, servicenow: ServiceNow, notice: Any) -> None:
    system = office.system("servicenow", servicenow.url)
    tickets = {}
    for number in range(60):
        filed = Notice(Event.ASSIGNED, f"i{number}", f"hawse-u-{number}", 0.0, "c", "n", "u", "192.0.2.7", "internet")
        tickets[filed.key] = _filed(system, filed)
    servicenow.set("CHG0030001", "carol", approval="approved", sys_updated_on="2026-09-21 14:13:20")
    servicenow.set("CHG0030002", "dave", approval="rejected")
    servicenow.set("CHG0030060", "carol", approval="approved")
    del servicenow.requests[:]

    strange = {"hawse-gone-1": Ticket("desk", handle="0" * 32), "hawse-odd-1": Ticket("desk", handle="a^b,c")}
    found = dict(system.decisions({**tickets, **strange}))

    at = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC).timestamp()
    assert found["hawse-u-0"] == Decision(Verdict.APPROVED, "carol", at, "poll", "CHG0030001 is approved")
    rejected = found["hawse-u-1"]
    assert rejected is not None
    assert (rejected.verdict, rejected.by) == (Verdict.REJECTED, "dave")
    assert found["hawse-u-2"] is None
    assert found["hawse-u-59"] is not None
    assert found.keys() == tickets.keys(), "of the others nothing was said"
    assert len(servicenow.requests) == 2
    assert servicenow.requests[0].query["sysparm_query"].startswith("sys_idIN")
