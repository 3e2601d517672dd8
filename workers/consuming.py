"""Whether this worker takes tasks from the broker, as Celery's consumer itself says."""

from __future__ import annotations

from typing import Any

from celery.signals import worker_ready, worker_shutting_down

from egress.adapters.ledger import Ledger
from egress.health import Pulse
from egress.operations import TransientError

PULSE_SECONDS = 5.0
STUCK_SECONDS = 60.0


class Consumption:
    """Follows the one worker of this process. A worker that lost the broker is alive, and not ready."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._consumer: Any = None
        self._ending = False
        self._pulse = Pulse("the worker's loop", STUCK_SECONDS)
        worker_ready.connect(self._begin, weak=False)
        worker_shutting_down.connect(self._end, weak=False)

    def ready(self) -> str | None:
        """A verdict: the worker has a connection to the broker, consumes from it, and Redis answers."""
        if self._ending:
            return "the worker is ending"
        if not self._connected():
            return "the worker does not consume from the broker"
        try:
            self._ledger.ping()
        except TransientError as error:
            return str(error)
        return None

    def alive(self) -> str | None:
        """A verdict: the loop that takes tasks comes round. While it waits for a broker that is away, that is fine."""
        if not self._connected():
            self._pulse.beat()
        return self._pulse.verdict()

    def _connected(self) -> bool:
        consumer = self._consumer
        connection = getattr(consumer, "connection", None)
        return bool(getattr(consumer, "task_consumer", None) and connection is not None and connection.connected)

    def _begin(self, sender: Any, **_: object) -> None:  # noqa: ANN401 - Celery has no type for it
        self._consumer = sender
        self._pulse.beat()
        sender.timer.call_repeatedly(PULSE_SECONDS, self._pulse.beat)

    def _end(self, **_: object) -> None:
        self._ending = True
