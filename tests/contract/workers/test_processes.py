"""Webhook, worker, beat and watch as processes, over TLS, on the embedded API server."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from egress.adapters.ledger import Ledger
from lab.accounts import Accounts
from lab.apiserver.process import EmbeddedCluster
from lab.apiserver.webhook_stub import serve
from lab.control_plane import ControlPlane, install
from lab.kube import Kube, KubeError
from lab.net.broker import Broker

ADDRESSES = "egress.hawse.dev/addresses"
SETTINGS = {
    "HAWSE_RESERVATION_LIFETIME": "1",
    "HAWSE_SWEEP_INTERVAL": "0.5",
    "HAWSE_RECONCILE_INTERVAL": "1",
    "HAWSE_REPORT_WAIT": "0.5",
}
MANY = 200


@pytest.fixture(scope="module")
def kube_and_control(
    tmp_path_factory: pytest.TempPathFactory, broker: Broker
) -> Iterator[tuple[Kube, ControlPlane, Ledger]]:
    directory = tmp_path_factory.mktemp("processes")
    cluster = EmbeddedCluster(directory / "cluster")
    accounts = Accounts(directory / "cluster")
    ledger = Ledger(broker.unix_url)
    ledger._redis.flushall()
    with cluster:
        kube = Kube(cluster.url, cluster.ca_path, cluster.token)
        install(kube)
        control = ControlPlane(
            Path(directory / "control"),
            redis_url=broker.unix_url,
            kubeconfigs=accounts.kubeconfigs(cluster.kubeconfig, directory),
            environment=SETTINGS,
        )
        try:
            control.start()
            control.register_webhooks(kube)
            pool = {"cidrs": ["192.168.0.0/22"], "namespaceSelector": {}, "quarantine": "10m"}
            kube.create(
                {
                    "apiVersion": "egress.hawse.dev/v1alpha1",
                    "kind": "EgressPool",
                    "metadata": {"name": "prod"},
                    "spec": pool,
                }
            )
            until(lambda: ledger.is_ready() and ledger.offer().pools)
            yield kube, control, ledger
            assert control.dead() == []
        finally:
            control.stop()
            ledger.close()


@pytest.fixture
def kube(kube_and_control: tuple[Kube, ControlPlane, Ledger]) -> Kube:
    return kube_and_control[0]


@pytest.fixture
def ledger(kube_and_control: tuple[Kube, ControlPlane, Ledger]) -> Ledger:
    return kube_and_control[2]


def until(check: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.05)
    return value


def create(kube: Kube, name: str, **labels: str) -> str:
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    answer = kube.create(manifest)
    text: str = answer["metadata"].get("annotations", {}).get(ADDRESSES, "")
    return text


def test_two_hundred_at_once_get_two_hundred_addresses_in_the_same_request(kube: Kube, ledger: Ledger) -> None:
    with ThreadPoolExecutor(32) as threads:
        given = list(threads.map(lambda number: create(kube, f"many-{number}"), range(MANY)))
    assert len(set(given) - {""}) == MANY
    until(lambda: len(kube.list("EgressAddress")) == MANY, 60)
    until(lambda: len(kube.list("NetNamespace")) == MANY, 60)
    bound = {item["metadata"]["name"]: item["egressIPs"] for item in kube.list("NetNamespace")}
    assert bound == {f"many-{number}": [address] for number, address in enumerate(given)}
    assert len({item["netid"] for item in kube.list("NetNamespace")}) == MANY
    until(lambda: {state for state, _ in ledger.usage().values()} == {"claimed"})


def test_a_namespace_that_another_webhook_refuses_leaks_nothing(kube: Kube, ledger: Ledger) -> None:
    with serve() as other:
        other.answer = lambda _: {"allowed": False, "status": {"code": 403, "message": "not this one"}}
        kube.call(
            "POST",
            "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
            {
                "metadata": {"name": "other"},
                "webhooks": [
                    {
                        "name": "other.example.dev",
                        "admissionReviewVersions": ["v1"],
                        "sideEffects": "None",
                        "clientConfig": {"url": other.url, "caBundle": other.ca},
                        "objectSelector": {"matchLabels": {"refuse": "me"}},
                        "rules": [
                            {
                                "operations": ["CREATE"],
                                "apiGroups": [""],
                                "apiVersions": ["v1"],
                                "resources": ["namespaces"],
                            }
                        ],
                    }
                ],
            },
        )
        with pytest.raises(KubeError, match="not this one"):
            create(kube, "unwanted", refuse="me")
        metadata = {"generateName": "u-", "labels": {"refuse": "me"}}
        with pytest.raises(KubeError, match="not this one"):
            kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        assert sum(state == "reserved" for state, _ in ledger.usage().values()) == 2
    until(lambda: all(state != "reserved" for state, _ in ledger.usage().values()))


def test_a_generated_name_is_claimed_under_its_name(kube: Kube, ledger: Ledger) -> None:
    made = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "team-"}})
    name, address = made["metadata"]["name"], made["metadata"]["annotations"][ADDRESSES]
    until(lambda: ("claimed", f"ns/{name}") in ledger.usage().values())
    claim = until(lambda: kube.get("EgressAddress", address))
    assert claim["spec"]["namespace"] == {"name": name, "uid": made["metadata"]["uid"]}


def test_a_user_cannot_change_the_annotation_and_the_workers_can(kube: Kube) -> None:
    address = create(kube, "guarded")
    with pytest.raises(KubeError, match="written by Hawse alone"):
        kube.patch("Namespace", "guarded", {"metadata": {"annotations": {ADDRESSES: "192.168.3.3"}}})
    kube.patch("Namespace", "guarded", {"metadata": {"annotations": {ADDRESSES: None}}})
    found = kube.get("Namespace", "guarded")
    assert found is not None
    assert found["metadata"]["annotations"][ADDRESSES] == address


def test_a_flush_under_load_gives_nothing_twice(kube: Kube, ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(create, kube, f"load-{number}") for number in range(60)]
        for _ in range(3):
            ledger._redis.flushall()
            time.sleep(0.3)
        for future in running:
            future.result()

    def all_have_their_own() -> bool:
        names = [f"load-{number}" for number in range(60)]
        annotations = {
            item["metadata"]["name"]: item["metadata"].get("annotations", {}).get(ADDRESSES, "")
            for item in kube.list("Namespace")
        }
        claims = {item["metadata"]["name"]: item["spec"]["namespace"]["name"] for item in kube.list("EgressAddress")}
        bound = {item["metadata"]["name"]: item["egressIPs"] for item in kube.list("NetNamespace")}
        return all(claims.get(annotations[n]) == n and bound.get(n) == [annotations[n]] for n in names)

    until(all_have_their_own, 60)
    given = [item["metadata"]["annotations"][ADDRESSES] for item in kube.list("Namespace") if _served(item)]
    assert len(given) == len(set(given))


def _served(item: dict[str, Any]) -> bool:
    return ADDRESSES in (item["metadata"].get("annotations") or {})


def test_a_killed_worker_costs_only_time(kube: Kube, kube_and_control: tuple[Kube, ControlPlane, Ledger]) -> None:
    control = kube_and_control[1]
    control.kill("worker")
    address = create(kube, "patient")
    assert address
    time.sleep(0.5)
    assert kube.get("EgressAddress", address) is None
    control.start("worker")
    until(lambda: kube.get("EgressAddress", address), 30)
