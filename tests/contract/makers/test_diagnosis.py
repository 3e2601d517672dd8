"""What is shown of a native network: objects and their status, and that no node was looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from egress.adapters.cluster import Cluster
from egress.cli.verify import path_lines
from egress.diagnosis import FaultKind
from egress.networks import Network
from lab.native.ovn import OvnController, add_node
from lab.native.sdn import SdnController
from tests.contract.makers.conftest import Server
from tests.contract.makers.test_ovn_kubernetes import POOL, A, converge
from tests.contract.workers.conftest import World
from webhook.api.diagnosing import Diagnosing
from webhook.api.mirrors import Mirrors
from webhook.api.reading import Reading


@pytest.fixture
def diagnosing(world: World, server: Server) -> Callable[[], tuple[Diagnosing, Reading]]:
    """What the API shows now, with the rights of its role."""

    def make() -> tuple[Diagnosing, Reading]:
        cluster = Cluster(str(server.kubeconfigs["api"]))
        mirrors, stop = Mirrors.of(cluster), threading.Event()
        mirrors.start(stop)
        assert mirrors.wait(20)
        stop.set()
        reading = Reading(mirrors, world.ledger, lambda: "", world.context.network)
        return Diagnosing(cluster, world.ledger, reading, lambda *_: pytest.fail("no node is to be asked")), reading

    return make


def test_ovn_kubernetes(world: World, diagnosing: Callable[[], tuple[Diagnosing, Reading]]) -> None:
    world.pool("prod", POOL)
    world.namespace("shop")
    converge(world, OvnController(world.kube))
    asked, reading = diagnosing()
    way = asked.explain("shop")
    assert way.state == "normal"  # it leaves with the nodes' IPs until there is a node
    assert {fault.kind for fault in way.faults} == {FaultKind.EGRESS_IP, FaultKind.NOT_READY}
    detail = reading.namespace("shop")
    assert detail is not None
    assert "label one with" in detail.reasons[0]
    add_node(world.kube, "node1", "192.168.1.17/24")
    converge(world, OvnController(world.kube))
    asked, reading = diagnosing()
    way = asked.explain("shop")
    assert (way.state, way.faults, way.nodes) == ("via", (), ())
    assert [(piece.what, piece.found) for piece in way.objects] == [
        ("EgressIP hawse-shop: egressIPs", A),
        (f"EgressIP hawse-shop: node of {A}", "node1"),
    ]
    assert way.unseen == Network.OVN_KUBERNETES.unseen
    assert any("are not looked at" in line for line in path_lines(way))
    found = asked.verify()
    assert (found.total, found.addresses, found.nodes, found.unseen) == (0, 1, 0, way.unseen)
    assert (reading.overview().network, reading.overview().unseen) == ("ovn-kubernetes", way.unseen)


@pytest.mark.parametrize("settings", [{"network": "openshift-sdn"}])
def test_openshift_sdn(world: World, diagnosing: Callable[[], tuple[Diagnosing, Reading]]) -> None:
    world.pool("prod", POOL)
    world.namespace("shop")
    SdnController(world.kube).sync()
    world.reconcile()
    asked, _ = diagnosing()
    assert asked.explain("shop").state == "drop"  # OpenShift SDN sees to it
    world.node("node1", "192.168.1.17", report=False)
    world.reconcile()
    asked, _ = diagnosing()
    way = asked.explain("shop")
    assert (way.state, way.faults) == ("via", ())
    assert [(piece.what, piece.found) for piece in way.objects] == [
        ("NetNamespace shop: egressIPs", A),
        (f"HostSubnets with {A}", "node1"),
    ]
    world.kube.patch("HostSubnet", "node1", {"egressIPs": []})
    (fault,) = asked.explain("shop").faults
    assert fault.kind is FaultKind.HOST_SUBNET
    assert asked.verify().total == 1
