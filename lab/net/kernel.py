"""The lab's kernel: one linux.uml process in namespaces of its own, with the agent as its first process."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lab.net import guarded
from lab.net.channel import Channel, LabError

HOST_ADDRESS = "10.254.0.1"
ROOT_ADDRESS = "10.254.0.2"
MANAGEMENT = "10.254.0.0/24"
AGENT_PORT = 7000
_SOURCE = Path(__file__).resolve().parents[2]
_INIT = Path(__file__).parent / "inside" / "init.sh"


@dataclass(frozen=True)
class Kernel:
    """A booted kernel. `channel` reaches its agent."""

    process: guarded.Guarded
    channel: Channel
    console: Path

    @property
    def holder(self) -> int:
        """A process on the host in the lab's network namespace."""
        return self.process.holder

    def stop(self) -> None:
        self.process.kill()
        self.channel.close()


def boot(workdir: Path, memory_mb: int, timeout: float = 60) -> Kernel:
    """Start the kernel and wait for its agent. Raises LabError with the console's last lines."""
    console = workdir / "console.log"
    tap = f"hawse-{os.getpid()}"[:15]
    process = guarded.start(
        _command_line(workdir, tap, memory_mb),
        console,
        isolation=guarded.Isolation(tap, f"{HOST_ADDRESS}/24"),
        env=os.environ | {"TMPDIR": str(_memory_directory(workdir, memory_mb))},
    )
    kernel = Kernel(process, Channel(process.holder, (ROOT_ADDRESS, AGENT_PORT)), console)
    deadline = time.monotonic() + timeout
    try:
        _wait_for_agent(kernel, deadline)
        _set_clock(kernel.channel)
    except BaseException:
        kernel.stop()
        raise
    return kernel


def _wait_for_agent(kernel: Kernel, deadline: float) -> None:
    # Not by trying to connect: a lost SYN costs a second.
    while b"hawse agent ready" not in kernel.console.read_bytes():
        if not kernel.process.alive() or time.monotonic() > deadline:
            last = kernel.console.read_text(errors="replace").strip()[-1500:]
            raise LabError(f"the lab's kernel did not come up; the end of {kernel.console}:\n{last}")
        time.sleep(0.05)


def _set_clock(channel: Channel) -> None:
    """Make the wall clock inside the host's, to well under a millisecond, so that all logs compare."""
    for _ in range(2):
        samples = []
        for _ in range(5):
            before = time.time()
            inside = channel.clock()["time"]
            after = time.time()
            samples.append((after - before, (before + after) / 2 - inside))
        channel.clock(step=min(samples)[1])


def _command_line(workdir: Path, tap: str, memory_mb: int) -> list[str]:
    return [
        "linux.uml",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        f"mem={memory_mb}M",
        f"init={_INIT}",
        f"uml_dir={workdir}/uml",
        f"umid={tap}",
        f"vec0:transport=tap,ifname={tap},depth=128",
        "con=null",
        "con0=null,fd:1",
        "quiet",
        f"HAWSE_SOURCE={_SOURCE}",
        f"HAWSE_PREFIX={sys.prefix}",
        f"HAWSE_BASE={sys.base_prefix}",
        f"HAWSE_PYTHON={sys.executable}",
        f"HAWSE_WORKDIR={workdir}",
        f"HAWSE_ADDRESS={ROOT_ADDRESS}/24",
        f"HAWSE_PORT={AGENT_PORT}",
    ]


def _memory_directory(workdir: Path, memory_mb: int) -> Path:
    """Where the kernel's memory lives, an unlinked file: in /dev/shm given room there, which containers often lack."""
    shared = Path("/dev/shm")  # noqa: S108
    if shared.is_dir() and shutil.disk_usage(shared).free > memory_mb * 2**20:
        return shared
    return workdir
