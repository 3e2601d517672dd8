"""How telling a ticket system fails, beside other kinds of `egress.operations.PermanentError`."""

from __future__ import annotations

from egress.operations import PermanentError, TransientError


class TicketAwayError(TransientError):
    """The system is away, slow, overloaded or failing: the same may succeed later. `retry_after` is in seconds: nobody
    may try again before, be it that the system asks for it, or that it may have taken what it did not answer, and a
    search would not show it yet. None: the usual backoff."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReachedError(TicketAwayError):
    """The system cannot even be connected to, or its credentials not be read: it has surely received nothing."""


class GoneError(PermanentError):
    """The system has nothing there, or not any more: somebody may have deleted it."""
