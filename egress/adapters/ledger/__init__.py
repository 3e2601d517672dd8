"""The ledger in Redis: reservations, the nodes' table with its change log, what the nodes report, the history.

All of it but the history can be rebuilt from the cluster's objects and the nodes' reports, at any moment.
"""

from __future__ import annotations

from egress.adapters.ledger.admitting import Admitting, Hint
from egress.adapters.ledger.arrivals import Arrivals, Promise, Standing
from egress.adapters.ledger.audit import AuditTrail
from egress.adapters.ledger.connection import LedgerAwayError, NotReadyError
from egress.adapters.ledger.coordination import BusyError, Census, Coordination
from egress.adapters.ledger.inspections import Inspections
from egress.adapters.ledger.lists import FirstSeen, Lists
from egress.adapters.ledger.liveness import Beat, Liveness
from egress.adapters.ledger.reservations import (
    REQUEST_PREFIX,
    Exhausted,
    Held,
    Holding,
    Offer,
    Reserved,
    holder_of,
    manual_holder,
    name_holder,
    node_holder,
    request_holder,
)
from egress.adapters.ledger.retry_runs import RetryRuns
from egress.adapters.ledger.table import Table, TableRead
from egress.adapters.ledger.ticketing import Breaker, TicketCensus, Ticketing, Turn, Waiting

__all__ = [
    "REQUEST_PREFIX",
    "Beat",
    "Breaker",
    "BusyError",
    "Census",
    "Exhausted",
    "FirstSeen",
    "Held",
    "Hint",
    "Holding",
    "Ledger",
    "LedgerAwayError",
    "NotReadyError",
    "Offer",
    "Promise",
    "Reserved",
    "Standing",
    "TableRead",
    "TicketCensus",
    "Turn",
    "Waiting",
    "holder_of",
    "manual_holder",
    "name_holder",
    "node_holder",
    "request_holder",
]


class Ledger(Admitting, Arrivals, Table, Liveness, Coordination, Lists, Ticketing, AuditTrail, Inspections, RetryRuns):
    """All of the ledger, over one connection."""
