"""`hawse-api`: serves the address lists and takes callbacks, over HTTP or HTTPS."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from contextlib import suppress
from pathlib import Path

import click
from flask import Flask

from egress import logs, settings
from egress.adapters.cluster import Cluster, ConfigError
from egress.adapters.networks import Detector
from egress.health import Health
from egress.networks import NetworkError
from egress.operations import TransientError
from egress.settings import Settings
from egress.ticket_profiles import ProfilesError
from webhook.api import metrics
from webhook.api.app import create_app
from webhook.api.mirrors import Mirrors
from webhook.api.profiles import ProfilesFile
from webhook.app import ENDING
from webhook.probe import reachable
from webhook.server import Pair, Server, Term, serve_health

SYNC_SECONDS = 3.0
"""How long a new process waits for the objects to be read before it listens: one that has a predecessor, which serves
meanwhile, then takes over with all it needs."""


@click.command()
def main() -> None:
    """Serve address lists and callbacks. Everything is set by environment variables; docs/settings.md lists them."""
    try:
        current = settings.load()
        logs.configure(current, "api")  # before anybody logs: a line in another form could be anybody's
        ProfilesFile(current.ticket_profiles)
        with suppress(TransientError):  # the API server is away: it is asked again when somebody looks
            Detector(Cluster(current.kubeconfig), current.network)()
    except (settings.SettingsError, ProfilesError, ConfigError, NetworkError) as error:
        raise click.UsageError(str(error)) from None
    if bool(current.tls_cert) != bool(current.tls_key):
        raise click.UsageError("HAWSE_TLS_CERT and HAWSE_TLS_KEY go together: set both, or none for plain HTTP")
    multiprocessing.set_start_method("fork")  # the serving processes share a socket with this one
    pair = Pair(Path(current.tls_cert), Path(current.tls_key)) if current.tls_cert else None
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    if pair is not None and pair.usable(end) is None:
        return
    Server(
        lambda term: _build(current, term),
        pair,
        drain=current.drain_time,
        end=end,
        address=current.api_listen_host,
        port=current.api_listen_port,
        blocking_threads=current.api_threads + current.api_listeners,  # one that listens keeps one busy
        backlog=2048,
    ).run()


def _build(current: Settings, term: Term) -> Flask:
    """The application, in the process that serves it: everything that has threads begins here."""
    cluster = Cluster(current.kubeconfig)
    mirrors = Mirrors.of(cluster)
    metrics.watch(mirrors)

    def ready() -> str | None:
        if term.ending():
            return ENDING
        return mirrors.verdict() or reachable(
            current.api_listen_host, current.api_listen_port, "the API", tls=bool(current.tls_cert)
        )

    serve_health(lambda: Health(current.health_host, current.health_port, ready, alive=mirrors.alive))
    mirrors.start(threading.Event())  # until the process ends
    mirrors.wait(SYNC_SECONDS)
    profiles = ProfilesFile(current.ticket_profiles)
    return create_app(current, profiles.get, mirrors, cluster, leaving=term.leaving)


if __name__ == "__main__":
    main()
