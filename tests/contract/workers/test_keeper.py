"""The certificates' keeper on an API server that calls a webhook with them: no request fails while all is rotated."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from egress.adapters.cluster import Cluster, ClusterAwayError
from egress.operations import PermanentError, TransientError
from lab import cluster as lab
from lab.apiserver.process import EmbeddedCluster
from lab.control_plane import install
from lab.kube import Json, Kube, KubeError
from lab.real_cluster import RealCluster
from workers import pki
from workers.certificates import DAY, Policy
from workers.keeper import Keeper, service_names

NAMES = ("localhost", "hawse-webhook.hawse-system.svc")
POLICY = Policy(NAMES)
SECRETS = "/api/v1/namespaces/hawse-system/secrets"
GROUP = "/apis/admissionregistration.k8s.io/v1"
MERGE = "application/merge-patch+json"


class Clock:
    """Tells the time; tests turn it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture(scope="module", params=["embedded", "real"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Cluster]:
    """A cluster that tests may kill."""
    directory = tmp_path_factory.mktemp("cluster")
    if request.param == "real":
        request.getfixturevalue("real_binaries")
    with RealCluster(directory) if request.param == "real" else EmbeddedCluster(directory) as running:
        yield running


@pytest.fixture
def kube(cluster: lab.Cluster) -> Iterator[Kube]:
    kube = Kube(cluster.url, cluster.ca_path, cluster.token)
    install(kube)
    yield kube
    kube.call("DELETE", SECRETS)
    for kind in ("mutating", "validating"):
        kube.call("DELETE", f"{GROUP}/{kind}webhookconfigurations")


def register(kube: Kube, kind: str, url: str, webhooks: int = 1, policy: str = "Ignore") -> None:
    hooks = [
        {
            "name": f"w{number}.hawse.dev",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": policy,
            "clientConfig": {"url": url},
            "rules": [
                {
                    "operations": ["CREATE"],
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "resources": ["configmaps"],
                }
            ],
        }
        for number in range(webhooks)
    ]
    manifest = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "hawse"}}
    kube.call("POST", f"{GROUP}/{kind.lower()}s", manifest | {"webhooks": hooks})


def both(kube: Kube, url: str = "https://localhost:1/") -> None:
    register(kube, "MutatingWebhookConfiguration", url, webhooks=2)
    register(kube, "ValidatingWebhookConfiguration", url)


def secret(kube: Kube, name: str = "hawse-webhook-tls") -> dict[str, str]:
    found = kube.call("GET", f"{SECRETS}/{name}")
    return {key: base64.b64decode(text).decode() for key, text in found["data"].items()}


def trusted(kube: Kube) -> list[str]:
    """The caBundle of every webhook."""
    bundles = []
    for kind in ("mutating", "validating"):
        for hook in kube.call("GET", f"{GROUP}/{kind}webhookconfigurations/hawse")["webhooks"]:
            bundles.append(base64.b64decode(hook["clientConfig"].get("caBundle", "")).decode())
    return bundles


def settle(keeper: Keeper) -> int:
    """Runs the keeper until it has nothing to do; how many writes that took."""
    for number in range(40):
        if not keeper.step():
            return number
    raise AssertionError("never settles")


def accepted(kube: Kube) -> bool:
    """Whether whoever trusts any of the webhooks' bundles accepts what is in the serving Secret."""
    served = pki.read_certificates(secret(kube)["tls.crt"])[0]
    bundles = [pki.read_certificates(text) for text in trusted(kube)]
    return all(any(served.signed_by(authority) for authority in bundle) for bundle in bundles)


def test_from_nothing_and_again_changes_nothing(kube: Kube, cluster: lab.Cluster) -> None:
    both(kube)
    keeper = Keeper(Cluster(str(cluster.kubeconfig)), "hawse-system", Policy(service_names("hawse-system")))
    assert settle(keeper) == 5
    assert kube.call("GET", f"{SECRETS}/hawse-webhook-tls")["type"] == "kubernetes.io/tls"
    texts = secret(kube)
    assert texts.keys() == {"tls.crt", "tls.key", "ca.crt"}
    assert "PRIVATE KEY" not in texts["ca.crt"]
    served = pki.read_certificates(texts["tls.crt"])[0]
    assert served.belongs_to(texts["tls.key"])
    assert served.dns_names == {"hawse-webhook.hawse-system.svc", "hawse-webhook.hawse-system.svc.cluster.local"}
    assert set(trusted(kube)) == {texts["ca.crt"]}
    assert accepted(kube)
    other = Keeper(Cluster(str(cluster.kubeconfig)), "hawse-system", Policy(service_names("hawse-system")))
    assert settle(other) == 0


