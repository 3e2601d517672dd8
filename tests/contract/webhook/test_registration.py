"""deploy/base/webhooks.yaml on a real API server: what it asks about, and what not. A stub stands in for Hawse."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from egress import pools
from lab.accounts import Accounts
from lab.apiserver.webhook_stub import Webhook, serve
from lab.control_plane import WEBHOOKS, install
from lab.kube import Kube, KubeError
from lab.real_cluster import RealCluster

Json = dict[str, Any]
ADDRESSES = "egress.hawse.dev/addresses"
POD_NET = "10.128.0.0/23"
ADDRESS = {"egressIPs": ["10.0.0.1"]}
_numbers = itertools.count(1)


class Cluster:
    """A cluster that asks a stub, as its admin and as Hawse's workers see it. `label` is on all objects of a test."""

    def __init__(self, kube: Kube, workers: Kube, stub: Webhook) -> None:
        self.kube = kube
        self.workers = workers
        self.stub = stub

    def asked(self) -> list[str]:
        """Which webhooks were asked about which operation since this was last called, each once: an API server whose
        watch cache is a moment behind reads the object again, and asks again."""
        calls = set()
        while self.stub.calls:  # it may be asked meanwhile
            path, request = self.stub.calls.pop(0)
            calls.add(f"{path.partition('?')[0]} {request['operation']}")
        return sorted(calls)


@pytest.fixture(scope="module")
def cluster(real_binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("registration")
    accounts = Accounts(directory / "cluster")
    with RealCluster(directory / "cluster") as real, serve() as stub:
        kube = Kube(real.url, real.ca_path, real.token)
        install(kube)
        config = yaml.safe_load(accounts.kubeconfigs(real.kubeconfig, directory)["worker"].read_text())
        workers = Kube(real.url, real.ca_path, config["users"][0]["user"]["token"])
        for configuration in yaml.safe_load_all(WEBHOOKS.read_text()):
            for webhook in configuration["webhooks"]:
                path = webhook["clientConfig"]["service"]["path"]
                webhook["clientConfig"] = {"url": stub.url.removesuffix("/admit") + path, "caBundle": stub.ca}
            kube.create(configuration)
        cluster = Cluster(kube, workers, stub)
        deadline = time.monotonic() + 30
        while {call.split("/")[1] for call in cluster.asked()} != {"admit", "validate"}:
            assert time.monotonic() < deadline
            kube.create(namespace(f"probe-{next(_numbers)}", **{ADDRESSES: "10.0.0.1"}))
        yield cluster


@pytest.fixture(autouse=True)
def quiet(cluster: Cluster) -> None:
    cluster.asked()


def namespace(name: str, **annotations: str) -> Json:
    key = "generateName" if name.endswith("-") else "name"
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {key: name, "annotations": annotations}}


def test_every_condition_compiles_and_every_webhook_says_what_is_to_be_said() -> None:
    for configuration in yaml.safe_load_all(WEBHOOKS.read_text()):
        assert configuration["metadata"]["name"] == "hawse"
        for webhook in configuration["webhooks"]:
            assert webhook["failurePolicy"] == ("Fail" if webhook["name"].startswith("egressaddresses.") else "Ignore")
            assert webhook["sideEffects"] in ("None", "NoneOnDryRun")
            assert webhook["matchPolicy"] == "Equivalent"
            assert webhook["timeoutSeconds"] <= 5
            assert webhook["clientConfig"]["service"]["namespace"] == "hawse-system"


def test_a_new_namespace_is_asked_about_and_validated_if_it_has_the_annotation(cluster: Cluster) -> None:
    cluster.kube.create(namespace("asked"))
    assert cluster.asked() == ["/admit/namespaces CREATE"]
    cluster.kube.create(namespace("generated-"))
    assert cluster.asked() == ["/admit/namespaces CREATE"]
    cluster.kube.create(namespace("annotated", **{ADDRESSES: "10.0.0.1"}))
    assert cluster.asked() == ["/admit/namespaces CREATE", "/validate/namespaces CREATE"]


@pytest.mark.parametrize("name", ["kube-x", "openshift", "openshift-x", "kube", "kube-generated-"])
def test_a_system_namespace_is_not_asked_about(cluster: Cluster, name: str) -> None:
    cluster.kube.create(namespace(name, **{ADDRESSES: "10.0.0.1"}))
    # A name that will be generated is not known to the conditions yet; the webhook itself knows by its beginning.
    assert cluster.asked() == (["/admit/namespaces CREATE"] if name.endswith("-") else [])


