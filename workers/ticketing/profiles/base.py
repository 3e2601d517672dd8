"""What a ticket profile must do.

A new one is a module here, a type in `egress.ticket_profiles`, and a line in `workers.ticketing.profiles.make`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from egress.objects import Decision, Ticket
from egress.tickets import Notice, Receipt
from workers.ticketing.errors import TicketAwayError

__all__ = ["TicketAwayError", "TicketSystem"]


class TicketSystem(ABC):
    """One ticket system, as one profile describes it. Used by several threads at a time."""

    @abstractmethod
    def tell(self, notice: Notice, *, resumed: bool) -> Receipt:
        """Tells the system of `notice`, and gives what it calls the ticket.

        `resumed`: somebody may have told it already, and have died before he could say so. It must then find out, or
        say it in a way that the system takes for the same: nothing is ever filed twice. TicketAwayError if it may
        succeed later, PermanentError if it never will. No message of an error may hold a credential.
        """

    def decisions(self, tickets: Mapping[str, Ticket]) -> Iterable[tuple[str, Decision | None]]:
        """What the system has decided of `tickets`, by their keys; None: nothing, or nothing any more. Asked only of a
        system whose profile polls. A key that is missing is one of which the system said nothing.

        Each is given as soon as it is known: what the system says is not lost if it fails later, and whoever asks may
        stop."""
        return ()

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Gives back connections."""
