"""Asks the workers for a task."""

from __future__ import annotations

from celery import Celery
from kombu.exceptions import OperationalError

from egress.adapters.ledger import Ledger
from egress.messages import queue_of, sending_config
from egress.operations import TransientError
from egress.settings import Settings

GUARD_SECONDS = 15.0
"""How long nobody else asks for the same, unless it has been worked on by then."""


class Asker:
    """Puts tasks into the workers' queues, each once until somebody works on it."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._ledger = ledger
        self._celery = Celery("hawse-api-actions", set_as_current=False)
        self._celery.conf.update(sending_config(settings.redis_url))

    def __call__(self, task: str, *arguments: str) -> None:
        """Asks for a task. TransientError if that cannot be done now."""
        what = ":".join((task, *arguments))
        if not self._ledger.first_to(what, GUARD_SECONDS):
            return
        try:
            self._celery.send_task(task, args=list(arguments), queue=queue_of(task), retry=False)
        except (OperationalError, OSError) as error:
            self._ledger.done_with(what)  # nothing waits: the next ask must not believe so
            raise TransientError(f"the broker is away: {error}") from error
