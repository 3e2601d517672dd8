"""`hawse-worker`, `hawse-beat` and `hawse-watch`: the three processes of the control plane."""

from __future__ import annotations

import signal
import threading

import click
from celery import Celery
from celery.worker import state

from egress import logs, settings
from egress.adapters.cluster import ConfigError
from egress.messages import CONTROL_QUEUE, TABLE_QUEUE
from egress.processes import begin_again_unless
from workers.context import Context
from workers.tasks import create_celery, make_context
from workers.watch import run_all


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


@click.command()
@click.option("--concurrency", default=4, show_default=True, help="How many tasks run at once.")
def worker(concurrency: int) -> None:
    """Run the tasks of the control plane."""
    _start("worker")
    app = create_celery()
    _context(app)
    arguments = [
        "worker",
        "-Q",
        f"{TABLE_QUEUE},{CONTROL_QUEUE}",
        "--pool",
        "threads",
        "-c",
        str(concurrency),
        "-n",
        "worker@%h",
    ]
    app.worker_main([*arguments, "--without-gossip", "--without-mingle", "--without-heartbeat"])
    # kombu 5.7 gives up when it loses the broker at the wrong moment.
    begin_again_unless(state.should_stop, state.should_terminate, reason="Celery's worker gave up")


@click.command()
def beat() -> None:
    """Start what runs by the clock. One of these per cluster; a second one only does work twice."""
    _start("beat")
    create_celery().Beat(loglevel="WARNING", quiet=True).run()


@click.command()
def watch() -> None:
    """Watch the cluster and start tasks for what changes."""
    _start("watch")
    context = _context(create_celery())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_all(context, stop)
