"""What every cluster of the lab offers: the embedded one (`lab.apiserver`) and the real one (`lab.real_cluster`)."""

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self


class ClusterError(Exception):
    """The cluster did not start, or is not running; the message names the log to read."""


class Cluster(Protocol):
    """An API server on a directory, with its namespace controller, on loopback.

    Objects, certificates, tokens and the address outlive `stop`, `kill` and `restart`; the processes do not outlive
    their owner. A ``tokens.csv`` that is in the directory already is used; its first line is the admin's.
    """

    @property
    def url(self) -> str:
        """``https://HOST:PORT``. Raises `ClusterError` before the first start."""

    @property
    def ca_path(self) -> Path:
        """The PEM file of the CA that signed the server's certificate."""

    @property
    def kubeconfig(self) -> Path:
        """The admin's kubeconfig."""

    @property
    def token(self) -> str:
        """The admin's bearer token."""

    @property
    def pid(self) -> int | None:
        """A process that is there exactly while the cluster runs."""

    def start(self) -> Self:
        """Start and wait until it answers; nothing happens if it already runs. Raises `ClusterError`."""

    def stop(self) -> None:
        """SIGTERM, and wait; SIGKILL where it does not follow."""

    def kill(self) -> None:
        """SIGKILL, and wait: what a crash leaves is what the next start finds."""

    def restart(self) -> Self:
        """Stop, and start on the same directory."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
