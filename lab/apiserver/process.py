"""The embedded cluster as a child process, for tests and the demo."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.apiserver.directory import Directory
from lab.cluster import ClusterError

_ROOT = Path(__file__).resolve().parents[2]
_RUN = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), run_name='__main__')"
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0


def run_module(module: str) -> list[str]:
    """The command that runs a module of this tree, which comes after site-packages: an installed Hawse wins."""
    return [sys.executable, "-P", "-c", _RUN, str(_ROOT), module]


class EmbeddedCluster:
    """A server on ``directory``. It keeps its objects and its address over `stop`, `kill` and `restart`.

    The child ends with the *thread* that called `start` (that is what Linux offers): start it from one that lives as
    long as the cluster should.
    """

    def __init__(
        self, directory: Path, *, host: str = "127.0.0.1", history: int = 1000, namespace_controller: bool = True
    ) -> None:
        self._files = Directory(directory)
        self._options = ["--host", host, "--history", str(history)]
        if not namespace_controller:
            self._options.append("--no-namespace-controller")
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """``https://HOST:PORT``. Raises `ClusterError` before the first start."""
        try:
            return self._files.url.read_text().strip()
        except FileNotFoundError:
            raise ClusterError("the embedded cluster has no address before its first start()") from None

    @property
    def ca_path(self) -> Path:
        """The PEM file of the CA that signed the server's certificate."""
        return self._files.ca

    @property
    def kubeconfig(self) -> Path:
        """The admin's kubeconfig."""
        return self._files.kubeconfig

    @property
    def token(self) -> str:
        """The admin's bearer token."""
        return self._files.admin_token()

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> Self:
        """Start and wait until it answers; nothing happens if it already runs. Raises `ClusterError`."""
        if self.pid is not None:
            return self
        arguments = ["--dir", str(self._files.root), "--die-with", str(os.getpid()), *self._options]
        with self._files.log.open("a") as log:
            self._process = subprocess.Popen(
                [*run_module("lab.apiserver"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._await_ready(self._process)
        return self

    def stop(self) -> None:
        """SIGTERM, and wait; SIGKILL where it does not follow."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait: what a crash leaves is what the next start finds."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop, and start on the same directory."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _await_ready(self, process: "subprocess.Popen[str]") -> None:
        timer = threading.Timer(_START_SECONDS, process.kill)
        timer.start()
        try:
            line = process.stdout.readline() if process.stdout else ""
        finally:
            timer.cancel()
        if not line:
            process.wait()
            told = self._files.log.read_text().strip().splitlines()[-1:]
            reason = told[0] if told else f"no answer within {_START_SECONDS:.0f} s"
            raise ClusterError(f"the embedded cluster did not start: {reason} (log: {self._files.log})")

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()
