"""Webhook and workers, with the registration that is shipped, on the embedded cluster and on a real API server."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

import pytest

from egress.adapters.ledger import Ledger
from lab.accounts import Accounts
from lab.apiserver.process import EmbeddedCluster
from lab.apiserver.webhook_stub import Webhook, serve
from lab.cluster import Cluster
from lab.control_plane import ControlPlane, install
from lab.kube import Kube, KubeError
from lab.net.broker import Broker
from lab.real_cluster import RealCluster
from tests.contract.webhook.conftest import INDEX_NEW
from webhook.server import HAND_OVER_SECONDS

T = TypeVar("T")
Json = dict[str, Any]
ADDRESSES = "egress.hawse.dev/addresses"
OPERATION = "egress.hawse.dev/operation"
REQUEST = "egress.hawse.dev/request"
FORGED = "is written by Hawse alone"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
REGISTRATIONS = "/apis/admissionregistration.k8s.io/v1"
SETTINGS = {
    "HAWSE_RESERVATION_LIFETIME": "5",
    "HAWSE_SWEEP_INTERVAL": "0.5",
    "HAWSE_RECONCILE_INTERVAL": "1",
    "HAWSE_REPORT_WAIT": "0.5",
    "HAWSE_REDIS_TIMEOUT": "5",  # else a busy machine has namespaces admitted without an address
}
_numbers = itertools.count(1)

pytestmark = pytest.mark.timeout(300)


@dataclass
class World:
    """A cluster with Hawse on it, seen by its admin, and by a tenant who may create namespaces and edit its own."""

    real: bool
    cluster: Cluster
    kube: Kube
    tenant: Kube
    control: ControlPlane
    ledger: Ledger

    def create(self, name: str = "", *, by: Kube | None = None, annotations: Json | None = None, **labels: str) -> Json:
        """A namespace, with a new name unless one is given; one that ends in a dash is generated."""
        name = name or f"n{next(_numbers)}"
        metadata = {"generateName" if name.endswith("-") else "name": name, "annotations": annotations or {}}
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata | {"labels": labels}}
        return (by or self.kube).create(manifest)

    def own(self) -> Json:
        """A namespace of the tenant's, who may edit it, claimed by the workers."""
        made = self.create(by=self.tenant)
        name = made["metadata"]["name"]
        if self.real:
            resources = ["namespaces", "namespaces/status", "namespaces/finalize"]
            rule = {"apiGroups": [""], "resources": resources, "verbs": ["get", "update", "patch"]}
            path = f"{RBAC}/namespaces/{name}"
            self.kube.call("POST", f"{path}/roles", {"metadata": {"name": "own"}, "rules": [rule]})
            self._bind(f"{path}/rolebindings", "own", "Role", "own")
            self._bind(f"{path}/rolebindings", "edit", "ClusterRole", "edit")
        self.claimed(name, made["metadata"]["annotations"][ADDRESSES])
        return made

    def may_create_namespaces(self) -> None:
        if self.real:
            rule = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["create"]}
            self.kube.call("POST", f"{RBAC}/clusterroles", {"metadata": {"name": "requester"}, "rules": [rule]})
            self._bind(f"{RBAC}/clusterrolebindings", "requester", "ClusterRole", "requester")

    def _bind(self, path: str, name: str, kind: str, role: str) -> None:
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "tenant"}
        self.kube.call("POST", path, {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]})

    def another_admin(self) -> Kube:
        return Kube(self.cluster.url, self.cluster.ca_path, self.cluster.token)

    def annotations(self, name: str) -> Json:
        found = self.kube.get("Namespace", name)
        assert found is not None
        return dict(found["metadata"].get("annotations") or {})

    def claimed(self, name: str, address: str) -> None:
        """Waits until the workers have made `address` the namespace's for good."""
        until(
            lambda: (
                (self.kube.get("EgressAddress", address) or {}).get("spec", {}).get("namespace", {}).get("name") == name
            )
        )
        until(lambda: address in ((self.kube.get("NetNamespace", name) or {}).get("egressIPs") or []))

    def states(self) -> list[str]:
        return sorted(state for state, _ in self.ledger.usage().values())

    @contextmanager
    def other_webhook(self, kind: str, *operations: str, label: str) -> Iterator[Webhook]:
        """Another webhook, after ours, for namespaces that carry a label."""
        plural = f"{kind.lower()}webhookconfigurations"
        with serve() as stub:
            rule = {"operations": [*operations], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["namespaces"]}
            hook = {
                "name": f"zz-{label}.example.dev",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "clientConfig": {"url": stub.url, "caBundle": stub.ca},
                "objectSelector": {"matchLabels": {label: "yes"}},
                "rules": [rule],
            }
            path = f"{REGISTRATIONS}/{plural}"
            self.kube.call("POST", path, {"metadata": {"name": f"zz-{label}"}, "webhooks": [hook]})
            try:
                self._wait_for(stub, label)
                yield stub
            finally:
                self.kube.call("DELETE", f"{path}/zz-{label}")

    def _wait_for(self, stub: Webhook, label: str) -> None:
        """Until the API server asks it: it learns of a registration a moment later."""
        if not self.real:
            return
        name, patches = f"probe-{next(_numbers)}", itertools.count()
        # Without the label at first: a former registration for it may be heeded still, and its server is gone.
        self.create(name, annotations={"egress.hawse.dev/pool": "none"})

        def asked() -> bool:
            with suppress(KubeError):
                self.kube.create(probe_of(next(patches)), query="?dryRun=All")
                self.kube.patch("Namespace", name, {"metadata": {"labels": {label: "yes", "n": str(next(patches))}}})
            return bool(stub.requests)

        def probe_of(number: int) -> Json:
            metadata = {
                "name": f"{name}-{number}",
                "labels": {label: "yes"},
                "annotations": {"egress.hawse.dev/pool": "none"},
            }
            return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}

        until(asked)
        stub.requests.clear()


