"""What a runner counts and measures, and what its verdicts for the probes are. docs/operator.md explains the names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from egress.health import Pulse
from egress.program import Traffic
from egress.table import NodeReport
from node_runner.drivers.errors import NodeError
from node_runner.drivers.ports import FlowCount, Path

_log = structlog.get_logger()
STUCK_SECONDS = 120.0
"""A pass may wait for several tools that hang, for 15 s each; longer is not the node's fault any more."""

pass_duration = Histogram(
    "hawse_node_pass_duration_seconds",
    "How long a pass over the node took.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
drift_repairs = Counter("hawse_node_drift_repairs_total", "Passes that put back what somebody else had undone.")
applied_change = Gauge("hawse_node_applied_change", "The last change of the table that the node holds; 0 for none.")
addresses = Gauge("hawse_node_addresses", "Egress addresses that the node holds.")
refused = Gauge("hawse_node_refused_addresses", "Egress addresses that the node was given and does not hold.")
problem = Gauge("hawse_node_problem", "1 for the reason why the node cannot be programmed.", ["reason"])


class Passes:
    """Follows the runner's passes."""

    def __init__(self) -> None:
        self._pulse = Pulse("the runner's loop", STUCK_SECONDS)
        self._unready: str | None = "no pass is done yet"
        self._repairs = 0
        self._seen_table = False
        self._reason = ""
        self.begun = threading.Event()
        """Set when the first pass is over."""

    def observe(self, report: NodeReport, seconds: float) -> None:
        """A pass is over: what it reported, and how long it took."""
        self._pulse.beat()
        pass_duration.observe(seconds)
        drift_repairs.inc(report.repairs - self._repairs)
        self._repairs = report.repairs
        applied_change.set(report.applied)
        held = sum(claim.held for claim in report.claims)
        addresses.set(held)
        refused.set(len(report.claims) - held)
        reason = report.problem.partition(":")[0]
        if reason != self._reason:
            problem.clear()
            self._reason = reason
        if reason:
            problem.labels(reason).set(1)
        self._seen_table = self._seen_table or bool(report.epoch)
        self._unready = report.problem or (None if self._seen_table else "the node has not seen a table yet")
        self.begun.set()

    def ready(self) -> str | None:
        """A verdict: the last pass found no problem, and a table was seen once; without Redis the node keeps to it."""
        return self._unready or self._pulse.verdict()

    def alive(self) -> str | None:
        """A verdict: the loop comes round."""
        return self._pulse.verdict()


@dataclass
class Passed:
    """Packets and bytes of one namespace over one path."""

    packets: int = 0
    bytes: int = 0


@dataclass
class Tally:
    """Sums that only grow, from the counts of flows that come, are replaced, and go.

    A flow that replaces another goes on with its counts (Open vSwitch keeps them); one that is deleted and added again
    begins at 0. What a flow counted between the last look and its end is lost: a pass reads no counts.
    """

    totals: dict[tuple[str, Path], Passed] = field(default_factory=dict)
    _last: dict[Traffic, FlowCount] | None = None

    def add(self, counts: Mapping[Traffic, FlowCount], names: Mapping[int, str]) -> None:
        """One look: the flows, and the NetIDs' namespaces. The first look only says where counting begins:
        what flows counted before that is an earlier process's."""
        if self._last is None:
            self._last = dict(counts)
            return
        last = {traffic: before for traffic, before in self._last.items() if traffic in counts}
        for traffic, count in counts.items():
            name = names.get(traffic[0])
            if name is None:
                continue  # a flow that is about to go, or a table that was not read yet
            total = self.totals.setdefault((name, count.path), Passed())
            before = last.get(traffic)
            if before is None or count.packets < before.packets:
                before = replace(count, packets=0, bytes=0)
            total.packets += count.packets - before.packets
            total.bytes += count.bytes - before.bytes
            last[traffic] = count
        self._last = last
        live = set(names.values())
        self.totals = {key: total for key, total in self.totals.items() if key[0] in live}


class TrafficCollector(Collector):
    """Reads the flows' counts when it is made and when it is scraped, and at no other time."""

    def __init__(
        self, counts: Callable[[], Mapping[Traffic, FlowCount]], names: Callable[[], Mapping[int, str]]
    ) -> None:
        self._counts = counts
        self._names = names
        self._tally = Tally()
        self._lock = threading.Lock()
        with suppress(NodeError):  # then the first scrape says where counting begins
            self._tally.add(counts(), names())

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See Collector. Without Open vSwitch there are none, and the sums go on later."""
        labels = ["namespace", "path"]
        packets = CounterMetricFamily(
            "hawse_namespace_packets", "Packets of a namespace that left the cluster's network here.", labels=labels
        )
        octets = CounterMetricFamily("hawse_namespace_bytes", "Bytes of these packets.", labels=labels)
        with self._lock:
            try:
                self._tally.add(self._counts(), self._names())
            except NodeError as error:
                _log.warning("the flows' counts cannot be read", reason=error.reason, error=str(error))
                return
            for (name, path), total in sorted(self._tally.totals.items()):
                packets.add_metric([name, path.value], total.packets)
                octets.add_metric([name, path.value], total.bytes)
        yield packets
        yield octets

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Nothing: else registering it would read the flows."""
        return iter(())
