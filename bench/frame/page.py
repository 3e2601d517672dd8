"""docs/benchmarks.md: the tables, the machine, the dates and the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.frame import growth, table
from bench.frame.results import Part

_INTRODUCTION = """# Benchmarks

Written by `make bench`. How to read and to repeat them is in [how to contribute](../CONTRIBUTING.md#benchmarks).

Machine: {machine}.

`floor` is what the plain tool, or the least thinkable work, costs in the same run, and `ratio` the median by it. Times
are this machine's; ratios say more. A row that misses its goal says NO, and why is below its table. In the pictures
both axes are logarithmic, floors are dashed, triangles are goals, and the power of N says how the cost grows between
the two largest N: 1 is linear.
"""


def write(directory: Path, parts: Sequence[Part]) -> None:
    """Writes `directory`/benchmarks.md and the pictures it shows, `directory`/pictures/growth-MODULE.png and .svg."""
    directory.mkdir(parents=True, exist_ok=True)
    text = [_INTRODUCTION.format(machine=parts[0].machine), *(_section(directory, part) for part in parts)]
    (directory / "benchmarks.md").write_text("\n".join(text))


def _section(directory: Path, part: Part) -> str:
    lines = [f"## {part.heading}", "", f"`make bench BENCH={part.module}`, {part.date[:10]}, {part.seconds:.0f} s."]
    lines += ["", *_table(part)]
    for text in part.notes:
        lines += ["", text]
    if misses := table.missed(part.rows):
        lines += ["", "Missed:", "", *(f"- {text}" for text in misses)]
    if drawn := growth.panels(part.rows):
        name = f"pictures/growth-{part.module}"
        growth.draw(drawn, directory / name)
        lines += ["", f"[![{part.heading}: costs against N]({name}.png)]({name}.svg)"]
    return "\n".join([*lines, ""])


def _table(part: Part) -> Iterable[str]:
    yield f"| {' | '.join(table.HEADER)} |"
    yield f"| --- |{' ---: |' * (len(table.HEADER) - 2)} --- |"
    for row in part.rows:
        name, *others = table.cells(row)
        yield f"| {' | '.join([name.replace('|', chr(92) + '|'), *others])} |"
