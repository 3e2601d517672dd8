"""A cluster of any size for measurements: its objects on an API server, its reports and table in a ledger."""

from __future__ import annotations

import base64
import http.client
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from itertools import islice
from pathlib import Path

import msgspec

from egress.adapters.ledger import Ledger
from egress.table import Claim, NodeReport
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster, ClusterError
from lab.control_plane import install
from lab.kube import MERGE_PATCH, PATHS, Json, Kube
from lab.real_cluster import RealCluster, binaries

WRITERS = 8
PER_TRANSACTION = 100
_MADE = "2026-01-01T00:00:00Z"
_NODE_IPS = int(IPv4Address("10.0.0.1"))
_ADDRESSES = int(IPv4Address("10.64.0.1"))
FIRST_NETID = 1000


@dataclass(frozen=True, slots=True)
class Scale:
    """`namespaces` with one address each, dealt out to `nodes` in turn."""

    namespaces: int
    nodes: int

    def node(self, number: int) -> str:
        return f"node{number:04}"

    def node_names(self) -> list[str]:
        return [self.node(number) for number in range(self.nodes)]

    def node_ip(self, number: int) -> str:
        return str(IPv4Address(_NODE_IPS + number))

    def address(self, number: int) -> IPv4Address:
        return IPv4Address(_ADDRESSES + number)

    def name(self, number: int) -> str:
        return f"namespace-{number:05}"

    def hosted(self, node: int) -> range:
        """The namespaces whose address the node hosts."""
        return range(node, self.namespaces, self.nodes)

    def net_namespace(self, number: int, *, addresses: bool = True) -> Json:
        return {
            "apiVersion": "network.openshift.io/v1",
            "kind": "NetNamespace",
            "metadata": {"name": self.name(number), "annotations": {"egress.hawse.dev/created": "true"}},
            "netname": self.name(number),
            "netid": FIRST_NETID + number,
            "egressIPs": [str(self.address(number))] if addresses else [],
        }

    def host_subnet(self, number: int) -> Json:
        return {
            "apiVersion": "network.openshift.io/v1",
            "kind": "HostSubnet",
            "metadata": {"name": self.node(number)},
            "host": self.node(number),
            "hostIP": self.node_ip(number),
            "subnet": "10.128.0.0/23",
            "egressIPs": [str(self.address(each)) for each in self.hosted(number)],
        }

    def claim(self, number: int) -> Json:
        return {
            "apiVersion": "egress.hawse.dev/v1alpha1",
            "kind": "EgressAddress",
            "metadata": {
                "name": str(self.address(number)),
                "labels": {"egress.hawse.dev/namespace": self.name(number)},
                "annotations": {"egress.hawse.dev/operation": f"operation-{number}"},
            },
            "spec": {
                "pool": "pool",
                "namespace": {"name": self.name(number), "uid": f"uid-{number}"},
                "origin": "automatic",
            },
        }

    def claim_status(self, number: int) -> Json:
        """What Hawse writes of an address that is in use."""
        node, at = self.node(number % self.nodes), "2026-01-01T00:00:00Z"
        kinds = ("Claimed", "Bound", "Placed", "Programmed", "Ready")
        conditions = [
            {
                "type": kind,
                "status": "True",
                "reason": kind,
                "message": f"on node {node}" if kind == "Placed" else "",
                "lastTransitionTime": at,
            }
            for kind in kinds
        ]
        return {"status": {"phase": "Ready", "node": node, "conditions": conditions}}

    def objects(self) -> Iterator[Json]:
        """All of them, as somebody would create them, but with their status."""
        for number in range(self.nodes):
            yield self.host_subnet(number)
        for number in range(self.namespaces):
            yield self.net_namespace(number)
            yield self.claim(number) | self.claim_status(number)

    def report(self, node: int, epoch: str, change: int) -> NodeReport:
        """What the runner of a node says that has done all that is asked of it."""
        claims = tuple(Claim(self.address(each), FIRST_NETID + each, held=True) for each in self.hosted(node))
        return NodeReport(
            self.node(node), 0.0, epoch, change, f"{self.node_ip(node)}/8", "eth0", claims,
            gateways=(IPv4Address("10.255.255.254"),),
        )  # fmt: skip

    def tell(self, ledger: Ledger, epoch: str = "", change: int = 0) -> None:
        """Every node's report."""
        for number in range(self.nodes):
            ledger.report(self.report(number, epoch, change))


@contextmanager
def cluster(directory: Path, scale: Scale) -> Iterator[tuple[Cluster, str]]:
    """An API server that holds the objects, and what it is called: a real one where there is one, else the embedded."""
    try:
        binaries()
    except ClusterError:
        with EmbeddedCluster(directory / "embedded") as embedded:
            kube = Kube(embedded.url, embedded.ca_path, embedded.token)
            install(kube)
            with ThreadPoolExecutor(WRITERS) as pool:
                list(pool.map(partial(_create, kube), scale.objects()))
            yield embedded, "embedded API server"
        return
    with RealCluster(directory / "real") as real:
        install(Kube(real.url, real.ca_path, real.token))
        _store(directory / "real" / "etcd.sock", scale.objects())
        yield real, "real API server"


def _create(kube: Kube, manifest: Json) -> None:
    kube.create(manifest)
    if "status" in manifest:
        path = f"{PATHS[manifest['kind']]}/{manifest['metadata']['name']}/status"
        kube.call("PATCH", path, {"status": manifest["status"]}, MERGE_PATCH)


def _store(path: Path, manifests: Iterable[Json]) -> None:
    """Puts objects into etcd as the API server itself would: through it, they would take minutes."""
    store = _Store(str(path))
    waiting = iter(manifests)
    while batch := list(islice(waiting, PER_TRANSACTION)):
        store.put([_stored(manifest) for manifest in batch])
    store.close()


def _stored(manifest: Json) -> tuple[str, Json]:
    group = manifest["apiVersion"].partition("/")[0]
    fields: Json = {f"f:{name}": {} for name in manifest if name not in ("apiVersion", "kind", "metadata")}
    written = {"apiVersion": manifest["apiVersion"], "fieldsType": "FieldsV1", "fieldsV1": fields, "time": _MADE}
    metadata = {
        "uid": str(uuid.uuid4()),
        "generation": 1,
        "creationTimestamp": _MADE,
        "managedFields": [{"manager": "bench", "operation": "Update", **written}],
    }
    key = f"/registry/{group}/{manifest['kind'].lower()}{'es' if manifest['kind'].endswith('s') else 's'}/"
    return key + manifest["metadata"]["name"], manifest | {"metadata": manifest["metadata"] | metadata}


class _Store(http.client.HTTPConnection):
    """etcd's JSON interface, on its socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)

    def put(self, items: list[tuple[str, Json]]) -> None:
        """All in one transaction."""
        puts = [
            {"requestPut": {"key": _encoded(key.encode()), "value": _encoded(msgspec.json.encode(value))}}
            for key, value in items
        ]
        self.request("POST", "/v3/kv/txn", msgspec.json.encode({"success": puts}))
        answer = self.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"etcd: {answer.status} {text!r}")


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def cpu_seconds() -> float:
    """What this process has taken of the processor, in user and system mode."""
    return time.process_time()
