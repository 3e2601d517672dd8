"""`/api/v1`: what Hawse shows and does, for programs. `webhook.api.openapi` describes it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from http import HTTPStatus
from typing import TypeVar

import msgspec
from flask import Blueprint, Response, g, request
from werkzeug.datastructures import MultiDict

from egress.adapters.cluster import ConflictError, NotFoundError
from egress.objects import Phase, Verdict
from egress.operations import PermanentError, TransientError
from egress.views import Trouble, Verb
from webhook.api.acting import Acting
from webhook.api.identity import LOOK, Gate, UnknownError
from webhook.api.openapi import document
from webhook.api.problems import problem
from webhook.api.reading import BadRequestError, Filter, Reading
from webhook.api.rights import DeniedError, TooFastError, act, demand, is_cross_site, visible, who
from webhook.api.stream import Pulse

MAX_BODY = 64 * 1024
MAX_AT_ONCE = 1000
"""How many namespaces one request may have retried."""
E = TypeVar("E", bound=StrEnum)


class _Action(msgspec.Struct, forbid_unknown_fields=True):
    why: str = ""


class _Move(_Action):
    node: str = ""


class _Decision(_Action):
    verdict: Verdict = Verdict.APPROVED


class _RetryAll(_Action):
    text: str = ""
    phase: Phase | None = None
    pool: str = ""
    node: str = ""
    trouble: Trouble | None = None


B = TypeVar("B", bound=_Action)


def blueprint(reading: Reading, acting: Acting, gate: Gate, pulse: Pulse) -> Blueprint:
    """The API. Whoever is not known is let in nowhere but to the document that describes it."""
    api = Blueprint("v1", __name__, url_prefix="/api/v1")

    @api.before_request
    def known() -> Response | None:
        if request.endpoint != "v1.openapi":
            g.identity = gate.who(request)
        if request.method != "GET" and is_cross_site():
            raise DeniedError("this came from another site")
        return None

    @api.after_request
    def private(response: Response) -> Response:
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @api.get("/openapi.json")
    def openapi() -> Response:
        return _json(document())

    @api.get("/events")
    def events() -> Response:
        visible(gate)
        stream = pulse.listen()
        headers = {"X-Accel-Buffering": "no"}  # what nginx goes by; others go by the type
        response = Response(stream, content_type="text/event-stream", headers=headers)
        response.call_on_close(stream.close)
        return response

    _add_reads(api, reading, gate)
    _add_actions(api, reading, acting, gate)
    _handle_errors(api)
    return api


def _add_reads(api: Blueprint, reading: Reading, gate: Gate) -> None:
    @api.get("/overview")
    def overview() -> Response:
        return _json(reading.overview(visible(gate)))

    @api.get("/assignments")
    def assignments() -> Response:
        query = request.args
        wanted = Filter(
            query.get("text", ""),
            _enum(Phase, "phase"),
            query.get("pool", ""),
            query.get("node", ""),
            _enum(Trouble, "trouble"),
            visible(gate),
        )
        page = reading.assignments(
            wanted,
            sort=query.get("sort", "namespace"),
            descending=_flag("descending"),
            after=query.get("after", ""),
            limit=_number(query, "limit", 100),
        )
        return _json(page)

    @api.get("/namespaces/<name>")
    def namespace(name: str) -> Response:
        demand(gate, LOOK, name)
        found = reading.namespace(name)
        if found is None:
            raise NotFoundError(f"there is no namespace {name} that Hawse knows of")
        return _json(found)

    @api.get("/nodes")
    def nodes() -> Response:
        demand(gate, LOOK)
        return _json(reading.nodes())

    @api.get("/pools")
    def pools() -> Response:
        demand(gate, LOOK)
        return _json(reading.pools())

    @api.get("/failures")
    def failures() -> Response:
        return _json(reading.failures(visible(gate)))

    @api.get("/audit")
    def audit() -> Response:
        demand(gate, LOOK)
        return _json(
            reading.audit(request.args.get("after", ""), min(max(_number(request.args, "limit", 100), 1), 500))
        )


def _add_actions(api: Blueprint, reading: Reading, acting: Acting, gate: Gate) -> None:
    @api.post("/namespaces/<name>/retry")
    def retry(name: str) -> Response:
        body = _body(_Action)
        act(gate, Verb.RETRY, name)
        return _json({"done": acting.retry(who().user, [name], body.why)})

    @api.post("/retry")
    def retry_all() -> Response:
        body = _body(_RetryAll)
        act(gate, Verb.RETRY)
        wanted = Filter(body.text, body.phase, body.pool, body.node, body.trouble)
        names = sorted({item.namespace for item in reading.matching(wanted) if item.trouble is not None})
        done = acting.retry(who().user, names[:MAX_AT_ONCE], body.why)
        return _json({"done": done, "left": len(names) - len(done)})

    @api.post("/namespaces/<name>/release")
    def release(name: str) -> Response:
        body = _body(_Action)
        act(gate, Verb.RELEASE, name)
        acting.release(who().user, name, body.why)
        return _json({"done": [name]})

    @api.post("/addresses/<address>/move")
    def move(address: str) -> Response:
        body = _body(_Move)
        act(gate, Verb.MOVE)
        if not body.node:
            raise BadRequestError("node is missing: name the node that is to have the address")
        acting.move(who().user, address, body.node, body.why)
        return _json({"done": [address]})

    @api.post("/addresses/<address>/decision")
    def decide(address: str) -> Response:
        body = _body(_Decision)
        act(gate, Verb.APPROVE)  # of one namespace alone nobody approves for himself
        acting.approve(who().user, address, body.why, body.verdict)
        return _json({"done": [address]})

    @api.post("/pause")
    def pause() -> Response:
        body = _body(_Action)
        act(gate, Verb.PAUSE)
        acting.pause(who().user, body.why)
        return _json({"done": ["paused"]})

    @api.post("/resume")
    def resume() -> Response:
        body = _body(_Action)
        act(gate, Verb.PAUSE)
        acting.resume(who().user, body.why)
        return _json({"done": ["resumed"]})


def _handle_errors(api: Blueprint) -> None:
    answers: dict[type[Exception], Callable[[Exception], Response]] = {
        UnknownError: lambda error: problem(HTTPStatus.UNAUTHORIZED, str(error), WWW_Authenticate="Bearer"),
        DeniedError: lambda error: problem(HTTPStatus.FORBIDDEN, str(error)),
        BadRequestError: lambda error: problem(HTTPStatus.BAD_REQUEST, str(error)),
        TooFastError: lambda error: problem(HTTPStatus.TOO_MANY_REQUESTS, str(error), Retry_After="60"),
        NotFoundError: lambda error: problem(HTTPStatus.NOT_FOUND, str(error)),
        ConflictError: lambda error: problem(HTTPStatus.CONFLICT, str(error)),
        PermanentError: lambda error: problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)),
        TransientError: lambda error: problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error)),
    }
    for kind, answer in answers.items():
        api.register_error_handler(kind, answer)


def _body(kind: type[B]) -> B:
    if request.mimetype != "application/json":
        raise BadRequestError("send a JSON object, with Content-Type: application/json")
    data = request.get_data()
    if len(data) > MAX_BODY:
        raise BadRequestError(f"the body is longer than {MAX_BODY} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is not what is expected: {error}") from None


def _enum(kind: type[E], name: str) -> E | None:
    text = request.args.get(name, "")
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise BadRequestError(f"{name} is {text!r}; give it one of {', '.join(kind)}") from None


def _flag(name: str) -> bool:
    text = request.args.get(name, "false")
    if text not in ("true", "false"):
        raise BadRequestError(f"{name} is {text!r}; give it true or false")
    return text == "true"


def _number(query: MultiDict[str, str], name: str, default: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise BadRequestError(f"{name} is {text!r}; give it a number")
    return int(text)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value) + b"\n", content_type="application/json")
