"""How many there are of what: counted by whoever publishes, kept in Redis, shown by every worker alike.

A worker that counted for itself would go on showing what was so when it last happened to publish.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from egress.adapters.ledger import Census, Ledger, Offer
from egress.addresses import Address
from egress.messages import PUBLISH_TASK
from egress.objects import EgressAddress, Phase
from egress.operations import TransientError
from egress.stock import Stock
from workers import pooling
from workers.context import Context

_log = structlog.get_logger()
EVERY_SECONDS = 1.0
STATES = ("reserved", "claimed", "quarantined")


def take(context: Context, claims: Sequence[EgressAddress], conflicts: int) -> None:
    """Counts, for the metrics and the status of the pools; unless somebody has just done so: then the next publishing
    does, which is asked for. The census is gone again when nobody counts for four reconciles.

    A ledger that cannot be counted, as while its index is rebuilt, is let be: a count is only news.
    """
    every = min(EVERY_SECONDS, context.settings.status_interval)
    try:
        if not context.ledger.is_ready():
            return
        if not context.ledger.first_to("census", every):
            context.ask(PUBLISH_TASK, delay=every)
            return
        usage, offer = context.ledger.usage(), context.ledger.offer()
        census = count(claims, conflicts, usage, offer)
        context.ledger.keep_census(census, _kept_seconds(context))
        pooling.report(context, claims, usage, offer)
    except TransientError as error:
        _log.info("no census", error=str(error))


def keep(context: Context) -> None:
    """The last census is still true: nothing has changed since. Without one, publishing takes another."""
    if not context.ledger.prolong_census(_kept_seconds(context)):
        context.ask(PUBLISH_TASK)


def _kept_seconds(context: Context) -> float:
    return max(60.0, 4 * context.settings.reconcile_interval)


def count(
    claims: Iterable[EgressAddress], conflicts: int, usage: Mapping[Address, tuple[str, str]], offer: Offer
) -> Census:
    """The census of these claims, conflicts, addresses in use and pools. Pure."""
    phases = Counter(claim.phase.value for claim in claims)
    states = Counter(state for state, _ in usage.values())
    by_pool = {
        name: {"free": held.free, "allocated": held.allocated, "quarantined": held.quarantined}
        for name, held in Stock.of(offer.pools, offer.withheld).counts(usage).items()
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
