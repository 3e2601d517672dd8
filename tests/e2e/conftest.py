"""All of Hawse on a lab of its own, shared by the tests of this folder. Each test uses namespaces of its own.

The suite runs twice: on the embedded cluster, then on the real API server. A module that concerns a node alone, which
never speaks to an API server, says so and runs once::

    pytestmark = pytest.mark.parametrize("stack", ["embedded"], indirect=True)
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
import yaml

from egress.adapters.ledger import Ledger
from egress.addresses import Address, object_name
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster
from lab.kube import Json
from lab.net import preflight
from lab.net.topology import Pod
from lab.real_cluster import RealCluster
from lab.stack import Stack, wait_for
from lab.tickets import Receiver

PATIENCE = 60.0
WEB = IPv4Address("192.168.1.5")


@pytest.fixture(scope="session")
def machine() -> None:
    """Skips what needs the lab, with what to do; in CI nothing is skipped."""
    problems = preflight.check()
    if problems:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("; ".join(problems))


@pytest.fixture(scope="session")
def firewall() -> Iterator[Receiver]:
    """The firewall team's ticket system."""
    with Receiver() as running:
        yield running


@pytest.fixture(scope="session")
def callback_secret() -> str:
    """What the firewall team signs its answers with."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


@pytest.fixture(scope="session")
def profiles(firewall: Receiver, callback_secret: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of ticket profiles: one, `firewall`."""
    directory = tmp_path_factory.mktemp("tickets")
    for name, secret in (("callback", callback_secret), ("signing", "whsec_" + base64.b64encode(b"x" * 32).decode())):
        (directory / name).write_text(secret)
    profile = {
        "name": "firewall",
        "type": "webhook",
        "url": f"{firewall.url}/events",
        "secretFiles": [str(directory / "signing")],
        "callback": {"secretFiles": [str(directory / "callback")]},
    }
    file = directory / "profiles.yaml"
    file.write_text(yaml.safe_dump({"cluster": "lab", "profiles": [profile]}))
    return file


@pytest.fixture(scope="session", params=["embedded", "real"])
def stack(
    request: pytest.FixtureRequest, machine: None, tmp_path_factory: pytest.TempPathFactory, profiles: Path
) -> Iterator[Stack]:
    cluster: Callable[[Path], Cluster] = EmbeddedCluster
    if request.param == "real":
        request.getfixturevalue("real_binaries")
        cluster = RealCluster
    settings = {
        "HAWSE_RECONCILE_INTERVAL": "3",
        "HAWSE_SWEEP_INTERVAL": "1",
        "HAWSE_REFUSED_RETRY": "2",
        # A broker that a busy machine holds up is not away: without these a namespace would have no address, by design,
        # and its network before every node drops it.
        "HAWSE_REDIS_TIMEOUT": "2",
        "HAWSE_FENCE_WAIT": "30",
        "HAWSE_TICKET_PROFILES": str(profiles),
    }
    with Stack(tmp_path_factory.mktemp("stack"), settings=settings, cluster=cluster) as running:
        # What a test has used is in quarantine for ten minutes, in which a quick machine runs half of the tests.
        ranges = ("192.168.1.102-192.168.1.160", "192.168.1.220-192.168.1.249")
        running.create_pool("pool", *ranges, namespaceSelector={"matchLabels": {"egress": "yes"}})
        running.create_pool(
            "guarded",
            "192.168.1.170-192.168.1.179",
            approval="required",
            ticketProfile="firewall",
            namespaceSelector={"matchLabels": {"egress": "guarded"}},
        )
        offered(running, "pool", "guarded")
        yield running


def offered(stack: Stack, *pools: str) -> None:
    """Waits until admission gives addresses of these pools."""
    with closing(Ledger(stack.broker.unix_url)) as ledger:
        wait_for(
            "the pools to be offered",
            lambda: ledger.is_ready() and {pool.name for pool in ledger.offer().pools} >= set(pools),
            PATIENCE,
        )


