"""Halts the threads of ovs-vswitchd that bring the kernel's cache of flows up to date, until this process ends.

So they are on a machine that is too busy for them: the daemon takes and answers every OpenFlow change meanwhile. The
kernel lets a thread go on whose tracer has ended, however that was.
"""

import ctypes
import os
import signal
from pathlib import Path

PTRACE_ATTACH = 16
WALL = 0x40000000


def attach(thread: int) -> None:
    """Stops one thread, and no other of its process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    if libc.ptrace(PTRACE_ATTACH, thread, 0, 0):
        raise OSError(ctypes.get_errno(), f"cannot halt thread {thread}")
    os.waitpid(thread, WALL)


def main() -> None:
    process = int(Path(os.environ["OVS_RUNDIR"], "ovs-vswitchd.pid").read_text())
    threads = [
        int(task.name)
        for task in Path(f"/proc/{process}/task").iterdir()
        if (task / "comm").read_text().startswith("revalidator")
    ]
    if not threads:
        raise SystemExit("ovs-vswitchd has no revalidator")
    for thread in threads:
        attach(thread)
    print("ready", flush=True)
    signal.pause()


main()
