"""``python -m lab.apiserver --dir DIR``: serve one embedded cluster until SIGTERM or SIGINT.

Prints one line when it answers. All state is in DIR: a server started again on it goes on where it stopped, at the
same address where that is free. Exit codes: 0 stopped, 1 could not start, 2 bad usage.
"""

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path

from aiohttp import web

from lab.apiserver import kinds
from lab.apiserver.admission import Admission
from lab.apiserver.auth import BadTokenFile, Tokens
from lab.apiserver.directory import Directory
from lab.apiserver.handlers import Api
from lab.apiserver.journal import Journal, JournalInUse
from lab.apiserver.namespace_controller import NamespaceController
from lab.apiserver.resources import NAMESPACES, Registry
from lab.apiserver.store import Store
from lab.apiserver.writes import Writes

_PR_SET_PDEATHSIG = 1
_SHUTDOWN_SECONDS = 2.0
READY = "embedded cluster ready at "


async def _serve(options: argparse.Namespace) -> None:
    directory = Directory(options.dir)
    token = directory.admin_token()
    tokens = Tokens.read(directory.tokens)
    store = Store(Journal.open(directory.journal), options.history)
    registry = Registry()
    admission = Admission(store)
    writes = Writes(store, registry, admission)
    namespaces = registry.by_storage(NAMESPACES)
    for name in kinds.SYSTEM_NAMESPACES:
        if namespaces:
            writes.ensure(namespaces, name)
    app = Api(store, registry, writes, tokens).application()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        url = await _listen(runner, directory, options)
        directory.publish(url)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        print(f"{READY}{url} (kubeconfig: {directory.kubeconfig})", flush=True)
        controller = NamespaceController(url, token, directory.ca).run() if options.namespace_controller else None
        await _until(stop, controller)
    finally:
        store.close()
        await runner.cleanup()
        await admission.close()


async def _listen(runner: web.AppRunner, directory: Directory, options: argparse.Namespace) -> str:
    """Listen at the port that is asked for, else at the one this cluster had before, else at any."""
    context = directory.tls(options.host)
    ports = [options.port] if options.port else [port for port in (directory.last_port(), 0) if port] + [0]
    for port in ports:
        site = web.TCPSite(runner, options.host, port, ssl_context=context, reuse_address=True)
        try:
            await site.start()
        except OSError:
            if port == ports[-1]:
                raise
            continue
        break
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"https://{host}:{runner.addresses[0][1]}"


async def _until(stop: asyncio.Event, controller: Coroutine[object, object, None] | None) -> None:
    task = asyncio.create_task(controller) if controller is not None else None
    await stop.wait()
    if task:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGTERM when the thread that started this process ends; stop if it has already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(0)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.apiserver", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where everything is kept; made where it is missing")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="port to listen at (0: the one before, or any free one)")
    parser.add_argument("--history", type=int, default=1000, help="changes kept per resource for watches (1000)")
    parser.add_argument(
        "--no-namespace-controller",
        dest="namespace_controller",
        action="store_false",
        help="leave terminating namespaces to another controller",
    )
    parser.add_argument("--die-with", type=int, metavar="PID", help="stop when this parent process ends")
    options = parser.parse_args(arguments)
    if options.history < 1:
        parser.error("--history must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Serve until told to stop."""
    options = _options(arguments)
    if options.die_with:
        _die_with(options.die_with)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        asyncio.run(_serve(options))
    except (OSError, JournalInUse, BadTokenFile) as error:
        sys.exit(f"embedded cluster: {error}")


if __name__ == "__main__":
    main()
