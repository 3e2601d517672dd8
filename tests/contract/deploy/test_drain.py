"""deploy/drain.sh on a real API server, where things go wrong on the way; test_processes.py has it with the workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.kube import Kube
from lab.real_cluster import kubectl
from tests.contract.deploy.conftest import DEPLOY, Installed, until_established

pytestmark = pytest.mark.timeout(180)
EGRESS = {"apiVersion": "egress.hawse.dev/v1alpha1"}
NETWORK = {"apiVersion": "network.openshift.io/v1"}
GIVEN = {"one": "192.168.1.101", "two": "192.168.1.102", "six": "fd00:192:168:1::a1"}
BY_HAND = "192.168.1.200"
LATE = "192.168.1.109"
EMPTY: dict[str, list[str]] = {name: [] for name in GIVEN} | {"by-hand": [BY_HAND]}


@dataclass
class Drained:
    """A cluster on which addresses were given, and drain.sh with a kubectl that somebody stands in the way of."""

    installed: Installed
    directory: Path

    @property
    def kube(self) -> Kube:
        cluster = self.installed.cluster
        return Kube(cluster.url, cluster.ca_path, cluster.token)

    def run(self, at: str = "-", do: str = "") -> subprocess.CompletedProcess[str]:
        """drain.sh; when it calls kubectl with arguments that fit the pattern `at`, the shell commands `do` run first.

        `$kubectl` in them is the real one, and `once` succeeds the first time. Nobody sleeps.
        """
        tools = self.directory / "bin"
        tools.mkdir(exist_ok=True)
        script = [
            "#!/bin/sh",
            f"kubectl={kubectl()}",
            f"once() {{ mkdir {self.directory}/once 2>/dev/null; }}",
            f"""case "$*" in {at}) {do or ":"} ;; esac""",
            'exec "$kubectl" "$@"',
        ]
        for name, lines in (("kubectl", script), ("sleep", ["#!/bin/sh"])):
            (tools / name).write_text("\n".join(lines) + "\n")
            (tools / name).chmod(0o755)
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "KUBECONFIG": str(self.installed.cluster.kubeconfig),
            "HOME": str(self.installed.directory),  # kubectl keeps a cache there
        }
        command = ["sh", str(DEPLOY / "drain.sh")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)

    def left(self) -> dict[str, list[str]]:
        """The addresses of every NetNamespace."""
        return {item["metadata"]["name"]: item["egressIPs"] for item in self.kube.list("NetNamespace")}

    def hosted(self) -> list[str]:
        """Those of the HostSubnet."""
        subnet = self.kube.get("HostSubnet", "node2")
        assert subnet is not None
        return list(subnet["egressIPs"])

    def notes(self) -> str:
        """What is noted for the next run."""
        found = self.installed.kubectl(
            "-n", "hawse-system", "get", "configmap", "hawse-drain", "-o", "jsonpath={.data}"
        )
        return found.stdout


@pytest.fixture(scope="module")
def cluster(start: Callable[[], Installed]) -> Installed:
    installed = start()
    installed.applied("-f", str(DEPLOY / "base" / "namespace.yaml"))
    installed.applied("-k", str(DEPLOY / "crds"))
    for name in ("hostsubnets", "netnamespaces"):
        installed.applied("-f", str(DEPLOY / "components" / "network-objects" / f"{name}.yaml"))
    until_established(installed)
    return installed


@pytest.fixture
def drained(cluster: Installed, tmp_path: Path) -> Iterator[Drained]:
    world = Drained(cluster, tmp_path)
    kube = world.kube
    pool = {"cidrs": ["192.168.1.96/27"]}
    kube.create(EGRESS | {"kind": "EgressPool", "metadata": {"name": "prod"}, "spec": pool})
    for number, (name, address) in enumerate(GIVEN.items()):
        kube.create(claim(address, name))
        kube.create(net_namespace(name, 100 + number, [address]))
    kube.create(net_namespace("by-hand", 200, [BY_HAND]))
    host = {"host": "node2", "hostIP": "192.168.1.18", "subnet": "10.128.2.0/23"}
    addresses = {"egressIPs": [GIVEN["one"], BY_HAND, GIVEN["two"], GIVEN["six"]]}
    kube.create(NETWORK | {"kind": "HostSubnet", "metadata": {"name": "node2"}, **host, **addresses})
    yield world
    cluster.kubectl("delete", "egressaddresses,egresspools,netnamespaces,hostsubnets", "--all")
    cluster.kubectl("-n", "hawse-system", "delete", "configmap", "hawse-drain", "--ignore-not-found")


def claim(address: str, namespace: str) -> dict[str, Any]:
    """As a worker makes it. An IPv6 address is expanded in the object's name, with dashes."""
    name = address if "." in address else "fd00-0192-0168-0001-0000-0000-0000-00a1"
    spec = {"pool": "prod", "namespace": {"name": namespace, "uid": "u"}, "origin": "automatic"}
    return EGRESS | {"kind": "EgressAddress", "metadata": {"name": name}, "spec": spec}


