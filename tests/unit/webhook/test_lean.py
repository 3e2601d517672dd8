"""What the lean application answers is what Flask answers."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import pytest
from flask import Flask, Response, request
from werkzeug.test import TestResponse

from webhook.lean import Answer, Lean, read_body

MOST = 100


def mark(response: Response) -> None:
    response.headers["X-Finished"] = "yes"


def plain() -> Flask:
    app = Flask("plain")
    app.after_request(lambda response: mark(response) or response)
    return app


def read_plainly() -> bytes:
    return request.get_data()


def with_views(app: Flask, read: Callable[[], bytes], answer: Callable[[bytes], Response]) -> Flask:
    app.config["MAX_CONTENT_LENGTH"] = MOST

    @app.post("/admit/namespaces")
    def admit() -> Response:
        return answer(read())

    @app.post("/validate/<any(a,b):resource>")
    def validate(resource: str) -> Response:
        return answer(resource.encode() + read())

    @app.get("/readyz")
    def readyz() -> Response:
        return Response("no\n", status=503)

    @app.get("/fails")
    def fails() -> Response:
        raise RuntimeError("no")

    @app.get("/folder/")
    def folder() -> Response:
        return Response("")

    return app


BOTH = [
    with_views(Lean("lean", mark), read_body, Answer),
    with_views(plain(), read_plainly, lambda body: Response(body, mimetype="application/json")),
]


def seen(answer: TestResponse) -> tuple[int, bytes, list[tuple[str, str]]]:
    return answer.status_code, answer.data, sorted(answer.headers)


@pytest.mark.parametrize("body", [b"", b"{}", b"x" * MOST, b"x" * (MOST + 1)])
@pytest.mark.parametrize("path", ["/admit/namespaces", "/validate/b", "/validate/c", "/nothing", "/admit/namespaces/"])
def test_a_body_is_answered_as_by_flask(path: str, body: bytes) -> None:
    lean, flask = (seen(app.test_client().post(path, data=body)) for app in BOTH)
    assert lean == flask


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS", "POST"])
@pytest.mark.parametrize("path", ["/admit/namespaces", "/readyz", "/fails", "/folder", "//admit/namespaces", "/a?b=c"])
def test_what_is_no_plain_case_is_answered_as_by_flask(path: str, method: str) -> None:
    lean, flask = (seen(app.test_client().open(path, method=method)) for app in BOTH)
    assert lean == flask


@pytest.mark.parametrize("length", ["", "many", "-1", "²"])
@pytest.mark.parametrize("size", [3, MOST, MOST + 1])
def test_a_body_without_a_length_is_read_to_its_end(length: str, size: int) -> None:
    given = {"CONTENT_LENGTH": length, "wsgi.input_terminated": True}
    lean, flask = (
        seen(app.test_client().post("/admit/namespaces", input_stream=BytesIO(b"x" * size), environ_overrides=given))
        for app in BOTH
    )
    assert lean == flask


def test_a_body_that_breaks_off_is_a_bad_request() -> None:
    answer = (
        BOTH[0]
        .test_client()
        .post("/admit/namespaces", input_stream=BytesIO(b"xx"), environ_overrides={"CONTENT_LENGTH": "3"})
    )
    assert answer.status_code == 400


def test_an_answer_is_one_piece_that_the_server_sends_at_once() -> None:
    said = Answer(b"{}")({}, lambda *_: lambda _: None)
    assert said == [b"{}"]


def test_nothing_is_left_of_a_request_that_is_over() -> None:
    with BOTH[0].test_client() as client:
        client.post("/admit/namespaces", data=b"1")
    assert not request
