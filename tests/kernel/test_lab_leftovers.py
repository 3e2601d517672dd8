"""Whatever ends the lab's owner, nothing of the lab remains on the host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

_ROOT = Path(__file__).resolve().parents[2]
_OWNER = """
import pathlib, signal, sys, threading, time
from lab.net.broker import Broker
from lab.net.network import NetworkLab

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests behind it ignores it
work = pathlib.Path(sys.argv[1])
with NetworkLab(work / "lab") as lab, Broker(work / "broker", lab.holder):
    lab.spawn("node1", ["sleep", "600"])
    print("up", lab.holder, flush=True)
    sys.stdin.readline()
for thread in threading.enumerate():
    thread is threading.main_thread() or thread.join(30)
print("down", threading.active_count(), flush=True)
sys.stdin.read()
"""


def _network_namespaces() -> dict[int, int]:
    """The network namespace of every process."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found[int(pid)] = os.stat(f"/proc/{pid}/ns/net").st_ino
        except OSError:
            continue
    return found


def _mentioning(text: str) -> list[int]:
    """Processes with `text` in their command line, this one and its parents apart."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in words and int(pid) not in (os.getpid(), os.getppid()):
            found.append(int(pid))
    return found


def _left(workdir: Path, namespace: int, owner: int) -> list[int]:
    inside = [pid for pid, inode in _network_namespaces().items() if inode == namespace]
    return [pid for pid in (*_mentioning(str(workdir)), *inside) if pid != owner]


def _host_state() -> tuple[str, str, list[str]]:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    rules = subprocess.run(["iptables-legacy-save"], capture_output=True, text=True, check=False).stdout
    return links, names, [line for line in rules.splitlines() if line.startswith("-A")]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("end", ["stop", "SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_is_left(end: str, tmp_path: Path) -> None:
    before = _host_state()
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    said = owner.stdout.readline().split()
    assert said[:1] == ["up"], said
    namespace = _network_namespaces()[int(said[1])]
    assert namespace != os.stat("/proc/self/ns/net").st_ino
    assert len(_mentioning(str(tmp_path))) > 1
    if end == "stop":
        # Checked while the owner lives: nothing may wait for its exit.
        owner.stdin.write("\n")
        owner.stdin.flush()
        assert owner.stdout.readline() == "down 1\n"
    else:
        owner.send_signal(getattr(signal, end))
        owner.wait(60)
    deadline = time.monotonic() + 30
    while left := _left(tmp_path, namespace, owner.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert _host_state() == before
    owner.communicate(timeout=60)
