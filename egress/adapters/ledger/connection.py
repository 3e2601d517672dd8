"""One connection to Redis, and what its errors mean to us."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
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
