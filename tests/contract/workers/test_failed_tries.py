"""A try that failed is in the namespace's history, with the traceback, for whoever looks at its page."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from egress.messages import NAMESPACE_TASK, PLACE_TASK
from egress.operations import MAX_ATTEMPTS, Outcome, PermanentError, Step, TransientError
from workers import tasks


@pytest.fixture
def app(world: Any, monkeypatch: pytest.MonkeyPatch) -> Celery:
    monkeypatch.setattr(tasks, "make_context", lambda _: world.context)
    monkeypatch.setattr(tasks, "PAUSABLE", frozenset())
    return Celery("test", broker="memory://", set_as_current=False)


def fails(app: Celery, error: Exception, task: str = NAMESPACE_TASK, attempt: int = 1) -> Any:
    def run(*_: object) -> None:
        raise error

    app.finalize()
    tasks._register(app, task, run)
    return app.tasks[task].apply(args=["app"], retries=attempt - 1, throw=False)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (TransientError("the API server is away"), Outcome.RETRY),
        (PermanentError("a policy refuses it"), Outcome.GAVE_UP),
        (KeyError("a bug"), Outcome.GAVE_UP),
    ],
    ids=["transient", "permanent", "unexpected"],
)
def test_a_failed_try_is_kept(app: Celery, world: Any, error: Exception, outcome: Outcome) -> None:
    ended = fails(app, error, attempt=3)
    (step,) = world.ledger.history("app")[-1:]
    assert (step.step, step.outcome, step.attempt, step.message) == (Step.WORK, outcome, 3, str(error))
    assert step.traceback.startswith("Traceback")
    assert step.traceback.rstrip().endswith(str(error))
    attempts = [(step.attempt, step.outcome) for step in world.ledger.history("app")]
    if outcome is Outcome.RETRY:  # eagerly, until it gives up
        again = [(attempt, outcome) for attempt in range(MAX_ATTEMPTS - 1, 2, -1)]
        assert attempts == [(MAX_ATTEMPTS, Outcome.GAVE_UP), *again]
    assert ended.failed() == isinstance(error, KeyError), "a bug is not hidden"


def test_what_is_for_no_namespace_is_in_no_history(app: Celery, world: Any) -> None:
    fails(app, PermanentError("no"), PLACE_TASK)
    assert world.ledger.history("app") == ()


def test_a_long_traceback_is_cut_at_its_beginning(app: Celery, world: Any) -> None:
    fails(app, PermanentError("x" * 20_000 + " the end"))
    (step,) = world.ledger.history("app")
    assert len(step.traceback) == tasks.MOST_TRACEBACK
    assert step.traceback.rstrip().endswith("the end")
