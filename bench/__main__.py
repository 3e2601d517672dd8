"""Runs every measurement, or those whose modules are named; prints a table and writes bench/results.json."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import bench
from bench.rows import Row

RESULTS = Path(__file__).with_name("results.json")
_COLUMNS = "{:<40} {:>7} {:>5} {:>10} {:>10} {:>10} {:>5} {:>10} {:>7} {:>9} {:>5}"


def main(names: list[str]) -> int:
    """0 if every goal is met, else 1. The results are written in either case."""
    print(_COLUMNS.format(*["name", "n", "unit", "median", "min", "max", "runs", "floor", "ratio", "goal", "met"]))
    rows = []
    for row in _rows(names):
        rows.append(row)
        ratio = f"{row.ratio:.1f}" if row.ratio is not None else ""
        met = {True: "yes", False: "NO", None: ""}[row.met]
        numbers = [f"{value:.3f}" for value in (row.median, row.min, row.max)]
        floor, goal = (f"{value:g}" if value else "" for value in (round(row.floor, 3), row.goal))
        print(_COLUMNS.format(row.name, row.n, row.unit, *numbers, row.runs, floor, ratio, goal, met), flush=True)
    results = {
        "machine": _machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": [
            asdict(row) | {"floor": row.floor or None, "goal": row.goal or None, "ratio": row.ratio, "met": row.met}
            for row in rows
        ],
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return int(any(row.met is False for row in rows))


def _rows(names: list[str]) -> Iterator[Row]:
    found = [module.name for module in pkgutil.iter_modules(bench.__path__) if module.name not in ("rows", "__main__")]
    for name in names or sorted(found):
        yield from importlib.import_module(f"bench.{name}").rows()


def _machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
