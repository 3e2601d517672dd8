"""The one subprocess call."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.host_node import eventually
from node_runner.commands import CommandFailed, Standby, printed, run


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
    assert time.monotonic() - began < 20


def test_what_is_printed_may_be_long() -> None:
    lines = printed(["seq", "200000"]).splitlines()
    assert (len(lines), lines[-1]) == (200_000, "200000")
    assert "LC_ALL=C\n" in printed(["env"])
    assert printed(["printf", r"\377\n"]) == "\ufffd\n"


def test_a_command_that_prints_fails_as_others_do() -> None:
    with pytest.raises(CommandFailed, match=r"exit code 3.*words"):
        printed(["sh", "-c", "echo words >&2; exit 3"])
    with pytest.raises(CommandFailed, match=r"exit code 4.*what it said"):
        printed(["sh", "-c", "echo what it said; exit 4"])
    with pytest.raises(CommandFailed, match="not installed"):
        printed(["hawse-no-such-command"])
    before, began = children(), time.monotonic()
    with pytest.raises(CommandFailed, match="killed"):
        printed(["sleep", "30"], timeout=0.2)
    assert time.monotonic() - began < 20
    assert children() == before


@pytest.mark.parametrize("command", [run, printed])
def test_an_older_kernel_does_not_tell_of_an_end(command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(pid: int) -> int:
        raise OSError(errno.ENOSYS, f"pidfd_open of {pid}")

    monkeypatch.setattr(os, "pidfd_open", missing)
    assert command(["sh", "-c", "exec >&- 2>&-; sleep 0.05"]) == ""
    with pytest.raises(CommandFailed, match="killed"):
        command(["sleep", "30"], timeout=0.2)


def test_without_room_for_what_it_prints_it_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str) -> int:
        raise OSError(errno.EMFILE, f"no room for {name}")

    monkeypatch.setattr(os, "memfd_create", full)
    with pytest.raises(CommandFailed, match="could not be started"):
        printed(["true"])


def children() -> set[str]:
    return set(Path("/proc/thread-self/children").read_text().split())


SAYS_ITSELF = ("sh", "-c", "cat; echo $$")


def test_a_command_that_is_ready_is_told_later() -> None:
    standby, before = Standby(), children()
    standby.ready(SAYS_ITSELF)
    (waiting,) = children() - before
    standby.ready(SAYS_ITSELF)  # there is one already
    assert children() - before == {waiting}
    assert standby.run(SAYS_ITSELF, stdin="one\n") == f"one\n{waiting}\n"
    assert children() == before
    assert standby.run(SAYS_ITSELF, stdin="two\n") not in ("", f"two\n{waiting}\n")


def test_a_command_that_is_told_nothing_does_nothing(tmp_path: Path) -> None:
    done = tmp_path / "done"
    standby, before = Standby(), children()
    standby.ready(["sh", "-c", f"cat; touch {done}"])
    standby.tidy()
    assert len(children() - before) == 1  # it may be needed yet
    standby.close()
    standby.close()
    assert children() == before
    assert not done.exists()


def test_one_that_nobody_has_a_use_for_any_more_is_ended() -> None:
    standby, before = Standby(), children()
    standby.ready(["cat"])
    del standby
    assert children() == before


@pytest.mark.parametrize("argv", [["true"], ["sleep", "30"], ["hawse-no-such-command"]])
def test_another_command_than_the_one_that_is_ready_is_started(argv: list[str]) -> None:
    standby, before = Standby(), children()
    standby.ready(argv)
    assert standby.run(["cat"], stdin="text") == "text"
    assert children() == before


def test_one_that_has_waited_for_long_is_not_told() -> None:
    standby, before = Standby(within=0.0), children()
    standby.ready(SAYS_ITSELF)
    (waiting,) = children() - before
    assert standby.run(SAYS_ITSELF, stdin="text\n") != f"text\n{waiting}\n"
    assert children() == before
    standby.ready(SAYS_ITSELF)
    standby.tidy()
    assert children() == before


def test_one_that_has_ended_meanwhile_is_started_again() -> None:
    standby, before = Standby(), children()
    standby.ready(SAYS_ITSELF)
    (waiting,) = children() - before
    os.kill(int(waiting), signal.SIGKILL)
    eventually(lambda: Path(f"/proc/{waiting}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert standby.run(SAYS_ITSELF, stdin="text\n").startswith("text\n")
    assert children() == before


def test_a_ready_commands_failures_are_as_others() -> None:
    standby, before = Standby(), children()
    standby.ready(["sh", "-c", "cat >&2; exit 3"])
    with pytest.raises(CommandFailed, match=r"exit code 3.*words") as failure:
        standby.run(["sh", "-c", "cat >&2; exit 3"], stdin="words")
    assert failure.value.returncode == 3
    standby.ready(["sleep", "30"])
    with pytest.raises(CommandFailed, match="killed"):
        standby.run(["sleep", "30"], stdin="", timeout=0.2)
    standby.ready(["hawse-no-such-command"])
    with pytest.raises(CommandFailed, match="not installed"):
        standby.run(["hawse-no-such-command"], stdin="")
    assert children() == before
