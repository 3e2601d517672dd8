"""`hawse-node-runner` as a process, on a host without Open vSwitch: it says so, it is alive, and it ends when asked.

It never sees a table here, so it only reads."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from egress.adapters.ledger import Ledger
from lab.control_plane import free_ports
from lab.net.broker import Broker

http = urllib3.PoolManager(retries=False, timeout=10.0)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        answer = http.request("GET", f"http://127.0.0.1:{port}{path}")
    except urllib3.exceptions.HTTPError as error:
        return 0, str(error)
    return answer.status, answer.data.decode()


@pytest.fixture
def runner(tmp_path: Path, broker: Broker, ledger: Ledger) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    (port,) = free_ports(1)
    environment = {
        "HAWSE_REDIS_URL": broker.unix_url,
        "HAWSE_NODE_NAME": "n1",
        "HAWSE_NODE_IP": "192.0.2.1",
        "HAWSE_HEALTH_HOST": "127.0.0.1",
        "HAWSE_HEALTH_PORT": str(port),
        "HAWSE_BRIDGE": "hawse-none",
        "HAWSE_CHECK_INTERVAL": "0.2",
        "OVS_RUNDIR": str(tmp_path),
    }
    with (tmp_path / "runner.log").open("wb") as log:
        command = [Path(sys.executable).parent / "hawse-node-runner"]
        process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=log, stdout=log)
    yield process, port
    process.kill()
    process.wait()


def until(port: int, path: str, status: int, text: str) -> None:
    deadline = time.monotonic() + 60
    while (seen := get(port, path)) and not (seen[0] == status and text in seen[1]):
        assert time.monotonic() < deadline, f"still {seen}"
        time.sleep(0.1)


@pytest.mark.parametrize("consuming", [False, True])
def test_it_says_what_is_wrong_and_ends_when_asked(
    runner: tuple[subprocess.Popen[bytes], int], ledger: Ledger, consuming: bool
) -> None:
    process, port = runner
    until(port, "/readyz", 503, "hawse-none")
    assert get(port, "/healthz") == (200, "ok\n")
    status, text = get(port, "/metrics")
    assert status == 200
    assert "hawse_node_problem{" in text
    assert "hawse_node_pass_duration_seconds_count" in text
    assert "# TYPE hawse_namespace_packets_total counter" not in text  # there is no bridge to read
    while not any(report.problem for report in ledger.reports(["n1"]).values()):
        assert process.poll() is None
        time.sleep(0.1)
    while consuming and not ledger._redis.exists("hawse-broker:_kombu.binding.node.n1"):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