def test_what_people_delete_or_overwrite_is_put_back(kube: Kube, cluster: lab.Cluster) -> None:
    both(kube)
    keeper = Keeper(Cluster(str(cluster.kubeconfig)), "hawse-system", POLICY)
    settle(keeper)
    before = trusted(kube)
    kube.call("DELETE", f"{SECRETS}/hawse-webhook-tls")
    assert settle(keeper) == 1
    assert trusted(kube) == before
    path = f"{GROUP}/mutatingwebhookconfigurations/hawse"
    hooks: list[Json] = kube.call("GET", path)["webhooks"]
    for text in ("", base64.b64encode(pki.make_authority("other", time.time(), DAY)[0].pem.encode()).decode()):
        hooks[1]["clientConfig"]["caBundle"] = text
        kube.call("PATCH", path, {"webhooks": hooks}, MERGE)
        assert settle(keeper) == 1
        assert trusted(kube) == before
    kube.call("DELETE", f"{SECRETS}/hawse-webhook-ca")
    served = secret(kube)["tls.crt"]
    settle(keeper)
    assert secret(kube)["tls.crt"] == served
    assert accepted(kube)
    broken = {"data": {"authorities.json": base64.b64encode(b"[{]").decode()}}
    kube.call("PATCH", f"{SECRETS}/hawse-webhook-ca", broken, MERGE)
    settle(keeper)
    assert secret(kube)["tls.crt"] == served
    assert accepted(kube)


class Killed(BaseException):
    """The keeper's process ended just now."""


class Mortal(Cluster):
    """Its process is killed before or after its `lives`-th write."""

    def __init__(self, kubeconfig: Path, lives: int, *, before: bool) -> None:
        super().__init__(str(kubeconfig))
        self._lives = lives
        self._before = before

    def _call(self, method: str, *arguments: Any, **named: Any) -> Json:
        if method == "GET":
            return super()._call(method, *arguments, **named)
        self._lives -= 1
        if self._lives == 0 and self._before:
            raise Killed
        answer: Json = super()._call(method, *arguments, **named)
        if self._lives == 0:
            raise Killed
        return answer


@pytest.mark.parametrize("before", [True, False])
def test_killed_at_every_write_of_a_rotation(kube: Kube, cluster: lab.Cluster, before: bool) -> None:
    both(kube)
    clock = Clock()
    settle(Keeper(Cluster(str(cluster.kubeconfig)), "hawse-system", POLICY, clock))
    first = secret(kube)["tls.crt"]
    deaths = 0
    for ahead in (POLICY.authority_lifetime * 0.67, 600.0, 92 * DAY, 0.0):
        clock.ahead += ahead
        for lives in (1, 1, 2, 1, 3, 1, 1, 1, 1):
            try:
                settle(Keeper(Mortal(cluster.kubeconfig, lives, before=before), "hawse-system", POLICY, clock))
            except Killed:
                deaths += 1
            assert accepted(kube)
        settle(Keeper(Cluster(str(cluster.kubeconfig)), "hawse-system", POLICY, clock))
        assert accepted(kube)
    assert deaths >= 8
    assert secret(kube)["tls.crt"] != first
    assert {text.count("BEGIN CERTIFICATE") for text in trusted(kube)} == {1}


def test_several_keepers_at_once_agree(kube: Kube, cluster: lab.Cluster) -> None:
    both(kube)
    errors: list[str] = []
    together = threading.Barrier(4)

    def run() -> None:
        keeper = Keeper(Cluster(str(cluster.kubeconfig)), "hawse-system", POLICY)
        together.wait()
        for _ in range(40):
            try:
                if not keeper.step():
                    return
            except TransientError as error:
                errors.append(str(error))
        raise AssertionError("never settles")

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert accepted(kube)
    assert {text.count("BEGIN CERTIFICATE") for text in trusted(kube)} == {1}
    assert errors  # else they never met, and the test shows nothing
    assert settle(Keeper(Cluster(str(cluster.kubeconfig)), "hawse-system", POLICY)) == 0


