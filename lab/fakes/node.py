"""A node in memory: the same protocols as `node_runner.drivers`, as strict as Open vSwitch, iptables and the kernel.

Each fake counts its `writes`, so that a test can prove that a pass with nothing to do does nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_interface
from threading import Event

from egress.addresses import Address
from egress.delta import FlowChange, RuleChange, RulesFound, is_ours, traffic_of
from egress.program import Flow, Group, Layout, Traffic
from egress.rules import OWN_PREFIX, is_own, table_name, version_of
from node_runner.drivers.errors import (
    AddressForeign,
    AddressIsNodeIP,
    AddressOutsideSubnet,
    BridgeMissing,
    ChainMissing,
    InterfaceMissing,
    Ip6tablesFailed,
    IptablesFailed,
    NodeError,
    OpenVSwitchRefused,
)
from node_runner.drivers.flows import path_of
from node_runner.drivers.ports import (
    BridgeFacts,
    FlowCount,
    FlowsFound,
    LinkFacts,
    LinkSight,
    Node,
    ProbeTiming,
    askable,
)

_GROUP_ACTION = re.compile(r"\bgroup:(\d+)")
_TARGET = re.compile(r"(?:^| )-[jg] (\S+)")
_JUMP = re.compile(rf"-[jg] {re.escape(OWN_PREFIX)}\S+")
_BUILTIN_TARGETS = frozenset(
    {"ACCEPT", "DROP", "RETURN", "REJECT", "MASQUERADE", "SNAT", "DNAT", "MARK", "CONNMARK", "LOG"}
)
_BUILTIN_CHAINS = {
    f"{table}{suffix}": chains
    for suffix in ("", "6")
    for table, chains in {
        "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
        "filter": ("INPUT", "FORWARD", "OUTPUT"),
    }.items()
}
_DEFAULT_TIMING = ProbeTiming()


class FakeFlows:
    """A bridge. Set `present` to False to take it away; `put` plays somebody else."""

    def __init__(self, facts: BridgeFacts, table: int = 100) -> None:
        self.present = True
        self.writes = 0
        self._facts = facts
        self._table = table
        self._flows: dict[tuple[int, int, str], Flow] = {}
        self._groups: dict[int, Group] = {}
        self._changed = Event()

    def facts(self) -> BridgeFacts:
        """See ports.Flows."""
        self._check()
        return self._facts

    def give_pods_ipv6(self) -> None:
        """tun0 gets an IPv6 address."""
        self._facts = replace(self._facts, ipv6=True)

    def read(self, *, everywhere: bool = False) -> FlowsFound:
        """See ports.Flows."""
        self._check()
        seen = [flow for flow in self._flows.values() if everywhere or flow.table == self._table]
        flows = frozenset(flow for flow in seen if is_ours(flow.cookie))
        in_use = everywhere or any("group:" in flow.actions for flow in flows)
        foreign = frozenset(flow.key for flow in seen if not is_ours(flow.cookie) and flow.table == self._table)
        return FlowsFound(flows, frozenset(self._groups.values()) if in_use else frozenset(), foreign)

    def counts(self) -> dict[Traffic, FlowCount]:
        """See ports.Flows. Nothing passes here."""
        self._check()
        ours = [flow for flow in self._flows.values() if flow.table == self._table and is_ours(flow.cookie)]
        return {traffic_of(flow): FlowCount(path_of(flow.actions), 0, 0) for flow in ours}

    def ready(self) -> None:
        """See ports."""

    def close(self) -> None:
        """See ports."""

    def apply(self, change: FlowChange) -> None:
        """See ports.Flows. As OVS does: a flow may not name a missing group, and a group takes its flows with it."""
        self._check()
        if not change:
            return
        flows, groups = dict(self._flows), dict(self._groups)
        groups |= {group.group_id: group for group in change.add_groups}
        for flow in change.remove:
            if (there := flows.get(flow.key)) is not None and is_ours(there.cookie):
                del flows[flow.key]
        for flow in change.add:
            if (named := _GROUP_ACTION.search(flow.actions)) is not None and int(named[1]) not in groups:
                raise OpenVSwitchRefused(f"Open vSwitch refused the change: no group {named[1]} for {flow}")
            flows[flow.key] = flow
        for group in change.remove_groups:
            groups.pop(group.group_id, None)
            flows = {key: flow for key, flow in flows.items() if f"group:{group.group_id}" != flow.actions}
        self._flows, self._groups = flows, groups
        self.writes += 1
        self._changed.set()

    def watch(self, callback: Callable[[], None], stop: Event) -> None:
        """See ports.Flows."""
        self._check()
        callback()
        while not stop.is_set():
            if self._changed.wait(0.05):
                self._changed.clear()
                callback()

    def put(self, flow: Flow) -> None:
        """Adds `flow` as somebody else would."""
        self._flows[flow.key] = flow
        self._changed.set()

    def take(self, flow: Flow) -> None:
        """Takes `flow` away as somebody else would, if it is there."""
        if self._flows.pop(flow.key, None) is not None:
            self._changed.set()

    def wipe(self) -> None:
        """What `systemctl restart openvswitch` may leave: nothing."""
        self._flows.clear()
        self._groups.clear()
        self._changed.set()

    def text(self) -> str:
        """All flows and groups, sorted."""
        lines = [f"cookie={flow.cookie:#x} {flow}" for flow in self._flows.values()]
        return "\n".join(sorted(lines + [str(group) for group in self._groups.values()]))

    def _check(self) -> None:
        if not self.present:
            raise BridgeMissing("Open vSwitch has no bridge br0: start the cluster's network on this node")


class FakeNat:
    """iptables' and ip6tables' nat and filter tables, with `masquerade_chain` there: of IPv4 unless `present` is False,
    of IPv6 unless `present_six` is. `reads_six` counts the looks at ip6tables. `six_cannot_be` has what of them fails:
    "read", "written"."""

    def __init__(
        self, masquerade_chain: str = "OPENSHIFT-MASQUERADE", *, present: bool = True, present_six: bool = True
    ) -> None:
        self.writes = 0
        self.reads_six = 0
        self.six_cannot_be: set[str] = set()
        self._parent = masquerade_chain
        self._touched = True
        self._six = False
        self._chains: dict[tuple[str, str], list[str]] = {
            (table, chain): [] for table, chains in _BUILTIN_CHAINS.items() for chain in chains
        }
        if present:
            self._chains.setdefault(("nat", masquerade_chain), [])
        if present_six:
            self._chains.setdefault(("nat6", masquerade_chain), [])

    def read(self, *, six: bool = False) -> RulesFound:
        """See ports.Nat."""
        self._touched = False
        self._six = six or any(version_of(key[0]) == 6 for key in self._chains if is_own(*key))
        self.reads_six += self._six
        unread = "ip6tables-save failed" if self._six and "read" in self.six_cannot_be else ""
        reads_six = self._six and not unread
        chains = {key: specs for key, specs in self._chains.items() if reads_six or version_of(key[0]) == 4}
        own = {key: tuple(specs) for key, specs in chains.items() if is_own(*key)}
        usual = {("nat", self._parent), ("nat", "POSTROUTING"), ("filter", "INPUT"), ("filter", "FORWARD")}
        parents = {
            (table, chain): tuple(specs)
            for (table, chain), specs in chains.items()
            if not is_own(table, chain)
            and ((table.removesuffix("6"), chain) in usual or any(map(_JUMP.fullmatch, specs)))
        }
        return RulesFound(own, parents, unread)

    def unchanged(self, *, six: bool = False) -> bool:
        """See ports.Nat."""
        return not self._touched and (self._six or not six)

    def ready(self) -> None:
        """See ports."""

    def apply(self, change: RuleChange) -> None:
        """See ports.Nat. As iptables-restore --noflush does: each table at once or not at all, one after the other."""
        for table, script in sorted(change.scripts.items(), key=lambda item: version_of(item[0])):
            if version_of(table) == 6 and "written" in self.six_cannot_be:
                raise Ip6tablesFailed("ip6tables-restore failed")
            first, *lines = script.splitlines()
            if first != f"*{table.removesuffix('6')}":
                raise IptablesFailed(f"a script for {table} that begins with {first}")
            self._restore(table, lines)

    def close(self) -> None:
        """See ports."""

    def put(self, table: str, chain: str, spec: str) -> None:
        """Appends a rule as somebody else would, creating the chain where need be."""
        self._chains.setdefault((table, chain), []).append(spec)
        self._touched = True

    def flush(self, table: str, chain: str) -> None:
        """Empties a chain as somebody else would."""
        self._chains[table, chain].clear()
        self._touched = True

    def text(self) -> str:
        """All chains and rules."""
        return "\n".join(
            f"{table} :{chain}" + "".join(f"\n-A {chain} {spec}" for spec in specs)
            for (table, chain), specs in sorted(self._chains.items())
        )

    def _restore(self, table: str, lines: list[str]) -> None:
        chains = {chain: list(specs) for (owner, chain), specs in self._chains.items() if owner == table}
        for line in lines:
            if line == "COMMIT":
                break
            try:
                _restore_line(chains, line)
            except (KeyError, ValueError):
                if (table_name("nat", version_of(table)), self._parent) not in self._chains:
                    raise ChainMissing(f"chain {self._parent} does not exist: set the masquerade chain") from None
                raise IptablesFailed(f"iptables-restore refused {line!r}; nothing of table {table} changed") from None
        for specs in chains.values():
            for spec in specs:
                target = _TARGET.search(spec)
                if target and target[1] not in chains and target[1] not in _BUILTIN_TARGETS:
                    raise IptablesFailed(f"a rule jumps to chain {target[1]}, which does not exist")
        others = {key: specs for key, specs in self._chains.items() if key[0] != table}
        self._chains = others | {(table, chain): specs for chain, specs in chains.items()}
        self.writes += 1


def _restore_line(chains: dict[str, list[str]], line: str) -> None:
    """One line of iptables-restore input; KeyError or ValueError for what iptables refuses."""
    if line.startswith(":"):
        chains[line[1:].split(maxsplit=1)[0]] = []
        return
    verb, chain, *rest = line.split(" ", 2)
    spec = rest[0] if rest else ""
    match verb:
        case "-A":
            chains[chain].append(spec)
        case "-I":
            position, _, inserted = spec.partition(" ")
            chains[chain].insert(int(position) - 1, inserted)
        case "-D":
            chains[chain].remove(spec)
        case "-F":
            chains[chain].clear()
        case "-X":
            jumped = any(
                (target := _TARGET.search(other)) is not None and target[1] == chain
                for specs in chains.values()
                for other in specs
            )
            if chains[chain] or jumped:
                raise ValueError(line)
            del chains[chain]
        case _:
            raise ValueError(line)


class FakeLinks:
    """An interface with the node's IP. `foreign` are addresses that somebody else has put on the node."""

    def __init__(self, node_ip: Address, facts: LinkFacts) -> None:
        self.present = True
        self.carrier = True
        self.writes = 0
        self.foreign: set[Address] = set()
        self.strays: set[Address] = set()
        self._node_ip = node_ip
        self._facts = facts
        self._own: set[Address] = set()
        self._changed = Event()

    def facts(self) -> LinkFacts:
        """See ports.Links."""
        if not self.present:
            raise InterfaceMissing(f"no interface of this node carries {self._node_ip}: bring the interface up")
        return replace(self._facts, carrier=self.carrier)

    def read(self) -> frozenset[Address]:
        """See ports.Links."""
        self.facts()
        return frozenset(self._own)

    def look(self, addresses: Iterable[Address]) -> LinkSight:
        """See ports.Links."""
        return LinkSight(self.facts(), self.read(), self.refusals(addresses))

    def apply(self, add: AbstractSet[Address], remove: AbstractSet[Address]) -> dict[Address, NodeError]:
        """See ports.Links."""
        self.facts()
        if not add and not remove:
            return {}
        refused = self.refusals(add)
        refused |= {address: _foreign(address) for address in remove & self.foreign}
        before = set(self._own)
        self._own -= remove
        self._own |= add - refused.keys()
        if self._own != before:
            self.writes += 1
            self._changed.set()
        return refused

    def sweep(self) -> frozenset[Address]:
        """See ports.Links."""
        swept, self.strays = frozenset(self.strays), set()
        return swept

    def refusals(self, addresses: Iterable[Address]) -> dict[Address, NodeError]:
        """See ports.Links."""
        self.facts()
        own = (ip_interface((self._node_ip, self._facts.prefix_length)), *self._facts.other_ips)
        refused: dict[Address, NodeError] = {}
        for address in addresses:
            subnet = next((each.network for each in own if address in each.network), None)
            if address in {each.ip for each in own}:
                refused[address] = AddressIsNodeIP(f"{address} is the node's own IP; assign another address")
            elif subnet is None or address in reserved_in(subnet):
                refused[address] = AddressOutsideSubnet(f"{address} is not a host address of this node's subnets")
            elif address in self.foreign:
                refused[address] = _foreign(address)
        return refused

    def watch(self, callback: Callable[[], None], stop: Event) -> None:
        """See ports.Links."""
        while not stop.is_set():
            if self._changed.wait(0.05):
                self._changed.clear()
                callback()

    def take_away(self, address: Address) -> None:
        """Removes an address of ours as somebody else would."""
        self._own.discard(address)
        self._changed.set()

    def text(self) -> str:
        """The node's addresses."""
        return "\n".join(sorted([*map(str, self.foreign), *(f"{address} ours" for address in self._own)]))


