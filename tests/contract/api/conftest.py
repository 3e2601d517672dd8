"""`hawse-api` as a process, on the embedded API server and a real Valkey."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from standardwebhooks import Webhook

from egress.adapters.ledger import Ledger
from lab.apiserver.process import EmbeddedCluster
from lab.control_plane import free_ports, install
from lab.kube import Kube
from lab.net.broker import Broker

Json = dict[str, Any]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def condition(status: str, reason: str, message: str = "", *, kind: str = "Ready") -> Json:
    """A condition as it stands in an object's status."""
    when = "2026-11-24T05:00:00Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": when}


@dataclass(frozen=True)
class Answer:
    """What the API answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def etag(self) -> str:
        return self.headers["etag"]

    @property
    def lines(self) -> list[str]:
        return self.body.decode().splitlines()


@dataclass
class Objects:
    """The cluster's objects, as people and the workers make them."""

    kube: Kube
    uids: dict[str, str] = field(default_factory=dict)

    def pool(self, name: str, *cidrs: str) -> None:
        self.kube.create(
            {
                "apiVersion": "egress.hawse.dev/v1alpha1",
                "kind": "EgressPool",
                "metadata": {"name": name},
                "spec": {"cidrs": list(cidrs)},
            }
        )

    def namespace(self, name: str, **labels: str) -> None:
        made = self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        self.uids[name] = made["metadata"]["uid"]

    def claim(self, address: str, pool: str = "prod", namespace: str = "shop", **spec: Any) -> Json:
        """An EgressAddress without a status."""
        owner = {"name": namespace, "uid": self.uids.get(namespace, "")}
        return self.kube.create(
            {
                "apiVersion": "egress.hawse.dev/v1alpha1",
                "kind": "EgressAddress",
                "metadata": {"name": address},
                "spec": {"pool": pool, "namespace": owner, **spec},
            }
        )

    def status(self, address: str, **status: Any) -> Json:
        return self.kube.patch("EgressAddress", address, {"status": status}, subresource="status")

    def told(self, address: str, profile: str = "desk", **spec: Any) -> str:
        """A claim whose assignment was told to `profile`; the assignment's key."""
        uid = self.claim(address, **spec)["metadata"]["uid"]
        self.status(address, phase="Ready", ticket={"profile": profile, "serial": 1, "told": "assigned"})
        return f"hawse-{uid}-1"

    def get(self, address: str) -> Json:
        found = self.kube.get("EgressAddress", address)
        assert found is not None
        return found

    def version(self, address: str) -> str:
        text: str = self.get(address)["metadata"]["resourceVersion"]
        return text

    def decision(self, address: str) -> Json | None:
        decision: Json | None = self.get(address).get("status", {}).get("decision")
        return decision


class Api:
    """The process, and a client of it."""

    def __init__(self, directory: Path, kubeconfig: Path, redis_url: str, **settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port, self.health_port = free_ports(2)
        self.profiles = directory / "profiles.yaml"
        self._log = directory / "log"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HAWSE_")} | {
            "HAWSE_REDIS_URL": redis_url,
            "HAWSE_KUBECONFIG": str(kubeconfig),
            "HAWSE_API_LISTEN_HOST": "127.0.0.1",
            "HAWSE_API_LISTEN_PORT": str(self.port),
            "HAWSE_HEALTH_HOST": "127.0.0.1",
            "HAWSE_HEALTH_PORT": str(self.health_port),
            "HAWSE_TICKET_PROFILES": str(self.profiles),
            "HAWSE_DRAIN_TIME": "0",
            **settings,
        }
        self.write({})
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, profiles: Json) -> None:
        """A new version of the profiles' file, in one rename."""
        new = self.profiles.with_suffix(".new")
        new.write_text(yaml.safe_dump(profiles))
        new.replace(self.profiles)

    def secret(self, name: str, text: str) -> str:
        """The path of a file that holds a secret."""
        file = self.directory / name
        file.write_text(f"{text}\n")
        return str(file)

    def launch(self) -> Api:
        """Starts it, whatever comes of it."""
        with self._log.open("ab") as log:
            command = [Path(sys.executable).parent / "hawse-api"]
            self.process = subprocess.Popen(command, env=self.environment, stderr=log, stdout=log)
        return self

    def start(self, *, ready: bool = True) -> Api:
        """Starts it, and waits until it is ready, or at least lives."""
        self.launch()
        self.until(lambda: (self.health("/readyz") if ready else self.get("/healthz")).status == 200)
        return self

    def stop(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Json | None = None, *, port: int | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            named = {name.lower(): text for name, text in answer.getheaders()}
            return Answer(answer.status, named, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})

    def health(self, path: str) -> Answer:
        return self.ask("GET", path, port=self.health_port)

    def log(self) -> str:
        return self._log.read_text()

    def until(self, check: Callable[[], object], seconds: float = 40) -> None:
        """Waits until `check` is true; a refused connection is as good as false."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(OSError, http.client.HTTPException):
                if check():
                    return
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)


@dataclass
class Sender:
    """A ticket system that signs what it says."""

    api: Api
    profile: str = "desk"
    secret: str = SECRET
    sent: int = 0

    def message(self, address: str, key: str, kind: str = "approved", /, **changes: Any) -> bytes:
        data = {"address": address, "key": key, "by": "ana@example.com", "reason": "as planned"}
        body = {"type": f"dev.hawse.ticket.{kind}", "timestamp": datetime.now(UTC).isoformat(), "data": data}
        for name, value in changes.items():
            (data if name in data else body)[name] = value
        return json.dumps(body).encode()

    def sign(self, body: bytes, *, id: str = "", at: float | None = None, secret: str = "") -> Json:
        self.sent += 1
        name, when = id or f"msg_{self.sent}", datetime.fromtimestamp(at or time.time(), UTC)
        signature = Webhook(secret or self.secret).sign(name, when, body.decode())
        return {
            "Content-Type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": str(int(when.timestamp())),
            "webhook-signature": signature,
        }

    def post(self, body: bytes, headers: Json, *, profile: str = "") -> Answer:
        return self.api.ask("POST", f"/tickets/{profile or self.profile}/callback", body, headers)

    def send(self, body: bytes, **how: Any) -> Answer:
        return self.post(body, self.sign(body, **how))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(tmp_path / "cluster") as running:
        yield running


@pytest.fixture
def objects(cluster: EmbeddedCluster) -> Objects:
    kube = Kube(cluster.url, cluster.ca_path, cluster.token)
    install(kube)
    return Objects(kube)


@pytest.fixture
def make_api(
    cluster: EmbeddedCluster, objects: Objects, broker: Broker, ledger: Ledger, tmp_path: Path
) -> Iterator[Callable[..., Api]]:
    """Makes a process that is not started yet; it ends with the test."""
    made: list[Api] = []

    def make(**settings: str) -> Api:
        made.append(Api(tmp_path / f"api{len(made)}", cluster.kubeconfig, broker.unix_url, **settings))
        return made[-1]

    yield make
    for api in made:
        api.stop()
        assert "Traceback" not in api.log() if api.process is not None else True


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    return make_api().start()


@pytest.fixture
def sender(api: Api) -> Sender:
    """One whose profile is in the file."""
    files = [api.secret("key1", SECRET)]
    webhook = {"name": "desk", "type": "webhook", "url": "https://tickets.example", "secretFiles": files}
    api.write({"profiles": [webhook | {"callback": {"secretFiles": files}}]})
    return Sender(api)
