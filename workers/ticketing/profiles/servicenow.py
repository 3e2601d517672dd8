"""The profile `servicenow`: records of a table, by the Table API.

https://www.servicenow.com/docs/r/api-reference/rest-apis/c_TableAPI.html. A record is found again by its
`correlation_id`, which is the assignment's key. Two habits of the API shape this file: a condition on a field that the
table does not have is passed over, so that what is found must be looked at; and work notes are read through the
display value of the record, which needs no rights on the journal's table.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

import msgspec

from egress.forms import learn
from egress.objects import Decision, Event, Ticket, Verdict
from egress.operations import PermanentError
from egress.ticket_profiles import ServiceNowProfile
from egress.tickets import Notice, Receipt
from workers.ticketing.errors import GoneError, TicketAwayError
from workers.ticketing.http import Answer, Client, Credentials, basic, bearer
from workers.ticketing.profiles import text
from workers.ticketing.profiles.base import TicketSystem

SHORT = 160
"""Characters that a short description holds."""
BATCH = 50
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_FORMATTING = re.compile(r"\[(/?code)\]", re.IGNORECASE)


class _Record(msgspec.Struct):
    sys_id: str
    number: str = ""
    correlation_id: str = ""


class _One(msgspec.Struct):
    result: _Record


class _Many(msgspec.Struct):
    result: list[_Record]


class _Notes(msgspec.Struct):
    work_notes: str = ""


class _Journal(msgspec.Struct):
    result: _Notes


class _States(msgspec.Struct):
    result: list[dict[str, str]]


learn(_One, _Many, _Journal, _States)


class ServiceNowSystem(TicketSystem):
    """A table of ServiceNow."""

    def __init__(self, profile: ServiceNowProfile, clock: Callable[[], float] = time.time) -> None:
        self._profile = profile
        self._path = f"/api/now/table/{profile.table}"
        self._client = Client.of(profile, clock)

    def tell(self, notice: Notice, *, resumed: bool) -> Receipt:
        """Creates a record, or writes into the one that there is."""
        if notice.event is Event.ASSIGNED:
            return self._file(notice, notice.key, resumed=resumed)
        own = notice.event is Event.RELEASED and self._profile.release == "own"
        handle = "" if own else notice.handle or self._handle(notice)
        if not handle:
            if notice.event is not Event.RELEASED:
                raise PermanentError(f"ticket profile {self._profile.name}: there is no record of {notice.key}")
            return self._file(notice, f"{notice.key}-release", resumed=resumed)  # it must be heard in any case
        try:
            self._note(notice, handle, resumed=resumed)
        except GoneError:
            if notice.event is not Event.RELEASED:
                raise
            return self._file(notice, f"{notice.key}-release", resumed=True)  # somebody has deleted the record
        return Receipt()

    def decisions(self, tickets: Mapping[str, Ticket]) -> Iterator[tuple[str, Decision | None]]:
        """What the state field of each record says, by whom it was changed last, and when."""
        keys = {ticket.handle: key for key, ticket in tickets.items() if _ID.fullmatch(ticket.handle)}
        handles = list(keys)
        for start in range(0, len(handles), BATCH):
            wanted = handles[start : start + BATCH]
            query = {
                "sysparm_query": f"sys_idIN{','.join(wanted)}",
                "sysparm_fields": f"sys_id,number,{self._profile.state_field},sys_updated_by,sys_updated_on",
                "sysparm_display_value": "false",
                "sysparm_exclude_reference_link": "true",
                "sysparm_limit": str(BATCH),
            }
            for record in self._call("GET", "", query).read(_States).result:
                if (handle := record.get("sys_id", "")) in wanted:
                    yield keys[handle], self._decision(record)

    def _decision(self, record: Mapping[str, str]) -> Decision | None:
        state = record.get(self._profile.state_field, "")
        if state in self._profile.approved:
            verdict = Verdict.APPROVED
        elif state in self._profile.rejected:
            verdict = Verdict.REJECTED
        else:
            return None
        try:
            at = datetime.strptime(record.get("sys_updated_on", ""), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        except ValueError as error:
            raise TicketAwayError(f"ticket profile {self._profile.name} answered what is no time: {error}") from None
        reason = f"{record.get('number', '')} is {state}"
        by = record.get("sys_updated_by") or "somebody in ServiceNow"
        return Decision(verdict, by, at.timestamp(), "poll", reason)

    def _file(self, notice: Notice, key: str, *, resumed: bool) -> Receipt:
        """Creates the record of `key`, unless it may be there and is."""
        record = self._find(key) if resumed else None
        if record is None:
            fields = {
                "short_description": text.title(notice, SHORT),
                "description": _plain("\n".join(text.lines(notice))),
                **self._profile.fields,
                "correlation_id": key,
                "correlation_display": "hawse",
            }
            query = {"sysparm_fields": "sys_id,number", "sysparm_exclude_reference_link": "true"}
            record = self._call("POST", "", query, fields).read(_One).result
        return Receipt(record.number, self._link(record.sys_id), record.sys_id)

    def _handle(self, notice: Notice) -> str:
        record = self._find(notice.key)
        return record.sys_id if record is not None else ""

    def _find(self, key: str) -> _Record | None:
        query = {
            "sysparm_query": f"correlation_id={key}^ORDERBYsys_created_on",
            "sysparm_fields": "sys_id,number,correlation_id",
            "sysparm_exclude_reference_link": "true",
            "sysparm_limit": "1",
        }
        found = self._call("GET", "", query).read(_Many).result
        if found and found[0].correlation_id != key:
            raise PermanentError(
                f"ticket profile {self._profile.name}: table {self._profile.table} has no correlation_id, "
                "by which a record is found again: choose one that has"
            )
        return found[0] if found else None

    def _note(self, notice: Notice, handle: str, *, resumed: bool) -> None:
        """Writes a work note, unless it may be there and is."""
        path = f"/{quote(handle, safe='')}"
        if resumed:
            query = {"sysparm_fields": "work_notes", "sysparm_display_value": "true"}
            if text.marker(notice) in self._call("GET", path, query).read(_Journal).result.work_notes:
                return
        close = self._profile.close_fields if notice.event is Event.RELEASED else {}
        note = _plain("\n".join([text.title(notice, SHORT), *text.lines(notice)]))
        self._call("PATCH", path, {"sysparm_fields": "sys_id"}, {**close, "work_notes": note}).read(_One)

    def _call(
        self, method: str, path: str, query: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> Answer:
        return self._client.call(
            method,
            f"{self._path}{path}?{urlencode(query)}",
            headers={"Content-Type": "application/json"} if fields is not None else {},
            body=msgspec.json.encode(fields) if fields is not None else None,
            credentials=self._credentials(),
            writes=fields is not None,
        )

    def _credentials(self) -> Credentials:
        if self._profile.token_file:
            return bearer(self._profile.token_file)
        return basic(self._profile.username_file, self._profile.password_file)

    def _link(self, sys_id: str) -> str:
        page = quote(f"{self._profile.table}.do?sys_id={sys_id}", safe="")
        return f"{self._profile.url.rstrip('/')}/nav_to.do?uri={page}"


def _plain(words: str) -> str:
    """Text that journals show as it is: what is between [code] and [/code] they take for HTML, and a namespace's owner
    may have written it."""
    return _FORMATTING.sub(r"(\1)", words)
