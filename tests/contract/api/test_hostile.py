"""What anybody may write into names, annotations, messages and requests: refused, or shown and inert."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import quote, urlencode

import pytest

from egress.adapters.ledger import Ledger
from egress.operations import Outcome, Step, StepRecord
from tests.contract.api.conftest import Api, Json, Objects, condition
from tests.contract.api.test_pages import Tags, send, text

LARGE = 64 * 1024
ESCAPES = '<script>alert(1)</script>"\' onload=x\x1b[2J\x1b]0;owned\x07\r\n{"event": "forged", "who": "admin"}\n'
FLOOD = (ESCAPES * (LARGE // len(ESCAPES) + 1))[:LARGE]
A = "192.168.1.5"


@pytest.fixture
def api(make_api: Callable[..., Api], objects: Objects, ledger: Ledger) -> Api:
    objects.pool("prod", "192.168.1.0/24")
    objects.namespace("shop")
    objects.claim(A, namespace="shop")
    objects.kube.patch("Namespace", "shop", {"metadata": {"annotations": {"egress.hawse.dev/request": FLOOD}}})
    objects.status(A, phase="Failed", node="node2", conditions=[condition("False", "Refused", FLOOD[:32_000])])
    at = 1795500000.0
    ledger.record(StepRecord("shop", Step.WORK, Outcome.GAVE_UP, at, 3, A, "node2", FLOOD, traceback=FLOOD))
    api = make_api(HAWSE_ANONYMOUS="true").start()
    api.until(lambda: "1 assignments" in text(api.get("/assignments")))
    return api


def records(api: Api) -> list[Json]:
    """The log's lines, each of which must be one record."""
    return [json.loads(line) for line in api.log().splitlines() if line]


@pytest.mark.parametrize("path", ["/", "/assignments", "/namespaces/shop", "/failures", "/audit"])
def test_large_hostile_texts_are_shown_and_do_nothing(api: Api, path: str) -> None:
    answer = api.get(path)
    assert answer.status == 200
    tags = Tags(text(answer)).found
    assert [attributes.get("src") for tag, attributes in tags if tag == "script"] == ["/static/hawse.js"]
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert len(answer.body) < 1_000_000


def test_reasons_that_are_too_long_are_refused_and_none_forges_a_line_of_the_log(api: Api) -> None:
    assert send(api, "/namespaces/shop/retry", why=FLOOD).status in (413, 422)
    body = json.dumps({"why": FLOOD}).encode()
    json_type = {"Content-Type": "application/json"}
    assert api.ask("POST", "/api/v1/namespaces/shop/retry", body, json_type).status in (400, 413, 422)
    assert json.loads(api.get("/api/v1/audit").body)["items"][:0] == []
    assert send(api, "/namespaces/shop/retry", why=ESCAPES).status == 303
    (entry, *_) = json.loads(api.get("/api/v1/audit").body)["items"]
    assert entry["why"] == ESCAPES.strip()
    assert "forged" not in {record["event"] for record in records(api)}
    assert "\x1b" not in api.log()


@pytest.mark.parametrize(
    "path",
    [
        "/assignments?text={}", "/assignments?after={}", "/assignments?sort={}", "/namespaces/{}",
        "/failures?reason={}", "/?namespace={}", "/audit?after={}", "/?done={}", "/addresses/{}/move", "/static/{}",
    ],
)  # fmt: skip
def test_no_path_or_query_breaks_a_page(api: Api, path: str) -> None:
    for value in (ESCAPES, "../../etc/passwd", "%00", "\ud7ff\U0001f600", "a" * 4000):
        answer = api.get(path.format(quote(value, safe="")))
        assert answer.status < 500, (path, value[:20])
        if answer.headers.get("content-type", "").startswith("text/html"):
            tags = Tags(text(answer)).found
            assert [tag for tag, attributes in tags if tag == "script" and not attributes.get("src")] == []
    for record in records(api):
        assert record["event"] != "forged"


def test_large_requests_are_refused(api: Api) -> None:
    assert api.get(f"/assignments?text={'a' * LARGE}").status in (400, 414, 431)
    assert api.get("/assignments", X_Large="a" * LARGE).status in (400, 431)
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{api.port}"}
    body = urlencode({"namespace": ["x" * 100] * 20_000, "trouble": "failed", "reason": "Refused"}, doseq=True)
    with suppress(BrokenPipeError, ConnectionResetError):  # it does not read on
        assert api.ask("POST", "/failures/retry", body.encode(), form).status in (400, 413, 422)
    assert json.loads(api.get("/api/v1/audit").body)["items"] == []
    assert api.get("/assignments").status == 200
