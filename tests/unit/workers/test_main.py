"""What the processes say when they are told what cannot be."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from node_runner.__main__ import main as runner
from workers.__main__ import beat, watch, worker

NODE = {"HAWSE_NODE_NAME": "node2", "HAWSE_NODE_IP": "192.168.1.18"}


@pytest.mark.parametrize("command", [worker, watch])
@pytest.mark.parametrize("text", [None, "", "{", "- a", "apiVersion: v1\nclusters: 7\n", "\x00"])
def test_a_kubeconfig_that_cannot_be_used(command: click.Command, text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    answer = CliRunner().invoke(command, env={"HAWSE_KUBECONFIG": str(path)})
    assert answer.exit_code == 2
    assert answer.output.splitlines()[-1].startswith(f"Error: the kubeconfig {path} cannot be used: ")


@pytest.mark.parametrize("command", [worker, watch])
def test_neither_a_kubeconfig_nor_a_pod(command: click.Command) -> None:
    answer = CliRunner().invoke(command, env={"KUBERNETES_SERVICE_HOST": None})
    assert answer.exit_code == 2
    assert "no HAWSE_KUBECONFIG" in answer.output.splitlines()[-1]


@pytest.mark.parametrize("command", [worker, watch, beat, runner])
@pytest.mark.parametrize(
    ("variable", "text"), [("HAWSE_LOG_LEVEL", "loud"), ("HAWSE_IPTABLES", "x"), ("HAWSE_REDIS_URL", "nowhere")]
)
def test_a_setting_that_cannot_be_meant(command: click.Command, variable: str, text: str) -> None:
    answer = CliRunner().invoke(command, env={**NODE, variable: text})
    assert answer.exit_code == 2
    assert answer.output.splitlines()[-1].startswith(f"Error: {variable} is '{text}'")
