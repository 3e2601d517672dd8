"""A node's runner: what a table's size costs a pass, how long it takes to be ready, and how much memory it holds."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.node import ME, NODE_IP, OTHERS, PREFIX, Passes, Table, netids, row
from bench.rows import Row, milliseconds, row_of
from egress.adapters.ledger import Ledger
from egress.program import Layout
from lab.host_node import eventually, host_node, run
from lab.net.broker import Broker
from node_runner.drivers import open_node

TABLES = (10, 10_000)
FIRST_OWN = 0x800000
MANY_BY_FEW = 1.5
MANY_RUNS, PROCESS_RUNS = 20, 5
READY_SECONDS, MOST_MEGABYTES = 1.0, 80.0
RUNNER = Path(sys.executable).parent / "hawse-node-runner"


def rows() -> Iterator[Row | str]:
    """See Row."""
    if os.geteuid():
        yield "the runner is not measured: that needs root"
        return
    with host_node("nft", NODE_IP, PREFIX) as directory:
        yield from _one_of_many()
        yield from _process(directory)


def _one_of_many() -> Iterator[Row]:
    """A nudged pass over one row that changed, in tables of two sizes; the node has ten addresses in each."""
    own = {netid: row(netid, ME, NODE_IP, 20_000 + netid - FIRST_OWN) for netid in range(FIRST_OWN, FIRST_OWN + 10)}
    times = {}
    for size in TABLES:
        passes = Passes("nft", open_node(NODE_IP, Layout()), 0)
        table: Table = {netid: row(netid, "node2", OTHERS["node2"]) for netid in netids(size)} | own
        passes.plain("", table)
        for number in range(MANY_RUNS):
            node = "node3" if number % 2 == 0 else "node2"
            table = table | {netids(1)[0]: row(netids(1)[0], node, OTHERS[node])}
            passes.nudged("one", table)
        times[size] = passes.times["one"]
    floor = statistics.median(times[TABLES[0]])
    yield row_of("runner pass over one row, of the table's", TABLES[0], "ms", times[TABLES[0]])
    goal = MANY_BY_FEW * floor
    yield row_of("runner pass over one row, of the table's", TABLES[1], "ms", times[TABLES[1]], floor=floor, goal=goal)


def _process(directory: Path) -> Iterator[Row | str]:
    """A whole runner, with Redis, a node and a table of a thousand rows, of which ten are this node's."""
    own, seconds, megabytes = set(netids(10)), [], []
    table = {netid: row(netid, ME if netid in own else "node2", NODE_IP) for netid in netids(1_000)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Broker(directory, port=0) as broker:
        Ledger(broker.unix_url).publish(dict(table), expected=0, epoch="e1")
        environment = {
            "HAWSE_REDIS_URL": broker.unix_url,
            "HAWSE_NODE_NAME": ME,
            "HAWSE_NODE_IP": str(NODE_IP),
            "HAWSE_HEALTH_HOST": "127.0.0.1",
            "HAWSE_HEALTH_PORT": str(port),
            "HAWSE_PROBE_INTERVAL": "0",
            "HAWSE_PROBE_WAIT": "0",
            "HAWSE_LOG_LEVEL": "error",
            "PYTHONPATH": str(_absent(directory)),
        }
        for _ in range(PROCESS_RUNS):
            began = time.perf_counter()
            quiet = subprocess.DEVNULL
            process = subprocess.Popen([RUNNER], env={**os.environ, **environment}, stdout=quiet, stderr=quiet)
            try:
                eventually(lambda: _ready(port), seconds=60)
                seconds.append(time.perf_counter() - began)
                time.sleep(1.0)
                status = Path(f"/proc/{process.pid}/status").read_text()
                megabytes.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
            finally:
                process.terminate()
                process.wait(30)
    floor = min(milliseconds(lambda: run(sys.executable, "-c", "pass"), 3)) / 1000
    yield row_of("runner start-up to ready", 1_000, "s", seconds, floor=floor, goal=READY_SECONDS)
    yield row_of("runner memory", 1_000, "MB", megabytes, goal=MOST_MEGABYTES)
    yield (
        "The runner finds no rich, as in a node's image: structlog imports it, 4 MB, wherever it is installed, and the "
        "development environment has it."
    )


def _absent(directory: Path) -> Path:
    """A folder for PYTHONPATH: with it, what is installed here and not in a node's image cannot be imported."""
    folder = directory / "absent"
    folder.mkdir()
    (folder / "rich.py").write_text("raise ImportError('a node has none')\n")
    return folder


def _ready(port: int) -> bool:
    with socket.socket() as client:
        if client.connect_ex(("127.0.0.1", port)):
            return False
        client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        with client.makefile("rb") as answer:
            return b" 200 " in answer.read().partition(b"\n")[0]
