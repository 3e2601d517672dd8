"""An admission webhook over TLS whose answers a test decides, and which remembers what it was asked."""

import base64
import contextlib
import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trustme

from lab.apiserver.objects import Json


@dataclass
class Webhook:
    """A webhook server over TLS. ``answer`` makes the response of a request; ``requests`` are those received, and
    ``calls`` the same with their paths."""

    url: str
    ca: str
    answer: Callable[[Json], Json] = lambda _: {"allowed": True}
    requests: list[Json] = field(default_factory=list)
    delay: float = 0.0
    busy: int = 0
    most_busy: int = 0
    raw: bytes | None = None
    calls: list[tuple[str, Json]] = field(default_factory=list)

    def respond(self, review: Json) -> bytes:
        request = review["request"]
        self.requests.append(request)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        time.sleep(self.delay)
        self.busy -= 1
        if self.raw is not None:
            return self.raw
        response = {"uid": request["uid"], **self.answer(request)}
        return json.dumps(
            {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}
        ).encode()

    def last(self, operation: str) -> Json:
        return [request for request in self.requests if request["operation"] == operation][-1]

    @staticmethod
    def json_patch(*operations: Json) -> Json:
        encoded = base64.b64encode(json.dumps(operations).encode()).decode()
        return {"allowed": True, "patchType": "JSONPatch", "patch": encoded}


@contextmanager
def serve() -> Iterator[Webhook]:
    """A webhook on loopback, with a certificate of its own."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            hook.calls.append((self.path, review["request"]))
            body = hook.respond(review)
            with contextlib.suppress(OSError):  # the server gives up on a slow answer
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Tests speak for themselves."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    hook = Webhook(
        f"https://127.0.0.1:{server.server_port}/admit", base64.b64encode(authority.cert_pem.bytes()).decode()
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield hook
    server.shutdown()
    server.server_close()
