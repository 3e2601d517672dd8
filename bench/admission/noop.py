"""A Flask application that admits everything and looks at nothing, served as `hawse-webhook` is: the same server, the
same TLS, the same number of threads. What the webhook adds to it is what Hawse does."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import msgspec
from flask import Flask, Response, request

from egress import settings
from webhook.__main__ import server
from webhook.server import Pair, Term

_ANSWER = msgspec.json.encode(
    {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": "0fe1bc06-9578-495b-87bf-9fce58cf4432", "allowed": True},
    }
)


def create_app(_: Term) -> Flask:
    """The application. It reads the body, as whoever answers a POST must."""
    app = Flask("noop")

    @app.post("/admit/namespaces")
    def admit() -> Response:
        request.get_data()
        return Response(_ANSWER, mimetype="application/json")

    return app


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    current = settings.load()
    server(current, Pair(Path(current.tls_cert), Path(current.tls_key)), threading.Event(), create_app).run()
