"""The Flask application."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flask import Flask, Response

from egress.adapters.ledger import Ledger
from egress.operations import TransientError
from egress.settings import Settings
from webhook import review
from webhook.admission import Admission
from webhook.hinting import Hinter
from webhook.lean import Answer, Lean, read_body
from webhook.metrics import Observation
from webhook.review import Outcome
from webhook.validator import RESOURCES, Validator

T = TypeVar("T")
MAX_BODY = 8 * 1024 * 1024


ENDING = "the webhook is about to end"


def never() -> bool:
    """For an application that nobody tells of its end."""
    return False


def create_app(settings: Settings, *, ending: Callable[[], bool] = never, leaving: Callable[[], bool] = never) -> Flask:
    """The application, with its own connection to Redis.

    `ending` says whether no more requests should be sent, `leaving` whether connections should not be kept.
    """

    def finish(response: Response) -> None:
        # For HTTP/1.1; HTTP/2, which API servers speak, has its own way to say so.
        if leaving():
            response.headers["Connection"] = "close"

    app = Lean("hawse", finish)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    ledger = Ledger(settings.redis_url, timeout=settings.redis_timeout)
    ledger.one_waits()  # or a Redis that hangs would hold all threads, and nobody answers the API server
    trusted = frozenset(name.strip() for name in settings.trusted_users.split(",") if name.strip())
    admission = Admission(ledger, Hinter().hint, trusted)
    validator = Validator(ledger, trusted, settings.layout().cluster_networks)

    @app.post("/admit/namespaces")
    def admit() -> Response:
        return _answered("mutating", "namespaces", review.parse, admission.answer)

    @app.post("/validate/namespaces")
    def validate_namespace() -> Response:
        return _answered("validating", "namespaces", review.parse, validator.namespace)

    @app.post(f"/validate/<any({','.join(RESOURCES)}):resource>")
    def validate(resource: str) -> Response:
        return _answered(
            "validating",
            resource,
            lambda body: review.parse_object(body, (RESOURCES[resource], resource)),
            lambda parsed: validator.object(resource, parsed),
        )

    @app.get("/healthz")
    def healthz() -> Response:
        return Response("ok\n", mimetype="text/plain")

    @app.get("/readyz")
    def readyz() -> Response:
        if ending():
            return Response(f"{ENDING}\n", status=503, mimetype="text/plain")
        # Without Redis the webhook still answers (with a warning), so it stays ready; the text tells.
        try:
            ledger.ping()
        except TransientError as error:
            return Response(f"ok, but namespaces are admitted without an address: {error}\n", mimetype="text/plain")
        return Response("ok\n", mimetype="text/plain")

    return app


def _answered(
    webhook: str,
    resource: str,
    parse: Callable[[bytes], review.Request[T]],
    answer: Callable[[review.Request[T]], review.Answer],
) -> Response:
    """Parses the body, answers, and counts. What cannot be parsed is a 400; a failure of ours is Flask's 500."""
    observation = Observation(webhook, resource)
    operation, outcome = "", Outcome.ERROR
    try:
        parsed = parse(read_body())
        operation = parsed.operation
        answered = answer(parsed)
        outcome = answered.outcome
        return Answer(answered.body)
    except review.ReviewError as error:
        return Response(f"{error}\n", status=400, mimetype="text/plain")
    finally:
        observation.answered(operation, outcome)