def until(check: Callable[[], T], seconds: float = 90) -> T:
    """The first truthy answer."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module", params=["embedded", "real"])
def world(request: pytest.FixtureRequest, broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if request.param == "real":
        request.getfixturevalue("real_binaries")
    directory: Path = tmp_path_factory.mktemp(request.param)
    accounts = Accounts(directory / "cluster", ["tenant"])
    cluster: Cluster = (RealCluster if request.param == "real" else EmbeddedCluster)(directory / "cluster")
    ledger = Ledger(broker.unix_url)
    ledger._redis.flushall()
    with cluster:
        kube, tenant = (
            Kube(cluster.url, cluster.ca_path, token) for token in (cluster.token, accounts.tokens["tenant"])
        )
        install(kube)
        control = ControlPlane(
            directory / "control",
            redis_url=broker.unix_url,
            kubeconfigs=accounts.kubeconfigs(cluster.kubeconfig, directory),
            environment=SETTINGS,
        )
        world = World(request.param == "real", cluster, kube, tenant, control, ledger)
        try:
            world.may_create_namespaces()
            control.start()
            control.register_webhooks(kube)
            pools = {"gold": ("192.168.64.0/18", {"matchLabels": {"tier": "gold"}}), "prod": ("192.168.0.0/24", {})}
            for name, (cidr, selector) in pools.items():
                head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": name}}
                kube.create(head | {"spec": {"cidrs": [cidr], "namespaceSelector": selector}})
            until(lambda: ledger.is_ready() and len(ledger.offer().pools) == 2)
            ledger._redis.delete(INDEX_NEW)
            probes = itertools.count()
            until(lambda: ADDRESSES in world.create(f"first-{next(probes)}")["metadata"].get("annotations", {}))
            yield world
            assert control.dead() == {}
        finally:
            control.stop()
            ledger.close()


needs_real = pytest.mark.parametrize("world", ["real"], indirect=True)
"""For what the embedded cluster does not have: RBAC, CEL, metadata in the finalize subresource."""


# Assigning


def test_a_namespace_comes_back_with_its_address_and_keeps_it(world: World) -> None:
    made = world.create()
    address = made["metadata"]["annotations"][ADDRESSES]
    world.claimed(made["metadata"]["name"], address)
    assert world.annotations(made["metadata"]["name"])[ADDRESSES] == address


def test_a_generated_name_is_claimed_under_that_name(world: World) -> None:
    made = world.create("team-")
    world.claimed(made["metadata"]["name"], made["metadata"]["annotations"][ADDRESSES])


def test_a_dry_run_changes_nothing(world: World) -> None:
    before = world.ledger.usage()
    world.kube.warnings.clear()
    for key in ("name", "generateName"):
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {key: "dry-run"}}
        made = world.kube.create(manifest, query="?dryRun=All")
        assert ADDRESSES not in made["metadata"].get("annotations", {})
    assert sum("dry run: pool prod would give the address" in warning for warning in world.kube.warnings) == 2
    assert world.kube.get("Namespace", "dry-run") is None
    assert {address: holder for address, holder in world.ledger.usage().items() if address not in before} == {}


# Other webhooks


@pytest.mark.parametrize("name", ["", "refused-"])
def test_a_namespace_that_another_webhook_refuses_leaks_no_address(world: World, name: str) -> None:
    until(lambda: "reserved" not in world.states())
    with world.other_webhook("Validating", "CREATE", "UPDATE", label="refuse") as other:
        other.answer = lambda _: {"allowed": False, "status": {"code": 403, "message": "not this one"}}
        with pytest.raises(KubeError, match="not this one"):
            world.create(name, refuse="yes")
        assert "reserved" in world.states()
    until(lambda: "reserved" not in world.states())


@pytest.mark.parametrize("name", ["", "gold-"])
def test_a_label_that_a_later_webhook_sets_chooses_the_pool(world: World, name: str) -> None:
    with world.other_webhook("Mutating", "CREATE", label="policy") as other:
        other.answer = lambda _: other.json_patch({"op": "add", "path": "/metadata/labels/tier", "value": "gold"})
        made = world.create(name, policy="yes")
    address = made["metadata"]["annotations"][ADDRESSES]
    assert ip_address(address) in ip_network("192.168.64.0/18")
    world.claimed(made["metadata"]["name"], address)
    until(lambda: "reserved" not in world.states())  # what the first call had given


@pytest.mark.parametrize("name", ["", "kept-"])
def test_a_later_webhook_that_changes_something_else_costs_nothing(world: World, name: str) -> None:
    until(lambda: "reserved" not in world.states())
    with world.other_webhook("Mutating", "CREATE", label="stamp") as other:
        other.answer = lambda _: other.json_patch({"op": "add", "path": "/metadata/labels/stamp2", "value": "x"})
        count = len(world.ledger.usage())
        made = world.create(name, stamp="yes")
        assert len(world.ledger.usage()) == count + 1
    world.claimed(made["metadata"]["name"], made["metadata"]["annotations"][ADDRESSES])


@pytest.mark.parametrize("name", ["", "changed-"])
def test_a_later_webhook_cannot_change_the_annotation(world: World, name: str) -> None:
    victim = world.own()["metadata"]["annotations"][ADDRESSES]
    for value in (victim, "192.168.0.200", ""):
        with world.other_webhook("Mutating", "CREATE", "UPDATE", label="meddle") as other:
            change = {"op": "add", "path": "/metadata/annotations/egress.hawse.dev~1addresses", "value": value}
            other.answer = lambda _, other=other, change=change: other.json_patch(change)
            with pytest.raises(KubeError, match=FORGED):
                world.create(name, annotations={"a": "b"}, meddle="yes")
            made = world.create()["metadata"]
            with pytest.raises(KubeError, match=FORGED):
                world.kube.patch("Namespace", made["name"], {"metadata": {"labels": {"meddle": "yes"}}})


# Forging


@pytest.mark.parametrize("name", ["", "forged-"])
def test_a_tenant_cannot_take_anothers_address_when_it_creates(world: World, name: str) -> None:
    victim = world.own()["metadata"]["annotations"]
    for written, message in (
        ({ADDRESSES: victim[ADDRESSES]}, FORGED),
        ({ADDRESSES: victim[ADDRESSES], OPERATION: victim[OPERATION]}, FORGED),
        ({ADDRESSES: "192.168.0.200"}, FORGED),
        ({REQUEST: victim[ADDRESSES]}, f"address {victim[ADDRESSES]} is in use"),
    ):
        with pytest.raises(KubeError, match=message):
            world.create(name, by=world.tenant, annotations=written)


def test_a_tenant_can_neither_change_nor_drop_its_address(world: World) -> None:
    victim = world.own()["metadata"]["annotations"][ADDRESSES]
    made = world.own()["metadata"]
    name, address = made["name"], made["annotations"][ADDRESSES]
    for subresource in ("", "status"):
        for forged in (victim, f"{address},{victim}", "192.168.0.200", "nonsense", ""):
            with pytest.raises(KubeError, match=FORGED):
                world.tenant.patch(
                    "Namespace", name, {"metadata": {"annotations": {ADDRESSES: forged}}}, subresource=subresource
                )
        world.tenant.patch("Namespace", name, {"metadata": {"annotations": {ADDRESSES: None}}}, subresource=subresource)
        assert world.annotations(name)[ADDRESSES] == address
    # A request for another's address that comes later changes nothing: the namespace has one.
    world.tenant.patch("Namespace", name, {"metadata": {"annotations": {REQUEST: victim}}})
    assert world.annotations(name)[ADDRESSES] == address


@needs_real
def test_the_finalize_subresource_is_no_way_round(world: World) -> None:
    made = world.own()["metadata"]
    path = f"/api/v1/namespaces/{made['name']}"
    found = world.tenant.call("GET", path)
    found["metadata"]["annotations"][ADDRESSES] = "192.168.0.200"
    with pytest.raises(KubeError, match=FORGED):
        world.tenant.call("PUT", f"{path}/finalize", found)


@needs_real
def test_a_tenant_cannot_touch_the_objects(world: World) -> None:
    made = world.own()["metadata"]
    name, address = made["name"], made["annotations"][ADDRESSES]
    for kind, of in (("EgressAddress", address), ("NetNamespace", name), ("EgressPool", "prod")):
        with pytest.raises(KubeError, match=r"403: .* cannot patch"):
            world.tenant.patch(kind, of, {"metadata": {"labels": {"a": "b"}}})
        with pytest.raises(KubeError, match=r"403: .* cannot delete"):
            world.tenant.delete(kind, of)
    spec = {"pool": "prod", "namespace": {"name": name}}
    head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": {"name": "192.168.0.200"}}
    with pytest.raises(KubeError, match=r"403: .* cannot create"):
        world.tenant.create(head | {"spec": spec})


def test_what_is_forged_while_the_webhook_is_away_is_put_right(world: World) -> None:
    victim = world.own()["metadata"]
    made = world.own()["metadata"]
    world.control.kill("webhook")
    try:
        for forged in (victim["annotations"][ADDRESSES], "192.168.0.200", None):
            world.tenant.patch("Namespace", made["name"], {"metadata": {"annotations": {ADDRESSES: forged}}})
            until(lambda: world.annotations(made["name"]).get(ADDRESSES) == made["annotations"][ADDRESSES])
        thief = world.create(by=world.tenant, annotations={ADDRESSES: victim["annotations"][ADDRESSES]})
        name = thief["metadata"]["name"]
        until(lambda: world.annotations(name).get(ADDRESSES, "") not in ("", victim["annotations"][ADDRESSES]))
        assert world.annotations(victim["name"])[ADDRESSES] == victim["annotations"][ADDRESSES]
    finally:
        world.control.start("webhook")


# What admins write


def test_an_admin_is_told_whose_an_address_is(world: World) -> None:
    made = world.own()["metadata"]
    address = made["annotations"][ADDRESSES]
    held = f"address {address} is held by namespace {made['name']}"
    head = {"apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "metadata": {"name": "by-hand"}}
    with pytest.raises(KubeError, match=held):
        world.kube.create(head | {"netname": "by-hand", "netid": 77, "egressIPs": [address]})
    head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": "twin"}}
    with pytest.raises(KubeError, match=f"pools twin and prod overlap in {address}: take it out of one of them"):
        world.kube.create(head | {"spec": {"cidrs": [address]}})
    world.kube.warnings.clear()
    world.kube.call("DELETE", "/apis/egress.hawse.dev/v1alpha1/egresspools/prod?dryRun=All")
    assert any("addresses of pool prod are in use" in warning for warning in world.kube.warnings)


def test_an_admin_is_warned_of_an_address_on_a_second_node_and_in_a_second_namespace(world: World) -> None:
    """No table has the address: no NetNamespace lists it when the nodes do."""
    number = next(_numbers)
    address = f"172.17.{number // 250}.{1 + number % 250}"
    nodes = [f"node-{number}-{which}" for which in "ab"]
    for last, node in enumerate(nodes, 1):
        head = {"apiVersion": "network.openshift.io/v1", "kind": "HostSubnet", "metadata": {"name": node}}
        ip = f"172.18.{number % 250}.{last}"
        world.kube.create(head | {"host": node, "hostIP": ip, "subnet": "10.128.0.0/23"})

    def warnings(kind: str, name: str, addresses: list[str]) -> list[str]:
        world.kube.warnings.clear()
        world.kube.patch(kind, name, {"egressIPs": addresses})
        return list(world.kube.warnings)

    def warned(kind: str, name: str, expected: str) -> bool:
        warnings(kind, name, [])
        return any(expected in warning for warning in warnings(kind, name, [address]))

    assert warnings("HostSubnet", nodes[0], [address]) == []
    until(lambda: warned("HostSubnet", nodes[1], f"address {address} is on node {nodes[0]}, and on {nodes[1]} now"))
    bound = [f"by-hand-{number}-{which}" for which in "ab"]
    for netid, name in enumerate(bound, 100_000 + 2 * number):
        head = {"apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "metadata": {"name": name}}
        world.kube.create(head | {"netname": name, "netid": netid, "egressIPs": []})
    world.kube.patch("NetNamespace", bound[0], {"egressIPs": [address]})
    until(lambda: warned("NetNamespace", bound[1], f"address {address} was last seen in NetNamespace {bound[0]}"))


def test_without_the_webhook_an_admin_can_still_mend_and_the_workers_still_claim(world: World) -> None:
    number = next(_numbers)
    node = f"node-{number}"
    subnet = {"apiVersion": "network.openshift.io/v1", "kind": "HostSubnet", "metadata": {"name": node}}
    world.kube.create(
        subnet | {"host": node, "hostIP": f"172.16.{2 + number // 250}.{1 + number % 250}", "subnet": "10.128.0.0/23"}
    )
    world.control.kill("webhook")
    try:
        world.kube.patch("HostSubnet", node, {"egressIPs": ["172.16.1.1"]})
        world.kube.patch("HostSubnet", node, {"egressIPs": []})
        head = {
            "apiVersion": "egress.hawse.dev/v1alpha1",
            "kind": "EgressAddress",
            "metadata": {"name": "192.168.0.201"},
        }
        with pytest.raises(KubeError, match="failed calling webhook"):
            world.kube.create(head | {"spec": {"pool": "prod", "namespace": {"name": "by-hand"}}})
        if world.real:  # the embedded cluster has no conditions, and asks for the workers' claims too
            name = world.create()["metadata"]["name"]
            address = until(lambda: world.annotations(name).get(ADDRESSES))
            world.claimed(name, address)
    finally:
        world.control.start("webhook")


def test_a_change_of_the_certificate_costs_no_namespace_its_address(world: World) -> None:
    """HTTP/2 on the real API server, HTTP/1.1 on the embedded one."""
    taken_over = "a new process takes over"
    before = world.control.log("webhook").read_text().count(taken_over)
    ended = threading.Event()

    def create() -> list[str]:
        kube, given = world.another_admin(), []
        while not ended.is_set():
            made = world.create(by=kube, tier="gold")  # what it gives back at once is enough here
            given.append(made["metadata"].get("annotations", {}).get(ADDRESSES, "none"))
            kube.delete("Namespace", made["metadata"]["name"])
        return given

    with ThreadPoolExecutor(6) as threads:
        running = [threads.submit(create) for _ in range(6)]
        try:
            world.control.issue_certificate()
            until(lambda: world.control.log("webhook").read_text().count(taken_over) > before)
            time.sleep(2 * HAND_OVER_SECONDS)  # the old process is gone
        finally:
            ended.set()
    given = [address for future in running for address in future.result()]
    assert given
    assert "none" not in given
