"""The only subprocess call of the product: a command with its arguments as a list, never a shell."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Callable, Sequence
from threading import Event

from node_runner.drivers.errors import NodeError

_LOOK_AT_STOP = 0.25
_SETTLE = 0.02
"""What a command tells seldom comes alone: lines that follow within this time count as one burst. Seconds."""


class CommandFailed(NodeError):
    """A command could not be started, took too long (`returncode` is None for both) or said no."""

    reason = "CommandFailed"

    def __init__(self, argv: Sequence[str], returncode: int | None, stderr: str) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr.strip()
        code = "" if returncode is None else f" (exit code {returncode})"
        super().__init__(f"{' '.join(argv)} failed{code}: {' '.join(self.stderr.split()) or 'it said nothing'}")


def search_path() -> str:
    """Where commands are looked for: with the sbin folders, which a service's environment often lacks."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"


def run(argv: Sequence[str], *, stdin: str | None = None, timeout: float = 10) -> str:
    """What `argv` prints to stdout, given `stdin`. After `timeout` seconds it is killed.

    Raises CommandFailed unless it ends with 0. The locale is C, so that texts can be compared.
    """
    try:
        done = subprocess.run(  # noqa: S603 - no shell; every caller builds argv from validated values
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            env=_environment(),
            check=False,
        )
    except FileNotFoundError:
        raise CommandFailed(argv, None, f"{argv[0]} is not installed on this node; install its package") from None
    except OSError as error:
        raise CommandFailed(argv, None, f"it could not be started: {error}") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(argv, None, f"no end after {timeout:g} s; it was killed") from None
    if done.returncode:
        raise CommandFailed(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


def follow(argv: Sequence[str], callback: Callable[[], None], stop: Event) -> None:
    """Runs `argv` and calls `callback` after each burst of lines that it prints, until `stop` is set (seen within a
    quarter of a second; then it is ended). CommandFailed if it cannot be started, or ends by itself.

    Nobody ends it when this process is killed: give `argv` a limit of its own.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - as above
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment()
        )
    except OSError as error:
        raise CommandFailed(argv, None, f"it could not be started: {error}") from None
    last = b""
    with process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        descriptor = process.stdout.fileno()
        try:
            while not stop.is_set():
                if not select.select([descriptor], [], [], _LOOK_AT_STOP)[0]:
                    continue
                stop.wait(_SETTLE)
                told = os.read(descriptor, 1 << 16)
                if not told:
                    raise CommandFailed(argv, process.wait(), last.decode(errors="replace"))
                last = told[-500:]
                callback()
        finally:
            process.terminate()


def _environment() -> dict[str, str]:
    return {**os.environ, "LANG": "C", "LC_ALL": "C", "PATH": search_path()}
