"""The API does what its document says: schemathesis asks all that the document allows, and much that it does not."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from egress.adapters.ledger import Ledger
from egress.table import Steering
from lab.apiserver.process import EmbeddedCluster
from tests.contract.api.conftest import Api, Objects

EXAMPLES = 40
"""For each operation, in each of the two modes."""
STREAM = "/events"
"""It does not end; tests/contract/api/test_events.py reads it."""


NOT_ASKED = [positive_data_acceptance, negative_data_rejection]
"""A document cannot say which `after` an earlier page gave, nor that an address is nobody's; and what the API
does not know of a query is passed over. Whatever is refused, is refused as the document says."""
FRAMING = {"content-length", "transfer-encoding"}
"""Where a request ends is for HTTP's own parser to say: what frames nothing is refused before the API hears of it."""
UNFRAMED = [
    "Content-Length: ",
    "Content-Length: five",
    "Content-Length: -1",
    "Content-Length: 0\r\nContent-Length: 1",
    "Transfer-Encoding: ",
    "Transfer-Encoding: unheard-of",
    "no colon",
]


@pytest.fixture
def api(make_api: Callable[..., Api], objects: Objects, ledger: Ledger) -> Api:
    objects.pool("prod", "192.168.1.0/24")
    objects.namespace("shop")
    objects.claim("192.168.1.5", namespace="shop")
    objects.status("192.168.1.5", phase="Ready", node="node2")
    ledger.publish({7: Steering(7, "shop")}, expected=ledger.change_number(), epoch="e1")
    return make_api(HAWSE_API_ACTIONS_PER_MINUTE="100000").start()


def keeps_to_it(cases: SearchStrategy[Any], headers: dict[str, str]) -> None:
    """Asks for one operation, in many ways."""

    @given(case=cases)
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def check(case: Any) -> None:
        for name in [name for name in case.headers or {} if name.lower() in FRAMING]:
            del case.headers[name]
        case.call_and_validate(headers=headers, excluded_checks=NOT_ASKED)

    check()


@pytest.mark.timeout(280)
@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_the_api_keeps_to_its_document(api: Api, cluster: EmbeddedCluster, mode: schemathesis.GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{api.port}/api/v1/openapi.json")
    schema.config.generation.update(modes=[mode])
    token = {"Authorization": f"Bearer {cluster.token}"}
    asked = 0
    for found in schema.exclude(path=STREAM).get_all_operations():
        keeps_to_it(found.ok().as_strategy(generation_mode=mode), token)
        asked += 1
    assert asked > 10
    assert api.process is not None
    assert api.process.poll() is None


@pytest.mark.parametrize("line", UNFRAMED)
def test_a_request_without_a_clear_end_is_refused_and_nothing_after_it_is_read(api: Api, line: str) -> None:
    """Else what stands behind it could be taken for somebody else's request."""
    hidden = "GET /healthz HTTP/1.1\r\nHost: api\r\n\r\n"
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: api\r\n{line}\r\n\r\n{hidden}".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
