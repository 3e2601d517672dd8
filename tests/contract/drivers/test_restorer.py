"""iptables-restore as a process that stays: the real tools of both variants and both IP versions, and stand-ins."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import node_runner.drivers.restorer as module
from lab.host_node import Netns, eventually
from node_runner.commands import CommandFailed
from node_runner.commands import run as run_once
from node_runner.drivers.restorer import Restorer

from .conftest import need, run

MADE = "*filter\n:FIRST - [0:0]\n:SECOND - [0:0]\nCOMMIT\n"


def processes() -> set[int]:
    """The children of this process, of whichever thread, that have not been waited for."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if rest[1] == str(os.getpid()):
            found.add(int(pid))
    return found


@dataclass(frozen=True)
class Tool:
    """One of the real tools; what it restored is read with its -save."""

    name: str
    source: str
    before: frozenset[int]

    @property
    def argv(self) -> tuple[str, ...]:
        return f"{self.name}-restore", "--noflush", "--wait=10"

    def restorer(self, rest: float = float("inf")) -> Restorer:
        return Restorer(self.argv, rest)

    def rules(self, table: str = "filter") -> list[str]:
        lines = run(f"{self.name}-save", "-t", table).splitlines()
        return [line for line in lines if line.startswith("-A")]

    def process(self) -> int:
        (pid,) = processes() - self.before
        return pid

    def rule(self, number: int, chain: str = "FIRST") -> str:
        return f"-A {chain} -s {self.source} -m mark --mark {number:#x} -j RETURN"

    def text(self, *rules: str) -> str:
        return "\n".join(["*filter", *rules, "COMMIT", ""])


@pytest.fixture(params=["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"])
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tool:
    request.getfixturevalue("netns")
    need(f"{request.param}-restore", f"{request.param}-save")
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    source = "10.128.0.0/14" if request.param.startswith("iptables") else "fd01::/48"
    run(f"{request.param}-restore", stdin="*filter\n:INPUT ACCEPT\nCOMMIT\n*nat\n:POSTROUTING ACCEPT\nCOMMIT\n")
    return Tool(request.param, source, frozenset(processes()))


@pytest.fixture
def restorer(tool: Tool) -> Iterator[Restorer]:
    made = tool.restorer()
    yield made
    made.close()
    assert processes() == tool.before


def test_one_process_takes_one_transaction_after_the_other(tool: Tool, restorer: Restorer) -> None:
    restorer.ready()
    process = tool.process()
    restorer.run(MADE, timeout=10)
    for number in (1, 2, 3):
        restorer.run(tool.text(tool.rule(number)), timeout=10)
        assert tool.rules()[-1] == tool.rule(number)  # it is done when it says so
    restorer.run(tool.text(*(f"-D{tool.rule(number)[2:]}" for number in (1, 2))), timeout=10)
    assert tool.rules() == [tool.rule(3)]
    assert tool.process() == process


BAD = {
    "no such option": ["-A FIRST --no-such-option"],
    "no such rule": ["-D FIRST -m mark --mark 0x9 -j RETURN"],
    "no such chain": ["-A THIRD -j RETURN"],
    "a jump to nowhere": ["-A FIRST -j THIRD"],
    "a chain in use": ["-A FIRST -j SECOND", "-X SECOND"],
    "a table that is none": ["COMMIT", "*hawse"],
}


@pytest.mark.parametrize("bad", list(BAD))
def test_an_error_is_told_in_the_words_and_with_the_line_of_a_tool_of_its_own(
    tool: Tool, restorer: Restorer, bad: str
) -> None:
    restorer.run(MADE, timeout=10)
    restorer.run(tool.text(tool.rule(1)), timeout=10)
    before = tool.rules()
    text = tool.text(tool.rule(2), *BAD[bad], tool.rule(3))
    with pytest.raises(CommandFailed) as failure:
        restorer.run(text, timeout=10)
    if "COMMIT" in BAD[bad]:
        before.append(tool.rule(2))  # the table before the one that failed
    assert tool.rules() == before
    with pytest.raises(CommandFailed) as alone:
        run_once(tool.argv, stdin=text)
    assert (failure.value.returncode, failure.value.stderr) == (alone.value.returncode, alone.value.stderr)
    restorer.run(tool.text(tool.rule(4)), timeout=10)  # it goes on, with another process
    assert tool.rules()[-1] == tool.rule(4)


