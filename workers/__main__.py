"""`hawse-worker`, `hawse-tickets`, `hawse-beat` and `hawse-watch`: the processes of the control plane."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import click
import structlog
from celery import Celery
from celery.bootsteps import StartStopStep
from celery.worker import state
from prometheus_client import REGISTRY

from egress import logs, settings
from egress.adapters.cluster import Cluster, ConfigError, Kind
from egress.health import Health, HealthError, Verdict
from egress.messages import CONTROL_QUEUE, TABLE_QUEUE, TICKETS_QUEUE
from egress.networks import Network, NetworkError
from egress.operations import PermanentError, TransientError
from egress.processes import begin_again, begin_again_unless, end_at_sigterm, own_namespace, stop_event
from workers import consuming, makers, metrics
from workers.census import CensusCollector
from workers.certificates import Policy
from workers.context import Context
from workers.keeper import Keeper, service_names
from workers.leader import Crew, Election, LeaseLostError, Timing
from workers.schedule import run_schedule
from workers.tasks import create_celery, make_context, make_systems
from workers.ticketing.census import TicketCollector
from workers.view import Views
from workers.watch import Watcher, start_all

_log = structlog.get_logger()
END_SECONDS = 2.0
"""How long what a leader does may take to end before it gives its Lease back."""


def _start(component: str) -> settings.Settings:
    try:
        current = settings.load()
    except settings.SettingsError as error:
        raise click.UsageError(str(error)) from None
    logs.configure(current, component)
    return current


def _context(app: Celery) -> Context:
    try:
        return make_context(app)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def _networked(app: Celery) -> Context:
    """The same, where it can be said who programs the nodes. While the API server is away, that is asked later."""
    context = _context(app)
    try:
        with suppress(TransientError):
            context.network()
    except NetworkError as error:
        raise click.UsageError(str(error)) from None
    return context


def _serve(health: Health) -> None:
    try:
        health.start()
    except HealthError as error:
        raise click.UsageError(str(error)) from None


@click.command()
@click.option("--concurrency", default=4, show_default=True, help="How many tasks run at once.")
def worker(concurrency: int) -> None:
    """Run the tasks of the control plane."""
    current = _start("worker")
    app = create_celery()
    context = _networked(app)
    REGISTRY.register(CensusCollector(context.ledger))
    _begin_views(context)
    _consume(app, context, current, Consumer("worker", f"{TABLE_QUEUE},{CONTROL_QUEUE}", concurrency))


def _begin_views(context: Context) -> None:
    """Watches what the runners' table is published from, once it is known that there are runners."""

    def begin(*, patient: bool) -> None:
        while True:
            try:
                network = context.network()
                break
            except TransientError:
                if not patient:
                    threading.Thread(target=partial(begin, patient=True), name="views", daemon=True).start()
                    return
                time.sleep(1.0)
        if network is Network.RUNNER:
            context.memory.views = Views.watching(context.cluster, threading.Event())

    begin(patient=False)


@click.command()
@click.option("--concurrency", default=4, show_default=True, help="How many ticket profiles are served at once.")
def tickets(concurrency: int) -> None:
    """Tell the firewall team's systems of addresses, and ask them what was decided."""
    current = _start("tickets")
    app = create_celery()
    context = _context(app)
    try:
        make_systems(current.ticket_profiles).profiles()
    except PermanentError as error:
        raise click.UsageError(str(error)) from None
    REGISTRY.register(TicketCollector(context.ledger, 4 * current.reconcile_interval))
    _consume(app, context, current, Consumer("tickets", TICKETS_QUEUE, concurrency))


@dataclass(frozen=True)
class Consumer:
    """What a process consumes: as whom, which queues, and how many tasks at once."""

    name: str
    queues: str
    concurrency: int


