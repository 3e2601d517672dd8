"""The first process of the lab's kernel: runs, inside a namespace, what the lab asks for over TCP.

Forking a Python process costs 50 ms in this kernel. So workers are forked ahead and wait; a worker moves *itself* into
the command's namespaces and starts the command by vfork. Calls run at once: whenever few workers wait, more are forked.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lab.net.inside import wire

NAMESPACES = Path("/run/netns")
_WAITING = 3
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000
_MS_REC, _MS_SLAVE, _MNT_DETACH = 0x4000, 0x80000, 2
_BUSY, _IDLE = b"-", b"+"
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serve forever at HAWSE_ADDRESS, HAWSE_PORT."""
    # Orphans become children of this process; ignoring SIGCHLD makes the kernel bury them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    os.setsid()
    address = os.environ["HAWSE_ADDRESS"].partition("/")[0]
    server = socket.create_server((address, int(os.environ["HAWSE_PORT"])), backlog=128)
    news, tell = os.pipe()
    idle = 0
    print("hawse agent ready", flush=True)
    while True:
        while idle < _WAITING:
            if os.fork() == 0:
                _work(server, tell)
            idle += 1
        said = os.read(news, 64)
        idle += said.count(_IDLE) - said.count(_BUSY)


def _work(server: socket.socket, tell: int) -> None:
    """Take one call after the other."""
    for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    home = [
        (os.open(f"/proc/self/ns/{name}", os.O_RDONLY), kind)
        for name, kind in (("net", _CLONE_NEWNET), ("mnt", _CLONE_NEWNS), ("uts", _CLONE_NEWUTS))
    ]
    try:
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # When whoever asked has gone, there is nobody to tell.
            with connection, contextlib.suppress(ConnectionError):
                _serve(connection, tell)
            for fd, kind in home:
                _checked(_libc.setns(fd, kind), "setns")
    finally:
        os._exit(1)


def _serve(connection: socket.socket, tell: int) -> None:
    _, payload = wire.receive(connection)
    call: dict[str, Any] = json.loads(payload)
    data = wire.receive(connection)[1] if call.pop("input", False) else None
    name = call.pop("call")
    lasts = name in ("run", "spawn")
    if lasts:
        os.write(tell, _BUSY)
    try:
        result = _CALLS[name](connection, data, **call)
    except ConnectionError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    finally:
        if lasts:
            os.write(tell, _IDLE)
    wire.send_json(connection, wire.RESULT, result)


def _enter(where: str, hostname: str) -> None:
    """Move this worker, and what it starts next, into namespace `where`, with that namespace's /sys and host name.

    What runs in "root" shares the first process's mounts: `ip netns add` makes one, for all to see.
    """
    _checked(_libc.unshare(_CLONE_NEWUTS), "unshare")
    socket.sethostname(hostname)
    if where == "root":
        return
    try:
        fd = os.open(NAMESPACES / where, os.O_RDONLY)
    except FileNotFoundError:
        raise ValueError(f"there is no namespace {where!r} in the lab") from None
    _checked(_libc.setns(fd, _CLONE_NEWNET), "setns")
    os.close(fd)
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _checked(_libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None), "mount /")
    _checked(_libc.umount2(b"/sys", _MNT_DETACH), "umount /sys")
    _checked(_libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None), "mount /sys")


def _checked(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _start(
    where: str, hostname: str, argv: list[str], env: dict[str, str], *, stdin: int, stderr: int
) -> subprocess.Popen[bytes]:
    _enter(where, hostname)
    # A session of its own tells a command from a worker that is in the same namespace.
    return subprocess.Popen(
        argv, env=env, cwd="/", start_new_session=True, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr
    )


def _run(connection: socket.socket, data: bytes | None, *, timeout: float, **what: Any) -> dict[str, Any]:  # noqa: ANN401
    """Run to the end; on a timeout, kill the command's whole session."""
    stdin = subprocess.DEVNULL if data is None else subprocess.PIPE
    process = _start(**what, stdin=stdin, stderr=subprocess.PIPE)
    timed_out = False
    try:
        out, err = process.communicate(data, timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    wire.send(connection, wire.OUTPUT, out)
    wire.send(connection, wire.ERROR, err)
    return {"returncode": process.returncode, "timed_out": timed_out}


def _spawn(connection: socket.socket, data: bytes | None, **what: Any) -> dict[str, Any]:  # noqa: ANN401
    """Start, tell the pid, pass on what it prints as it prints it, and at last how it ended.

    A grandchild may hold the pipe open for ever; the end of the process itself ends the report.
    """
    process = _start(**what, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    wire.send_json(connection, wire.STARTED, {"pid": process.pid})
    assert process.stdout is not None  # noqa: S101
    stream: IO[bytes] = process.stdout
    exited = os.pidfd_open(process.pid)
    os.set_blocking(stream.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        selector.register(exited, selectors.EVENT_READ)
        running = True
        while running:
            ready = {key.fd for key, _ in selector.select()}
            running = exited not in ready
            while stream.fileno() in ready or not running:
                try:
                    part = os.read(stream.fileno(), 65536)
                except BlockingIOError:
                    break
                if not part:
                    with contextlib.suppress(KeyError):
                        selector.unregister(stream)
                    break
                wire.send(connection, wire.OUTPUT, part)
    return {"returncode": process.wait()}


def _kill(connection: socket.socket, data: bytes | None, *, pid: int, signum: int) -> dict[str, Any]:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
    return {}


def _kill_namespaces(connection: socket.socket, data: bytes | None, *, names: list[str]) -> dict[str, Any]:
    """SIGKILL everything that lives in these network namespaces, until nothing does."""
    wanted = {(NAMESPACES / name).stat().st_ino for name in names}
    killed: set[int] = set()
    while True:
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _command_in(pid, wanted)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(found)
        if not found:
            return {"killed": sorted(killed)}
        time.sleep(0.01)


def _command_in(pid: int, namespaces: set[int]) -> bool:
    try:
        # a zombie has no namespace any more: this raises
        inside = os.stat(f"/proc/{pid}/ns/net").st_ino in namespaces
        return inside and os.getsid(pid) != os.getsid(0)
    except OSError:
        return False


def _read(connection: socket.socket, data: bytes | None, *, path: str, offset: int) -> dict[str, Any]:
    """Send what a file holds from `offset` on; a file that is not there is an empty one."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(offset)
        wire.send(connection, wire.OUTPUT, file.read())
    return {}


def _clock(connection: socket.socket, data: bytes | None, *, step: float) -> dict[str, Any]:
    """Move the wall clock by `step` seconds and tell the time and the uptime."""
    if step:
        time.clock_settime(time.CLOCK_REALTIME, time.time() + step)
    return {"time": time.time(), "uptime": time.clock_gettime(time.CLOCK_MONOTONIC)}


_CALLS: dict[str, Callable[..., dict[str, Any]]] = {
    "run": _run,
    "spawn": _spawn,
    "kill": _kill,
    "kill_namespaces": _kill_namespaces,
    "read": _read,
    "clock": _clock,
}
