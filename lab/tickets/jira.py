"""A stand-in for Jira Cloud's REST v3: issues, search by label, transitions, comments, bulk reading."""

from __future__ import annotations

import re
import time
from typing import Any

from lab.tickets.server import Answer, Request, Server

_ISSUE = re.compile(r"/rest/api/3/issue/([0-9]+)/(comment|transitions)")
_LABEL = re.compile(r'labels = "([^"]+)"')
TRANSITIONS = {"11": "In Progress", "21": "Done", "31": "Closed", "41": "Rejected"}
"""Each leads to the status of the same name, from any other."""


class Jira(Server):
    """Keeps issues. Its search does not lag as the real one's does."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of Server
        super().__init__(**options)
        self._issues: list[dict[str, Any]] = []
        self._comments: dict[str, list[Any]] = {}
        self._history: dict[str, list[dict[str, Any]]] = {}

    @property
    def issues(self) -> list[dict[str, Any]]:
        """The issues, the oldest first: id, key and fields."""
        with self._lock:
            return [{**issue, "fields": dict(issue["fields"])} for issue in self._issues]

    tickets = issues

    def comments(self, identity: str) -> list[Any]:
        """The bodies of an issue's comments, the oldest first."""
        with self._lock:
            return list(self._comments[identity])

    def set(self, key: str, by: str, status: str, at: float | None = None) -> None:
        """Somebody transitions an issue, at a time in seconds since the epoch."""
        with self._lock:
            self._transition(next(issue for issue in self._issues if issue["key"] == key), by, status, at)

    def delete(self, key: str) -> None:
        """Somebody deletes an issue."""
        with self._lock:
            self._issues = [issue for issue in self._issues if issue["key"] != key]

    def answer(self, request: Request) -> Answer:
        """Serves REST v3."""
        match request.method, request.path:
            case "POST", "/rest/api/3/issue":
                return self._create(request.json()["fields"])
            case "POST", "/rest/api/3/search/jql":
                return self._search(request.json())
            case "POST", "/rest/api/3/issue/bulkfetch":
                wanted = request.json()["issueIdsOrKeys"]
                found = [issue for issue in self._issues if issue["id"] in wanted]
                missing = [{"id": one} for one in wanted if one not in {issue["id"] for issue in found}]
                return Answer(200, {"issues": found, "issueErrors": missing})
            case "POST", "/rest/api/3/changelog/bulkfetch":
                wanted = request.json()["issueIdsOrKeys"]
                logs = [{"issueId": one, "changeHistories": self._history.get(one, [])} for one in wanted]
                return Answer(200, {"issueChangeLogs": logs})
        path = _ISSUE.fullmatch(request.path)
        issue = next((issue for issue in self._issues if path and issue["id"] == path[1]), None)
        if path is None or issue is None:
            return Answer(404, {"errorMessages": ["Issue does not exist or you do not have permission to see it."]})
        return self._comment(issue, request) if path[2] == "comment" else self._transitions(issue, request)

    def _create(self, fields: dict[str, Any]) -> Answer:
        if not {"project", "issuetype", "summary"} <= fields.keys():
            return Answer(400, {"errorMessages": [], "errors": {"summary": "Specify a summary"}})
        if fields.get("description", {}).get("type") != "doc":
            return Answer(400, {"errors": {"description": "Operation value must be an Atlassian Document"}})
        number = len(self._history) + 1
        held = {**fields, "status": {"name": "To Do"}, "updated": _stamp(time.time())}
        issue: dict[str, Any] = {
            "id": str(10000 + number),
            "key": f"{fields['project']['key']}-{number}",
            "fields": held,
        }
        self._issues.append(issue)
        self._comments[issue["id"]], self._history[issue["id"]] = [], []
        return Answer(
            201, {"id": issue["id"], "key": issue["key"], "self": f"{self.url}/rest/api/3/issue/{issue['id']}"}
        )

    def _search(self, query: dict[str, Any]) -> Answer:
        label = _LABEL.search(query["jql"])
        if label is None:
            return Answer(400, {"errorMessages": ["Unbounded JQL queries are not allowed here."]})
        found = [issue for issue in self._issues if label[1] in issue["fields"].get("labels", [])]
        return Answer(200, {"issues": found[: query.get("maxResults", 50)], "isLast": True})

    def _comment(self, issue: dict[str, Any], request: Request) -> Answer:
        comments = self._comments[issue["id"]]
        if request.method == "GET":
            size = int(request.query.get("maxResults", "50"))
            return Answer(200, {"comments": [{"body": body} for body in reversed(comments)][:size]})
        body = request.json()["body"]
        if body.get("type") != "doc":
            return Answer(400, {"errors": {"comment": "Comment body is not valid!"}})
        comments.append(body)
        issue["fields"]["updated"] = _stamp(time.time())
        return Answer(201, {"id": str(len(comments))})

    def _transitions(self, issue: dict[str, Any], request: Request) -> Answer:
        offered = {number: to for number, to in TRANSITIONS.items() if to != issue["fields"]["status"]["name"]}
        if request.method == "GET":
            return Answer(200, {"transitions": [{"id": number, "name": to} for number, to in offered.items()]})
        number = request.json()["transition"]["id"]
        if number not in offered:
            return Answer(400, {"errorMessages": ["It seems that the transition is not valid"]})
        self._transition(issue, "hawse", offered[number], None)
        return Answer(204)

    def _transition(self, issue: dict[str, Any], by: str, status: str, at: float | None) -> None:
        at = time.time() if at is None else at
        before = issue["fields"]["status"]["name"]
        issue["fields"].update(status={"name": status}, updated=_stamp(at))
        change = {"field": "status", "fieldId": "status", "fromString": before, "toString": status}
        self._history[issue["id"]].append(
            {"id": str(len(self._history[issue["id"]])), "created": int(at * 1000), "author": {"displayName": by},
             "items": [change]}
        )  # fmt: skip


def _stamp(at: float) -> str:
    """As Jira writes times: with milliseconds, and an offset without a colon."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at * 1000) % 1000:03}+0000"
