"""One connection to Redis, and what its errors mean to us."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from egress.addresses import Address, make_address
from egress.operations import TransientError


class LedgerAwayError(TransientError):
    """Redis cannot be reached or does not answer in time."""


class NotReadyError(TransientError):
    """Redis was flushed, and its index is not rebuilt yet."""


class Connection:
    """A connection to the ledger. Every method raises LedgerAwayError when Redis does not answer in time."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        self._redis: Any = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[RedisConnectionError],
        )

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def now(self) -> float:
        """Redis's clock, in seconds since the epoch: the one that stamps reservations."""
        with away():
            seconds, microseconds = self._redis.time()
        return float(seconds) + float(microseconds) / 1e6

    def ping(self) -> float:
        """Seconds that Redis took to answer."""
        before = time.monotonic()
        with away():
            self._redis.ping()
        return time.monotonic() - before


class Script:
    """A Lua script, called with texts and giving one text, on the way where each call counts.

    redis-py's own call does the same and takes twice the time: it looks at each argument's type, at each command for
    what only some need, and at the connection before each use. Here each thread has a connection of its own. As there,
    what breaks or is late is tried once more, so the script must bear being run twice; Redis' errors come as they are.

    The script's first argument is the run of the server at the other end (`run_id`): a connection outlives none.
    """

    def __init__(self, client: Any, text: str) -> None:  # noqa: ANN401 - as in Connection
        self._pool = client.connection_pool
        self._text = text
        digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._head = b"".join(map(_bulk, ("EVALSHA", digest, "0")))
        self._own = threading.local()

    def __call__(self, *arguments: str) -> str:
        try:
            return self._called(arguments)
        except NoScriptError:
            self._ask("SCRIPT", "LOAD", self._text)
        except (RedisConnectionError, RedisTimeoutError):
            self.forget()
        try:
            return self._called(arguments)
        except (RedisConnectionError, RedisTimeoutError):
            self.forget()
            raise

    def forget(self) -> None:
        """Closes this thread's connection: what came on it next would be an answer to somebody else."""
        if (link := self._own.__dict__.pop("link", None)) is not None:
            link.disconnect()

    def _called(self, arguments: tuple[str, ...]) -> str:
        link = getattr(self._own, "link", None) or self._connect()
        command = b"*%d\r\n%b%b%b" % (4 + len(arguments), self._head, self._own.run, b"".join(map(_bulk, arguments)))
        link.send_packed_command([command], check_health=False)
        text: str = link.read_response()
        return text

    def _connect(self) -> Any:  # noqa: ANN401 - as in Connection
        link = self._own.link = self._pool.connection_class(**self._pool.connection_kwargs)
        self._own.run = _bulk(re.findall(r"^run_id:(\w+)", self._ask("INFO", "server"), re.MULTILINE)[0])
        return link

    def _ask(self, *words: str) -> str:
        self._own.link.send_command(*words, check_health=False)
        text: str = self._own.link.read_response()
        return text


def _bulk(text: str) -> bytes:
    data = text.encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


@contextmanager
def away() -> Iterator[None]:
    """Turns Redis's errors into ours."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise LedgerAwayError(f"Redis is away: {error}") from error
    except RedisError as error:
        raise TransientError(f"Redis refused: {error}") from error


def key_of(address: Address) -> str:
    """How the scripts write an address: hexadecimal, eight digits for IPv4 and 32 for IPv6."""
    return hexadecimal(int(address), address.version)


def hexadecimal(value: int, version: int) -> str:
    """An address of IP `version`, given as its integer, in the scripts' form."""
    return f"{value:08x}" if version == 4 else f"{value:032x}"


def from_key(key: str) -> Address:
    """The address that the scripts write as `key`."""
    return make_address(int(key, 16), 4 if len(key) == 8 else 6)
