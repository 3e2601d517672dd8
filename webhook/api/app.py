"""The Flask application of the API."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from flask import Flask, Response, request

from egress.adapters.cluster import Cluster
from egress.adapters.ledger import Ledger
from egress.adapters.networks import Detector
from egress.adapters.pausing import Pause
from egress.operations import TransientError
from egress.processes import own_namespace
from egress.settings import Settings
from egress.ticket_profiles import Profiles
from webhook.api import callbacks, lists, metrics, pages, problems, v1
from webhook.api.acting import Acting
from webhook.api.asking import Asker
from webhook.api.callbacks import Desk
from webhook.api.diagnosing import Diagnosing
from webhook.api.identity import Gate
from webhook.api.lists import Press
from webhook.api.mirrors import Mirrors
from webhook.api.problems import problem
from webhook.api.reading import Reading
from webhook.api.stream import Pulse
from webhook.app import never

MAX_HEADERS = 32 * 1024


def create_app(
    settings: Settings,
    profiles: Callable[[], Profiles],
    mirrors: Mirrors,
    cluster: Cluster,
    *,
    leaving: Callable[[], bool] = never,
) -> Flask:
    """The application, with its own connection to Redis. Somebody else starts the mirrors.

    `profiles` gives the ticket profiles as they are now; `leaving` says whether connections should not be kept.
    """
    app = Flask("hawse-api", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = (
        callbacks.MAX_BODY + 1
    )  # a body in chunks is cut there, and then seen to be longer
    ledger = Ledger(settings.redis_url, timeout=settings.redis_timeout)
    problems.install(app)
    app.register_blueprint(lists.blueprint(profiles, mirrors, Press(mirrors, ledger)))
    desk = Desk(cluster, ledger, callbacks.publisher(settings, ledger))
    app.register_blueprint(callbacks.blueprint(profiles, desk))
    own = own_namespace(settings)
    pause = Pause(cluster, own)

    def paused() -> str:
        try:
            return pause.why()
        except TransientError:
            return ""  # that the API server is away is said elsewhere

    reading = Reading(mirrors, ledger, paused, Detector(cluster, settings.network))
    acting = Acting(cluster, ledger, reading, Asker(settings, ledger), own)
    diagnosing = Diagnosing(cluster, ledger, reading, ledger.ask_inspection)
    pulse = Pulse(reading.state, settings.api_listeners, leaving)
    gate = Gate(cluster, settings)
    app.register_blueprint(v1.blueprint(reading, acting, diagnosing, gate, pulse))
    app.register_blueprint(pages.blueprint(reading, acting, diagnosing, gate))

    @app.get("/healthz")
    def healthz() -> Response:
        return Response("ok\n", mimetype="text/plain")

    @app.before_request
    def bounded() -> Response | None:
        if sum(len(name) + len(text) for name, text in request.headers) > MAX_HEADERS:
            return problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        return None

    @app.after_request
    def finish(response: Response) -> Response:
        metrics.requests.labels(request.blueprint or "", str(response.status_code)).inc()
        response.headers["X-Content-Type-Options"] = "nosniff"
        if leaving():
            response.headers["Connection"] = "close"
        return response

    return app
