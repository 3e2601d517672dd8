"""What one change costs where there are many nodes and many namespaces: whoever publishes it, Redis, and each runner.

Real queues, a real ledger and a real API server; the runners are read for, and hold nothing.
"""

from __future__ import annotations

import base64
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import redis
import structlog

from bench.rows import Row, row_of
from bench.scale import FIRST_NETID, Scale, cluster, cpu_seconds
from egress.adapters.cluster import Cluster, Kind
from egress.adapters.ledger import Ledger
from egress.messages import BROKER_PREFIX, node_queue
from egress.settings import Settings
from lab.kube import Kube
from lab.net.broker import Broker
from workers import failover, publishing
from workers.context import Context
from workers.tasks import sender
from workers.view import Views

NAMESPACES, NODES = 10_000, 1_000
RUNS = 8
PUBLISH_MS = 50.0
BEATS_PER_SECOND = 5
_CALLS = 500


def rows() -> Iterator[Row]:
    """See Row."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        with tempfile.TemporaryDirectory() as directory, Broker(Path(directory) / "broker", port=0) as broker:
            yield from _rows(Path(directory), broker)
    finally:
        structlog.configure(**before)


def _rows(directory: Path, broker: Broker) -> Iterator[Row]:
    scale = Scale(NAMESPACES, NODES)
    with cluster(directory, scale) as (server, kind):
        print(f"fan-out: {NAMESPACES} namespaces, {NODES} nodes, {kind}")
        bench = _Bench(scale, broker, server.kubeconfig, Kube(server.url, server.ca_path, server.token))
        with bench.watching():
            yield from bench.publishing()
        yield from bench.ledger_rows()


class _Bench:
    def __init__(self, scale: Scale, broker: Broker, kubeconfig: Path, kube: Kube) -> None:
        self.scale = scale
        self.kube = kube
        self.redis: Any = redis.Redis.from_url(broker.unix_url)
        self.ledger = Ledger(broker.unix_url)
        settings = Settings(redis_url=broker.unix_url, kubeconfig=str(kubeconfig), report_wait=0.0)
        client = Cluster(str(kubeconfig))
        self.context = Context(settings, self.ledger, client, sender(broker.unix_url))
        self.empty = self._memory()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """With mirrors, as a worker has them."""
        stop = threading.Event()
        self.context.memory.views = Views.watching(self.context.cluster, stop)
        try:
            yield
        finally:
            stop.set()

    def publishing(self) -> Iterator[Row]:
        """The first table, one that finds nothing to do, and changes of one address."""
        self.scale.tell(self.ledger)
        first = self._cpu(lambda: publishing.run(self.context))
        table = self.ledger.read_table()
        if len(table.rows) != NAMESPACES:
            raise RuntimeError(f"{len(table.rows)} rows were published")
        yield row_of("publish everything, CPU of a process that begins", NAMESPACES, "ms", [first])
        self.scale.tell(self.ledger, table.epoch, table.change)
        publishing.run(self.context)  # what the nodes said
        idle = [self._cpu(lambda: publishing.run(self.context)) for _ in range(RUNS)]
        yield row_of("publish, nothing changed, CPU", NAMESPACES, "ms", idle)
        floor = min(self._cpu(self._bare_pushes) for _ in range(RUNS))
        gone, back = [], []
        for number in range(RUNS):
            self._runners_read()
            gone.append(self._change(number, hosted=False, nudged=NODES))
            self._runners_read()
            back.append(self._change(number, hosted=True, nudged=1))
        yield row_of("publish one change to 1,000 nodes, CPU", NAMESPACES, "ms", gone, floor=floor, goal=PUBLISH_MS)
        yield row_of("publish one change to one node, CPU", NAMESPACES, "ms", back, goal=PUBLISH_MS)

    def _change(self, number: int, *, hosted: bool, nudged: int) -> float:
        """CPU milliseconds for one address that is taken off its node, or put back, without those of whoever did it."""
        node = number % NODES
        manifest = self.scale.host_subnet(node)
        texts = manifest["egressIPs"]
        kept = texts if hosted else [text for text in texts if text != str(self.scale.address(number))]
        before, mine = cpu_seconds(), time.thread_time()
        patched = self.kube.patch("HostSubnet", self.scale.node(node), {"egressIPs": kept})
        mine = time.thread_time() - mine
        self.context.saw(Kind.HOST_SUBNET, patched["metadata"]["resourceVersion"])
        if publishing.run(self.context) != 1:
            raise RuntimeError("more or less than one row was published")
        spent = cpu_seconds() - before - mine
        waiting = sum(self.redis.llen(_queue(name)) for name in self.scale.node_names())
        if waiting != nudged:
            raise RuntimeError(f"{waiting} nodes have a nudge, not {nudged}")
        return spent * 1000

    def _runners_read(self) -> None:
        """Every runner takes its nudge, as kombu's consumer does, and says so."""
        for name in self.scale.node_names():
            while text := self.redis.rpop(_queue(name)):
                message = json.loads(text)
                if message["properties"]["delivery_info"]["routing_key"] != node_queue(name):
                    raise RuntimeError("a nudge for another node")
                base64.b64decode(message["body"])
                self.ledger.done_with(f"{message['headers']['task']}:{node_queue(name)}")

    def _bare_pushes(self) -> None:
        """The least that 1,000 messages cost whoever sends them."""
        pipeline = self.redis.pipeline(transaction=False)
        for name in self.scale.node_names():
            pipeline.lpush(f"bare:{name}", b"x" * 700)
        pipeline.execute()

    def ledger_rows(self) -> Iterator[Row]:
        """What readers, reports and heartbeats cost Redis, and how much memory all of it takes."""
        yield from self._reads()
        yield from self._nodes()
        yield from self._sizes()

    def _reads(self) -> Iterator[Row]:
        table = self.ledger.read_table()
        key = str(FIRST_NETID)
        row = self.redis.hget("hawse:table", key)
        sent = [self._bytes_out(lambda: self.ledger.read_table(table.epoch, table.change - 1)) for _ in range(RUNS)]
        yield row_of("a runner reads one change", NAMESPACES, "bytes", sent, floor=float(len(row)))
        taken = _milliseconds(lambda: self.ledger.read_table(table.epoch, table.change - 1))
        floor = _milliseconds(lambda: (self.redis.zrangebyscore("hawse:changes", table.change, "+inf"),
                                       self.redis.hget("hawse:table", key)))  # fmt: skip
        yield row_of("a runner reads one change", NAMESPACES, "ms", taken, floor=min(floor))
        whole = self._bytes_out(self.ledger.read_table)
        yield row_of("a runner reads the whole table", NAMESPACES, "bytes", [whole])
        runs = 5
        taken = [self._server_cpu(self.ledger.read_table) for _ in range(runs)]
        floor = [self._server_cpu(lambda: self.redis.hgetall("hawse:table")) for _ in range(runs)]
        yield row_of("a runner reads the whole table, CPU of Redis", NAMESPACES, "ms", taken, floor=min(floor))
        cpu = [self._cpu(self.ledger.read_table) for _ in range(runs)]
        raw = [self._cpu(lambda: self.redis.hgetall("hawse:table")) for _ in range(runs)]
        yield row_of("a runner reads the whole table, CPU of its own", NAMESPACES, "ms", cpu, floor=min(raw))

    def _nodes(self) -> Iterator[Row]:
        names = self.scale.node_names()
        self.ledger.expect({name: self.scale.node_ip(number) for number, name in enumerate(names)})
        table = self.ledger.read_table()
        reports = [self.scale.report(number, table.epoch, table.change) for number in range(_CALLS)]

        def beat(number: int) -> object:
            return self.ledger.beat(names[number], self.scale.node_ip(number), 60.0)

        def report(number: int) -> object:
            self.ledger.report(reports[number])
            return None

        def bare_beat(number: int) -> object:
            return self.redis.zadd("bare:beats", {names[number]: number})

        def bare_report(number: int) -> object:
            return self.redis.set(f"bare:{number}", b"x" * 700)

        for what, work, bare in (("a heartbeat", beat, bare_beat), ("a report", report, bare_report)):
            micros = [self._server_cpu(partial(_each, work)) / _CALLS * 1000 for _ in range(RUNS)]
            floor = min(self._server_cpu(partial(_each, bare)) for _ in range(RUNS)) / _CALLS * 1000
            yield row_of(f"{what}, CPU of Redis", NODES, "us", micros, floor=floor)
            if what == "a heartbeat":
                shares = [each * NODES * BEATS_PER_SECOND / 1e6 * 100 for each in micros]
                yield row_of("all heartbeats, share of Redis' core", NODES, "%", shares)
        judged = [self._cpu(lambda: failover.run(self.context)) for _ in range(RUNS)]
        yield row_of("failover finds nobody lost, CPU", NODES, "ms", judged)

    def _sizes(self) -> Iterator[Row]:
        parts = {
            "namespace": (NAMESPACES, ["hawse:table", "hawse:changes", "hawse:listed"]),
            "node": (NODES, ["hawse:beats", "hawse:beat-ips", *(f"hawse:node:{n}" for n in self.scale.node_names())]),
        }
        for what, (count, keys) in parts.items():
            size = sum(self.redis.memory_usage(key, samples=0) or 0 for key in keys)
            yield row_of(f"memory of Redis for a {what}", count, "bytes", [size / count])
        yield row_of("memory of Redis, all", NAMESPACES, "MB", [(self._memory() - self.empty) / 1e6])

    # Measuring

    def _cpu(self, work: Callable[[], object]) -> float:
        """Milliseconds of this process."""
        before = cpu_seconds()
        work()
        return (cpu_seconds() - before) * 1000

    def _server_cpu(self, work: Callable[[], object]) -> float:
        """Milliseconds of Redis."""
        before = self._info("cpu")
        work()
        after = self._info("cpu")
        return float(sum(after[key] - before[key] for key in ("used_cpu_user", "used_cpu_sys"))) * 1000

    def _bytes_out(self, work: Callable[[], object]) -> float:
        """Bytes that Redis sent for it."""
        self._info("stats")
        idle = -self._info("stats")["total_net_output_bytes"] + self._info("stats")["total_net_output_bytes"]
        before = self._info("stats")["total_net_output_bytes"]
        work()
        return float(self._info("stats")["total_net_output_bytes"] - before - idle)

    def _memory(self) -> float:
        return float(self._info("memory")["used_memory"])

    def _info(self, section: str) -> dict[str, Any]:
        found: dict[str, Any] = self.redis.info(section)
        return found


def _queue(node: str) -> str:
    return f"{BROKER_PREFIX}{node_queue(node)}"


def _each(work: Callable[[int], object]) -> None:
    for number in range(_CALLS):
        work(number)


def _milliseconds(work: Callable[[], object]) -> list[float]:
    taken = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return taken
