"""Events are written behind the work's back, in their order, and not all at once."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from egress.adapters.cluster import ClusterAwayError
from workers import news
from workers.news import Item, News


class Written:
    """In place of a Cluster: the reasons of the Events."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.refuse = ""

    def event(self, about: dict[str, str], reason: str, message: str, *, warning: bool) -> None:
        self.gate.wait(10)
        if reason == self.refuse:
            raise ClusterAwayError("away")
        assert (about, message, warning) == ({"name": "app", "uid": "u"}, "text", False)
        self.reasons.append(reason)


def item(number: int) -> Item:
    return Item("app", "u", f"r{number}", "text", warning=False)


def until(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_they_are_written_in_their_order_and_one_that_fails_stops_none() -> None:
    written: Any = Written()
    written.refuse = "r1"
    told = News(written)
    with structlog.testing.capture_logs() as logged:
        for number in range(4):
            told.tell(item(number))
        until(lambda: len(written.reasons) == 3)
    assert written.reasons == ["r0", "r2", "r3"]
    assert [line["error"] for line in logged if line["event"] == "event not written"] == ["away"]


def test_warnings_come_before_what_is_well() -> None:
    class Gated(Written):
        def event(self, about: dict[str, str], reason: str, message: str, *, warning: bool) -> None:
            del about, message, warning
            self.gate.wait(10)
            self.reasons.append(reason)

    written: Any = Gated()
    written.gate.clear()
    told = News(written)
    told.tell(item(0))
    until(lambda: not told._waiting)  # that one is being written
    told.tell(item(1))
    for number in (2, 3):
        told.tell(Item("app", "u", f"r{number}", "text", warning=True))
    written.gate.set()
    until(lambda: len(written.reasons) == 4)
    assert written.reasons == ["r0", "r2", "r3", "r1"]


def test_a_burst_is_spread_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [100.0], list[float]()
    monkeypatch.setattr(news, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    written: Any = Written()
    told = News(written, sleep=sleep)
    for number in range(news.AT_ONCE + 20):
        told.tell(item(number))
    until(lambda: len(written.reasons) == news.AT_ONCE + 20)
    assert pauses == pytest.approx([1 / news.PER_SECOND] * 20)


def test_the_oldest_is_let_go_where_too_many_wait() -> None:
    written: Any = Written()
    written.gate.clear()
    told = News(written, sleep=lambda _: None)
    told.tell(item(-1))
    until(lambda: not told._waiting)  # that one is being written
    with structlog.testing.capture_logs() as logged:
        for number in range(news.MOST + 2):
            told.tell(item(number))
    written.gate.set()
    until(lambda: len(written.reasons) == news.MOST + 1)
    assert written.reasons[:2] == ["r-1", "r2"]
    assert len([line for line in logged if line["error"] == "too many wait"]) == 2


def test_what_is_well_waits_while_many_namespaces_do_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now, crowd, pauses = [100.0], [True, True, False], list[float]()
    monkeypatch.setattr(news, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    written: Any = Written()
    told = News(written, lambda: crowd.pop(0), sleep)
    told.tell(item(0))
    until(lambda: written.reasons == ["r0"])
    assert (pauses, crowd) == ([news.LOOK_SECONDS] * 2, [])

    pauses.clear()
    told = News(written, lambda: True, sleep)
    told.tell(item(1))
    until(lambda: written.reasons == ["r0", "r1"])
    assert sum(pauses) == news.YIELD_SECONDS


def test_a_warning_does_not_wait() -> None:
    class Heard(Written):
        def event(self, about: dict[str, str], reason: str, message: str, *, warning: bool) -> None:
            del about, message
            self.reasons.append(f"{reason} {warning}")

    written: Any = Heard()
    told = News(written, lambda: True, lambda _: None)
    told.tell(Item("app", "u", "bad", "text", warning=True))
    until(lambda: written.reasons == ["bad True"])