def net_namespace(name: str, netid: int, addresses: list[str]) -> dict[str, Any]:
    return NETWORK | {
        "kind": "NetNamespace",
        "metadata": {"name": name},
        "netname": name,
        "netid": netid,
        "egressIPs": addresses,
    }


def test_what_goes_between_a_list_and_its_patch_stops_nothing(drained: Drained) -> None:
    done = drained.run("patch?netnamespaces*two?*", "once && $kubectl delete netnamespace two >/dev/null")
    assert done.returncode == 0, done.stderr
    assert drained.left() == {name: left for name, left in EMPTY.items() if name != "two"}
    assert drained.hosted() == [BY_HAND]
    assert drained.notes() == ""


def test_what_an_admin_writes_between_a_list_and_its_patch_stays(drained: Drained) -> None:
    written = json.dumps({"egressIPs": ["192.168.1.201", GIVEN["one"], BY_HAND]})
    patch = f"$kubectl patch hostsubnet node2 --type=merge -p '{written}' >/dev/null"
    done = drained.run("patch?hostsubnets*", f"once && {patch}")
    assert done.returncode == 0, done.stderr
    assert drained.hosted() == ["192.168.1.201", BY_HAND]


def test_a_claim_that_is_made_meanwhile_is_taken_back_too(drained: Drained) -> None:
    """By a worker that has not yet seen that the pools are to go."""
    late = drained.directory / "late.json"
    late.write_text("".join(json.dumps(made) for made in (claim(LATE, "late"), net_namespace("late", 300, [LATE]))))
    done = drained.run("annotate?namespaces*", f"once && $kubectl create -f {late} >/dev/null")
    assert done.returncode == 0, done.stderr
    assert drained.left() == EMPTY | {"late": []}


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("delete?mutating*", "failed five times: kubectl delete mutating"),
        ("get?egressaddresses*", "cannot list the EgressAddresses"),
        ("delete?egressaddresses*", "EgressAddresses do not go"),
        ("get?netnamespaces*", "cannot list the netnamespaces"),
        ("patch?netnamespaces*six?*", "netnamespaces.network.openshift.io keep addresses that were given: six"),
        ("patch?hostsubnets*", "hostsubnets.network.openshift.io keep addresses that were given: node2"),
        ("get?egresspools*", "cannot list the EgressPools"),
    ],
)
def test_a_run_that_failed_says_so_and_the_next_one_does_the_rest(drained: Drained, at: str, said: str) -> None:
    done = drained.run(at, "echo away >&2; exit 1")
    assert done.returncode == 1
    assert f"drain.sh: {said}" in done.stderr
    assert "run this again" in done.stderr
    done = drained.run()
    assert done.returncode == 0, done.stderr
    assert drained.left() == EMPTY
    assert drained.hosted() == [BY_HAND]
    assert drained.kube.list("EgressAddress") == drained.kube.list("EgressPool") == []
    assert drained.notes() == ""


def test_a_run_that_was_killed_loses_nothing(drained: Drained) -> None:
    done = drained.run("get?netnamespaces*", "kill -9 $PPID; exit 1")
    assert done.returncode == -signal.SIGKILL
    assert drained.kube.list("EgressAddress") == []
    assert drained.left() != EMPTY
    done = drained.run()
    assert done.returncode == 0, done.stderr
    assert (drained.left(), drained.hosted()) == (EMPTY, [BY_HAND])


def test_claims_that_cannot_be_listed_are_not_taken_for_none(drained: Drained) -> None:
    """A list fails once the claims are to go: what they keep from leaving with a node's IP must not leave."""
    done = drained.run("get?egressaddresses*", "once || exit 1")
    assert done.returncode == 1
    assert "cannot list the EgressAddresses" in done.stderr
    assert len(drained.kube.list("EgressAddress")) == len(GIVEN)
    assert drained.left() == {name: [address] for name, address in GIVEN.items()} | {"by-hand": [BY_HAND]}
