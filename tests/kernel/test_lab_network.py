"""The lab itself: it must show what a real node does, or nothing that is tested on it means anything."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab.net.broker import Broker
from lab.net.channel import CommandFailed, LabError
from lab.net.network import NetworkLab
from lab.net.topology import Pod

pytestmark = pytest.mark.lab

NETID = 1086658
OTHER_NETID = 77
NODE1, NODE2 = IPv4Address("192.168.1.17"), IPv4Address("192.168.1.18")
EGRESS = IPv4Address("192.168.1.102")
RULE = f"-s 10.128.0.0/14 -m mark --mark 0xc0a80166 -j SNAT --to-source {EGRESS}"
MATCH = f"table=100,priority=100,ip,reg0={NETID:#x}"


@pytest.fixture
def assigned(lab: NetworkLab) -> Iterator[None]:
    """DESIGN.md section 6 by hand: the namespace leaves through node2 as 192.168.1.102."""
    mac = lab.run("node2", ["cat", "/sys/class/net/tun0/address"], check=True).stdout.strip()
    at_egress = f"set_field:{mac}->eth_dst,set_field:0xc0a80166->pkt_mark,goto_table:101"
    elsewhere = f"move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:{NODE2}->tun_dst,output:1"
    lab.run("node2", ["iptables", "-t", "nat", "-I", "OPENSHIFT-MASQUERADE", "2", *RULE.split()], check=True)
    _ofctl(lab, "node2", "add-flow", f"{MATCH} actions={at_egress}")
    lab.run("node2", ["ip", "address", "add", f"{EGRESS}/24", "dev", "eth0"], check=True)
    _ofctl(lab, "node1", "add-flow", f"{MATCH} actions={elsewhere}")
    yield
    for node in ("node1", "node2"):
        _ofctl(lab, node, "del-flows", f"table=100,ip,reg0={NETID:#x}")
    lab.run("node2", ["ip", "address", "del", f"{EGRESS}/24", "dev", "eth0"], check=True)
    lab.run("node2", ["iptables", "-t", "nat", "-D", "OPENSHIFT-MASQUERADE", *RULE.split()], check=True)


def _ofctl(lab: NetworkLab, node: str, command: str, flow: str) -> str:
    return lab.run(node, ["ovs-ofctl", "-O", "OpenFlow13", command, "br0", flow], check=True).stdout


def _packets_of_flow(lab: NetworkLab, node: str) -> int:
    # Open vSwitch adds up what the kernel counted a few times a second: have it done now.
    lab.run(node, ["ovs-appctl", "-t", "ovs-vswitchd", "revalidator/wait"], check=True)
    dump = _ofctl(lab, node, "dump-flows", f"table=100,ip,reg0={NETID:#x}")
    counted = re.findall(r"n_packets=(\d+)", dump)
    assert len(counted) == 1, dump
    return int(counted[0])


def _packets_of_rule(lab: NetworkLab) -> int:
    listing = lab.run("node2", ["iptables-save", "-c", "-t", "nat"], check=True).stdout
    counted = re.search(rf"^\[(\d+):\d+\] .*--to-source {re.escape(str(EGRESS))}$", listing, re.MULTILINE)
    assert counted, listing
    return int(counted[1])


def _seen(lab: NetworkLab, path: str) -> list[IPv4Address]:
    return [entry.source for entry in lab.access_log() if entry.path == path]


def test_without_an_assignment_a_pod_leaves_with_its_nodes_address(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    first, second = pods("p1", "node1"), pods("p2", "node2")
    assert lab.request(first, "/normal-1").source == NODE1
    assert lab.request(second, "/normal-2").source == NODE2
    assert _seen(lab, "/normal-1") == [NODE1]
    assert _seen(lab, "/normal-2") == [NODE2]


@pytest.mark.usefixtures("assigned")
def test_reference_scenario(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    away, local, stranger = pods("p1", "node1"), pods("p2", "node2"), pods("p3", "node1", OTHER_NETID)
    before = _packets_of_flow(lab, "node1"), _packets_of_flow(lab, "node2"), _packets_of_rule(lab)
    assert before == (0, 0, 0)
    assert lab.request(away, "/away").ok
    assert _seen(lab, "/away") == [EGRESS]
    assert _packets_of_flow(lab, "node1") > 0
    through_egress = _packets_of_flow(lab, "node2")
    assert through_egress >= _packets_of_flow(lab, "node1")
    assert _packets_of_rule(lab) == 1  # nat sees a connection's first packet only
    assert lab.request(local, "/local").ok
    assert _seen(lab, "/local") == [EGRESS]
    assert _packets_of_flow(lab, "node2") > through_egress
    assert _packets_of_rule(lab) == 2
    assert lab.request(stranger, "/stranger").ok
    assert _seen(lab, "/stranger") == [NODE1]


@pytest.mark.usefixtures("assigned")
def test_traffic_dropped_at_its_egress_node_never_reaches_the_wire(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    pod = pods("p1", "node1")
    _ofctl(lab, "node2", "mod-flows", f"{MATCH} actions=drop")
    with lab.capture("web", f"host {EGRESS} or host {NODE1} or host {NODE2}") as capture:
        assert not lab.request(pod, "/dropped", timeout=1).ok
    assert [packet for packet in capture.packets() if packet.protocol == "tcp"] == []
    assert _seen(lab, "/dropped") == []


def test_pods_of_one_namespace_meet_across_nodes_and_others_do_not(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    first, second, stranger = pods("p1", "node1"), pods("p2", "node2"), pods("p3", "node2", OTHER_NETID)
    assert lab.run("p1", ["ping", "-c1", "-W2", str(second.ip)]).returncode == 0
    assert lab.run("p2", ["ping", "-c1", "-W2", str(first.ip)]).returncode == 0
    assert lab.run("p1", ["ping", "-c1", "-W1", str(stranger.ip)]).returncode == 1
    # A full-size packet fits the tunnel, a larger one does not.
    assert lab.run("p1", ["ping", "-c1", "-W2", "-Mdo", "-s1422", str(second.ip)]).returncode == 0
    assert lab.run("p1", ["ping", "-c1", "-W1", "-Mdo", "-s1423", str(second.ip)]).returncode == 1


def test_a_capture_shows_what_passed_and_when(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    pod = pods("p1", "node1")
    with lab.capture("outside", "tcp port 80") as capture:
        began = time.time()
        assert lab.request(pod).ok
        ended = time.time()
    first, *_ = capture.packets()
    assert (first.protocol, first.source, first.destination, first.syn) == ("tcp", NODE1, lab.web, True)
    assert first.destination_port == 80
    assert first.source_mac == "02:00:c0:a8:01:11"
    assert began - 0.005 < first.time < ended + 0.005
    assert capture.path.exists()


def test_streams_count_every_attempt(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    pod, quiet = pods("p1", "node1"), pods("p2", "node2")
    requests = lab.traffic(pod, interval=0.05, timeout=2)
    datagrams = lab.traffic(quiet, interval=0.02, protocol="udp")
    time.sleep(1)
    cutting = time.time()
    lab.isolate("node1")
    cut = time.time()
    time.sleep(3)
    restoring = time.time()
    lab.restore("node1")
    restored = time.time()
    _until(lambda: any(attempt.source and attempt.began > restored for attempt in requests.attempts()))
    attempts = requests.stop()
    sent = datagrams.stop()
    assert [attempt.number for attempt in attempts] == list(range(len(attempts)))
    assert len(attempts) > 10
    assert all(attempt.source == NODE1 for attempt in attempts if attempt.ended < cutting - 0.1)
    assert {attempt.outcome for attempt in attempts if cut + 0.1 < attempt.began < restoring - 2.1} <= {
        "timeout",
        "EHOSTUNREACH",
    }
    assert attempts[-1].outcome == "answered"
    numbers = [str(attempt.number) for attempt in sent]
    _until(lambda: [entry.text for entry in lab.datagrams() if entry.source == NODE2] == numbers)


def _until(check: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_open_vswitch_restarts_as_on_a_node(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    pod = pods("p1", "node1")
    lab.restart_ovs("node1", reinstall=False)
    assert "table=100" not in lab.run("node1", ["ovs-ofctl", "-O", "OpenFlow13", "dump-flows", "br0"]).stdout
    for port, number in (("vxlan0", 1), ("tun0", 2), (f"v-{pod.name}", pod.ofport)):
        assert int(lab.run("node1", ["ovs-vsctl", "get", "interface", port, "ofport"], check=True).stdout) == number
    assert not lab.request(pod, timeout=0.5).ok
    lab.reinstall_flows("node1")
    assert lab.request(pod).source == NODE1
    lab.restart_ovs("node1")
    assert lab.request(pod).source == NODE1


def test_a_node_that_was_off_comes_back_with_nothing_but_its_base(lab: NetworkLab, pods: Callable[..., Pod]) -> None:
    pod, other = pods("p1", "node1"), pods("p2", "node2")
    lab.run("node1", ["ip", "address", "add", f"{EGRESS}/24", "dev", "eth0"], check=True)
    process = lab.spawn("node1", ["sleep", "600"])
    lab.power_off("node1")
    assert process.wait(5) == -9
    assert lab.run("web", ["ping", "-c1", "-W1", str(NODE1)]).returncode == 1
    assert lab.request(other).source == NODE2
    lab.power_on("node1")
    assert str(EGRESS) not in lab.run("node1", ["ip", "address"], check=True).stdout
    assert lab.request(pod).source == NODE1


def test_commands(lab: NetworkLab) -> None:
    done = lab.run("node1", ["sh", "-c", "cat; hostname; echo $EXTRA >&2; exit 3"], input="in\n", env={"EXTRA": "x"})
    assert (done.returncode, done.stdout, done.stderr) == (3, "in\nnode1.ocp.io\n", "x\n")
    with pytest.raises(CommandFailed, match="no such thing"):
        lab.run("node2", ["sh", "-c", "echo no such thing >&2; exit 1"], check=True)
    with pytest.raises(TimeoutError, match="sleep 30"):
        lab.run("root", ["sleep", "30"], timeout=0.3)
    with pytest.raises(LabError, match="no namespace 'nowhere'"):
        lab.run("nowhere", ["true"])
    with pytest.raises(LabError, match="FileNotFoundError"):
        lab.spawn("web", ["/no/such/program"])


def test_the_hosts_files_are_safe_and_the_work_directory_is_shared(lab: NetworkLab) -> None:
    probe = Path(__file__).with_name("written-from-inside")
    assert "Read-only file system" in lab.run("root", ["touch", str(probe)]).stderr
    assert not probe.exists()
    lab.run("node1", ["sh", "-c", f"echo yes > {lab.workdir}/shared"], check=True)
    assert (lab.workdir / "shared").read_text() == "yes\n"


def test_calls_run_at_once(lab: NetworkLab) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(lambda _: lab.run("node1", ["sleep", "1"]).returncode, range(12)))
    assert results == [0] * 12
    assert time.monotonic() - began < 5


def test_a_spawned_process_is_followed_and_killed(lab: NetworkLab) -> None:
    script = "import time; print('here', flush=True); time.sleep(600)"
    process = lab.spawn("node2", [sys.executable, "-I", "-S", "-c", script], log="spawned")
    deadline = time.monotonic() + 10
    while "here" not in (lab.workdir / "spawned.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None
    process.kill()
    assert process.wait(5) == -9
    short = lab.spawn("node2", ["sh", "-c", "echo out; echo err >&2; exit 4"], log="short")
    assert short.wait(5) == 4
    assert (lab.workdir / "short.log").read_text() == "out\nerr\n"


def test_clocks_agree(lab: NetworkLab) -> None:
    before = time.time()
    inside = float(lab.run("root", ["date", "+%s.%N"], check=True).stdout)
    assert before - 0.005 < inside < time.time() + 0.005


def test_the_broker_is_reached_over_the_management_network_alone(
    lab: NetworkLab, broker: Broker, pods: Callable[..., Pod]
) -> None:
    pod = pods("p1", "node1")
    address = broker.tcp_url.removeprefix("redis://").removesuffix("/0").replace(":", "/")
    ping = ["bash", "-c", f"exec 3<>/dev/tcp/{address}; echo PING >&3; head -c5 <&3"]
    lab.isolate("node1")
    try:
        assert lab.run("node1", ping, timeout=5).stdout == "+PONG"
    finally:
        lab.restore("node1")
    with lab.capture("node1", "tcp port 6379", interface="mgmt") as capture:
        assert lab.run(pod.name, ping, timeout=5).returncode != 0
    assert capture.packets() == []


def test_a_killed_broker_forgets_unless_it_is_persistent(broker: Broker) -> None:
    redis = pytest.importorskip("redis")
    client = redis.Redis.from_url(broker.unix_url)
    client.set("key", "value")
    broker.restart()
    assert client.get("key") is None
    with Broker(broker.directory.with_name("kept"), port=0, persistent=True) as kept:
        client = redis.Redis.from_url(kept.unix_url)
        client.set("key", "value")
        kept.restart()
        assert client.get("key") == b"value"
