"""Health and metrics over real HTTP on the loopback."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3
from prometheus_client import Counter
from prometheus_client.parser import text_string_to_metric_families

from egress.health import Health, HealthError, Pulse

http = urllib3.PoolManager(retries=False, timeout=5.0)
looked_at = Counter("test_health_looked_at", "How often this test looked.")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(port: int, path: str, **headers: str) -> urllib3.BaseHTTPResponse:
    return http.request("GET", f"http://127.0.0.1:{port}{path}", headers=headers)


class State:
    """What the process says of itself."""

    ready: str | None = None
    alive: str | None = None


@pytest.fixture
def served() -> Iterator[tuple[int, State]]:
    state, port = State(), free_port()
    health = Health("127.0.0.1", port, lambda: state.ready, alive=lambda: state.alive)
    health.start()
    yield port, state
    health.stop()


def test_health_and_readiness_are_two_answers(served: tuple[int, State]) -> None:
    port, state = served
    assert [(get(port, path).status, get(port, path).data) for path in ("/healthz", "/readyz")] == [(200, b"ok\n")] * 2
    state.ready = "the broker is away"
    assert (get(port, "/readyz?verbose").status, get(port, "/readyz").data) == (503, b"the broker is away\n")
    assert get(port, "/healthz").status == 200
    state.ready, state.alive = None, "the loop has been silent for 60 s"
    assert get(port, "/healthz").status == 503
    assert get(port, "/readyz").status == 200


def test_metrics_are_what_prometheus_reads(served: tuple[int, State]) -> None:
    looked_at.inc()
    for headers in ({}, {"Accept-Encoding": "gzip"}):
        answer = get(served[0], "/metrics", **headers)
        assert answer.status == 200
        families = {family.name: family for family in text_string_to_metric_families(answer.data.decode())}
        assert families["test_health_looked_at"].samples[0].value >= 1
        assert "process_resident_memory_bytes" in families
    openmetrics = get(served[0], "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text")
    assert openmetrics.data.endswith(b"# EOF\n")


def test_anything_else_says_what_there_is(served: tuple[int, State]) -> None:
    answer = get(served[0], "/")
    assert answer.status == 404
    assert b"/metrics" in answer.data


def test_a_client_that_says_nothing_keeps_nobody_waiting(served: tuple[int, State]) -> None:
    with socket.create_connection(("127.0.0.1", served[0])):
        assert get(served[0], "/healthz").status == 200


def test_port_0_is_off() -> None:
    health = Health("127.0.0.1", 0)
    health.start()
    health.stop()


def test_a_port_that_is_taken_is_named_with_what_to_set(served: tuple[int, State]) -> None:
    with pytest.raises(HealthError, match=rf"port {served[0]}: .*HAWSE_HEALTH_PORT"):
        Health("127.0.0.1", served[0]).start()


def test_a_port_can_be_had_again_after_stop() -> None:
    port = free_port()
    for _ in range(2):
        health = Health("127.0.0.1", port)
        health.start()
        assert get(port, "/readyz").status == 200
        health.stop()


def test_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"no IPv6 loopback on this machine: {error}")
        port = probe.getsockname()[1]
    health = Health("::1", port)
    health.start()
    try:
        assert http.request("GET", f"http://[::1]:{port}/readyz").status == 200
    finally:
        health.stop()


def test_a_pulse_that_stops_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("egress.health.time", SimpleNamespace(monotonic=lambda: now))
    pulse: Any = Pulse("the loop", 60.0)
    pulse.beat()
    now += 60.0
    assert pulse.verdict() is None
    now += 1.0
    assert pulse.verdict() == "the loop has been silent for 61 s"
    pulse.beat()
    assert pulse.verdict() is None