class FakeArp:
    """A link on which `neighbours` (address to MAC) answer. Several nodes share a link by sharing the dictionary."""

    def __init__(self, neighbours: dict[Address, str] | None = None) -> None:
        self.neighbours: dict[Address, str] = {} if neighbours is None else neighbours
        self.announced: list[tuple[str, Address]] = []

    def probe(
        self, interface: str, mac: str, addresses: Iterable[Address], timing: ProbeTiming = _DEFAULT_TIMING
    ) -> dict[Address, str]:
        """See ports.Arp. At once: the timing is the real link's business."""
        del interface, timing
        return self._others(mac, addresses)

    def who_has(
        self, link: LinkFacts, source: Address, addresses: Iterable[Address], timing: ProbeTiming = _DEFAULT_TIMING
    ) -> dict[Address, str]:
        """See ports.Arp."""
        del timing
        return self._others(link.mac, [each for each in addresses if askable(link, source, each) is not None])

    def _others(self, mac: str, addresses: Iterable[Address]) -> dict[Address, str]:
        found: dict[Address, str] = {}
        for address in addresses:
            holder = self.neighbours.get(address, mac)
            if holder != mac:
                found[address] = holder
        return found

    def announce(self, interface: str, mac: str, addresses: Iterable[Address]) -> None:
        """See ports.Arp."""
        del interface
        self.announced += [(mac, address) for address in addresses]


