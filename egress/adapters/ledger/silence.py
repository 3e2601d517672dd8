"""What becomes of calls while Redis does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

T = TypeVar("T")


class Silence:
    """Has one call at a time wait for a Redis that does not answer; the others fail at once.

    A call that ended for want of an answer in time makes Redis silent. From then on one caller at a time goes and
    looks. Any answer ends the silence, an error too; so does a connection that is refused, which keeps nobody waiting.
    """

    def __init__(self) -> None:
        self._silent = False
        self._looking = threading.Lock()

    def ask(self, call: Callable[..., T], *arguments: object) -> T:
        """What `call` gives for these arguments. RedisConnectionError, and it is not called, while Redis is silent and
        somebody else looks."""
        looks = self._silent
        if looks and not self._looking.acquire(blocking=False):
            raise RedisConnectionError("it did not answer a moment ago, and somebody waits for it")
        try:
            answer = call(*arguments)
            self._silent = False
        except RedisError as error:
            self._silent = isinstance(error, RedisTimeoutError)
            raise
        finally:
            if looks:
                self._looking.release()
        return answer
