"""Runs the measurements, or those whose modules are named; prints a table and writes bench/results.json."""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import re
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import bench
from bench.frame import page, table
from bench.frame.results import Part, Store, write_results
from bench.rows import Row

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


def main(names: list[str], here: Path = HERE, docs: Path = DOCS) -> int:
    """Runs the modules of these names; without any, all but those that say BY_NAME.

    0 if all that was asked for was measured, whether it meets its goal or not; 1 if something could not be; 2 if there
    is no module of such a name. What was measured is written in any case.
    """
    known = modules()
    if unknown := sorted(set(names) - set(known)):
        print(f"no such measurement: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    store, machine = Store(here / "results"), _machine()
    print(table.line(table.HEADER))
    ran = []
    for name in names or [name for name, module in known.items() if not getattr(module, "BY_NAME", False)]:
        ran.append(_run(known[name], machine))
        store.keep(ran[-1])
        write_results(here / "results.json", store.parts(known, machine), machine, ran[-1].date)
    _say_missed(ran)
    _write_page(store.parts(known, machine), set(known), here, docs)
    return int(any(part.failed for part in ran))


def modules() -> dict[str, ModuleType]:
    """The measurements: every module of this package that gives rows."""
    names = sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if module.name != "__main__")
    found = {name: importlib.import_module(f"bench.{name}") for name in names}
    return {name: module for name, module in found.items() if callable(getattr(module, "rows", None))}


def _run(module: ModuleType, machine: str) -> Part:
    """Runs one module, and prints what it gives as it gives it. An error ends the module, not the others."""
    name, began = module.__name__.rpartition(".")[2], time.monotonic()
    rows: list[Row] = []
    notes: list[str] = []
    failed = ""
    try:
        for given in module.rows():
            if isinstance(given, Row):
                rows.append(given)
                print(table.line(table.cells(given)), flush=True)
            else:
                notes.append(given)
                print(f"  {given}", flush=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is said, and the others are measured
        traceback.print_exc()
        failed = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    print(f"  {name}: {f'FAILED, {failed}' if failed else 'measured'} in {seconds:.0f} s", flush=True)
    heading = (module.__doc__ or name).strip().partition("\n")[0].rstrip(".")
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Part(name, heading, machine, date, round(seconds, 1), tuple(rows), tuple(notes), failed)


def _say_missed(parts: list[Part]) -> None:
    misses = [text for part in parts for text in table.missed(part.rows)]
    goals = [row for part in parts for row in part.rows if row.goal]
    print(f"\n{len(goals) - len(misses)} of {len(goals)} goals are met.")
    for text in misses:
        print(f"  NO: {text}")


def _write_page(parts: list[Part], wanted: set[str], here: Path, docs: Path) -> None:
    """The docs' page has all rows, of one machine: while some are missing, it is written beside the parts."""
    lacking = sorted(wanted - {part.module for part in parts if not part.failed})
    target = here / "results" if lacking else docs
    page.write(target, parts)
    print(f"\nWritten: {here / 'results.json'}, {target / 'benchmarks.md'} with its pictures.")
    if lacking:
        print(f"The docs keep their page until this machine has measured {', '.join(lacking)} as well.")


def _machine() -> str:
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    processor = f"{model[1]}, " if model else ""
    return (
        f"{os.cpu_count()} CPUs, {processor}{platform.machine()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
