"""How a failed step goes on."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.operations import (
    BACKOFF_BASE,
    BACKOFF_CAP,
    MAX_ATTEMPTS,
    Outcome,
    PermanentError,
    TransientError,
    backoff,
    outcome_of,
)


@given(st.integers(1, 200), st.integers())
def test_a_wait_is_in_the_upper_half_of_a_doubling_ceiling(attempt: int, seed: int) -> None:
    wait = backoff(attempt, random.Random(seed))
    ceiling = min(BACKOFF_CAP, BACKOFF_BASE * 2 ** (attempt - 1))
    assert ceiling / 2 <= wait <= ceiling <= BACKOFF_CAP


def test_those_that_failed_together_do_not_return_together() -> None:
    jitter = random.Random(1)
    assert len({backoff(5, jitter) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("error", "attempt", "outcome"),
    [
        (TransientError("x"), 1, Outcome.RETRY),
        (TransientError("x"), MAX_ATTEMPTS - 1, Outcome.RETRY),
        (TransientError("x"), MAX_ATTEMPTS, Outcome.GAVE_UP),
        (PermanentError("x"), 1, Outcome.GAVE_UP),
    ],
)
def test_what_becomes_of_a_failure(error: Exception, attempt: int, outcome: Outcome) -> None:
    assert outcome_of(error, attempt) is outcome
