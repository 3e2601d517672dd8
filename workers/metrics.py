"""What the workers' processes count and measure. Names, labels and units are explained in docs/operator.md."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from egress.messages import (
    FAILOVER_TASK,
    NAMESPACE_TASK,
    PLACE_TASK,
    PUBLISH_TASK,
    RECONCILE_TASK,
    SWEEP_TASK,
    TICKETS_TASK,
)
from egress.operations import Outcome

task_attempts = Counter(
    "hawse_task_attempts_total",
    "Attempts of tasks, by how they ended: done, to be tried again (retry), or given up (gave_up).",
    ["task", "outcome"],
)
task_duration = Histogram(
    "hawse_task_duration_seconds",
    "How long one attempt of a task took.",
    ["task"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
nodes_lost = Counter("hawse_nodes_lost_total", "How often a node was found to be lost.")
failover_duration = Histogram(
    "hawse_failover_duration_seconds",
    "From a lost node's last heartbeat until an address of it was carried by another node.",
    buckets=(0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10, 15, 30, 60, 120, 300),
)
watch_events = Counter("hawse_watch_events_total", "Changes of objects that the watch was told of.", ["kind"])
watch_restarts = Counter("hawse_watch_restarts_total", "Watches that broke or had to begin with a new list.", ["kind"])
leader = Gauge("hawse_leader", "1 where this process leads, 0 where it stands by.", ["component"])
certificate_expiry = Gauge(
    "hawse_certificate_expiry_timestamp_seconds",
    "When a certificate of the webhook ends, in seconds since the epoch.",
    ["certificate"],
)
tickets = Counter(
    "hawse_tickets_total",
    "What was told to a ticket system, by how that ended: done, to be tried again (retry), or given up (gave_up).",
    ["profile", "event", "outcome"],
)
ticket_duration = Histogram(
    "hawse_ticket_call_duration_seconds",
    "How long it took to tell a ticket system one thing.",
    ["profile"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


def _label(task: str) -> str:
    return task.rpartition(".")[2]


def outcome_label(outcome: Outcome) -> str:
    """How an outcome is written in a label."""
    return outcome.value.replace("-", "_")


def begin_tasks() -> None:
    """Shows every task's counters from the beginning, at 0: an increase from nothing is none to Prometheus."""
    for task in (NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, SWEEP_TASK, FAILOVER_TASK, TICKETS_TASK):
        task_duration.labels(_label(task))
        for outcome in Outcome:
            task_attempts.labels(_label(task), outcome_label(outcome))


@dataclass
class Attempt:
    """One attempt under way; what nobody sets otherwise was given up, and None is not counted."""

    outcome: Outcome | None = Outcome.GAVE_UP


@contextmanager
def attempt(task: str) -> Iterator[Attempt]:
    """Measures one attempt of a task."""
    began, measured = time.monotonic(), Attempt()
    try:
        yield measured
    finally:
        if measured.outcome is not None:
            task_duration.labels(_label(task)).observe(time.monotonic() - began)
            task_attempts.labels(_label(task), outcome_label(measured.outcome)).inc()
