"""What the webhook counts."""

from __future__ import annotations

import time
from functools import cache

from prometheus_client import Counter, Histogram

from webhook.review import Outcome

_REQUESTS = Counter(
    "hawse_admission_requests",
    "Admission requests answered. webhook is mutating or validating.",
    ["webhook", "resource", "operation", "outcome"],
)
_DURATION = Histogram(
    "hawse_admission_duration_seconds",
    "Time from the request's body to the answer's.",
    ["webhook", "resource"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)


_requests = cache(_REQUESTS.labels)
_durations = cache(_DURATION.labels)
OPERATIONS = ("CREATE", "UPDATE", "DELETE")
for _outcome in Outcome:  # so that the series are there before the first request
    _REQUESTS.labels("mutating", "namespaces", "CREATE", _outcome.value)


class Observation:
    """One admission request, counted when it is answered. `webhook` is mutating or validating."""

    def __init__(self, webhook: str, resource: str) -> None:
        self._labels = (webhook, resource)
        self._began = time.perf_counter()

    def answered(self, operation: str, outcome: Outcome) -> None:
        """Counts it. An `operation` that is none, as of a request that could not be read, is counted as empty."""
        _durations(*self._labels).observe(time.perf_counter() - self._began)
        _requests(*self._labels, operation if operation in OPERATIONS else "", outcome.value).inc()