@pytest.mark.parametrize("name", ["kubernetes", "my-kube-x", "openshifty", "defaults", "hawse-system2"])
def test_the_conditions_know_the_same_system_namespaces_as_the_code(cluster: Cluster, name: str) -> None:
    assert not pools.is_system(name)
    cluster.kube.create(namespace(name))
    assert cluster.asked() == ["/admit/namespaces CREATE"]


def test_only_a_change_of_the_annotation_is_asked_about(cluster: Cluster) -> None:
    name = f"changed-{next(_numbers)}"
    cluster.kube.create(namespace(name, **{ADDRESSES: "10.0.0.1", "egress.hawse.dev/pool": "a"}))
    cluster.asked()
    both = ["/admit/namespaces UPDATE", "/validate/namespaces UPDATE"]
    for subresource in ("", "status"):
        for change, expected in (
            ({"labels": {"a": subresource or "b"}}, []),
            ({"annotations": {"other": subresource or "b"}}, []),
            ({"annotations": {ADDRESSES: "10.0.0.2"}}, both),
            ({"annotations": {ADDRESSES: None}}, both),
            ({"annotations": {ADDRESSES: "10.0.0.1"}}, both),
        ):
            cluster.kube.patch("Namespace", name, {"metadata": change}, subresource=subresource)
            assert cluster.asked() == expected, (subresource, change)
    found = cluster.kube.get("Namespace", name)
    assert found is not None
    del found["metadata"]["annotations"]
    cluster.kube.call("PUT", f"/api/v1/namespaces/{name}/finalize", found)
    assert cluster.asked() == both
    cluster.workers.patch("Namespace", name, {"metadata": {"annotations": {ADDRESSES: "10.0.0.3"}}})
    cluster.kube.delete("Namespace", name)
    assert cluster.asked() == []


def test_objects_are_asked_about_when_what_matters_changes(cluster: Cluster) -> None:
    openshift, ours = "network.openshift.io/v1", "egress.hawse.dev/v1alpha1"
    for kind, version, fields, changes in (
        ("NetNamespace", openshift, {"netname": "n", "netid": 7}, (ADDRESS, {"netid": 8})),
        ("HostSubnet", openshift, {"host": "n", "hostIP": "10.1.0.1", "subnet": POD_NET}, (ADDRESS,)),
        ("EgressPool", ours, {"spec": {"cidrs": ["10.0.0.1"]}}, ({"spec": {"cidrs": ["10.0.0.2"]}},)),
    ):  # fmt: skip
        path = f"/validate/{kind.lower()}s"
        cluster.kube.create({"apiVersion": version, "kind": kind, "metadata": {"name": "n"}, **fields})
        assert cluster.asked() == [f"{path} CREATE"]
        for change in changes:
            cluster.kube.patch(kind, "n", change)
            assert cluster.asked() == [f"{path} UPDATE"]
            cluster.kube.patch(kind, "n", change | {"metadata": {"labels": {"a": "b"}}})
            assert cluster.asked() == []
        cluster.kube.delete(kind, "n")
        assert cluster.asked() == ([f"{path} DELETE"] if kind == "EgressPool" else [])


def test_the_workers_are_never_asked_about(cluster: Cluster) -> None:
    name = "10.0.0.9"
    head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": {"name": name}}
    cluster.workers.create(head | {"spec": {"pool": "p", "namespace": {"name": "n", "uid": "1"}}})
    cluster.workers.patch("EgressAddress", name, {"spec": {"namespace": {"uid": "2"}}})
    cluster.workers.delete("EgressAddress", name)
    head = {"apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "metadata": {"name": "workers"}}
    cluster.workers.create(head | {"netname": "workers", "netid": 9, "egressIPs": ["10.0.0.9"]})
    cluster.workers.patch("NetNamespace", "workers", {"egressIPs": []})
    assert cluster.asked() == []
    cluster.kube.create(
        {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": {"name": name}}
        | {"spec": {"pool": "p", "namespace": {"name": "n"}}}
    )
    assert cluster.asked() == ["/validate/egressaddresses CREATE"]
    cluster.kube.patch("EgressAddress", name, {"metadata": {"labels": {"a": "b"}}})
    assert cluster.asked() == []
    cluster.kube.delete("EgressAddress", name)
    assert cluster.asked() == []


def test_a_refusal_of_every_webhook_is_heard(cluster: Cluster) -> None:
    cluster.stub.answer = lambda _: {"allowed": False, "status": {"code": 403, "message": "not so"}}
    try:
        with pytest.raises(KubeError, match=r'"namespaces.egress.hawse.dev" denied the request: not so'):
            cluster.kube.create(namespace("refused"))
    finally:
        cluster.stub.answer = lambda _: {"allowed": True}
