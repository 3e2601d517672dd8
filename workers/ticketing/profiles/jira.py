"""The profile `jira`: issues of a project, by Jira Cloud's REST API v3.

https://developer.atlassian.com/cloud/jira/platform/rest/v3/. An issue is found again by a label, which is the
assignment's key. The search lags behind what was written, for seconds as a rule: the profile's `settle` says how long
nobody files what may have been filed already. Whatever can be read by the issue's id is read so, which does not lag.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec
import structlog

from egress.forms import learn
from egress.objects import Decision, Event, Ticket, Verdict
from egress.operations import PermanentError
from egress.ticket_profiles import JiraProfile
from egress.tickets import Notice, Receipt
from workers.ticketing.errors import GoneError, TicketAwayError
from workers.ticketing.http import Answer, Client, basic, bearer
from workers.ticketing.profiles import text
from workers.ticketing.profiles.base import TicketSystem

SUMMARY = 255
"""Characters that a summary holds."""
BATCH = 20
COMMENTS = 20
"""How many of the newest comments are looked at for one that was made already."""

log = structlog.get_logger()


class _Created(msgspec.Struct):
    id: str
    key: str


class _Status(msgspec.Struct):
    name: str = ""


class _Fields(msgspec.Struct):
    labels: list[str] = []
    status: _Status = msgspec.field(default_factory=_Status)
    updated: str = ""


class _Issue(msgspec.Struct):
    id: str
    key: str
    fields: _Fields = msgspec.field(default_factory=_Fields)


class _Issues(msgspec.Struct):
    issues: list[_Issue]


class _Transition(msgspec.Struct):
    id: str
    name: str


class _Transitions(msgspec.Struct):
    transitions: list[_Transition]


class _Author(msgspec.Struct, rename="camel"):
    display_name: str = ""


class _Item(msgspec.Struct, rename="camel"):
    field_id: str = ""
    to_string: str | None = None


class _Change(msgspec.Struct):
    created: int | str
    author: _Author | None = None
    items: list[_Item] = []


class _Log(msgspec.Struct, rename="camel"):
    issue_id: str
    change_histories: list[_Change] = []


class _Logs(msgspec.Struct, rename="camel"):
    issue_change_logs: list[_Log] = []


learn(_Created, _Issues, _Transitions, _Logs)


class JiraSystem(TicketSystem):
    """A project of Jira."""

    def __init__(self, profile: JiraProfile, clock: Callable[[], float] = time.time) -> None:
        self._profile = profile
        self._client = Client.of(profile, clock)

    def tell(self, notice: Notice, *, resumed: bool) -> Receipt:
        """Creates an issue, or comments on the one that there is; a release also makes the profile's transition."""
        if notice.event is Event.ASSIGNED:
            return self._file(notice, notice.key, resumed=resumed)
        own = notice.event is Event.RELEASED and self._profile.release == "own"
        handle = "" if own else notice.handle or self._handle(notice)
        if not handle:
            if notice.event is not Event.RELEASED:
                raise PermanentError(f"ticket profile {self._profile.name}: there is no issue with label {notice.key}")
            return self._file(notice, f"{notice.key}-release", resumed=resumed)  # it must be heard in any case
        try:
            self._comment(notice, f"/issue/{quote(handle, safe='')}", resumed=resumed)
        except GoneError:
            if notice.event is not Event.RELEASED:
                raise
            return self._file(notice, f"{notice.key}-release", resumed=True)  # somebody has deleted the issue
        return Receipt()

    def decisions(self, tickets: Mapping[str, Ticket]) -> Iterator[tuple[str, Decision | None]]:
        """What the status of each issue says, who made the transition to it, and when."""
        keys = {ticket.handle: key for key, ticket in tickets.items() if ticket.handle}
        handles = list(keys)
        for start in range(0, len(handles), BATCH):
            wanted = handles[start : start + BATCH]
            query = {"issueIdsOrKeys": wanted, "fields": ["status", "updated"]}
            issues = [
                issue
                for issue in self._call("POST", "/issue/bulkfetch", query).read(_Issues).issues
                if issue.id in wanted
            ]
            changes = self._changes([issue.id for issue in issues if self._verdict(issue)])
            try:
                batch = [(keys[issue.id], self._decision(issue, changes.get(issue.id, []))) for issue in issues]
            except ValueError as error:
                raise TicketAwayError(
                    f"ticket profile {self._profile.name} answered what is no time: {error}"
                ) from None
            yield from batch

    def _verdict(self, issue: _Issue) -> Verdict | None:
        if issue.fields.status.name in self._profile.approved:
            return Verdict.APPROVED
        return Verdict.REJECTED if issue.fields.status.name in self._profile.rejected else None

    def _decision(self, issue: _Issue, changes: list[_Change]) -> Decision | None:
        verdict = self._verdict(issue)
        if verdict is None:
            return None
        status = issue.fields.status.name
        made = [change for change in changes if any(item.to_string == status for item in change.items)]
        last = max(made, key=lambda change: _seconds(change.created), default=None)
        at = _seconds(last.created if last is not None else issue.fields.updated)
        by = last.author.display_name if last is not None and last.author is not None else ""
        return Decision(verdict, by or "somebody in Jira", at, "poll", f"{issue.key} is {status}")

    def _changes(self, issues: list[str]) -> dict[str, list[_Change]]:
        """The changes of the issues' statuses; none where nobody may read them: then the issue's own time must do."""
        if not issues:
            return {}
        query = {"issueIdsOrKeys": issues, "fieldIds": ["status"]}
        try:
            logs = self._call("POST", "/changelog/bulkfetch", query).read(_Logs)
        except PermanentError as error:
            log.warning("jira-changelog", profile=self._profile.name, error=str(error))
            return {}
        return {entry.issue_id: entry.change_histories for entry in logs.issue_change_logs}

    def _file(self, notice: Notice, label: str, *, resumed: bool) -> Receipt:
        """Creates the issue with this label, unless it may be there and is."""
        issue = self._find(label) if resumed else None
        if issue is None:
            labels = self._profile.fields.get("labels", [])
            fields = {
                "summary": text.title(notice, SUMMARY),
                "description": _document(notice),
                **self._profile.fields,
                "project": {"key": self._profile.project},
                "issuetype": {"name": self._profile.issue_type},
                "labels": [*(labels if isinstance(labels, list) else []), label],
            }
            created = self._call("POST", "/issue", {"fields": fields}, writes=True).read(_Created)
            issue = _Issue(created.id, created.key)
        return Receipt(issue.key, f"{self._profile.url.rstrip('/')}/browse/{quote(issue.key, safe='')}", issue.id)

    def _handle(self, notice: Notice) -> str:
        issue = self._find(notice.key)
        return issue.id if issue is not None else ""

    def _find(self, label: str) -> _Issue | None:
        """The oldest issue with a label: whoever clones an issue clones its labels too."""
        query = {"jql": f'labels = "{label}" ORDER BY created ASC', "fields": ["labels"], "maxResults": 1}
        found = self._call("POST", "/search/jql", query).read(_Issues).issues
        return found[0] if found and label in found[0].fields.labels else None

    def _comment(self, notice: Notice, issue: str, *, resumed: bool) -> None:
        if not (resumed and self._has_comment(notice, issue)):
            # The comment comes last: where it is, the rest was done.
            missing = self._close(issue) if notice.event is Event.RELEASED and self._profile.close_transition else ""
            self._call("POST", f"{issue}/comment", {"body": _document(notice, missing)}, writes=True)

    def _has_comment(self, notice: Notice, issue: str) -> bool:
        answer = self._call("GET", f"{issue}/comment?orderBy=-created&maxResults={COMMENTS}")
        return text.marker(notice) in _texts(answer.read(dict[str, Any]))

    def _close(self, issue: str) -> str:
        """Makes the profile's transition. What to tell people if it is not offered: somebody may have closed the issue
        already, and the release must be told all the same."""
        name = self._profile.close_transition
        offered = self._call("GET", f"{issue}/transitions").read(_Transitions).transitions
        chosen = next((one for one in offered if one.name == name), None)
        if chosen is None:
            return f"The transition {name} is not offered here: close the issue by hand, if it is open."
        self._call("POST", f"{issue}/transitions", {"transition": {"id": chosen.id}}, writes=True)
        return ""

    def _call(self, method: str, path: str, value: object = None, *, writes: bool = False) -> Answer:
        profile = self._profile
        return self._client.call(
            method,
            f"/rest/api/3{path}",
            headers={"Content-Type": "application/json"} if value is not None else {},
            body=msgspec.json.encode(value) if value is not None else None,
            credentials=(
                basic(profile.username_file, profile.token_file)
                if profile.username_file
                else bearer(profile.token_file)
            ),
            writes=writes,
        )


def _document(notice: Notice, more: str = "") -> dict[str, Any]:
    """The notice in the Atlassian Document Format: a paragraph a line."""
    written = [text.title(notice, SUMMARY), *([more] if more else []), *text.lines(notice)]
    paragraphs = [{"type": "paragraph", "content": [{"type": "text", "text": line}]} for line in written]
    return {"type": "doc", "version": 1, "content": paragraphs}


def _texts(value: object) -> set[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        return {value}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_texts, parts))


def _seconds(when: int | str) -> float:
    """A time as Jira gives it: RFC 3339 without the colon, or a number of seconds or milliseconds."""
    if isinstance(when, str):
        return datetime.strptime(when, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
    return when / 1000 if when > 10**11 else float(when)
