"""What every long-running process does the same way."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import structlog

from egress.settings import Settings

_log = structlog.get_logger()
_PR_SET_PDEATHSIG = 1
_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
DEFAULT_NAMESPACE = "hawse-system"
PAUSE = 1.0
"""Seconds before a process begins again, so that one that cannot run does not spin."""


def own_namespace(settings: Settings) -> str:
    """The namespace of Hawse's own objects."""
    if settings.namespace:
        return settings.namespace
    try:
        return _ACCOUNT_NAMESPACE.read_text().strip() or DEFAULT_NAMESPACE
    except OSError:
        return DEFAULT_NAMESPACE


def begin_again_unless(*asked: object, reason: str) -> None:
    """Begins again, unless one of `asked` was set: Celery's `state.should_stop` and `should_terminate`, which hold an
    exit code (0 among them) once a signal asked for the end, and None or False until then."""
    if all(flag is None or flag is False for flag in asked):
        begin_again(reason)


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set. Call it before any thread is started.

    A thread waits for the signals, not a handler: that would run in the main thread, perhaps while it holds the very
    lock that setting the event takes.
    """
    stop, numbers = threading.Event(), {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def wait() -> None:
        _log.info("asked to end", signal=signal.Signals(signal.sigwait(numbers)).name)
        stop.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop


def end_at_sigterm(steps: set[type], step: type) -> None:
    """Has a Celery worker end in order at a SIGTERM that comes before Celery has handlers of its own: a container's
    first process would ignore it, and any other be cut off in the middle of its work.

    `steps` are those of its start (`app.steps["worker"]`), when Celery has its handlers, and `step` is the class of
    each (`celery.bootsteps.StartStopStep`): not every process that knows this module has Celery.

    The signal is noted, and sent again once Celery takes it. A handler that raised would do so anywhere, in the middle
    of an import too: there Python only prints the exception, and the lock of all imports stays taken.
    """
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: came.append(number))

    def start(*_: object) -> None:
        if came:
            os.kill(os.getpid(), signal.SIGTERM)

    steps.add(type("SendAgain", (step,), {"start": start}))


def begin_again(reason: str, pause: float | None = None) -> NoReturn:
    """Becomes a fresh process in the place of this one: same pid, same command, none of its threads.

    For a process whose library gave up for a passing reason. All work here is level-triggered: it is found again by
    looking, so nothing is lost but what was in memory.
    """
    _log.error("begins again", reason=reason)
    time.sleep(PAUSE if pause is None else pause)
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - no shell, and our own command line


def die_with_parent(parent: int) -> None:
    """From now on this process is killed when the one that started it (pid `parent`) ends, however that ends
    (Linux's PR_SET_PDEATHSIG): a server's child must not go on answering for a server that was killed."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)  # it ended before we asked
