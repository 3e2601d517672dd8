"""How an API says that something is wrong: RFC 9457, in which nothing of the inside is told."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
import structlog
from flask import Flask, Response
from werkzeug.exceptions import HTTPException

_log = structlog.get_logger()
MIMETYPE = "application/problem+json"
RETRY_SECONDS = 5


def problem(status: HTTPStatus, detail: str = "", **headers: str) -> Response:
    """The answer that says so. `detail` is for whoever sent the request. A 503 says when to come back."""
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers = {"Retry-After": str(RETRY_SECONDS), **headers}
    body = {"type": "about:blank", "title": status.phrase, "status": status.value}
    text = msgspec.json.encode(body | ({"detail": detail} if detail else {})) + b"\n"
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Response(text, status.value, [*named, ("Cache-Control", "no-store")], content_type=MIMETYPE)


def install(app: Flask) -> None:
    """Makes every error of `app` such an answer, those of ours (500) with their traceback in the log alone."""

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        made = problem(HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR))
        allowed = getattr(error, "valid_methods", None)
        if allowed:
            made.headers["Allow"] = ", ".join(sorted(allowed))
        return made

    @app.errorhandler(Exception)
    def broken(error: Exception) -> Response:
        _log.error("request failed", exc_info=error)
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR)
