"""An ordinary kubectl, without --validate=false."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import real_cluster
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster

Kubectl = Callable[..., subprocess.CompletedProcess[str]]

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ports.GROUP}
spec:
  group: GROUP
  scope: Cluster
  names: {plural: ports, kind: Port, shortNames: [prt]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns:
    - {name: Host, type: string, jsonPath: .host}
    - {name: Addresses, type: string, jsonPath: .addresses, priority: 1}
    schema:
      openAPIV3Schema:
        type: object
        required: [host]
        properties:
          host: {type: string}
          addresses: {type: array, items: {type: string}}
"""
PORT = "apiVersion: GROUP/v1\nkind: Port\nmetadata: {name: NAME}\nhost: node2\n"


@pytest.fixture(scope="module")
def program() -> str:
    found = real_cluster.kubectl()
    if found is None:
        left_out = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        left_out("kubectl is not installed: `make kube-apiserver` brings one")
    return found


@pytest.fixture
def kubectl(any_cluster: Cluster, program: str, tmp_path: Path) -> Kubectl:

    def run(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [program, f"--kubeconfig={any_cluster.kubeconfig}", f"--cache-dir={tmp_path}", *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)

    return run


def test_a_namespace_from_creation_to_deletion(kubectl: Kubectl, name: str) -> None:
    assert kubectl("create", "namespace", name).stdout == f"namespace/{name} created\n"
    again = kubectl("create", "namespace", name)
    assert again.returncode == 1
    assert "AlreadyExists" in again.stderr
    assert kubectl("annotate", "ns", name, "a=b").stdout == f"namespace/{name} annotated\n"
    assert kubectl("label", "ns", name, "c=d").stdout == f"namespace/{name} labeled\n"
    header, row = kubectl("get", "ns", name).stdout.splitlines()
    assert header.split() == ["NAME", "STATUS", "AGE"]
    assert row.split()[:2] == [name, "Active"]
    assert "c=d" in kubectl("describe", "ns", name).stdout
    assert kubectl("create", "configmap", "c", "-n", name, "--from-literal=k=v").returncode == 0
    assert kubectl("get", "cm", "c", "-n", name, "-o", "jsonpath={.data.k}").stdout == "v"
    assert f'"{name}" deleted' in kubectl("delete", "ns", name).stdout
    assert "NotFound" in kubectl("get", "ns", name).stderr


def test_a_custom_resource_by_apply_and_patch(kubectl: Kubectl, name: str) -> None:
    group = f"{name}.example.dev"
    crd, port = CRD.replace("GROUP", group), PORT.replace("GROUP", group).replace("NAME", name)
    assert kubectl("apply", "-f", "-", text=crd).stdout.endswith("created\n")
    waited = kubectl("wait", "--for=condition=Established", f"crd/ports.{group}", "--timeout=10s")
    assert waited.stdout.endswith("condition met\n")
    assert kubectl("apply", "-f", "-", text=port).stdout.endswith("created\n")
    assert kubectl("apply", "-f", "-", text=port).stdout.endswith("unchanged\n")
    assert kubectl("apply", "-f", "-", text=port.replace("node2", "node3")).stdout.endswith("configured\n")
    wrong = kubectl("apply", "-f", "-", text=port + "odd: 1\n")
    assert wrong.returncode == 1
    assert 'unknown field "odd"' in wrong.stderr
    patch = '{"addresses":["192.168.1.102"]}'
    assert kubectl("patch", "prt", name, "--type=merge", "-p", patch).stdout.endswith("patched\n")
    assert "415" in kubectl("patch", "prt", name, "-p", patch, "-v=6").stderr
    header, row = kubectl("get", "prt", "-o", "wide").stdout.splitlines()
    assert header.split() == ["NAME", "HOST", "ADDRESSES"]
    assert row.split() == [name, "node3", '["192.168.1.102"]']
    assert "192.168.1.102" in kubectl("describe", "prt", name).stdout
    assert kubectl("delete", "crd", f"ports.{group}").returncode == 0


def test_a_server_dry_run_leaves_nothing(kubectl: Kubectl, name: str) -> None:
    told = kubectl("create", "namespace", name, "--dry-run=server", "-o", "name")
    assert told.stdout == f"namespace/{name}\n"
    assert kubectl("get", "ns", name).returncode == 1


def test_get_watch_prints_changes_as_they_come(kubectl: Kubectl, program: str, any_cluster: Cluster, name: str) -> None:
    command = [program, f"--kubeconfig={any_cluster.kubeconfig}", "get", "ns", "-w", "--output-watch-events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        try:
            lines = iter(watch.stdout.readline, "")
            assert any(line.split()[:2] == ["ADDED", "default"] for line in lines)
            kubectl("create", "namespace", name)
            assert any(line.split()[:3] == ["ADDED", name, "Active"] for line in lines)
        finally:
            watch.kill()


def test_server_side_apply_is_there_or_says_that_it_is_not(kubectl: Kubectl, any_cluster: Cluster, name: str) -> None:
    text = f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"
    applied = kubectl("apply", "--server-side", "-f", "-", text=text)
    if isinstance(any_cluster, EmbeddedCluster):
        assert "no server-side apply" in applied.stderr
    else:
        assert applied.stdout == f"namespace/{name} serverside-applied\n"


def test_who_am_i_and_what_may_i(kubectl: Kubectl) -> None:
    assert kubectl("auth", "can-i", "*", "*").stdout == "yes\n"
    assert "namespaces" in kubectl("api-resources", "-o", "name").stdout.splitlines()
