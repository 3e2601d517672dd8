"""A cluster to test, a small client for it, and a webhook server that it can call."""

import itertools
import time
from collections.abc import Callable, Iterator

import pytest

from lab import marker
from lab.apiserver.client import Client
from lab.apiserver.objects import Json
from lab.apiserver.process import EmbeddedCluster
from lab.apiserver.webhook_stub import Webhook, serve
from lab.cluster import Cluster
from lab.real_cluster import RealCluster

_numbers = itertools.count()


@pytest.fixture(scope="session")
def cluster(any_cluster: Cluster) -> Client:
    """The admin's client; everything that takes it runs on both clusters."""
    return Client(any_cluster.url, any_cluster.ca_path, any_cluster.token)


@pytest.fixture(params=["embedded", "real"])
def cluster_class(request: pytest.FixtureRequest) -> type[EmbeddedCluster] | type[RealCluster]:
    """For tests that start and stop a cluster of their own."""
    if request.param == "embedded":
        return EmbeddedCluster
    request.getfixturevalue("real_binaries")
    return RealCluster


@pytest.fixture
def client_of() -> Callable[[Cluster], Client]:
    return lambda cluster: Client(cluster.url, cluster.ca_path, cluster.token)


@pytest.fixture
def name() -> str:
    """A name that no other test, and no earlier run on the same server, has used."""
    return f"t{int(time.time() * 1000):x}-{next(_numbers)}"


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until a check holds; what it last gave is in the failure."""

    def wait(check: Callable[[], object], seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while not (value := check()):
            assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
            time.sleep(0.02)

    return wait


@pytest.fixture
def crd(cluster: Client, name: str, eventually: Callable[..., None]) -> Iterator[Callable[..., str]]:
    """Make a CRD of a schema; gives the path of its objects. It goes with the test."""
    made: list[str] = []

    def make(properties: Json, *, status: bool = False, columns: list[Json] | None = None, **schema: object) -> str:
        group = f"{name}.example.dev"
        version: Json = {
            "name": "v1",
            "served": True,
            "storage": True,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": properties, **schema}},
        }
        if status:
            version["subresources"] = {"status": {}}
        if columns:
            version["additionalPrinterColumns"] = columns
        body = {
            "metadata": {"name": f"widgets.{group}"},
            "spec": {
                "group": group,
                "scope": "Cluster",
                "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
                "versions": [version],
            },
        }
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        answer = cluster.post(path, body)
        assert answer.code == 201, answer.body
        made.append(f"{path}/widgets.{group}")
        eventually(lambda: cluster.get(f"/apis/{group}/v1/widgets").code == 200)
        return f"/apis/{group}/v1/widgets"

    yield make
    for path in made:
        cluster.delete(path)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with serve() as running:
        yield running


@pytest.fixture
def register(
    cluster: Client, webhook: Webhook, name: str, eventually: Callable[..., None]
) -> Iterator[Callable[..., None]]:
    """Configure the webhook for objects that carry the label test=NAME, so that tests do not meet; and wait for it."""
    made: list[str] = []

    def configure(kind: str = "mutating", operations: tuple[str, ...] = ("*",), **changes: object) -> None:
        group = "/apis/admissionregistration.k8s.io/v1"
        path = f"{group}/{kind}webhookconfigurations"
        hook: Json = {
            "name": f"{kind}.{name}.dev",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "clientConfig": {"url": webhook.url, "caBundle": webhook.ca},
            "objectSelector": {"matchLabels": {"test": name}},
            "rules": [
                {
                    "operations": list(operations),
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "resources": ["namespaces", "configmaps"],
                }
            ],
            **changes,
        }
        own = f"{name}-{len(made)}"
        answer = cluster.post(path, {"metadata": {"name": own}, "webhooks": [hook, marker.webhook(own)]})
        assert answer.code == 201, answer.body
        made.append(f"{path}/{own}")
        probe = marker.config_map(own)
        eventually(lambda: cluster.post("/api/v1/namespaces/default/configmaps", probe, dryRun="All").code == 500)

    yield configure
    for path in made:
        cluster.delete(path)
