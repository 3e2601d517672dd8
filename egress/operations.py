"""Steps of an assignment, how they end, and when a failed one is tried again. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

MAX_ATTEMPTS = 8
BACKOFF_BASE = 0.5
BACKOFF_CAP = 30.0


class Step(StrEnum):
    """The steps of an assignment, in their order; a placed address may move, or fail over, any number of times."""

    WORK = "work"
    """A try of the whole that failed before its step was done."""
    ASKED = "asked"
    """Somebody asked for something by the API: what, and why."""
    CLAIM = "claim"
    BIND = "bind"
    PLACE = "place"
    MOVE = "move"
    PROGRAM = "program"
    FAILOVER = "failover"
    TICKET = "ticket"
    DECISION = "decision"
    RELEASE = "release"
    QUARANTINE = "quarantine"


class Outcome(StrEnum):
    """How a step ended: done, to be tried again by itself, or waiting for somebody."""

    DONE = "done"
    RETRY = "retry"
    GAVE_UP = "gave-up"


class TransientError(Exception):
    """What may succeed when tried again: somebody was away, or changed the object first."""


class PermanentError(Exception):
    """What will fail again however often it is tried; the message says what to change."""


def outcome_of(error: Exception, attempt: int) -> Outcome:
    """What becomes of a step that failed with `error` in its `attempt`-th try, counted from 1."""
    if isinstance(error, PermanentError) or attempt >= MAX_ATTEMPTS:
        return Outcome.GAVE_UP
    return Outcome.RETRY


def backoff(attempt: int, jitter: random.Random, cap: float = BACKOFF_CAP) -> float:
    """Seconds to wait after the `attempt`-th failure: exponential up to a cap, each wait drawn from its upper half,
    so that a thousand tasks that failed together do not return together."""
    ceiling: float = min(cap, BACKOFF_BASE * 2 ** min(attempt - 1, 30))
    return jitter.uniform(ceiling / 2, ceiling)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One line of a namespace's history. `at` is in seconds since the epoch; `operation` names the admission that began
    it all."""

    namespace: str
    step: Step
    outcome: Outcome
    at: float
    attempt: int = 1
    address: str = ""
    node: str = ""
    message: str = ""
    by: str = "hawse"
    operation: str = ""
    traceback: str = ""
    """Where it failed, if it did."""
