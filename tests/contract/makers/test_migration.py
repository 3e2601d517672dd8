"""What cannot be migrated or adopted, and what becomes of what was. test_two_hundred.py has two hundred at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from typing import Any

import pytest
import yaml

from egress.cli import main
from lab.native.sdn import SdnController
from tests.contract.makers.conftest import Server
from tests.contract.makers.test_ovn_kubernetes import foreign
from tests.contract.workers.conftest import World

Json = dict[str, Any]
FIRST = IPv4Address("10.8.1.1")
GIVEN = "egressip-ipam-operator.redhat-cop.io/egressips"
TO = ("--to", "ovn-kubernetes")
SERVED = "egressip-ipam-operator.redhat-cop.io/egressipam"


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"network": "openshift-sdn"}


class Hawse:
    """The command, and what it said."""

    def __init__(self, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
        self._file, self._capsys = str(server.cluster.kubeconfig), capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self._capsys.readouterr()
        assert main([*arguments, "--kubeconfig", self._file]) == code
        said = self._capsys.readouterr()
        self.summary = said.err.strip().splitlines()[-1] if said.err.strip() else ""
        return said.out


@pytest.fixture
def hawse(server: Server, capsys: pytest.CaptureFixture[str]) -> Hawse:
    return Hawse(server, capsys)


def made(world: World, *manifests: Json) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(world.kube.create, manifests))


def objects(world: World) -> dict[str, Json]:
    return {item["metadata"]["name"]: item["spec"] for item in world.kube.list("EgressIP")}


def test_what_cannot_be_migrated_is_named_and_stops_no_other(world: World, hawse: Hawse) -> None:
    world.pool("prod", f"{FIRST}-10.8.3.255")
    sdn = SdnController(world.kube)
    for name in ("calm", "shared", "twice", "again"):
        world.namespace(name)
    sdn.sync()
    for name, address in {"calm": "10.8.5.1", "shared": "10.8.5.2", "twice": "10.8.5.3", "again": "10.8.5.3"}.items():
        world.kube.patch("NetNamespace", name, {"egressIPs": [address]})
    foreign(world, "team", {"kubernetes.io/metadata.name": "shared", "team": "a"}, "10.8.5.9")
    world.kube.patch("Namespace", "shared", {"metadata": {"labels": {"team": "a"}}})
    table = hawse("migrate", *TO, "-o", "table", code=1)
    assert "namespace again has 10.8.5.3 too" in table
    assert "EgressIP team takes this namespace too" in table
    hawse("migrate", *TO, "--write", code=1)
    assert set(objects(world)) == {"team", "hawse-calm"}


def served(name: str, *addresses: str) -> Json:
    """A namespace to which egressip-ipam-operator has given addresses."""
    metadata = {"name": name, "annotations": {SERVED: "prod", GIVEN: ",".join(addresses)}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def test_what_was_adopted_is_hawses_with_the_same_addresses(world: World, hawse: Hawse) -> None:
    by_hand, plain = "10.8.1.9", "10.8.1.1"
    for number in (1, 2):
        world.node(f"node{number}", f"10.8.0.{number}", report=False)
    made(world, served("shown", by_hand), served("plain", plain))
    SdnController(world.kube).sync()
    # As the operator writes them, which Hawse shows as set by hand.
    world.kube.patch("NetNamespace", "shown", {"egressIPs": [by_hand]})
    world.kube.patch("HostSubnet", "node2", {"egressIPs": [by_hand]})
    world.reconcile()
    assert world.claims() == {by_hand: ("shown", "Ready")}
    world.pool("prod", f"{FIRST}-10.8.3.255")
    pool = {"spec": {"namespaceSelector": None}}  # it gives nothing by itself until everything is adopted
    world.kube.patch("EgressPool", "prod", pool)
    found = {item["namespace"]: item for item in yaml.safe_load(hawse("adopt", "-o", "yaml"))}
    assert found["shown"] == {
        "namespace": "shown",
        "address": by_hand,
        "deed": "change",
        "pool": "prod",
        "reason": "",
    }
    assert "change  shown" in hawse("adopt", "--write")
    world.reconcile()
    world.kube.patch("EgressPool", "prod", {"spec": {"namespaceSelector": {}}})
    world.reconcile()
    for name, address in (("shown", by_hand), ("plain", plain)):
        assert (world.annotation(name), world.bound(name)) == (address, [address])
        claim = world.kube.get("EgressAddress", address)
        assert claim is not None
        assert (claim["spec"]["pool"], claim["spec"]["origin"]) == ("prod", "automatic")
    assert world.hosted("node2") == [by_hand]  # it stays where it was
    assert set(world.claims().values()) == {("shown", "Ready"), ("plain", "Ready")}