def _consume(app: Celery, context: Context, current: settings.Settings, consumer: Consumer) -> None:
    metrics.begin_tasks()
    consumption = consuming.Consumption(context.ledger)

    def alive() -> str | None:
        return consumption.alive() or context.views.alive()

    _serve(Health(current.health_host, current.health_port, consumption.ready, alive=alive))
    arguments = ["worker", "-Q", consumer.queues, "--pool", "threads", "-c", str(consumer.concurrency)]
    arguments += ["-n", f"{consumer.name}@%h"]
    end_at_sigterm(app.steps["worker"], StartStopStep)
    app.worker_main([*arguments, "--without-gossip", "--without-mingle", "--without-heartbeat"])
    # kombu 5.7 gives up when it loses the broker at the wrong moment.
    begin_again_unless(state.should_stop, state.should_terminate, reason="Celery's worker gave up")


@click.command()
def beat() -> None:
    """Start what runs by the clock. Several may run; one of them acts."""
    current = _start("beat")
    app = create_celery()
    context = _context(app)

    def reached() -> str | None:
        try:
            context.ledger.ping()
        except TransientError as error:
            return str(error)
        return None

    def act(crew: Crew, stop: threading.Event) -> None:
        crew.start("schedule", partial(run_schedule, app, stop))

    _lead("beat", current, act, reached)


@click.command()
def watch() -> None:
    """Watch the cluster and start tasks for what changes. Several may run; one of them acts."""
    current = _start("watch")
    context = _networked(create_celery())
    watchers: list[Watcher] = []

    def listed() -> str | None:
        if not watchers:
            return "it is not known yet who programs the nodes"
        return next((verdict for watcher in watchers if (verdict := watcher.verdict())), None)

    def begin(crew: Crew, stop: threading.Event) -> None:
        watchers.extend(Watcher(kind, context) for kind in _watched(context, stop))
        start_all(watchers, context, crew, stop)
        stop.wait()

    def act(crew: Crew, stop: threading.Event) -> None:
        crew.start("watches", partial(begin, crew, stop))
        if current.certificates == "own":
            crew.start("certificates", partial(_keeper(current, context).run, stop))

    _lead("watch", current, act, listed)


def _watched(context: Context, stop: threading.Event) -> tuple[Kind, ...]:
    """The kinds to watch; none if the process is to end before the API server has said so."""
    while not stop.is_set():
        try:
            return makers.of(context).watched
        except TransientError as error:
            _log.warning("it cannot be asked who programs the nodes", error=str(error))
            stop.wait(1.0)
    return ()


def _keeper(current: settings.Settings, context: Context) -> Keeper:
    namespace = own_namespace(current)
    return Keeper(context.cluster, namespace, Policy(service_names(namespace), wait=current.certificate_wait))


def _lead(
    component: str, current: settings.Settings, act: Callable[[Crew, threading.Event], None], acting: Verdict
) -> None:
    """Stands by until elected, then acts, until a signal. `acting` says why a leader is not at it yet."""
    stop = stop_event()
    crew = Crew(stop)
    timing = Timing(current.lease_duration, current.lease_renew_deadline, current.lease_retry)
    cluster = Cluster(current.kubeconfig, timeout=timing.retry)
    election = Election(cluster, own_namespace(current), f"hawse-{component}", timing)
    leading = metrics.leader.labels(component)
    _serve(
        Health(
            current.health_host,
            current.health_port,
            lambda: election.verdict() or (acting() if election.leads else None),
            alive=election.alive,
        )
    )
    if not election.acquire(stop):
        return
    leading.set(1)
    act(crew, stop)
    try:
        election.hold(stop)
    except LeaseLostError as error:
        _stop_acting(error)
    crew.join(END_SECONDS)
    election.release()
    if crew.failed:
        raise SystemExit(1)


def _stop_acting(error: LeaseLostError) -> NoReturn:
    """At once and for certain: no thread of this process goes on in the one that takes its place."""
    begin_again(f"no longer the leader: {error}", pause=0.0)
