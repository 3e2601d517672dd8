"""Pages that are made once for all who would be shown the same: two hundred people look at one page as one does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

KEPT = 256


@dataclass
class _Print:
    """One page: the text that was made last, of which edition, and whoever makes it now."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    edition: object = None
    text: str | None = None


class Printed:
    """Keeps what was made of each page, at most KEPT of them. Several threads may ask: one makes, the others wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._prints: dict[Hashable, _Print] = {}

    def get(self, key: Hashable, edition: Callable[[], object], make: Callable[[], str]) -> str:
        """The text of `key`, if `edition` is what it was when it was made, and else what `make` gives now."""
        with self._lock:
            kept = self._prints.pop(key, None) or _Print()
            self._prints[key] = kept  # the latest is the last
            if len(self._prints) > KEPT:
                del self._prints[next(iter(self._prints))]
        with kept.lock:
            now = edition()  # read before it is made: what changes meanwhile makes it an old one
            if kept.text is None or kept.edition != now:
                kept.text = make()
                kept.edition = now
            return kept.text
