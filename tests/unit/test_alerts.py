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
from egress.adapters.ledger import Offer
from egress.adapters.ledger.coordination import Census
from egress.operations import Outcome
from webhook.review import Outcome as Answer
from workers.census import CensusCollector, count

RULES = Path(__file__).parents[2] / "deploy" / "components" / "monitoring" / "rules.yaml"
FROM_CENSUS = {"hawse_assignments", "hawse_reservations", "hawse_pool_addresses", "hawse_conflicts"}
"""What a worker's collector reads from Redis when it is asked, workers/census.py."""


def expressions() -> list[tuple[str, str]]:
    groups = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    return [(rule["alert"], str(rule["expr"])) for group in groups for rule in group["rules"]]


def registered(registry: CollectorRegistry = REGISTRY) -> set[str]:
    return set(registry._names_to_collectors) | FROM_CENSUS


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


def test_outcomes_in_alerts_are_outcomes() -> None:
    known = {outcome.value.replace("-", "_") for outcome in (*Outcome, *Answer)}
    for alert, expression in expressions():
        for values in re.findall(r'outcome=~?"([^"]*)"', expression):
            assert set(values.split("|")) <= known, alert
