"""Objects put into a cluster's etcd without its API server: thousands in a second, for what is to be measured then."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import uuid
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from lab.kube import Json

BATCH = 100
_KEYS = {
    "Namespace": "/registry/namespaces/",
    "NetNamespace": "/registry/network.openshift.io/netnamespaces/",
    "EgressAddress": "/registry/egress.hawse.dev/egressaddresses/",
}
CREATED = "2026-01-01T00:00:00Z"


class _Unix(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def put(etcd: Path, manifests: Iterable[Json]) -> None:
    """Stores `manifests`, as an API server does, in the etcd that listens on the socket `etcd`; with a uid and a time
    of creation. The API server notices them by its own watch. RuntimeError if etcd refuses."""
    connection = _Unix(etcd)
    items = iter(manifests)
    while batch := list(islice(items, BATCH)):
        body = {"success": [{"requestPut": operation} for operation in _puts(batch)]}
        connection.request("POST", "/v3/kv/txn", json.dumps(body))
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"etcd answers {answer.status}: {said[:200]!r}")
    connection.close()


def _puts(manifests: Iterable[Json]) -> Iterator[Json]:
    for manifest in manifests:
        known = {"uid": str(uuid.uuid4()), "creationTimestamp": CREATED, "generation": 1}
        stored = manifest | {"metadata": known | manifest["metadata"]}
        key = _KEYS[manifest["kind"]] + manifest["metadata"]["name"]
        yield {"key": _coded(key.encode()), "value": _coded(json.dumps(stored).encode())}


def _coded(text: bytes) -> str:
    return base64.b64encode(text).decode()
