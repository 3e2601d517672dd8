"""What the API counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from webhook.api.mirrors import Mirrors

requests = Counter("hawse_api_requests", "Requests answered, by the part of the API that did.", ["part", "status"])
_current = Gauge(
    "hawse_api_mirror_current",
    "1 while the API hears of changes of this kind; 0: what it knows may be old, or it knows nothing yet.",
    ["kind"],
)


def watch(mirrors: Mirrors) -> None:
    """Shows of each mirror whether it is kept up."""
    for mirror in mirrors.all:
        _current.labels(mirror.kind.label).set_function(mirror.current)
