"""redis-py's client, with a connection for each thread."""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from egress.adapters.ledger.silence import Silence

_BROKEN = (RedisConnectionError, RedisTimeoutError)


class Client(redis.Redis):
    """A client whose commands and scripts go over a connection of the calling thread's own; pipelines by the pool.

    redis-py takes a connection from its pool for each command, asks the kernel whether it is still good, tells its
    observers, and puts it back: more than the command itself costs. What that look finds, that the server has closed it
    meanwhile, the command finds too: what breaks or is late is tried once more, over a new connection, as redis-py
    does.

    With a `silence` its commands and scripts heed that. Pipelines do not: each of them waits by itself.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as redis-py has it
        super().__init__(*arguments, **options)
        self.silence: Silence | None = None
        self._own = threading.local()
        self._links: WeakSet[Any] = WeakSet()
        self._lock = threading.Lock()

    def execute_command(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as redis-py has it
        """See redis-py: what the server answers, read as this command's answers are."""
        if self.silence is None:
            return self._twice(arguments, options)
        return self.silence.ask(self._twice, arguments, options)

    def close(self) -> None:
        """Closes the connections of all threads. Whoever uses one later opens it again."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.disconnect()
        super().close()

    def _twice(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401 - as above
        link = self._link()
        try:
            return self._asked(link, arguments, options)
        except _BROKEN:
            return self._asked(link, arguments, options)

    def _asked(self, link: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401 - as above
        try:
            link.send_command(*arguments)
            return self.parse_response(link, arguments[0], **options)  # type: ignore[no-untyped-call]
        except ResponseError:
            raise  # an answer like others
        except BaseException:
            link.disconnect()  # whatever came on it next would be the answer to this
            raise

    def _link(self) -> Any:  # noqa: ANN401 - redis-py's connections have no type in common
        own = self._own.__dict__
        if own.get("process") != os.getpid():  # never two processes on one socket
            pool = self.connection_pool
            own |= {"link": pool.connection_class(**pool.connection_kwargs), "process": os.getpid()}
            with self._lock:
                self._links.add(own["link"])
        own["link"].connect()  # does nothing where it is
        return own["link"]
