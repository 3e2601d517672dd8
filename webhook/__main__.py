"""`hawse-webhook`: serves admission over TLS."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import click
from flask import Flask
from granian import Granian
from granian.constants import Interfaces
from granian.log import LogLevels

from egress import logs, settings
from egress.processes import die_with_parent
from webhook.app import create_app


def build() -> Flask:
    """The application as each server process makes it, from the environment."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(parent.pid)
    current = settings.load()
    logs.configure(current, "webhook")
    return create_app(current)


@click.command()
def main() -> None:
    """Serve the admission webhook. Everything is set by environment variables; docs/settings.md lists them."""
    try:
        current = settings.load()
    except settings.SettingsError as error:
        raise click.UsageError(str(error)) from None
    if not (current.tls_cert and current.tls_key):
        raise click.UsageError("the API server speaks only TLS to webhooks: set HAWSE_TLS_CERT and HAWSE_TLS_KEY")
    Granian(
        "webhook.__main__:build",
        factory=True,
        address=current.listen_host,
        port=current.listen_port,
        interface=Interfaces.WSGI,
        blocking_threads=current.webhook_threads,
        ssl_cert=Path(current.tls_cert),
        ssl_key=Path(current.tls_key),
        log_level=LogLevels.warning,
        backlog=1024,
        workers_kill_timeout=10,
    ).serve()


if __name__ == "__main__":
    main()
