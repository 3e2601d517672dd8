"""Who may do what through `/api/v1`: by the RBAC of a real kube-apiserver, with hawse-api's own rights and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.accounts import Accounts
from lab.control_plane import install
from lab.kube import Kube
from lab.net.broker import Broker
from lab.real_cluster import RealCluster
from tests.contract.api.conftest import Answer, Api, Objects

Json = dict[str, Any]
RBAC = "/apis/rbac.authorization.k8s.io/v1"
A, B = "192.168.1.5", "192.168.1.6"
USERS = ("viewer", "retrier", "operator", "tenant", "nobody")
ACTIONS = {
    "retry": ("/namespaces/shop/retry", {}),
    "release": ("/namespaces/shop/release", {"why": "x"}),
    "move": (f"/addresses/{A}/move", {"node": "node1"}),
    "approve": (f"/addresses/{A}/decision", {"why": "x"}),
    "pause": ("/pause", {"why": "x"}),
}
pytestmark = pytest.mark.timeout(180)


class Cluster:
    """Hawse's API on a real API server, and the tokens of USERS."""

    def __init__(self, api: Api, objects: Objects, tokens: dict[str, str]) -> None:
        self.api = api
        self.objects = objects
        self.tokens = tokens

    def ask(self, user: str, method: str, path: str, body: Json | None = None) -> Answer:
        headers = {"Authorization": f"Bearer {self.tokens[user]}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        return self.api.ask(method, f"/api/v1{path}", data, headers)

    def status(self, user: str, path: str) -> int:
        return self.ask(user, "GET", path).status


@pytest.fixture(scope="module")
def cluster(real_binaries: object, broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory: Path = tmp_path_factory.mktemp("rights")
    accounts = Accounts(directory / "cluster", USERS)
    with RealCluster(directory / "cluster") as running:
        kube = Kube(running.url, running.ca_path, running.token)
        install(kube)
        objects = Objects(kube)
        objects.pool("prod", "192.168.1.0/24")
        for name, address in (("shop", A), ("bank", B)):
            objects.namespace(name)
            objects.claim(address, namespace=name)
            objects.status(address, phase="Ready", ticket={"profile": "desk", "serial": 1, "told": "assigned"})
        grant(kube, "viewer", "get")
        grant(kube, "retrier", "get", "retry")
        grant(kube, "operator", "get", *ACTIONS)
        grant(kube, "tenant", "get", "retry", namespace="shop")
        own = accounts.kubeconfigs(running.kubeconfig, directory)["api"]
        api = Api(directory / "api", own, broker.unix_url)
        try:
            api.start()
            yield Cluster(api, objects, accounts.tokens)
        finally:
            api.stop()


def grant(kube: Kube, user: str, *verbs: str, namespace: str = "") -> None:
    kind = "Role" if namespace else "ClusterRole"
    path = f"{RBAC}/namespaces/{namespace}" if namespace else RBAC
    rules = [{"apiGroups": ["egress.hawse.dev"], "resources": ["egressaddresses"], "verbs": list(verbs)}]
    kube.call("POST", f"{path}/{kind.lower()}s", {"metadata": {"name": user}, "rules": rules})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": user}
    subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]
    body = {"metadata": {"name": user}, "roleRef": reference, "subjects": subjects}
    kube.call("POST", f"{path}/{kind.lower()}bindings", body)


@pytest.mark.parametrize("user", USERS)
def test_an_action_takes_its_own_right(cluster: Cluster, user: str) -> None:
    held = {"retrier": {"retry"}, "operator": set(ACTIONS), "tenant": {"retry"}}.get(user, set())
    before = (cluster.objects.version(A), cluster.objects.kube.get("Namespace", "hawse-system"))
    for verb, (path, body) in ACTIONS.items():
        answer = cluster.ask(user, "POST", path, body)
        assert (answer.status == 200) == (verb in held), answer.body
        if verb not in held:
            assert answer.status == 403
            assert f"{user} may not {verb}" in json.loads(answer.body)["detail"]
    if not held:
        assert (cluster.objects.version(A), cluster.objects.kube.get("Namespace", "hawse-system")) == before
    if "pause" in held:
        assert cluster.ask(user, "POST", "/resume", {}).status == 200


def test_a_tenant_sees_its_own_namespace_alone(cluster: Cluster) -> None:
    for path in ("/nodes", "/pools", "/audit", "/overview", "/assignments", "/failures", "/namespaces/bank",
                 "/namespaces/bank/path", "/verification"):  # fmt: skip
        assert cluster.status("tenant", path) == 403, path
    for path in ("/assignments", "/overview", "/failures"):
        assert cluster.status("tenant", f"{path}?namespace=bank") == 403
        answer = cluster.ask("tenant", "GET", f"{path}?namespace=shop")
        assert answer.status == 200
        assert b"bank" not in answer.body
        assert B.encode() not in answer.body
    assert json.loads(cluster.ask("tenant", "GET", "/assignments?namespace=shop").body)["total"] == 1
    assert cluster.status("tenant", "/namespaces/shop") == 200
    way = cluster.ask("tenant", "GET", "/namespaces/shop/path")
    assert way.status == 200
    assert B.encode() not in way.body
    assert cluster.ask("tenant", "POST", "/namespaces/bank/retry", {}).status == 403
    assert cluster.ask("tenant", "POST", "/retry", {}).status == 403


def test_who_may_look_sees_all(cluster: Cluster) -> None:
    for path in ("/nodes", "/pools", "/audit", "/overview", "/assignments", "/failures", "/namespaces/bank",
                 "/namespaces/bank/path", "/verification"):  # fmt: skip
        assert cluster.status("viewer", path) == 200, path
        assert cluster.status("nobody", path) == 403, path


def test_a_tenants_pages_are_of_its_own_namespace(cluster: Cluster) -> None:
    def page(path: str) -> Answer:
        return cluster.api.get(path, Authorization=f"Bearer {cluster.tokens['tenant']}")

    for path in ("/", "/assignments", "/failures"):
        refused = page(path)
        assert refused.status == 403
        assert b"name one with namespace=NAME" in refused.body
        assert b'<input name="namespace" required' in refused.body, "and a field for it"
        assert page(f"{path}?namespace=bank").status == 403
        own = page(f"{path}?namespace=shop")
        assert own.status == 200
        assert b"bank" not in own.body
        assert B.encode() not in own.body
    for path in ("/nodes", "/pools", "/audit", "/verification", "/namespaces/bank", "/namespaces/bank/path"):
        assert page(path).status == 403, path
    shop = page("/namespaces/shop")
    assert shop.status == 200
    assert b'href="/failures?namespace=shop"' in shop.body
    assert b'href="/nodes"' not in shop.body, "it leads nowhere that is closed"
    viewer = cluster.api.get("/assignments?namespace=shop", Authorization=f"Bearer {cluster.tokens['viewer']}")
    assert b'href="/nodes"' in viewer.body
    assert b'<span class="who">viewer</span>' in viewer.body
    assert b'<span class="who">tenant</span>' in page("/assignments?namespace=shop").body
