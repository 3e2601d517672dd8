"""The Flask application."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from celery import Celery
from flask import Flask, Response, request
from kombu.exceptions import OperationalError

from egress.adapters.ledger import Ledger
from egress.messages import CONTROL_QUEUE, NAMESPACE_TASK, celery_config
from egress.operations import TransientError
from egress.settings import Settings
from webhook import review
from webhook.admission import Admission

_log = structlog.get_logger()
MAX_BODY = 8 * 1024 * 1024
HINT_DELAY = 0.2
"""Seconds after which a hint is worked on: the API server stores the namespace only after our answer."""


def create_app(settings: Settings) -> Flask:
    """The application, with its own connection to Redis."""
    app = Flask("hawse")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    ledger = Ledger(settings.redis_url, timeout=settings.redis_timeout)
    trusted = frozenset(name.strip() for name in settings.trusted_users.split(",") if name.strip())
    admission = Admission(ledger, _hinter(settings), trusted)

    @app.post("/admit/namespaces")
    def admit() -> Response:
        try:
            admission_request = review.parse(request.get_data())
        except review.ReviewError as error:
            return Response(f"{error}\n", status=400, mimetype="text/plain")
        return Response(admission.answer(admission_request), mimetype="application/json")

    @app.get("/healthz")
    def healthz() -> Response:
        return Response("ok\n", mimetype="text/plain")

    @app.get("/readyz")
    def readyz() -> Response:
        # Without Redis the webhook still answers (with a warning), so it stays ready; the text tells.
        try:
            ledger.ping()
        except TransientError as error:
            return Response(f"ok, but namespaces are admitted without an address: {error}\n", mimetype="text/plain")
        return Response("ok\n", mimetype="text/plain")

    return app


def _hinter(settings: Settings) -> Callable[[str], None]:
    celery = Celery("hawse-webhook")
    celery.conf.update(celery_config(settings.redis_url))
    celery.conf.broker_transport_options = celery.conf.broker_transport_options | {
        "socket_timeout": settings.redis_timeout,
        "socket_connect_timeout": settings.redis_timeout,
    }

    def hint(name: str) -> None:
        """Tells the workers of a namespace. The watch would find it as well, so a hint that fails is let go."""
        try:
            celery.send_task(NAMESPACE_TASK, args=[name], queue=CONTROL_QUEUE, countdown=HINT_DELAY, retry=False)
        except (OperationalError, OSError) as error:
            _log.warning("hint not sent", namespace=name, error=str(error))

    return hint
