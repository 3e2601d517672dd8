"""The guard on the host's kernel: a connection never goes on under an address that is not its namespace's now."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

import pytest

from egress.addresses import Address, assign_marks, make_address
from egress.delta import rule_change
from egress.program import Layout
from egress.rules import (
    CUT_CHAIN,
    LEARN_CHAIN,
    MARKED_CHAIN,
    PASS_CHAIN,
    REJECT_CHAIN,
    RESTORE_CHAIN,
    RuleSet,
    rules_of,
)
from node_runner.drivers.conntrack import KernelConntrack
from node_runner.drivers.links import InterfaceLinks
from node_runner.drivers.nat import Iptables, Variant

from .conftest import FOREIGN_RULES, NEIGHBOUR, NEIGHBOUR_SIX, NODE_IP, NODE_SIX, Netns, add_link, need, run

LAYOUT = Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv6Network("fd01::/48")))
TOOLS = {4: "iptables", 6: "ip6tables"}


@dataclass(frozen=True)
class Family:
    """An IP version's part of the network: two egress addresses with their marks, the node's own IP, the neighbour, the
    pod and the node's side of the pod's link."""

    version: int
    a: Address
    b: Address
    node: Address
    neighbour: Address
    pod: Address
    gateway: Address

    @property
    def marks(self) -> dict[Address, int]:
        return assign_marks([self.a, self.b])

    @property
    def socket(self) -> socket.AddressFamily:
        return socket.AF_INET if self.version == 4 else socket.AF_INET6


FAMILIES = [
    Family(4, *map(ip_address, ("192.168.1.102", "192.168.1.103")), NODE_IP, NEIGHBOUR,
           *map(ip_address, ("10.128.0.2", "10.128.0.1"))),
    Family(6, *map(ip_address, ("2001:db8::102", "2001:db8::103")), NODE_SIX, NEIGHBOUR_SIX,
           *map(ip_address, ("fd01::2", "fd01::1"))),
]  # fmt: skip


@dataclass
class Network:
    """A pod that sends datagrams from one port through the node to the neighbour, and the node's rules."""

    pod: socket.socket
    neighbour: socket.socket
    iptables: Iptables
    variant: Variant
    family: Family
    sent: int = 0

    @property
    def mark_a(self) -> int:
        """The mark of the first address."""
        return self.family.marks[self.family.a]

    @property
    def mark_b(self) -> int:
        """The mark of the second."""
        return self.family.marks[self.family.b]

    def sources(self, times: int = 3) -> set[str]:
        """The addresses that the pod's datagrams come from."""
        found = set()
        for _ in range(times):
            self.sent += 1
            self.pod.sendto(str(self.sent).encode(), (str(self.family.neighbour), 9999))
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
        tool = f"{TOOLS[self.family.version]}-{self.variant}"
        run(tool, "-t", "mangle", "-F", "PREROUTING")
        for mark in marks:
            rule = ("-i", "pod0", "-j", "MARK", "--set-xmark", f"{mark:#x}/0xffffffff")
            run(tool, "-t", "mangle", "-A", "PREROUTING", *rule)

    def rules(self, *addresses: Address) -> None:
        """The rules of `addresses`."""
        self.change([rules_of({a: self.family.marks[a] for a in addresses}, LAYOUT) if addresses else RuleSet()])

    def change(self, one_after_the_other: Iterable[RuleSet]) -> None:
        """These rules, then those."""
        for wanted in one_after_the_other:
            self.iptables.apply(rule_change(wanted, self.iptables.read(six=True)))


def _name(parameter: tuple[Variant, Family]) -> str:
    return f"{parameter[0]}-ipv{parameter[1].version}"


@pytest.fixture(params=[(variant, family) for variant in Variant for family in FAMILIES], ids=_name)
def network(request: pytest.FixtureRequest, netns: Netns) -> Iterator[Network]:
    """A pod, a node and a neighbour."""
    variant: Variant
    family: Family
    variant, family = request.param
    need(f"iptables-{variant}-restore", f"ip6tables-{variant}-restore")
    run(f"iptables-{variant}-restore", stdin=FOREIGN_RULES)
    run(f"ip6tables-{variant}-restore", stdin=FOREIGN_RULES.replace("10.128.0.0/14", "fd01::/48"))
    neighbour = add_link(netns, "eth0", traffic=True)
    # As the driver would: an IPv6 address that is preferred would be what the general MASQUERADE takes.
    assert InterfaceLinks(NODE_IP).apply({family.a, family.b}, set()) == {}
    run("ip", "-6", "address", "del", "2001:db8::40/64", "dev", "eth0")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
    length = 24 if family.version == 4 else 64
    nodad = () if family.version == 4 else ("nodad",)
    pod = Netns()
    netns.beyond.append(pod)
    run("ip", "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", pod.path)
    run("ip", "address", "add", f"{family.gateway}/{length}", "dev", "pod0", *nodad)
    run("ip", "link", "set", "pod0", "up")
    with pod:
        run("ip", "address", "add", f"{family.pod}/{length}", "dev", "eth0", *nodad)
        run("ip", "link", "set", "eth0", "up")
        run("ip", f"-{family.version}", "route", "add", "default", "via", str(family.gateway))
        sender = socket.socket(family.socket, socket.SOCK_DGRAM)
        sender.bind((str(family.pod), 5000))
    with neighbour:
        receiver = socket.socket(family.socket, socket.SOCK_DGRAM)
        receiver.bind((str(family.neighbour), 9999))
        receiver.settimeout(0.3)
    made = Network(sender, receiver, Iptables(variant=variant), variant, family)
    with sender, receiver:
        for _ in range(20):  # the kernel drops frames until it has noticed the carrier
            if made.sources(1):
                break
        yield made


