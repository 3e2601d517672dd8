"""The runner asks the workers to look at its report."""

import socket
from typing import Any

import pytest
from celery import Celery

from egress.messages import PUBLISH_TASK, sending_config
from egress.operations import TransientError
from node_runner.__main__ import tell


class _Ledger:
    """In place of the ledger: what is asked for and not done."""

    def __init__(self) -> None:
        self.pending: set[str] = set()

    def first_to(self, what: str, _: float) -> bool:
        new = what not in self.pending
        self.pending.add(what)
        return new

    def done_with(self, what: str) -> None:
        self.pending.discard(what)


def test_a_broker_that_is_away_is_an_error_that_may_pass_and_the_next_ask_is_made() -> None:
    ledger: Any = _Ledger()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        app = Celery("test")
        app.conf.update(sending_config(f"redis://127.0.0.1:{unused.getsockname()[1]}/0"))
        for _ in range(2):
            with pytest.raises(TransientError, match="the broker is away"):
                tell(app, ledger, PUBLISH_TASK)
