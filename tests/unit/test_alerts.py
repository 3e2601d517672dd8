"""The alerts speak of metrics that the processes have, by labels and values that these have."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.core import CollectorRegistry

import node_runner.metrics  # noqa: F401 - each of the three registers what it has
import webhook.metrics  # noqa: F401
import workers.metrics  # noqa: F401
from egress.adapters.ledger import Offer, TicketCensus
from egress.adapters.ledger.coordination import Census
from egress.operations import Outcome
from webhook.review import Outcome as Answer
from workers.census import CensusCollector, count
from workers.ticketing.census import TicketCollector

RULES = Path(__file__).parents[2] / "deploy" / "components" / "monitoring" / "rules.yaml"
FROM_CENSUS = {"hawse_assignments", "hawse_reservations", "hawse_pool_addresses", "hawse_conflicts"}
"""What a worker's collector reads from Redis when it is asked, workers/census.py."""
FROM_TICKETS = {
    "hawse_tickets_due",
    "hawse_tickets_failed",
    "hawse_ticket_breaker_open",
    "hawse_ticket_release_overdue_seconds",
}
"""What the collector of `hawse-tickets` reads, workers/ticketing/census.py."""


def expressions() -> list[tuple[str, str]]:
    groups = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    return [(rule["alert"], str(rule["expr"])) for group in groups for rule in group["rules"]]


def registered(registry: CollectorRegistry = REGISTRY) -> set[str]:
    return set(registry._names_to_collectors) | FROM_CENSUS | FROM_TICKETS


@pytest.mark.parametrize(("alert", "expression"), expressions())
def test_every_metric_of_an_alert_exists(alert: str, expression: str) -> None:
    names = set(re.findall(r"\bhawse_\w+", expression))
    assert names, alert
    assert names <= registered(), f"{alert} waits for what nobody measures"


def test_the_census_is_what_the_worker_shows() -> None:
    class Ledger:
        def census(self) -> Census:
            return count([], 0, {}, Offer((), frozenset()))

    shown: Any = CensusCollector(Ledger())  # type: ignore[arg-type]
    assert {family.name for family in shown.collect()} == FROM_CENSUS


def test_what_runs_for_tickets_have_left_is_what_is_shown() -> None:
    class Ledger:
        def ticket_censuses(self, seconds: float) -> dict[str, TicketCensus]:
            assert seconds == 60
            return {"fw": TicketCensus(3, 2, 7.0, breaker_open=True)}

    shown: Any = TicketCollector(Ledger(), 60)  # type: ignore[arg-type]
    values = {family.name: [(sample.labels, sample.value) for sample in family.samples] for family in shown.collect()}
    assert values.keys() == FROM_TICKETS
    assert values["hawse_ticket_breaker_open"] == [({"profile": "fw"}, 1.0)]
    assert values["hawse_tickets_due"] == [({"profile": "fw"}, 3.0)]


def test_outcomes_in_alerts_are_outcomes() -> None:
    known = {outcome.value.replace("-", "_") for outcome in (*Outcome, *Answer)}
    for alert, expression in expressions():
        for values in re.findall(r'outcome=~?"([^"]*)"', expression):
            assert set(values.split("|")) <= known, alert