def test_a_connection_begun_before_the_assignment_is_cut_then_begins_anew_with_the_address(network: Network) -> None:
    assert network.sources() == {str(network.family.node)}
    network.rules(network.family.a)
    network.flow(network.mark_a)
    assert network.sources() == set()
    assert KernelConntrack().forget_stale() == 1
    assert network.sources() == {str(network.family.a)}
    assert KernelConntrack().forget_stale() == 0


def test_a_connection_never_goes_on_under_an_address_that_its_namespace_lost(network: Network) -> None:
    """Nothing ended the connections: the runner was killed."""
    network.rules(network.family.a, network.family.b)
    network.flow(network.mark_a)
    KernelConntrack().forget([network.family.node])
    assert network.sources() == {str(network.family.a)}
    network.flow()  # no address any more
    assert network.sources() == set()
    network.flow(network.mark_b)  # another one
    assert network.sources() == set()
    assert KernelConntrack().forget_stale() == 1
    assert network.sources() == {str(network.family.b)}
    network.flow()
    assert network.sources() == set()
    assert KernelConntrack().forget_stale() == 1
    assert network.sources() == {str(network.family.node)}


def test_what_belongs_to_no_connection_never_leaves_with_the_pods_own_ip(network: Network, netns: Netns) -> None:
    """The last packet of a connection that was ended: conntrack does not take it up, so nothing translates it."""
    (neighbour, pod), family = netns.beyond, network.family
    ports_and_sequence = struct.pack("!HHII", 5001, 80, 1, 1)
    fin = ports_and_sequence + struct.pack("!BBHHH", 5 << 4, 0x11, 512, 0, 0)
    with pod:
        sender = socket.socket(family.socket, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with neighbour:
        receiver = socket.socket(family.socket, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with sender, receiver:
        receiver.settimeout(0.3)
        sender.sendto(_with_checksum(fin, family), (str(family.neighbour), 0))
        assert receiver.recvfrom(128)[1][0] == str(family.pod)  # so it is without us
        network.rules(network.family.a)
        network.flow(network.mark_a)
        sender.sendto(_with_checksum(fin, family), (str(family.neighbour), 0))
        with pytest.raises(TimeoutError):
            receiver.recvfrom(128)
        network.flow()
        sender.sendto(_with_checksum(fin, family), (str(family.neighbour), 0))
        assert receiver.recvfrom(128)[1][0] == str(family.pod)  # other namespaces' are not ours to judge


def test_a_marked_packet_that_nobody_tracks_never_leaves_with_the_pods_own_ip(network: Network) -> None:
    tool = f"{TOOLS[network.family.version]}-{network.variant}"
    run(tool, "-t", "raw", "-A", "PREROUTING", "-i", "pod0", "-j", "CT", "--notrack")
    assert network.sources() == {str(network.family.pod)}
    network.rules(network.family.a)
    network.flow(network.mark_a)
    assert network.sources() == set()
    network.flow()
    assert network.sources() == {str(network.family.pod)}  # other namespaces' are not ours to judge


def test_what_the_guard_found_right_it_does_not_look_at_again(network: Network) -> None:
    """So its packets do not meet the rules of all addresses: they would go on without them."""
    network.rules(network.family.a, network.family.b)
    network.flow(network.mark_a)
    KernelConntrack().forget([network.family.node])
    assert network.sources() == {str(network.family.a)}
    tool = f"{TOOLS[network.family.version]}-{network.variant}"
    run(tool, "-I", PASS_CHAIN, "-j", "DROP")
    assert network.sources() == {str(network.family.a)}
    network.flow(network.mark_b)
    assert network.sources() == set()


def test_the_guard_leaves_packets_the_mark_that_they_have(network: Network) -> None:
    tool = f"{TOOLS[network.family.version]}-{network.variant}"
    network.rules(network.family.a)
    network.flow(network.mark_a)
    KernelConntrack().forget([network.family.node])
    rule = ("-o", "eth0", "-m", "mark", "!", "--mark", f"{network.mark_a:#x}", "-j", "DROP")
    run(tool, "-t", "mangle", "-A", "POSTROUTING", *rule)
    for _ in range(5):  # the first, the one that is learned from, and those that are known
        assert network.sources(1) == {str(network.family.a)}


@pytest.mark.parametrize("whose", ["the packet's", "0x48415753"])
def test_a_connmark_of_somebody_elses_does_not_make_a_connection_right(network: Network, whose: str) -> None:
    tool = f"{TOOLS[network.family.version]}-{network.variant}"
    assert network.sources() == {str(network.family.node)}
    network.rules(network.family.a)
    network.flow(network.mark_a)
    written = ["--save-mark"] if whose == "the packet's" else ["--set-mark", whose]
    run(tool, "-t", "mangle", "-A", "PREROUTING", "-i", "pod0", "-j", "CONNMARK", *written)
    assert network.sources() == set()
    KernelConntrack().forget([network.family.node])
    assert network.sources() == {str(network.family.a)}  # nor a wrong one of one that is


@pytest.mark.parametrize("before", ["0033", "0035"])
def test_rules_of_the_version_before_give_way_to_these_without_a_leak_or_a_loss(
    network: Network, netns: Netns, before: str
) -> None:
    """There and back, while a connection of the address and one that began before it go on sending. `before` is a
    decision in docs/decisions."""
    family = network.family
    marks = {family.a: network.mark_a, family.b: network.mark_b}
    assert network.sources() == {str(family.node)}
    now = rules_of(marks, LAYOUT)
    earlier = _before_0035(now)
    if before == "0033":
        earlier = _before_0033(earlier, marks)
    network.change([earlier])
    network.flow(network.mark_a)
    assert network.sources() == set()
    with netns.beyond[1]:
        good = socket.socket(family.socket, socket.SOCK_DGRAM)
    with ThreadPoolExecutor(1) as pool, good:
        changes = pool.submit(network.change, [now, earlier] * 5 + [now])
        number = 0
        while not changes.done() or number < 100:
            number += 1
            network.pod.sendto(b"begun before", (str(family.neighbour), 9999))
            good.sendto(str(number).encode(), (str(family.neighbour), 9999))
            text, source = network.neighbour.recvfrom(16)
            assert (text.decode(), source[0]) == (str(number), str(family.a))
        changes.result()
    assert not rule_change(now, network.iptables.read(six=True))
    assert KernelConntrack().forget_stale() == 1
    network.sent = number
    assert network.sources() == {str(family.a)}


def _before_0035(wanted: RuleSet) -> RuleSet:
    """The guard asked its trees for each packet, and the connection was told nothing."""
    return RuleSet(
        wanted.jumps,
        {
            (table, chain): tuple(
                spec.replace(f"-g {MARKED_CHAIN}", f"-g {PASS_CHAIN}").replace(f"-g {LEARN_CHAIN}", "-j RETURN")
                for spec in specs
            )
            for (table, chain), specs in wanted.chains.items()
            if chain not in {MARKED_CHAIN, RESTORE_CHAIN, LEARN_CHAIN}
        },
    )


def _before_0033(wanted: RuleSet, marks: dict[Address, int]) -> RuleSet:
    """REJECT by six bits, and leaves that said more."""
    version = next(address.version for address in marks)
    filters, icmp = ("filter6", "icmp6") if version == 6 else ("filter", "icmp")
    chains: dict[tuple[str, str], tuple[str, ...]] = {}
    for (table, chain), specs in wanted.chains.items():
        if not chain.startswith(REJECT_CHAIN):
            chains[table, chain] = tuple(old for spec in specs for old in _said_before(spec, marks))
    for address in marks:
        last, parent = int(address) & 63, REJECT_CHAIN
        for value, mask, name in ((last & 56, 56, f"{last >> 3:03b}"), (last, 63, f"{last:06b}")):
            child = f"{REJECT_CHAIN}-{name}"
            branch = f"-d {make_address(value, version)}/{make_address(mask, version)} -g {child}"
            chains[filters, parent] = tuple(sorted({*chains.get((filters, parent), ()), branch}))
            parent = child
        new = f"-m conntrack --ctstate NEW -j REJECT --reject-with {icmp}-port-unreachable"
        leaf = f"-d {address}/{address.max_prefixlen} {new}"
        chains[filters, parent] = (*chains.get((filters, parent), ()), leaf)
    return RuleSet(wanted.jumps, chains)


def _said_before(spec: str, marks: dict[Address, int]) -> list[str]:
    if spec == "-m conntrack --ctstate INVALID -j DROP":
        return []
    for address, mark in marks.items():
        exactly, here = f"-m mark --mark {mark:#x}", f"-m conntrack --ctrepldst {address}"
        if spec == f"{exactly} -j {CUT_CHAIN}":
            cut = f"{exactly} -m conntrack ! --ctrepldst {address} --ctstatus CONFIRMED -j {CUT_CHAIN}"
            return [f"{exactly} -m conntrack --ctstate INVALID -j DROP", cut]
        if spec == f"{here} -j {CUT_CHAIN}":
            return [f"-m mark ! --mark {mark:#x} {here} --ctstatus CONFIRMED --ctdir ORIGINAL -j {CUT_CHAIN}"]
    return [spec]


def _with_checksum(segment: bytes, family: Family) -> bytes:
    pseudo = family.pod.packed + family.neighbour.packed + struct.pack("!II", socket.IPPROTO_TCP, len(segment))
    total = sum(struct.unpack(f"!{(len(pseudo) + len(segment)) // 2}H", pseudo + segment))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:]
