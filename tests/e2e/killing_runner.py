"""A node runner that kills itself at a given point: `POINT` is DRIVER.METHOD:before|after:N, the N-th call of it.

Run inside the lab in place of the real runner. It is the real runner, with each driver behind a counter.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import node_runner.__main__ as entry
from node_runner.drivers import open_node
from node_runner.drivers.ports import Node


class Killing:
    """A driver whose process dies when the point is reached."""

    def __init__(self, name: str, driver: object, point: str) -> None:
        self._name = name
        self._driver = driver
        self._call, self._when, number = point.split(":")
        self._left = int(number)

    def __getattr__(self, method: str) -> Any:  # noqa: ANN401
        real = getattr(self._driver, method)
        if f"{self._name}.{method}" != self._call:
            return real

        def counted(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            self._left -= 1
            if self._left == 0 and self._when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **options)
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted


def killing_node(*arguments: Any, **options: Any) -> Node:  # noqa: ANN401
    real = open_node(*arguments, **options)
    point = sys.argv.pop(1)
    names = ("flows", "nat", "links", "arp", "conntrack")
    return Node(**{name: Killing(name, getattr(real, name), point) for name in names})  # type: ignore[arg-type]


if __name__ == "__main__":
    entry.open_node = killing_node  # type: ignore[attr-defined]
    entry.main(sys.argv[2:])
