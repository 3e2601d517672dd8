"""What becomes of a task that cannot be sent."""

import socket
import time

import pytest

from egress.messages import NUDGE_TASK, PUBLISH_TASK
from egress.operations import TransientError
from workers.tasks import rest_after, sender


@pytest.mark.parametrize("task", [NUDGE_TASK, PUBLISH_TASK])
def test_a_broker_that_is_away_is_an_error_that_may_pass(task: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        send = sender(f"redis://127.0.0.1:{unused.getsockname()[1]}/0")
        before = time.monotonic()
        with pytest.raises(TransientError, match="the broker is away"):
            send(task, [], "control")
        assert time.monotonic() - before < 5


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