def test_what_others_change_meanwhile_is_seen(tool: Tool, restorer: Restorer) -> None:
    restorer.run(MADE, timeout=10)
    run(tool.name, "-X", "FIRST")
    with pytest.raises(CommandFailed):
        restorer.run(tool.text(tool.rule(1)), timeout=10)
    restorer.run(MADE, timeout=10)
    restorer.run(tool.text(tool.rule(1)), timeout=10)
    run(f"{tool.name}-restore", stdin="*filter\n:INPUT ACCEPT\nCOMMIT\n")
    if tool.name.endswith("nft"):
        need("nft")
        run("nft", "flush", "ruleset")  # not even the tables are there
    restorer.run(MADE, timeout=10)
    restorer.run(tool.text(tool.rule(2)), timeout=10)
    assert tool.rules() == [tool.rule(2)]


def test_what_is_larger_than_a_pipe_is_told_in_one_piece(tool: Tool, restorer: Restorer) -> None:
    restorer.run(MADE, timeout=10)
    restorer.run(tool.text(*(tool.rule(number) for number in range(1, 2501))), timeout=60)
    assert len(tool.rules()) == 2500


def test_one_that_waits_holds_no_lock_and_keeps_nobody_waiting(tool: Tool, restorer: Restorer) -> None:
    restorer.run(MADE, timeout=10)
    lock = Path(os.environ["XTABLES_LOCKFILE"])
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    run(tool.name, "-A", "FIRST", "-j", "RETURN")  # without -w it would not wait
    assert tool.rules() == ["-A FIRST -j RETURN"]


@pytest.mark.parametrize("tool", ["iptables-legacy", "ip6tables-legacy"], indirect=True)
def test_each_transaction_waits_for_the_lock_of_others(tool: Tool) -> None:
    restorer = Restorer([*tool.argv[:2], "--wait=5"], float("inf"))
    restorer.run(MADE, timeout=10)
    with Path(os.environ["XTABLES_LOCKFILE"]).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CommandFailed, match=r"holding the xtables lock"):
            restorer.run(tool.text(tool.rule(1)), timeout=30)
        threading.Timer(0.3, fcntl.flock, (held, fcntl.LOCK_UN)).start()
        restorer.run(tool.text(tool.rule(2)), timeout=10)
    assert tool.rules() == [tool.rule(2)]
    # The tool's own alarm for the lock ends it when it rings, though the lock was had long ago.
    process = tool.process()
    eventually(lambda: state_of(process) == "Z")
    restorer.run(tool.text(tool.rule(3)), timeout=10)
    assert tool.rules() == [tool.rule(2), tool.rule(3)]
    restorer.close()


