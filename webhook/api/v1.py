"""`/api/v1`: what Hawse shows and does, for programs. `webhook.api.openapi` describes it."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

import msgspec
from flask import Blueprint, Response, g, request

from egress.actions import Trouble, Verb
from egress.adapters.cluster import NotFoundError
from egress.forms import learn
from egress.objects import Phase, Verdict
from egress.operations import TransientError
from webhook.api.acting import Acting
from webhook.api.diagnosing import Diagnosing
from webhook.api.identity import LOOK, Gate, UnknownError
from webhook.api.openapi import document
from webhook.api.problems import problem
from webhook.api.queries import BadRequestError, Filter, flag, number, wanted
from webhook.api.reading import Reading
from webhook.api.rights import (
    STATUSES,
    DeniedError,
    TooFastError,
    act,
    demand,
    is_cross_site,
    look_closely,
    visible,
    who,
)
from webhook.api.stream import Pulse

MAX_BODY = 64 * 1024
MAX_AT_ONCE = 1000
"""How many namespaces one request may have retried."""


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


learn(_Action, _Move, _Decision, _RetryAll)


B = TypeVar("B", bound=_Action)


def blueprint(reading: Reading, acting: Acting, diagnosing: Diagnosing, gate: Gate, pulse: Pulse) -> Blueprint:
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
    _add_diagnoses(api, diagnosing, gate)
    _add_actions(api, reading, acting, gate)
    _handle_errors(api)
    return api


def _add_reads(api: Blueprint, reading: Reading, gate: Gate) -> None:
    @api.get("/overview")
    def overview() -> Response:
        return _json(reading.overview(visible(gate)))

    @api.get("/assignments")
    def assignments() -> Response:
        page = reading.assignments(
            wanted(visible(gate)),
            sort=request.args.get("sort", "namespace"),
            descending=flag("descending"),
            after=request.args.get("after", ""),
            limit=number("limit", 100),
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
        return _json(reading.audit(request.args.get("after", ""), min(max(number("limit", 100), 1), 500)))


def _add_diagnoses(api: Blueprint, diagnosing: Diagnosing, gate: Gate) -> None:
    @api.get("/namespaces/<name>/path")
    def explain(name: str) -> Response:
        look_closely(gate, name)
        return _json(diagnosing.explain(name))

    @api.get("/verification")
    def verify() -> Response:
        look_closely(gate)
        return _json(diagnosing.verify())


def _add_actions(api: Blueprint, reading: Reading, acting: Acting, gate: Gate) -> None:
    @api.post("/namespaces/<name>/retry")
    def retry(name: str) -> Response:
        body = _body(_Action)
        act(gate, Verb.RETRY, name)
        acting.retry(who().user, name, body.why)
        return _json({"done": [name]})

    @api.post("/retry")
    def retry_all() -> Response:
        body = _body(_RetryAll)
        act(gate, Verb.RETRY)
        meant = Filter(body.text.strip().lower(), body.phase, body.pool, body.node, body.trouble)
        names = sorted({item.namespace for item in reading.matching(meant) if item.trouble is not None})
        made = acting.retry_all(who().user, names[:MAX_AT_ONCE], body.why)
        if made.problem and not made.done:
            raise TransientError(made.problem)
        left = made.left + len(names[MAX_AT_ONCE:])
        return _json({"done": made.done, "refused": made.refused, "left": left})

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
    headers = {UnknownError: {"WWW_Authenticate": "Bearer"}, TooFastError: {"Retry_After": "60"}}

    def handler(kind: type[Exception], status: HTTPStatus) -> Callable[[Exception], Response]:
        return lambda error: problem(status, str(error), **headers.get(kind, {}))

    for kind, status in STATUSES.items():
        api.register_error_handler(kind, handler(kind, status))


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


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value) + b"\n", content_type="application/json")
