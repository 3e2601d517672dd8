"""The profile `address-list`: no ticket; the firewall polls the lists that `hawse-api` serves."""

from __future__ import annotations

from egress.tickets import Notice, Receipt
from workers.ticketing.profiles.base import TicketSystem


class AddressListSystem(TicketSystem):
    """Nobody: the list says it all."""

    def tell(self, notice: Notice, *, resumed: bool) -> Receipt:
        """Tells nothing, and has no ticket."""
        return Receipt()