class FakeConntrack:
    """Connections by the address they are translated to, and the number of those that the guard has cut."""

    def __init__(self) -> None:
        self.connections: Counter[Address] = Counter()
        self.stale = 0
        self.writes = 0

    def count(self, addresses: Iterable[Address]) -> Mapping[Address, int]:
        """See ports.Conntrack."""
        return {address: self.connections[address] for address in addresses if self.connections[address]}

    def forget(self, addresses: Iterable[Address]) -> int:
        """See ports.Conntrack."""
        ended = sum(self.connections.pop(address, 0) for address in set(addresses))
        self.writes += bool(ended)
        return ended

    def forget_stale(self) -> int:
        """See ports.Conntrack."""
        ended, self.stale = self.stale, 0
        self.writes += bool(ended)
        return ended


@dataclass(frozen=True, slots=True)
class FakeNode:
    """The fakes of one node, and as `node` what a runner is given."""

    flows: FakeFlows
    nat: FakeNat
    links: FakeLinks
    arp: FakeArp
    conntrack: FakeConntrack = field(default_factory=FakeConntrack)

    @property
    def node(self) -> Node:
        """The fakes as the runner sees them."""
        return Node(self.flows, self.nat, self.links, self.arp, self.conntrack)

    @property
    def writes(self) -> int:
        """How often anything was written."""
        return self.flows.writes + self.nat.writes + self.links.writes + self.conntrack.writes


