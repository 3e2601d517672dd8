"""`hawse-webhook`: serves admission over TLS."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import click
from flask import Flask

from egress import logs, settings
from egress.health import Health
from egress.settings import Settings
from webhook.app import ENDING, create_app
from webhook.probe import reachable
from webhook.server import Pair, Server, Term, serve_health


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
        def ready() -> str | None:
            return ENDING if term.ending() else reachable(current.listen_host, current.listen_port)

        serve_health(lambda: Health(current.health_host, current.health_port, ready))
        return create_app(current, ending=term.ending, leaving=term.leaving)

    server(current, pair, end, build).run()


def server(current: Settings, pair: Pair, end: threading.Event, build: Callable[[Term], Flask]) -> Server:
    """The server of what `build` makes, as the settings say."""
    return Server(
        build,
        pair,
        drain=current.drain_time,
        end=end,
        address=current.listen_host,
        port=current.listen_port,
        blocking_threads=current.webhook_threads,
        backlog=1024,
    )


if __name__ == "__main__":
    main()
