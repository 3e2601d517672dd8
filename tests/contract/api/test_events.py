"""`/api/v1/events`: what listeners hear of a real `hawse-api`."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab.apiserver.process import EmbeddedCluster
from tests.contract.api.conftest import Api, Objects


@pytest.fixture
def api(make_api: Callable[..., Api], objects: Objects) -> Api:
    objects.pool("prod", "192.168.1.0/24")
    objects.namespace("shop")
    return make_api(HAWSE_API_LISTENERS="2").start()


@contextmanager
def listening(api: Api, token: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=15)
    try:
        connection.request("GET", "/api/v1/events", headers={"Authorization": f"Bearer {token}"})
        yield connection.getresponse()
    finally:
        connection.close()


def heard(answer: http.client.HTTPResponse) -> int:
    """The number of the next change."""
    number = 0
    while (line := answer.readline().decode()) != "":
        if line.startswith("id: "):
            number = int(line[4:])
        if line == "\n" and number:
            return number
    raise EOFError


def test_a_change_is_heard_and_nothing_else_is(api: Api, objects: Objects, cluster: EmbeddedCluster) -> None:
    with listening(api, cluster.token) as answer:
        assert answer.status == 200
        assert answer.getheader("content-type") == "text/event-stream"
        assert answer.getheader("cache-control") == "no-store"
        first = heard(answer)
        time.sleep(1)
        objects.claim("192.168.1.5")
        began = time.monotonic()
        second = heard(answer)
        assert second > first
        assert time.monotonic() - began < 10
        assert answer.readline() == b": nothing\n"  # nothing changes any more


def test_too_many_are_told_so_until_one_has_gone(api: Api, cluster: EmbeddedCluster) -> None:
    with listening(api, cluster.token) as one, listening(api, cluster.token) as two:
        heard(one)
        heard(two)
        with listening(api, cluster.token) as three:
            assert three.status == 503
            assert three.getheader("retry-after")
            assert b"2 are listening already" in three.read()

    def free() -> bool:
        with listening(api, cluster.token) as again:
            return again.status == 200

    api.until(free)


def test_nobody_unknown_listens(api: Api) -> None:
    assert api.get("/api/v1/events").status == 401
    assert api.get("/api/v1/events", Authorization="Bearer nonsense").status == 401


def test_a_stream_ends_with_the_process(api: Api, cluster: EmbeddedCluster) -> None:
    with listening(api, cluster.token) as answer:
        heard(answer)
        assert api.process is not None
        api.process.terminate()
        with pytest.raises(EOFError):
            heard(answer)
        assert api.process.wait(15) == 0


def test_listeners_keep_nobody_waiting(api: Api, cluster: EmbeddedCluster) -> None:
    with listening(api, cluster.token) as one, listening(api, cluster.token) as two:
        heard(one)
        heard(two)
        for _ in range(20):
            assert api.get("/api/v1/openapi.json").status == 200


def test_two_hundred_hear_a_change(
    make_api: Callable[..., Api], objects: Objects, cluster: EmbeddedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    objects.pool("prod", "192.168.1.0/24")
    objects.namespace("shop")
    api = make_api().start()
    with ExitStack() as stack:
        answers = [stack.enter_context(listening(api, cluster.token)) for _ in range(200)]
        assert min(heard(answer) for answer in answers) > 0
        assert api.process is not None
        before, began = cpu_seconds(api.process.pid), time.monotonic()
        for address in ("192.168.1.5", "192.168.1.6", "192.168.1.7"):
            objects.claim(address)
            assert min(heard(answer) for answer in answers) > 1
        used, seconds = cpu_seconds(api.process.pid) - before, time.monotonic() - began
    with capsys.disabled():
        print(f"\n   200 listeners, 3 changes in {seconds:.1f} s: {used / seconds:.2f} cores")


def cpu_seconds(pid: int) -> float:
    """What a process and its children have used."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in (str(pid), *children)]
    return sum(int(numbers[11]) + int(numbers[12]) for numbers in fields) / os.sysconf("SC_CLK_TCK")
