"""One acts, the others stand by: on the API server, and with two watches as processes."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml

from egress.adapters import cluster as adapter
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster
from lab.control_plane import free_ports, install
from lab.kube import Json, Kube
from lab.net.broker import Broker
from lab.real_cluster import RealCluster
from workers.leader import Election, LeaseLostError, Timing

TIMING = Timing(duration=10.0, renew_deadline=7.0, retry=1.0)
QUICK = Timing(duration=3.0, renew_deadline=1.5, retry=0.3)
"""For those who reach nobody any more."""
LEASES = "/apis/coordination.k8s.io/v1/namespaces/hawse-system/leases"
http = urllib3.PoolManager(retries=False, timeout=5.0)


@pytest.fixture(scope="module", params=["embedded", "real"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that tests may kill."""
    directory = tmp_path_factory.mktemp("cluster")
    if request.param == "real":
        request.getfixturevalue("real_binaries")
    with RealCluster(directory) if request.param == "real" else EmbeddedCluster(directory) as running:
        yield running


@pytest.fixture
def kube(cluster: Cluster) -> Kube:
    kube = Kube(cluster.url, cluster.ca_path, cluster.token)
    install(kube)
    kube.call("DELETE", LEASES)
    return kube


def candidate(kubeconfig: Path, timing: Timing = TIMING) -> Election:
    return Election(adapter.Cluster(str(kubeconfig), timeout=5.0), "hawse-system", "hawse-test", timing)


def elsewhere(directory: Path, url: str, timeout: float = QUICK.retry) -> adapter.Cluster:
    """A client of whatever listens on `url`, or of nobody."""
    config: Any = {"clusters": [{"name": "c", "cluster": {"server": url}}], "current-context": "c"}
    path = directory / "elsewhere.kubeconfig"
    path.write_text(yaml.safe_dump(config | {"contexts": [{"name": "c", "context": {"cluster": "c"}}]}))
    return adapter.Cluster(str(path), timeout=timeout)


def lease(kube: Kube, name: str = "hawse-test") -> Json:
    spec: Json = kube.call("GET", f"{LEASES}/{name}")["spec"]
    return spec


def test_the_first_leads_and_a_release_hands_over_at_once(kube: Kube, cluster: Cluster) -> None:
    first, second = candidate(cluster.kubeconfig), candidate(cluster.kubeconfig, Timing(3600, 10, 0.3))
    assert first.verdict()
    assert first.acquire(threading.Event())
    assert (lease(kube)["holderIdentity"], first.leads) == (first.identity, True)
    got = threading.Event()
    waiting = threading.Thread(target=lambda: second.acquire(threading.Event()) and got.set(), daemon=True)
    waiting.start()
    while second.verdict():
        waiting.join(0.01)
    stop = threading.Event()
    holding = threading.Thread(target=first.hold, args=(stop,))
    holding.start()
    assert not got.wait(1.5 * TIMING.duration)  # as long as it is renewed
    assert not second.leads
    stop.set()
    holding.join(60)
    first.release()
    assert got.wait(60)
    spec = lease(kube)
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == (second.identity, 1)
    first.release()  # it is another's by now
    assert lease(kube)["holderIdentity"] == second.identity


def test_a_standby_ends_when_it_is_told(cluster: Cluster, kube: Kube) -> None:
    assert candidate(cluster.kubeconfig).acquire(threading.Event())
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    assert not candidate(cluster.kubeconfig, Timing(3600, 10, 0.1)).acquire(stop)


def test_who_lost_the_lease_hears_it(cluster: Cluster, kube: Kube) -> None:
    one = candidate(cluster.kubeconfig)
    one.acquire(threading.Event())
    kube.call("PATCH", f"{LEASES}/hawse-test", {"spec": {"holderIdentity": "thief"}}, "application/merge-patch+json")
    with pytest.raises(LeaseLostError, match="taken by thief"):
        one.hold(threading.Event())


def test_a_leader_that_cannot_renew_gives_up_before_another_may_begin(
    cluster: Cluster, kube: Kube, tmp_path: Path
) -> None:
    one, other = candidate(cluster.kubeconfig), candidate(cluster.kubeconfig)
    one.acquire(threading.Event())
    order: list[str] = []

    def renew() -> None:
        try:
            one.hold(threading.Event())
        except LeaseLostError as error:
            order.append(str(error))

    renewing = threading.Thread(target=renew)
    one._cluster = elsewhere(tmp_path, "http://127.0.0.1:1")  # from now on it reaches nobody
    renewing.start()
    assert other.acquire(threading.Event())
    order.append("other")
    renewing.join(60)
    assert "could not be renewed" in order[0]
    assert order[1:] == ["other"]


