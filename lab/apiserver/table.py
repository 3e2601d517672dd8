"""Server-side printing: the ``meta.k8s.io/v1 Table`` that kubectl shows, from printer columns or built-in ones."""

import datetime
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lab.apiserver import jsonpath
from lab.apiserver.objects import Json, dig, labels_of, metadata, name_of
from lab.apiserver.resources import CRDS, EVENTS, MUTATING, NAMESPACES, VALIDATING, PrinterColumn, Resource

_ROLE_LABEL = "node-role.kubernetes.io/"
_NONE = "<none>"
_UNKNOWN = "<unknown>"


@dataclass(frozen=True, slots=True)
class _Column:
    """A column and how to fill its cell."""

    definition: PrinterColumn
    cell: Callable[[Json], object]


def table(resource: Resource, objects: Iterable[Json], meta: Json, *, include: str, version: str) -> Json:
    """A Table of objects; ``include`` is None, Metadata or Object: what each row carries of its object."""
    columns = _columns(resource)
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": meta,
        "columnDefinitions": [
            {
                "name": column.definition.name,
                "type": column.definition.type,
                "format": column.definition.format,
                "description": column.definition.description,
                "priority": column.definition.priority,
            }
            for column in columns
        ],
        "rows": [_row(columns, obj, include, version) for obj in objects],
    }


def partial(obj: Json, version: str) -> Json:
    """The object's metadata alone."""
    return {"kind": "PartialObjectMetadata", "apiVersion": f"meta.k8s.io/{version}", "metadata": metadata(obj)}


def _row(columns: list[_Column], obj: Json, include: str, version: str) -> Json:
    row: Json = {"cells": [column.cell(obj) for column in columns]}
    if include == "Object":
        row["object"] = obj
    elif include == "Metadata":
        row["object"] = partial(obj, version)
    return row


def age(moment: object, now: datetime.datetime | None = None) -> str:
    """How long ago a timestamp is, as kubectl abbreviates it: 45s, 5m30s, 3h20m, 4d2h, 2y10d."""
    try:
        then = datetime.datetime.fromisoformat(str(moment))
    except ValueError:
        return _UNKNOWN
    seconds = max(0, int(((now or datetime.datetime.now(datetime.UTC)) - then).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    text = f"{days // 365}y"
    if seconds < 120:
        text = f"{seconds}s"
    elif minutes < 10:
        text = _two(minutes, "m", seconds % 60, "s")
    elif minutes < 180:
        text = f"{minutes}m"
    elif hours < 8:
        text = _two(hours, "h", minutes % 60, "m")
    elif hours < 48:
        text = f"{hours}h"
    elif days < 8:
        text = _two(days, "d", hours % 24, "h")
    elif days < 730:
        text = f"{days}d"
    elif days < 8 * 365:
        text = _two(days // 365, "y", days % 365, "d")
    return text


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}{small}{small_unit}" if small else f"{large}{large_unit}"


def _columns(resource: Resource) -> list[_Column]:
    name = _Column(PrinterColumn("Name", "string", "", "Name of the object", "name"), name_of)
    if resource.custom:
        return [name, *(_Column(column, _printed(column)) for column in resource.columns)]
    built_in = [] if resource.storage == EVENTS else [name]
    return [*built_in, *(_BUILT_IN.get(resource.storage) or [_AGE])]


def _printed(column: PrinterColumn) -> Callable[[Json], object]:
    def cell(obj: Json) -> object:
        try:
            found = jsonpath.find(obj, column.json_path)
        except jsonpath.BadPath:
            return None
        if not found:
            return None
        value = found[0]  # a column shows one value, as on a real server
        if column.type == "date":
            return age(value)
        if column.type == "string" and not isinstance(value, str):
            return json.dumps(value, separators=(",", ":"))
        return value

    return cell


def _own(name: str, kind: str, cell: Callable[[Json], object], *, wide: bool = False) -> _Column:
    return _Column(PrinterColumn(name, kind, "", priority=int(wide)), cell)


def _text(*path: str, missing: str = "") -> Callable[[Json], object]:
    return lambda obj: dig(obj, *path) or missing


def _count(*path: str) -> Callable[[Json], object]:
    def cell(obj: Json) -> object:
        value = dig(obj, *path)
        return len(value) if isinstance(value, list | dict) else 0

    return cell


def _node_status(obj: Json) -> str:
    conditions = (obj.get("status") or {}).get("conditions") or []
    ready = next((item.get("status") for item in conditions if item.get("type") == "Ready"), None)
    status = {"True": "Ready", None: "Unknown"}.get(ready, "NotReady")
    return f"{status},SchedulingDisabled" if dig(obj, "spec", "unschedulable") else status


def _roles(obj: Json) -> str:
    roles = sorted(label.removeprefix(_ROLE_LABEL) for label in labels_of(obj) if label.startswith(_ROLE_LABEL))
    return ",".join(roles) or _NONE


def _internal_ip(obj: Json) -> str:
    addresses = (obj.get("status") or {}).get("addresses") or []
    return next((item["address"] for item in addresses if item.get("type") == "InternalIP"), _NONE)


def _last_seen(obj: Json) -> str:
    return age(obj.get("lastTimestamp") or obj.get("eventTime") or metadata(obj).get("creationTimestamp"))


def _event_object(obj: Json) -> str:
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def _ports(obj: Json) -> str:
    ports = (obj.get("spec") or {}).get("ports") or []
    return ",".join(f"{port.get('port')}/{port.get('protocol', 'TCP')}" for port in ports) or _NONE


_AGE = _own("Age", "string", lambda obj: age(metadata(obj).get("creationTimestamp")))
_WEBHOOKS = [_own("Webhooks", "integer", _count("webhooks")), _AGE]
_BUILT_IN: dict[str, list[_Column]] = {
    NAMESPACES: [_own("Status", "string", _text("status", "phase")), _AGE],
    "/nodes": [
        _own("Status", "string", _node_status),
        _own("Roles", "string", _roles),
        _AGE,
        _own("Version", "string", _text("status", "nodeInfo", "kubeletVersion")),
        _own("Internal-IP", "string", _internal_ip, wide=True),
    ],
    "/pods": [
        _own("Status", "string", _text("status", "phase")),
        _AGE,
        _own("Node", "string", _text("spec", "nodeName", missing=_NONE), wide=True),
    ],
    "/services": [
        _own("Type", "string", _text("spec", "type")),
        _own("Cluster-IP", "string", _text("spec", "clusterIP", missing=_NONE)),
        _own("Port(s)", "string", _ports),
        _AGE,
    ],
    "/configmaps": [_own("Data", "integer", _count("data")), _AGE],
    "/secrets": [_own("Type", "string", _text("type")), _own("Data", "integer", _count("data")), _AGE],
    "/serviceaccounts": [_own("Secrets", "integer", _count("secrets")), _AGE],
    EVENTS: [
        _own("Last Seen", "string", _last_seen),
        _own("Type", "string", _text("type")),
        _own("Reason", "string", _text("reason")),
        _own("Object", "string", _event_object),
        _own("Message", "string", lambda obj: obj.get("message") or obj.get("note") or ""),
        _own("Name", "string", name_of, wide=True),
    ],
    "coordination.k8s.io/leases": [_own("Holder", "string", _text("spec", "holderIdentity")), _AGE],
    MUTATING: _WEBHOOKS,
    VALIDATING: _WEBHOOKS,
    CRDS: [_own("Created At", "date", _text("metadata", "creationTimestamp"))],
}
