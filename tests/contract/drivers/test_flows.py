"""Open vSwitch alone: what is missing, what is refused, what is recognised."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from egress.delta import FlowChange
from egress.program import COOKIE, GROUPS, Flow, Group
from lab.fakes.node import fake_node
from lab.host_node import Netns
from node_runner.drivers.errors import BridgeMissing, OpenVSwitchRefused, OpenVSwitchUnavailable, PortMissing
from node_runner.drivers.flows import Bridge, _has_ipv6
from node_runner.drivers.ports import Flows, Path

from .conftest import foreign_flow, run


@pytest.fixture(params=["fake", "real"])
def flows(request: pytest.FixtureRequest) -> Flows:
    if request.param == "fake":
        fake = fake_node().flows
        fake.put(foreign_flow(0xFFFF))
        return fake
    request.getfixturevalue("open_vswitch")
    return Bridge()


def drop(netid: int, table: int = 100) -> Flow:
    return Flow(table, 100, f"ip,reg0={netid:#x}", COOKIE | netid, "drop")


def test_facts_are_read(flows: Flows) -> None:
    facts = flows.facts()
    assert facts.vxlan_port == 1
    assert len(facts.tun_mac) == 17


def test_a_missing_bridge_is_named() -> None:
    fake = fake_node().flows
    fake.present = False
    for call in (fake.facts, fake.read):
        with pytest.raises(BridgeMissing, match="br0"):
            call()


@pytest.mark.usefixtures("open_vswitch")
def test_missing_parts_are_named() -> None:
    for call in (Bridge("br9").facts, Bridge("br9").read, lambda: Bridge("br9").apply(FlowChange(add=(drop(1),)))):
        with pytest.raises(BridgeMissing, match="br9"):
            call()
    with pytest.raises(PortMissing, match="vxlan7"):
        Bridge(vxlan="vxlan7").facts()
    with pytest.raises(PortMissing, match="tun7"):
        Bridge(tun="tun7").facts()
    run("ovs-vsctl", "set", "interface", "vxlan0", "type=nonsense")
    with pytest.raises(PortMissing, match="no OpenFlow port number"):
        Bridge().facts()


def test_without_open_vswitch_nothing_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("OVS_RUNDIR", str(tmp_path))
    with pytest.raises(OpenVSwitchUnavailable, match="is it running"):
        Bridge().facts()
    with pytest.raises((OpenVSwitchUnavailable, BridgeMissing)):
        Bridge().read()


def test_a_refused_bundle_changes_nothing(flows: Flows) -> None:
    flows.apply(FlowChange(add=(drop(1),)))
    before = flows.read(everywhere=True)
    bad = Flow(100, 100, "ip,reg0=0x2", COOKIE | 2, f"group:{GROUPS[4] | 2}")
    with pytest.raises(OpenVSwitchRefused):
        flows.apply(FlowChange(add=(drop(3), bad), remove=(drop(1),)))
    assert flows.read(everywhere=True) == before


def test_a_bundle_that_was_made_ready_for_is_as_any_other(flows: Flows) -> None:
    flows.ready()
    flows.close()
    flows.ready()
    flows.apply(FlowChange(add=(drop(1),)))
    flows.apply(FlowChange(add=(drop(3),)))
    assert flows.read().flows == {drop(1), drop(3)}
    bad = Flow(100, 100, "ip,reg0=0x2", COOKIE | 2, f"group:{GROUPS[4] | 2}")
    flows.ready()
    with pytest.raises(OpenVSwitchRefused):
        flows.apply(FlowChange(add=(bad,), remove=(drop(1),)))
    assert flows.read().flows == {drop(1), drop(3)}


def test_deleting_never_hits_a_foreign_flow_nor_minds_a_missing_one(flows: Flows) -> None:
    before = flows.read()
    assert foreign_flow(0xFFFF).key in before.foreign
    flows.apply(FlowChange(remove=(drop(0xFFFF), drop(0x99))))
    assert flows.read() == before


def test_our_flows_in_other_tables_and_orphaned_groups_are_found_at_a_start(flows: Flows) -> None:
    tunnel = "move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:192.168.1.19->tun_dst,output:1"
    orphan = Group(GROUPS[4] | 9, (tunnel, tunnel))
    stray = drop(9, table=99)
    flows.apply(FlowChange(add=(drop(1), stray), add_groups=(orphan,)))
    assert flows.read().flows == {drop(1)}
    everything = flows.read(everywhere=True)
    assert everything.flows == {drop(1), stray}
    assert everything.groups == {orphan}
    flows.apply(FlowChange(remove=(drop(1), stray), remove_groups=(orphan,)))
    assert flows.read(everywhere=True).flows == frozenset()


@pytest.mark.usefixtures("open_vswitch")
def test_a_flow_of_ours_that_somebody_changed_is_still_ours() -> None:
    text = f"cookie={COOKIE | 5:#x},table=100,priority=100,idle_timeout=900,tcp,reg0=0x5,tp_dst=80 actions=drop"
    run("ovs-ofctl", "-O", "OpenFlow13", "add-flow", "br0", text)
    bridge = Bridge()
    (flow,) = bridge.read().flows
    assert (flow.table, flow.priority, flow.match) == (100, 100, "tcp,reg0=0x5,tp_dst=80")
    bridge.apply(FlowChange(remove=(flow,)))
    assert not bridge.read().flows


@pytest.mark.usefixtures("open_vswitch")
def test_foreign_keys_are_read_by_the_ovs_parser() -> None:
    assert Bridge().read().foreign == {(100, 0, ""), (100, 50, "tcp,reg0=0x7,tp_dst=80"), (100, 100, "ip,reg0=0xffff")}


@pytest.mark.usefixtures("open_vswitch")
def test_a_bridge_that_allows_every_version_works_too() -> None:
    run("ovs-vsctl", "--timeout=5", "clear", "bridge", "br0", "protocols")
    bridge = Bridge()
    bridge.apply(FlowChange(add=(drop(1),)))
    assert bridge.read().flows == {drop(1)}


def test_a_change_in_our_table_calls_back(flows: Flows) -> None:
    stop, called = threading.Event(), threading.Event()
    thread = threading.Thread(target=flows.watch, args=(called.set, stop), daemon=True)
    thread.start()
    try:
        assert called.wait(30), "a watch begins with a look"
        for change in (FlowChange(add=(drop(7),)), FlowChange(remove=(drop(7),))):
            time.sleep(0.3)
            called.clear()
            flows.apply(change)
            assert called.wait(30)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


@pytest.mark.usefixtures("open_vswitch")
def test_a_change_elsewhere_is_no_news() -> None:
    stop, called = threading.Event(), threading.Event()
    thread = threading.Thread(target=Bridge().watch, args=(called.set, stop), daemon=True)
    thread.start()
    assert called.wait(30)
    time.sleep(0.3)
    called.clear()
    run("ovs-ofctl", "-O", "OpenFlow13", "add-flow", "br0", "table=30,priority=7,ip actions=drop")
    assert not called.wait(0.5)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def test_what_cannot_be_watched_says_so_after_a_last_look(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("OVS_RUNDIR", str(tmp_path))
    looks: list[None] = []
    look: Callable[[], None] = lambda: looks.append(None)  # noqa: E731
    with pytest.raises(OpenVSwitchUnavailable, match="br0 tells nothing of its flows"):
        Bridge().watch(look, threading.Event())
    assert looks


@pytest.mark.usefixtures("open_vswitch")
def test_a_monitor_that_reached_its_limit_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "node_runner.drivers.flows._MONITOR", ("ovs-ofctl", "-O", "OpenFlow13", "--timeout=1", "monitor")
    )
    Bridge().watch(lambda: None, threading.Event())


def test_counts_are_those_of_our_own_flows(flows: Flows) -> None:
    out = Flow(100, 100, "ip,reg0=0x2", COOKIE | 2, "set_field:0xc0a80166->pkt_mark,goto_table:101")
    steer = "move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:192.168.1.18->tun_dst,output:1"
    six = Flow(100, 100, "ipv6,reg0=0x2", COOKIE | 2, "drop")
    flows.apply(FlowChange(add=(drop(1), out, six, Flow(100, 100, "ip,reg0=0x1094c2", COOKIE | 0x1094C2, steer))))
    counts = flows.counts()
    assert {traffic: count.path for traffic, count in counts.items()} == {
        (1, 4): Path.DROPPED,
        (2, 4): Path.OUT,
        (2, 6): Path.DROPPED,
        (0x1094C2, 4): Path.STEERED,
    }
    assert all((count.packets, count.bytes) == (0, 0) for count in counts.values())


@pytest.mark.usefixtures("open_vswitch")
def test_packets_and_bytes_are_counted_by_namespace() -> None:
    bridge = Bridge()
    bridge.apply(FlowChange(add=(drop(1), drop(2))))
    packet = "0200000000010200000000020800" + "45000014000000004001f96b0a800002c0a80105" + "00" * 26
    send = f"in_port=controller,packet={packet},actions=load:0x1->NXM_NX_REG0[],resubmit(,100)"
    for _ in range(3):
        run("ovs-ofctl", "-O", "OpenFlow13", "packet-out", "br0", send)
    deadline = time.monotonic() + 15  # Open vSwitch gathers counts about once a second
    while bridge.counts()[1, 4].packets < 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    counts = bridge.counts()
    assert (counts[1, 4].packets, counts[1, 4].bytes) == (3, 180)
    assert (counts[2, 4].packets, counts[2, 4].bytes) == (0, 0)
    bridge.apply(FlowChange(add=(Flow(100, 100, "ip,reg0=0x1", COOKIE | 1, "goto_table:101"),)))
    assert bridge.counts()[1, 4].packets == 3  # Open vSwitch goes on counting
    bridge.apply(FlowChange(remove=(drop(1),)))
    bridge.apply(FlowChange(add=(drop(1),)))
    assert bridge.counts()[1, 4].packets == 0


def test_ipv6_of_the_pods_is_told_by_tun0(netns: Netns) -> None:
    run("ip", "link", "add", "tun0", "type", "veth", "peer", "name", "tun1")
    for name in ("tun0", "tun1"):
        run("ip", "link", "set", name, "up")  # and so it has a link-local address
    run("ip", "address", "add", "fd01::1/64", "dev", "tun1", "nodad")
    assert (_has_ipv6("tun0"), _has_ipv6("tun1")) == (False, True)
    run("ip", "address", "add", "fd02::1/64", "dev", "tun0", "nodad")
    assert _has_ipv6("tun0")
