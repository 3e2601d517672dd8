"""The profile `jira`: what REST v3 receives, and what is read back."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from egress.objects import Decision, Event, Ticket, Verdict
from egress.operations import PermanentError
from egress.tickets import Notice, Receipt
from lab.tickets import Jira
from workers.ticketing.profiles.base import TicketAwayError, TicketSystem

KEY = "hawse-7c2e-1"


def _filed(system: TicketSystem, notice: Notice) -> Ticket:
    receipt = system.tell(notice, resumed=False)
    return Ticket("desk", reference=receipt.reference, url=receipt.url, handle=receipt.handle)


def _paragraph(text: str) -> dict[str, Any]:
    return {"type": "paragraph", "content": [{"type": "text", "text": text}]}


def test_an_assignment_is_an_issue(office: Any, jira: Jira, notice: Any) -> None:
    fields = {"labels": ["firewall"], "priority": {"name": "High"}, "project": {"key": "OTHER"}}
    receipt = office.system("jira", jira.url, fields=fields).tell(notice(), resumed=False)

    assert receipt == Receipt("NET-1", f"{jira.url}/browse/NET-1", "10001")
    (request,) = jira.requests
    assert (request.method, request.path) == ("POST", "/rest/api/3/issue")
    pair = base64.b64encode(b"hawse:t0ken-never-seen").decode()
    assert request.headers["authorization"] == f"Basic {pair}"
    sent = request.json()["fields"]
    description = sent.pop("description")
    assert sent == {
        "summary": "[prod 1] open the firewall for 192.0.2.7 (namespace shop)",
        "labels": ["firewall", KEY],
        "priority": {"name": "High"},
        "project": {"key": "NET"},
        "issuetype": {"name": "Task"},
    }
    assert (description["type"], description["version"]) == ("doc", 1)
    assert description["content"][1] == _paragraph("Address: 192.0.2.7")
    assert description["content"][-1] == _paragraph("Hawse notice hawse-7c2e-1-assigned.")


def test_a_bearer_token_will_do(office: Any, jira: Jira, notice: Any) -> None:
    jira.authorization = "Bearer t0ken-never-seen"
    office.system("jira", jira.url, usernameFile="").tell(notice(), resumed=False)

    assert len(jira.issues) == 1


@pytest.mark.parametrize("fault", ["filed-and-silent", "filed-and-down", "garbage", "oversize"])
def test_what_was_filed_without_an_answer_is_found_again(office: Any, jira: Jira, notice: Any, fault: str) -> None:
    system = office.system("jira", jira.url, timeout=2)
    jira.misbehave(fault)
    with pytest.raises(TicketAwayError) as caught:
        system.tell(notice(), resumed=False)
    assert caught.value.retry_after == 60, "so long the search may not know of it"

    receipt = system.tell(notice(), resumed=True)

    (issue,) = jira.issues
    assert (receipt.reference, receipt.handle) == (issue["key"], issue["id"])


def test_what_was_not_filed_is_filed_when_resumed(office: Any, jira: Jira, notice: Any) -> None:
    assert office.system("jira", jira.url).tell(notice(), resumed=True).reference == "NET-1"
    assert [request.path for request in jira.requests] == ["/rest/api/3/search/jql", "/rest/api/3/issue"]
    assert jira.requests[0].json()["jql"] == f'labels = "{KEY}" ORDER BY created ASC'


@pytest.mark.parametrize("event", [Event.MOVED, Event.CONFLICT, Event.QUARANTINED, Event.RELEASED])
def test_what_comes_later_is_a_comment_written_once(office: Any, jira: Jira, notice: Any, event: Event) -> None:
    system = office.system("jira", jira.url, closeTransition="Closed", timeout=2)
    ticket = _filed(system, notice())
    later = notice(event, handle=ticket.handle, reference=ticket.reference, conflict="two nodes")
    jira.misbehave("filed-and-silent", about="/comment")
    with pytest.raises(TicketAwayError):
        system.tell(later, resumed=False)

    assert system.tell(later, resumed=True) == Receipt()

    (issue,) = jira.issues
    (comment,) = jira.comments(issue["id"])
    assert comment["content"][-1] == _paragraph(f"Hawse notice hawse-7c2e-1-{event}.")
    assert issue["fields"]["status"]["name"] == ("Closed" if event is Event.RELEASED else "To Do")


def test_a_release_that_died_between_transition_and_comment_goes_on(office: Any, jira: Jira, notice: Any) -> None:
    system = office.system("jira", jira.url, closeTransition="Closed")
    ticket = _filed(system, notice())
    later = notice(Event.RELEASED, handle=ticket.handle)
    jira.misbehave("unavailable", about="/comment")
    with pytest.raises(TicketAwayError):
        system.tell(later, resumed=False)
    assert jira.issues[0]["fields"]["status"]["name"] == "Closed"

    system.tell(later, resumed=True)

    assert len(jira.comments(ticket.handle)) == 1


def test_a_release_is_told_though_somebody_closed_the_issue(office: Any, jira: Jira, notice: Any) -> None:
    system = office.system("jira", jira.url, closeTransition="Closed")
    ticket = _filed(system, notice())
    jira.set("NET-1", "bob", "Closed")

    system.tell(notice(Event.RELEASED, handle=ticket.handle), resumed=False)

    (comment,) = jira.comments(ticket.handle)
    assert "The transition Closed is not offered here" in json.dumps(comment)


def test_a_release_may_have_its_own_issue_and_no_more_than_one(office: Any, jira: Jira, notice: Any) -> None:
    system = office.system("jira", jira.url, release="own", timeout=2)
    ticket = _filed(system, notice())
    later = notice(Event.RELEASED, handle=ticket.handle, reference=ticket.reference)
    jira.misbehave("filed-and-silent")
    with pytest.raises(TicketAwayError):
        system.tell(later, resumed=False)

    assert system.tell(later, resumed=True).reference == "NET-2"
    assert [issue["fields"]["labels"] for issue in jira.issues] == [[KEY], [f"{KEY}-release"]]
    assert jira.comments(ticket.handle) == []


def test_a_release_is_heard_though_somebody_has_deleted_the_issue(office: Any, jira: Jira, notice: Any) -> None:
    system = office.system("jira", jira.url)
    ticket = _filed(system, notice())
    jira.delete("NET-1")

    with pytest.raises(PermanentError, match="404"):
        system.tell(notice(Event.MOVED, handle=ticket.handle), resumed=False)
    for resumed in (False, True):
        released = notice(Event.RELEASED, handle=ticket.handle, reference=ticket.reference)
        told = system.tell(released, resumed=resumed).reference
    (issue,) = jira.issues
    assert issue["fields"]["labels"] == [f"{KEY}-release"]
    assert told == issue["key"]


def test_without_a_handle_the_issue_is_searched_for(office: Any, jira: Jira, notice: Any) -> None:
    system = office.system("jira", jira.url)
    ticket = _filed(system, notice())

    system.tell(notice(Event.RELEASED), resumed=False)

    assert len(jira.comments(ticket.handle)) == 1
    with pytest.raises(PermanentError, match="there is no issue with label hawse-none-1"):
        system.tell(
            Notice(Event.MOVED, "i", "hawse-none-1", 0.0, "c", "n", "u", "192.0.2.7", "internet"), resumed=False
        )


def _sixty(system: TicketSystem) -> dict[str, Ticket]:
    tickets = {}
    for number in range(60):
        filed = Notice(Event.ASSIGNED, f"i{number}", f"hawse-u-{number}", 0.0, "c", "n", "u", "192.0.2.7", "internet")
        tickets[filed.key] = _filed(system, filed)
    return tickets


def test_decisions_are_read_in_batches(office: Any, jira: Jira) -> None:
    system = office.system("jira", jira.url)
    tickets = _sixty(system)
    jira.set("NET-1", "carol", "Done", at=1_790_000_100.25)
    jira.set("NET-2", "dave", "Rejected", at=1_790_000_200.0)
    jira.set("NET-3", "carol", "Done")
    jira.set("NET-3", "erin", "In Progress")
    jira.delete("NET-4")
    del jira.requests[:]

    found = dict(system.decisions(tickets))

    assert found["hawse-u-0"] == Decision(Verdict.APPROVED, "carol", 1_790_000_100.25, "poll", "NET-1 is Done")
    assert found["hawse-u-1"] == Decision(Verdict.REJECTED, "dave", 1_790_000_200.0, "poll", "NET-2 is Rejected")
    assert found["hawse-u-2"] is None, "it is approved no more"
    assert tickets.keys() - found.keys() == {"hawse-u-3"}, "of what is deleted nothing is said"
    paths = [request.path.removeprefix("/rest/api/3/") for request in jira.requests]
    assert paths.count("issue/bulkfetch") == 3
    assert paths.count("changelog/bulkfetch") == 1


def test_where_nobody_may_read_the_changes_the_issues_own_time_counts(office: Any, jira: Jira, notice: Any) -> None:
    system = office.system("jira", jira.url)
    ticket = _filed(system, notice())
    jira.set("NET-1", "carol", "Done", at=1_790_000_100.0)
    jira.misbehave("bad", about="/changelog/bulkfetch")

    found = dict(system.decisions({KEY: ticket}))

    assert found[KEY] == Decision(Verdict.APPROVED, "somebody in Jira", 1_790_000_100.0, "poll", "NET-1 is Done")
