"""A measurement, and how it is written down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One thing measured `runs` times, in `unit`, with `n` of whatever its size is.

    Rows that share `name` and `unit` and differ in `n` are a curve. What a name says before its first comma is the
    subject: curves of one subject are drawn in one picture ("claim, nft" beside "claim, legacy").

    `floor` is what the plain tool, or the least thinkable work, costs on the same machine in the same run, and `ratio`
    the median by that: it says more of a change than times, which are the machine's too. `goal` is what the median is
    to stay within, 0 for none; with `more_is_better` it is what the median is to reach. `why` is the reason, found by
    profiling, why the goal is missed; it is printed only if it is.
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
    more_is_better: bool = False
    why: str = ""

    @property
    def ratio(self) -> float | None:
        """The median by the floor; None without one."""
        return self.median / self.floor if self.floor else None

    @property
    def met(self) -> bool | None:
        """Whether the median is within the goal; None without one."""
        if not self.goal:
            return None
        return self.median >= self.goal if self.more_is_better else self.median <= self.goal

    @property
    def subject(self) -> str:
        """What it is about: its name as far as the first comma."""
        return self.name.partition(",")[0]


def row_of(  # noqa: PLR0913 - the fields of a row, by name
    name: str,
    n: int,
    unit: str,
    values: Sequence[float],
    *,
    floor: float = 0.0,
    goal: float = 0.0,
    more_is_better: bool = False,
    why: str = "",
) -> Row:
    """The row of these measured values."""
    median, low, high = statistics.median(values), min(values), max(values)
    return Row(name, n, unit, median, low, high, len(values), floor, goal, more_is_better, why)


def milliseconds(work: Callable[[], object], runs: int) -> list[float]:
    """How long each of `runs` runs of `work` takes, after one that does not count."""
    work()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return taken
