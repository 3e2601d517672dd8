"""What the last runs have left, as metrics: the same in every process of `hawse-tickets`."""

from __future__ import annotations

from collections.abc import Iterator

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from egress.adapters.ledger import Ledger
from egress.operations import TransientError

_log = structlog.get_logger()
_GAUGES = (
    ("hawse_tickets_due", "What a ticket system is still to be told of.", "due"),
    ("hawse_tickets_failed", "What could not be told, and waits for somebody.", "failed"),
    ("hawse_ticket_breaker_open", "1 while a ticket system is taken for dead.", "breaker_open"),
    (
        "hawse_ticket_release_overdue_seconds",
        "For how long an address has been kept beyond its quarantine, because its release could not be told.",
        "overdue",
    ),
)


class TicketCollector(Collector):
    """Reads what runs have left within `seconds` when it is scraped. Without Redis there is none."""

    def __init__(self, ledger: Ledger, seconds: float) -> None:
        self._ledger = ledger
        self._seconds = seconds

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See Collector."""
        try:
            censuses = self._ledger.ticket_censuses(self._seconds)
        except TransientError as error:
            _log.warning("the tickets cannot be counted", error=str(error))
            return
        for name, text, attribute in _GAUGES:
            family = GaugeMetricFamily(name, text, labels=["profile"])
            for profile, census in censuses.items():
                family.add_metric([profile], float(getattr(census, attribute)))
            yield family

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: else registering it would ask Redis."""
        return iter(())
