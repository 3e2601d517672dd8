"""A measurement, and how it is written down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One thing measured `runs` times, in `unit`, with `n` of whatever its size is.

    `floor` is what the least thinkable work for it costs on the same machine, and `ratio` the median by that: it says
    more of a change than times, which are the machine's too. `goal` is what the median is to stay within, 0 for none.
    """

    name: str
    n: int
    unit: str
    median: float
    min: float
    max: float
    runs: int
    floor: float = 0.0
    goal: float = 0.0

    @property
    def ratio(self) -> float | None:
        """The median by the floor; None without one."""
        return self.median / self.floor if self.floor else None

    @property
    def met(self) -> bool | None:
        """Whether the median is within the goal; None without one."""
        return self.median <= self.goal if self.goal else None


def row_of(name: str, n: int, unit: str, values: Sequence[float], *, floor: float = 0.0, goal: float = 0.0) -> Row:
    """The row of these measured values."""
    return Row(name, n, unit, statistics.median(values), min(values), max(values), len(values), floor, goal)


def milliseconds(work: Callable[[], object], runs: int) -> list[float]:
    """How long each of `runs` runs of `work` takes, after one that does not count."""
    work()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return taken
