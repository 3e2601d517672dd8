"""A steady stream of connection attempts or datagrams from a pod, one every INTERVAL seconds until SIGTERM.

Usage: http|udp ADDRESS INTERVAL TIMEOUT. An attempt that hangs delays no other. A line printed is
``number began ended outcome``, the source the server saw being the outcome of a request that was answered.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass


@dataclass
class Attempt:
    number: int
    began: float
    deadline: float
    sock: socket.socket
    asked: bool = False
    answer: bytes = b""


class Stream:
    """Requests to ADDRESS:80, several at once when they are slow."""

    def __init__(self, address: str, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._selector = selectors.DefaultSelector()
        self._open: dict[int, Attempt] = {}

    def begin(self, number: int) -> None:
        sock = socket.socket(family_of(self._address), socket.SOCK_STREAM)
        sock.setblocking(False)
        attempt = Attempt(number, time.time(), time.monotonic() + self._timeout, sock)
        self._open[sock.fileno()] = attempt
        self._selector.register(sock, selectors.EVENT_WRITE)
        code = sock.connect_ex((self._address, 80))
        if code not in (0, errno.EINPROGRESS):
            self._end(attempt, errno.errorcode.get(code, str(code)))

    def pump(self, until: float) -> None:
        """Move the open attempts on until the monotonic clock shows `until`."""
        while (left := until - time.monotonic()) > 0:
            for key, _ in self._selector.select(min(left, 0.05)):
                attempt = self._open[key.fd]
                try:
                    self._advance(attempt)
                except OSError as error:
                    self._end(attempt, errno.errorcode.get(error.errno or 0, str(error)))
            now = time.monotonic()
            for attempt in [attempt for attempt in self._open.values() if attempt.deadline < now]:
                self._end(attempt, "timeout")

    @property
    def busy(self) -> bool:
        return bool(self._open)

    def _advance(self, attempt: Attempt) -> None:
        if not attempt.asked:
            code = attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            attempt.sock.send(b"GET /stream/%d HTTP/1.1\r\nHost: web\r\n\r\n" % attempt.number)
            attempt.asked = True
            self._selector.modify(attempt.sock, selectors.EVENT_READ)
            return
        part = attempt.sock.recv(4096)
        attempt.answer += part
        if not part:
            body = attempt.answer.partition(b"\r\n\r\n")[2].decode("latin-1").strip()
            self._end(attempt, body or "closed")

    def _end(self, attempt: Attempt, outcome: str) -> None:
        del self._open[attempt.sock.fileno()]
        self._selector.unregister(attempt.sock)
        attempt.sock.close()
        print(attempt.number, f"{attempt.began:.6f} {time.time():.6f}", outcome, flush=True)


class Datagrams:
    """Numbered datagrams to ADDRESS:9."""

    busy = False

    def __init__(self, address: str) -> None:
        self._to = (address, 9)
        self._sock = socket.socket(family_of(address), socket.SOCK_DGRAM)

    def begin(self, number: int) -> None:
        now = time.time()
        try:
            self._sock.sendto(b"%d" % number, self._to)
            outcome = "sent"
        except OSError as error:
            outcome = errno.errorcode.get(error.errno or 0, str(error))
        print(number, f"{now:.6f} {now:.6f}", outcome, flush=True)

    def pump(self, until: float) -> None:
        time.sleep(max(0.0, until - time.monotonic()))


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def main() -> None:
    kind, address = sys.argv[1:3]
    interval, timeout = float(sys.argv[3]), float(sys.argv[4])
    stream = Stream(address, timeout) if kind == "http" else Datagrams(address)
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    number, due = 0, time.monotonic()
    while not stopping:
        stream.begin(number)
        number += 1
        due = max(due + interval, time.monotonic())
        stream.pump(due)
    while stream.busy:
        stream.pump(time.monotonic() + 0.02)


main()
