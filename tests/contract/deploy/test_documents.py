"""The commands for a cluster that the documents print, as they stand there, on a real API server with the manifests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lab.kube import Kube
from lab.real_cluster import kubectl
from tests.contract.deploy.conftest import DEPLOY, Installed, until_established

pytestmark = pytest.mark.timeout(300)
ROOT = DEPLOY.parent
PAGES = {path.name: path.read_text() for path in ROOT.glob("docs/*.md")}
FIRST, LAST = "install.md", "uninstall.md"
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`]+)`")
_CLUSTER = re.compile(r"(^|\| )(kubectl \S|deploy/\S+\.sh\b)")
NAMES_ONLY = {
    "kubectl apply",
    "kubectl create namespace",
    "kubectl get -o yaml",
    "kubectl replace",
    "kubectl hawse ...",
}
"""These stand for themselves, in a sentence, and are nothing to type."""
STANDS_FOR = {"A": "192.168.1.102", "ADDRESS": "192.168.1.102", "N": "shop", "P": "production"}
"""What the documents' capitals are here."""
NOBODY_RUNS_PODS = "timed out waiting for the condition"


def commands(page: str) -> list[str]:
    """What is to be typed, in the page's order but for what stands in sentences: that comes first."""
    blocks = "".join(text for language, text in _BLOCK.findall(page) if language in {"", "console"})
    inline = [" ".join(found.split()) for found in _INLINE.findall(_BLOCK.sub("", page))]
    lines = [line.strip().removeprefix("$ ").partition("  # ")[0].strip() for line in blocks.splitlines()]
    typed = [*(found for found in inline if found not in NAMES_ONLY), *lines]
    return [" ".join(STANDS_FOR.get(word, word) for word in line.split(" ")) for line in typed if _CLUSTER.search(line)]


@dataclass(frozen=True)
class Shell:
    """Where somebody types: in a checkout, as admin of a cluster."""

    environment: dict[str, str]
    directory: Path

    def type(self, command: str) -> None:
        """Types it, which must succeed, as far as it can where nobody runs pods and nothing else happens."""
        waits = re.sub(r" rollout status ", " rollout status --timeout=1s ", command)
        waits = re.sub(r" logs ", " logs --pod-running-timeout=1s ", waits)
        waits = waits.replace(" --watch", " --watch --request-timeout=1s")
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", waits],
            cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if waits != command and NOBODY_RUNS_PODS in done.stderr:
            errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            assert all(NOBODY_RUNS_PODS in line for line in errors), done.stderr
        else:
            differs = 1 if command.startswith("kubectl diff") else 0
            assert done.returncode in {0, differs}, f"{command}: {done.stderr or done.stdout}"


@pytest.fixture(scope="module")
def cluster(start: Callable[[], Installed]) -> Iterator[Installed]:
    """A cluster before Hawse comes, with a node."""
    installed = start()
    installed.applied("-f", "-", text="{apiVersion: v1, kind: Node, metadata: {name: node2}}")
    return installed


@pytest.fixture(scope="module")
def shell(cluster: Installed, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """After all that docs/install.md says, with what an admin, a worker and the watch have made since."""
    directory = tmp_path_factory.mktemp("checkout")
    (directory / "deploy").symlink_to(DEPLOY)
    example = re.search(r"```yaml\n(.*?kind: EgressPool.*?)```", PAGES["cluster-admin.md"], re.DOTALL)
    assert example
    for name, text in {"pool.yaml": example[1], "callback-key": "k", "signing-key": "k"}.items():
        (directory / name).write_text(text)
    tools = directory / "tools"
    tools.mkdir()
    (tools / "kubectl").symlink_to(kubectl() or "")
    folders = [str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {
        "PATH": os.pathsep.join(folders),
        "KUBECONFIG": str(cluster.cluster.kubeconfig),
        "HOME": str(cluster.directory),
    }
    typing = Shell(environment, directory)
    for command in commands(PAGES[FIRST]):
        typing.type(command)
        if command == "kubectl apply -k deploy/overlays/runner":
            until_established(cluster)
    _live(cluster)
    return typing


def _live(cluster: Installed) -> None:
    """What an admin, a worker, the watch and the controllers of a real cluster make."""
    url, authority = cluster.cluster.url, cluster.cluster.ca_path
    # Nobody answers for the webhook here, and without it no EgressAddress is changed by anybody but the workers.
    assert cluster.kubectl("delete", "validatingwebhookconfiguration", "hawse").returncode == 0
    admin, worker = (Kube(url, authority, cluster.as_(who).token or "") for who in ("admin", "worker"))
    namespace = admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    claim = {"pool": "production", "namespace": {"name": "shop", "uid": namespace["metadata"]["uid"]}}
    egress, network = {"apiVersion": "egress.hawse.dev/v1alpha1"}, {"apiVersion": "network.openshift.io/v1"}
    address = {"kind": "EgressAddress", "metadata": {"name": STANDS_FOR["A"]}}
    worker.create(egress | address | {"spec": claim | {"origin": "automatic"}})
    host = {"host": "node2", "hostIP": "192.168.1.18", "subnet": "10.130.0.0/23"}
    admin.create(network | {"kind": "HostSubnet", "metadata": {"name": "node2"}, **host})
    net = {"netname": "by-hand", "netid": 4711}
    admin.create(network | {"kind": "NetNamespace", "metadata": {"name": "by-hand"}, **net})
    found = cluster.kubectl("-n", "hawse-system", "get", "statefulset", "hawse-redis", "-o", "yaml")
    redis = yaml.safe_load(found.stdout)
    (template,) = redis["spec"]["volumeClaimTemplates"]
    name = f"{template['metadata']['name']}-{redis['metadata']['name']}-0"
    volume = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": template["spec"]}
    others = [
        volume,
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hawse-webhook-tls"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hawse-drain"}},
    ]
    cluster.applied("-n", "hawse-system", "-f", "-", text=yaml.safe_dump_all(others))
    free = ("--type=merge", "-p", '{"metadata": {"finalizers": null}}')  # no controller sees that no pod uses it
    assert cluster.kubectl("-n", "hawse-system", "patch", "pvc", name, *free).returncode == 0


@pytest.mark.parametrize(
    "page", [*sorted(name for name in PAGES if commands(PAGES[name]) and name not in {FIRST, LAST}), LAST]
)
def test_a_pages_commands_do_what_they_say(shell: Shell, page: str) -> None:
    for command in commands(PAGES[page]):
        shell.type(command)
