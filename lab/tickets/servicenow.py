"""A stand-in for ServiceNow's Table API: records, encoded queries, journal fields."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from lab.tickets.server import Answer, Request, Server

_PATH = re.compile(r"/api/now/table/([a-z0-9_]+)(?:/([^/]+))?")
_CONDITION = re.compile(r"(?P<name>[a-z_]+)(=|IN|LIKE)(.*)")
_NAMES = {
    "sys_id", "number", "correlation_id", "correlation_display", "short_description", "description", "state",
    "approval", "category", "close_code", "close_notes", "sys_updated_by", "sys_updated_on", "sys_created_on",
    "work_notes", "table",
}  # fmt: skip


class ServiceNow(Server):
    """Keeps records of any table."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of Server
        super().__init__(**options)
        self._records: list[dict[str, str]] = []
        self._notes: dict[str, list[str]] = {}

    @property
    def records(self) -> list[dict[str, str]]:
        """Copies of the records, the oldest first. Beside its fields each has `table`."""
        with self._lock:
            return [dict(record) for record in self._records]

    tickets = records

    def work_notes(self, sys_id: str) -> list[str]:
        """The work notes of a record, the oldest first."""
        with self._lock:
            return list(self._notes[sys_id])

    def set(self, number: str, by: str, **fields: str) -> None:
        """Somebody edits a record; with `sys_updated_on`, at that time."""
        with self._lock:
            record = next(record for record in self._records if record["number"] == number)
            record.update({"sys_updated_by": by, "sys_updated_on": _now(), **fields})

    def delete(self, number: str) -> None:
        """Somebody deletes a record."""
        with self._lock:
            self._records = [record for record in self._records if record["number"] != number]

    def answer(self, request: Request) -> Answer:
        """Serves the Table API."""
        path = _PATH.fullmatch(unquote(request.path))
        if path is None:
            return Answer(404, {"error": {"message": "Requested URI does not represent any resource"}})
        table, sys_id = path.groups()
        match request.method, sys_id:
            case "POST", None:
                return Answer(201, {"result": _shown(self._insert(table, request.json()), request)})
            case "GET", None:
                found = [record for record in self._records if record["table"] == table and _matches(record, request)]
                limit = int(request.query.get("sysparm_limit", "10000"))
                return Answer(200, {"result": [_shown(record, request) for record in found[:limit]]})
        record = next((item for item in self._records if item["table"] == table and item["sys_id"] == sys_id), None)
        if record is None:
            return Answer(404, {"error": {"message": "No Record found"}, "status": "failure"})
        if request.method == "PATCH":
            self._update(record, request.json())
        elif request.method != "GET":
            return Answer(405)
        journal = "\n\n".join(
            f"{_now()} - hawse (Work notes)\n{note}" for note in reversed(self._notes[record["sys_id"]])
        )
        display = request.query.get("sysparm_display_value") == "true"
        return Answer(200, {"result": _shown({**record, "work_notes": journal if display else ""}, request)})

    def _insert(self, table: str, fields: Mapping[str, str]) -> dict[str, str]:
        record = {
            "table": table,
            "sys_id": uuid.uuid4().hex,
            "number": f"CHG{30000 + len(self._notes) + 1:07}",
            "sys_created_on": _now(),
            "state": "-5",
            "approval": "requested",
        }
        self._records.append(record)
        self._notes[record["sys_id"]] = []
        self._update(record, fields)
        return record

    def _update(self, record: dict[str, str], fields: Mapping[str, str]) -> None:
        for name, value in fields.items():
            if name == "work_notes":
                self._notes[record["sys_id"]].append(value)
            elif name in _NAMES:  # what the table has not is passed over, as the real one does
                record[name] = value
        record.update(sys_updated_by="hawse", sys_updated_on=_now())


def _matches(record: Mapping[str, str], request: Request) -> bool:
    """Whether a record meets the encoded query. A condition on a field that the table has not is passed over, as the
    real one does unless it is told otherwise."""
    for condition in request.query.get("sysparm_query", "").split("^"):
        parts = _CONDITION.fullmatch(condition)
        if parts is None or parts["name"] not in _NAMES:
            continue
        name, operator, value = parts.groups()
        held = record.get(name, "")
        if not {"=": held == value, "IN": held in value.split(","), "LIKE": value in held}[operator]:
            return False
    return True


def _shown(record: Mapping[str, str], request: Request) -> dict[str, str]:
    wanted = request.query.get("sysparm_fields")
    return {name: record[name] for name in (wanted.split(",") if wanted else record) if name in record}


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