@dataclass
class Team:
    """A namespace under test: its name and NetID, and a pod of it on each node."""

    stack: Stack
    name: str
    netid: int
    pods: dict[str, Pod] = field(default_factory=dict)

    def create(self, annotations: dict[str, str] | None = None) -> IPv4Address:
        """Creates the namespace; the address in its annotation."""
        (address,) = self.create_of("yes", annotations)
        assert isinstance(address, IPv4Address)
        return address

    def create_of(self, label: str, annotations: dict[str, str] | None = None) -> list[Address]:
        """Creates the namespace with the label `egress: LABEL`; the addresses in its annotation."""
        namespace = self.stack.create_namespace(self.name, annotations, egress=label)
        text: str = namespace["metadata"]["annotations"]["egress.hawse.dev/addresses"]
        return [ip_address(each) for each in text.split(",")]

    def bind(self, **fields: object) -> None:
        """Makes the NetNamespace, as OpenShift SDN would."""
        head: Json = {"apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "metadata": {"name": self.name}}
        self.stack.kube.create(head | {"netname": self.name, "netid": self.netid} | fields)

    def claim(self, address: Address) -> Json:
        """The EgressAddress object, or nothing."""
        return self.stack.kube.get("EgressAddress", object_name(address)) or {}

    def phase(self, address: Address) -> str:
        phase: str = self.claim(address).get("status", {}).get("phase", "")
        return phase

    def ready(self, address: Address) -> None:
        """Waits until the address is Ready."""
        try:
            wait_for("Ready", lambda: self.phase(address) == "Ready", PATIENCE)
        except TimeoutError:
            pytest.fail(f"{address} of {self.name} is not Ready: {self.claim(address).get('status')}")

    def flow(self, node: str, *, ipv6: bool = False) -> str:
        """The actions of the node's flow for this namespace's packets of a family, or nothing."""
        family = "ipv6" if ipv6 else "ip"
        for flow in self.stack.flows(node):
            if f",{family},reg0={self.netid:#x} actions=" in flow:
                return flow.partition("actions=")[2]
        return ""

    def steered(self, source: Address) -> None:
        """Waits until every pod of it is seen with `source`, in its family."""
        ipv6 = source.version == 6
        for pod in self.pods.values():
            wait_for(
                f"{pod.name} as {source}",
                lambda pod=pod: self.stack.network.request(pod, timeout=1, ipv6=ipv6).source == source,  # type: ignore[misc]
                PATIENCE,
            )

    def released(self) -> None:
        """Waits until no node has a flow of it."""
        ours = f",reg0={self.netid:#x} actions="
        nodes = self.stack.network.nodes
        wait_for(
            "the release", lambda: not any(ours in flow for node in nodes for flow in self.stack.flows(node)), PATIENCE
        )


def at_rest(stack: Stack) -> None:
    """Waits until no node has rules of an address that it does not hold: those of what an earlier test released outlive
    their flow for ten seconds."""

    def rests(node: str, *, ipv6: bool) -> bool:
        rules = " ".join(stack.rules(node, ipv6=ipv6))
        held = " ".join(stack.addresses(node, ipv6=ipv6))
        return all(f" {address}/" in held for address in re.findall(r"--to-source (\S+)", rules))

    for node in stack.network.nodes:
        for ipv6 in (False, True):
            wait_for(f"{node} at rest", lambda node=node, ipv6=ipv6: rests(node, ipv6=ipv6), PATIENCE)  # type: ignore[misc]


_numbers = itertools.count(1)


@pytest.fixture
def team(stack: Stack) -> Iterator[Team]:
    """A namespace that does not exist yet, with its NetNamespace and a pod on each node."""
    number = next(_numbers)
    team = Team(stack, f"team-{number}", 0x100000 + number)
    team.bind()
    for index, node in enumerate(stack.network.nodes, 1):
        team.pods[node] = stack.network.add_pod(f"p{number}-{index}", node, team.netid)
    yield team
    for node, runner in stack.runners.items():  # a test that failed between a runner's death and its start
        if runner.poll() is not None:
            stack.start_runner(node)
    stack.kube.delete("Namespace", team.name)
    wait_for("deletion", lambda: stack.kube.get("Namespace", team.name) is None, PATIENCE)
    team.released()
    stack.kube.delete("NetNamespace", team.name)
    for pod in team.pods.values():
        stack.network.remove_pod(pod.name)


@pytest.fixture
def ledger(stack: Stack) -> Iterator[Ledger]:
    ledger = Ledger(stack.broker.unix_url)
    yield ledger
    ledger.close()