def test_an_api_server_that_hangs_is_no_different(cluster: Cluster, kube: Kube, tmp_path: Path) -> None:
    one = candidate(cluster.kubeconfig, QUICK)
    one.acquire(threading.Event())
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and says nothing
        one._cluster = elsewhere(tmp_path, f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(LeaseLostError, match="could not be renewed"):
            one.hold(threading.Event())


def test_a_lease_that_somebody_deleted_is_made_again(cluster: Cluster, kube: Kube) -> None:
    one = candidate(cluster.kubeconfig)
    one.acquire(threading.Event())
    kube.call("DELETE", f"{LEASES}/hawse-test")
    assert one._attempt()
    assert lease(kube)["holderIdentity"] == one.identity


@pytest.mark.parametrize("spec", [{}, {"leaseDurationSeconds": 3}, {"holderIdentity": ""}])
def test_a_lease_without_a_holder_is_free(cluster: Cluster, kube: Kube, spec: Json) -> None:
    kube.call("POST", LEASES, {"metadata": {"name": "hawse-test", "namespace": "hawse-system"}, "spec": spec})
    assert candidate(cluster.kubeconfig)._attempt()


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[adapter.Cluster]:
    """A client of a server that refuses everything, as RBAC does."""

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (
                b'{"kind": "Status", "code": 403, "message": "leases is forbidden: User \\"x\\" cannot get resource"}'
            )
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield elsewhere(tmp_path, f"http://127.0.0.1:{server.server_port}", timeout=5.0)
    server.shutdown()
    server.server_close()


def test_without_rights_it_says_which_role_is_missing(refusing: adapter.Cluster) -> None:
    one = Election(refusing, "hawse-system", "hawse-test", QUICK)
    stop, elected = threading.Event(), []
    standing_by = threading.Thread(target=lambda: elected.append(one.acquire(stop)))
    standing_by.start()
    until(lambda: "bind the Role hawse-test-leader in namespace hawse-system" in str(one.verdict()))
    stop.set()
    standing_by.join()
    assert elected == [False]
    assert "cannot get resource" in str(one.verdict())


# As processes


class Watches:
    """Any number of `hawse-watch`, each with its own port."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> int:
        (port,) = free_ports(1)
        with (self._directory / f"watch-{port}.log").open("wb") as log:
            self.processes[port] = subprocess.Popen(
                [Path(sys.executable).parent / "hawse-watch"],
                env={**self._environment, "HAWSE_HEALTH_HOST": "127.0.0.1", "HAWSE_HEALTH_PORT": str(port)},
                stderr=log,
            )
        return port

    def leading(self) -> list[int]:
        """The ports of those that say that they lead and are ready."""
        return [port for port in self.processes if self._leads(port)]

    def ready(self, port: int) -> bool:
        try:
            return http.request("GET", f"http://127.0.0.1:{port}/readyz").status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _leads(self, port: int) -> bool:
        try:
            text = http.request("GET", f"http://127.0.0.1:{port}/metrics").data.decode()
        except urllib3.exceptions.HTTPError:
            return False
        return 'hawse_leader{component="watch"} 1.0' in text and self.ready(port)

    def end(self, port: int, number: int) -> int:
        process = self.processes.pop(port)
        process.send_signal(number)
        return process.wait(60)


@pytest.fixture
def watches(tmp_path: Path, broker: Broker, kube: Kube, cluster: Cluster) -> Iterator[Watches]:
    environment = {
        "HAWSE_REDIS_URL": broker.unix_url,
        "HAWSE_KUBECONFIG": str(cluster.kubeconfig),
        "HAWSE_LEASE_DURATION": "15",
        "HAWSE_LEASE_RENEW_DEADLINE": "10",
        "HAWSE_LEASE_RETRY": "2",
        "HAWSE_CERTIFICATES": "external",
    }
    watches = Watches(tmp_path, environment)
    yield watches
    for port in list(watches.processes):
        watches.end(port, signal.SIGKILL)


def until(check: Callable[[], Any], seconds: float = 90) -> Any:
    waiting = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if value := check():
            return value
        waiting.wait(0.05)
    raise AssertionError(f"still {value!r} after {seconds} s")


@pytest.mark.timeout(300)
def test_two_watches_of_which_one_acts(
    watches: Watches, kube: Kube, cluster: Cluster, broker: Broker, ledger: Any
) -> None:
    first = watches.start()
    until(lambda: watches.leading() == [first])
    second = watches.start()
    until(lambda: watches.ready(second))
    assert watches.leading() == [first]

    assert watches.end(first, signal.SIGKILL) == -signal.SIGKILL
    until(lambda: watches.leading() == [second])
    ledger._redis.flushall()
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "after-the-kill"}})
    until(lambda: ledger._redis.llen("hawse-broker:control") > 0)

    third = watches.start()
    until(lambda: watches.ready(third))
    before = lease(kube, "hawse-watch")["holderIdentity"]
    assert watches.end(second, signal.SIGTERM) == 0
    assert lease(kube, "hawse-watch").get("holderIdentity") != before
    until(lambda: watches.leading() == [third])

    fourth = watches.start()
    until(lambda: watches.ready(fourth))
    cluster.kill()
    until(lambda: not watches.leading())
    cluster.start()
    (leader,) = until(watches.leading)
    standby = ({third, fourth} - {leader}).pop()
    until(lambda: watches.ready(standby))
    assert watches.leading() == [leader]
    assert watches.end(standby, signal.SIGTERM) == 0  # a standby has nothing to release
    assert watches.end(leader, signal.SIGTERM) == 0
