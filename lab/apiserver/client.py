"""A small synchronous client of an API server, for tests and the demo: plain HTTP, nothing added and nothing hidden."""

import contextlib
import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from lab.apiserver.objects import Json
from lab.apiserver.patches import MERGE_PATCH


@dataclass(frozen=True)
class Answer:
    """What the server said; ``warnings`` are its Warning headers as they came."""

    code: int
    body: Any  # JSON of whatever shape the server chose; a string where it is not JSON
    warnings: list[str]

    @property
    def version(self) -> str:
        """The resourceVersion of the object or list."""
        return str(self.body["metadata"]["resourceVersion"])


class Watch:
    """An open watch; `next` waits for one event."""

    def __init__(self, connection: http.client.HTTPSConnection, answer: http.client.HTTPResponse) -> None:
        self._connection, self._answer = connection, answer
        self.code = answer.status

    def next(self) -> Json:
        """The next event; an empty mapping when the watch has ended."""
        line = self._answer.readline()
        event: Json = json.loads(line) if line else {}
        return event

    def rest(self) -> list[Json]:
        """Every event until the server ends the watch."""
        return list(iter(self.next, {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@dataclass
class Client:
    """Plain HTTP: whatever a test sends is what goes on the wire."""

    url: str
    ca: Path
    token: str | None

    def _open(self, timeout: float) -> http.client.HTTPSConnection:
        parts = urlsplit(self.url)
        trust = ssl.create_default_context(cafile=str(self.ca))
        return http.client.HTTPSConnection(parts.hostname or "", parts.port, context=trust, timeout=timeout)

    def _headers(self, extra: dict[str, str] | None) -> dict[str, str]:
        return ({"Authorization": f"Bearer {self.token}"} if self.token else {}) | (extra or {})

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        query: Mapping[str, object] | None = None,
    ) -> Answer:
        """One request, its body as JSON, and the whole answer."""
        connection = self._open(30)
        sent = {"Content-Type": "application/json"} | (headers or {}) if body is not None else headers
        raw = json.dumps(body) if body is not None else None
        path = f"{path}?{urlencode(query)}" if query else path
        with contextlib.closing(connection):
            connection.request(method, path, raw, self._headers(sent))
            answer = connection.getresponse()
            text = answer.read()
            parsed = json.loads(text) if answer.headers.get_content_type() == "application/json" else text.decode()
            return Answer(answer.status, parsed, answer.headers.get_all("Warning") or [])

    def get(self, path: str, *, headers: dict[str, str] | None = None, **query: object) -> Answer:
        return self.call("GET", path, None, headers, query)

    def post(self, path: str, body: object, **query: object) -> Answer:
        return self.call("POST", path, body, None, query)

    def put(self, path: str, body: object, **query: object) -> Answer:
        return self.call("PUT", path, body, None, query)

    def patch(self, path: str, body: object, kind: str = MERGE_PATCH, **query: object) -> Answer:
        return self.call("PATCH", path, body, {"Content-Type": kind}, query)

    def delete(self, path: str, body: object = None, **query: object) -> Answer:
        return self.call("DELETE", path, body, None, query)

    def watch(self, path: str, headers: dict[str, str] | None = None, **query: object) -> Watch:
        connection = self._open(20)
        connection.request("GET", f"{path}?{urlencode({'watch': 1, **query})}", headers=self._headers(headers))
        return Watch(connection, connection.getresponse())

    def namespace(self, name: str, **metadata: object) -> Answer:
        """Create a namespace."""
        return self.post("/api/v1/namespaces", {"metadata": {"name": name, **metadata}})
