"""Not one packet of a namespace that has an egress address leaves with a node's IP: seen by a capture on the link."""

from __future__ import annotations

import sys
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from egress.adapters.ledger import Ledger
from lab.net.capture import Packet
from lab.stack import Stack, wait_for

from .conftest import at_rest

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("stack", ["embedded"], indirect=True),  # what a node does, whatever the API server
]

PYTHON = Path(sys.executable)
KILLER = Path(__file__).with_name("killing_runner.py")
TO_WEB = "dst host 192.168.1.5 and (tcp or udp) and ip[8] < 64"
"""What the pods send: it has been routed, which takes one off its TTL of 64. A node's own answers to late replies, ICMP
where an address was released and a reset where a connection was ended, are not theirs."""


def leaks(packets: list[Packet], stack: Stack) -> list[Packet]:
    """The packets to the web server that carry a node's own IP."""
    own = {spec.address for spec in stack.network.nodes.values()}
    return [packet for packet in packets if packet.source in own]


def dropped_on_every_node(team, stack: Stack) -> None:  # noqa: ANN001
    """Waits until every node knows the namespace: from here on its promise holds."""
    wait_for("a flow on every node", lambda: all(team.flow(node) for node in stack.network.nodes), 60)


def test_assignment_reassignment_and_restart(team, stack: Stack) -> None:  # noqa: ANN001
    network = stack.network
    # Connections that were begun before the assignment: the kernel has translated them to a node's IP already.
    streams = [network.traffic(pod, interval=0.1, protocol="udp") for pod in team.pods.values()]
    streams += [network.traffic(pod, interval=0.2) for pod in team.pods.values()]
    address = team.create()
    dropped_on_every_node(team, stack)
    with network.capture("outside", TO_WEB) as capture:
        team.ready(address)
        team.steered(address)
        # By hand to another address, then the runner is killed and comes back, twice.
        other = IPv4Address("192.168.1.201")
        host = network.nodes["node2"].host
        hosted = [*(stack.kube.get("HostSubnet", host) or {})["egressIPs"]]
        stack.kube.patch("HostSubnet", host, {"egressIPs": [*hosted, str(other)]})
        stack.kube.patch("NetNamespace", team.name, {"egressIPs": [str(other)]})
        # The namespace's own task adds its address again beside the manual one: two on one node, so all is dropped.
        wait_for("the conflict", lambda: team.flow("node1") == "drop", 60)
        stack.kube.patch("HostSubnet", host, {"egressIPs": hosted})
        for node in network.nodes:
            stack.runners[node].kill()
            stack.start_runner(node)
        stack.kube.patch("NetNamespace", team.name, {"egressIPs": [str(address)]})
        team.steered(address)
        time.sleep(1)
        seen = capture.stop()
    for stream in streams:
        stream.stop()
    assert {packet.source for packet in seen} == {address}, leaks(seen, stack)[:5]
    ports = {packet.source_port for packet in seen if packet.protocol == "udp"}
    assert len(ports) == len(team.pods), "a flow that was begun before the assignment never came back"


def test_from_the_first_packet_on(stack: Stack) -> None:
    """A new namespace whose pods begin to send the moment its network exists. The capture begins before its CREATE."""
    name = "from-the-start"
    network = stack.network
    pods, streams = [], []
    with network.capture("outside", TO_WEB) as capture:
        made = stack.create_namespace(name, egress="yes")
        address = IPv4Address(made["metadata"]["annotations"]["egress.hawse.dev/addresses"])
        bound = wait_for("its network", lambda: stack.kube.get("NetNamespace", name), 60, every=0.02)
        for index, node in enumerate(network.nodes, 1):
            pods.append(network.add_pod(f"start-{index}", node, bound["netid"]))
            streams += [network.traffic(pods[-1], interval=0.05, protocol=kind) for kind in ("udp", "http")]
        for pod in pods:
            wait_for(
                f"{pod.name} as {address}",
                lambda pod=pod: network.request(pod, timeout=1).source == address,  # type: ignore[misc]
                60,
            )
        for stream in streams:
            stream.stop()
        seen = capture.stop()
    for pod in pods:
        network.remove_pod(pod.name)
    stack.kube.delete("Namespace", name)
    wait_for("its end", lambda: stack.kube.get("NetNamespace", name) is None, 60)
    ours = f",reg0={bound['netid']:#x} "
    wait_for("the release", lambda: not any(ours in flow for node in network.nodes for flow in stack.flows(node)), 60)
    wait_for("its address gone", lambda: not any(f" {address}/" in line for line in stack.addresses("node2")), 60)
    assert {packet.source for packet in seen} == {address}, leaks(seen, stack)[:5]


CLAIMING = (
    "flows.apply:before:1",
    "flows.apply:after:1",
    "arp.probe:after:1",
    "nat.apply:before:1",
    "nat.apply:after:1",
    "flows.apply:after:2",
    "links.apply:after:1",
    "arp.announce:after:1",
)
RELEASING = (
    "flows.apply:after:1",
    "links.apply:after:1",
    "conntrack.forget:before:1",
    "conntrack.forget:after:1",
    "nat.apply:after:1",
)


