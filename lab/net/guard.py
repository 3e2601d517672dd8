"""A process that holds others and dies, with all of them, when its owner does: even by SIGKILL, even the guard's own.

    python guard.py OWNER_PID --log FILE [--join PID] [--isolate TAP ADDRESS] -- ARGV...

With `--isolate` the command runs in new network and process-id namespaces, where TAP is made first with ADDRESS on it:
the network namespace has no name, so it vanishes with its last process. With `--join` it runs in the namespaces of a
process held by another guard. The guard prints the pid of the innermost holder, which stays in those namespaces, and
``ready`` when the command runs; what the command prints goes to FILE.

Standard library only and run by path: it starts in 20 ms and imports nothing of the project.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys

_CLONE_NEWNET, _CLONE_NEWPID = 0x40000000, 0x20000000
_PR_SET_PDEATHSIG = 1
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TAP_NO_PI = 0x0002 | 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("owner", type=int)
    parser.add_argument("--log", required=True)
    parser.add_argument("--join", type=int)
    parser.add_argument("--isolate", nargs=2, metavar=("TAP", "ADDRESS"))
    parser.add_argument("argv", nargs="+")
    options = parser.parse_args()
    # A pidfd, not PR_SET_PDEATHSIG: that signal comes when the owner's *thread* ends, long before its process.
    owner = os.pidfd_open(options.owner)
    if os.getppid() != options.owner:
        return 1
    ignore_terminal()
    if options.join is not None:
        for name, kind in (("pid", _CLONE_NEWPID), ("net", _CLONE_NEWNET)):
            fd = os.open(f"/proc/{options.join}/ns/{name}", os.O_RDONLY)
            checked(_libc.setns(fd, kind), "setns")
            os.close(fd)
    if options.isolate is not None:
        checked(_libc.unshare(_CLONE_NEWNET | _CLONE_NEWPID), "unshare")
    child = os.fork()
    if child == 0:
        os.close(owner)
        die_with_parent()
        hold(options.argv, options.log, options.isolate)
    # The first process of a namespace takes all others with it, and the kernel reports its end when they have ended. A
    # command that joined others is killed by its holder, which waits for it.
    return wait(owner, child, signal.SIGTERM if options.isolate is None else signal.SIGKILL)


def ignore_terminal() -> None:
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def die_with_parent() -> None:
    checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def wait(owner: int, child: int, deadly: int) -> int:
    """Until the child ends, or the owner: then, and at a SIGTERM, the child gets `deadly`. The child's exit status."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, deadly))
    # The child does not know its pid as the owner sees it: this process tells.
    print(f"holder {child}", flush=True)
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(owner, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if owner in ready and ended not in ready:
            os.kill(child, deadly)
            poll.unregister(owner)
        if ended in ready:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hold(argv: list[str], log: str, isolate: list[str] | None) -> None:
    """The innermost holder. When isolated it is the first process of its namespace: if it dies, all in there do."""
    if isolate is not None:
        name, address = isolate
        make_tap(name)
        ip = ["link set lo up", f"address add {address} dev {name}", f"link set {name} up"]
        subprocess.run(["ip", "-batch", "-"], input="\n".join(ip).encode(), check=True)
    with open(log, "ab") as file:
        # This process has one thread, so code between fork and exec is safe.
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )
    signal.signal(signal.SIGTERM, lambda *_: process.kill())
    signal.signal(signal.SIGUSR1, lambda *_: process.terminate())
    print("ready", flush=True)
    os._exit(process.wait() % 256)


def make_tap(name: str) -> None:
    """A tap that outlives this file descriptor and dies with the namespace."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP_NO_PI))
    fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    os.close(fd)


def checked(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


if __name__ == "__main__":
    sys.exit(main())
