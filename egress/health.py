"""What every long-running process answers over plain HTTP: `/metrics`, `/healthz` and `/readyz`.

`/healthz` says whether the process must be started anew (a liveness probe), `/readyz` whether it can do its work now.
Both answer 200 with `ok`, or 503 with the reason. There is nothing secret in any of them, and nothing to be changed.
"""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from egress.operations import PermanentError

Verdict = Callable[[], str | None]
"""None when all is well, else the reason why not, for a person to read. Called by several threads at once."""
REQUEST_SECONDS = 10.0
"""How long a client may take over its request."""


def fine() -> None:
    """The verdict of a process that is well as long as it answers."""


class HealthError(PermanentError):
    """The port cannot be listened on; the message says which, and what to set."""


class Pulse:
    """A loop's sign of life: `beat` at every turn. Safe to share between threads."""

    def __init__(self, name: str, limit: float) -> None:
        """`limit`: seconds of silence after which the loop counts as stuck."""
        self._name = name
        self._limit = limit
        self._last = time.monotonic()

    def beat(self) -> None:
        """The loop has come round."""
        self._last = time.monotonic()

    def verdict(self) -> str | None:
        """A `Verdict`."""
        silence = time.monotonic() - self._last
        return f"{self._name} has been silent for {silence:.0f} s" if silence > self._limit else None


class Health:
    """Answers on `host`:`port` in threads of its own. Port 0 is off: then `start` does nothing."""

    def __init__(self, host: str, port: int, ready: Verdict = fine, *, alive: Verdict = fine) -> None:
        self._host = host
        self._port = port
        self._verdicts: dict[str, Verdict] = {"/healthz": alive, "/readyz": ready}
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Answers from now on. HealthError if the port cannot be had."""
        if not self._port:
            return
        server = ThreadingHTTPServer if ":" not in self._host else _ServerIPv6
        try:
            self._server = server((self._host, self._port), _handler(self._verdicts))
        except OSError as error:
            where = f"{self._host} port {self._port}"
            raise HealthError(
                f"health and metrics cannot be served on {where}: {error.strerror or error}; "
                "set HAWSE_HEALTH_HOST and HAWSE_HEALTH_PORT to a free one, or the port to 0 for none"
            ) from error
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def stop(self) -> None:
        """Answers no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _ServerIPv6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def _handler(verdicts: dict[str, Verdict]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One request."""

        timeout = REQUEST_SECONDS

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, encode(REGISTRY), content_type)
            elif path in verdicts:
                reason = verdicts[path]()
                self._answer(503 if reason else 200, f"{reason or 'ok'}\n".encode())
            else:
                self._answer(404, f"nothing here; there are /metrics and {' and '.join(verdicts)}\n".encode())

        def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            if "gzip" in self.headers.get("Accept-Encoding", "") and len(body) > 1000:
                body = gzip.compress(body)
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Probes come every few seconds, and are no news."""

    return Handler
