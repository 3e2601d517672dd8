"""The one subprocess call."""

from __future__ import annotations

import time

import pytest

from node_runner.commands import CommandFailed, run


def test_output_input_and_locale() -> None:
    assert run(["cat"], stdin="one\ntwo\n") == "one\ntwo\n"
    assert "LC_ALL=C\n" in run(["env"])


def test_no_shell_is_involved() -> None:
    assert run(["echo", "$(id); `id`"]) == "$(id); `id`\n"


def test_a_failure_is_one_line_with_code_and_words() -> None:
    with pytest.raises(CommandFailed) as failure:
        run(["ls", "/nowhere"])
    assert failure.value.argv == ("ls", "/nowhere")
    assert failure.value.returncode == 2
    assert "No such file" in failure.value.stderr
    assert "\n" not in str(failure.value)


def test_a_command_that_is_not_installed_says_so() -> None:
    with pytest.raises(CommandFailed, match="not installed"):
        run(["hawse-no-such-command"])


def test_a_command_that_hangs_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(CommandFailed, match="killed"):
        run(["sleep", "30"], timeout=0.2)
    assert time.monotonic() - began < 2
