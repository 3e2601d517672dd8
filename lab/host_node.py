"""A node on the host's own kernel: a network namespace with Open vSwitch (userspace datapath), iptables and a link.

No packet of it goes anywhere: the datapath's mark never reaches iptables. It is for reading and writing what a node
holds, for real and without a virtual machine. Needs root. Nothing outside the namespace is touched.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_SECONDS = 60.0

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
"""What OpenShift and an admin have on a node before Hawse comes."""
FOREIGN_FLOWS = """\
table=100,priority=0 actions=goto_table:101
table=100,priority=50,tcp,reg0=0x7,tp_dst=80,idle_timeout=900 actions=load:0x5->NXM_NX_REG1[],output:2
cookie=0x99,table=100,priority=100,ip,reg0=0xffff actions=drop
table=101,priority=0 actions=output:2
"""
"""The like of the bridge."""


def run(*argv: str, stdin: str | None = None) -> str:
    """A tool's output; RuntimeError with its message if it fails."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv}: {done.stderr}")
    return done.stdout


class Netns:
    """A network namespace without a name: it is gone when it is closed. As a context, the calling thread is in it."""

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
        """Lets it go, with all that is in it."""
        for other in self.beyond:
            other.close()
        os.close(self.fd)
        os.close(self._outside)

    @staticmethod
    def _enter(fd: int) -> None:
        if _LIBC.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def launch(stack: ExitStack, *argv: str) -> None:
    """Starts a daemon that ends with `stack`, or with this process, whichever way that ends."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stack.callback(process.wait)
    stack.callback(process.kill)


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Waits until `condition` holds; TimeoutError if that takes more than `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.01)


def start_open_vswitch(stack: ExitStack, directory: Path) -> None:
    """An Open vSwitch in the caller's network namespace, with br0 as OpenShift makes it. The environment must have
    OVS_RUNDIR, OVS_DBDIR and OVS_LOGDIR set to `directory`."""
    database, remote = directory / "conf.db", directory / "db.sock"
    run("ovsdb-tool", "create", str(database), "/usr/share/openvswitch/vswitch.ovsschema")
    launch(stack, "ovsdb-server", str(database), f"--remote=punix:{remote}", f"--unixctl={directory}/ovsdb.ctl")
    eventually(lambda: _listens(remote))
    run("ovs-vsctl", "--no-wait", "init")
    launch(stack, "ovs-vswitchd", f"unix:{remote}", f"--unixctl={directory}/vswitchd.ctl", "--disable-system")
    run(
        "ovs-vsctl", "--timeout=10",
        "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "protocols=OpenFlow13",
        "--", "add-port", "br0", "vxlan0",
        "--", "set", "interface", "vxlan0", "type=vxlan", "options:remote_ip=flow", "options:key=flow",
        "ofport_request=1",
        "--", "add-port", "br0", "tun0", "--", "set", "interface", "tun0", "type=internal", "ofport_request=2",
    )  # fmt: skip
    run("ovs-ofctl", "-O", "OpenFlow13", "add-flows", "br0", "-", stdin=FOREIGN_FLOWS)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


INTERFACE = "eth0"
_OVS_VARIABLES = ("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR")


@contextmanager
def host_node(variant: str, node_ip: IPv4Address, prefix_length: int) -> Iterator[Path]:
    """Inside, the calling thread is on a node of its own, whose interface INTERFACE carries `node_ip`, and whose rules
    are in iptables of `variant`. Open vSwitch's files, and what else is to go with it, are in the folder it gives."""
    before = {name: os.environ.get(name) for name in _OVS_VARIABLES}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        os.environ |= dict.fromkeys(_OVS_VARIABLES, str(directory))
        netns = Netns()
        stack.callback(netns.close)
        stack.enter_context(netns)
        beyond = Netns()
        netns.beyond.append(beyond)
        run("ip", "link", "add", INTERFACE, "type", "veth", "peer", "name", "eth0", "netns", beyond.path)
        run("ip", "address", "add", f"{node_ip}/{prefix_length}", "dev", INTERFACE)
        run("ip", "link", "set", INTERFACE, "up")
        with beyond:
            run("ip", "link", "set", "eth0", "up")
        run(f"iptables-{variant}-restore", stdin=FOREIGN_RULES)
        try:
            start_open_vswitch(stack, directory)
            yield directory
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
