"""OpenShift SDN on a real API server: HostSubnet and NetNamespace as it wants them, and no object more."""

from __future__ import annotations

import time
from typing import Any

import pytest

from egress.adapters import manifests
from egress.messages import FAILOVER_TASK, NAMESPACE_TASK, PUBLISH_TASK
from lab.native.sdn import SdnController
from tests.contract.makers.conftest import Server
from tests.contract.makers.test_ovn_kubernetes import POOL, A, B, conditions
from tests.contract.workers.conftest import World

Json = dict[str, Any]


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"network": "openshift-sdn"}


@pytest.fixture
def sdn(world: World) -> SdnController:
    return SdnController(world.kube)


def node(world: World, name: str, host_ip: str, *cidrs: str) -> None:
    """A node as OpenShift SDN leaves it; no runner of ours is on it."""
    world.node(name, host_ip, report=False)
    if cidrs:
        world.kube.patch("HostSubnet", name, {"egressCIDRs": list(cidrs)})


def start(world: World, name: str) -> None:
    """A namespace that no NetNamespace was made for yet."""
    world.namespace(name)
    world.run("hawse.v1.reconcile")
    while world.tasks and not world.failures:
        task, arguments = world.tasks.pop(0)
        world.run(task, *arguments)
    while world.tasks:
        task, arguments = world.tasks.pop()
        world.ledger.done_with(":".join((task, *arguments)))


def test_a_namespace_waits_for_its_net_namespace_and_gets_a_node(
    world: World, server: Server, sdn: SdnController
) -> None:
    node(world, "node1", "192.168.1.17")
    node(world, "node2", "192.168.1.18")
    world.pool("prod", POOL)
    start(world, "shop")
    assert world.failures == ["OpenShift SDN has not made the NetNamespace of shop yet"]
    assert world.annotation("shop") == A
    sdn.sync()
    world.reconcile()
    assert world.bound("shop") == [A]
    assert world.hosted("node1") == [A]
    assert conditions(world, A)["Ready"] == ("True", "Ready", "")
    assert "OpenShift SDN" in conditions(world, A)["Programmed"][2]
    assert server.writes() == {
        ("patch", "egresspools", "prod"),
        ("patch", "egresspools/status", "prod"),
        ("patch", "namespaces", "shop"),
        ("create", "egressaddresses", A),
        ("patch", "netnamespaces", "shop"),
        ("patch", "hostsubnets", "node1"),
        ("patch", "egressaddresses/status", A),
    }
    assert (world.ledger.read_table().epoch, world.ledger.nodes()) == ("", {})  # no node is told anything
    before = world.versions()
    world.reconcile()
    assert (world.versions(), server.writes()) == (before, set())


def test_a_host_subnet_with_egress_cidrs_is_never_written(world: World, server: Server, sdn: SdnController) -> None:
    node(world, "node1", "192.168.1.17")
    node(world, "node2", "192.168.1.18", f"{A}/32")
    world.pool("prod", POOL)
    for name in ("shop", "till"):
        world.namespace(name)
    sdn.sync()
    world.reconcile()
    given = {world.annotation(name): name for name in ("shop", "till")}
    assert world.hosted("node2") == []
    assert "left to OpenShift SDN: the egressCIDRs of HostSubnet node2" in conditions(world, A)["Placed"][2]
    assert conditions(world, B)["Ready"][0] == "True"
    sdn.sync()
    world.run(PUBLISH_TASK)
    world.settle()
    assert (world.hosted("node1"), world.hosted("node2")) == ([B], [A])
    assert conditions(world, A)["Placed"] == ("True", "Placed", "on node node2")
    world.delete(given[A])
    world.reconcile()
    assert world.hosted("node2") == [A]  # not Hawse's to take off
    sdn.sync()
    assert world.hosted("node2") == []
    assert {name for verb, kind, name in server.writes() if kind == "hostsubnets"} == {"node1"}


def test_a_namespace_that_is_gone_leaves_its_node_and_openshift_sdn_ends_its_net_namespace(
    world: World, server: Server, sdn: SdnController
) -> None:
    node(world, "node1", "192.168.1.17")
    world.pool("prod", POOL)
    world.namespace("shop")
    sdn.sync()
    world.reconcile()
    server.writes()
    world.delete("shop")
    world.run(NAMESPACE_TASK, "shop")
    world.settle()
    assert (world.bound("shop"), world.hosted("node1")) == ([], [])
    assert world.claims() == {A: ("shop", "Quarantined")}
    assert not [verb for verb, kind, _ in server.writes() if verb == "delete"]


def test_what_nobody_has_approved_is_on_no_node(world: World, sdn: SdnController) -> None:
    node(world, "node1", "192.168.1.17")
    world.pool("prod", POOL, approval="required")
    world.namespace("shop")
    sdn.sync()
    world.reconcile()
    assert (world.bound("shop"), world.hosted("node1")) == ([A], [])  # which OpenShift SDN drops
    assert conditions(world, A)["Ready"][0] == "False"
    decision = {"verdict": "approved", "by": "amy", "at": manifests.rfc3339(time.time()), "source": "test"}
    world.kube.patch("EgressAddress", A, {"status": {"decision": decision}}, subresource="status")
    world.run(PUBLISH_TASK)
    world.settle()
    assert world.hosted("node1") == [A]
    decision["verdict"] = "withdrawn"
    world.kube.patch("EgressAddress", A, {"status": {"decision": decision}}, subresource="status")
    world.run(PUBLISH_TASK)
    world.settle()
    assert (world.bound("shop"), world.hosted("node1")) == ([A], [])


def test_addresses_leave_a_node_that_kubernetes_has_given_up(world: World, sdn: SdnController) -> None:
    node(world, "node1", "192.168.1.17")
    node(world, "node2", "192.168.1.18")
    world.pool("prod", POOL)
    world.namespace("shop")
    sdn.sync()
    world.reconcile()

    def not_ready(seconds: float) -> None:
        since = manifests.rfc3339(time.time() - seconds)
        ready = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": since}
        world.kube.patch("Node", "node1", {"status": {"conditions": [ready]}}, subresource="status")
        world.run(FAILOVER_TASK)
        world.settle()

    not_ready(100)
    assert world.hosted("node1") == [A]
    not_ready(130)
    assert (world.hosted("node1"), world.hosted("node2")) == ([], [A])
    assert conditions(world, A)["Ready"][0] == "True"
