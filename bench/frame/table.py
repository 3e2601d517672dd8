"""Rows as people read them."""

from __future__ import annotations

from collections.abc import Iterable

from bench.rows import Row

HEADER = ("name", "n", "unit", "median", "min", "max", "runs", "floor", "ratio", "goal", "met")
_COLUMNS = "{:<44} {:>7} {:>7} {:>10} {:>10} {:>10} {:>6} {:>10} {:>7} {:>10} {:>4}"
_MET = {True: "yes", False: "NO", None: ""}


def cells(row: Row) -> tuple[str, ...]:
    """The row's cells, in HEADER's order."""
    goal = f"{'≥' if row.more_is_better else '≤'} {number(row.goal)}" if row.goal else ""
    ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
    values = map(number, (row.median, row.min, row.max))
    floor = number(row.floor) if row.floor else ""
    return (
        row.name,
        f"{row.n:,}",
        row.unit,
        *values,
        str(row.runs) if row.runs else "",
        floor,
        ratio,
        goal,
        _MET[row.met],
    )


def line(texts: Iterable[str]) -> str:
    """One line of the table in a terminal."""
    return _COLUMNS.format(*texts).rstrip()


def number(value: float) -> str:
    """Three significant digits, or all before the point."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def missed(rows: Iterable[Row]) -> list[str]:
    """A line for each row that misses its goal, with the reason."""
    return [
        f"{row.name}, N = {row.n:,}: {number(row.median)} {row.unit}, goal {cells(row)[9]}: "
        f"{row.why or 'the reason is not known yet'}"
        for row in rows
        if row.met is False
    ]
