"""How many there are of what: counted by whoever publishes, kept in Redis, shown by every worker alike.

A worker that counted for itself would go on showing what was so when it last happened to publish.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from egress import pools
from egress.adapters.ledger import Census, Ledger, Offer
from egress.addresses import Address
from egress.objects import EgressAddress, Phase
from egress.operations import TransientError
from workers.context import Context

_log = structlog.get_logger()
EVERY_SECONDS = 5.0
STATES = ("reserved", "claimed", "quarantined")


def take(context: Context, claims: Iterable[EgressAddress], conflicts: int) -> None:
    """Counts, unless somebody has just done so. It is gone again when nobody counts for four reconciles.

    A ledger that cannot be counted, as while its index is rebuilt, is let be: a count is only news.
    """
    try:
        if context.ledger.is_ready() and context.ledger.first_to("census", EVERY_SECONDS):
            census = count(claims, conflicts, context.ledger.usage(), context.ledger.offer())
            context.ledger.keep_census(census, max(60.0, 4 * context.settings.reconcile_interval))
    except TransientError as error:
        _log.info("no census", error=str(error))


def count(
    claims: Iterable[EgressAddress], conflicts: int, usage: Mapping[Address, tuple[str, str]], offer: Offer
) -> Census:
    """The census of these claims, conflicts, addresses in use and pools. Pure."""
    phases = Counter(claim.phase.value for claim in claims)
    states = Counter(state for state, _ in usage.values())
    by_pool: dict[str, dict[str, int]] = {}
    for pool in offer.pools:
        pieces = pools.ranges(pool, offer.node_ips)
        held = Counter(state for address, (state, _) in usage.items() if any(address in piece for piece in pieces))
        size = sum(piece.size for piece in pieces)
        by_pool[pool.name] = {
            "free": size - held.total(),
            "allocated": held["reserved"] + held["claimed"],
            "quarantined": held["quarantined"],
        }
    return Census(
        {phase.value: phases[phase.value] for phase in Phase},
        {state: states[state] for state in STATES},
        by_pool,
        conflicts,
    )


class CensusCollector(Collector):
    """Reads the census when it is scraped. Without Redis, or without a census lately, there is none."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See Collector."""
        try:
            census = self._ledger.census()
        except TransientError as error:
            _log.warning("the census cannot be read", error=str(error))
            return
        if census is None:
            return
        assignments = GaugeMetricFamily("hawse_assignments", "EgressAddresses, by phase.", labels=["phase"])
        for phase, number in census.assignments.items():
            assignments.add_metric([phase], number)
        yield assignments
        reservations = GaugeMetricFamily("hawse_reservations", "Addresses in use, by state.", labels=["state"])
        for state, number in census.reservations.items():
            reservations.add_metric([state], number)
        yield reservations
        in_pools = GaugeMetricFamily("hawse_pool_addresses", "Addresses of a pool, by state.", labels=["pool", "state"])
        for pool, states in census.pools.items():
            for state, number in states.items():
                in_pools.add_metric([pool, state], number)
        yield in_pools
        yield GaugeMetricFamily("hawse_conflicts", "Contradictions between objects.", value=census.conflicts)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: else registering it would ask Redis."""
        return iter(())
