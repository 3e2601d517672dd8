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
YIELD_SECONDS, LOOK_SECONDS = 30.0, 0.5
"""For how long one that is no warning waits while many namespaces wait for their tasks, and how often that is looked
at."""
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

    def __init__(
        self,
        cluster: Cluster,
        crowded: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cluster = cluster
        self._crowded = crowded
        self._sleep = sleep
        self._warnings: deque[Item] = deque(maxlen=MOST)
        self._waiting: deque[tuple[float, Item]] = deque(maxlen=MOST)
        self._came = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def tell(self, item: Item) -> None:
        """Has it written soon."""
        if len(self._warnings if item.warning else self._waiting) == MOST:
            first = self._warnings[0] if item.warning else self._waiting[0][1]
            _log.warning("event not written", namespace=first.namespace, error="too many wait")
        if item.warning:
            self._warnings.append(item)
        else:
            self._waiting.append((time.monotonic(), item))
        self._came.release()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="news", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        left, since = float(AT_ONCE), time.monotonic()
        while True:
            self._came.acquire()
            self._yield()
            now = time.monotonic()
            left, since = min(AT_ONCE, left + PER_SECOND * (now - since)), now
            if left < 1:
                self._sleep((1 - left) / PER_SECOND)
            left -= 1
            if self._warnings:
                write(self._cluster, self._warnings.popleft())
            elif self._waiting:  # else it was let go
                write(self._cluster, self._waiting.popleft()[1])

    def _yield(self) -> None:
        """Waits while others need the API server more than what is well to be told."""
        while not self._warnings and self._waiting and time.monotonic() - self._waiting[0][0] < YIELD_SECONDS:
            try:
                if not self._crowded():
                    return
            except TransientError:
                return
            self._sleep(LOOK_SECONDS)
