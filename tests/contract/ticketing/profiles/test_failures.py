"""Each system that fails in each way: what is said of it, and what is not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from egress.objects import Event, Ticket
from egress.operations import PermanentError
from lab.tickets import Fault, Jira, Receiver, ServiceNow
from lab.tickets.server import Server
from workers.ticketing.errors import NotReachedError, TicketAwayError

SERVERS = {"webhook": Receiver, "servicenow": ServiceNow, "jira": Jira}
NOW = 1_790_000_000.0
UNSEEN = ("p4ss/w+rd", "p4ss\\/w", "t0ken-never-seen", "aGF3c2U6", "whsec_", "the-newest", "the-older", "secret-path")


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def server(kind: str) -> Iterator[Server]:
    with SERVERS[kind]() as running:
        yield running


def _refused(office: Any, kind: str, server: Server, notice: Any, **fields: Any) -> Exception:
    """The error that telling ends with."""
    url = server.url + ("/secret-path/abcdef" if kind == "webhook" else "")
    with pytest.raises((TicketAwayError, PermanentError)) as caught:
        office.system(kind, url, **fields).tell(notice(), resumed=False)
    assert str(caught.value).startswith("ticket profile desk ")
    assert not [word for word in UNSEEN if word in str(caught.value)]
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault.DOWN, "hung up: "),
        (Fault.SLOW, "did not answer within 1 s"),
        (Fault.DRIP, "did not answer within 1 s"),
        (Fault.DRIP_HEADERS, "did not answer within 1 s"),
        (Fault.ERROR, "answered 500"),
        (Fault.UNAVAILABLE, "answered 503"),
        (Fault.FILED_AND_SILENT, "did not answer within 1 s"),
        (Fault.FILED_AND_DOWN, "hung up: "),
    ],
)
def test_it_may_succeed_later(office: Any, kind: str, server: Server, notice: Any, fault: Fault, says: str) -> None:
    server.misbehave(fault)
    hangs = {"timeout": 1} if "within" in says else {}
    error = _refused(office, kind, server, notice, **hangs)

    assert isinstance(error, TicketAwayError)
    assert says in str(error)
    assert error.retry_after == {"webhook": None, "servicenow": 30, "jira": 60}[kind], "it may have been received"
    assert len(server.requests) == 1, "it is for the caller to try again"


@pytest.mark.parametrize("kind", ["servicenow", "jira"])  # a webhook's receiver need not answer anything
@pytest.mark.parametrize("fault", [Fault.GARBAGE, Fault.OVERSIZE])
def test_an_answer_that_is_none_leaves_it_open(
    office: Any, kind: str, server: Server, notice: Any, fault: Fault
) -> None:
    server.misbehave(fault)
    error = _refused(office, kind, server, notice)

    assert isinstance(error, TicketAwayError)
    assert "something else than its API's JSON" in str(error) or "more than 262144 bytes" in str(error)


def test_it_says_when_to_come_again(office: Any, kind: str, server: Server, notice: Any) -> None:
    server.misbehave(Fault.BUSY)
    error = _refused(office, kind, server, notice)

    assert isinstance(error, TicketAwayError)
    assert error.retry_after == 7, "it took nothing, so nothing needs to settle"
    assert "answered 429" in str(error)


def test_it_says_when_to_come_again_by_the_calendar(office: Any, kind: str, server: Server, notice: Any) -> None:
    server.misbehave(Fault.BUSY_UNTIL)
    error = _refused(office, kind, server, notice)

    assert isinstance(error, TicketAwayError)
    assert error.retry_after is not None
    assert 0 <= error.retry_after <= 3600


def test_a_refusal_is_final_and_shows_what_was_said_but_no_credential(
    office: Any, kind: str, server: Server, notice: Any
) -> None:
    server.misbehave(Fault.BAD)
    error = _refused(office, kind, server, notice)

    assert isinstance(error, PermanentError)
    assert "answered 400: " in str(error)
    assert "no\\n\\u001b[31m such table; you sent " in str(error)
    assert kind == "webhook" or str(error).endswith('you sent Basic ***"}')


def test_a_redirect_is_not_followed(office: Any, kind: str, server: Server, notice: Any) -> None:
    server.misbehave(Fault.REDIRECT)
    error = _refused(office, kind, server, notice)

    assert isinstance(error, PermanentError)
    assert "answered 307, a redirect, which is not followed: mend its url" in str(error)
    assert len(server.requests) == 1


def test_nobody_is_there(office: Any, kind: str, server: Server, notice: Any) -> None:
    server.stop()
    error = _refused(office, kind, server, notice)

    assert isinstance(error, NotReachedError)
    assert str(error) == "ticket profile desk cannot be reached: Connection refused"
    assert error.retry_after is None, "nothing can have been received"


def test_wrong_credentials_may_be_replaced(office: Any, kind: str, server: Server, notice: Any) -> None:
    server.authorization = "Basic something else"
    error = _refused(office, kind, server, notice)

    assert isinstance(error, TicketAwayError)
    assert str(error) == "ticket profile desk answered 401"


@pytest.mark.parametrize("kind", ["servicenow", "jira"])
@pytest.mark.parametrize("fault", [Fault.DOWN, Fault.GARBAGE, Fault.UNAVAILABLE, Fault.BUSY])
def test_decisions_may_be_read_later(office: Any, kind: str, server: Server, fault: Fault) -> None:
    server.misbehave(fault)
    with pytest.raises(TicketAwayError, match="ticket profile desk"):
        list(office.system(kind, server.url).decisions({"hawse-7c2e-1": Ticket("desk", handle="10001")}))


@pytest.mark.parametrize("kind", ["servicenow", "jira"])
def test_a_search_that_fails_files_nothing(office: Any, kind: str, server: Server, notice: Any) -> None:
    server.misbehave(Fault.UNAVAILABLE)
    system = office.system(kind, server.url)
    with pytest.raises(TicketAwayError):
        system.tell(notice(), resumed=True)
    assert len(server.requests) == 1

    system.tell(notice(), resumed=True)
    assert len(getattr(server, "tickets", [])) == 1


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("password", "two\nlines", "is empty, or more than one line of text"),
        ("password", "", "is empty"),
        ("username", "has:colon", "has a colon in it"),
    ],
)
def test_credentials_that_are_none_are_named_and_not_shown(
    office: Any, servicenow: ServiceNow, notice: Any, name: str, text: str, says: str
) -> None:
    office.write(name, text)
    with pytest.raises(NotReachedError, match=says) as caught:
        office.system("servicenow", servicenow.url).tell(notice(), resumed=False)

    assert office.path(name) in str(caught.value)
    assert not text or text.splitlines()[0] not in str(caught.value).replace(office.path(name), "")
    assert servicenow.requests == []


@pytest.mark.parametrize("token", ["umlaut-ü", "a b"])
def test_a_token_that_no_header_can_hold_is_not_shown(
    office: Any, servicenow: ServiceNow, notice: Any, token: str
) -> None:
    path = office.write("token", token)
    profile = {"usernameFile": "", "passwordFile": "", "tokenFile": path}
    with pytest.raises(NotReachedError, match="has characters that no token has") as caught:
        office.system("servicenow", servicenow.url, **profile).tell(notice(), resumed=False)
    assert token not in str(caught.value)


def test_no_credential_is_logged(
    office: Any, kind: str, server: Server, notice: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as logs:
        system = office.system(kind, server.url)
        receipt = system.tell(notice(), resumed=False)
        system.tell(notice(Event.RELEASED, handle=receipt.handle), resumed=True)
        server.misbehave(Fault.BAD)
        _refused(office, kind, server, notice)

    written = caplog.text + repr(logs) + repr(system.__dict__)
    assert not [word for word in UNSEEN if word in written]
