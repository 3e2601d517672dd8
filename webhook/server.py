"""The server: granian, with a certificate that may change on disk, and an end that loses no request."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from wsgiref.types import WSGIApplication

import structlog
from granian.constants import Interfaces, SSLProtocols
from granian.log import LogLevels
from granian.net import SocketSpec
from granian.server import MPServer

from egress.health import Health, HealthError
from egress.processes import die_with_parent

_log = structlog.get_logger()
LOOK_SECONDS = 2.0
"""How often the certificate's files are compared with what is served."""
HAND_OVER_SECONDS = 5.0
KILL_SECONDS = 15
"""How long what is in flight may take when a serving process ends: more than an API server waits for an answer."""


class Pair(NamedTuple):
    """The files of a certificate chain and of its key, PEM."""

    cert: Path
    key: Path

    def problem(self) -> str | None:
        """Why the two cannot be served, or None."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert, self.key)
        except FileNotFoundError:
            return f"{self.cert} or {self.key} is not there"
        except (OSError, ssl.SSLError) as error:
            return f"{self.cert} and {self.key} are no certificate and its key: {error}"
        return None

    def contents(self) -> tuple[bytes, bytes] | None:
        """What is in the files, or None while one of them is not there."""
        try:
            return self.cert.read_bytes(), self.key.read_bytes()
        except OSError:
            return None

    def resolved(self) -> Pair:
        """The files behind the symbolic links of a mounted Secret, which another version does not change."""
        return Pair(self.cert.resolve(), self.key.resolve())

    def usable(self, end: threading.Event) -> Pair | None:
        """The resolved pair, once it can be served; None if `end` came first.

        What it waits for is logged, once for each reason: a Secret may be mounted before it has been filled.
        """
        said = None
        while (problem := (found := self.resolved()).problem()) is not None:
            if problem != said:
                _log.warning("waiting for the certificate", problem=problem)
                said = problem
            if end.wait(LOOK_SECONDS):
                return None
        return found


class Term:
    """How long a serving process is to go on."""

    def __init__(self) -> None:
        self._end = mmap.mmap(-1, 1)  # shared by all processes
        self._succeeded = False

    def ending(self) -> bool:
        """Whether the whole program is about to end, so that no more requests should be sent to it."""
        return self._end[0] != 0

    def leaving(self) -> bool:
        """Whether this process is about to end, perhaps because it has a successor: connections should not be kept."""
        return self._succeeded or self.ending()

    def end(self) -> None:
        """The end is near."""
        self._end[0] = 1

    def succeed(self) -> None:
        """Another process has taken over from this one."""
        self._succeeded = True


class Server(MPServer):  # type: ignore[misc] # its annotations are not read, see pyproject.toml
    """Serves the application that `build` makes, in a process of its own: over HTTPS, or HTTP where there is no `pair`.

    `build` is called in that process, with what it must know of its `Term`. SIGTERM begins the end: requests are served
    for `drain` seconds more, while those who ask hear of it, then what is in flight is finished. If `end` is set
    before anything is served, it ends at once.

    granian reads a certificate once, so one that has changed is served by a new process. When it is there it tells the
    old one (SIGUSR1) to accept no more and to keep no connection; HAND_OVER_SECONDS after its birth the old one ends.
    All of them accept from one socket, which this process keeps open: a connection that nobody has accepted yet waits
    for the next process. (By itself granian makes, on Linux, a socket for each process, with SO_REUSEPORT; when one is
    closed the kernel resets what waits in its queue.)
    """

    def __init__(
        self,
        build: Callable[[Term], WSGIApplication],
        pair: Pair | None,
        *,
        drain: float,
        end: threading.Event,
        **options: object,
    ) -> None:
        self._build = build
        self._pair = pair
        self._drain = drain
        self._term = Term()
        self._end = end
        self._older: list[int] = []  # pids of the serving processes that are to be succeeded
        self._served = pair.contents() if pair else None
        found = pair.resolved() if pair else None
        super().__init__(
            "webhook",
            interface=Interfaces.WSGI,
            ssl_cert=found and found.cert,
            ssl_key=found and found.key,
            log_level=LogLevels.error,
            respawn_interval=HAND_OVER_SECONDS,
            workers_kill_timeout=KILL_SECONDS,
            **options,
        )
        self.on_startup(self._ended_already)
        self.on_reload(self._take_pair)

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Ends the program with 1 if the serving process ended by itself."""
        if self._pair is not None:
            threading.Thread(target=self._look, args=(self._pair,), name="certificate", daemon=True).start()
        self.serve(target_loader=self._load, wrap_loader=False)

    def _load(self) -> WSGIApplication:
        """The application, in a new serving process."""
        die_with_parent(self.pid)
        signal.signal(signal.SIGUSR1, self._accept_no_more)
        application = self._build(self._term)
        for older in self._older:
            os.kill(older, signal.SIGUSR1)
        return application

    def _accept_no_more(self, *_: object) -> None:
        """Puts a socket that nobody knows in the place of the listening one: what granian has accepted goes on, and
        whoever connects from now on is the successor's."""
        self._term.succeed()
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.setblocking(False)
            nobody.bind("")
            nobody.listen()
            os.dup2(nobody.fileno(), self._shd.get_fd())

    def _init_shared_socket(self) -> None:
        self._shd = SocketSpec(self.bind_addr, self.bind_port, self.backlog).build()
        self._ssp, self._sso = None, None

    def _drop_shared_socket(self) -> None:
        os.close(self._shd.get_fd())  # once the serving process has closed it too, whoever connects is refused

    def _ended_already(self) -> None:
        if self._end.is_set():  # by a signal that came before the handlers here
            self.signal_handler_interrupt()

    def _look(self, pair: Pair) -> None:
        """Asks for a new serving process when the files hold another certificate that can be served."""
        said = None
        while not self._end.wait(LOOK_SECONDS):
            contents = pair.contents()
            if contents in (None, self._served):
                continue
            problem = pair.problem()
            if problem is None:
                self.signal_handler_reload()
            elif problem != said:
                _log.warning("the new certificate is not served", problem=problem)
            said = problem

    def _take_pair(self) -> None:
        if self._pair is None:
            return
        self._served = self._pair.contents()
        found = self._pair.usable(self._end)
        if found is not None:
            self.build_ssl_context(found.cert, found.key, None, SSLProtocols.tls13, None, [], False)
            _log.info("certificate changed: a new process takes over")
        self._older = [worker.inner.pid for worker in self.wrks]

    def signal_handler_interrupt(self, *_: object) -> None:
        if not self._end.is_set() and self._drain > 0:
            _log.info("ends", after=self._drain)
            self._term.end()
            self._end.set()
            timer = threading.Timer(self._drain, super().signal_handler_interrupt)
            timer.daemon = True
            timer.start()
        else:  # nothing to wait for, or asked twice
            self._end.set()
            super().signal_handler_interrupt()


def serve_health(make: Callable[[], Health]) -> None:
    """Serves health and metrics beside the application, in the process that counts.

    When a new process takes over, the port is the old one's until that ends: it is asked for until it can be had.
    """

    def serve() -> None:
        said = False
        while True:
            try:
                make().start()
            except HealthError as error:
                if not said:
                    _log.info("waiting for the health port", error=str(error))
                said = True
                time.sleep(LOOK_SECONDS)
            else:
                return

    threading.Thread(target=serve, name="health-start", daemon=True).start()
