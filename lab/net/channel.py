"""Calls to the agent inside the lab's kernel, over TCP in the lab's own network namespace on the host."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.net.inside import wire

_CLONE_NEWNET = 0x40000000


class LabError(RuntimeError):
    """The lab could not do what was asked."""


class CommandFailed(LabError):
    """A command that was to succeed did not."""


@dataclass(frozen=True)
class Completed:
    """What a command inside printed and returned."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Place:
    """Where a command runs: a namespace's name (or ``root``), and the host name it sees there."""

    namespace: str
    hostname: str


class Channel:
    """The agent at `address`, as seen from the network namespace of process `holder`."""

    def __init__(self, holder: int, address: tuple[str, int]) -> None:
        self._holder = holder
        self._address = address
        self._followed: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def close(self) -> None:
        """Let go of every process followed. The kernel says no goodbye: without this, sockets would wait for ever."""
        for sock in list(self._followed):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def run(
        self, place: Place, argv: list[str], *, env: dict[str, str], timeout: float, data: bytes | None = None
    ) -> Completed:
        """Run to the end. Raises TimeoutError after `timeout` seconds, when the command is already killed."""
        call = {"call": "run", **_what(place, argv, env), "timeout": timeout}
        frames, result = self._ask(call, data, limit=timeout + 10)
        if result["timed_out"]:
            raise TimeoutError(f"{' '.join(argv)} in {place.namespace} took more than {timeout} s")
        return Completed(
            result["returncode"],
            frames.get(wire.OUTPUT, b"").decode(errors="replace"),
            frames.get(wire.ERROR, b"").decode(errors="replace"),
        )

    def spawn(self, place: Place, argv: list[str], *, env: dict[str, str], log: Path) -> RemoteProcess:
        """Start and leave running; what it prints goes to `log` as it comes."""
        sock = self._connect(limit=20)
        wire.send_json(sock, wire.CALL, {"call": "spawn", **_what(place, argv, env)})
        kind, payload = wire.receive(sock)
        answer = json.loads(payload)
        if kind != wire.STARTED:
            sock.close()
            raise LabError(f"{' '.join(argv)} in {place.namespace}: {answer.get('error', answer)}")
        sock.settimeout(None)
        self._followed.add(sock)
        return RemoteProcess(answer["pid"], sock, log, self.kill)

    def kill(self, pid: int, signum: int) -> None:
        self._ask({"call": "kill", "pid": pid, "signum": signum})

    def kill_namespaces(self, names: list[str]) -> list[int]:
        """SIGKILL all that runs in these namespaces; their pids."""
        killed: list[int] = self._ask({"call": "kill_namespaces", "names": names})[1]["killed"]
        return killed

    def read(self, path: str, offset: int = 0) -> bytes:
        """What a file inside holds, from `offset` on."""
        return self._ask({"call": "read", "path": path, "offset": offset})[0].get(wire.OUTPUT, b"")

    def clock(self, step: float = 0.0) -> dict[str, float]:
        """Move the wall clock inside by `step`; ``time`` and ``uptime`` there."""
        return self._ask({"call": "clock", "step": step})[1]

    def _ask(
        self, call: dict[str, Any], data: bytes | None = None, limit: float = 20
    ) -> tuple[dict[bytes, bytes], dict[str, Any]]:
        with self._connect(limit) as sock:
            wire.send_json(sock, wire.CALL, call | {"input": data is not None})
            if data is not None:
                wire.send(sock, wire.INPUT, data)
            frames: dict[bytes, bytes] = {}
            while True:
                kind, payload = wire.receive(sock)
                if kind == wire.RESULT:
                    break
                frames[kind] = payload
        result: dict[str, Any] = json.loads(payload)
        if "error" in result:
            raise LabError(f"{call['call']} {' '.join(call.get('argv', []))}: {result['error']}")
        return frames, result

    def _connect(self, limit: float) -> socket.socket:
        """A connection made from within the lab's network namespace.

        A socket belongs to the namespace of the thread that makes it, and setns moves a thread: so a thread is started,
        moved, and spent on this. The others never leave the host's namespace.
        """
        made: list[socket.socket | OSError] = []

        def make() -> None:
            try:
                with open(f"/proc/{self._holder}/ns/net", "rb") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) < 0:
                        code = ctypes.get_errno()
                        raise OSError(code, f"setns: {os.strerror(code)}")  # noqa: TRY301
                sock = socket.create_connection(self._address, timeout=min(limit, 10))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(limit)
                made.append(sock)
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make, name="lab-connect", daemon=True)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        return made[0]


def _what(place: Place, argv: list[str], env: dict[str, str]) -> dict[str, Any]:
    return {"where": place.namespace, "hostname": place.hostname, "argv": argv, "env": env}


class RemoteProcess:
    """A process inside the lab's kernel, with its pid there. Its output is in `log`."""

    def __init__(self, pid: int, sock: socket.socket, log: Path, kill: Callable[[int, int], None]) -> None:
        self.pid = pid
        self.log = log
        log.touch()
        self._kill = kill
        self._ended = threading.Event()
        self._returncode: int | None = None
        self._thread = threading.Thread(target=self._follow, args=(sock,), name=f"lab-{pid}", daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        """How it ended (negative: the signal), or None while it runs."""
        return self._returncode if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; all it printed is in the log then. Raises TimeoutError."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"process {self.pid} in the lab still runs after {timeout} s")
        assert self._returncode is not None  # noqa: S101
        return self._returncode

    def kill(self, signum: int = signal.SIGKILL) -> None:
        if not self._ended.is_set():
            self._kill(self.pid, int(signum))

    def _follow(self, sock: socket.socket) -> None:
        code = -signal.SIGKILL  # unless the agent says otherwise: the whole kernel went away
        try:
            with sock, self.log.open("ab", buffering=0) as log:
                while True:
                    kind, payload = wire.receive(sock)
                    if kind == wire.RESULT:
                        code = json.loads(payload).get("returncode", code)
                        break
                    log.write(payload)
        except OSError:
            pass  # the lab was stopped under it, or its work directory removed
        finally:
            self._returncode = int(code)
            self._ended.set()
