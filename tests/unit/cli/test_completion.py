"""Shells complete the command, and kubectl knows it as a plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from egress.cli import COMMANDS, main

BIN = Path(sys.executable).parent
HAWSE = BIN / "hawse"


def complete(words: str, position: int) -> list[str]:
    """What bash is told when Tab is pressed after `words`."""
    environment = os.environ | {"_HAWSE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    ran = subprocess.run([HAWSE], env=environment, capture_output=True, text=True, timeout=30, check=True)
    return [line.partition(",")[2] for line in ran.stdout.splitlines()]


def test_commands_options_and_choices_are_completed() -> None:
    assert complete("hawse ", 1) == sorted(COMMANDS)
    assert complete("hawse get a", 2) == ["assignments"]
    assert "--trouble" in complete("hawse get assignments --", 3)
    assert complete("hawse get assignments --trouble f", 4) == ["failed"]


def test_bash_takes_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    ran = subprocess.run(
        ["bash", "--norc", "-c", 'source /dev/stdin && complete -p hawse'],
        input=script, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "_hawse_completion" in ran.stdout


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_theirs(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert f"{shell}_complete" in capsys.readouterr().out


def test_kubectl_finds_it_by_name() -> None:
    ran = subprocess.run([BIN / "kubectl-hawse", "--help"], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout == subprocess.run([HAWSE, "--help"], capture_output=True, text=True, check=True).stdout
