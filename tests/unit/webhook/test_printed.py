"""A page is made once for all who look at it, and anew when something is different."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from webhook.api.pages.printed import KEPT, Printed


def test_many_who_ask_at_once_have_it_made_once() -> None:
    printed, made, together = Printed(), [], threading.Barrier(20)

    def make() -> str:
        made.append(threading.current_thread().name)
        return f"page {len(made)}"

    def ask(_: int) -> str:
        together.wait()
        return printed.get("/", lambda: 1, make)

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(ask, range(20))) == {"page 1"}
    assert len(made) == 1


def test_another_edition_is_made_anew_and_another_page_apart() -> None:
    printed = Printed()
    assert printed.get("/", lambda: 1, lambda: "one") == "one"
    assert printed.get("/", lambda: 1, lambda: "two") == "one"
    assert printed.get("/nodes", lambda: 1, lambda: "nodes") == "nodes"
    assert printed.get("/", lambda: 2, lambda: "three") == "three"


def test_what_changes_while_it_is_made_makes_it_an_old_one() -> None:
    printed, editions = Printed(), iter((1, 2))
    assert printed.get("/", lambda: next(editions), lambda: "begun before the change") == "begun before the change"
    assert printed.get("/", lambda: next(editions), lambda: "after it") == "after it"


def test_what_cannot_be_made_is_not_kept() -> None:
    printed = Printed()

    def fail() -> str:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            printed.get("/", lambda: 1, fail)
    assert printed.get("/", lambda: 1, lambda: "good") == "good"


def test_only_so_many_are_kept() -> None:
    printed = Printed()
    for number in range(KEPT + 10):
        printed.get(number, lambda: 1, lambda: "page")
    assert len(printed._prints) == KEPT
    assert printed.get(KEPT + 9, lambda: 1, lambda: "other") == "page"
    assert printed.get(0, lambda: 1, lambda: "made anew") == "made anew"
