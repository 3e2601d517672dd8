"""What pods sent and what the web server saw."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from ipaddress import ip_address

from lab.net.channel import Channel, Completed, RemoteProcess
from lab.net.topology import Address


@dataclass(frozen=True)
class AccessLogEntry:
    """A request as the web server saw it; `time` in seconds of the host's wall clock."""

    time: float
    source: Address
    path: str


@dataclass(frozen=True)
class Datagram:
    """A datagram as the web server saw it; `text` is the number that the stream gave it."""

    time: float
    source: Address
    text: str


@dataclass(frozen=True)
class Response:
    """A request's end: the HTTP status and the source address the server saw, or curl's error."""

    status: int | None
    source: Address | None
    error: str

    @property
    def ok(self) -> bool:
        return self.status == 200

    @classmethod
    def of(cls, curl: Completed) -> Response:
        body, _, status = curl.stdout.rpartition("\n")
        if curl.returncode:
            return cls(None, None, curl.stderr.strip() or f"curl: status {curl.returncode}")
        return cls(int(status), ip_address(body.strip()), "")


@dataclass(frozen=True)
class Attempt:
    """One of a stream: when it began and ended (host's wall clock) and how.

    `outcome` is "answered" (then `source` is what the server saw), "sent" for a datagram, "timeout" or an errno's name.
    """

    number: int
    began: float
    ended: float
    outcome: str
    source: Address | None


class Traffic:
    """A stream from a pod that runs until `stop`."""

    def __init__(self, process: RemoteProcess) -> None:
        self._process = process

    def attempts(self) -> list[Attempt]:
        """The attempts that have ended so far, in the order of their end."""
        lines = self._process.log.read_text().splitlines(keepends=True)
        return [_attempt(line) for line in lines if line[0].isdigit() and line.endswith("\n")]

    def stop(self, timeout: float = 20) -> list[Attempt]:
        """End the stream, wait for the attempts still open, and return all by number."""
        self._process.kill(signal.SIGTERM)
        self._process.wait(timeout)
        return sorted(self.attempts(), key=lambda attempt: attempt.number)


class WebLog:
    """The web server's log, read as it grows."""

    def __init__(self, channel: Channel, path: str) -> None:
        self._channel = channel
        self._path = path
        self._read = b""
        self._lock = threading.Lock()

    def requests(self) -> list[AccessLogEntry]:
        return [AccessLogEntry(time, source, text) for time, source, text in self._lines("http")]

    def datagrams(self) -> list[Datagram]:
        return [Datagram(time, source, text) for time, source, text in self._lines("udp")]

    def _lines(self, protocol: str) -> list[tuple[float, Address, str]]:
        with self._lock:
            self._read += self._channel.read(self._path, len(self._read))
            whole = self._read[: self._read.rfind(b"\n") + 1]
        fields = [line.split(" ", 3) for line in whole.decode().splitlines()]
        return [(float(time), ip_address(source), text) for time, kind, source, text in fields if kind == protocol]


def _attempt(line: str) -> Attempt:
    number, began, ended, outcome = line.split()
    source = None
    if "." in outcome or ":" in outcome:
        source, outcome = ip_address(outcome), "answered"
    return Attempt(int(number), float(began), float(ended), outcome, source)
