"""Network namespaces, Open vSwitch and iptables of a test's own, on the host's kernel. Nothing outside is touched."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from egress.addresses import Address
from egress.program import Flow, Layout, NodeFacts, NodeProgram, render
from egress.table import Steering, SteeringHop
from lab.fakes.node import FakeNode, fake_node
from node_runner.drivers import open_node
from node_runner.drivers.ports import Node

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000

NODE = "node2"
NODE_IP = IPv4Address("192.168.1.18")
OTHER_IP = IPv4Address("192.168.1.19")
NEIGHBOUR = IPv4Address("192.168.1.77")
NEIGHBOUR_MAC = "02:00:00:00:00:77"
PARENT = "OPENSHIFT-MASQUERADE"

FOREIGN_RULES = f"""\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-POSTROUTING - [0:0]
:{PARENT} - [0:0]
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -m comment --comment "rules for masquerading OpenShift traffic" -j {PARENT}
-A {PARENT} -s 10.128.0.0/14 -m comment --comment "masquerade pod-to-service and pod-to-external traffic" -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -s 10.128.0.0/14 -j ACCEPT
COMMIT
"""


def need(*tools: str) -> None:
    """Skips where the machine cannot run the real thing; in CI that is a failure."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    why = "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""
    if why and os.environ.get("CI") == "true":
        pytest.fail(f"CI must run this: {why}")
    if why:
        pytest.skip(why)


def run(*argv: str, stdin: str | None = None) -> str:
    """A tool's output; its error message if it fails."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


class Netns:
    """A network namespace without a name: it is gone when the test has closed it."""

    def __init__(self) -> None:
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if _LIBC.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        run("ip", "link", "set", "lo", "up")
        self._enter(self._outside)
        self._back: list[int] = []
        self.beyond: list[Netns] = []
        """Namespaces at the other end of links; a veth is gone when either end's namespace is."""

    @property
    def path(self) -> str:
        """What `ip link set … netns` takes."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def __enter__(self) -> Netns:
        self._back.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        self._enter(self.fd)
        return self

    def __exit__(self, *_: object) -> None:
        back = self._back.pop()
        self._enter(back)
        os.close(back)

    def close(self) -> None:
        for other in self.beyond:
            other.close()
        os.close(self.fd)
        os.close(self._outside)

    @staticmethod
    def _enter(fd: int) -> None:
        if _LIBC.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


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
        return "\n\n".join((flows, groups, self.rules_text(), run("ip", "-o", "address", "show", self.interface)))

    def rules_text(self) -> str:
        """All rules, as iptables-save prints them."""
        if self.fake is not None:
            return self.fake.nat.text()
        lines = run(f"iptables-{self.variant}-save").splitlines()
        return "\n".join(line.partition(" [")[0] for line in lines if not line.startswith("#"))


def launch(stack: ExitStack, *argv: str) -> None:
    """Starts a daemon that dies with the test, whichever way that ends."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stack.callback(process.wait)
    stack.callback(process.kill)


def eventually(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Waits until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


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
    database, remote = tmp_path / "conf.db", tmp_path / "db.sock"
    run("ovsdb-tool", "create", str(database), "/usr/share/openvswitch/vswitch.ovsschema")
    with ExitStack() as stack:
        launch(stack, "ovsdb-server", str(database), f"--remote=punix:{remote}", f"--unixctl={tmp_path}/ovsdb.ctl")
        eventually(lambda: _listens(remote))
        run("ovs-vsctl", "--no-wait", "init")
        launch(stack, "ovs-vswitchd", f"unix:{remote}", f"--unixctl={tmp_path}/vswitchd.ctl", "--disable-system")
        run(
            "ovs-vsctl", "--timeout=10",
            "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "protocols=OpenFlow13",
            "--", "add-port", "br0", "vxlan0",
            "--", "set", "interface", "vxlan0", "type=vxlan", "options:remote_ip=flow", "options:key=flow",
            "ofport_request=1",
            "--", "add-port", "br0", "tun0", "--", "set", "interface", "tun0", "type=internal", "ofport_request=2",
        )  # fmt: skip
        flows = (
            "table=100,priority=0 actions=goto_table:101\n"
            "table=100,priority=50,tcp,reg0=0x7,tp_dst=80,idle_timeout=900 actions=load:0x5->NXM_NX_REG1[],output:2\n"
            "cookie=0x99,table=100,priority=100,ip,reg0=0xffff actions=drop\n"
            "table=101,priority=0 actions=output:2\n"
        )
        run("ovs-ofctl", "-O", "OpenFlow13", "add-flows", "br0", "-", stdin=flows)
        yield


def add_link(netns: Netns, interface: str, *, traffic: bool = False) -> Netns:
    """A veth pair: `interface` here with the node's IP, in a second namespace a neighbour that answers."""
    neighbour = Netns()
    netns.beyond.append(neighbour)
    run("ip", "link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", neighbour.path)
    run("ip", "address", "add", f"{NODE_IP}/24", "dev", interface)
    run("ip", "address", "add", "192.168.1.40/24", "dev", interface)  # somebody else's secondary
    run("ip", "link", "set", interface, "up")
    with neighbour:
        run("ip", "link", "set", "eth0", "address", NEIGHBOUR_MAC)
        run("ip", "address", "add", f"{NEIGHBOUR}/24", "dev", "eth0")
        run("ip", "link", "set", "eth0", "up")
    if traffic:  # the kernel drops frames until it has noticed the carrier, up to a second later
        eventually(lambda: "state UP" in run("ip", "link", "show", interface))
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
    yield Rig(open_node(NODE_IP, Layout()), None, request.param, "eth0")


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
