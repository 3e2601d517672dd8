"""iptables-restore as a process that stays, and is told one transaction after the other."""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import IO

from node_runner.commands import CommandFailed, ending, run, start

_MARK = b"# hawse "
"""Begins our comments; a number follows, another one each time."""
_GREETING_SECONDS = 1.0
"""How long a process that was started is waited for, when it is needed, to show that it gives comments back."""
_PLAIN_SECONDS = 600.0
"""How long after one that did not no other is tried."""
_MOST_PAGES = (16 << 20) // os.sysconf("SC_PAGE_SIZE")
"""A process that takes more memory than this is replaced: it keeps what its largest transaction took. One that has
never had a large one takes 2.5 MB, of which 1.6 are those of its libraries; of 1,000 addresses 10."""
_MOST_KEPT = 8192
_AT_ONCE = 1 << 16
_LINE_NUMBER = re.compile(r"(\bline:? )(\d+)")


class Restorer:
    """`argv`, which is iptables-restore or ip6tables-restore with --noflush, kept running (docs/decisions/0031).

    With --verbose it prints each comment when it comes to it, and at an error it ends. So a comment that came back
    says that all before it is done. Where the tool does not do so, one is started for each transaction.

    Threads take turns. The process is in the network namespace of the thread that was the first to need it.
    """

    def __init__(self, argv: Sequence[str], rest: float) -> None:
        """A process that has not been told anything for `rest` seconds is not used any more."""
        self._argv = tuple(argv)
        self._rest = rest
        self._lock = threading.Lock()
        self._talk: _Talk | None = None
        self._plain_until = float("-inf")

    def ready(self) -> None:
        """Starts a process, if there is none, so that the next `run` need not wait for that."""
        # What keeps it from being started keeps `run` too, which says so.
        with self._lock, suppress(CommandFailed):
            self._begin()

    def run(self, text: str, *, timeout: float) -> None:
        """Has `text` done: whole tables, each with its COMMIT.

        CommandFailed after `timeout` seconds or when the tool says no, as of a process that was told this text alone:
        the table that failed and those after it are unchanged. So too if the process is killed meanwhile: then nobody
        knows how far it came.
        """
        with self._lock:
            for _ in range(2):  # one that has ended before it was told anything is replaced
                talk = self._begin()
                if talk is None or not self._answers(talk):
                    break
                if self._done(talk, text, timeout):
                    return
        run(self._argv, stdin=text, timeout=timeout)

    def tidy(self) -> None:
        """Ends a process that is not to be used any more. For whoever comes by now and then."""
        if self._lock.acquire(blocking=False):
            try:
                self._retire()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Ends the process. The next `run` starts another one."""
        with self._lock:
            self._end()

    def _begin(self) -> _Talk | None:
        """The process, started if there is none; None where none is to be tried."""
        self._retire()
        if self._talk is None and time.monotonic() >= self._plain_until:
            self._talk = _Talk(self._argv)
        return self._talk

    def _answers(self, talk: _Talk) -> bool:
        answers = talk.answers(_GREETING_SECONDS)
        if not answers:
            self._give_up()
        return answers

    def _done(self, talk: _Talk, text: str, timeout: float) -> bool:
        done = False
        try:
            done = talk.tell(text, timeout)
        finally:
            if not done:
                self._end()
        return done

    def _retire(self) -> None:
        talk = self._talk
        if talk is None:
            return
        if talk.has_ended() and not talk.answers(0.0):
            self._give_up()
        elif talk.is_over(self._rest):
            self._end()

    def _give_up(self) -> None:
        self._plain_until = time.monotonic() + _PLAIN_SECONDS
        self._end()

    def _end(self) -> None:
        talk, self._talk = self._talk, None
        if talk is not None:
            talk.end()


class _Talk:
    """One process, with what it was told and what it said."""

    def __init__(self, argv: tuple[str, ...]) -> None:
        self._argv = (*argv, "--verbose")
        self._process = start(self._argv)
        self.end = ending(self, self._process)
        self._stdin, self._stdout, self._stderr = map(_unblocked, _pipes(self._process))
        self._used = time.monotonic()
        self._lines = self._serial = 0
        self._grown = False
        self._line = self._said = self._complained = b""
        self._answered = False
        self._greeting = self._next_mark()
        with suppress(OSError):  # it has ended already: `answers` will see that
            os.write(self._stdin, self._greeting)

    def is_over(self, rest: float) -> bool:
        """Whether it has ended, or should not be used any more."""
        return self.has_ended() or self._grown or time.monotonic() - self._used > rest

    def has_ended(self) -> bool:
        """Whether the process is no more."""
        return self._process.poll() is not None

    def answers(self, seconds: float) -> bool:
        """Whether it gives comments back, as far as it shows within `seconds`."""
        if not self._answered:
            with suppress(TimeoutError):
                _, self._answered = self._exchange(b"", self._greeting, time.monotonic() + seconds)
        return self._answered

    def tell(self, text: str, timeout: float) -> bool:
        """Has `text` done; False if the process ended before it took any of it. CommandFailed."""
        until, before = time.monotonic() + timeout, self._lines
        self._said = self._complained = b""
        self._lines += text.count("\n")
        mark = self._next_mark()
        told = text.encode() + mark
        try:
            taken, done = self._exchange(told, mark, until)
        except TimeoutError:
            words = f"no end after {timeout:g} s; it was killed. {self._words(before)}"
            raise CommandFailed(self._argv, None, words) from None
        self._used = time.monotonic()
        self._grown = self._pages() > _MOST_PAGES
        if not done and taken:
            with suppress(TimeoutExpired):
                self._process.wait(max(until - self._used, 0.0))
            words = self._words(before) or "it ended without a word"
            raise CommandFailed(self._argv, self._process.returncode, words)
        return done

    def _pages(self) -> int:
        try:
            return int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1])
        except OSError:
            return 0  # it has ended just now

    def _next_mark(self) -> bytes:
        self._serial += 1
        self._lines += 1
        return b"%s%d\n" % (_MARK, self._serial)

    def _exchange(self, told: bytes, mark: bytes, until: float) -> tuple[bool, bool]:
        """Writes `told`, and reads until the process says `mark`, or ends. Whether it took any of `told`, and whether
        it said `mark`. TimeoutError. It reads while it writes, for either pipe may be full."""
        left = memoryview(told)
        poller = select.poll()
        poller.register(self._stdout, select.POLLIN)
        poller.register(self._stderr, select.POLLIN)
        if told:
            poller.register(self._stdin, select.POLLOUT)
        while events := poller.poll(max(until - time.monotonic(), 0.0) * 1000):
            ready = {descriptor for descriptor, _ in events}
            if self._stdin in ready:
                try:
                    left = left[os.write(self._stdin, left[:_AT_ONCE]) :]
                except BrokenPipeError:
                    poller.unregister(self._stdin)
                else:
                    if not left:
                        poller.unregister(self._stdin)
            if self._stderr in ready:
                chunk = _read(self._stderr)
                self._complained = (self._complained + chunk)[:_MOST_KEPT]
                if not chunk:
                    poller.unregister(self._stderr)
            if self._stdout in ready:
                chunk = _read(self._stdout)
                if self._hears(chunk, mark) or not chunk:
                    return len(left) < len(told), bool(chunk)
        raise TimeoutError

    def _hears(self, chunk: bytes, mark: bytes) -> bool:
        """Whether `mark` is one of the lines that `chunk` ends or has. Keeps the lines that are no marks."""
        *lines, line = (self._line + chunk).split(b"\n")
        self._line = line[:_MOST_KEPT]  # its beginning: what is too long is no mark
        said = b"".join(b"%s\n" % line for line in lines if not line.startswith(_MARK))
        self._said = (self._said + said)[:_MOST_KEPT]
        return mark[:-1] in lines

    def _words(self, before: int) -> str:
        """What the process said, its complaints above all; with lines counted from the `before` that it was told
        earlier."""
        while chunk := _read(self._stderr):
            self._complained = (self._complained + chunk)[:_MOST_KEPT]
        words = (self._complained or self._said + self._line).decode(errors="replace").strip()
        return _LINE_NUMBER.sub(lambda found: f"{found[1]}{_counted(int(found[2]), before)}", words)


def _counted(line: int, before: int) -> int:
    return line - before if line > before else line


def _read(descriptor: int) -> bytes:
    """What there is to read now; nothing too where the other end is closed."""
    try:
        return os.read(descriptor, _AT_ONCE)
    except BlockingIOError:
        return b""


def _pipes(process: Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    assert process.stdin is not None  # noqa: S101 - all three are pipes
    assert process.stdout is not None  # noqa: S101
    assert process.stderr is not None  # noqa: S101
    return process.stdin, process.stdout, process.stderr


def _unblocked(pipe: IO[bytes]) -> int:
    os.set_blocking(pipe.fileno(), False)
    return pipe.fileno()
