"""Whether a port answers as the webhook does."""

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trustme

from webhook import probe


@contextmanager
def serving(status: int, *, tls: bool = True) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing to say."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert("somewhere.else").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_answers_whatever_its_certificate_says(host: str) -> None:
    with serving(200) as port:
        assert probe.reachable(host, port) is None


def test_an_error_is_no_answer() -> None:
    with serving(500) as port:
        assert probe.reachable("127.0.0.1", port) == f"admission answers 500 on port {port}"


def test_neither_is_plain_http_nor_a_closed_port() -> None:
    with serving(200, tls=False) as port:
        assert f"admission does not answer on port {port}: " in (probe.reachable("127.0.0.1", port) or "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert "does not answer" in (probe.reachable("127.0.0.1", taken.getsockname()[1]) or "")
