"""Kubernetes Events, written by a thread of their own: work does not wait for what is only news, nor does a burst of it
keep the API server from the work."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from egress.adapters.cluster import Cluster
from egress.operations import PermanentError, TransientError

_log = structlog.get_logger()
AT_ONCE, PER_SECOND = 50, 25.0
"""How many are written without a pause, and how many in a second after that."""
MOST = 10_000
"""How many wait at most: then the oldest is let go."""


@dataclass(frozen=True, slots=True)
class Item:
    """An Event about a namespace."""

    namespace: str
    uid: str
    reason: str
    message: str
    warning: bool


def write(cluster: Cluster, item: Item) -> None:
    """Writes the Event; one that cannot be written is let go, for it is only news."""
    try:
        about = {"name": item.namespace, "uid": item.uid}
        cluster.event(about, item.reason, item.message, warning=item.warning)
    except (TransientError, PermanentError) as error:
        _log.warning("event not written", namespace=item.namespace, reason=item.reason, error=str(error))


class News:
    """What waits to be written: warnings first, each in its order. A process that ends takes it along.

    The thread begins with the first of it: one that is there before a process has said how it takes its signals would
    get them.
    """

    def __init__(self, cluster: Cluster, sleep: Callable[[float], None] = time.sleep) -> None:
        self._cluster = cluster
        self._sleep = sleep
        self._warnings: deque[Item] = deque(maxlen=MOST)
        self._waiting: deque[Item] = deque(maxlen=MOST)
        self._came = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def tell(self, item: Item) -> None:
        """Has it written soon."""
        waiting = self._warnings if item.warning else self._waiting
        if len(waiting) == MOST:
            _log.warning("event not written", namespace=waiting[0].namespace, error="too many wait")
        waiting.append(item)
        self._came.release()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="news", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        left, since = float(AT_ONCE), time.monotonic()
        while True:
            self._came.acquire()
            now = time.monotonic()
            left, since = min(AT_ONCE, left + PER_SECOND * (now - since)), now
            if left < 1:
                self._sleep((1 - left) / PER_SECOND)
            left -= 1
            waiting = self._warnings or self._waiting
            if waiting:  # else it was let go
                write(self._cluster, waiting.popleft())
