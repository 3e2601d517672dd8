"""Runs for ticket profiles on a real API server and a real Valkey, with claims that the test makes itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from egress.adapters import manifests
from egress.adapters.cluster import Cluster, Kind
from egress.adapters.ledger import Ledger
from egress.objects import EgressAddress
from egress.settings import Settings
from lab.apiserver.process import EmbeddedCluster
from lab.control_plane import install
from lab.kube import Kube
from workers.context import Context
from workers.ticketing import run as ticketing
from workers.ticketing.profiles import make
from workers.ticketing.systems import Systems

Json = dict[str, Any]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Desk:
    """A cluster whose claims are told of by profiles, and the asks that runs make."""

    kube: Kube
    context: Context
    systems: Systems
    directory: Path
    asked: list[tuple[str, list[Any], float]] = field(default_factory=list)

    @property
    def ledger(self) -> Ledger:
        return self.context.ledger

    def secret(self, name: str, text: str) -> str:
        """A file with a credential; its path."""
        path = self.directory / name
        path.write_text(text)
        return str(path)

    def write(self, *profiles: Json, **more: object) -> None:
        """The profiles' file, in one step as a ConfigMap's is."""
        new = self.directory / "profiles.yaml.new"
        new.write_text(yaml.safe_dump({"cluster": "lab", "profiles": list(profiles), **more}))
        new.replace(self.directory / "profiles.yaml")

    def webhook(self, url: str, **fields: object) -> Json:
        """The profile `fw`, of a webhook at `url`."""
        files = [self.secret("webhook", SECRET)]
        return {"name": "fw", "type": "webhook", "url": url, "secretFiles": files, "timeout": 5, **fields}

    def pool(self, name: str, profile: str) -> None:
        spec = {"cidrs": ["10.0.0.0/16"], "ticketProfile": profile}
        manifest = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": name}}
        self.kube.create(manifest | {"spec": spec})

    def namespace(self, name: str, **annotations: str) -> str:
        """A namespace; its uid."""
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}}
        uid: str = self.kube.create(manifest)["metadata"]["uid"]
        return uid

    def claim(self, address: str, namespace: str, *, uid: str = "u", pool: str = "prod", **spec: object) -> None:
        """An EgressAddress as the workers make it."""
        full = {"pool": pool, "namespace": {"name": namespace, "uid": uid}, "origin": "automatic", **spec}
        manifest = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": {"name": address}}
        self.kube.create(manifest | {"spec": full})

    def status(self, address: str, **status: object) -> None:
        """Merges into a claim's status, whatever it is."""
        self.context.cluster.patch(Kind.EGRESS_ADDRESS, address, {"status": status}, subresource="status")

    def place(self, address: str, node: str) -> None:
        self.status(address, phase="Ready", node=node)

    def release(self, address: str, *, seconds: float = 600.0) -> None:
        """The end of an assignment, as the workers write it."""
        until = manifests.rfc3339(time.time() + seconds)
        ticket = {"ended": True} if self.read(address).ticket is not None else None
        self.status(address, phase="Quarantined", node="", quarantinedUntil=until, ticket=ticket, decision=None)

    def read(self, address: str) -> EgressAddress:
        manifest = self.context.cluster.get(Kind.EGRESS_ADDRESS, address)
        assert manifest is not None
        return manifests.egress_address(manifest)

    def condition(self, address: str) -> tuple[bool | None, str, str] | None:
        found = [item for item in self.read(address).conditions if item.type == "FirewallOpen"]
        return (found[0].status, found[0].reason, found[0].message) if found else None

    def run(self, profile: str = "fw") -> None:
        ticketing.run(self.context, self.systems, profile)

    def run_until(self, check: Callable[[], object], profile: str = "fw", seconds: float = 30.0) -> None:
        """Runs again and again, as reconcile asks for it, until `check` holds."""
        deadline = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < deadline, "it never comes true"
            self.run(profile)
            time.sleep(0.05)

    def events(self, namespace: str) -> list[str]:
        return list(self.context.cluster.warnings(namespace).values())

    def patient(self) -> None:
        """Forgets what waits and which system is dead, as if time had passed."""
        for key in [*self.ledger._redis.keys("hawse:tickets:breaker:*"), *self.ledger._redis.keys("hawse:tickets:w*")]:
            self.ledger._redis.delete(key)


@pytest.fixture
def settings() -> dict[str, Any]:
    """Changes to the settings."""
    return {}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(tmp_path / "cluster", history=1000) as running:
        yield running


@pytest.fixture
def desk(cluster: EmbeddedCluster, ledger: Ledger, settings: dict[str, Any], tmp_path: Path) -> Desk:
    kube = Kube(cluster.url, cluster.ca_path, cluster.token)
    install(kube)
    asked: list[tuple[str, list[Any], float]] = []

    def send(task: str, arguments: list[Any], queue: str, delay: float = 0.0) -> None:
        del queue
        asked.append((task, arguments, delay))

    path = str(tmp_path / "profiles.yaml")
    current = Settings(kubeconfig=str(cluster.kubeconfig), ticket_profiles=path, **settings)
    context = Context(current, ledger, Cluster(str(cluster.kubeconfig)), send)
    desk = Desk(kube, context, Systems(path, make), tmp_path, asked)
    desk.write()
    return desk
