"""Who programs the nodes, as a real API server shows it to the workers: with their rights, and what each kind means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from egress.adapters.cluster import Cluster
from egress.adapters.networks import Detector
from egress.networks import Network, NetworkError
from lab.control_plane import ROOT
from tests.contract.makers.conftest import Server
from tests.contract.workers.conftest import World

Json = dict[str, Any]


@pytest.fixture(scope="module")
def openshift(server: Server) -> Iterator[Callable[..., None]]:
    """Says in Network.config.openshift.io what the cluster's network is."""
    manifests = yaml.safe_load_all((ROOT / "lab" / "native" / "crds.yaml").read_text())
    (crd,) = [manifest for manifest in manifests if manifest["spec"]["names"]["kind"] == "Network"]
    server.kube.create(crd)
    World.until(lambda: "networks" in Cluster(str(server.cluster.kubeconfig)).resources("config.openshift.io/v1"))

    def say(kind: str, later: str = "") -> None:
        status: Json = {"networkType": kind, "migration": {"networkType": later} if later else None}
        head = {"apiVersion": "config.openshift.io/v1", "kind": "Network", "metadata": {"name": "cluster"}}
        if server.kube.get("Network", "cluster") is None:
            World.until(lambda: server.kube.create(head | {"spec": {"networkType": kind}}))
        server.kube.patch("Network", "cluster", {"status": status})

    yield say
    server.kube.delete("CustomResourceDefinition", crd["metadata"]["name"])
    World.until(lambda: not Cluster(str(server.cluster.kubeconfig)).resources("config.openshift.io/v1"))


def detect(server: Server, wish: str = "auto", component: str = "worker") -> Network:
    return Detector(Cluster(str(server.kubeconfigs[component])), wish)()


def test_where_runners_and_ovn_kubernetes_are_both_set_up_somebody_must_say(server: Server) -> None:
    with pytest.raises(NetworkError, match=r"two would program the nodes: .*runner would.*ovn-kubernetes would"):
        detect(server)
    for network in Network:
        assert detect(server, network.value) is network


@pytest.mark.parametrize("component", ["worker", "watch", "api"])
def test_openshift_names_its_network_and_each_process_may_read_it(
    server: Server, openshift: Callable[..., None], component: str
) -> None:
    openshift("OVNKubernetes")
    # The kinds of Hawse's runners are there too, which on this cluster nothing but an installation of ours explains.
    with pytest.raises(NetworkError, match=r"Network\.config\.openshift\.io says OVNKubernetes"):
        detect(server, component=component)
    openshift("OpenShiftSDN", later="OVNKubernetes")
    with pytest.raises(NetworkError, match="migrates to OVNKubernetes"):
        detect(server, component=component)
