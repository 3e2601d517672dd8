"""Servers that are measured, and wrk, which asks them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import trustme

_HERE = Path(__file__).parent
_RECORDED = _HERE.parents[1] / "tests" / "fixtures" / "admission" / "create-namespace.json"


class Load(msgspec.Struct, frozen=True):
    """What one run of the generator saw; latencies in milliseconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    max: float
    errors: int

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds


@dataclass
class Generator:
    """wrk, with a review that a 1.36 API server sent, for another namespace in each request: HTTP/1.1 over TLS, one
    thread, connections that are kept."""

    directory: Path
    runs: int = 0
    cpu: float = 0.0
    """Seconds of CPU that it took, all in all."""
    asked: float = 0.0
    """Seconds for which it asked."""

    def __post_init__(self) -> None:
        review = json.loads(_RECORDED.read_text())
        metadata = review["request"]["object"]["metadata"]
        metadata["name"] = metadata["labels"]["kubernetes.io/metadata.name"] = "@NAME@"
        review["request"] |= {"name": "@NAME@", "namespace": "@NAME@", "uid": "@UID@"}
        self._review = self.directory / "review.json"
        self._review.write_text(json.dumps(review, separators=(",", ":")))  # as the API server writes it

    def ask(self, port: int, connections: int, seconds: int, rest: int = 0, seed: int = 0) -> Load:
        """Asks for `seconds` over `connections`, each at once when it has its answer, or `rest` milliseconds after, on
        average: each rest is drawn, and the same `seed` draws the same ones. RuntimeError if anything went wrong."""
        self.runs += 1
        command: list[str | Path] = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--timeout",
            "10s",
            "-s",
            _HERE / "load.lua",
        ]
        command += [f"https://127.0.0.1:{port}", "--", self._review, f"{self.runs:04}", str(rest), str(seed)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.asked += seconds
        load = msgspec.json.decode(said.splitlines()[-1], type=Load)
        if load.errors or not load.requests:
            raise RuntimeError(f"{load.errors} of {load.requests} requests failed: {said}")
        return load


def missing() -> str:
    """What this machine lacks for it, or ""."""
    return "" if shutil.which("wrk") else "wrk is not installed (Debian's package wrk)"


class Served:
    """A server in a process of its own, on a port of its own, with a certificate."""

    def __init__(self, directory: Path, command: Sequence[str | Path], redis_url: str) -> None:
        self.port = free_port()
        directory = Path(tempfile.mkdtemp(dir=directory))  # a server whose files change begins anew
        leaf = trustme.CA().issue_cert("127.0.0.1")
        (directory / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        (directory / "tls.key").write_bytes(leaf.private_key_pem.bytes())
        self._command = command
        self._log = directory / f"{self.port}.log"
        self._environment = os.environ | {
            "HAWSE_REDIS_URL": redis_url,
            "HAWSE_LISTEN_HOST": "127.0.0.1",
            "HAWSE_LISTEN_PORT": str(self.port),
            "HAWSE_HEALTH_PORT": "0",
            "HAWSE_TLS_CERT": str(directory / "tls.crt"),
            "HAWSE_TLS_KEY": str(directory / "tls.key"),
            "HAWSE_DRAIN_TIME": "0",
        }

    @classmethod
    def webhook(cls, directory: Path, redis_url: str) -> Served:
        """`hawse-webhook`, as it is installed."""
        return cls(directory, [Path(sys.executable).parent / "hawse-webhook"], redis_url)

    @classmethod
    def noop(cls, directory: Path, redis_url: str) -> Served:
        """The application that does nothing."""
        return cls(directory, [sys.executable, "-m", "bench.admission.noop"], redis_url)

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self._process.kill()
                    raise RuntimeError(f"did not start: {self._log.read_text()}") from None
                time.sleep(0.05)
            else:
                return self

    def cpu(self) -> float:
        """Seconds of CPU that it has taken, with the processes that it has now."""
        ticks, pids = 0, [self._process.pid]
        for pid in pids:
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime, stime
        return ticks / os.sysconf("SC_CLK_TCK")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
