"""The OpenAPI document of `/api/v1`: its schemas are those of the values themselves."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Any

import msgspec

from egress.actions import Audit, Trouble
from egress.objects import Phase, Verdict
from egress.views import Explanation, FailureGroup, NamespaceDetail, NodeView, Overview, Page, PoolView, Verification
from webhook.api.queries import SORTS

Json = dict[str, Any]
_REF = "#/components/schemas/{name}"
_TYPES: dict[str, Any] = {
    "Overview": Overview,
    "Page": Page,
    "NamespaceDetail": NamespaceDetail,
    "Nodes": tuple[NodeView, ...],
    "Pools": tuple[PoolView, ...],
    "Failures": tuple[FailureGroup, ...],
    "Audit": Audit,
    "Explanation": Explanation,
    "Verification": Verification,
}
_PROBLEMS = {
    "400": "What was asked for makes no sense.",
    "401": "It is not known who asks.",
    "403": "Whoever asks may not do that.",
    "404": "There is no such thing.",
    "409": "Somebody changes it all the time.",
    "422": "That can never be; the detail says why.",
    "429": "Too many actions within a minute.",
    "503": "Something is away: try again in a moment.",
}


@cache
def document() -> Json:
    """The document. Do not change it."""
    schemas, components = msgspec.json.schema_components(_TYPES.values(), ref_template=_REF)
    read = dict(zip(_TYPES, schemas, strict=True))
    namespace = _query("namespace", "The one namespace to show, for whoever may not see all.", _text())
    filters = {"text": _text(), "phase": _one_of(Phase), "pool": _text(), "node": _text(), "trouble": _one_of(Trouble)}
    pages = [_query("after", "What the page before gave.", _text()), _query("limit", "At most so many.", _number(500))]
    name, address = _path("name"), _path("address")
    paths = {
        "/overview": _get("What is wrong, and how much there is.", read["Overview"], namespace),
        "/assignments": _get(
            "Assignments, filtered, sorted, in pages.",
            read["Page"],
            namespace,
            *(_query(key, f"Only those with this {key}.", schema) for key, schema in filters.items()),
            _query("sort", "By what.", {"type": "string", "enum": list(SORTS)}),
            _query("descending", "The last first.", {"type": "string", "enum": ["true", "false"]}),
            *pages,
        ),
        "/namespaces/{name}": _get("One namespace, with its history.", read["NamespaceDetail"], name),
        "/namespaces/{name}/path": _get(
            "The way of a namespace's packets, as objects, nodes and link have it now.", read["Explanation"], name
        ),
        "/verification": _get("All that is not as it should be, on every node.", read["Verification"]),
        "/nodes": _get("Every node that has a runner.", read["Nodes"]),
        "/pools": _get("Every pool.", read["Pools"]),
        "/failures": _get("What is wrong, by its cause.", read["Failures"], namespace),
        "/events": _stream("An event whenever something that is shown is different: then ask for it.", namespace),
        "/audit": _get("What people did, the latest first.", read["Audit"], *pages),
        "/namespaces/{name}/retry": _post("Try again at once what failed or waits.", {}, name),
        "/retry": _post("The same for all that these let through.", filters),
        "/namespaces/{name}/release": _post("Take the addresses away: cuts traffic. Say why.", {}, name),
        "/addresses/{address}/move": _post("Move an address to a node.", {"node": _text()}, address),
        "/addresses/{address}/decision": _post(
            "Decide on behalf of the ticket system. Say why.", {"verdict": _one_of(Verdict)}, address
        ),
        "/pause": _post("Pause the automation. Say why.", {}),
        "/resume": _post("End the pause.", {}),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Hawse", "version": "1", "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": "/api/v1"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": _PROBLEM, "Done": _DONE},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


_PROBLEM: Json = {
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
_DONE: Json = {
    "type": "object",
    "required": ["done"],
    "properties": {
        "done": {"type": "array", "items": {"type": "string"}},
        "refused": {
            "type": "object",
            "description": "Those that were not done, each with why.",
            "additionalProperties": {"type": "string"},
        },
        "left": {"type": "integer", "description": "How many more there are: ask again."},
    },
}


def _text() -> Json:
    return {"type": "string"}


def _number(most: int) -> Json:
    return {"type": "integer", "minimum": 1, "maximum": most}


def _one_of(kind: type[StrEnum]) -> Json:
    return {"type": "string", "enum": [member.value for member in kind]}


def _query(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _get(summary: str, schema: Json, *parameters: Json) -> Json:
    return {"get": {"summary": summary, "parameters": list(parameters), "responses": _responses(schema)}}


def _stream(summary: str, *parameters: Json) -> Json:
    made = _get(summary, {}, *parameters)
    made["get"]["responses"]["200"]["content"] = {"text/event-stream": {"schema": _text()}}
    return made


def _post(summary: str, fields: Json, *parameters: Json) -> Json:
    body = {"type": "object", "additionalProperties": False, "properties": {"why": _text(), **fields}}
    return {
        "post": {
            "summary": summary,
            "parameters": list(parameters),
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": _responses({"$ref": _REF.format(name="Done")}),
        }
    }


def _responses(schema: Json) -> Json:
    good = {"description": "Done.", "content": {"application/json": {"schema": schema}}}
    bad = {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}}
    return {"200": good} | {status: {"description": text, "content": bad} for status, text in _PROBLEMS.items()}
