"""The only subprocess calls of the product: a command with its arguments as a list, never a shell."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from threading import Event
from typing import AnyStr, BinaryIO

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
    with _starting(argv):
        process = _start(argv, stdin=stdin is not None)
    return _finish(process, argv, stdin, timeout)


def printed(argv: Sequence[str], *, timeout: float = 10) -> str:
    """As `run`, for a command that is told nothing and may print much.

    It prints into memory and has not to wait for us: where other threads compute, each piece that comes through a pipe
    waits for Python's lock.
    """
    with ExitStack() as files:
        with _starting(argv):
            output, errors = files.enter_context(_memory()), files.enter_context(_memory())
            process = _Child(list(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=_environment())
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise _hanging(argv, timeout) from None
        finally:
            process.kill()  # unless it has ended
            process.wait()
        text, complaint = _text(output), _text(errors)
    if process.returncode:
        raise CommandFailed(argv, process.returncode, complaint or text)
    return text


class Standby:
    """A command that is started a moment before it is known what to tell it on its standard input: to load its
    libraries takes it longer than what it is then told to do. One at a time, of one thread."""

    def __init__(self, within: float = 3.0) -> None:
        """A command that has waited for more than `within` seconds is not used any more: some have a time limit."""
        self._within = within
        self._process: subprocess.Popen[str] | None = None
        self._argv: tuple[str, ...] = ()
        self._since = 0.0

    @contextmanager
    def ready(self, argv: Sequence[str]) -> Iterator[None]:
        """Inside, the first `run` of `argv` finds it started. If there is none, it is ended without having been told
        anything."""
        if self._process is None:
            # What keeps it from being started keeps `run` too, which says so.
            with suppress(OSError):
                self._process, self._argv, self._since = _start(argv, stdin=True), tuple(argv), time.monotonic()
        try:
            yield
        finally:
            self._end()

    def run(self, argv: Sequence[str], *, stdin: str, timeout: float = 10) -> str:
        """As `run`, by the command that is ready, if one is."""
        if tuple(argv) != self._argv or time.monotonic() - self._since > self._within:
            self._end()
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return run(argv, stdin=stdin, timeout=timeout)
        return _finish(process, argv, stdin, timeout)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


class _Child(subprocess.Popen[AnyStr]):
    """A process whose end the kernel tells. Popen looks for it, with a rest of a millisecond at least in between."""

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's."""
        if timeout is not None and self.poll() is None:
            with suppress(OSError):  # a kernel older than 5.3
                descriptor = os.pidfd_open(self.pid)
                try:
                    ended = select.poll()
                    ended.register(descriptor, select.POLLIN)
                    ended.poll(timeout * 1000)
                    timeout = 0
                finally:
                    os.close(descriptor)
        return super().wait(timeout)


def _start(argv: Sequence[str], *, stdin: bool) -> subprocess.Popen[str]:
    return _Child(  # no shell; every caller builds argv from validated values
        list(argv),
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=_environment(),
    )


@contextmanager
def _starting(argv: Sequence[str]) -> Iterator[None]:
    """Why `argv` could not be started, as CommandFailed."""
    try:
        yield
    except FileNotFoundError:
        raise CommandFailed(argv, None, f"{argv[0]} is not installed on this node; install its package") from None
    except OSError as error:
        raise CommandFailed(argv, None, f"it could not be started: {error}") from None


def _hanging(argv: Sequence[str], timeout: float) -> CommandFailed:
    return CommandFailed(argv, None, f"no end after {timeout:g} s; it was killed")


def _memory() -> BinaryIO:
    return open(os.memfd_create("printed"), "w+b")


def _text(memory: BinaryIO) -> str:
    memory.seek(0)
    return memory.read().decode(errors="replace")


def _finish(process: subprocess.Popen[str], argv: Sequence[str], stdin: str | None, timeout: float) -> str:
    with process:
        try:
            stdout, stderr = process.communicate(stdin, timeout)
        except BaseException as error:
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise _hanging(argv, timeout) from None
            raise
    if process.returncode:
        raise CommandFailed(argv, process.returncode, stderr or stdout)
    return stdout


def follow(argv: Sequence[str], callback: Callable[[], None], stop: Event) -> None:
    """Runs `argv` and calls `callback` after each burst of lines that it prints, until `stop` is set (seen within a
    quarter of a second; then it is ended). CommandFailed if it cannot be started, or ends by itself.

    Nobody ends it when this process is killed: give `argv` a limit of its own.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - no shell, as in _start
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
