"""What was measured, on disk: a part for each module, and results.json, which is made of the parts.

`bench/results/MODULE.json` is what the module's last run gave. So a run of one module replaces its own rows in
results.json and leaves the others. Rows of another machine cannot be compared with this one's, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from bench.rows import Row


class Part(msgspec.Struct, frozen=True):
    """What one module's run gave. `failed` is the error that ended it early, "" for none."""

    module: str
    heading: str
    machine: str
    date: str
    """When it was over, UTC, ISO 8601."""
    seconds: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    failed: str = ""


class ResultRow(msgspec.Struct, frozen=True):
    """A row as others read it: these fields stay, and no others come."""

    name: str
    n: int
    unit: str
    median: float
    min: float
    max: float
    runs: int
    floor: float | None
    ratio: float | None
    goal: float | None
    met: bool | None


class Results(msgspec.Struct, frozen=True):
    """results.json. `date` is that of the last run; a row may be older, if its module was not run then."""

    machine: str
    date: str
    rows: tuple[ResultRow, ...]


class Store:
    """The folder of the parts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keep(self, part: Part) -> None:
        """Puts a part in the place of the same module's last one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        text = msgspec.json.format(msgspec.json.encode(part), indent=2)
        (self.directory / f"{part.module}.json").write_bytes(text + b"\n")

    def parts(self, modules: Iterable[str], machine: str) -> list[Part]:
        """The parts of these modules, in their order, that were measured on `machine` and can be read."""
        return [part for module in modules if (part := self._read(module)) is not None and part.machine == machine]

    def _read(self, module: str) -> Part | None:
        try:
            return msgspec.json.decode((self.directory / f"{module}.json").read_bytes(), type=Part)
        except (FileNotFoundError, msgspec.DecodeError):  # never measured here, or by another version
            return None


def write_results(path: Path, parts: Iterable[Part], machine: str, date: str) -> None:
    """Writes results.json."""
    rows = tuple(result_row(row) for part in parts for row in part.rows)
    text = msgspec.json.format(msgspec.json.encode(Results(machine, date, rows)), indent=2)
    path.write_bytes(text + b"\n")


def result_row(row: Row) -> ResultRow:
    """The row for results.json: a floor or goal that there is not is null."""
    return ResultRow(
        row.name,
        row.n,
        row.unit,
        row.median,
        row.min,
        row.max,
        row.runs,
        row.floor or None,
        row.ratio,
        row.goal or None,
        row.met,
    )
