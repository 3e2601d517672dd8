"""Worker and beat as processes: they say how they are, and lose nothing when they are asked to end."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from celery import Celery

from egress.adapters.ledger import Ledger
from egress.messages import CONTROL_QUEUE, NAMESPACE_TASK, PUBLISH_TASK, SWEEP_TASK, TABLE_QUEUE, sending_config
from lab.apiserver.process import EmbeddedCluster
from lab.control_plane import free_ports, install
from lab.kube import Kube
from lab.net.broker import Broker

pytestmark = pytest.mark.timeout(300)
http = urllib3.PoolManager(retries=False, timeout=10.0)


def until(check: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.05)
    return value


class Process:
    """One of Hawse's processes, with a health port of its own."""

    def __init__(self, name: str, directory: Path, environment: dict[str, str]) -> None:
        (self.port,) = free_ports(1)
        environment |= {"HAWSE_HEALTH_HOST": "127.0.0.1", "HAWSE_HEALTH_PORT": str(self.port)}
        with (directory / f"{name}.log").open("wb") as log:
            command = [Path(sys.executable).parent / f"hawse-{name}"]
            self.process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=log, stdout=log)

    def get(self, path: str) -> tuple[int, str]:
        try:
            answer = http.request("GET", f"http://127.0.0.1:{self.port}{path}")
        except urllib3.exceptions.HTTPError as error:
            return 0, str(error)
        return answer.status, answer.data.decode()

    def ready(self) -> bool:
        return self.get("/readyz") == (200, "ok\n")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def start(
    tmp_path: Path, broker: Broker, ledger: Ledger, cluster: EmbeddedCluster
) -> Iterator[Callable[[str], Process]]:
    install(Kube(cluster.url, cluster.ca_path, cluster.token))
    started: list[Process] = []

    def begin(name: str) -> Process:
        environment = {"HAWSE_REDIS_URL": broker.unix_url, "HAWSE_KUBECONFIG": str(cluster.kubeconfig)}
        started.append(Process(name, tmp_path, environment))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def sending(broker: Broker) -> Celery:
    app = Celery("test", set_as_current=False)
    app.conf.update(sending_config(broker.unix_url))
    return app


def test_a_worker_gives_back_what_it_had_only_taken(
    start: Callable[[str], Process], sending: Celery, ledger: Ledger
) -> None:
    worker = start("worker")
    until(worker.ready)
    sending.send_task(NAMESPACE_TASK, args=["later"], queue=CONTROL_QUEUE, countdown=90)
    until(lambda: ledger._redis.zcard("hawse-broker:unacked_index") == 1)
    assert ledger._redis.llen("hawse-broker:control") == 0
    assert worker.end() == 0
    assert ledger._redis.llen("hawse-broker:control") == 1
    assert ledger._redis.zcard("hawse-broker:unacked_index") == 0


def test_a_worker_is_ready_while_it_consumes_and_counts_what_it_does(
    start: Callable[[str], Process], sending: Celery, broker: Broker
) -> None:
    worker = start("worker")
    until(worker.ready)
    # An answer that comes late is none: each look waits for what it is to find.
    done = 'hawse_task_attempts_total{outcome="done",task="publish"} '
    until(lambda: f"{done}0.0" in worker.get("/metrics")[1])
    sending.send_task(PUBLISH_TASK, queue=TABLE_QUEUE)
    until(lambda: re.search(re.escape(done) + "[1-9]", worker.get("/metrics")[1]))
    until(lambda: re.search(r'duration_seconds_count{task="publish"} [1-9]', worker.get("/metrics")[1]))
    sending.send_task(SWEEP_TASK, queue=CONTROL_QUEUE)  # builds the index
    until(lambda: 'hawse_assignments{phase="Ready"} 0.0' in worker.get("/metrics")[1])

    broker.kill()
    until(lambda: worker.get("/readyz")[0] == 503)
    assert worker.get("/healthz") == (200, "ok\n")
    assert "hawse_assignments" not in worker.get("/metrics")[1]
    broker.start()
    until(worker.ready)
    assert worker.end() == 0


@pytest.mark.parametrize("name", ["worker", "beat", "watch"])
def test_asked_to_end_at_the_very_start_is_no_failure(start: Callable[[str], Process], name: str) -> None:
    process = start(name)
    until(lambda: process.get("/healthz")[0] == 200)
    assert process.end() == 0


def test_a_beat_asks_by_the_clock_and_releases(start: Callable[[str], Process], ledger: Ledger) -> None:
    beat = start("beat")
    until(lambda: ledger._redis.llen("hawse-broker:control") > 0)
    until(beat.ready)
    assert 'hawse_leader{component="beat"} 1.0' in beat.get("/metrics")[1]
    assert beat.end() == 0
