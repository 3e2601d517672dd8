"""The Celery application of the control plane: which task runs what, and what becomes of one that fails."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import structlog
from celery import Celery, Task
from celery.signals import setup_logging
from kombu.exceptions import OperationalError

from egress import settings as settings_module
from egress.adapters.cluster import Cluster
from egress.adapters.ledger import BusyError, Ledger
from egress.adapters.networks import Detector
from egress.adapters.pausing import Pause
from egress.messages import (
    CONTROL_QUEUE,
    FAILOVER_TASK,
    NAMESPACE_TASK,
    NAMESPACES_LATER,
    NAMESPACES_TASK,
    NUDGE_EXPIRES,
    NUDGE_TASK,
    PLACE_TASK,
    PUBLISH_TASK,
    RECONCILE_TASK,
    SWEEP_TASK,
    TICKETS_EXPIRES,
    TICKETS_TASK,
    celery_config,
    sending_config,
)
from egress.operations import BACKOFF_BASE, Outcome, PermanentError, Step, TransientError, backoff, outcome_of
from egress.processes import own_namespace
from workers import makers, metrics, namespaces, newcomers, reconciling
from workers.context import Context
from workers.news import News
from workers.ticketing import run as ticketing
from workers.ticketing.profiles import make
from workers.ticketing.systems import Systems

_log = structlog.get_logger()
_jitter = random.SystemRandom()
FEW, LIGHT_SECONDS = 2, 0.1
"""A run that changed no more than that, and took no longer, is not followed by a rest."""
REST_RATIO, REST_RATIO_FEW = 4.0, 1.0
REST_AT_LEAST = 0.5
"""How long a rest is, by how long the run took; in seconds where it changed more than a few."""
REST_EACH = 0.01
"""And, in seconds, for each namespace that waits for its task: less than they all take, and until they have run there
is always more to come."""
REST_AT_MOST = {PLACE_TASK: 2.0, PUBLISH_TASK: 1.0}
"""In seconds. Less where namespaces wait for what it does."""
BATCH, BATCH_SECONDS, BATCHES, BATCH_GUARD_SECONDS = 4, 0.5, 3, 5.0
"""How many namespaces a run takes at a time, for how long it goes on, how many runs one process makes at once, which
leaves room for `place` and `publish`; and how long an ask for a run that was lost keeps others from asking."""
AT_ONCE_SECONDS = 0.01
"""A turn that comes so soon is not worth a message for later."""
MOST_TRACEBACK = 8000
"""How many characters of a traceback a history keeps, the last."""
PATIENCE_SECONDS = 0.25
RESTING = frozenset((PLACE_TASK, PUBLISH_TASK))
"""What rests after a long run."""
PAUSABLE = frozenset((NAMESPACE_TASK, PLACE_TASK, FAILOVER_TASK, SWEEP_TASK))
"""What is not done while somebody has paused the automation: all that decides. The nodes go on following the objects,
and the firewall team is told. What is left undone the reconcile finds once the pause is over."""


def create_celery() -> Celery:
    """The application, from the environment."""
    current = settings_module.load()
    app = Celery("hawse-workers")
    app.conf.update(celery_config(current.redis_url))
    app.conf.beat_scheduler = "celery.beat:Scheduler"  # in memory: all work is level-triggered, nothing to remember
    app.conf.beat_schedule = {
        "reconcile": {
            "task": RECONCILE_TASK,
            "schedule": current.reconcile_interval,
            "options": _beat_options(current.reconcile_interval),
        },
        "sweep": {
            "task": SWEEP_TASK,
            "schedule": current.sweep_interval,
            "options": _beat_options(current.sweep_interval),
        },
    }
    setup_logging.connect(_keep_logging, weak=False)
    for name, run in _TASKS.items():
        _register(app, name, run)
    _register_namespaces(app)
    return app


def _beat_options(interval: float) -> dict[str, Any]:
    """A run that waited until the next one is due is not worth doing."""
    return {"queue": CONTROL_QUEUE, "expires": max(interval, 1.0)}


def _keep_logging(**_: object) -> None:
    """Celery sets logging up by itself unless somebody listens here; `egress.logs` has done it."""


def sender(redis_url: str, ledger: Ledger | None = None) -> Callable[[str, list[Any], str, float], None]:
    """A function that puts a task into a queue. TransientError if the broker is away.

    With a `ledger` a namespace's task that is to run now goes into its list, and one message asks for the whole list.
    """
    app = Celery("hawse-sender", set_as_current=False)
    app.conf.update(sending_config(redis_url))

    def send(task: str, arguments: list[Any], queue: str, delay: float = 0.0) -> None:
        if task == NAMESPACE_TASK and ledger is not None and not delay:
            ledger.queue_namespaces(*arguments)
            if not ledger.first_to(NAMESPACES_TASK, BATCH_GUARD_SECONDS):
                return
            task, arguments = NAMESPACES_TASK, []
        expires = {NUDGE_TASK: NUDGE_EXPIRES, TICKETS_TASK: TICKETS_EXPIRES}.get(task)
        try:
            app.send_task(task, args=arguments, queue=queue, countdown=delay or None, expires=expires, retry=False)
        except (OperationalError, OSError) as error:
            if task == NAMESPACES_TASK and ledger is not None:
                ledger.done_with(NAMESPACES_TASK)
            raise TransientError(f"the broker is away: {error}") from error

    return send


@cache
def make_context(app: Celery) -> Context:
    """The process's one context: connections are opened when they are first needed."""
    current = settings_module.load()
    ledger, cluster = Ledger(current.redis_url), Cluster(current.kubeconfig)
    send, network = sender(current.redis_url, ledger), Detector(cluster, current.network)
    made = Context(current, ledger, cluster, send, patience=PATIENCE_SECONDS, network=network)
    return replace(made, news=News(cluster, made.crowded))


