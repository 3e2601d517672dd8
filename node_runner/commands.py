"""The only subprocess calls of the product: a command with its arguments as a list, never a shell."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from threading import Event
from typing import Any, AnyStr, BinaryIO

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


def start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """`argv`, started, with pipes for all that it reads and prints, for whoever talks with it. CommandFailed if it
    could not be. No other child inherits our ends of the pipes, so that it reads the end when this process is gone."""
    with _starting(argv):
        return subprocess.Popen(  # noqa: S603 - as below
            list(argv),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
        )


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
    libraries takes it longer than what it is then told to do. One at a time; threads take turns."""

    def __init__(self, within: float = 3.0) -> None:
        """A command that has waited for more than `within` seconds is not used any more: some have a time limit."""
        self._within = within
        self._lock = threading.Lock()
        self._waiting: _Waiting | None = None

    def ready(self, argv: Sequence[str]) -> None:
        """The next `run` of `argv` finds it started, if that is soon."""
        with self._lock:
            self._retire(argv)
            if self._waiting is None:
                # What keeps it from being started keeps `run` too, which says so.
                with suppress(OSError):
                    process = _start(argv, stdin=True)
                    self._waiting = _Waiting(tuple(argv), process, time.monotonic(), ending(self, process))

    def run(self, argv: Sequence[str], *, stdin: str, timeout: float = 10) -> str:
        """As `run`, by the command that is ready, if one is."""
        with self._lock:
            self._retire(argv)
            waiting, self._waiting = self._waiting, None
            if waiting is None:
                return run(argv, stdin=stdin, timeout=timeout)
            try:
                return _finish(waiting.process, argv, stdin, timeout)
            finally:
                waiting.end()

    def tidy(self) -> None:
        """Ends a command that has waited for too long; it is told nothing. For whoever comes by now and then."""
        if self._lock.acquire(blocking=False):
            try:
                self._retire()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Ends a command that waits; it is told nothing."""
        with self._lock:
            self._end()

    def _retire(self, argv: Sequence[str] | None = None) -> None:
        """Ends the command that waits if it is not to be used any more, or is another one than `argv`."""
        waiting = self._waiting
        if waiting is not None and (
            (argv is not None and tuple(argv) != waiting.argv)
            or time.monotonic() - waiting.since > self._within
            or waiting.process.poll() is not None
        ):
            self._end()

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.end()


@dataclass(frozen=True, slots=True)
class _Waiting:
    argv: tuple[str, ...]
    process: subprocess.Popen[str]
    since: float
    end: Callable[[], object]


def ending(owner: object, process: subprocess.Popen[Any]) -> Callable[[], object]:
    """What kills `process`, once, and waits for its end. It is called at the latest when nobody has a use for `owner`
    any more, or when the interpreter ends."""
    return weakref.finalize(owner, _end, process)


def _end(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):  # what was written and not taken cannot be
                pipe.close()


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
