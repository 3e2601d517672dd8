"""A real kube-apiserver with its etcd, and nothing else of a cluster but the namespace controller.

``make kube-apiserver`` brings the binaries. RBAC is on. There is no kubelet, scheduler or controller manager: nobody
runs pods, collects garbage, or makes service accounts and their tokens.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.apiserver.client import Client
from lab.apiserver.directory import Directory
from lab.apiserver.process import run_module
from lab.cluster import ClusterError
from lab.net import guarded

_BUILT = Path(__file__).resolve().parents[1] / ".lab" / "bin"
_NEEDED = ("kube-apiserver", "etcd")
_HOST = "127.0.0.1"
_START_SECONDS = 90.0
_STOP_SECONDS = 15.0


def binaries() -> Path:
    """The folder with kube-apiserver and etcd: KUBEBUILDER_ASSETS, else what ``make kube-apiserver`` made.

    Raises `ClusterError` that says how to get them.
    """
    folder = Path(os.environ.get("KUBEBUILDER_ASSETS") or _BUILT)
    missing = [name for name in _NEEDED if not os.access(folder / name, os.X_OK)]
    if missing:
        raise ClusterError(f"no {' and no '.join(missing)} in {folder}: run `make kube-apiserver`")
    return folder


def kubectl() -> str | None:
    """The kubectl to use: the one beside kube-apiserver, else the machine's, else None."""
    folder = os.environ.get("KUBEBUILDER_ASSETS") or _BUILT
    return shutil.which("kubectl", path=f"{folder}{os.pathsep}{os.environ.get('PATH', '')}")


class RealCluster:
    """A `lab.cluster.Cluster`. The processes end with this one; `pid` is that of the API server's guard.

    `audit` is a file into which the server writes each request that changes something, a line of JSON each.
    """

    def __init__(self, directory: Path, *, namespace_controller: bool = True, audit: Path | None = None) -> None:
        self._files = Directory(directory.resolve())
        self._namespace_controller = namespace_controller
        self._audit = audit
        self._processes: dict[str, guarded.Guarded] = {}

    @property
    def url(self) -> str:
        try:
            return self._files.url.read_text().strip()
        except FileNotFoundError:
            raise ClusterError("the API server has no address before its first start()") from None

    @property
    def ca_path(self) -> Path:
        return self._files.ca

    @property
    def kubeconfig(self) -> Path:
        return self._files.kubeconfig

    @property
    def token(self) -> str:
        return self._files.admin_token()

    @property
    def pid(self) -> int | None:
        server = self._processes.get("kube-apiserver")
        return server.holder if server and server.alive() else None

    def start(self) -> Self:
        if self.pid is not None:
            return self
        folder = binaries()
        port = _free_port(self._files.last_port())
        self._files.admin_token()
        try:
            self._run("etcd", [str(folder / "etcd"), *self._etcd_options()])
            self._run("kube-apiserver", [str(folder / "kube-apiserver"), *self._server_options(port)])
            self._files.publish(f"https://{_HOST}:{port}")
            self._await_ready()
            if self._namespace_controller:
                self._run("namespace-controller", self._controller())
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        while self._processes:  # last started, first stopped: the server goes before its store
            self._processes.popitem()[1].terminate(_STOP_SECONDS)

    def kill(self) -> None:
        while self._processes:
            self._processes.popitem()[1].kill()

    def restart(self) -> Self:
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def processes(self) -> Mapping[str, guarded.Guarded]:
        """What runs, by its name."""
        return self._processes

    def log(self, process: str) -> Path:
        """The log of ``kube-apiserver``, ``etcd`` or ``namespace-controller``."""
        return self._files.root / f"{process}.log"

    def _run(self, name: str, command: list[str]) -> None:
        self._processes[name] = guarded.start(command, self.log(name))

    @property
    def etcd_socket(self) -> Path:
        """Where etcd listens: in a directory of the owner's, for etcd asks nobody who he is."""
        return self._files.root / "etcd.sock"

    @property
    def _store(self) -> str:
        return f"unix://{self.etcd_socket}"

    def _etcd_options(self) -> list[str]:
        nowhere = f"http://{_HOST}:0"  # a single member has no peers, and etcd wants an address all the same
        return [
            "--name=lab",
            f"--data-dir={self._files.etcd}",
            f"--listen-client-urls={self._store}",
            f"--advertise-client-urls={nowhere}",
            f"--listen-peer-urls={nowhere}",
            f"--initial-advertise-peer-urls={nowhere}",
            f"--initial-cluster=lab={nowhere}",
            "--unsafe-no-fsync",  # it is to survive crashes of processes, not of the machine
            "--log-level=error",
        ]

    def _server_options(self, port: int) -> list[str]:
        certificate, key = self._files.certificate(_HOST), self._files.signing_key()
        return [
            f"--etcd-servers={self._store}",
            f"--bind-address={_HOST}",
            f"--secure-port={port}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={certificate}",
            f"--token-auth-file={self._files.tokens}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            # Pods are only ever validated, and nobody makes the service accounts that they would need.
            "--disable-admission-plugins=ServiceAccount",
            # Nobody is to find this server through the API; loopback is no address that it would write there.
            f"--advertise-address={_HOST}",
            "--endpoint-reconciler-type=none",
            *self._audit_options(),
        ]

    def _audit_options(self) -> list[str]:
        if self._audit is None:
            return []
        rules = [
            {"level": "RequestResponse", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
            {"level": "None"},
        ]
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
        file = self._files.root / "audit-policy.yaml"
        file.write_text(json.dumps(policy))
        return [f"--audit-policy-file={file}", f"--audit-log-path={self._audit}", "--audit-log-mode=blocking-strict"]

    def _controller(self) -> list[str]:
        token = self._files.root / "controller.token"
        token.touch(mode=0o600)
        token.write_text(self.token)
        where = ["--url", self.url, "--ca", str(self.ca_path), "--token-file", str(token)]
        return [*run_module("lab.apiserver.namespace_controller"), *where]

    def _await_ready(self) -> None:
        """Until every start-up hook has run (RBAC's roles among them) and the first namespace exists."""
        client = Client(self.url, self.ca_path, self.token)
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(client):
            dead = [name for name, process in self._processes.items() if not process.alive()]
            if dead or time.monotonic() > deadline:
                what = f"{dead[0]} ended" if dead else f"it was not ready within {_START_SECONDS:.0f} s"
                log = self.log(dead[0] if dead else "kube-apiserver")
                end = log.read_text(errors="replace").strip()[-500:]
                raise ClusterError(f"the API server did not start: {what} (log: {log}): {end}")
            time.sleep(0.1)


def _answers(client: Client) -> bool:
    try:
        return client.get("/readyz").code == 200 and client.get("/api/v1/namespaces/default").code == 200
    except (OSError, HTTPException, ValueError):  # it is starting: an answer may end in the middle
        return False


def _free_port(wanted: int) -> int:
    """``wanted`` if it is free, else any that is."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, wanted))
        except OSError:
            probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