def state_of(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_one_that_died_before_it_was_told_anything_is_replaced(tool: Tool, restorer: Restorer) -> None:
    restorer.run(MADE, timeout=10)
    process = tool.process()
    os.kill(process, signal.SIGKILL)
    eventually(lambda: state_of(process) == "Z")
    restorer.run(tool.text(tool.rule(1)), timeout=10)
    assert tool.rules() == [tool.rule(1)]
    assert tool.process() != process


def test_one_that_dies_while_it_is_told_has_failed(tool: Tool, restorer: Restorer) -> None:
    restorer.run(MADE, timeout=10)
    process = tool.process()
    os.kill(process, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (process, signal.SIGKILL)).start()
    with pytest.raises(CommandFailed) as failure:
        restorer.run(tool.text(tool.rule(1)), timeout=10)
    assert failure.value.returncode == -signal.SIGKILL
    assert tool.rules() == []
    restorer.run(tool.text(tool.rule(2)), timeout=10)
    assert tool.rules() == [tool.rule(2)]


def test_one_that_says_nothing_in_time_is_killed(tool: Tool, restorer: Restorer) -> None:
    restorer.run(MADE, timeout=10)
    process = tool.process()
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(CommandFailed, match=r"no end after 0\.2 s; it was killed") as failure:
        restorer.run(tool.text(tool.rule(1)), timeout=0.2)
    assert failure.value.returncode is None
    assert process not in processes()
    assert tool.rules() == []
    restorer.run(tool.text(tool.rule(2)), timeout=10)
    assert tool.rules() == [tool.rule(2)]


def test_one_that_was_not_needed_for_long_or_has_grown_is_replaced(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    restless = tool.restorer(rest=0.0)
    restless.run(MADE, timeout=10)
    restless.tidy()
    assert processes() == tool.before
    restless.run(tool.text(tool.rule(1)), timeout=10)
    process = tool.process()
    restless.run(tool.text(tool.rule(2)), timeout=10)
    assert tool.process() != process
    restless.close()
    monkeypatch.setattr(module, "_MOST_PAGES", 0)
    grown = tool.restorer()
    grown.run(tool.text(tool.rule(3)), timeout=10)
    grown.tidy()
    assert processes() == tool.before
    assert tool.rules() == [tool.rule(number) for number in (1, 2, 3)]


def test_it_ends_with_whoever_has_a_use_for_it(tool: Tool) -> None:
    restorer = tool.restorer()
    restorer.run(MADE, timeout=10)
    assert len(processes() - tool.before) == 1
    del restorer
    assert processes() == tool.before


HOLDER = """
import subprocess, sys, time
from node_runner.drivers.restorer import Restorer
restorer = Restorer(sys.argv[1:], float("inf"))
restorer.run("*filter\\nCOMMIT\\n", timeout=10)
other = subprocess.Popen(["sleep", "60"])
print(restorer._talk._process.pid, other.pid, flush=True)
time.sleep(60)
"""


def test_it_ends_when_the_runner_is_killed_whatever_else_the_runner_has_started(tool: Tool) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, *tool.argv], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        process, other = map(int, holder.stdout.readline().split())
        assert Path(f"/proc/{process}").exists()
        holder.kill()
        eventually(lambda: not Path(f"/proc/{process}").exists() or state_of(process) == "Z")
        assert Path(f"/proc/{other}").exists()
        os.kill(other, signal.SIGKILL)


# Stand-ins: what they are told is written to $LOG, as are their starts.

STAND_INS = {
    "none that knows --verbose": 'case "$*" in *--verbose*) echo "unknown option" >&2; exit 2;; esac; cat >> $LOG',
    "gives no comments back": "cat >> $LOG",
    "gives them back at its end": 'text=$(cat); echo "$text"; echo "$text" >> $LOG',
    "gives other words back": "echo hello; echo '# hawse'; echo ' # hawse 1'; cat >> $LOG",
}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], list[str]]:
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("LOG", str(log))

    def make(script: str) -> list[str]:
        path = tmp_path / "stand-in"
        path.write_text(f'#!/bin/sh\necho "started $*" >> $LOG\n{script}\n')
        path.chmod(0o755)
        return [str(path), "--noflush"]

    return make


@pytest.mark.parametrize("script", STAND_INS.values(), ids=STAND_INS)
def test_a_tool_that_says_nothing_of_what_it_has_done_is_started_for_each_transaction(
    stand_in: Callable[[str], list[str]], script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = processes()
    tried, plain = "started --noflush --verbose", "started --noflush"
    restorer = Restorer(stand_in(script), float("inf"))
    restorer.ready()
    eventually(lambda: tried in (tmp_path / "log").read_text())
    for word in ("one", "two"):
        restorer.run(f"{word}\n", timeout=10)
    assert processes() == before
    monkeypatch.setattr(module, "_PLAIN_SECONDS", 0.0)  # by now it may be another one
    again = Restorer(stand_in(script), float("inf"))
    for word in ("three", "four"):
        again.run(f"{word}\n", timeout=10)
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line != "# hawse 1"]
    assert lines == [tried, plain, "one", plain, "two", tried, plain, "three", tried, plain, "four"]


