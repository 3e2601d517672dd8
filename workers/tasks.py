"""The Celery application of the control plane: which task runs what, and what becomes of one that fails."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Sequence
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
from workers import makers, metrics, namespaces, reconciling
from workers.context import Context
from workers.ticketing import run as ticketing
from workers.ticketing.profiles import make
from workers.ticketing.systems import Systems

_log = structlog.get_logger()
_jitter = random.SystemRandom()
REST_RATIO, REST_AT_MOST = 6.0, 2.0
BUSY_SECONDS = 0.1
MOST_TRACEBACK = 8000
"""How many characters of a traceback a history keeps, the last."""
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
    return app


def _beat_options(interval: float) -> dict[str, Any]:
    """A run that waited until the next one is due is not worth doing."""
    return {"queue": CONTROL_QUEUE, "expires": max(interval, 1.0)}


def _keep_logging(**_: object) -> None:
    """Celery sets logging up by itself unless somebody listens here; `egress.logs` has done it."""


def sender(redis_url: str) -> Callable[[str, list[Any], str, float], None]:
    """A function that puts a task into a queue. TransientError if the broker is away."""
    app = Celery("hawse-sender", set_as_current=False)
    app.conf.update(sending_config(redis_url))

    def send(task: str, arguments: list[Any], queue: str, delay: float = 0.0) -> None:
        expires = {NUDGE_TASK: NUDGE_EXPIRES, TICKETS_TASK: TICKETS_EXPIRES}.get(task)
        try:
            app.send_task(task, args=arguments, queue=queue, countdown=delay or None, expires=expires, retry=False)
        except (OperationalError, OSError) as error:
            raise TransientError(f"the broker is away: {error}") from error

    return send


@cache
def make_context(app: Celery) -> Context:
    """The process's one context: connections are opened when they are first needed."""
    current = settings_module.load()
    cluster = Cluster(current.kubeconfig)
    network = Detector(cluster, current.network)
    return Context(current, Ledger(current.redis_url), cluster, sender(current.redis_url), network=network)


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
    namespaces.converge(context, name)


def _rested(what: str, run: Callable[[Context], object]) -> Callable[[Context], None]:
    """`run`, then a rest in proportion to what it took: in a burst one run then does the work of many, and most of the
    time is for the single namespaces. A change that comes alone is worked on at once."""

    def rested(context: Context) -> None:
        context.ledger.check_rested(what)
        began = time.monotonic()
        run(context)
        context.ledger.rest(what, min(REST_RATIO * (time.monotonic() - began), REST_AT_MOST))

    return rested


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
        attempt = self.request.retries + 1
        structlog.contextvars.unbind_contextvars("operation")  # of the task that this thread ran before
        with (
            structlog.contextvars.bound_contextvars(task=name, task_id=self.request.id, arguments=list(arguments)),
            metrics.attempt(name) as measured,
        ):
            try:
                context = make_context(app)
                # Before anything is read: whoever asks from now on may have seen what this run will not.
                context.ledger.done_with(":".join((name, *arguments)))
                if name in PAUSABLE and (why := make_pause(app).why()):
                    measured.outcome = None  # it was not tried
                    _log.info("not done: the automation is paused", why=why)
                    return
                run(context, *arguments)
                measured.outcome = Outcome.DONE
            except BusyError:
                measured.outcome = None  # it was not tried
                try:
                    context.ask(name, *arguments, delay=BUSY_SECONDS)
                except TransientError as error:  # the broker is away, and would lose it
                    raise self.retry(countdown=BACKOFF_BASE, exc=error) from error
            except (TransientError, PermanentError) as error:
                outcome = measured.outcome = outcome_of(error, attempt)
                note(app, name, arguments, error, outcome, attempt)
                if outcome is not Outcome.RETRY:
                    _log.error("gave up", error=str(error), attempt=attempt)
                    return
                wait = backoff(attempt, _jitter)
                _log.warning("tries again", error=str(error), attempt=attempt, wait=round(wait, 2))
                raise self.retry(countdown=wait, exc=error) from error
            except Exception as error:
                note(app, name, arguments, error, Outcome.GAVE_UP, attempt)
                raise


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
