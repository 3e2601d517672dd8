"""How measurements are written down: results.json as others read it, and nothing of it lost by a later run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from bench import __main__ as frame
from bench.frame import growth
from bench.rows import Row, row_of

Given = Callable[[], Iterator[Row | str]]
KEYS = ["name", "n", "unit", "median", "min", "max", "runs", "floor", "ratio", "goal", "met"]


def module(name: str, rows: Given) -> ModuleType:
    made = ModuleType(f"bench.{name}", f"About {name}.\n\nMore.")
    made.rows = rows  # type: ignore[attr-defined]
    return made


def curve() -> Iterator[Row | str]:
    for n in (1, 100, 1000):
        for family in ("nft", "legacy"):
            yield row_of(
                f"claim, {family}", n, "ms", [n * 2.0, n * 1.0, n * 3.0], floor=n * 1.0, goal=1500.0, why="it waits"
            )
    yield "A note."


def rate() -> Iterator[Row | str]:
    yield row_of("requests", 16, "1/s", [450.0], goal=400.0, more_is_better=True)


def broken() -> Iterator[Row | str]:
    yield row_of("before", 1, "ms", [1.0])
    raise RuntimeError("no more")


class Place:
    """A folder for what is measured, and one for the docs, with these measurements."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self.docs = directory / "bench", directory / "docs"
        self.known = {"curve": module("curve", curve), "rate": module("rate", rate)}
        monkeypatch.setattr(frame, "modules", lambda: self.known)

    def run(self, *names: str) -> int:
        self.here.mkdir(exist_ok=True)
        return frame.main(list(names), self.here, self.docs)

    def rows(self) -> dict[tuple[str, int], dict[str, object]]:
        found = json.loads((self.here / "results.json").read_text())
        assert list(found) == ["machine", "date", "rows"]
        assert all(list(row) == KEYS for row in found["rows"])
        return {(row["name"], row["n"]): row for row in found["rows"]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_results_have_the_fields_that_others_read(place: Place) -> None:
    assert place.run() == 0
    assert place.rows()["claim, nft", 1000] == {
        "name": "claim, nft", "n": 1000, "unit": "ms", "median": 2000, "min": 1000, "max": 3000, "runs": 3,
        "floor": 1000, "ratio": 2, "goal": 1500, "met": False,
    }  # fmt: skip
    assert (
        place.rows()["requests", 16] | {"median": 450, "floor": None, "ratio": None, "met": True}
        == place.rows()["requests", 16]
    )


def test_a_run_of_one_module_keeps_what_the_others_gave(place: Place) -> None:
    place.run()
    place.known["rate"] = module("rate", lambda: iter([row_of("requests", 64, "1/s", [7.0])]))
    assert place.run("rate") == 0
    assert ("claim, nft", 1000) in place.rows()
    assert ("requests", 64) in place.rows()
    assert ("requests", 16) not in place.rows()  # its own last run's


def test_what_another_machine_measured_is_left_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.run()
    monkeypatch.setattr(frame, "_machine", lambda: "another")
    place.run("rate")
    assert list(place.rows()) == [("requests", 16)]


def test_the_page_of_the_docs_has_all_or_is_left_as_it_is(place: Place) -> None:
    place.run("curve")
    assert not place.docs.exists()
    assert (place.here / "results" / "benchmarks.md").exists()
    place.run("rate")
    text = (place.docs / "benchmarks.md").read_text()
    assert "| claim, nft | 1,000 | ms | 2,000 | 1,000 | 3,000 | 3 | 1,000 | 2.00 | ≤ 1,500 | NO |" in text
    assert "- claim, nft, N = 1,000: 2,000 ms, goal ≤ 1,500: it waits" in text
    assert "\n## About curve\n" in text
    assert "\nA note.\n" in text
    for suffix in ("png", "svg"):
        assert (place.docs / "pictures" / f"growth-curve.{suffix}").stat().st_size > 1000
    assert not (place.docs / "pictures" / "growth-rate.png").exists()  # one N is no curve


def test_a_measurement_that_fails_is_said_and_stops_no_other(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.known = {"broken": module("broken", broken), **place.known}
    assert place.run() == 1
    assert "broken: FAILED, RuntimeError: no more" in capsys.readouterr().out
    assert {("before", 1), ("requests", 16)} <= place.rows().keys()
    assert not place.docs.exists()


def test_a_missed_goal_is_said_with_its_reason(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.run()
    said = capsys.readouterr().out
    assert "5 of 7 goals are met." in said
    assert "NO: claim, legacy, N = 1,000: 2,000 ms, goal ≤ 1,500: it waits" in said


def test_an_unknown_name_is_bad_usage(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("curves") == 2
    assert capsys.readouterr().err == "no such measurement: curves; there are curve, rate\n"


def test_what_takes_long_runs_only_where_it_is_named(place: Place) -> None:
    place.known["rate"].BY_NAME = True  # type: ignore[attr-defined]
    assert place.run() == 0
    assert ("requests", 16) not in place.rows()
    assert place.run("rate") == 0
    assert ("requests", 16) in place.rows()
    assert place.run() == 0
    assert ("requests", 16) in place.rows(), "its last run is kept"


def test_every_measurement_is_found_without_naming_it() -> None:
    found = frame.modules()
    assert {"failover", "placement"} <= found.keys()
    assert not {"rows", "frame", "__main__"} & found.keys()
    assert all(sys.modules[name].__doc__ for name in (module.__name__ for module in found.values()))


def test_curves_of_one_subject_share_a_panel() -> None:
    rows = [row for row in curve() if isinstance(row, Row)]
    (panel,) = growth.panels([*rows, row_of("alone", 1, "ms", [1.0]), row_of("nothing", 0, "ms", [0.0])])
    assert (panel.subject, panel.unit, [line.label for line in panel.curves]) == ("claim", "ms", ["nft", "legacy"])
    assert [row.n for row in panel.curves[0].rows] == [1, 100, 1000]
    assert panel.curves[0].exponent == pytest.approx(1)