def test_one_that_ends_before_it_is_needed_is_not_tried_again(
    stand_in: Callable[[str], list[str]], tmp_path: Path
) -> None:
    restorer = Restorer(stand_in("exit 3"), float("inf"))
    before = processes()
    restorer.ready()
    (process,) = processes() - before
    eventually(lambda: state_of(process) == "Z")
    for _ in range(2):
        restorer.ready()
        with pytest.raises(CommandFailed, match="exit code 3"):
            restorer.run("text\n", timeout=10)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == ["started --noflush --verbose", "started --noflush", "started --noflush"]


def test_what_is_said_meanwhile_is_read_and_does_not_count(stand_in: Callable[[str], list[str]]) -> None:
    """It says all that it is told, and more; its errors too, more than any pipe holds."""
    said = 'tee /dev/stderr | sed "s/^a.*/& # hawse 2/"'
    restorer = Restorer(stand_in(f"stdbuf -oL -eL {said.replace('| sed', '| stdbuf -oL sed')}"), float("inf"))
    text = "".join(f"a line {number} # hawse 2\n" for number in range(50_000))
    assert len(text) > 1 << 20
    restorer.run(text, timeout=60)
    restorer.run("another\n", timeout=10)
    restorer.close()


def test_only_the_mark_of_this_transaction_counts(stand_in: Callable[[str], list[str]]) -> None:
    """It is always one mark behind, and never says the last one."""
    script = 'last="# hawse 1"; while read -r line; do case "$line" in "#"*) echo "$last"; last="$line-";; esac; done'
    restorer = Restorer(stand_in(script), float("inf"))
    with pytest.raises(CommandFailed, match="it was killed"):
        restorer.run("one\n", timeout=0.3)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("echo some words; exit 0", r"exit code 0\): some words"),
        ("exit 0", r"exit code 0\): it ended without a word"),
        ("echo complaint >&2; exit 4", r"exit code 4\): complaint"),
        ("echo 'line 3 failed' >&2; exit 1", "line 2 failed"),
        ("echo 'Error occurred at line: 2' >&2; exit 1", "Error occurred at line: 1$"),
        ("echo 'line 1 failed' >&2; exit 1", "line 1 failed"),  # of what was said earlier, whatever that means
        ("exec 1>&-; exec sleep 60", "it ended without a word"),
    ],
)
def test_one_that_ends_without_a_mark_has_failed(stand_in: Callable[[str], list[str]], end: str, words: str) -> None:
    echo = 'while read -r line; do case "$line" in "#"*) echo "$line";; two) ' + end + ";; esac; done"
    restorer = Restorer(stand_in(echo), float("inf"))
    restorer.ready()
    with pytest.raises(CommandFailed, match=words) as failure:
        restorer.run("one\ntwo\n", timeout=20)
    assert failure.value.argv[1:] == ("--noflush", "--verbose")


def test_a_tool_that_is_not_installed_says_so() -> None:
    restorer = Restorer(["hawse-no-such-command"], 1.0)
    restorer.ready()
    with pytest.raises(CommandFailed, match="not installed"):
        restorer.run("text\n", timeout=1)
    restorer.tidy()
    restorer.close()


def test_threads_take_turns(tool: Tool, restorer: Restorer, netns: Netns) -> None:
    restorer.run(MADE, timeout=10)

    def add(number: int) -> None:
        with netns:
            restorer.run(tool.text(tool.rule(number)), timeout=10)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tool.rules()) == sorted(tool.rule(number) for number in range(1, 9))
