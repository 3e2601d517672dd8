"""200 assignments of another operator become Hawse's, and then go to OVN-Kubernetes, each with its address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from egress.adapters.networks import Detector
from lab.native.ovn import OvnController, add_node
from tests.contract.makers.conftest import Server, started
from tests.contract.makers.test_migration import FIRST, TO, Hawse, made, objects, served
from tests.contract.makers.test_ovn_kubernetes import foreign, only
from tests.contract.workers.conftest import World

Json = dict[str, Any]
COUNT = 200
NAMES = [f"app-{number:03}" for number in range(COUNT)]
ADDRESSES = {name: str(FIRST + number) for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def server(real_binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One of their own: to take so many namespaces away again would take longer."""
    with started(tmp_path_factory.mktemp("two-hundred")) as running:
        yield running


@pytest.fixture
def tidy() -> bool:
    return False


@pytest.fixture
def hawse(server: Server, capsys: pytest.CaptureFixture[str]) -> Hawse:
    return Hawse(server, capsys)


def versions(world: World, kind: str) -> dict[str, str]:
    return {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in world.kube.list(kind)}


def test_a_dry_run_says_what_is_done_and_a_second_run_does_nothing(world: World, server: Server, hawse: Hawse) -> None:
    # With the annotation that the reconcile would write; test_migration.py has it written.
    made(world, *(_annotated(served(name, address), address) for name, address in ADDRESSES.items()))
    made(world, served("odd", "10.9.9.9"))
    world.pool("prod", f"{FIRST}-10.8.3.255")
    server.writes("admin")
    _adopted(world, server, hawse)
    _migrated(world, hawse)

    # Now the network is another one, and finds it all in place.
    for number in range(1, 4):
        add_node(world.kube, f"node{number}", f"10.8.0.{number}/16")
    OvnController(world.kube).sync()
    world.context = replace(world.context, network=Detector(world.context.cluster, "ovn-kubernetes"))
    server.writes()
    world.reconcile()
    assert not [write for write in server.writes() if write[1] == "egressips" and write[2] != "hawse-odd"]
    claims = {address: owner for address, owner in world.claims().items() if owner[0] != "odd"}
    by_hand = {"10.8.9.7": ("app-007", "Ready")}
    assert claims == by_hand | {address: (name, "Ready") for name, address in ADDRESSES.items()}


def _annotated(manifest: Json, address: str) -> Json:
    manifest["metadata"]["annotations"]["egress.hawse.dev/addresses"] = address
    return manifest


def _adopted(world: World, server: Server, hawse: Hawse) -> None:
    would = json.loads(hawse("adopt", "-o", "json", code=1))
    assert hawse.summary == (
        "201 addresses: 200 to claim, 0 to claim anew, 0 Hawse's already, 1 refused; nothing was written"
    )
    assert [item["reason"] for item in would if item["deed"] == "refuse"] == [
        "no EgressPool may give 10.9.9.9: make one that does"
    ]
    assert server.writes("admin") == set()
    assert json.loads(hawse("adopt", "--write", "-o", "json", code=1)) == would
    assert server.writes("admin") == {("create", "egressaddresses", address) for address in ADDRESSES.values()}
    before = versions(world, "EgressAddress")
    hawse("adopt", "--write", code=1)
    assert hawse.summary == "201 addresses: 0 to claim, 0 to claim anew, 200 Hawse's already, 1 refused"
    assert (server.writes("admin"), versions(world, "EgressAddress")) == (set(), before)


def _migrated(world: World, hawse: Hawse) -> None:
    head = {"apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "metadata": {"name": "app-007"}}
    made(world, head | {"netname": "app-007", "netid": 7, "egressIPs": [ADDRESSES["app-007"], "10.8.9.7"]})
    foreign(world, "cno-008", only("app-008"), ADDRESSES["app-008"])  # made by somebody else's migration
    printed = {item["metadata"]["name"]: item["spec"] for item in yaml.safe_load_all(hawse("migrate", *TO))}
    assert hawse.summary == (
        "200 namespaces: 199 to create, 0 to change, 1 as they are to be, 0 refused; nothing was written"
    )
    assert set(objects(world)) == {"cno-008"}
    assert hawse("migrate", *TO, "--write").count("create ") == COUNT - 1
    assert objects(world) == printed
    wanted = {f"hawse-{name}": [address] for name, address in ADDRESSES.items() if name != "app-008"}
    wanted["hawse-app-007"].append("10.8.9.7")  # set by hand
    assert {name: spec["egressIPs"] for name, spec in printed.items()} == wanted | {"cno-008": [ADDRESSES["app-008"]]}
    before = versions(world, "EgressIP")
    hawse("migrate", *TO, "--write")
    assert hawse.summary == "200 namespaces: 0 to create, 0 to change, 200 as they are to be, 0 refused"
    assert versions(world, "EgressIP") == before
