"""Webhook, worker, beat and watch as processes, over TLS, on either API server, with three nodes in memory."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from urllib3.exceptions import HTTPError

from egress.adapters import pausing
from egress.adapters.cluster import Cluster as Client
from egress.adapters.ledger import Ledger
from lab import marker
from lab.accounts import Accounts
from lab.apiserver.process import EmbeddedCluster
from lab.apiserver.webhook_stub import serve
from lab.cluster import Cluster
from lab.control_plane import ControlPlane, install
from lab.kube import Kube, KubeError
from lab.net.broker import Broker
from lab.real_cluster import RealCluster
from lab.virtual_nodes import VirtualNodes

ADDRESSES = "egress.hawse.dev/addresses"
SETTINGS = {
    "HAWSE_RESERVATION_LIFETIME": "10",
    "HAWSE_SWEEP_INTERVAL": "0.5",
    "HAWSE_RECONCILE_INTERVAL": "1",
    "HAWSE_REPORT_WAIT": "0.5",
    "HAWSE_REDIS_TIMEOUT": "5",  # else a busy machine has namespaces admitted without an address
}
MANY, CLIENTS = 500, 20
NODES = [IPv4Address("192.168.1.17"), IPv4Address("192.168.1.18"), IPv4Address("192.168.1.19")]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", params=["embedded", "real"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, broker: Broker
) -> Iterator[tuple[Kube, ControlPlane, Ledger, Cluster]]:
    if request.param == "real":
        request.getfixturevalue("real_binaries")
    directory = tmp_path_factory.mktemp("processes")
    cluster: Cluster = (RealCluster if request.param == "real" else EmbeddedCluster)(directory / "cluster")
    accounts = Accounts(directory / "cluster")
    ledger = Ledger(broker.unix_url)
    ledger._redis.flushall()
    with cluster:
        kube = Kube(cluster.url, cluster.ca_path, cluster.token)
        install(kube)
        nodes = VirtualNodes(broker.unix_url, NODES, prefix_length=21)
        control = ControlPlane(
            Path(directory / "control"),
            redis_url=broker.unix_url,
            kubeconfigs=accounts.kubeconfigs(cluster.kubeconfig, directory),
            environment=SETTINGS,
        )
        try:
            control.start()
            control.register_webhooks(kube)
            nodes.create(kube)
            pool = {"cidrs": ["192.168.0.0/21"], "namespaceSelector": {}, "quarantine": "10m"}
            kube.create(
                {
                    "apiVersion": "egress.hawse.dev/v1alpha1",
                    "kind": "EgressPool",
                    "metadata": {"name": "prod"},
                    "spec": pool,
                }
            )
            until(lambda: ledger.is_ready() and ledger.offer().pools)
            with nodes:
                yield kube, control, ledger, cluster
            assert control.dead() == {}
        finally:
            control.stop()
            ledger.close()


@pytest.fixture
def kube(running: tuple[Kube, ControlPlane, Ledger, Cluster]) -> Kube:
    return running[0]


@pytest.fixture
def control(running: tuple[Kube, ControlPlane, Ledger, Cluster]) -> ControlPlane:
    return running[1]


@pytest.fixture
def ledger(running: tuple[Kube, ControlPlane, Ledger, Cluster]) -> Ledger:
    return running[2]


@pytest.fixture
def cluster(running: tuple[Kube, ControlPlane, Ledger, Cluster]) -> Cluster:
    return running[3]


def until(check: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.05)
    return value


def create(kube: Kube, name: str, **labels: str) -> str:
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    return addresses(kube.create(manifest))


def addresses(namespace: dict[str, Any]) -> str:
    text: str = (namespace["metadata"].get("annotations") or {}).get(ADDRESSES, "")
    return text


def agreed(kube: Kube, given: dict[str, str]) -> bool:
    """Whether all objects say the same of each namespace and its address: claim, NetNamespace and one HostSubnet."""
    claims = {item["spec"]["namespace"]["name"]: item["metadata"]["name"] for item in kube.list("EgressAddress")}
    bindings = kube.list("NetNamespace")
    bound = {item["metadata"]["name"]: item.get("egressIPs") for item in bindings}
    hosted = Counter(address for item in kube.list("HostSubnet") for address in item.get("egressIPs") or [])
    distinct = len({item["netid"] for item in bindings}) == len(bindings)
    return distinct and all(
        claims.get(name) == address and bound.get(name) == [address] and hosted[address] == 1
        for name, address in given.items()
    )


def test_five_hundred_at_once_by_twenty_clients(kube: Kube, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"many-{number}" for number in range(MANY)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        given = dict(zip(names, threads.map(lambda name: create(kube, name), names), strict=True))
    began = time.monotonic()
    assert len(set(given.values()) - {""}) == MANY
    until(lambda: agreed(kube, given), 200)
    with capsys.disabled():
        print(
            f"\n   {MANY} namespaces agree in all objects {time.monotonic() - began:.0f} s after the last was created"
        )
    until(lambda: all(item.get("status", {}).get("phase") == "Ready" for item in kube.list("EgressAddress")))
    assert {state for state, _ in ledger.usage().values()} == {"claimed"}


def test_the_api_server_killed_in_the_middle_of_a_burst(kube: Kube, cluster: Cluster) -> None:
    names = [f"amid-{number}" for number in range(60)]
    given: dict[str, str] = {}

    def one(name: str) -> None:
        """As a person with patience would: again, until it is there."""
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline
            with suppress(KubeError, OSError, HTTPError):
                found = kube.get("Namespace", name)
                if address := addresses(found) if found else create(kube, name):
                    given[name] = address
                    return
            time.sleep(0.1)

    with ThreadPoolExecutor(CLIENTS) as threads:
        running = [threads.submit(one, name) for name in names]
        time.sleep(0.3)
        cluster.kill()
        time.sleep(1)
        cluster.start()
        for future in running:
            future.result()
    assert len(set(given.values()) - {""}) == len(names)
    until(lambda: agreed(kube, given))


def test_a_namespace_that_another_webhook_refuses_leaks_nothing(kube: Kube, ledger: Ledger) -> None:
    until(lambda: all(state != "reserved" for state, _ in ledger.usage().values()))  # by those who were cut off before
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
                    },
                    marker.webhook("other"),
                ],
            },
        )
        until(lambda: marker.in_effect(kube, "other"))
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

    until(all_have_their_own)
    given = [item["metadata"]["annotations"][ADDRESSES] for item in kube.list("Namespace") if _served(item)]
    assert len(given) == len(set(given))


def _served(item: dict[str, Any]) -> bool:
    return ADDRESSES in (item["metadata"].get("annotations") or {})


def test_a_killed_worker_costs_only_time(kube: Kube, control: ControlPlane) -> None:
    control.kill("worker")
    address = create(kube, "patient")
    assert address
    time.sleep(0.5)
    assert kube.get("EgressAddress", address) is None
    control.start("worker")
    until(lambda: kube.get("EgressAddress", address))


def test_a_pause_stops_what_decides_and_nothing_is_lost(kube: Kube, ledger: Ledger, cluster: Cluster) -> None:
    client = Client(str(cluster.kubeconfig))
    before = create(kube, "before-a-pause")
    until(lambda: kube.get("EgressAddress", before))
    pausing.pause(client, "hawse-system", "alice: the switch is being replaced")
    try:
        time.sleep(pausing.LOOK_SECONDS + 0.5)  # what is under way ends, and every process has looked
        address = create(kube, "amid-a-pause")
        kube.delete("Namespace", "before-a-pause")
        time.sleep(2)  # two reconciles
        assert kube.get("EgressAddress", address) is None
        kept = kube.get("EgressAddress", before)
        assert kept is not None
        assert kept.get("status", {}).get("phase") != "Quarantined"
    finally:
        pausing.resume(client, "hawse-system")
    # The worker that was killed above may have been at a reconcile, whose lock nobody gets for 30 s then.
    claim = until(lambda: kube.get("EgressAddress", address))
    assert claim["spec"]["namespace"]["name"] == "amid-a-pause"
    until(lambda: (kube.get("EgressAddress", before) or {}).get("status", {}).get("phase") == "Quarantined")
