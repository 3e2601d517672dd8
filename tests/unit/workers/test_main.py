"""What the processes say when they are told what cannot be."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from node_runner.__main__ import main as runner
from workers.__main__ import beat, tickets, watch, worker

NODE = {"HAWSE_NODE_NAME": "node2", "HAWSE_NODE_IP": "192.168.1.18"}
CONFIG = {
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "contexts": [{"name": "c", "context": {"cluster": "c"}}],
    "current-context": "c",
}


@pytest.mark.parametrize("command", [worker, tickets, watch, beat])
@pytest.mark.parametrize("text", [None, "", "{", "- a", "apiVersion: v1\nclusters: 7\n", "\x00"])
def test_a_kubeconfig_that_cannot_be_used(command: click.Command, text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    answer = CliRunner().invoke(command, env={"HAWSE_KUBECONFIG": str(path)})
    assert answer.exit_code == 2
    assert answer.output.splitlines()[-1].startswith(f"Error: the kubeconfig {path} cannot be used: ")


@pytest.mark.parametrize("command", [worker, tickets, watch, beat])
def test_neither_a_kubeconfig_nor_a_pod(command: click.Command) -> None:
    answer = CliRunner().invoke(command, env={"KUBERNETES_SERVICE_HOST": None})
    assert answer.exit_code == 2
    assert "no HAWSE_KUBECONFIG" in answer.output.splitlines()[-1]


@pytest.mark.parametrize("command", [worker, tickets, watch, beat, runner])
@pytest.mark.parametrize(
    ("variable", "text"), [("HAWSE_LOG_LEVEL", "loud"), ("HAWSE_IPTABLES", "x"), ("HAWSE_REDIS_URL", "nowhere")]
)
def test_a_setting_that_cannot_be_meant(command: click.Command, variable: str, text: str) -> None:
    answer = CliRunner().invoke(command, env={**NODE, variable: text})
    assert answer.exit_code == 2
    assert answer.output.splitlines()[-1].startswith(f"Error: {variable} is '{text}'")


@pytest.mark.parametrize("command", [worker, tickets, watch, beat])
def test_a_health_port_that_is_taken(command: click.Command, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(json.dumps(CONFIG))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {
            "HAWSE_KUBECONFIG": str(tmp_path / "kubeconfig"),
            "HAWSE_HEALTH_HOST": "127.0.0.1",
            "HAWSE_HEALTH_PORT": str(port),
        }
        answer = subprocess.run(
            [Path(sys.executable).parent / f"hawse-{command.name}"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert answer.returncode == 2
    assert f"port {port}: Address already in use; set HAWSE_HEALTH_HOST and HAWSE_HEALTH_PORT" in answer.stderr


def test_ticket_profiles_that_cannot_be_meant(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(json.dumps(CONFIG))
    (tmp_path / "profiles.yaml").write_text("profiles: 7")
    environment = {
        "HAWSE_KUBECONFIG": str(tmp_path / "kubeconfig"),
        "HAWSE_TICKET_PROFILES": str(tmp_path / "profiles.yaml"),
    }
    answer = CliRunner().invoke(tickets, env=environment)
    assert answer.exit_code == 2
    assert answer.output.splitlines()[-1].startswith(f"Error: {tmp_path}/profiles.yaml: ")
