"""The only subprocess call of the product: a command with its arguments as a list, never a shell."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from node_runner.drivers.errors import NodeError


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
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C", "PATH": search_path()}
    try:
        done = subprocess.run(  # noqa: S603 - no shell; every caller builds argv from validated values
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            env=environment,
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
