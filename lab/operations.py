"""The way of each admission through the components, by its operation id, as they themselves have logged it."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

ACTIVE = ("steered", "sent out")
"""What a node that has programmed an address says of its namespace's traffic."""


class NodeLog:
    """A structlog processor in the process of the virtual nodes: what their runners have programmed, and when."""

    def __init__(self, nodes: int) -> None:
        self.steps: dict[str, list[tuple[float, str]]] = defaultdict(list)
        self._active: Counter[str] = Counter()
        self._nodes = nodes
        self._changed = threading.Condition()

    def __call__(self, _: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        operation = event.get("operation")
        if event["event"] == "programmed" and operation:
            with self._changed:
                self.steps[operation].append((time.time(), str(event["traffic"])))
                self._active[operation] += event["traffic"] in ACTIVE
                self._changed.notify_all()
        raise structlog.DropEvent

    def active(self, operations: Iterable[str]) -> int:
        """How many of these every node has programmed."""
        with self._changed:
            return sum(self._active[operation] >= self._nodes for operation in operations)

    def await_active(self, operations: Collection[str], seconds: float) -> float:
        """Waits until every node has programmed all of these; when that was. RuntimeError after `seconds`."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while any(self._active[operation] < self._nodes for operation in operations):
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() > deadline:
                    raise RuntimeError(f"after {seconds:.0f} s some of {len(operations)} namespaces are not steered")
            return max(max(at for at, did in self.steps[each] if did in ACTIVE) for each in operations)


def logged(files: Iterable[Path]) -> dict[str, list[tuple[float, str]]]:
    """The steps in the components' logs, of each operation: when, and what."""
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for file in files:
        for text in file.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
                at = datetime.fromisoformat(line["timestamp"]).timestamp()
            except (ValueError, KeyError):
                continue
            for operation in [line.get("operation"), *line.get("operations", ())]:
                if operation:
                    found[operation].append((at, line["event"]))
    return found


def waterfall(began: Mapping[str, float], answered: Mapping[str, float], *sources: Mapping[str, Any]) -> Iterator[str]:
    """Where the time goes from a CREATE until every node steers: the median, in ms, of when each step was done, and of
    how long it took since the one before. `began` and `answered` are by operation, as are the steps of `sources`."""
    offsets: dict[str, list[float]] = defaultdict(list)
    for operation, start in began.items():
        steps = [(answered[operation], "answered"), *(step for source in sources for step in source.get(operation, ()))]
        for name, at in _named(steps).items():
            offsets[name].append((at - start) * 1000)
    before = 0.0
    for name, values in sorted(offsets.items(), key=lambda item: statistics.median(item[1])):
        median = statistics.median(values)
        yield f"  {median:8.1f} ms  +{max(0.0, median - before):6.1f}  {name}"
        before = median


def _named(steps: Iterable[tuple[float, str]]) -> dict[str, float]:
    """When each step was done; of what all nodes do, when the last had; a publishing by what it is for."""
    done: dict[str, float] = {}
    publishings = iter(("published: to be dropped", "published: to be claimed", "published: to be steered"))
    last = {"dropped": "every node drops", "sent out": "the node sends out", "steered": "every other node steers"}
    for at, what in sorted(steps):
        if what in last:
            done[last[what]] = at
        else:
            done.setdefault(next(publishings, "published again") if what == "published" else what, at)
    return done
