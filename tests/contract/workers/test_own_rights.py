"""Leader election and the certificates' keeper as the service accounts of deploy/base, under real RBAC."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from egress.adapters.cluster import Cluster
from egress.operations import PermanentError
from lab.accounts import NAMESPACE, Accounts
from lab.control_plane import ROOT, install
from lab.kube import Kube
from lab.real_cluster import RealCluster
from workers import pki
from workers.certificates import Policy
from workers.keeper import Keeper, service_names
from workers.leader import Election, Timing

BASE = ROOT / "deploy" / "base"
POLICY = Policy(service_names(NAMESPACE))
GROUP = "/apis/admissionregistration.k8s.io/v1"


@pytest.fixture(scope="module")
def installed(
    real_binaries: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Kube, dict[str, Cluster]]]:
    """The admin, and the client of each process."""
    directory = tmp_path_factory.mktemp("rights")
    accounts = Accounts(directory / "cluster")
    with RealCluster(directory / "cluster") as running:
        kube = Kube(running.url, running.ca_path, running.token)
        install(kube)
        kube.apply_files([BASE / "namespace.yaml", BASE / "rbac.yaml", BASE / "webhooks.yaml"])
        for manifest in yaml.safe_load_all((BASE / "policies.yaml").read_text()):
            plural = manifest["kind"].lower().removesuffix("y") + ("ies" if manifest["kind"].endswith("y") else "s")
            kube.call("POST", f"{GROUP}/{plural}", manifest)
        files = accounts.kubeconfigs(running.kubeconfig, directory)
        yield kube, {component: Cluster(str(path), timeout=5.0) for component, path in files.items()}


def lead(cluster: Cluster, name: str, seconds: float) -> tuple[bool, str | None]:
    """Whether it leads within `seconds`, and what is wrong if not."""
    stop = threading.Event()
    timer = threading.Timer(seconds, stop.set)
    timer.start()
    election = Election(cluster, NAMESPACE, name, Timing(retry=0.3))
    led = election.acquire(stop)
    timer.cancel()
    election.release()
    return led, election.verdict()


def test_whoever_lacks_the_roles_says_which_are_missing(installed: tuple[Kube, dict[str, Cluster]]) -> None:
    _, clusters = installed
    led, reason = lead(clusters["worker"], "hawse-watch", 2)
    assert not led
    assert "bind the Role hawse-watch-leader in namespace hawse-system" in str(reason)
    keeper = Keeper(clusters["worker"], NAMESPACE, POLICY)
    with pytest.raises(PermanentError) as refused:
        keeper.step()
    assert "bind the Role and the ClusterRole hawse-certificates" in keeper.explained(refused.value)


@pytest.mark.parametrize("component", ["beat", "watch"])
def test_with_them_each_leads_and_releases(installed: tuple[Kube, dict[str, Cluster]], component: str) -> None:
    kube, clusters = installed
    assert lead(clusters[component], f"hawse-{component}", 30) == (True, None)
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/hawse-{component}"
    assert "holderIdentity" not in kube.call("GET", path)["spec"]


def test_with_them_the_shipped_webhooks_get_their_authority(installed: tuple[Kube, dict[str, Cluster]]) -> None:
    kube, clusters = installed
    keeper = Keeper(clusters["watch"], NAMESPACE, POLICY)
    while keeper.step():
        pass
    texts = kube.call("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/hawse-webhook-tls")["data"]
    (served,) = pki.read_certificates(base64.b64decode(texts["tls.crt"]).decode())
    for kind in ("mutating", "validating"):
        webhooks = kube.call("GET", f"{GROUP}/{kind}webhookconfigurations/hawse")["webhooks"]
        assert webhooks
        for webhook in webhooks:
            (authority,) = pki.read_certificates(base64.b64decode(webhook["clientConfig"]["caBundle"]).decode())
            assert served.signed_by(authority)
            service = webhook["clientConfig"]["service"]
            assert f"{service['name']}.{service['namespace']}.svc" in served.dns_names
    # and none of it was lost by writing the whole list of webhooks back
    kube.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}/secrets/hawse-webhook-ca")
    while keeper.step():
        pass
    assert kube.call("GET", f"{GROUP}/mutatingwebhookconfigurations/hawse")["webhooks"][0]["matchConditions"]
