"""A real API server with Hawse's manifests applied, and a client for each of those who speak to it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.accounts import Accounts
from lab.apiserver.client import Answer, Client
from lab.real_cluster import RealCluster, kubectl

DEPLOY = Path(__file__).parents[3] / "deploy"
WITHOUT_RIGHTS = {name: f"system:serviceaccount:hawse-system:hawse-{name}" for name in ("webhook", "node-runner")}
TENANT = "tenant"
TENANT_NAMESPACE = "tenants-own"


@dataclass
class Installed:
    """A cluster, and who is who on it."""

    cluster: RealCluster
    accounts: Accounts
    directory: Path

    def as_(self, who: str) -> Client:
        """A client with the rights of `who`: admin, tenant, or a process (worker, ..., node-runner)."""
        if who == "admin":
            token = self.cluster.token
        elif (user := WITHOUT_RIGHTS.get(who, who)) in self.accounts.tokens:
            token = self.accounts.tokens[user]
        else:
            kubeconfig = self.accounts.kubeconfigs(self.cluster.kubeconfig, self.directory)[who]
            token = yaml.safe_load(kubeconfig.read_text())["users"][0]["user"]["token"]
        return Client(self.cluster.url, self.cluster.ca_path, token)

    def kubectl(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """An admin's kubectl."""
        found = kubectl()
        assert found is not None
        command = [
            found,
            f"--kubeconfig={self.cluster.kubeconfig}",
            f"--cache-dir={self.directory / 'cache'}",
            *arguments,
        ]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=100, check=False)

    def applied(self, *arguments: str, text: str | None = None) -> str:
        """The output of `kubectl apply`, which must succeed."""
        done = self.kubectl("apply", *arguments, text=text)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def start(real_binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Installed]]:
    """Starts a cluster of its own that knows the service accounts by their tokens."""
    clusters = []

    def begin() -> Installed:
        directory = tmp_path_factory.mktemp("installed")
        accounts = Accounts(directory / "cluster", [TENANT, *WITHOUT_RIGHTS.values()])
        cluster = RealCluster(directory / "cluster").start()
        clusters.append(cluster)
        return Installed(cluster, accounts, directory)

    yield begin
    for cluster in clusters:
        cluster.stop()


@pytest.fixture(scope="session")
def with_crds(start: Callable[[], Installed]) -> Installed:
    """A cluster with the four CRDs and nothing else of Hawse: there is no webhook to refuse what they accept."""
    installed = start()
    installed.applied("-k", str(DEPLOY / "crds"))
    for name in ("hostsubnets", "netnamespaces"):
        installed.applied("-f", str(DEPLOY / "components" / "network-objects" / f"{name}.yaml"))
    until_established(installed)
    return installed


@pytest.fixture(scope="session")
def installed(start: Callable[[], Installed]) -> Installed:
    """A cluster with the overlay `runner`, and a tenant who may edit in a namespace, and that namespace's object.

    Nobody aggregates cluster roles here (that is the controller manager's), so `edit` is bound by its two parts.
    """
    installed = start()
    installed.applied("-k", str(DEPLOY / "overlays" / "runner"))
    until_established(installed)
    subject = {"kind": "User", "name": TENANT, "apiGroup": "rbac.authorization.k8s.io"}
    own = {"kind": "ClusterRole", "name": TENANT, "apiGroup": "rbac.authorization.k8s.io"}
    rule = {"apiGroups": [""], "resources": ["namespaces"], "resourceNames": [TENANT_NAMESPACE]}
    version = "rbac.authorization.k8s.io/v1"
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TENANT_NAMESPACE}},
        *(
            {
                "apiVersion": version,
                "kind": "RoleBinding",
                "metadata": {"name": f"{TENANT}-{part}", "namespace": TENANT_NAMESPACE},
                "roleRef": own | {"name": f"system:aggregate-to-{part}"},
                "subjects": [subject],
            }
            for part in ("edit", "view")
        ),
        {
            "apiVersion": version,
            "kind": "ClusterRole",
            "metadata": {"name": TENANT},
            "rules": [rule | {"verbs": ["get", "update", "patch"]}],
        },
        {
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": TENANT},
            "roleRef": own,
            "subjects": [subject],
        },
    ]
    installed.applied("-f", "-", text=yaml.safe_dump_all(objects))
    return installed


def until(check: Callable[[], Any], seconds: float = 90) -> Any:  # noqa: ANN401 - whatever `check` gives
    """What `check` gives once it gives something."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.1)
    return value


def until_established(installed: Installed) -> None:
    """The API server serves a CRD's objects a moment after it has accepted the CRD."""
    admin = installed.as_("admin")
    paths = [
        *(f"/apis/egress.hawse.dev/v1alpha1/{plural}" for plural in ("egresspools", "egressaddresses")),
        *(f"/apis/network.openshift.io/v1/{plural}" for plural in ("hostsubnets", "netnamespaces")),
    ]
    until(lambda: all(admin.get(path).code == 200 for path in paths))


def causes(answer: Answer) -> dict[str, str]:
    """The fields that an answer complains of, and what it says of each (the last thing, where it says several)."""
    return {cause["field"]: cause["message"] for cause in answer.body["details"].get("causes", [])}
