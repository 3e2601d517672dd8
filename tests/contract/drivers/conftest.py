"""Network namespaces, Open vSwitch and iptables of a test's own, on the host's kernel. Nothing outside is touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from egress.addresses import Address
from egress.program import Flow, Layout, NodeFacts, NodeProgram, render
from egress.table import Steering, SteeringHop
from lab.fakes.node import FakeNode, fake_node
from lab.host_node import FOREIGN_RULES, PARENT, Netns, eventually, run, start_open_vswitch
from node_runner.drivers import open_node
from node_runner.drivers.ports import Node

NODE = "node2"
NODE_IP = IPv4Address("192.168.1.18")
OTHER_IP = IPv4Address("192.168.1.19")
NEIGHBOUR = IPv4Address("192.168.1.77")
NEIGHBOUR_MAC = "02:00:00:00:00:77"
NODE_SIX = IPv6Address("2001:db8::18")
NEIGHBOUR_SIX = IPv6Address("2001:db8::77")


def need(*tools: str) -> None:
    """Skips where the machine cannot run the real thing; in CI that is a failure."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    why = "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""
    if why and os.environ.get("CI") == "true":
        pytest.fail(f"CI must run this: {why}")
    if why:
        pytest.skip(why)


@dataclass(frozen=True)
class Rig:
    """A node under test: the drivers and, where it is a fake, the fakes."""

    node: Node
    fake: FakeNode | None
    variant: str
    interface: str

    def foreign_text(self) -> str:
        """All that the node holds, byte for byte, without counters and without what only time changes."""
        if self.fake is not None:
            return "\n\n".join((self.fake.flows.text(), self.fake.nat.text(), self.fake.links.text()))
        flows = run("ovs-ofctl", "-O", "OpenFlow13", "--no-stats", "dump-flows", "br0")
        groups = run("ovs-ofctl", "-O", "OpenFlow13", "dump-groups", "br0").partition("\n")[2]
        addresses = run("ip", "-o", "address", "show", self.interface).replace(" tentative", "")
        return "\n\n".join((flows, groups, self.rules_text(), addresses))

    def rules_text(self) -> str:
        """All rules, as iptables-save prints them."""
        if self.fake is not None:
            return self.fake.nat.text()
        lines = run(f"iptables-{self.variant}-save").splitlines()
        return "\n".join(line.partition(" [")[0] for line in lines if not line.startswith("#"))


@pytest.fixture
def netns() -> Iterator[Netns]:
    """The node's namespace; the test runs inside it."""
    need("ip")
    namespace = Netns()
    try:
        with namespace:
            yield namespace
    finally:
        namespace.close()


@pytest.fixture
def open_vswitch(netns: Netns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An Open vSwitch of the test's own, with br0 as OpenShift makes it."""
    del netns
    need("ovs-vsctl", "ovs-ofctl", "ovsdb-server", "ovs-vswitchd", "ovsdb-tool", "setpriv")
    for variable in ("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    with ExitStack() as stack:
        start_open_vswitch(stack, tmp_path)
        yield


def add_link(netns: Netns, interface: str, *, traffic: bool = False) -> Netns:
    """A veth pair: `interface` here with the node's IPs, in a second namespace a neighbour that answers."""
    neighbour = Netns()
    netns.beyond.append(neighbour)
    run("ip", "link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", neighbour.path)
    run("ip", "address", "add", f"{NODE_IP}/24", "dev", interface)
    run("ip", "address", "add", "192.168.1.40/24", "dev", interface)  # somebody else's secondary
    run("ip", "address", "add", f"{NODE_SIX}/64", "dev", interface, "nodad")
    run("ip", "address", "add", "2001:db8::40/64", "dev", interface, "nodad")
    run("ip", "link", "set", interface, "up")
    with neighbour:
        run("ip", "link", "set", "eth0", "address", NEIGHBOUR_MAC)
        run("ip", "address", "add", f"{NEIGHBOUR}/24", "dev", "eth0")
        run("ip", "address", "add", f"{NEIGHBOUR_SIX}/64", "dev", "eth0", "nodad")
        run("ip", "link", "set", "eth0", "up")
    if traffic:  # the kernel drops frames until it has noticed the carrier, up to a second later
        eventually(lambda: "state UP" in run("ip", "link", "show", interface))
        with neighbour:
            eventually(lambda: "state UP" in run("ip", "link", "show", "eth0"))
    return neighbour


@pytest.fixture(params=["fake", "nft", "legacy"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A whole node: fake, or real with either variant of iptables."""
    if request.param == "fake":
        yield _fake_rig()
        return
    netns: Netns = request.getfixturevalue("netns")
    need(f"iptables-{request.param}-restore")
    request.getfixturevalue("open_vswitch")
    run(f"iptables-{request.param}-restore", stdin=FOREIGN_RULES)
    add_link(netns, "eth0")
    node = open_node(NODE_IP, Layout())
    yield Rig(node, None, request.param, "eth0")
    node.close()


def _fake_rig() -> Rig:
    fake = fake_node(str(NODE_IP), neighbours={NEIGHBOUR: NEIGHBOUR_MAC})
    fake.links.foreign.add(IPv4Address("192.168.1.40"))
    fake.nat.put("filter", "INPUT", "-p tcp -m tcp --dport 22 -j ACCEPT")
    fake.nat.put("nat", PARENT, "-s 10.128.0.0/14 -j MASQUERADE")
    fake.flows.put(foreign_flow(0xFFFF))
    return Rig(fake.node, fake, "fake", "eth0")


def foreign_flow(netid: int) -> Flow:
    """Somebody else's flow on the key that ours would have."""
    return Flow(100, 100, f"ip,reg0={netid:#x}", 0x99, "drop")


def program_of(node: Node, *rows: tuple[int, list[tuple[str, str]]]) -> NodeProgram:
    """The program of NODE for rows of (NetID, [(address, node)])."""
    ips: dict[str, Address] = {NODE: NODE_IP, "node3": OTHER_IP, "node4": IPv4Address("192.168.1.20")}
    table = [
        Steering(
            netid,
            f"ns{netid}",
            tuple(SteeringHop(IPv4Address(address), host, ips[host], acknowledged=True) for address, host in hops),
        )
        for netid, hops in rows
    ]
    facts = node.flows.facts()
    return render(table, NodeFacts(NODE, facts.tun_mac, facts.vxlan_port), Layout())
