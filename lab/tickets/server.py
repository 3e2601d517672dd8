"""An HTTP server on loopback that keeps every request, and misbehaves when it is told to."""

from __future__ import annotations

import contextlib
import email.utils
import json
import socket
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

OVERSIZE = 1024 * 1024
RETRY_AFTER = 7


class Fault(StrEnum):
    """How a server misbehaves. Those in `FILES` do what was asked all the same; the others change nothing."""

    DOWN = "down"
    """Hangs up without a word."""
    SLOW = "slow"
    """Reads the request, does nothing, and never answers."""
    DRIP = "drip"
    """Sends its answer byte by byte, and never ends."""
    DRIP_HEADERS = "drip-headers"
    """The same before the answer's body."""
    BUSY = "busy"
    """429, Retry-After in seconds."""
    BUSY_UNTIL = "busy-until"
    """429, Retry-After as a date."""
    ERROR = "error"
    """500."""
    UNAVAILABLE = "unavailable"
    """503 without a Retry-After."""
    BAD = "bad"
    """400; the answer holds what the caller has sent as his credentials."""
    FILED_AND_SILENT = "filed-and-silent"
    """Does what it is asked, and never answers."""
    FILED_AND_DOWN = "filed-and-down"
    """Does what it is asked, and hangs up."""
    GARBAGE = "garbage"
    """Does what it is asked, and answers what is no JSON."""
    OVERSIZE = "oversize"
    """Does what it is asked, and answers with a megabyte."""
    REDIRECT = "redirect"
    """307 to itself."""


FILES = {Fault.FILED_AND_SILENT, Fault.FILED_AND_DOWN, Fault.GARBAGE, Fault.OVERSIZE}


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came. The names of headers are in lower case; `query` holds each name's last value."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    query: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:  # noqa: ANN401 - what the caller has sent
        """The body, read."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered: a status, and a value to send as JSON, None for nothing."""

    status: int
    value: Any = None


@dataclass(slots=True)
class _Trouble:
    fault: Fault
    left: int | None
    about: str


class Server(ABC):
    """One stand-in. Use it as a context manager, or call `start` and `stop`; a stopped one can be started again at the
    same URL, and knows what it knew."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.authorization = ""
        """The Authorization header that it demands; "" for none."""
        self._tls = tls
        self._troubles: list[_Trouble] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._http: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Listens."""
        self._stopping = threading.Event()
        http = _Listener(("127.0.0.1", self._port), _handler(self))
        if self._tls is not None:
            http.socket = self._tls.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
        self._port = http.server_address[1]
        self._http = http
        self._thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Listens no more, and lets go who waits for an answer: from now on connections are refused."""
        self._stopping.set()
        if self._http is not None and self._thread is not None:
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()
        self._http = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def misbehave(self, fault: Fault | str, times: int | None = 1, about: str = "") -> None:
        """Treats the next `times` requests (None: all, until `behave`) so. `about`: only those whose method and path,
        as in `POST /rest/api/3/issue`, end in it or equal it."""
        with self._lock:
            self._troubles.append(_Trouble(Fault(fault), times, about))

    def behave(self) -> None:
        """Does as it should again."""
        with self._lock:
            self._troubles.clear()

    @abstractmethod
    def answer(self, request: Request) -> Answer:
        """Does what is asked. Called by one thread at a time."""

    def _fault(self, request: Request) -> Fault | None:
        """The fault that is due, if one is; the lock is held."""
        line = f"{request.method} {request.path}"
        for trouble in self._troubles:
            if line.endswith(trouble.about):
                if trouble.left is not None:
                    trouble.left -= 1
                    if not trouble.left:
                        self._troubles.remove(trouble)
                return trouble.fault
        return None

    def _take(self, request: Request) -> tuple[Fault | None, Answer]:
        with self._lock:
            self.requests.append(request)
            fault = self._fault(request)
            if fault is not None and fault not in FILES:
                return fault, Answer(204)
            if self.authorization and request.headers.get("authorization") != self.authorization:
                return fault, Answer(401, {"error": {"message": "User Not Authenticated"}})
            return fault, self.answer(request)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Callers hang up here all the time: that is what is tested."""


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            request = Request(
                self.command,
                parts.path,
                {name.lower(): value for name, value in self.headers.items()},
                self.rfile.read(length),
                dict(parse_qsl(parts.query, keep_blank_values=True)),
            )
            fault, answer = server._take(request)
            self._send(fault, answer, request)

        do_GET = do_PATCH = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def _send(self, fault: Fault | None, answer: Answer, request: Request) -> None:
            match fault:
                case Fault.DOWN | Fault.FILED_AND_DOWN:
                    self._hang_up()
                case Fault.SLOW | Fault.FILED_AND_SILENT:
                    server._stopping.wait()
                    self._hang_up()
                case Fault.DRIP:
                    self._drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                case Fault.DRIP_HEADERS:
                    self._drip(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                case Fault.BUSY:
                    self._say(429, b"", {"Retry-After": str(RETRY_AFTER)})
                case Fault.BUSY_UNTIL:
                    until = email.utils.formatdate(time.time() + 100 * RETRY_AFTER, usegmt=True)
                    self._say(429, b"", {"Retry-After": until})
                case Fault.ERROR | Fault.UNAVAILABLE:
                    self._say(500 if fault is Fault.ERROR else 503, b"<html>oops</html>")
                case Fault.BAD:
                    sent = request.headers.get("authorization", "")
                    self._say(400, json.dumps({"error": f"no\n\x1b[31m such table; you sent {sent}"}).encode())
                case Fault.GARBAGE:
                    self._say(200, b"<html>Please log in</html>")
                case Fault.OVERSIZE:
                    self._say(200, b'"' + b"x" * OVERSIZE + b'"')
                case Fault.REDIRECT:
                    self._say(307, b"", {"Location": server.url + self.path})
                case None:
                    body = b"" if answer.value is None else json.dumps(answer.value).encode()
                    self._say(answer.status, body)

        def _say(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _drip(self, start: bytes) -> None:
            with contextlib.suppress(OSError):  # until the caller has had enough
                self.wfile.write(start)
                while not server._stopping.wait(0.02):
                    self.wfile.write(b"x")
            self._hang_up()

        def _hang_up(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    return Handler
