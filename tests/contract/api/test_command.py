"""The commands that speak to `hawse-api`: as a person types them, on the embedded API server and a real Valkey."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from egress.adapters.ledger import Ledger
from egress.cli import main
from egress.operations import Outcome, Step, StepRecord
from egress.table import Steering
from lab.apiserver.process import EmbeddedCluster
from tests.contract.api.conftest import Api, Objects, condition

Json = dict[str, Any]
A, B = "192.168.1.5", "192.168.1.6"
ESCAPES = "\x1b[2Jnode2 cannot\nadd it\u202e"


@dataclass
class Ran:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines()]


Run = Callable[..., Ran]


@pytest.fixture
def api(make_api: Callable[..., Api], objects: Objects, ledger: Ledger) -> Api:
    objects.pool("prod", "192.168.1.0/29")
    for name, address in (("shop", A), ("bank", B)):
        objects.namespace(name)
        objects.claim(address, namespace=name)
    objects.status(A, phase="Ready", node="node2", conditions=[condition("True", "Ready")])
    objects.status(B, phase="Failed", node="node2", conditions=[condition("False", "NetlinkFailed", ESCAPES)])
    counts = {"capacity": 6, "allocated": 2, "quarantined": 0, "free": 4}
    objects.kube.patch("EgressPool", "prod", {"status": counts}, subresource="status")
    ledger.publish({7: Steering(7, "shop")}, expected=ledger.change_number(), epoch="e1")
    return make_api().start()


@pytest.fixture
def run(api: Api, cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("HAWSE_SERVER", f"http://127.0.0.1:{api.port}")
    monkeypatch.setenv("HAWSE_TOKEN", cluster.token)

    def go(*arguments: str) -> Ran:
        code = main(arguments)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    api.until(lambda: len(go("get", "assignments").rows) == 3)
    return go


def test_status_says_what_is_wrong_first(run: Run) -> None:
    ran = run("status")
    assert ran.code == 1
    first, second, *_, last = ran.out.splitlines()
    assert first.startswith("FAILED 1: NetlinkFailed: ")
    assert second.split() == ["bank", B, "node2"]
    assert last == "pool prod: 2 of 6, 4 free"
    assert "2 assignments (1 Failed, 1 Ready), 0 nodes" in ran.out


def test_nothing_wrong_is_said_too(run: Run, api: Api, objects: Objects) -> None:
    objects.status(B, phase="Ready", node="node2", conditions=[condition("True", "Ready")])
    api.until(lambda: run("status").code == 0)
    assert run("status").out.startswith("Nothing needs anybody.")


def test_what_objects_hold_commands_no_terminal(run: Run) -> None:
    for arguments in (["status"], ["get", "assignments"], ["describe", "bank"]):
        said = run(*arguments).out
        assert "bank" in said
        assert "\x1b" not in said
        assert "\u202e" not in said
    assert any("node2 cannot add it" in line for line in run("describe", "bank").out.splitlines())
    for output in ("json", "yaml"):
        assert "\x1b" not in run("status", "-o", output).out


def test_assignments_are_filtered_and_sorted(run: Run) -> None:
    assert [row[:2] for row in run("get", "assignments").rows[1:]] == [["bank", B], ["shop", A]]
    assert [row[0] for row in run("get", "assignments", "--sort", "address").rows[1:]] == ["shop", "bank"]
    failed = run("get", "assignments", "--trouble", "failed")
    assert [row[0] for row in failed.rows] == ["NAMESPACE", "bank"]
    assert "failed: NetlinkFailed" in failed.out
    assert run("get", "assignments", "-n", "shop").rows[1][0] == "shop"


def test_programs_get_what_the_api_said(run: Run) -> None:
    answer = json.loads(run("get", "assignments", "-o", "json").out)
    assert [item["namespace"] for item in answer["items"]] == ["bank", "shop"]
    assert answer["total"] == 2
    assert yaml.safe_load(run("get", "assignments", "-o", "yaml").out) == answer
    assert json.loads(run("get", "pools", "-o", "json").out)[0]["name"] == "prod"


def test_more_assignments_than_one_answer_holds_are_all_shown(
    run: Run, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("egress.cli.get.PAGE", 1)
    assert [row[0] for row in run("get", "assignments").rows[1:]] == ["bank", "shop"]


def test_nodes_and_pools_are_tables(run: Run) -> None:
    assert run("get", "nodes").rows == [
        ["NODE", "IP", "HEARD", "APPLIED", "LATEST", "HOLDS", "GIVEN", "REPAIRED", "STATE"]
    ]
    assert run("get", "pools").rows[1][:6] == ["prod", "192.168.1.0/29", "6", "2", "0", "4"]


def test_a_namespace_is_described_with_its_history(run: Run, ledger: Ledger) -> None:
    step = StepRecord("bank", Step.PROGRAM, Outcome.GAVE_UP, 1795500000.0, 3, B, "node2", "no such device")
    ledger.record(step)
    said = run("describe", "bank").out
    assert said.startswith("Namespace  bank\n")
    assert f"Address    {B}  Failed on node2" in said
    last = said.splitlines()[-1].split()
    assert last[2:] == ["program", "gave-up", "3", B, "node2", "hawse", "no", "such", "device"]
    nobody = run("describe", "nobody/../../audit")
    assert nobody.code == 1
    assert nobody.out == ""


def test_a_retry_is_done_and_kept_with_its_reason(run: Run, api: Api) -> None:
    assert run("retry", "bank", "--why", "the switch is back").out == "bank: tried again\n"
    everything = run("retry", "--all", "--trouble", "failed")
    assert everything.out == "bank: tried again\n"
    assert run("retry", "--all", "--trouble", "conflict").out == "nothing has failed that matches\n"
    said = api.log()
    assert "the switch is back" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retry"], "name namespaces, or use --all"),
        (["retry", "--all", "bank"], "name namespaces, or use --all"),
        (["retry", "bank", "--pool", "prod"], "--pool goes with --all"),
        (["release", "shop"], "--why"),
        (["get", "assignments", "--phase", "Happy"], "--phase"),
    ],
)
def test_what_makes_no_sense_is_said(run: Run, arguments: list[str], message: str) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert message in ran.err


def test_a_release_is_asked_for_twice(
    run: Run, objects: Objects, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def annotations() -> Json:
        found = objects.kube.get("Namespace", "shop") or {}
        return found["metadata"].get("annotations") or {}

    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert run("release", "shop", "--why", "it moves out").code == 130
    before = annotations()
    assert run("release", "shop", "--why", "it moves out", "--yes").code == 0
    assert annotations() != before


def test_a_decision_a_pause_and_a_resume_are_made(run: Run, objects: Objects) -> None:
    if objects.kube.get("Namespace", "hawse-system") is None:
        objects.namespace("hawse-system")
    assert run("pause", "--why", "the switch is replaced").out == "paused\n"
    paused = objects.kube.get("Namespace", "hawse-system")
    assert paused is not None
    assert "the switch is replaced" in paused["metadata"]["annotations"]["egress.hawse.dev/paused"]
    assert run("resume").out == "resumed\n"
    refused = run("approve", A, "--why", "told by phone")
    assert refused.code == 1  # nobody was asked about this address
    assert refused.err == f"hawse: nobody was asked about {A}: it has no ticket, and needs no decision\n"


def test_actions_say_what_programs_read_too(run: Run, objects: Objects) -> None:
    for output, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        assert read(run("retry", "bank", "-o", output).out) == {"done": ["bank"], "left": 0}
        assert read(run("pause", "--why", "x", "-o", output).out) == {"done": ["paused"]}
        assert read(run("resume", "-o", output).out) == {"done": ["resumed"]}
        assert read(run("release", "shop", "--why", "x", "--yes", "-o", output).out) == {"done": ["shop"]}
    objects.told("192.168.1.4")
    approved = run("approve", "192.168.1.4", "--why", "by phone", "-o", "yaml")
    assert yaml.safe_load(approved.out) == {"done": ["192.168.1.4"]}


MOVE_TO = "egress.hawse.dev/move-to"


@contextmanager
def once_wished(api: Api, objects: Objects, do: Callable[[], object]) -> Iterator[None]:
    """Does what the workers do about a wish."""

    def is_wished() -> bool:
        return MOVE_TO in (objects.get(A)["metadata"].get("annotations") or {})

    def work() -> None:
        api.until(is_wished, 20)
        do()
        objects.kube.patch("EgressAddress", A, {"metadata": {"annotations": {MOVE_TO: None}}})

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_move_by_the_api_is_recorded_with_who_and_why(run: Run, api: Api, objects: Objects) -> None:
    asked = run("move", A, "node1", "--why", "node2 is drained", "--no-wait", "-o", "yaml")
    assert asked.code == 0, asked.err
    assert yaml.safe_load(asked.out) == {
        "address": A, "namespace": "shop", "from": "node2", "to": "node1", "outcome": "asked"
    }  # fmt: skip
    assert objects.get(A)["metadata"]["annotations"][MOVE_TO] == "node1"
    assert "move: to node1: node2 is drained" in run("describe", "shop").out
    assert " admin " in run("describe", "shop").out
    assert any(
        (line["who"], line["verb"], line["subject"], line["why"]) == ("admin", "move", A, "to node1: node2 is drained")
        for line in map(json.loads, api.log().splitlines())
        if line["event"] == "action"
    )
    objects.kube.patch("EgressAddress", A, {"metadata": {"annotations": {MOVE_TO: None}}})
    with once_wished(api, objects, lambda: objects.status(A, phase="Ready", node="node1", conditions=[])):
        moved = run("move", A, "node1")
    assert (moved.code, moved.out) == (0, f"{A} (namespace shop) has moved from node2 to node1\n")
    api.until(lambda: run("get", "assignments", "-n", "shop").rows[1][4] == "node1")
    assert run("move", A, "node1").out == f"{A} (namespace shop) is on node1 already\n"


def test_a_move_by_the_api_that_is_refused_says_why(run: Run, api: Api, objects: Objects, ledger: Ledger) -> None:
    refusal = "the node is not eligible: without a HostSubnet"
    step = StepRecord("shop", Step.MOVE, Outcome.GAVE_UP, 1795500000.0, 1, A, "nowhere", refusal)
    ledger.record(step)  # an earlier one does not count
    with once_wished(api, objects, lambda: ledger.record(step)):
        refused = run("move", A, "nowhere")
    assert (refused.code, refused.err) == (1, f"hawse: {A} does not move to nowhere: {refusal}\n")
    nobody = run("move", "192.168.1.99", "node1")
    assert nobody.code == 1
    assert "assigned to nobody" in nobody.err
    assert run("move", A, "node1", "--timeout", "0.1").code == 1


def test_who_may_not_is_told_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("nonsense\n")
    ran = run("status", "--token-file", str(token))
    assert ran.code == 1
    assert "--token-file" in ran.err
    token.write_text("\n")
    assert run("status", "--token-file", str(token)).code == 2
    monkeypatch.delenv("HAWSE_TOKEN")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert "oc whoami -t" in run("status").err


def test_the_token_of_kubectl_is_taken(run: Run, cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAWSE_TOKEN")
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    assert len(run("get", "assignments").rows) == 3


@pytest.mark.parametrize(
    ("server", "code", "message"),
    [
        ("", 2, "use --server or HAWSE_SERVER"),
        ("hawse.example.com", 2, "https://hawse.example.com"),
        ("http://hawse.example.com", 2, "use https"),
        ("http://127.0.0.1:1", 1, "cannot be reached"),
    ],
)
def test_an_api_that_cannot_be_is_said(
    run: Run, monkeypatch: pytest.MonkeyPatch, server: str, code: int, message: str
) -> None:
    monkeypatch.setenv("HAWSE_SERVER", server)
    ran = run("status")
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_a_watch_shows_what_changes(api: Api, run: Run, objects: Objects, cluster: EmbeddedCluster) -> None:
    environment = os.environ | {"HAWSE_SERVER": f"http://127.0.0.1:{api.port}", "HAWSE_TOKEN": cluster.token}
    command = [Path(sys.executable).parent / "hawse", "watch", "-o", "json", "--pool", "prod"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        try:
            said = (json.loads(line) for line in watching.stdout or ())
            assert [next(said)["assignment"]["namespace"] for _ in range(2)] == ["bank", "shop"]
            objects.status(A, phase="Ready", node="node3", conditions=[condition("True", "Ready")])
            changed = next(said)
            assert (changed["event"], changed["assignment"]["node"]) == ("is", "node3")
            api.stop()
            assert watching.stderr is not None
            assert b"asking again until it is back" in watching.stderr.readline()
            objects.kube.delete("EgressAddress", B)
            api.start()
            gone = next(said)
            assert (gone["event"], gone["assignment"]["address"]) == ("gone", B)
        finally:
            watching.kill()


def test_a_watch_prints_yaml_documents(api: Api, run: Run, cluster: EmbeddedCluster) -> None:
    environment = os.environ | {"HAWSE_SERVER": f"http://127.0.0.1:{api.port}", "HAWSE_TOKEN": cluster.token}
    command = [Path(sys.executable).parent / "hawse", "watch", "-o", "yaml", "-n", "shop"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as watching:
        try:
            assert watching.stdout is not None
            lines = [watching.stdout.readline().decode() for _ in range(12)]
        finally:
            watching.kill()
    (document,) = yaml.safe_load_all("".join(lines))
    assert document["event"] == "is"
    assert document["assignment"]["namespace"] == "shop"


def test_a_watch_that_is_refused_ends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAWSE_TOKEN", "nonsense")
    ran = run("watch")
    assert ran.code == 1
    assert "--token-file" in ran.err
