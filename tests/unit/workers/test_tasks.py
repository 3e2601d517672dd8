"""What becomes of a task that cannot be sent."""

import socket
import time

import pytest

from egress.messages import NUDGE_TASK, PUBLISH_TASK
from egress.operations import TransientError
from workers.tasks import sender


@pytest.mark.parametrize("task", [NUDGE_TASK, PUBLISH_TASK])
def test_a_broker_that_is_away_is_an_error_that_may_pass(task: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        send = sender(f"redis://127.0.0.1:{unused.getsockname()[1]}/0")
        before = time.monotonic()
        with pytest.raises(TransientError, match="the broker is away"):
            send(task, [], "control")
        assert time.monotonic() - before < 5
