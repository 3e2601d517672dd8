"""What each process takes: memory, and the time until it is ready, on a small cluster.

The node runner also with a table of 10,000 rows. It has no bridge to program: it is ready when it consumes its queue
and has reported.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import urllib3

from bench.rows import Row, row_of
from egress.adapters.ledger import Ledger
from egress.messages import BROKER_PREFIX, node_queue
from egress.table import Steering, SteeringHop
from lab.apiserver.process import EmbeddedCluster
from lab.control_plane import ControlPlane, install
from lab.kube import Kube
from lab.net.broker import Broker

RUNS = 2
ROWS = 10_000
RUNNER_MB, RUNNER_SECONDS = 80.0, 1.0
START_WHY = (
    "nearly all of it is CPU time, and half of that imports (-X importtime: Redis' client and Celery, 0.08 s each); "
    "the processor is not always equally fast: imports took 0.42 to 0.53 s of CPU in three starts, one after the "
    "other"
)
SETTLE_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
COMPONENTS = ("worker", "beat", "watch", "webhook", "tickets", "api")
"""In this order: a webhook is not ready before a worker, a beat and a watch have built the index."""
_SCRIPTS = Path(sys.executable).parent
_http = urllib3.PoolManager(retries=False, timeout=2.0)


def rows() -> Iterator[Row | str]:
    """See Row. Memory is PSS: what several processes share counts for each by its share."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        broker = stack.enter_context(Broker(directory / "broker", port=0))
        cluster = stack.enter_context(EmbeddedCluster(directory / "cluster"))
        install(Kube(cluster.url, cluster.ca_path, cluster.token))
        ledger = Ledger(broker.unix_url)
        floor, interpreter = _interpreter()
        yield row_of("start, a bare interpreter", 0, "s", floor)
        plane = ControlPlane(directory / "plane", redis_url=broker.unix_url, kubeconfigs={})
        profiles = directory / "profiles.yaml"
        profiles.write_text("profiles: []\n")
        least = min(floor)
        for component in COMPONENTS:
            environment = plane.environment | {"HAWSE_KUBECONFIG": str(cluster.kubeconfig)}
            if component == "tickets":
                environment |= {"HAWSE_TICKET_PROFILES": str(profiles)}
            if component == "api":
                environment |= {"HAWSE_TLS_CERT": "", "HAWSE_TLS_KEY": ""}
            seconds, cpu, sizes = [], [], []
            for run in range(RUNS):
                process = _Process(component, environment, directory)
                seconds.append(process.await_ready())
                cpu.append(process.cpu_seconds())
                time.sleep(SETTLE_SECONDS)
                sizes.append(process.megabytes())
                if run < RUNS - 1:
                    process.end()
                else:
                    stack.callback(process.end)
            yield row_of(f"start, {component}", 0, "s", seconds, floor=least)
            yield row_of(f"start, {component}, CPU", 0, "s", cpu)
            yield row_of(f"memory, {component}", 0, "MB", sizes, floor=interpreter)
        yield from _runner(ledger, broker, directory, least, interpreter)


def _runner(ledger: Ledger, broker: Broker, directory: Path, least: float, interpreter: float) -> Iterator[Row]:
    for size in (0, ROWS):
        ledger._redis.flushall()
        if size:
            ledger.publish({row.netid: row for row in map(_row, range(size))}, expected=0, epoch="bench")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HAWSE_")} | {
            "HAWSE_REDIS_URL": broker.unix_url,
            "HAWSE_NODE_NAME": "node1",
            "HAWSE_NODE_IP": "192.0.2.1",
            "HAWSE_BRIDGE": "hawse-none",
            "OVS_RUNDIR": str(directory),
        }
        seconds, cpu, sizes = [], [], []
        for _ in range(RUNS):
            ledger._redis.delete("hawse:node:node1", f"{BROKER_PREFIX}_kombu.binding.{node_queue('node1')}")
            process = _Process("node-runner", environment, directory)
            while not (ledger.reports(["node1"]) and _consumes(ledger)):
                process.check()
                time.sleep(0.005)
            seconds.append(time.monotonic() - process.began)
            cpu.append(process.cpu_seconds())
            time.sleep(SETTLE_SECONDS)
            sizes.append(process.megabytes())
            process.end()
        yield row_of("start, node-runner", size, "s", seconds, floor=least, goal=RUNNER_SECONDS, why=START_WHY)
        yield row_of("start, node-runner, CPU", size, "s", cpu)
        yield row_of("memory, node-runner", size, "MB", sizes, floor=interpreter, goal=RUNNER_MB)


def _consumes(ledger: Ledger) -> bool:
    """Whether the node's runner has made its queue, which is the last thing before it waits for what comes."""
    return bool(ledger._redis.exists(f"{BROKER_PREFIX}_kombu.binding.{node_queue('node1')}"))


def _row(number: int) -> Steering:
    hop = SteeringHop(
        IPv4Address("10.64.0.1") + number,
        f"node{number % 1000}",
        IPv4Address("10.0.0.1") + number % 1000,
        acknowledged=True,
        since=1,
    )
    return Steering(1000 + number, f"namespace-{number:05}", (hop,), f"operation-{number}")


class _Process:
    """One of Hawse's processes, with a port for its health."""

    def __init__(self, component: str, environment: dict[str, str], directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        health = {"HAWSE_HEALTH_HOST": "127.0.0.1", "HAWSE_HEALTH_PORT": str(self._port)}
        self._log = directory / f"{component}.log"
        self.began = time.monotonic()
        with self._log.open("wb") as log:
            command = [_SCRIPTS / f"hawse-{component}"]
            self._process = subprocess.Popen(command, env=environment | health, stdout=log, stderr=log)

    def check(self) -> None:
        """RuntimeError if it ended, or takes too long."""
        if self._process.poll() is not None or time.monotonic() - self.began > PATIENCE_SECONDS:
            self.end()
            raise RuntimeError(self._log.read_text(errors="replace")[-500:])

    def await_ready(self) -> float:
        """Seconds from its start until it says that it is ready."""
        while True:
            try:
                if _http.request("GET", f"http://127.0.0.1:{self._port}/readyz").status == 200:
                    return time.monotonic() - self.began
            except urllib3.exceptions.HTTPError:
                pass
            self.check()
            time.sleep(0.005)

    def megabytes(self) -> float:
        """The PSS of the process and of those that it has started."""
        return sum(map(_pss, _family(self._process.pid))) / 1000

    def cpu_seconds(self) -> float:
        """What the process, and those that it has started, have taken of the processor so far."""
        ticks = os.sysconf("SC_CLK_TCK")
        return sum(map(_ticks, _family(self._process.pid))) / ticks

    def end(self) -> None:
        """Ends it, and what it has started."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _family(pid: int) -> Iterator[int]:
    yield pid
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from _family(int(child))


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _pss(pid: int) -> float:
    """Kilobytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(float(line.split()[1]) * 1.024 for line in lines if line.startswith("Pss:"))


def _interpreter() -> tuple[list[float], float]:
    """How long Python itself takes to begin, in seconds, and its memory, in megabytes."""
    seconds, size = [], 0.0
    for _ in range(RUNS):
        began = time.monotonic()
        process = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1)
        if process.stdout is not None:
            process.stdout.readline()
        seconds.append(time.monotonic() - began)
        size = _pss(process.pid) / 1000
        process.kill()
        process.communicate()
    return seconds, size
