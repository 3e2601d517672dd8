"""One connection to Redis, and what its errors mean to us."""

from __future__ import annotations

import ctypes
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from typing import Any

from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from egress.adapters.ledger.client import Client
from egress.adapters.ledger.silence import Silence
from egress.addresses import Address, make_address
from egress.operations import TransientError


class LedgerAwayError(TransientError):
    """Redis cannot be reached or does not answer in time."""


class NotReadyError(TransientError):
    """Redis was flushed, and its index is not rebuilt yet."""


class Connection:
    """A connection to the ledger. Every method raises LedgerAwayError when Redis does not answer in time."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        self._redis: Any = Client.from_url(
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

    def one_waits(self) -> None:
        """From now on, while Redis does not answer, one call at a time waits for it; the others raise LedgerAwayError
        at once. For whoever has few threads, and something better to do with them."""
        self._redis.silence = Silence()

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


_BROKEN = (OSError, RedisConnectionError, RedisTimeoutError)
_send = ctypes.PyDLL(None).send  # which keeps the interpreter while it is called
_send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
_send.restype = ctypes.c_ssize_t


class Script:
    """A Lua script, called with texts and giving one text, on the way where each call counts.

    redis-py's own call does the same and takes three times the time: it looks at each argument's type, at each command
    for what only some need, and at the connection before each use. Here each thread has a connection of its own, which
    redis-py makes (TLS, user, database), and on it are bytes. As there, what breaks or is late is tried once more, so
    the script must bear being run twice.

    The script's first argument is the run of the server at the other end (`run_id`): a connection outlives none.
    """

    def __init__(self, client: Any, text: str) -> None:  # noqa: ANN401 - as in Connection
        self._client, self._pool = client, client.connection_pool
        self._text = text
        digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._head = b"".join(map(_bulk, ("EVALSHA", digest, "0")))
        self._own = threading.local()

    def __call__(self, *arguments: str) -> str:
        silence: Silence | None = self._client.silence
        return self._twice(arguments) if silence is None else silence.ask(self._twice, arguments)

    def forget(self) -> None:
        """Closes this thread's connection: what came on it next would be an answer to somebody else."""
        self._own.__dict__.pop("socket", None)
        if (link := self._own.__dict__.pop("link", None)) is not None:
            link.disconnect()

    def _twice(self, arguments: tuple[str, ...]) -> str:
        try:
            return self._called(arguments)
        except NoScriptError:
            again = self._load
        except _BROKEN:
            again = self.forget
        try:
            again()
            return self._called(arguments)
        except _BROKEN as error:
            self.forget()
            if isinstance(error, RedisError):
                raise
            if isinstance(error, (BlockingIOError, TimeoutError)):  # so the kernel says it, and so Python for TLS
                raise RedisTimeoutError("it does not answer in time") from error
            raise RedisConnectionError(str(error)) from error

    def _called(self, arguments: tuple[str, ...]) -> str:
        own = self._own.__dict__.get("socket") or self._connect()
        _write(own, b"*%d\r\n%b%b%b" % (4 + len(arguments), self._head, self._own.run, b"".join(map(_bulk, arguments))))
        return _read(own)

    def _load(self) -> None:
        self._own.socket.sendall(b"*3\r\n" + b"".join(map(_bulk, ("SCRIPT", "LOAD", self._text))))
        _read(self._own.socket)

    def _connect(self) -> socket.socket:
        link = self._own.link = self._pool.connection_class(**self._pool.connection_kwargs)
        link.send_command("INFO", "server", check_health=False)
        self._own.run = _bulk(re.findall(r"^run_id:(\w+)", link.read_response(), re.MULTILINE)[0])
        own: socket.socket = link._sock
        # Python's own timeouts make two system calls of each, and let go of the interpreter in each: with many threads
        # that costs more than all the rest. So they are left to the kernel.
        if not isinstance(own, ssl.SSLSocket):  # which would wait for ever then
            whole, part = divmod(link.socket_timeout or 0, 1)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                own.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(whole), int(part * 1e6)))
            own.settimeout(None)
        self._own.socket = own
        self._load()  # a server that was started anew has forgotten it
        return own


def _write(own: socket.socket, data: bytes) -> None:
    """Sends all of it. OSError if the other end is gone or takes nothing in time.

    Python's sockets let go of the interpreter, so that another thread has it while there is but one system call to be
    made, which does not wait: what the kernel takes at once is sent without that.
    """
    sent = 0
    if not isinstance(own, ssl.SSLSocket):
        sent = max(0, _send(own.fileno(), data, len(data), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL))
    if sent < len(data):
        own.sendall(data[sent:])  # or it says what is wrong


def _read(own: socket.socket) -> str:
    """One text that Redis answers, which is all that comes. OSError if it does not come in time or the other end is
    gone; Redis' errors as redis-py has them."""
    data = own.recv(65536)
    while (end := data.find(b"\r\n")) < 0 or (data[:1] == b"$" and len(data) < end + 4 + int(data[1:end])):
        more = own.recv(65536)
        if not more:
            break
        data += more
    if data[:1] == b"$" and data.endswith(b"\r\n"):
        return data[end + 2 : -2].decode()
    if data[:1] == b"-":
        error = data[1:end].decode()
        raise NoScriptError(error) if error.startswith("NOSCRIPT") else ResponseError(error)
    raise ConnectionResetError("the connection ended")


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
