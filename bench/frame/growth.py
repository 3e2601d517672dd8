"""Each cost against N: small multiples by subject, on logarithmic axes, as PNG and SVG."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.rows import Row

COLUMNS = 3
_WIDTH, _HEIGHT = 7.2, 2.3  # inches: a page's width, and a row of panels
_DPI = 200
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # told apart by the colour-blind too
_MARKERS = ("o", "s", "^", "D", "v", "P")  # and on paper without colour
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "hawse",  # the same rows give the same file
}


@dataclass(frozen=True, slots=True)
class Curve:
    """Rows of one name, by N; at least two."""

    label: str
    rows: tuple[Row, ...]

    @property
    def exponent(self) -> float:
        """How the cost grows between the two largest N, as a power of N: 1 is linear, 0 is not at all."""
        low, high = self.rows[-2:]
        return math.log(high.median / low.median) / math.log(high.n / low.n)


@dataclass(frozen=True, slots=True)
class Panel:
    """The curves of one subject, in one unit."""

    subject: str
    unit: str
    curves: tuple[Curve, ...]


def panels(rows: Iterable[Row]) -> list[Panel]:
    """What can be drawn of these rows, in their order. Logarithmic axes have no place for what is 0."""
    curves: dict[tuple[str, str], dict[str, dict[int, Row]]] = {}
    for row in rows:
        if row.n > 0 and row.median > 0:
            curves.setdefault((row.subject, row.unit), {}).setdefault(row.name, {})[row.n] = row
    found = []
    for (subject, unit), named in curves.items():
        drawn = tuple(
            Curve(name.partition(",")[2].strip(), tuple(by_n[n] for n in sorted(by_n)))
            for name, by_n in named.items()
            if len(by_n) > 1
        )
        if drawn:
            found.append(Panel(subject, unit, drawn))
    return found


def draw(drawn: Sequence[Panel], path: Path) -> None:
    """Writes `path` with the suffixes .png and .svg."""
    columns = min(COLUMNS, len(drawn))
    lines = -(-len(drawn) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH * columns / COLUMNS, _HEIGHT * lines), dpi=_DPI, layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for place, panel in itertools.zip_longest(axes, drawn):
            if panel is None:
                place.axis("off")
            else:
                _panel(place, panel)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})


def _panel(axes: Axes, panel: Panel) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for curve, colour, marker in zip(panel.curves, itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False):
        ns = [row.n for row in curve.rows]
        label = f"{curve.label}  $N^{{{curve.exponent:.1f}}}$".strip()
        axes.plot(ns, [row.median for row in curve.rows], color=colour, marker=marker, ms=3, lw=1.2, label=label)
        floors = [(row.n, row.floor) for row in curve.rows if row.floor > 0]
        if floors:
            axes.plot(*zip(*floors, strict=True), color=colour, lw=0.9, ls=(0, (4, 2)))
        goals = [(row.n, row.goal, row.more_is_better) for row in curve.rows if row.goal > 0]
        for n, goal, more in goals:
            axes.plot([n], [goal], color=colour, marker="^" if more else "v", ms=5, mfc="none", mew=0.8, ls="")
    if panel.curves and any(row.floor > 0 for curve in panel.curves for row in curve.rows):
        axes.plot([], [], color="0.35", lw=0.9, ls=(0, (4, 2)), label="floor")
    _scales(axes, panel)


def _scales(axes: Axes, panel: Panel) -> None:
    ns = sorted({row.n for curve in panel.curves for row in curve.rows})
    axes.set_xticks(_apart(ns), labels=[_short(n) for n in _apart(ns)])
    axes.xaxis.set_minor_locator(NullLocator())
    values = [
        value for curve in panel.curves for row in curve.rows for value in (row.median, row.floor, row.goal) if value
    ]
    # Whole decades, so that every axis has two numbers at least; and room above for the legend.
    low, high = math.floor(math.log10(min(values) / 1.25)), math.ceil(math.log10(max(values) * 2.5))
    axes.set_ylim(10.0**low, 10.0**high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(True, lw=0.3, color="0.85")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(textwrap.fill(panel.subject, 28), loc="left")
    axes.set_ylabel(panel.unit)
    axes.set_xlabel("N")
    axes.legend(frameon=False, loc="best", handlelength=1.8, labelspacing=0.25, borderpad=0.1)


def _short(n: int) -> str:
    return f"{n // 1000}k" if n >= 1000 and n % 1000 == 0 else f"{n:,}"


def _apart(ns: Sequence[int]) -> list[int]:
    """Those of the N that have room for their labels."""
    kept: list[int] = []
    for n in reversed(ns):
        if not kept or math.log10(kept[-1] / n) > 0.12 * math.log10(ns[-1] / ns[0]):
            kept.append(n)
    return kept[::-1]
