"""`hawse move` on a real API server; the test does what the workers do about a wish."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from egress.adapters.cluster import Cluster
from egress.addresses import Address
from egress.cli import main, move
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster as AnyCluster
from lab.control_plane import install
from lab.kube import Kube
from lab.real_cluster import RealCluster

Json = dict[str, Any]
ADDRESS = "192.168.1.102"
WISH = "egress.hawse.dev/move-to"


class Moves:
    """Two nodes, of which node1 hosts the address of namespace shop."""

    def __init__(self, cluster: AnyCluster) -> None:
        self.kubeconfig = str(cluster.kubeconfig)
        self.kube = Kube(cluster.url, cluster.ca_path, cluster.token)
        self.events = Cluster(self.kubeconfig)
        install(self.kube)
        for number, node in enumerate(("node1", "node2"), 17):
            head = {"apiVersion": "network.openshift.io/v1", "kind": "HostSubnet", "metadata": {"name": node}}
            self.kube.create(head | {"host": node, "hostIP": f"192.168.1.{number}", "subnet": "10.128.0.0/23"})
        self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
        self.claim(ADDRESS)
        self.host(ADDRESS, "node1")
        self.status(node="node1", phase="Ready")

    def claim(self, name: str, origin: str = "automatic") -> None:
        head = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": {"name": name}}
        spec = {"pool": "prod", "namespace": {"name": "shop", "uid": "u-1"}, "origin": origin}
        self.kube.create(head | {"spec": spec})

    def host(self, address: str, node: str) -> None:
        for name in ("node1", "node2"):
            self.kube.patch("HostSubnet", name, {"egressIPs": [address] if name == node else []})

    def status(self, name: str = ADDRESS, **status: object) -> None:
        self.kube.patch("EgressAddress", name, {"status": status}, subresource="status")

    def wish(self, name: str = ADDRESS) -> str | None:
        found = self.kube.get("EgressAddress", name)
        assert found is not None
        wished: str | None = (found["metadata"].get("annotations") or {}).get(WISH)
        return wished

    def answer(self) -> None:
        """Takes the wish away."""
        self.kube.patch("EgressAddress", ADDRESS, {"metadata": {"annotations": {WISH: None}}})

    def move(self, *arguments: str) -> int:
        return main(["move", *arguments, "--kubeconfig", self.kubeconfig])

    @contextmanager
    def when_wished(self, *steps: Callable[[], object]) -> Iterator[None]:
        """Takes the steps one after the other, once the address is wished elsewhere, and between two looks of the
        command."""
        failures: list[BaseException] = []

        def work() -> None:
            try:
                while self.wish() is None and not done.wait(0.02):
                    pass
                for step in steps:
                    step()
                    done.wait(0.05)
            except BaseException as error:  # noqa: BLE001 - raised again where the test sees it
                failures.append(error)

        done = threading.Event()
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        assert failures == []


@pytest.fixture(params=["embedded"])
def moves(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moves]:
    monkeypatch.setattr(move, "LOOK_SECONDS", 0.01)
    if request.param == "real":
        request.getfixturevalue("real_binaries")
    cluster: AnyCluster = (RealCluster if request.param == "real" else EmbeddedCluster)(tmp_path / "cluster")
    with cluster:
        yield Moves(cluster)


on_both = pytest.mark.parametrize("moves", ["embedded", "real"], indirect=True)
"""For what the API server has a say in: conditional patches, which Events a selector finds."""


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err.removeprefix("hawse: ").rstrip("\n")


@on_both
def test_an_address_moves_when_its_node_says_so(moves: Moves, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str | None] = []
    with moves.when_wished(
        lambda: seen.append(moves.wish()),
        lambda: moves.host(ADDRESS, "node2"),
        moves.answer,
        lambda: moves.status(node="node2", phase="Placed"),
        lambda: moves.status(node="node2", phase="Failed"),
        lambda: moves.status(node="node2", phase="Ready"),
    ):
        assert moves.move(ADDRESS, "node2") == 0
        found = moves.kube.get("EgressAddress", ADDRESS)
        assert found is not None
        assert found["status"] == {"node": "node2", "phase": "Ready"}  # not before
    assert seen == ["node2"]
    assert capsys.readouterr().out == f"{ADDRESS} (namespace shop) has moved from node1 to node2\n"


def test_json(moves: Moves, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"address": ADDRESS, "namespace": "shop", "from": "node1", "to": "node2", "outcome": "asked"}
    assert moves.move(ADDRESS, "node2", "--no-wait", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == expected
    moves.answer()
    assert moves.move(ADDRESS, "node1", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == expected | {"to": "node1", "outcome": "unchanged"}


def test_where_it_is_already_nothing_is_written(moves: Moves, capsys: pytest.CaptureFixture[str]) -> None:
    before = moves.kube.get("EgressAddress", ADDRESS)
    assert moves.move(ADDRESS, "node1") == 0
    assert moves.kube.get("EgressAddress", ADDRESS) == before
    assert capsys.readouterr().out == f"{ADDRESS} (namespace shop) is on node1 already\n"


def test_a_wish_to_go_elsewhere_is_taken_back(moves: Moves, capsys: pytest.CaptureFixture[str]) -> None:
    assert moves.move(ADDRESS, "node2", "--no-wait") == 0
    assert moves.wish() == "node2"
    assert moves.move(ADDRESS, "node1", "--no-wait") == 0
    assert moves.wish() == "node1"
    assert "is asked to move" in capsys.readouterr().out


@on_both
def test_a_refusal_gives_hawses_reason(moves: Moves, capsys: pytest.CaptureFixture[str]) -> None:
    def say(message: str, *, warning: bool = True) -> None:
        moves.events.event({"name": "shop", "uid": "u-1"}, "MoveRefused", message, warning=warning)

    say(f"{ADDRESS}7 cannot move to node2: another address")
    say(f"{ADDRESS} moves to node2", warning=False)
    with moves.when_wished(moves.answer):
        assert moves.move(ADDRESS, "node2") == 1
    assert refusal(capsys) == f"Hawse does not move {ADDRESS} to node2: `kubectl describe namespace shop` says why"
    for reason in ("not ready", "full"):  # what an earlier refusal said is not taken for this one's
        message = f"{ADDRESS} does not move to node2: the node is not eligible: {reason}"
        with moves.when_wished(lambda message=message: say(message), moves.answer):
            assert moves.move(ADDRESS, "node2") == 1
        assert refusal(capsys) == message


def test_the_reason_may_come_after_the_refusal(
    moves: Moves, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = f"{ADDRESS} does not move to node2: not ready"
    looks: list[object] = []
    read = Cluster.warnings

    def late(cluster: Cluster, namespace: str) -> dict[str, str]:
        looks.append(namespace)
        if len(looks) == 3:  # the first is before the wish
            moves.events.event({"name": "shop", "uid": "u-1"}, "MoveRefused", message, warning=True)
        return read(cluster, namespace)

    monkeypatch.setattr(Cluster, "warnings", late)
    with moves.when_wished(moves.answer):
        assert moves.move(ADDRESS, "node2") == 1
    assert refusal(capsys) == message


def test_another_wish_ends_the_wait(moves: Moves, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"metadata": {"annotations": {WISH: "node3"}}}
    with moves.when_wished(lambda: moves.kube.patch("EgressAddress", ADDRESS, other)):
        assert moves.move(ADDRESS, "node2") == 1
    assert "somebody has wished it to node3 meanwhile" in refusal(capsys)


def test_what_is_not_done_in_time_says_how_far_it_is(moves: Moves, capsys: pytest.CaptureFixture[str]) -> None:
    assert moves.move(ADDRESS, "node2", "--timeout", "0") == 1
    message = refusal(capsys)
    assert message.startswith(f"{ADDRESS} has not moved to node2 in 0 s; Hawse goes on: it has not begun")
    assert moves.wish() == "node2"
    moves.host(ADDRESS, "node2")
    moves.answer()
    conditions = [{"type": "Ready", "status": "False", "reason": "AddressInUse", "message": "02:00:00:00:00:01 has it"}]
    moves.status(node="node2", phase="Failed", conditions=conditions)
    assert moves.move(ADDRESS, "node2", "--timeout", "0") == 1
    assert refusal(capsys).endswith("it is Failed, 02:00:00:00:00:01 has it")
    assert moves.wish() is None  # it is placed there: there is nothing to wish for


def test_what_cannot_be_moved(moves: Moves, capsys: pytest.CaptureFixture[str]) -> None:
    moves.claim("192.168.1.103", "manual")
    moves.claim("192.168.1.104")
    moves.status("192.168.1.104", phase="Quarantined", quarantinedUntil="2999-01-01T00:00:00Z")
    for address, node, message in (
        ("192.168.1.199", "node2", "there is no EgressAddress 192.168.1.199: `kubectl get egressaddresses` has all"),
        ("fd00::1", "node2", "there is no EgressAddress fd00::1: `kubectl get egressaddresses` has all"),
        (
            "192.168.1.103",
            "node2",
            "address 192.168.1.103 was assigned by hand: patch the egressIPs of the HostSubnets",
        ),
        (
            "192.168.1.104",
            "node2",
            "address 192.168.1.104 is in quarantine after namespace shop: no node has it",
        ),
        (ADDRESS, "node9", "there is no HostSubnet node9: `kubectl get hostsubnets` has all nodes"),
    ):
        assert moves.move(address, node) == 1
        assert refusal(capsys) == message
    assert [moves.wish(name) for name in (ADDRESS, "192.168.1.103", "192.168.1.104")] == [None, None, None]


@on_both
def test_a_claim_that_changes_meanwhile_is_read_again(
    moves: Moves, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each look is followed by a write of somebody else, the first four times."""
    look, looks = move._look, []

    def disturbed(cluster: Cluster, address: Address, node: str) -> move.Sight:
        seen = look(cluster, address, node)
        looks.append(seen)
        if len(looks) <= 4:
            moves.kube.patch("EgressAddress", ADDRESS, {"metadata": {"labels": {"n": str(len(looks))}}})
        return seen

    monkeypatch.setattr(move, "_look", disturbed)
    assert moves.move(ADDRESS, "node2", "--no-wait") == 0
    assert (len(looks), moves.wish()) == (5, "node2")
    assert "is asked to move" in capsys.readouterr().out


def test_a_claim_that_goes_meanwhile_is_said(moves: Moves, capsys: pytest.CaptureFixture[str]) -> None:
    with moves.when_wished(lambda: moves.kube.delete("EgressAddress", ADDRESS)):
        assert moves.move(ADDRESS, "node2") == 1
    assert refusal(capsys).startswith(f"there is no EgressAddress {ADDRESS}")


def test_the_kubeconfig_may_come_from_the_environment(
    moves: Moves, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/none:{moves.kubeconfig}")
    assert main(["move", ADDRESS, "node1"]) == 0
    monkeypatch.setenv("HAWSE_KUBECONFIG", f"{tmp_path}/none")
    assert main(["move", ADDRESS, "node1"]) == 2
    assert "cannot be used" in capsys.readouterr().err
