"""Closing packet sockets without waiting for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


@contextmanager
def closed_aside(opened: T) -> Iterator[T]:
    """`opened`, which another thread closes afterwards. To close a packet socket takes the kernel an RCU grace period,
    8 to 16 ms in which it only waits: as long as all else that one more address costs a node."""
    try:
        yield opened
    finally:
        threading.Thread(target=opened.close, name="closing", daemon=True).start()
