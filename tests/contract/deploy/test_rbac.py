"""Each role can do what it must and cannot do what it must not: requests by its user, on a real API server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from lab.apiserver.client import Answer, Client
from tests.contract.deploy.conftest import TENANT_NAMESPACE, Installed, until

Json = dict[str, Any]
NAMESPACES = "/api/v1/namespaces"
SYSTEM = f"{NAMESPACES}/hawse-system"
SECRETS = f"{SYSTEM}/secrets"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/hawse-system/leases"
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1"
POOLS, ADDRESSES = (f"/apis/egress.hawse.dev/v1alpha1/{plural}" for plural in ("egresspools", "egressaddresses"))
HOSTS, NETS = (f"/apis/network.openshift.io/v1/{plural}" for plural in ("hostsubnets", "netnamespaces"))
MADE = "rbac-made"
ADDRESS = "192.168.9.9"


def named(api: str, kind: str, name: str, **fields: object) -> Json:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, **fields}


def claim(name: str) -> Json:
    spec = {"pool": "prod", "namespace": {"name": "shop"}}
    return named("egress.hawse.dev/v1alpha1", "EgressAddress", name, spec=spec)


POOL = named("egress.hawse.dev/v1alpha1", "EgressPool", "x", spec={"cidrs": ["10.0.0.1"]})
TENANT_NET = named("network.openshift.io/v1", "NetNamespace", "x", netname="x", netid=9)
HOST = named("network.openshift.io/v1", "HostSubnet", "x", host="x", hostIP="192.168.1.17")
EVENT = named(
    "v1", "Event", "x", involvedObject={"apiVersion": "v1", "kind": "Namespace", "name": "x"}, reason="R", message="m"
)
ACCESS = {"spec": {"user": "x", "resourceAttributes": {"verb": "get", "resource": "egressaddresses"}}}
TLS = {"tls.crt": "", "tls.key": ""}


@dataclass(frozen=True)
class Do:
    """One request; `body` is sent with POST, and as a merge patch with PATCH. WATCH is GET, and ends at once."""

    method: str
    path: str
    body: Any = None

    def by(self, client: Client) -> Answer:
        """The answer to it; nothing is stored."""
        if self.method == "GET":
            return client.get(self.path)
        if self.method == "WATCH":
            with client.watch(self.path, timeoutSeconds=1) as opened:
                return Answer(opened.code, opened.next(), [])
        content = {"Content-Type": "application/merge-patch+json"} if self.method == "PATCH" else {}
        # Of a deletion the body is what counts, where there is one.
        body = {"dryRun": ["All"]} if self.method == "DELETE" else self.body or {}
        return client.call(self.method, self.path, body, content, {"dryRun": "All"})

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def watch(path: str) -> Do:
    return Do("WATCH", path)


def lease(name: str) -> Json:
    return named("coordination.k8s.io/v1", "Lease", name)


def secret(name: str, kind: str = "kubernetes.io/tls", **annotations: str) -> Json:
    made = named("v1", "Secret", name, type=kind, data=TLS if kind == "kubernetes.io/tls" else {})
    made["metadata"]["annotations"] = annotations
    return made


def listing(*paths: str) -> list[Do]:
    return [Do("GET", path) for path in paths]


EVERYTHING = [NAMESPACES, "/api/v1/nodes", HOSTS, NETS, POOLS, ADDRESSES]
WATCHED = (NAMESPACES, HOSTS, NETS, ADDRESSES)
"""What the worker keeps in memory."""

MUST: dict[str, list[Do]] = {
    "api": [
        *listing(NAMESPACES, POOLS, ADDRESSES, f"{ADDRESSES}/{ADDRESS}", HOSTS, NETS, f"{NETS}/{MADE}"),
        *map(watch, (NAMESPACES, POOLS, ADDRESSES)),
        Do("PATCH", f"{ADDRESSES}/{ADDRESS}/status", {"status": {"phase": "Pending"}}),
        Do("PATCH", f"{ADDRESSES}/{ADDRESS}", {"metadata": {"annotations": {"egress.hawse.dev/move-to": "x"}}}),
        Do("GET", f"{NAMESPACES}/hawse-system"),
        Do("PATCH", f"{NAMESPACES}/{MADE}", {"metadata": {"annotations": {"egress.hawse.dev/pool": "none"}}}),
        Do("POST", "/apis/authentication.k8s.io/v1/tokenreviews", {"spec": {"token": "x"}}),
        Do("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", ACCESS),
    ],
    "worker": [
        *listing(*EVERYTHING, f"{NAMESPACES}/default", f"{NETS}/{MADE}", f"{ADDRESSES}/{ADDRESS}"),
        *map(watch, WATCHED),
        Do("PATCH", f"{NAMESPACES}/{MADE}", {"metadata": {"annotations": {"egress.hawse.dev/addresses": "10.0.0.1"}}}),
        Do("PATCH", f"{HOSTS}/{MADE}", {"egressIPs": ["10.0.0.1"]}),
        Do("POST", NETS, TENANT_NET),
        Do("PATCH", f"{NETS}/{MADE}", {"egressIPs": ["10.0.0.1"]}),
        Do("DELETE", f"{NETS}/{MADE}"),
        Do("POST", ADDRESSES, claim("10.0.0.7")),
        Do("PATCH", f"{ADDRESSES}/{ADDRESS}", {"spec": {"namespace": {"uid": "u-2"}}}),
        Do("PATCH", f"{ADDRESSES}/{ADDRESS}/status", {"status": {"phase": "Pending"}}),
        Do("DELETE", f"{ADDRESSES}/{ADDRESS}"),
        Do("PATCH", f"{POOLS}/{MADE}", {"metadata": {"finalizers": ["egress.hawse.dev/in-use"]}}),
        Do("PATCH", f"{POOLS}/{MADE}/status", {"status": {"free": 1}}),
        Do("POST", f"{NAMESPACES}/default/events", EVENT),
    ],
    "tickets": [
        *listing(NAMESPACES, POOLS, ADDRESSES, f"{ADDRESSES}/{ADDRESS}"),
        Do("PATCH", f"{ADDRESSES}/{ADDRESS}", {"metadata": {"annotations": {"egress.hawse.dev/retry-ticket": None}}}),
        Do("PATCH", f"{ADDRESSES}/{ADDRESS}/status", {"status": {"phase": "Ready"}}),
        Do("POST", f"{NAMESPACES}/default/events", EVENT),
    ],
    "watch": [
        *listing(*EVERYTHING, f"{SECRETS}/hawse-webhook-tls", f"{SECRETS}/hawse-webhook-ca", f"{LEASES}/hawse-watch"),
        *map(watch, EVERYTHING),
        Do("POST", LEASES, lease("hawse-watch")),
        Do("PATCH", f"{LEASES}/hawse-watch", {"spec": {"holderIdentity": "a"}}),
        Do("POST", SECRETS, secret("hawse-webhook-tls")),
        Do("POST", SECRETS, secret("hawse-webhook-ca", "Opaque")),
        Do("PATCH", f"{SECRETS}/hawse-webhook-tls", {"data": {"ca.crt": ""}}),
        *listing(
            f"{WEBHOOKS}/mutatingwebhookconfigurations/hawse", f"{WEBHOOKS}/validatingwebhookconfigurations/hawse"
        ),
        Do("PATCH", f"{WEBHOOKS}/mutatingwebhookconfigurations/hawse", {"metadata": {"annotations": {"a": "b"}}}),
        Do("PATCH", f"{WEBHOOKS}/validatingwebhookconfigurations/hawse", {"metadata": {"annotations": {"a": "b"}}}),
    ],
    "beat": [
        *listing(f"{LEASES}/hawse-beat"),
        Do("POST", LEASES, lease("hawse-beat")),
        Do("PATCH", f"{LEASES}/hawse-beat", {"spec": {"holderIdentity": "a"}}),
    ],
}

EVERY_WRITE = [
    Do("PATCH", f"{NAMESPACES}/{MADE}", {"metadata": {"annotations": {"egress.hawse.dev/addresses": "10.0.0.1"}}}),
    Do("PATCH", f"{HOSTS}/{MADE}", {"egressIPs": ["10.0.0.1"]}),
    Do("POST", HOSTS, HOST),
    Do("DELETE", f"{HOSTS}/{MADE}"),
    Do("POST", NETS, TENANT_NET),
    Do("PATCH", f"{NETS}/{MADE}", {"egressIPs": ["10.0.0.1"]}),
    Do("DELETE", f"{NETS}/{MADE}"),
    Do("POST", POOLS, POOL),
    Do("PATCH", f"{POOLS}/{MADE}", {"spec": {"cidrs": ["10.0.0.9"]}}),
    Do("DELETE", f"{POOLS}/{MADE}"),
    Do("POST", ADDRESSES, claim("10.0.0.7")),
    Do("PATCH", f"{ADDRESSES}/{ADDRESS}", {"spec": {"namespace": {"uid": "u-2"}}}),
    Do("PATCH", f"{ADDRESSES}/{ADDRESS}/status", {"status": {"phase": "Ready"}}),
    Do("DELETE", f"{ADDRESSES}/{ADDRESS}"),
]
NEVER = [
    *listing(SECRETS, f"{SECRETS}/hawse-redis-acl", f"{SYSTEM}/configmaps", f"{SYSTEM}/pods", "/api/v1/secrets"),
    Do("DELETE", f"{SECRETS}/hawse-webhook-tls"),
    Do("POST", NAMESPACES, named("v1", "Namespace", "x")),
    Do("DELETE", f"{NAMESPACES}/{MADE}"),
    Do("POST", f"{SYSTEM}/serviceaccounts/hawse-workers/token", {"spec": {"audiences": []}}),
    Do("POST", f"{SYSTEM}/pods", named("v1", "Pod", "x", spec={"containers": [{"name": "x", "image": "x"}]})),
    Do("PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/hawse-workers", {"rules": []}),
    Do("PATCH", "/api/v1/nodes/x", {"spec": {"unschedulable": True}}),
    *(Do("DELETE", f"{WEBHOOKS}/{kind}webhookconfigurations/hawse") for kind in ("mutating", "validating")),
    Do("PATCH", f"{WEBHOOKS}/mutatingwebhookconfigurations/other", {"metadata": {"labels": {"a": "b"}}}),
    Do("DELETE", f"{WEBHOOKS}/validatingadmissionpolicies/hawse-own-objects"),
]
MUST_NOT: dict[str, list[Do]] = {
    "tickets": [
        *NEVER,
        *(item for item in EVERY_WRITE if not (item.method == "PATCH" and item.path.startswith(ADDRESSES))),
        *listing("/api/v1/nodes", HOSTS, NETS, LEASES, f"{NAMESPACES}/default", f"{NAMESPACES}/default/events"),
        *(watch(path) for path in EVERYTHING),
        Do("PATCH", f"{POOLS}/{MADE}/status", {"status": {"free": 1}}),
        Do("POST", f"{SYSTEM}/events", EVENT),
    ],
    "worker": [
        *NEVER,
        *listing(LEASES, f"{SECRETS}/hawse-webhook-tls", f"{NAMESPACES}/default/events"),
        *(watch(path) for path in EVERYTHING if path not in WATCHED),
        Do("POST", HOSTS, HOST),
        Do("DELETE", f"{HOSTS}/{MADE}"),
        Do("POST", POOLS, POOL),
        Do("DELETE", f"{POOLS}/{MADE}"),
        Do("POST", SECRETS, secret("hawse-webhook-tls")),
        Do("POST", LEASES, lease("hawse-beat")),
        Do("POST", f"{SYSTEM}/events", EVENT),
        Do("PATCH", f"{NAMESPACES}/{MADE}/status", {"status": {"phase": "Active"}}),
    ],
    "watch": [
        *NEVER,
        *EVERY_WRITE,
        *listing(f"{NAMESPACES}/default/secrets", LEASES, f"{LEASES}/hawse-beat"),
        Do("POST", f"{NAMESPACES}/default/secrets", secret("hawse-webhook-tls")),
        Do("PATCH", f"{SECRETS}/hawse-redis-workers", {"data": {"url": ""}}),
        Do("PATCH", f"{LEASES}/hawse-beat", {"spec": {"holderIdentity": "a"}}),
        Do("POST", f"{WEBHOOKS}/mutatingwebhookconfigurations", named("admissionregistration.k8s.io/v1", "M", "x")),
        Do("POST", f"{NAMESPACES}/default/events", EVENT),
    ],
    "beat": [
        *NEVER,
        *EVERY_WRITE,
        *listing(*EVERYTHING, f"{NAMESPACES}/default", f"{LEASES}/hawse-watch", f"{SECRETS}/hawse-webhook-tls"),
        Do("POST", SECRETS, secret("hawse-webhook-tls")),
        Do("PATCH", f"{LEASES}/hawse-watch", {"spec": {"holderIdentity": "a"}}),
        *listing(f"{WEBHOOKS}/mutatingwebhookconfigurations/hawse"),
    ],
}
MUST_NOT["api"] = [
    *NEVER,
    *(do for do in EVERY_WRITE if not (do.method == "PATCH" and do.path.startswith((NAMESPACES, ADDRESSES)))),
    *listing("/api/v1/nodes", LEASES, f"{SECRETS}/hawse-webhook-tls", f"{NAMESPACES}/default/events"),
    Do("PATCH", f"{POOLS}/{MADE}/status", {"status": {"free": 1}}),
    Do("POST", LEASES, lease("x")),
]
for _without in ("webhook", "node-runner"):
    MUST_NOT[_without] = [*NEVER, *EVERY_WRITE, *listing(*EVERYTHING, LEASES), Do("POST", LEASES, lease("x"))]


@pytest.fixture(scope="module")
def objects(installed: Installed) -> Installed:
    """One object of each kind, so that a refusal is about the right to it and not its absence."""
    admin = installed.as_("admin")
    by_hand: list[tuple[str, Json]] = [
        (NAMESPACES, named("v1", "Namespace", MADE)),
        ("/api/v1/nodes", named("v1", "Node", "x")),
        (HOSTS, HOST | {"metadata": {"name": MADE}, "host": MADE}),
        (NETS, TENANT_NET | {"metadata": {"name": MADE}, "netname": MADE}),
        (POOLS, POOL | {"metadata": {"name": MADE}}),
        (SECRETS, secret("hawse-webhook-tls")),
        (SECRETS, secret("hawse-webhook-ca", "Opaque")),
        (SECRETS, secret("hawse-redis-workers", "Opaque")),
        (LEASES, lease("hawse-watch")),
        (LEASES, lease("hawse-beat")),
    ]
    for path, manifest in by_hand:
        answer = admin.post(path, manifest)
        assert answer.code in (201, 409), answer.body
    answer = installed.as_("worker").post(ADDRESSES, claim(ADDRESS))  # admission asks nobody about the workers' own
    assert answer.code in (201, 409), answer.body
    return installed


def _all(table: dict[str, list[Do]]) -> list[Any]:
    return [pytest.param(who, do, id=f"{who}: {do}") for who, requests in table.items() for do in requests]


@pytest.mark.parametrize(("who", "do"), _all(MUST))
def test_a_role_can_do_what_it_must(objects: Installed, who: str, do: Do) -> None:
    answer = do.by(objects.as_(who))
    # That it exists already is for a creation as good an answer: the right to it was checked before.
    assert answer.code in (200, 201) or (do.method == "POST" and answer.code == 409), answer.body


@pytest.mark.parametrize(("who", "do"), _all(MUST_NOT))
def test_a_role_cannot_do_what_it_must_not(objects: Installed, who: str, do: Do) -> None:
    answer = do.by(objects.as_(who))
    assert (answer.code, answer.body["reason"]) == (403, "Forbidden"), answer.body
    assert "cannot" in answer.body["message"]  # RBAC's word, not an admission webhook's


# What RBAC cannot say: deploy/base/policies.yaml


@pytest.mark.parametrize(
    ("who", "path", "manifest"),
    [
        ("watch", SECRETS, secret("other")),
        (
            "watch",
            SECRETS,
            secret("hawse-webhook-tls", "kubernetes.io/service-account-token")
            | {
                "metadata": {
                    "name": "hawse-webhook-tls",
                    "annotations": {"kubernetes.io/service-account.name": "hawse-workers"},
                }
            },
        ),
        ("watch", LEASES, lease("hawse-beat")),
        ("beat", LEASES, lease("other")),
    ],
)
def test_only_the_processes_own_objects_can_be_made(objects: Installed, who: str, path: str, manifest: Json) -> None:
    def refusal() -> Answer | None:
        answer = Do("POST", path, manifest).by(objects.as_(who))
        return answer if answer.code == 422 else None

    answer = until(refusal)  # a policy counts a moment after it was made
    assert "ValidatingAdmissionPolicy 'hawse-own-objects'" in answer.body["message"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
        {"annotations": {"openshift.io/node-selector": ""}},
        {"finalizers": ["hawse.dev/stay"]},
    ],
)
def test_the_workers_change_nothing_of_a_namespace_but_their_annotations(objects: Installed, metadata: Json) -> None:
    def refusal() -> Answer | None:
        answer = Do("PATCH", f"{NAMESPACES}/{MADE}", {"metadata": metadata}).by(objects.as_("worker"))
        return answer if answer.code == 422 else None

    assert "ValidatingAdmissionPolicy 'hawse-annotations-alone'" in until(refusal).body["message"]


@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"cidrs": ["10.0.0.9"]}},
        {"metadata": {"finalizers": ["example.dev/other"]}},
        {"metadata": {"labels": {"a": "b"}}},
    ],
)
def test_the_workers_change_nothing_of_a_pool_but_their_finalizer(objects: Installed, patch: Json) -> None:
    def refusal() -> Answer | None:
        answer = Do("PATCH", f"{POOLS}/{MADE}", patch).by(objects.as_("worker"))
        return answer if answer.code == 422 else None

    assert "ValidatingAdmissionPolicy 'hawse-finalizer-alone'" in until(refusal).body["message"]


# A tenant


@pytest.mark.parametrize(
    "do", [*EVERY_WRITE[1:], *listing(SECRETS, f"{SYSTEM}/pods", LEASES, *EVERYTHING[1:])], ids=str
)
def test_a_tenant_reaches_none_of_hawses_objects(objects: Installed, do: Do) -> None:
    """It has `edit` in its namespace and may change the Namespace object itself."""
    answer = do.by(objects.as_("tenant"))
    assert answer.code == 403, answer.body
    assert "cannot" in answer.body["message"]


def test_a_tenant_can_do_what_is_its_own(objects: Installed) -> None:
    tenant = objects.as_("tenant")
    own = f"{NAMESPACES}/{TENANT_NAMESPACE}"
    assert Do("POST", f"{own}/configmaps", named("v1", "ConfigMap", "x")).by(tenant).code == 201
    assert Do("PATCH", own, {"metadata": {"labels": {"team": "a"}}}).by(tenant).code == 200