@pytest.mark.parametrize("point", CLAIMING)
def test_runner_killed_while_it_claims(team, stack: Stack, point: str) -> None:  # noqa: ANN001
    restart(stack, point)
    address = team.create()
    wait_for(f"the runner to die at {point}", lambda: stack.runners["node2"].poll() is not None, 60)
    wait_for("the other node to drop", lambda: team.flow("node1") == "drop", 60)
    # The pods of the egress node itself are safe from the moment its runner has set a flow; before that nobody has
    # told their node that they have an address.
    guarded = [team.pods["node1"]] + ([team.pods["node2"]] if team.flow("node2") else [])
    with stack.network.capture("outside", TO_WEB) as capture:
        streams = [
            stack.network.traffic(pod, interval=0.1, protocol=kind) for pod in guarded for kind in ("udp", "http")
        ]
        time.sleep(2)
        stack.start_runner("node2")
        team.ready(address)
        team.steered(address)
        wait_for("packets", lambda: any(p.source == address for p in capture.packets()), 60)
        for stream in streams:
            stream.stop()
        seen = capture.stop()
    assert {packet.source for packet in seen} == {address}, leaks(seen, stack)[:5]


@pytest.mark.parametrize("point", RELEASING)
def test_runner_killed_while_it_releases(team, stack: Stack, point: str) -> None:  # noqa: ANN001
    """An address put by hand on the namespace and its node; it leaves the node, whose runner is killed on the way."""
    address = IPv4Address("192.168.1.202")
    host = stack.network.nodes["node2"].host
    hosted = [*(stack.kube.get("HostSubnet", host) or {}).get("egressIPs", [])]
    stack.create_namespace(team.name)
    stack.kube.patch("HostSubnet", host, {"egressIPs": [*hosted, str(address)]})
    stack.kube.patch("NetNamespace", team.name, {"egressIPs": [str(address)]})
    team.steered(address)
    at_rest(stack)  # or the runner would forget what an earlier test released, and die of that
    restart(stack, point)
    with stack.network.capture("outside", TO_WEB) as capture:
        pods = team.pods.values()
        streams = [stack.network.traffic(pod, interval=0.1, protocol=kind) for pod in pods for kind in ("udp", "http")]
        stack.kube.patch("HostSubnet", host, {"egressIPs": hosted})
        wait_for(f"the runner to die at {point}", lambda: stack.runners["node2"].poll() is not None, 60)
        time.sleep(1)
        stack.start_runner("node2")
        wait_for("the release", lambda: not any(f" {address}/" in line for line in stack.addresses("node2")), 60)
        wait_for("drops", lambda: {team.flow(node) for node in stack.network.nodes} == {"drop"}, 60)
        stack.kube.patch("HostSubnet", host, {"egressIPs": [*hosted, str(address)]})
        team.steered(address)
        for stream in streams:
            stream.stop()
        seen = capture.stop()
    assert {packet.source for packet in seen} == {address}, leaks(seen, stack)[:5]
    stack.kube.patch("NetNamespace", team.name, {"egressIPs": []})
    stack.kube.patch("HostSubnet", host, {"egressIPs": hosted})


def test_nobody_leaves_with_an_address_that_is_anothers_now(team, stack: Stack, ledger: Ledger) -> None:  # noqa: ANN001
    """A namespace goes, its pods linger and send on; its address goes to another namespace on the same node."""
    labels = {"matchLabels": {"egress": "brief"}}
    stack.create_pool("brief", "192.168.1.190", namespaceSelector=labels, quarantine="1s")
    address = IPv4Address("192.168.1.190")
    first = f"{team.name}-first"
    netid = team.netid | 0x80000
    head = {"apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "metadata": {"name": first}}
    stack.kube.create(head | {"netname": first, "netid": netid})
    pods = [stack.network.add_pod(f"l{number}-{team.netid & 0xFF}", f"node{number}", netid) for number in (1, 2)]
    stack.create_namespace(first, egress="brief")
    for pod in pods:
        wait_for("its address", lambda pod=pod: stack.network.request(pod, timeout=1).source == address, 60)  # type: ignore[misc]
    lingering = [stack.network.traffic(pod, interval=0.1, protocol="udp") for pod in pods]
    time.sleep(1)
    at_rest(stack)  # or the runner would forget what an earlier test released, and die of that
    restart(stack, "conntrack.forget:before:1")
    stack.kube.delete("Namespace", first)
    wait_for("the runner to die", lambda: stack.runners["node2"].poll() is not None, 60)
    stack.start_runner("node2")
    wait_for("the end of the quarantine", lambda: address not in ledger.usage(), 60)
    stack.create_namespace(team.name, egress="brief")
    team.ready(address)
    with stack.network.capture("outside", "udp and dst host 192.168.1.5") as capture:
        team.steered(address)
        time.sleep(3)
        seen = capture.stop()
    for stream in lingering:
        stream.stop()
    stack.kube.delete("NetNamespace", first)
    for pod in pods:
        stack.network.remove_pod(pod.name)
    stack.kube.delete("EgressPool", "brief")
    assert seen, "the lingering pods still send"
    assert not [packet for packet in seen if packet.source == address]


def restart(stack: Stack, point: str) -> None:
    """Replaces node2's runner by one that dies at `point`, and waits until it has taken the node as it is."""
    stack.runners["node2"].kill()
    now = time.time()
    stack.start_runner("node2", [PYTHON, "-P", KILLER, point])
    wait_for("the runner's report", lambda: stack.reported("node2", now), 60)
