"""Admission: the webhook's answers over TLS, beside a Flask application that does nothing."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from bench.admission.asking import Generator, Load, Served, free_port, missing
from bench.rows import Row, row_of
from egress.adapters.ledger import Ledger, Offer
from egress.objects import EgressPool, Selector
from lab.net.broker import Broker

CONNECTIONS = (1, 16, 64)
RUNS, SECONDS = 5, 2
SHARE = 0.45
"""Of the throughput of the application that does nothing."""
P50_MS, P99_MS = 1.0, 8.0
"""Of connections that rest; the first of a single one, too. Those that never rest wait for one another, see `rows`."""
NODES, POOLS = 100, 8
PAUSELESS, RESTING = "asked without a pause", "asked as often as an API server can"
_WHERE = (
    "of what is more, more than half is sending to Valkey, and changing threads while it works, over a third Valkey's "
    "process, and a tenth Python (measured with the call left out, and by perf)"
)
_WAKING = (
    "without the call to Valkey it is within 0.15 ms of the floor's; with it, Valkey and the thread that waits are "
    "both woken from sleep"
)
REST_MS = 16
"""16 connections that rest so long after each answer, on average, ask a little less than a thousand times a second: an
API server on these two cores makes no more than that (MEASURED there: 1,157 writes a second). Each rest is drawn, from
1 to 31 ms: equal ones would have the connections ask together, as clients that know nothing of one another do not."""


@dataclass
class Samples:
    """What was seen of one server at one load, run by run."""

    loads: list[Load] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Microseconds of CPU for each answer, the server's and Valkey's."""

    def of(self, name: str) -> list[float]:
        """The values of one property of the loads."""
        return [getattr(load, name) for load in self.loads]

    def median(self, name: str) -> float:
        """Their median."""
        return statistics.median(self.of(name))


class Side:
    """The two servers, and what they work with. The webhook's ledger is as it is before any namespace in each run."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        broker = stack.enter_context(Broker(directory / "broker", port=free_port()))
        self._ledger = Ledger(broker.unix_url)
        stack.callback(self._ledger.close)
        self._prepare()
        self._webhook = stack.enter_context(Served.webhook(directory, broker.tcp_url))
        self._noop = stack.enter_context(Served.noop(directory, broker.tcp_url))
        self.generator = Generator(directory)

    def both(
        self, connections: int, rest: int = 0, runs: int = RUNS, seconds: int = SECONDS
    ) -> tuple[Samples, Samples]:
        """The webhook's and the other's, in turn; the first run of each does not count."""
        webhook, noop = Samples(), Samples()
        for number in range(runs + 1):
            for samples, served in ((webhook, self._webhook), (noop, self._noop)):
                self._prepare()
                before = served.cpu() + self._valkey_cpu()
                load = self.generator.ask(served.port, connections, seconds, rest, seed=number)
                cpu = (served.cpu() + self._valkey_cpu() - before) * 1e6 / load.requests
                if served is self._webhook:
                    self._check(load, connections)
                if number:
                    samples.loads.append(load)
                    samples.cpu.append(cpu)
        return webhook, noop

    def _check(self, load: Load, connections: int) -> None:
        """RuntimeError unless each answer came with an address, and a hint was sent."""
        reserved = self._ledger._redis.hlen("hawse:addresses")
        deadline = time.monotonic() + 5
        # What was asked and not waited for at the end is reserved too, a moment later.
        while (hints := self._ledger.namespaces_waiting()) != reserved and time.monotonic() < deadline:
            reserved = self._ledger._redis.hlen("hawse:addresses")
        if not (load.requests <= reserved <= load.requests + connections and hints == reserved):
            raise RuntimeError(f"{load.requests} answers, {reserved} addresses, {hints} hints")

    def _valkey_cpu(self) -> float:
        info = self._ledger._redis.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    def _prepare(self) -> None:
        pools = [
            EgressPool(
                f"pool-{number}",
                (f"10.{number * 16}.0.0/12",),
                excluded=(f"10.{number * 16}.0.0/28",),
                namespace_selector=Selector({"team": str(number)}) if number < POOLS - 1 else Selector(),
            )
            for number in range(POOLS)
        ]
        first = int(IPv4Address("192.168.0.10"))
        self._ledger._redis.flushall()
        self._ledger.set_offer(Offer(tuple(pools), frozenset(IPv4Address(first + number) for number in range(NODES))))
        self._ledger.set_listed({})
        self._ledger.sync([], self._ledger.now(), ready=True)


def rows() -> Iterator[Row | str]:
    """Each answer is a real one: parsed, a pool chosen, an address reserved in Valkey, the workers told, the patch."""
    if lack := missing():
        yield f"Not measured: {lack}."
        return
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        side = Side(Path(name), stack)
        waits = []
        for connections in CONNECTIONS:
            webhook, noop = side.both(connections)
            yield from _rows(PAUSELESS, connections, webhook, noop)
            waits.append(f"{connections / noop.median('rate') / SHARE * 1000:.1f} ms with {connections}")
        yield from _rows(RESTING, 16, *side.both(16, REST_MS))
        yield (
            "Connections that never rest wait for one another, on average their number divided by the throughput. At "
            f"the throughput that is the goal, {SHARE:.0%} of the floor's, that is {' and '.join(waits[1:])}: so the "
            f"goals of {P50_MS:.0f} ms at p50 and {P99_MS:.0f} ms at p99 are those of 16 connections that rest, as an "
            "API server's do, and that at p50 is one connection's too."
        )
        generator = side.generator
        yield (
            f"N is the number of connections. The generator (wrk, one thread) and Valkey share the {os.cpu_count()} "
            f"CPUs with the servers; wrk took {generator.cpu / generator.asked:.0%} of one. The floor is a Flask "
            "application that admits everything and looks at nothing, served the same way, in turn with the webhook."
        )


def _rows(how: str, n: int, webhook: Samples, noop: Samples) -> Iterator[Row]:
    rate, cpu, least = noop.median("rate"), statistics.median(webhook.cpu), statistics.median(noop.cpu)
    spent = f"an admission takes {cpu:.0f} us of CPU in the webhook and Valkey; the floor takes {least:.0f}; {_WHERE}"
    yield row_of(
        f"admissions, {how}",
        n,
        "1/s",
        webhook.of("rate"),
        floor=rate,
        goal=SHARE * rate,
        more_is_better=True,
        why=spent,
    )
    p50_goal, p99_goal = P50_MS if how == RESTING or n == 1 else 0, P99_MS if how == RESTING else 0
    yield row_of(
        f"admission p50, {how}", n, "ms", webhook.of("p50"), floor=noop.median("p50"), goal=p50_goal,
        why=f"{_WAKING}; {spent}",
    )  # fmt: skip
    yield row_of(
        f"admission p99, {how}", n, "ms", webhook.of("p99"), floor=noop.median("p99"), goal=p99_goal,
        why="as for p50, and threads take turns at one interpreter, in no order; the floor's p99 says what part of it "
        "any application has",
    )  # fmt: skip
    yield row_of(f"admission CPU, {how}", n, "us", webhook.cpu, floor=least)
