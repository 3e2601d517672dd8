"""`hawse-webhook`: serves admission over TLS."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from pathlib import Path

import click
import structlog
from flask import Flask

from egress import logs, settings
from egress.health import Health, HealthError
from egress.settings import Settings
from webhook.app import ENDING, create_app
from webhook.probe import reachable
from webhook.server import LOOK_SECONDS, Pair, Server, Term

_log = structlog.get_logger()


@click.command()
def main() -> None:
    """Serve the admission webhook. Everything is set by environment variables; docs/settings.md lists them."""
    try:
        current = settings.load()
        current.layout()
    except settings.SettingsError as error:
        raise click.UsageError(str(error)) from None
    if not (current.tls_cert and current.tls_key):
        raise click.UsageError("the API server speaks only TLS to webhooks: set HAWSE_TLS_CERT and HAWSE_TLS_KEY")
    logs.configure(current, "webhook")
    multiprocessing.set_start_method("fork")  # the serving processes share a socket with this one
    pair = Pair(Path(current.tls_cert), Path(current.tls_key))
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    if pair.usable(end) is None:
        return

    def build(term: Term) -> Flask:
        _serve_health(current, term)
        return create_app(current, ending=term.ending, leaving=term.leaving)

    Server(
        build,
        pair,
        drain=current.drain_time,
        end=end,
        address=current.listen_host,
        port=current.listen_port,
        blocking_threads=current.webhook_threads,
        backlog=1024,
    ).run()


def _serve_health(current: Settings, term: Term) -> None:
    """Serves health and metrics beside the application, in the process that counts.

    When a new process takes over, the port is the old one's until that ends: it is asked for until it can be had.
    """

    def ready() -> str | None:
        return ENDING if term.ending() else reachable(current.listen_host, current.listen_port)

    def serve() -> None:
        said = False
        while True:
            try:
                Health(current.health_host, current.health_port, ready).start()
            except HealthError as error:
                if not said:
                    _log.info("waiting for the health port", error=str(error))
                said = True
                time.sleep(LOOK_SECONDS)
            else:
                return

    threading.Thread(target=serve, name="health-start", daemon=True).start()


if __name__ == "__main__":
    main()
