"""A pod, a node and a host outside on the host's own kernel, in network namespaces, for packets that the node's rules
translate.

The kernel of most build machines has no openvswitch module: here a rule in table mangle marks the pod's packets, in
place of the namespace's flow. Needs root. Nothing outside the namespaces is touched.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from egress.addresses import Address
from lab.host_node import PARENT, Netns, run


@dataclass(frozen=True, slots=True)
class Link:
    """The addresses of one IP version. What is sent `elsewhere` comes to the neighbour, which has no use for it."""

    node: Address
    neighbour: Address
    prefix_length: int
    cluster: str
    gateway: str
    pod: Address
    elsewhere: str
    family: socket.AddressFamily
    forwarding: str


LINKS = {
    4: Link(
        ip_address("192.168.0.1"),
        ip_address("192.168.255.1"),
        16,
        "10.128.0.0/14",
        "10.128.0.1",
        ip_address("10.128.0.2"),
        "203.0.113.9",
        socket.AF_INET,
        "ipv4/ip_forward",
    ),
    6: Link(
        ip_address("fd00:192:168::1"),
        ip_address("fd00:192:168::ffff"),
        64,
        "fd00:10:128::/56",
        "fd00:10:128::1",
        ip_address("fd00:10:128::2"),
        "2001:db8::9",
        socket.AF_INET6,
        "ipv6/conf/all/forwarding",
    ),
}
"""By IP version."""
_PORT = 80
_RULES = f"""\
*nat
:POSTROUTING ACCEPT [0:0]
:{PARENT} - [0:0]
-A POSTROUTING -j {PARENT}
-A {PARENT} -s {{cluster}} -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
-A FORWARD -s {{cluster}} -j ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -i pod0 -j MARK --set-xmark 0x1/0xffffffff
COMMIT
"""
_NETLINK_NETFILTER = 12
_FLUSH_CONNTRACK = struct.pack("=IHHII", 20, 0x102, 5, 1, 0)
_POD_PREFIX = {4: 24, 6: 64}
_AT_ONCE: dict[int, tuple[str, ...]] = {4: (), 6: ("nodad",)}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Datapath:
    """The three namespaces, of one IP `version`. `variant` says which iptables the node has. Close it."""

    def __init__(self, variant: str, version: int = 4) -> None:
        self.link = link = LINKS[version]
        self._iptables = f"ip{6 if version == 6 else ''}tables-{variant}"
        self.node, self._pod, self._neighbour = Netns(), Netns(), Netns()
        self.node.beyond += [self._pod, self._neighbour]
        self._on_interface: set[Address] = {link.node}
        with self.node:
            run(f"{self._iptables}-restore", stdin=_RULES.format(cluster=link.cluster))
            for name, other in (("eth0", self._neighbour), ("pod0", self._pod)):
                run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", other.path)
                run("ip", "link", "set", name, "up")
            self._add(link.node, "eth0")
            run("ip", "address", "add", f"{link.gateway}/{_POD_PREFIX[version]}", "dev", "pod0", *_AT_ONCE[version])
            run("ip", "route", "add", link.elsewhere, "via", str(link.neighbour))
            Path("/proc/sys/net", link.forwarding).write_text("1")
            self._node_listener = _listener(link.node, link.family)
        with self._neighbour:
            self._add(link.neighbour, "eth0")
            run("ip", "link", "set", "eth0", "up")
            self._listener = _listener(link.neighbour, link.family)
        with self._pod:
            run("ip", "address", "add", f"{link.pod}/{_POD_PREFIX[version]}", "dev", "eth0", *_AT_ONCE[version])
            run("ip", "link", "set", "eth0", "up")
            run("ip", "route", "add", "default", "via", link.gateway)
            self._sender = socket.socket(link.family, socket.SOCK_DGRAM)
            self._sender.bind((str(link.pod), 5000))

    def close(self) -> None:
        """Lets everything go."""
        for each in (self._sender, self._listener, self._node_listener):
            each.close()
        self.node.close()

    def use(self, address: Address, mark: int) -> None:
        """From now on the pod's packets have `mark`, and `address` is the node's. Returns when a connection has come
        from it; TimeoutError if none can be made."""
        rule = ("-i", "pod0", "-j", "MARK", "--set-xmark", f"{mark:#x}/0xffffffff")
        with self.node:
            run(self._iptables, "-t", "mangle", "-R", "PREROUTING", "1", *rule)
            if address not in self._on_interface:
                # Of IPv6 the general MASQUERADE would take it, and not the node's own, were it not deprecated.
                self._add(address, "eth0", *(("preferred_lft", "0") if address.version == 6 else ()))
                self._on_interface.add(address)
        end = time.monotonic() + 10
        while True:
            self.forget()
            try:
                self.connections(1, address)
            except OSError:  # the kernel drops frames until it has noticed the carrier
                if time.monotonic() > end:
                    raise
            else:
                return

    def forget(self) -> None:
        """Ends all connections that the node tracks."""
        with self.node, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.send(_FLUSH_CONNTRACK + struct.pack("=BBH", self.link.family, 0, 0))
            netlink.recv(4096)

    def connections(self, count: int, address: Address) -> float:
        """The pod makes `count` TCP connections to the neighbour, one after the other: a byte each way, then a reset.
        Seconds a connection; RuntimeError if one does not come from `address`."""
        with self._pod:
            clients = [_client(self.link.family) for _ in range(count)]
        taken, sources = _exchange(clients, self.link.neighbour, self._listener)
        if sources != {str(address)}:
            raise RuntimeError(f"seen from {sources}, not from {address}")
        return taken / count

    def requests(self, count: int) -> float:
        """The like from the neighbour to the node itself."""
        with self._neighbour:
            clients = [_client(self.link.family) for _ in range(count)]
        return _exchange(clients, self.link.node, self._node_listener)[0] / count

    def datagrams(self, count: int, first_port: int) -> float:
        """The pod begins `count` connections of one datagram each, to ports from `first_port` on. Seconds each, without
        what it takes to receive them: the neighbour drops them."""
        targets = [(self.link.elsewhere, first_port + number) for number in range(count)]
        send = self._sender.sendto
        began = time.perf_counter()
        for target in targets:
            send(b"x", target)
        return (time.perf_counter() - began) / count

    def _add(self, address: Address, interface: str, *options: str) -> None:
        prefix = f"{address}/{self.link.prefix_length}"
        run("ip", "address", "add", prefix, "dev", interface, *_AT_ONCE[address.version], *options)


def _exchange(clients: list[socket.socket], server: Address, listener: socket.socket) -> tuple[float, set[str]]:
    """All on one thread: the kernel does the whole way of a packet within the call that sends it."""
    sources = set()
    target = (str(server), _PORT)
    _refuse_late(listener)
    began = time.perf_counter()
    for client in clients:
        client.connect(target)
        accepted, source = listener.accept()
        client.send(b"x")
        accepted.recv(1)
        accepted.send(b"y")
        client.recv(1)
        client.close()
        accepted.close()
        sources.add(source[0])
    return time.perf_counter() - began, sources


def _client(family: socket.AddressFamily) -> socket.socket:
    client = socket.socket(family)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    client.settimeout(1)
    return client


def _listener(address: Address, family: socket.AddressFamily) -> socket.socket:
    listener = socket.socket(family)
    listener.bind((str(address), _PORT))
    listener.listen(16)
    listener.settimeout(1)
    return listener


def _refuse_late(listener: socket.socket) -> None:
    """A connection that came when its client had given up would be taken for the next one, and so on for ever."""
    while select.select([listener], [], [], 0)[0]:
        listener.accept()[0].close()


def missing() -> str:
    """What this machine lacks for it; "" for nothing."""
    return "it needs root" if os.geteuid() else ""
