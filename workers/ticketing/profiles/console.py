"""The profile `console`: each notice is a line of the log, for demonstrations."""

from __future__ import annotations

import hashlib

import structlog

from egress.tickets import Notice, Receipt
from workers.ticketing.profiles import text
from workers.ticketing.profiles.base import TicketSystem


class ConsoleSystem(TicketSystem):
    """The log. Its tickets have references, the same whenever one is told again."""

    def __init__(self, name: str) -> None:
        self._log = structlog.get_logger().bind(profile=name)

    def tell(self, notice: Notice, *, resumed: bool) -> Receipt:
        """Writes the line."""
        reference = f"console-{hashlib.sha256(notice.key.encode()).hexdigest()[:8]}"
        self._log.info(
            "ticket",
            text=text.title(notice, text.LONGEST),
            reference=reference,
            **{
                name: value for name, value in text.data(notice).items() if value and name not in ("event", "reference")
            },
            told=notice.event.value,
            notice=notice.id,
            resumed=resumed,
        )
        return Receipt(reference, handle=reference)
