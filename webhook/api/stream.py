"""Server-sent events: whoever listens hears that something is different, and asks for what he shows.

An event says no more than that, so it tells nobody what he may not see, and one that is missed costs nothing. However
many listen, one thread looks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from egress.operations import TransientError

LOOK_SECONDS = 0.5
ALIVE_SECONDS = 10.0
"""How long a stream is silent at most: a write is how a listener that has gone is found out."""
STREAM_SECONDS = 300.0
"""How long a stream lasts: whoever comes back is asked anew who he is."""


class FullError(TransientError):
    """As many listen as may."""


class Pulse:
    """Notices when what `look` gives is different. At most `most` listen; `leaving` ends their streams."""

    def __init__(self, look: Callable[[], object], most: int, leaving: Callable[[], bool]) -> None:
        self._look = look
        self._most = most
        self._leaving = leaving
        self._changed = threading.Condition()
        self._seen: object = None
        self._number = 0
        self._listening = 0
        self._thread: threading.Thread | None = None

    def listen(self) -> Stream:
        """A stream that begins with an event. FullError if too many listen. Whoever gets one closes it."""
        with self._changed:
            if self._listening >= self._most:
                raise FullError(f"{self._most} are listening already: ask again in a moment, or read without a stream")
            self._listening += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return Stream(self)

    def wait(self, number: int, seconds: float) -> int | None:
        """The number of the latest change once it is not `number`; `number` if nothing changes within `seconds`; None
        if the process ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._number != number or self._leaving(), seconds)
            return None if self._leaving() else self._number

    def left(self) -> None:
        """Somebody listens no more."""
        with self._changed:
            self._listening -= 1

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._listening > 0)
            seen = self._look()
            with self._changed:
                if seen != self._seen or self._number == 0:
                    self._seen = seen
                    self._number += 1
                    self._changed.notify_all()
                elif self._leaving():
                    self._changed.notify_all()
            time.sleep(LOOK_SECONDS)


class Stream:
    """The body of an answer. Closed even if nobody ever read of it, which a generator would not be."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._number = 0
        self._until = time.monotonic() + STREAM_SECONDS
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._closed or time.monotonic() > self._until:
            raise StopIteration
        number = self._pulse.wait(self._number, ALIVE_SECONDS)
        if number is None:
            raise StopIteration
        if number == self._number:
            return b": nothing\n\n"
        self._number = number
        return f"event: change\nid: {number}\nretry: 2000\ndata: {{}}\n\n".encode()

    def close(self) -> None:
        """Ends it."""
        if not self._closed:
            self._closed = True
            self._pulse.left()
