"""OVN-Kubernetes on a real API server: what Hawse writes and nothing else, and what it says of what became of it."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from egress.adapters import manifests
from lab.native.ovn import OvnController, add_node
from tests.contract.makers.conftest import Server
from tests.contract.workers.conftest import World

Json = dict[str, Any]
A, B, C = "192.168.1.102", "192.168.1.103", "192.168.1.104"
POOL = f"{A}-192.168.1.120"
COUNT = int(os.environ.get("MAKERS_NAMESPACES", "25"))


def converge(world: World, ovn: OvnController | None = None) -> None:
    """Reconcile, let OVN-Kubernetes have its say, and hear it."""
    world.reconcile()
    if ovn is not None:
        ovn.sync()
        world.run("hawse.v1.publish")
        world.settle()


def conditions(world: World, address: str) -> dict[str, tuple[str, str, str]]:
    """Each condition of an address: status, reason, message."""
    found = world.kube.get("EgressAddress", address)
    assert found is not None
    items = found.get("status", {}).get("conditions", [])
    return {item["type"]: (item["status"], item["reason"], item.get("message", "")) for item in items}


def test_a_namespace_gets_one_egress_ip_and_is_ready_when_its_status_says_so(world: World, server: Server) -> None:
    add_node(world.kube, "node1", "192.168.1.17/24")
    world.pool("prod", POOL)
    world.namespace("shop")
    converge(world)
    address = world.annotation("shop")
    assert address == A
    (made,) = world.kube.list("EgressIP")
    assert made["metadata"]["name"] == "hawse-shop"
    assert made["spec"] == {
        "egressIPs": [A],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}},
    }
    assert conditions(world, A)["Bound"][0] == "True"
    assert conditions(world, A)["Ready"][0] == "False"
    converge(world, OvnController(world.kube))
    assert conditions(world, A)["Placed"] == ("True", "Placed", "on node node1")
    assert conditions(world, A)["Ready"][0] == "True"
    assert world.claims() == {A: ("shop", "Ready")}
    assert server.writes() == {
        ("patch", "egresspools", "prod"),
        ("patch", "egresspools/status", "prod"),
        ("patch", "namespaces", "shop"),
        ("create", "egressaddresses", A),
        ("create", "egressips", "hawse-shop"),
        ("patch", "egressaddresses/status", A),
    }
    assert (world.ledger.read_table().epoch, world.ledger.nodes()) == ("", {})  # no node is told anything
    before = world.versions()
    converge(world, OvnController(world.kube))
    assert (world.versions(), server.writes()) == (before, set())


def foreign(world: World, name: str, labels: Json, *addresses: str, **spec: object) -> Json:
    """An EgressIP that an admin has made."""
    said = {"egressIPs": list(addresses), "namespaceSelector": {"matchLabels": labels}, **spec}
    head = {"apiVersion": "k8s.ovn.org/v1", "kind": "EgressIP", "metadata": {"name": name}}
    return world.kube.create(head | {"spec": said})


def egress_ips(world: World) -> dict[str, list[str]]:
    """The addresses of each EgressIP."""
    return {item["metadata"]["name"]: item["spec"]["egressIPs"] for item in world.kube.list("EgressIP")}


def only(name: str) -> Json:
    return {"kubernetes.io/metadata.name": name}


def test_what_ovn_kubernetes_cannot_do_is_said_of_each_address_and_stops_no_other(world: World) -> None:
    ovn = OvnController(world.kube)
    world.pool("near", f"{A}-192.168.1.104")
    world.pool("far", "10.9.9.1-10.9.9.5")
    world.pool("two", "192.168.1.110-192.168.1.120", addressesPerNamespace=2)
    world.namespace("shop", {"egress.hawse.dev/pool": "near"})
    world.namespace("away", {"egress.hawse.dev/pool": "far"})
    world.namespace("both", {"egress.hawse.dev/pool": "two"})
    converge(world, ovn)
    assert "label one with k8s.ovn.org/egress-assignable" in conditions(world, A)["Ready"][2]
    assert ("NoMatchingNodeFound", "hawse-shop") in ovn.events
    add_node(world.kube, "node1", "192.168.1.17/24")
    converge(world, ovn)
    assert world.claims() == {
        A: ("shop", "Ready"),
        "10.9.9.1": ("away", "Pending"),  # wrong subnet
        "192.168.1.110": ("both", "Ready"),  # partially assigned
        "192.168.1.111": ("both", "Pending"),
    }
    assert "on a network that holds 10.9.9.1" in conditions(world, "10.9.9.1")["Placed"][2]
    assert "every node that could host 192.168.1.111" in conditions(world, "192.168.1.111")["Placed"][2]
    assert ("UnassignedRequest", "hawse-both") in ovn.events
    add_node(world.kube, "node2", "192.168.1.18/24", "10.9.9.250/24")
    converge(world, ovn)
    assert {phase for _, phase in world.claims().values()} == {"Ready"}
    world.kube.patch("Node", "node2", {"metadata": {"labels": {"k8s.ovn.org/egress-assignable": None}}})
    converge(world, ovn)
    assert world.claims()["10.9.9.1"] == ("away", "Pending")
    world.kube.delete("EgressIP", "hawse-shop")
    converge(world, ovn)
    assert egress_ips(world)["hawse-shop"] == [A]


def test_an_egress_ip_for_this_namespace_alone_is_taken_over(world: World, server: Server) -> None:
    ovn = OvnController(world.kube)
    add_node(world.kube, "node1", "192.168.1.17/24")
    add_node(world.kube, "node2", "192.168.1.18/24")
    foreign(world, "by-hand", only("shop"), "192.168.1.90")
    world.pool("prod", POOL)
    world.namespace("shop")
    world.namespace("idle", {"egress.hawse.dev/pool": "none"})
    foreign(world, "idle", only("idle"), "192.168.1.91")
    converge(world, ovn)
    assert egress_ips(world) == {"by-hand": ["192.168.1.90", A], "idle": ["192.168.1.91"]}
    assert world.claims() == {
        "192.168.1.90": ("shop", "Ready"),
        A: ("shop", "Ready"),
        "192.168.1.91": ("idle", "Ready"),
    }
    manual = world.kube.get("EgressAddress", "192.168.1.90")
    assert manual is not None
    assert manual["spec"]["origin"] == "manual"
    server.writes()
    world.delete("shop")
    world.reconcile()
    assert egress_ips(world) == {"by-hand": ["192.168.1.90"], "idle": ["192.168.1.91"]}
    assert world.claims() == {A: ("shop", "Quarantined"), "192.168.1.91": ("idle", "Ready")}
    assert ("delete", "egressips", "by-hand") not in server.writes()


def test_an_egress_ip_that_takes_more_is_not_fought(world: World, server: Server) -> None:
    ovn = OvnController(world.kube)
    add_node(world.kube, "node1", "192.168.1.17/24")
    foreign(world, "team", {"team": "a"}, A)
    foreign(world, "some", only("till"), "192.168.1.91", podSelector={"matchLabels": {"app": "web"}})
    world.pool("prod", POOL)
    for name in ("shop", "till", "calm"):
        world.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    world.kube.patch("Namespace", "shop", {"metadata": {"labels": {"team": "a"}}})
    converge(world, ovn)
    assert egress_ips(world) == {"team": [A], "some": ["192.168.1.91"], "hawse-calm": [world.annotation("calm")]}
    assert A not in world.claims()  # somebody's already, and so not given by the pool
    for name, other in (("shop", "team"), ("till", "some")):
        status, reason, message = conditions(world, world.annotation(name))["Ready"]
        assert (status, reason) == ("False", "NotBound")
        assert f"EgressIP {other}, which is not Hawse's" in message
    assert world.claims()[world.annotation("calm")] == ("calm", "Ready")
    assert {name for _, kind, name in server.writes() if kind == "egressips"} == {"hawse-calm"}
    world.kube.delete("EgressIP", "team")
    converge(world, ovn)
    assert world.claims()[world.annotation("shop")] == ("shop", "Ready")


def test_of_two_that_take_one_namespace_neither_is_trusted(world: World) -> None:
    ovn = OvnController(world.kube)
    add_node(world.kube, "node1", "192.168.1.17/24")
    world.pool("prod", POOL)
    world.namespace("shop")
    converge(world, ovn)
    assert world.claims() == {A: ("shop", "Ready")}
    foreign(world, "later", only("shop"), "192.168.1.90")
    converge(world, ovn)
    assert conditions(world, A)["Placed"][1] == "Conflict"
    assert egress_ips(world) == {"hawse-shop": [A], "later": ["192.168.1.90"]}
    world.kube.delete("EgressIP", "later")
    converge(world, ovn)
    assert world.claims() == {A: ("shop", "Ready")}


def test_a_selector_of_our_own_that_was_changed_is_put_right(world: World) -> None:
    ovn = OvnController(world.kube)
    add_node(world.kube, "node1", "192.168.1.17/24")
    world.pool("prod", POOL)
    world.namespace("shop")
    converge(world, ovn)
    selector = {"matchLabels": {"kubernetes.io/metadata.name": "till", "team": "a"}}
    world.kube.patch("EgressIP", "hawse-shop", {"spec": {"namespaceSelector": selector}})
    converge(world, ovn)
    made = world.kube.get("EgressIP", "hawse-shop")
    assert made is not None
    assert made["spec"] == {"egressIPs": [A], "namespaceSelector": {"matchLabels": only("shop")}}
    assert world.claims() == {A: ("shop", "Ready")}


def test_an_address_comes_back_after_its_quarantine_and_not_before(world: World) -> None:
    add_node(world.kube, "node1", "192.168.1.17/24")
    world.pool("prod", POOL, quarantine="0s")
    world.namespace("shop")
    converge(world, OvnController(world.kube))
    world.kube.patch("Namespace", "shop", {"metadata": {"annotations": {"egress.hawse.dev/pool": "none"}}})
    converge(world)
    assert egress_ips(world) == {}
    assert world.claims() == {A: ("shop", "Quarantined")}
    world.run("hawse.v1.sweep")
    world.settle()
    assert world.claims() == {}


def test_what_nobody_has_approved_is_in_no_egress_ip(world: World) -> None:
    ovn = OvnController(world.kube)
    add_node(world.kube, "node1", "192.168.1.17/24")
    world.pool("prod", POOL, approval="required")
    world.namespace("shop")
    converge(world, ovn)
    assert egress_ips(world) == {}
    assert conditions(world, A)["Programmed"][1] == "AwaitingApproval"
    decision = {"verdict": "approved", "by": "amy", "at": manifests.rfc3339(time.time()), "source": "test"}
    world.kube.patch("EgressAddress", A, {"status": {"decision": decision}}, subresource="status")
    world.run("hawse.v1.publish")
    world.settle()
    assert egress_ips(world) == {"hawse-shop": [A]}
    converge(world, ovn)
    assert world.claims() == {A: ("shop", "Ready")}
    decision["verdict"] = "withdrawn"
    world.kube.patch("EgressAddress", A, {"status": {"decision": decision}}, subresource="status")
    world.run("hawse.v1.publish")
    world.settle()
    assert egress_ips(world) == {}


def test_a_move_is_refused_for_ovn_kubernetes_chooses(world: World) -> None:
    add_node(world.kube, "node1", "192.168.1.17/24")
    world.pool("prod", POOL)
    world.namespace("shop")
    converge(world, OvnController(world.kube))
    world.kube.patch("EgressAddress", A, {"metadata": {"annotations": {"egress.hawse.dev/move-to": "node2"}}})
    world.run("hawse.v1.place")
    claim = world.kube.get("EgressAddress", A)
    assert claim is not None
    assert "egress.hawse.dev/move-to" not in (claim["metadata"].get("annotations") or {})
    events = world.kube.call("GET", "/api/v1/namespaces/default/events")["items"]
    assert [item["message"] for item in events if item["reason"] == "MoveRefused"]


@pytest.mark.parametrize("asked", [False, True])
def test_nodes_are_labelled_only_where_that_was_asked_for(world: World, server: Server, asked: bool) -> None:
    if asked:
        world.context = replace(world.context, settings=replace(world.context.settings, label_nodes=True))
    for name in ("node1", "node2"):
        add_node(world.kube, name, f"192.168.1.{name[-1]}/24", assignable=False)
    world.kube.patch("Node", "node2", {"metadata": {"labels": {"egress.hawse.dev/egress-node": ""}}})
    world.pool("prod", POOL, nodeSelector={"matchLabels": {"egress.hawse.dev/egress-node": ""}})
    world.reconcile()
    assert [name for _, kind, name in server.writes() if kind == "nodes"] == (["node2"] if asked else [])


@pytest.mark.timeout(900)  # for a thousand
def test_one_broken_egress_ip_stops_none_of_many(world: World) -> None:
    """`MAKERS_NAMESPACES=1000 make test TESTS=tests/contract/makers` for a thousand."""
    ovn = OvnController(world.kube)
    for number in range(1, 5):
        add_node(world.kube, f"node{number}", f"10.8.0.{number}/16")
    world.pool("prod", "10.8.1.0-10.8.8.255")
    foreign(world, "garbage", only("nobody"), "not an address")
    foreign(world, "odd", {"a": "b"}, "10.8.9.9", podSelector={"matchExpressions": [{"key": 7}]})
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(world.namespace, [f"app-{number:04}" for number in range(COUNT)]))
    foreign(world, "hawse-app-0007", {"a": "b"}, "10.8.9.8")  # the very name that Hawse would take
    converge(world, ovn)
    phases = Counter(phase for _, phase in world.claims().values())
    assert phases == {"Ready": COUNT - 1, "Pending": 1}
    assert conditions(world, world.annotation("app-0007"))["Ready"][0] == "False"
    assert len(egress_ips(world)) == COUNT - 1 + 3
    assert set(world.failures) == {"EgressIP hawse-app-0007 is not Hawse's, and has the name that it needs: delete it"}


def test_a_pair_of_addresses_is_in_one_egress_ip(world: World, server: Server) -> None:
    for number in (1, 2):
        add_node(world.kube, f"node{number}", f"192.168.1.{number}/24", f"2001:db8::{number}/64")
    world.pool("prod", POOL, "2001:db8::101-2001:db8::1ff", ipFamilyPolicy="RequireDualStack")
    world.namespace("shop")
    converge(world, OvnController(world.kube))
    six = "2001-0db8-0000-0000-0000-0000-0000-0101"
    assert world.annotation("shop") == f"{A},2001:db8::101"
    assert egress_ips(world) == {"hawse-shop": [A, "2001:db8::101"]}
    assert world.claims() == {A: ("shop", "Ready"), six: ("shop", "Ready")}
    written = server.writes()
    assert {name for verb, kind, name in written if (verb, kind) == ("create", "egressips")} == {"hawse-shop"}
    assert {name for verb, kind, name in written if (verb, kind) == ("create", "egressaddresses")} == {A, six}


def test_what_is_left_of_a_namespace_is_found_also_where_its_selector_was_changed(world: World) -> None:
    add_node(world.kube, "node1", "192.168.1.17/24")
    world.pool("prod", POOL)
    world.namespace("shop")
    converge(world)
    world.kube.patch("EgressIP", "hawse-shop", {"spec": {"namespaceSelector": {"matchLabels": {"team": "a"}}}})
    world.delete("shop")
    converge(world)
    assert egress_ips(world) == {}


def test_an_approved_address_that_is_not_fought_for_leaves_everybody_in_peace(world: World) -> None:
    foreign(world, "some", only("shop"), "192.168.1.91", podSelector={"matchLabels": {"app": "web"}})
    world.pool("prod", POOL, approval="required")
    world.namespace("shop")
    converge(world)
    decision = {"verdict": "approved", "by": "amy", "at": manifests.rfc3339(time.time()), "source": "test"}
    world.kube.patch("EgressAddress", A, {"status": {"decision": decision}}, subresource="status")
    world.run("hawse.v1.publish")
    world.settle()  # it does: publishing asks for the namespace's task once, and not for ever
    (why,) = set(world.failures)
    assert "EgressIP some, not Hawse's, takes namespace shop already" in why
