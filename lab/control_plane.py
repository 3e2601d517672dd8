"""Webhook, workers, beat, watch, tickets and api as processes on this host, against any API server and broker."""

from __future__ import annotations

import base64
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import trustme
import yaml
from urllib3.exceptions import HTTPError

from lab import marker
from lab.accounts import user_of
from lab.kube import Json, Kube, KubeError
from lab.net import guarded

COMPONENTS = ("webhook", "worker", "beat", "watch")
"""What always runs. `tickets` and `api` do too where the environment names a file of ticket profiles."""
ROOT = Path(__file__).resolve().parents[1]
WEBHOOKS = ROOT / "deploy" / "base" / "webhooks.yaml"
_SCRIPTS = Path(sys.executable).parent


class ControlPlaneError(RuntimeError):
    """A component did not come up; the message names it and its log."""


class ControlPlane:
    """The processes, their certificate and their logs, below `directory`.

    `kubeconfigs` are those of the components that speak to the API server, which is all but the webhook; `environment`
    is added to every component's. Each process dies with this one.
    """

    def __init__(
        self,
        directory: Path,
        *,
        redis_url: str,
        kubeconfigs: Mapping[str, Path],
        environment: dict[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._processes: dict[str, guarded.Guarded] = {}
        self._kubeconfigs = kubeconfigs
        self.port, self.api_port = free_ports(2)
        self._authority = trustme.CA(organization_name="Hawse lab webhook")
        self.issue_certificate()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HAWSE_")}
        self.environment = inherited | {
            "HAWSE_REDIS_URL": redis_url,
            "HAWSE_LISTEN_HOST": "127.0.0.1",
            "HAWSE_LISTEN_PORT": str(self.port),
            "HAWSE_API_LISTEN_HOST": "127.0.0.1",
            "HAWSE_API_LISTEN_PORT": str(self.api_port),
            "HAWSE_TLS_CERT": str(directory / "webhook.crt"),
            "HAWSE_TLS_KEY": str(directory / "webhook.key"),
            "HAWSE_TRUSTED_USERS": user_of("worker"),
            "HAWSE_CERTIFICATES": "external",  # the ones above
            "HAWSE_LEASE_DURATION": "6",  # a killed beat or watch is missed for no longer
            "HAWSE_LEASE_RENEW_DEADLINE": "4",
            "HAWSE_LEASE_RETRY": "0.8",
            "HAWSE_HEALTH_PORT": "0",  # all of them are on this host, and maybe other labs too
            **(environment or {}),
        }

    def issue_certificate(self) -> None:
        """A new certificate for the webhook, of the same authority."""
        leaf = self._authority.issue_cert("127.0.0.1", "localhost")
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        for name, content in (("webhook.key", leaf.private_key_pem.bytes()), ("webhook.crt", chain)):
            new = self.directory / f"{name}.new"
            new.touch(mode=0o600)
            new.write_bytes(content)
            new.replace(self.directory / name)

    @property
    def api_url(self) -> str:
        """Where `api` serves."""
        return f"http://127.0.0.1:{self.api_port}"

    def log(self, component: str) -> Path:
        """Where `component` writes its log."""
        return self.directory / f"{component}.log"

    def start(self, *components: str) -> None:
        """Starts `components`, or all of them; the webhook and the API answer when this returns."""
        for component in components or self._components:
            command = [str(_SCRIPTS / f"hawse-{component}")]
            environment = dict(self.environment)
            if component == "api":  # plain HTTP, as behind an Ingress
                environment |= {"HAWSE_TLS_CERT": "", "HAWSE_TLS_KEY": ""}
            if component in self._kubeconfigs:
                environment["HAWSE_KUBECONFIG"] = str(self._kubeconfigs[component])
            self._processes[component] = guarded.start(command, self.log(component), env=environment)
        for component, port in (("webhook", self.port), ("api", self.api_port)):
            if component in (components or self._components):
                self._wait_for(component, port)

    @property
    def has_api(self) -> bool:
        """Whether `tickets` and `api` run."""
        return bool(self.environment.get("HAWSE_TICKET_PROFILES"))

    @property
    def _components(self) -> tuple[str, ...]:
        return (*COMPONENTS, "tickets", "api") if self.has_api else COMPONENTS

    @property
    def processes(self) -> Mapping[str, guarded.Guarded]:
        """What runs, by component."""
        return self._processes

    def kill(self, component: str) -> None:
        """SIGKILL, as a crash."""
        self._processes[component].kill()

    def dead(self) -> dict[str, str]:
        """The components that ended by themselves: how, and the last that they said."""
        return {
            name: f"status {process.guard.returncode}: {self.log(name).read_text(errors='replace').strip()[-2000:]}"
            for name, process in self._processes.items()
            if not process.alive()
        }

    def stop(self) -> None:
        """Ends all of them."""
        for process in self._processes.values():
            process.kill()
        self._processes.clear()

    def webhook_configurations(self) -> list[Json]:
        """What deploy/base/webhooks.yaml registers, for an API server on this host: an address of ours in place of
        the service, and our authority."""
        authority = base64.b64encode(self._authority.cert_pem.bytes()).decode()
        configurations: list[Json] = list(yaml.safe_load_all(WEBHOOKS.read_text()))
        for webhook in (webhook for configuration in configurations for webhook in configuration["webhooks"]):
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"https://127.0.0.1:{self.port}{path}", "caBundle": authority}
            webhook["timeoutSeconds"] = 30  # a busy machine may keep it from answering
        return configurations

    def register_webhooks(self, kube: Kube) -> None:
        """Makes the API server ask the webhook; it does when this returns."""
        for configuration in self.webhook_configurations():
            label = configuration["kind"]
            kube.create(configuration | {"webhooks": [*configuration["webhooks"], marker.webhook(label)]})
            deadline = time.monotonic() + 90
            while not marker.in_effect(kube, label):
                if time.monotonic() > deadline:
                    raise ControlPlaneError(f"the API server does not heed the {label}")
                time.sleep(0.05)

    def _wait_for(self, component: str, port: int) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            if not self._processes[component].alive():
                break
            time.sleep(0.05)
        end = self.log(component).read_text(errors="replace").strip()[-500:]
        raise ControlPlaneError(f"{component} did not start: read {self.log(component)}: {end}")


def install(kube: Kube) -> None:
    """Creates Hawse's namespace, its roles and the CRDs, OpenShift's two included, and waits until they are served."""
    deploy = ROOT / "deploy"
    kube.apply_files([deploy / "base" / "namespace.yaml", deploy / "base" / "rbac.yaml"])
    kube.apply_files((deploy / "crds").glob("egress*.yaml"))
    kube.apply_files((deploy / "components" / "network-objects").glob("*s.yaml"))
    deadline = time.monotonic() + 90
    for kind in ("HostSubnet", "NetNamespace", "EgressPool", "EgressAddress"):
        while True:
            try:
                kube.list(kind)
                break
            except (KubeError, HTTPError):  # it may close a connection when its kinds change
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nobody has now, no two the same."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
