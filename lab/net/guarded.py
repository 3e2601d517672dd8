"""The owner's side of ``guard.py``: a command that never outlives this process."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_GUARD = Path(__file__).with_name("guard.py")


class GuardError(RuntimeError):
    """The command could not be started under its guard."""


@dataclass(frozen=True)
class Isolation:
    """New network and process-id namespaces, with a tap that carries `address` (with its prefix length)."""

    tap: str
    address: str


@dataclass
class Guarded:
    """A running command. `holder` is the pid of a process in its namespaces."""

    guard: subprocess.Popen[bytes]
    holder: int

    def alive(self) -> bool:
        return self.guard.poll() is None

    def kill(self) -> None:
        """SIGKILL to the command, with its process-id namespace if that is its own, and wait until it is gone."""
        self.guard.terminate()
        self.guard.wait()

    def terminate(self, seconds: float) -> None:
        """SIGTERM to the command, and SIGKILL when it has not ended after `seconds`."""
        if self.alive():
            os.kill(self.holder, signal.SIGUSR1)  # the holder passes it on
        try:
            self.guard.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()


def start(
    argv: list[str],
    log: Path,
    *,
    isolation: Isolation | None = None,
    join: int | None = None,
    env: dict[str, str] | None = None,
) -> Guarded:
    """Start `argv` under a guard. Raises GuardError with what it printed when it does not come up."""
    command = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), "--log", str(log)]
    if isolation is not None:
        command += ["--isolate", isolation.tap, isolation.address]
    if join is not None:
        command += ["--join", str(join)]
    with log.open("ab") as errors:
        guard = subprocess.Popen(
            [*command, "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=env,
            start_new_session=True,
        )
    assert guard.stdout is not None  # noqa: S101
    with guard.stdout as lines:
        words = _read_until(lines.fileno(), {b"holder", b"ready"}, 60).split()
    if not {b"holder", b"ready"}.issubset(words):
        guard.kill()
        guard.wait()
        why = log.read_text(errors="replace").strip()[-500:]
        raise GuardError(f"{argv[0]} did not start: {why or 'its guard said nothing'}")
    return Guarded(guard, int(words[words.index(b"holder") + 1]))


def _read_until(fd: int, marks: set[bytes], seconds: float) -> bytes:
    """What was written until lines beginning with each of `marks` have come, in any order: two processes write them."""
    deadline = time.monotonic() + seconds
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while not marks.issubset(line.split(b" ")[0] for line in said.split(b"\n")[:-1]) and selector.select(
            max(0.0, deadline - time.monotonic())
        ):
            part = os.read(fd, 4096)
            if not part:
                break
            said += part
    return said