@cache
def make_systems(path: str) -> Systems:
    """The process's ticket systems, as the file at `path` describes them."""
    return Systems(path, make)


@cache
def make_pause(app: Celery) -> Pause:
    """What the process knows of a pause of the automation."""
    context = make_context(app)
    return Pause(context.cluster, own_namespace(context.settings))


def _tickets(context: Context, profile: str) -> None:
    ticketing.run(context, make_systems(context.settings.ticket_profiles), profile)


def _namespace(context: Context, name: str) -> None:
    if not newcomers.converge(context, name):
        namespaces.converge(context, name)


def _rested(what: str, run: Callable[[Context], int]) -> Callable[[Context], None]:
    """`run`, which gives how much it changed, and then a rest: in a burst one run does the work of many, and most of
    the time is for the single namespaces. A change that comes alone is worked on at once, and what follows from it."""

    def rested(context: Context) -> None:
        began = time.monotonic()
        changed, took = run(context), time.monotonic() - began
        waiting = context.ledger.namespaces_waiting()
        seconds = min(rest_after(changed, took, waiting), REST_AT_MOST[what])
        if seconds:
            context.ledger.rest(what, seconds)

    return rested


def rest_after(changed: int, took: float, waiting: int) -> float:
    """For how many seconds nobody need do what changed so much and took so many seconds, while so many namespaces wait
    for their tasks. Pure."""
    for_more = REST_EACH * waiting if waiting > FEW else 0.0
    if changed > FEW:
        return max(REST_RATIO * took, REST_AT_LEAST, for_more)
    return max(REST_RATIO_FEW * took if took > LIGHT_SECONDS else 0.0, for_more)


def _reconcile(context: Context) -> None:
    reconciling.reconcile(context)


def _sweep(context: Context) -> None:
    reconciling.sweep(context)


def _failover(context: Context) -> None:
    makers.of(context).failover(context)


def _place(context: Context) -> int:
    return makers.of(context).place(context)


def _publish(context: Context) -> int:
    return makers.of(context).publish(context)


_TASKS: dict[str, Callable[..., None]] = {
    NAMESPACE_TASK: _namespace,
    PLACE_TASK: _rested(PLACE_TASK, _place),
    PUBLISH_TASK: _rested(PUBLISH_TASK, _publish),
    FAILOVER_TASK: _failover,
    RECONCILE_TASK: _reconcile,
    SWEEP_TASK: _sweep,
    TICKETS_TASK: _tickets,
}


def _register(app: Celery, name: str, run: Callable[..., None]) -> None:
    @app.task(name=name, bind=True, max_retries=None, shared=False)  # of this application alone
    def task(self: Task[..., None], *arguments: str) -> None:
        attempt, delayed = self.request.retries + 1, self.request.eta is not None
        error, wait = _try(app, name, arguments, run, _Try(str(self.request.id), attempt, delayed=delayed))
        if error is not None:
            raise self.retry(countdown=wait, exc=error) from error


@dataclass(frozen=True, slots=True)
class _Try:
    """Of which message, the how manieth, whether it was not to run at once, and whether it is for one of the namespaces
    that wait, where whoever asks is heard at any time."""

    message: str
    attempt: int = 1
    delayed: bool = False
    listed: bool = False