def fake_node(
    node_ip: str = "192.168.1.18",
    *,
    layout: Layout | None = None,
    prefix_length: int = 24,
    other_ips: Iterable[str] = (),
    neighbours: dict[Address, str] | None = None,
) -> FakeNode:
    """A node as the reference example has it (DESIGN.md §6). Nodes that share `neighbours` share a link."""
    layout = layout or Layout()
    address = IPv4Address(node_ip)
    mac = "02:00:" + address.packed.hex(":")
    tun_mac = "0a:58:" + address.packed.hex(":")
    return FakeNode(
        flows=FakeFlows(BridgeFacts(1, tun_mac), layout.egress_table),
        nat=FakeNat(layout.masquerade_chain),
        links=FakeLinks(
            address, LinkFacts("eth0", 2, mac, prefix_length, other_ips=tuple(map(ip_interface, other_ips)))
        ),
        arp=FakeArp(neighbours),
    )


def reserved_in(subnet: IPv4Network | IPv6Network) -> tuple[Address, ...]:
    """The addresses of a subnet that no node may have: its network and broadcast address, of IPv6 its routers'."""
    if subnet.num_addresses < 3:
        return ()
    return (subnet.network_address, *((subnet.broadcast_address,) if subnet.version == 4 else ()))


def _foreign(address: Address) -> AddressForeign:
    return AddressForeign(f"{address} is on this node already and was not put there by Hawse")
