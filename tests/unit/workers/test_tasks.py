"""What becomes of a task that cannot be sent."""

import socket
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from egress.messages import NUDGE_TASK, PLACE_TASK, PUBLISH_TASK
from egress.operations import Step, StepRecord, TransientError
from egress.settings import Settings
from workers import tasks
from workers.context import Context
from workers.tasks import rest_after, sender


@pytest.mark.parametrize("task", [NUDGE_TASK, PUBLISH_TASK])
def test_a_broker_that_is_away_is_an_error_that_may_pass(task: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        send = sender(f"redis://127.0.0.1:{unused.getsockname()[1]}/0")
        before = time.monotonic()
        with pytest.raises(TransientError, match="the broker is away"):
            send(task, [], "control")
        assert time.monotonic() - before < 30


@pytest.mark.parametrize(
    ("changed", "took", "waiting", "seconds"),
    [
        (2, 0.05, 0, 0.0),  # what comes alone is worked on at once
        (2, 0.3, 0, 0.3),
        (3, 0.01, 0, 0.5),
        (100, 0.3, 0, 1.2),
        (1, 0.01, 2, 0.0),
        (1, 0.01, 150, 1.5),  # there will be more
        (100, 0.2, 150, 1.5),
    ],
)
def test_a_rest_is_for_bursts(changed: int, took: float, waiting: int, seconds: float) -> None:
    assert rest_after(changed, took, waiting) == pytest.approx(seconds)


class _Waiting:
    """In place of a ledger: the namespaces that wait, and what was asked for."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.asked: list[str] = []
        self.steps: list[str] = []
        self.away = False

    def next_namespaces(self, number: int) -> list[str]:
        taken, self.names = self.names[:number], self.names[number:]
        return taken

    def queue_namespaces(self, *names: str) -> None:
        self.names += names

    def first_to(self, what: str, _: float) -> bool:
        if self.away:
            raise TransientError("Redis is away")
        self.asked.append(what)
        return False

    def record(self, *steps: StepRecord) -> None:
        self.steps += [step.namespace for step in steps]


def _context(ledger: _Waiting) -> Context:
    return Context(Settings(), cast(Any, ledger), SimpleNamespace(written=dict), lambda *_: None)  # type: ignore[arg-type]


def test_what_was_taken_and_not_worked_on_waits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"n{number}" for number in range(tasks.BATCH + 1)]
    waiting = _Waiting(*names)
    waiting.away = True
    with pytest.raises(TransientError):
        tasks._work_through(cast(Any, None), _context(waiting), "message")
    assert sorted(waiting.names) == names

    done: list[str] = []

    def work(_app: object, _context: Context, name: str, _message: str) -> None:
        if name == "n1":
            raise TransientError("the broker is away")
        done.append(name)

    monkeypatch.setattr(tasks, "_one_of_many", work)
    waiting = _Waiting(*names[:3])
    with pytest.raises(TransientError):
        tasks._work_through(cast(Any, None), _context(waiting), "message")
    assert (done, waiting.names) == (["n0"], ["n0", "n1", "n2"])


def test_what_many_ask_for_is_asked_for_once_and_all_of_them_again_where_it_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(_app: object, context: Context, name: str, _message: str) -> None:
        context.ask(PLACE_TASK)
        context.record(Step.CLAIM, name)

    monkeypatch.setattr(tasks, "_one_of_many", work)
    waiting = _Waiting("a", "b", "c")
    tasks._work_through(cast(Any, None), _context(waiting), "message")
    assert (waiting.asked, waiting.steps, waiting.names) == ([PLACE_TASK], ["a", "b", "c"], [])

    waiting = _Waiting("a", "b", "c")
    waiting.away = True
    with pytest.raises(TransientError):
        tasks._work_through(cast(Any, None), _context(waiting), "message")
    assert waiting.names == ["a", "b", "c"]