def _try(
    app: Celery, name: str, arguments: Sequence[str], run: Callable[..., None], this: _Try
) -> tuple[Exception | None, float]:
    """Runs a task once. What it failed of, if it is to be tried again, and after how many seconds."""
    structlog.contextvars.unbind_contextvars("operation")  # of the task that this thread ran before
    with (
        structlog.contextvars.bound_contextvars(task=name, task_id=this.message, arguments=list(arguments)),
        metrics.attempt(name) as measured,
    ):
        try:
            context = make_context(app)
            if name in RESTING:
                context.ledger.check_rested(name)
            if not this.listed:
                context.began(name, *arguments, delayed=this.delayed)
            if name in PAUSABLE and (why := make_pause(app).why()):
                measured.outcome = None  # it was not tried
                _log.info("not done: the automation is paused", why=why)
                return None, 0.0
            run(context, *arguments)
            measured.outcome = Outcome.DONE
        except BusyError as busy:
            measured.outcome = None  # it was not tried
            try:
                context.ask_again(name, *arguments, delay=busy.seconds, delayed=this.delayed)
            except TransientError as error:  # the broker is away, and would lose it
                return error, BACKOFF_BASE
        except (TransientError, PermanentError) as error:
            outcome = measured.outcome = outcome_of(error, this.attempt)
            note(app, name, arguments, error, outcome, this.attempt)
            if outcome is not Outcome.RETRY:
                _log.error("gave up", error=str(error), attempt=this.attempt)
                return None, 0.0
            wait = backoff(this.attempt, _jitter)
            _log.warning("tries again", error=str(error), attempt=this.attempt, wait=round(wait, 2))
            return error, wait
        except Exception as error:
            note(app, name, arguments, error, Outcome.GAVE_UP, this.attempt)
            raise
    return None, 0.0


def _register_namespaces(app: Celery) -> None:
    at_once = threading.BoundedSemaphore(BATCHES)

    @app.task(name=NAMESPACES_TASK, bind=True, max_retries=None)
    def task(self: Task[..., None]) -> None:
        """Works through the list for a moment, unless enough others do. What was taken and not worked on, because this
        process ended, the reconcile finds again."""
        try:
            context = make_context(app)
            later = [NAMESPACES_LATER] if self.request.eta is not None else []
            context.ledger.done_with(NAMESPACES_TASK, *later)
            if not at_once.acquire(blocking=False):
                return
            try:
                _work_through(app, context, str(self.request.id))
            finally:
                at_once.release()
            _ask_for_the_rest(context)
        except TransientError as error:
            raise self.retry(countdown=BACKOFF_BASE, exc=error) from error


def _ask_for_the_rest(context: Context) -> None:
    """Has somebody come when it is the turn of the next namespace, if one waits."""
    seconds = context.ledger.next_turn()
    if seconds is None:
        return
    if seconds < AT_ONCE_SECONDS:
        context.ask(NAMESPACES_TASK)
    elif context.ledger.first_to(NAMESPACES_LATER, BATCH_GUARD_SECONDS):
        context.send(NAMESPACES_TASK, [], CONTROL_QUEUE, seconds)


def _work_through(app: Celery, context: Context, message: str) -> None:
    until, alone = time.monotonic() + BATCH_SECONDS, True
    while time.monotonic() < until and (names := context.ledger.next_namespaces(BATCH)):
        try:
            if alone and len(names) == BATCH:
                context.ask(NAMESPACES_TASK)  # another thread, or another worker, may help
                alone = False
            with context.gathering() if len(names) > 1 else nullcontext(context) as shared:
                for name in names:
                    _one_of_many(app, shared, name, message)
            names = []
        finally:
            if names:  # the broker is away, or was: what was not worked on, or not told of, waits again
                context.ledger.queue_namespaces(*names)


def _one_of_many(app: Celery, context: Context, name: str, message: str) -> None:
    """One namespace of the list. Where it is to be tried again, a message of its own says so."""

    def run(_: Context, name: str) -> None:
        _namespace(context, name)

    try:
        error, wait = _try(app, NAMESPACE_TASK, [name], run, _Try(message, listed=True))
    except Exception:  # noqa: BLE001 - it must not stop the others; its history has it
        _log.exception("failed", namespace=name)
        return
    if error is not None:
        app.send_task(NAMESPACE_TASK, args=[name], queue=CONTROL_QUEUE, countdown=wait, retries=1)


def note(app: Celery, task: str, arguments: Sequence[str], error: Exception, outcome: Outcome, attempt: int) -> None:
    """Writes a failed try into the history of the namespace that it was for, if it was for one, with the traceback."""
    if task != NAMESPACE_TASK or not arguments:
        return
    text = "".join(traceback.format_exception(error))[-MOST_TRACEBACK:]
    try:
        context = make_context(app)
        context.record(Step.WORK, arguments[0], outcome=outcome, attempt=attempt, message=str(error), traceback=text)
    except TransientError:
        pass  # Redis is away: the log has it
