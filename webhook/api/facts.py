"""What the ledger says of table and nodes, read once a second at most, whoever asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from egress.adapters.ledger import Ledger
from egress.operations import TransientError
from egress.table import NodeReport, Steering

FACTS_SECONDS = 1.0
"""For how long what the ledger said counts."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the ledger said a moment ago; without an `epoch` it had no table. `problem` is why it says nothing now."""

    table: Mapping[int, Steering] = field(default_factory=dict)
    epoch: str = ""
    change: int = 0
    ips: Mapping[str, str] = field(default_factory=dict)
    reports: Mapping[str, NodeReport] = field(default_factory=dict)
    lost: Mapping[str, float] = field(default_factory=dict)
    now: float = 0.0
    lagging: Mapping[str, float] = field(default_factory=dict)
    """The nodes that have not applied all changes, each with since when, in seconds since the epoch."""
    problem: str = ""


class Watcher:
    """Keeps what the ledger says. Several threads may ask."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._facts = Facts()
        self._at = float("-inf")
        self._reads = 0

    def reads(self) -> int:
        """The number of the read that `facts` gives now: another one, and something may be different."""
        self.facts()
        return self._reads

    def facts(self) -> Facts:
        """What the ledger said within FACTS_SECONDS; while it is away, what it said last, and why."""
        with self._lock:
            if time.monotonic() - self._at > FACTS_SECONDS:
                try:
                    self._facts = self._read(self._facts)
                except TransientError as error:
                    self._facts = replace(self._facts, problem=f"Redis cannot be reached: {error}")
                self._at = time.monotonic()
                self._reads += 1
            return self._facts

    def _read(self, before: Facts) -> Facts:
        read = self._ledger.read_table(before.epoch, before.change)
        table = {} if read.whole or not read.epoch else dict(before.table)
        for netid, row in read.rows.items():
            if row is None:
                table.pop(netid, None)
            else:
                table[netid] = row
        ips = self._ledger.nodes()
        reports, now = self._ledger.reports(ips), self._ledger.now()
        lagging = {
            node: before.lagging.get(node, now)
            for node, report in reports.items()
            if report.epoch == read.epoch and report.applied < read.change
        }
        return Facts(table, read.epoch, read.change, ips, reports, self._ledger.lost(), now, lagging)
