"""The lab's IPv6: beside IPv4, on the same nodes and bridges, so that what is tested on it means something."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address

import pytest

from lab.net.network import NetworkLab
from lab.net.topology import Pod

pytestmark = pytest.mark.lab

NETID = 1086658
OTHER_NETID = 77
NODE1, NODE2 = IPv6Address("fd00:192:168:1::17"), IPv6Address("fd00:192:168:1::18")
EGRESS = IPv6Address("fd00:192:168:1::102")
MARK = "0x60000001"
RULE = f"-s fd00:10:128::/56 -m mark --mark {MARK} -j SNAT --to-source {EGRESS}"
MATCH = f"table=100,priority=100,ipv6,reg0={NETID:#x}"
TO_WEB = "dst host fd00:192:168:1::5 and (tcp or udp) and ip6[7] < 64"


@pytest.fixture
def assigned(lab: NetworkLab) -> Iterator[None]:
    """By hand: the namespace's IPv6 traffic leaves through node2 as EGRESS."""
    mac = lab.run("node2", ["cat", "/sys/class/net/tun0/address"], check=True).stdout.strip()
    at_egress = f"set_field:{mac}->eth_dst,set_field:{MARK}->pkt_mark,goto_table:101"
    elsewhere = "move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:192.168.1.18->tun_dst,output:1"
    lab.run("node2", ["ip6tables", "-t", "nat", "-I", "OPENSHIFT-MASQUERADE", "2", *RULE.split()], check=True)
    _flow(lab, "node2", f"{MATCH} actions={at_egress}")
    lab.run("node2", ["ip", "address", "add", f"{EGRESS}/64", "dev", "eth0", "nodad"], check=True)
    _flow(lab, "node1", f"{MATCH} actions={elsewhere}")
    yield
    for node in ("node1", "node2"):
        command = ["ovs-ofctl", "-O", "OpenFlow13", "del-flows", "br0", f"table=100,ipv6,reg0={NETID:#x}"]
        lab.run(node, command, check=True)
    lab.run("node2", ["ip", "address", "del", f"{EGRESS}/64", "dev", "eth0"], check=True)
    lab.run("node2", ["ip6tables", "-t", "nat", "-D", "OPENSHIFT-MASQUERADE", *RULE.split()], check=True)


def _flow(lab: NetworkLab, node: str, flow: str) -> None:
    lab.run(node, ["ovs-ofctl", "-O", "OpenFlow13", "add-flow", "br0", flow], check=True)


def test_without_an_assignment_a_pod_leaves_with_its_nodes_address(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    first, second = pods("p1", "node1"), pods("p2", "node2")
    with lab.capture("outside", TO_WEB) as capture:
        assert lab.request(first, "/v6-1", ipv6=True).source == NODE1
        assert lab.request(second, "/v6-2", ipv6=True).source == NODE2
        seen = capture.stop()
    assert {packet.source for packet in seen} == {NODE1, NODE2}
    assert {packet.destination_port for packet in seen if packet.syn} == {80}
    assert [entry.source for entry in lab.access_log() if entry.path.startswith("/v6-")] == [NODE1, NODE2]


@pytest.mark.usefixtures("assigned")
def test_the_reference_scenario_in_ipv6(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    away, local, stranger = pods("p1", "node1"), pods("p2", "node2"), pods("p3", "node1", OTHER_NETID)
    assert lab.request(away, "/away6", ipv6=True).source == EGRESS
    assert lab.request(local, "/local6", ipv6=True).source == EGRESS
    assert lab.request(stranger, ipv6=True).source == NODE1
    # The other family is another matter.
    assert str(lab.request(away).source) == "192.168.1.17"
    datagrams = lab.traffic(away, interval=0.05, protocol="udp", ipv6=True)
    requests = lab.traffic(local, interval=0.05, ipv6=True)
    deadline = time.monotonic() + 20
    while not any(attempt.source for attempt in requests.attempts()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {attempt.source for attempt in requests.stop()} == {EGRESS}
    assert datagrams.stop()
    assert {entry.source for entry in lab.datagrams() if entry.source.version == 6} == {EGRESS}


@pytest.mark.usefixtures("assigned")
def test_what_the_bridge_drops_never_reaches_the_wire(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    pod = pods("p1", "node1")
    _flow(lab, "node1", f"{MATCH} actions=drop")
    with lab.capture("outside", TO_WEB) as capture:
        assert not lab.request(pod, timeout=1, ipv6=True).ok
        assert capture.stop() == []
    # Neither the node's gateway nor the cluster's other pods are cut off: neighbour discovery is not egress traffic.
    other = pods("p2", "node2")
    lab.run("p1", ["ip", "-6", "neighbour", "flush", "dev", "eth0"], check=True)
    assert lab.run("p1", ["ping", "-6", "-c1", "-W2", str(other.ip6)]).returncode == 0


def test_pods_of_one_namespace_meet_across_nodes_and_others_do_not(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    first, second, stranger = pods("p1", "node1"), pods("p2", "node2"), pods("p3", "node2", OTHER_NETID)
    assert lab.run("p1", ["ping", "-6", "-c1", "-W2", str(second.ip6)]).returncode == 0
    assert lab.run("p2", ["ping", "-6", "-c1", "-W2", str(first.ip6)]).returncode == 0
    for asking in ("p1", "p2"):
        assert lab.run(asking, ["ping", "-6", "-c1", "-W1", str(stranger.ip6)]).returncode == 1
    assert lab.run("p1", ["ping", "-6", "-c1", "-W2", "-Mdo", "-s1402", str(second.ip6)]).returncode == 0


def test_a_capture_reads_neighbour_discovery(lab: NetworkLab) -> None:
    with lab.capture("outside", "icmp6") as capture:
        lab.run("web", ["ip", "-6", "neighbour", "flush", "dev", "eth0"], check=True)
        assert lab.run("web", ["ping", "-6", "-c1", "-W2", str(NODE1)]).returncode == 0
        seen = capture.stop()
    asked = next(packet for packet in seen if packet.neighbour == "solicitation" and packet.target == NODE1)
    told = next(packet for packet in seen if packet.neighbour == "advertisement" and packet.target == NODE1)
    assert asked.source == lab.web6
    assert told.source_mac == "02:00:c0:a8:01:11"
    assert not told.gratuitous


def test_a_node_that_was_off_and_a_bridge_that_was_restarted(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    pod = pods("p1", "node1")
    lab.power_on("node1")
    assert lab.request(pod, ipv6=True).source == NODE1
    lab.restart_ovs("node1")
    assert lab.request(pod, ipv6=True).source == NODE1
