"""Whether Hawse's automation is paused: an annotation on Hawse's own namespace says so, and who did it and why.

It is an object's, so that a flush of Redis does not resume what somebody has stopped, and `kubectl annotate` is enough.
"""

from __future__ import annotations

import time

from egress.adapters.cluster import Cluster, Kind, NotFoundError
from egress.objects import PAUSED_ANNOTATION

LOOK_SECONDS = 1.0
"""For how long what was read last counts."""


def paused(cluster: Cluster, namespace: str) -> str:
    """What the annotation on `namespace` says; "" if the automation is not paused."""
    manifest = cluster.get(Kind.NAMESPACE, namespace)
    return str(((manifest or {}).get("metadata", {}).get("annotations") or {}).get(PAUSED_ANNOTATION, ""))


def pause(cluster: Cluster, namespace: str, why: str) -> None:
    """Pauses the automation. `why` names who did it, and must not be empty."""
    _write(cluster, namespace, why)


def resume(cluster: Cluster, namespace: str) -> None:
    """Ends the pause, if there is one."""
    _write(cluster, namespace, None)


def _write(cluster: Cluster, namespace: str, text: str | None) -> None:
    try:
        cluster.patch(Kind.NAMESPACE, namespace, {"metadata": {"annotations": {PAUSED_ANNOTATION: text}}})
    except NotFoundError:
        raise NotFoundError(f"there is no namespace {namespace}: HAWSE_NAMESPACE names Hawse's own") from None


class Pause:
    """What a process knows of the pause: it asks once in LOOK_SECONDS at most. Several threads may ask."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._seen = (float("-inf"), "")

    def why(self) -> str:
        """Who has paused the automation, and why; "" while it runs. TransientError if that cannot be known."""
        at, text = self._seen
        if time.monotonic() - at > LOOK_SECONDS:
            text = paused(self._cluster, self._namespace)
            self._seen = (time.monotonic(), text)
        return text
