"""`hawse move`: how far a move is, what it says, and what it needs no cluster to refuse."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from egress.cli import clusters, main, move
from egress.cli.move import Move, Outcome, Progress, Sight, progress
from egress.objects import EgressAddress, Phase

CLAIM = EgressAddress("192.168.1.102", "prod", "shop", "u-1", node="node1", phase=Phase.READY)
AT_NODE2 = replace(CLAIM, node="node2")

WITHOUT_KUBERNETES = """
import sys
sys.modules["kubernetes"] = None
from egress.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("sight", "expected"),
    [
        (Sight(CLAIM, "node2", listed=False), Progress.WAITING),  # nobody has looked at the wish yet
        (Sight(CLAIM, "node2", listed=True), Progress.WAITING),
        (Sight(CLAIM, "", listed=True), Progress.WAITING),  # its HostSubnet has it, the node not yet
        (Sight(replace(CLAIM, node="", phase=Phase.PENDING), "", listed=True), Progress.WAITING),
        (Sight(replace(AT_NODE2, phase=Phase.PLACED), "", listed=True), Progress.WAITING),
        (Sight(replace(AT_NODE2, phase=Phase.FAILED), "", listed=True), Progress.WAITING),  # the old node still has it
        (Sight(AT_NODE2, "", listed=True), Progress.THERE),
        (Sight(AT_NODE2, "", listed=False), Progress.REFUSED),  # moved on since: the status is late
        (Sight(CLAIM, "", listed=False), Progress.REFUSED),
        (Sight(CLAIM, "node3", listed=False), Progress.REFUSED),
    ],
)
def test_how_far_a_move_is(sight: Sight, expected: Progress) -> None:
    assert progress(sight, "node2") is expected


@pytest.mark.parametrize(
    ("origin", "outcome", "text"),
    [
        ("node1", Outcome.MOVED, "192.168.1.102 (namespace shop) has moved from node1 to node2"),
        ("", Outcome.MOVED, "192.168.1.102 (namespace shop) has moved to node2"),
        ("node2", Outcome.UNCHANGED, "192.168.1.102 (namespace shop) is on node2 already"),
        ("node1", Outcome.ASKED, "192.168.1.102 (namespace shop) is asked to move from node1 to node2"),
    ],
)
def test_what_was_done_is_one_line(origin: str, outcome: Outcome, text: str) -> None:
    assert str(Move("192.168.1.102", "shop", origin, "node2", outcome)) == text


@pytest.mark.parametrize(
    ("text", "word", "there"),
    [
        ("cannot move 10.0.0.1 to node2: full", "10.0.0.1", True),
        ("cannot move 10.0.0.1 to node2: full", "node2", True),
        ("it ends with 10.0.0.1.", "10.0.0.1", True),
        ("cannot move 10.0.0.12 to node2", "10.0.0.1", False),
        ("cannot move 110.0.0.1 to node2", "10.0.0.1", False),
        ("to node2.ocp.io", "node2", False),
        ("to node2-a", "node2", False),
        ("fd00::1 to a", "fd00::", False),
        ("fd00::1: no", "fd00::1", True),
        ("fd00::1:2 to a", "fd00::1", False),
    ],
)
def test_a_message_names_an_address_or_a_node_by_itself(text: str, word: str, there: bool) -> None:
    assert move._names(text, word) is there


def test_the_kubeconfig_is_the_one_of_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    own = tmp_path / ".kube" / "config"
    assert clusters.kubeconfig_of({"KUBECONFIG": "/a:/b"}) == "/a:/b"
    assert clusters.kubeconfig_of({}) == str(own)
    assert clusters.kubeconfig_of({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == ""
    own.parent.mkdir()
    own.touch()
    assert clusters.kubeconfig_of({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == str(own)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense", "node2"], "'nonsense' is not an IP address"),
        (["192.168.1.102"], "Missing argument 'NODE'"),
        (["192.168.1.102", "node2", "--timeout", "-1"], "-1.0 is not in the range"),
        (["192.168.1.102", "node2", "--kubeconfig", "/no/such/file"], "the kubeconfig /no/such/file cannot be used"),
    ],
)
def test_bad_usage_is_one_line_and_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HAWSE_KUBECONFIG", raising=False)
    assert main(["move", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_a_cluster_that_is_away_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config"
    config.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, users: [{name: u, user: {}}], "
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], "
        "contexts: [{name: c, context: {cluster: c, user: u}}]}"
    )
    assert main(["move", "192.168.1.102", "node2", "--kubeconfig", str(config)]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("hawse: the API server is away")
    assert shown.err.count("\n") == 1


def run_without_kubernetes(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", WITHOUT_KUBERNETES, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_only_what_speaks_to_a_cluster_needs_its_client(tmp_path: Path) -> None:
    path = tmp_path / "nothing.yaml"
    path.touch()
    planned = run_without_kubernetes("plan", "-f", str(path))
    assert (planned.returncode, planned.stderr) == (0, "")
    listed = run_without_kubernetes("--help")
    assert listed.returncode == 0
    assert "Move an egress address to another node." in listed.stdout
    moved = run_without_kubernetes("move", "192.168.1.102", "node2")
    assert moved.returncode == 1
    assert moved.stderr == "hawse: `hawse move` needs the Python package kubernetes: pip install 'hawse[cli]'\n"
