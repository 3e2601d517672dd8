"""The guard on the host's kernel: a connection never goes on under an address that is not its namespace's now."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from egress.delta import rule_change
from egress.program import Layout
from egress.rules import RuleSet, rules_of
from node_runner.drivers.conntrack import KernelConntrack
from node_runner.drivers.nat import Iptables, Variant

from .conftest import FOREIGN_RULES, NEIGHBOUR, NODE_IP, Netns, add_link, need, run

A, B = IPv4Address("192.168.1.102"), IPv4Address("192.168.1.103")
MARK = {A: 0xC0A80166, B: 0xC0A80167}


@dataclass
class Network:
    """A pod that sends datagrams from one port through the node to the neighbour, and the node's rules."""

    pod: socket.socket
    neighbour: socket.socket
    iptables: Iptables
    variant: Variant
    sent: int = 0

    def sources(self, times: int = 3) -> set[str]:
        """The addresses that the pod's datagrams come from."""
        found = set()
        for _ in range(times):
            self.sent += 1
            self.pod.sendto(str(self.sent).encode(), (str(NEIGHBOUR), 9999))
            try:
                number = 0
                while number < self.sent:  # an earlier one may have waited for the neighbour's MAC
                    text, source = self.neighbour.recvfrom(16)
                    number = int(text)
            except TimeoutError:
                continue
            found.add(source[0])
        return found

    def flow(self, *marks: int) -> None:
        """What the NetID's flow does: mark the packets."""
        run(f"iptables-{self.variant}", "-t", "mangle", "-F", "PREROUTING")
        for mark in marks:
            rule = ("-i", "pod0", "-j", "MARK", "--set-xmark", f"{mark:#x}/0xffffffff")
            run(f"iptables-{self.variant}", "-t", "mangle", "-A", "PREROUTING", *rule)

    def rules(self, *addresses: IPv4Address) -> None:
        """The rules of `addresses`."""
        wanted = rules_of({a: MARK[a] for a in addresses}, Layout()) if addresses else RuleSet()
        self.iptables.apply(rule_change(wanted, self.iptables.read()))


@pytest.fixture(params=list(Variant))
def network(request: pytest.FixtureRequest, netns: Netns) -> Iterator[Network]:
    """A pod, a node and a neighbour."""
    variant: Variant = request.param
    need(f"iptables-{variant}-restore")
    run(f"iptables-{variant}-restore", stdin=FOREIGN_RULES)
    neighbour = add_link(netns, "eth0", traffic=True)
    for address in MARK:
        run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    pod = Netns()
    netns.beyond.append(pod)
    run("ip", "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", pod.path)
    run("ip", "address", "add", "10.128.0.1/24", "dev", "pod0")
    run("ip", "link", "set", "pod0", "up")
    with pod:
        run("ip", "address", "add", "10.128.0.2/24", "dev", "eth0")
        run("ip", "link", "set", "eth0", "up")
        run("ip", "route", "add", "default", "via", "10.128.0.1")
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.bind(("10.128.0.2", 5000))
    with neighbour:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind((str(NEIGHBOUR), 9999))
        receiver.settimeout(0.3)
    made = Network(sender, receiver, Iptables(variant=variant), variant)
    with sender, receiver:
        for _ in range(20):  # the kernel drops frames until it has noticed the carrier
            if made.sources(1):
                break
        yield made


def test_a_connection_begun_before_the_assignment_is_cut_then_begins_anew_with_the_address(network: Network) -> None:
    assert network.sources() == {str(NODE_IP)}
    network.rules(A)
    network.flow(MARK[A])
    assert network.sources() == set()
    assert KernelConntrack().forget_stale() == 1
    assert network.sources() == {str(A)}
    assert KernelConntrack().forget_stale() == 0


def test_a_connection_never_goes_on_under_an_address_that_its_namespace_lost(network: Network) -> None:
    """Nothing ended the connections: the runner was killed."""
    network.rules(A, B)
    network.flow(MARK[A])
    KernelConntrack().forget([NODE_IP])
    assert network.sources() == {str(A)}
    network.flow()  # no address any more
    assert network.sources() == set()
    network.flow(MARK[B])  # another one
    assert network.sources() == set()
    assert KernelConntrack().forget_stale() == 1
    assert network.sources() == {str(B)}
    network.flow()
    assert network.sources() == set()
    assert KernelConntrack().forget_stale() == 1
    assert network.sources() == {str(NODE_IP)}


def test_what_belongs_to_no_connection_never_leaves_with_the_pods_own_ip(network: Network, netns: Netns) -> None:
    """The last packet of a connection that was ended: conntrack does not take it up, so nothing translates it."""
    neighbour, pod = netns.beyond
    ports_and_sequence = struct.pack("!HHII", 5001, 80, 1, 1)
    fin = ports_and_sequence + struct.pack("!BBHHH", 5 << 4, 0x11, 512, 0, 0)
    with pod:
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with neighbour:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with sender, receiver:
        receiver.settimeout(0.3)
        sender.sendto(_with_checksum(fin, "10.128.0.2"), (str(NEIGHBOUR), 0))
        assert receiver.recvfrom(128)[1][0] == "10.128.0.2"  # so it is without us
        network.rules(A)
        network.flow(MARK[A])
        sender.sendto(_with_checksum(fin, "10.128.0.2"), (str(NEIGHBOUR), 0))
        with pytest.raises(TimeoutError):
            receiver.recvfrom(128)
        network.flow()
        sender.sendto(_with_checksum(fin, "10.128.0.2"), (str(NEIGHBOUR), 0))
        assert receiver.recvfrom(128)[1][0] == "10.128.0.2"  # other namespaces' are not ours to judge


def _with_checksum(segment: bytes, source: str) -> bytes:
    pseudo = IPv4Address(source).packed + NEIGHBOUR.packed + struct.pack("!BBH", 0, 6, len(segment))
    total = sum(struct.unpack(f"!{(len(pseudo) + len(segment)) // 2}H", pseudo + segment))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:]