def test_without_rights_it_says_which(kube: Kube, cluster: lab.Cluster) -> None:
    keeper = Keeper(Cluster(str(cluster.kubeconfig)), "there-is-no-such-namespace", POLICY)
    both(kube)
    with pytest.raises(PermanentError):
        settle(keeper)


def test_an_api_server_that_is_away_is_waited_for(kube: Kube, cluster: lab.Cluster) -> None:
    both(kube)
    keeper = Keeper(Cluster(str(cluster.kubeconfig)), "hawse-system", POLICY)
    cluster.kill()
    with pytest.raises(ClusterAwayError):
        keeper.step()
    stop = threading.Event()
    thread = threading.Thread(target=keeper.run, args=(stop,))
    thread.start()
    cluster.start()
    deadline = time.monotonic() + 90
    while not any(name["metadata"]["name"] == "hawse-webhook-tls" for name in kube.call("GET", SECRETS)["items"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stop.set()
    thread.join(20)
    assert accepted(kube)


class Webhook:
    """Answers admission over TLS with what the Secret holds, which it takes up a little late, as a mounted one is."""

    def __init__(self, kube: Kube, directory: Path) -> None:
        self._kube = kube
        self._path = directory / "pair.pem"
        self._context = self.load()
        self.calls = 0
        webhook = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
                review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
                body = json.dumps(review | {"response": {"uid": request["uid"], "allowed": True}}).encode()
                webhook.calls += 1
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")  # every call shakes hands anew
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def get_request(self) -> tuple[ssl.SSLSocket, Any]:
                connection, address = super().get_request()
                secured = webhook._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                return secured, address

        self.server = Server(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server.server_address[1]}/"

    def load(self) -> ssl.SSLContext:
        texts = secret(self._kube)
        self._path.write_text(texts["tls.crt"] + texts["tls.key"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._path)
        self._context = context
        return context


@pytest.fixture
def served(kube: Kube, cluster: lab.Cluster, tmp_path: Path) -> Iterator[tuple[Webhook, Keeper]]:
    keeper = Keeper(Cluster(str(cluster.kubeconfig)), "hawse-system", Policy(NAMES, 30.0, 54.0, wait=5.0))
    settle(keeper)
    webhook = Webhook(kube, tmp_path)
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        register(kube, kind, webhook.url, policy="Fail")
    settle(keeper)
    yield webhook, keeper
    webhook.server.shutdown()
    webhook.server.server_close()


@pytest.mark.timeout(300)
def test_no_request_fails_while_everything_is_rotated(
    served: tuple[Webhook, Keeper], kube: Kube, cluster: lab.Cluster
) -> None:
    """Certificates that live for seconds: under constant requests two authorities and several certificates go by."""
    webhook, keeper = served
    seen, stop, failed = set(), threading.Event(), []

    def keep() -> None:
        while not stop.wait(0.1):
            with suppress(TransientError):
                settle(keeper)
            stop.wait(0.2)
            webhook.load()

    def ask(number: int) -> None:
        asking = Kube(cluster.url, cluster.ca_path, cluster.token)
        for turn in range(100000):
            if stop.is_set():
                return
            name = {"name": f"c{number}-{turn}", "namespace": "default"}
            try:
                asking.call("POST", "/api/v1/namespaces/default/configmaps", {"metadata": name})
            except KubeError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=keep), *(threading.Thread(target=ask, args=(number,)) for number in range(2))]
    for thread in threads:
        thread.start()
    authorities: set[str] = set()
    deadline = time.monotonic() + 150
    while len(authorities) < 3 and time.monotonic() < deadline and not failed:
        seen.add(secret(kube)["tls.crt"])
        authorities |= {item.pem for item in pki.read_certificates(trusted(kube)[0])}
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(authorities) >= 3
    assert len(seen) >= 4
    assert webhook.calls > 50
