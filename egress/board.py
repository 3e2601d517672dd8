"""The nodes and what they host, for placement: which of them are eligible for an address, and which is the best. Pure.

What is asked ten thousand times takes a time that hardly grows with the nodes: addresses that all nodes look at alike
are a group, whose eligible nodes are found once and kept in order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush, heapreplace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from egress.addresses import VERSIONS, Address
from egress.objects import NO_LIMIT, Capacity, EgressPool
from egress.pools import ranges

EGRESS_LABEL = "egress.hawse.dev/egress-node"
"""On a node: it may host addresses of pools that have no nodeSelector."""
ATTEMPTS = 1000
"""How many addresses are at most tried elsewhere, to make room for others that found none."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as placement sees it.

    `barred` says why it takes no new address of any pool, and is empty if it does; `reluctant` why it takes only what
    no other node can take. `gone`: what it hosts is to move at
    once. `drained`: it is to move, one address at a time. `link` is its address and prefix on the outside link, as its
    runner reported it, or None if it has not yet; `other_links` those of the other IP version. `cidrs` are its
    egressCIDRs.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    barred: str = ""
    reluctant: str = ""
    gone: bool = False
    drained: bool = False
    link: IPv4Interface | IPv6Interface | None = None
    hosted: frozenset[Address] = frozenset()
    capacity: Capacity = NO_LIMIT
    cidrs: tuple[IPv4Network | IPv6Network, ...] = ()
    other_links: tuple[IPv4Interface | IPv6Interface, ...] = ()

    @property
    def links(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """All of its addresses on the outside link."""
        return (self.link, *self.other_links) if self.link is not None else ()


def without_reluctant(candidates: Iterable[Candidate]) -> list[Candidate]:
    """`candidates`, of which those that are reluctant take no new address at all."""
    return [replace(node, barred=node.barred or node.reluctant) for node in candidates]


@dataclass(frozen=True, slots=True)
class Unplaced:
    """An address that wants a node, with its namespace and pool; None for one that is placed by egressCIDRs."""

    address: Address
    namespace: str
    pool: EgressPool | None


def unselected(item: Unplaced, node: Candidate) -> str | None:
    """Why the address is not for this node, whatever state the node is in; None if it is."""
    pool = item.pool
    if pool is None:
        covered = any(item.address in cidr for cidr in node.cidrs)
        return None if covered else "without egressCIDRs that hold {address}"
    if pool.node_selector is None:
        return None if EGRESS_LABEL in node.labels else f"without label {EGRESS_LABEL}"
    return None if pool.node_selector.matches(node.labels) else "not matched by the pool's nodeSelector"


def spread(item: Unplaced, labels: Mapping[str, str]) -> str:
    """The value over which the pool spreads its addresses, of a node with `labels`; nodes without one share ""."""
    key = item.pool.topology_key if item.pool is not None else ""
    return labels.get(key, "") if key else ""


@dataclass(slots=True)
class _Group:
    """The addresses that all nodes look at alike, whatever they host: of one pool, and in the same networks.

    `open` are the nodes that only lack of room or the namespace's own addresses could speak against; `reasons` counts
    the others. `heaps` has the open ones by their spread, those with fewest addresses first: a number in it may be out
    of date, and is then too low.
    """

    item: Unplaced
    open: list[str]
    reasons: Counter[str]
    heaps: dict[str, list[tuple[int, str]]]
    floor: int | None = None
    explained: dict[frozenset[str], str] = field(default_factory=dict)


class Board:
    """The nodes and what they host, while addresses are put on them.

    `siblings` has every address of each namespace that is asked about. What a candidate hosts stays where it is.
    """

    def __init__(self, candidates: Iterable[Candidate], siblings: Mapping[str, Iterable[Address]]) -> None:
        self._nodes = {node.name: node for node in sorted(candidates, key=lambda node: node.name)}
        self._load = {name: len(node.hosted) for name, node in self._nodes.items()}
        self._links = _Networks(link.network for node in self._nodes.values() for link in node.links)
        self._cidrs = _Networks(cidr for node in self._nodes.values() for cidr in node.cidrs)
        self._own = {link.ip for node in self._nodes.values() for link in node.links}
        self._families = {
            name: Counter(address.version for address in node.hosted)
            for name, node in self._nodes.items()
            if node.capacity != NO_LIMIT
        }
        self._tallies: dict[str, Counter[str]] = {}
        self._zones: dict[str, Counter[str]] = {}
        self._groups: dict[tuple[object, ...], _Group] = {}
        self._given: dict[str, dict[Address, Unplaced]] = {name: {} for name in self._nodes}
        self._hopeless: set[str] = set()
        self._attempts = ATTEMPTS
        self._crowds: dict[tuple[str, int], Counter[str]] = {
            (namespace, version): Counter() for namespace in siblings for version in VERSIONS
        }
        owners: dict[Address, list[str]] = {}
        for namespace, addresses in siblings.items():
            for address in addresses:
                owners.setdefault(address, []).append(namespace)
        known = set(owners)
        for name, node in self._nodes.items():
            for address in known & node.hosted:
                for namespace in owners[address]:
                    self._crowds[namespace, address.version][name] += 1

    # What is there

    def given(self) -> dict[Address, str]:
        """The node of each address that was put on one."""
        return {address: name for name, items in self._given.items() for address in items}

    def choices(self, item: Unplaced) -> int:
        """How many nodes could host it, had they room."""
        return len(self._group(item).open)

    def best(self, item: Unplaced) -> str | None:
        """The node that the objective chooses, or None if none is eligible."""
        group, crowd = self._group(item), self._crowd(item)
        kin = self._kin(item)
        totals = self._zone_totals(item)
        found: list[tuple[int, int, int, str]] = []
        for zone, heap in group.heaps.items():
            passed = []
            while heap:
                load, name = heap[0]
                if load != self._load[name]:
                    heapreplace(heap, (self._load[name], name))
                elif self._full(item, name) is not None:
                    heappop(heap)
                elif crowd[name]:
                    passed.append(heappop(heap))
                else:
                    found.append((kin[zone], load, totals[zone], name))
                    break
            for entry in passed:
                heappush(heap, entry)
        return min(found)[-1] if found else None

    def better(self, item: Unplaced, source: str) -> str | None:
        """The node that the objective chooses for an address that `source` hosts, perhaps `source` again."""
        self._group(item)  # its counts are of what is hosted now
        self._count(item, source, -1)
        name = self.best(item)
        self._count(item, source, 1)
        return name

    def load(self, name: str) -> int:
        """How many addresses the node hosts."""
        return self._load[name]

    def floor(self, item: Unplaced) -> int:
        """The fewest addresses that a node hosts which `item` could go to. For a board that nothing is put on."""
        group = self._group(item)
        if group.floor is None:
            roomy = (self._load[name] for name in group.open if self._full(item, name) is None)
            group.floor = min(roomy, default=max(self._load.values()))
        return group.floor

    def objection(self, item: Unplaced, name: str) -> str | None:
        """Why node `name` may not host the address; the first reason that holds, or None."""
        node = self._nodes.get(name)
        if node is None:
            return "without a HostSubnet"
        self._group(item)  # for its counts
        reason = self._standing(item, node) or self._passing(item, name)
        return _filled(reason, item) if reason is not None else None

    def why_not(self, item: Unplaced) -> str:
        """Why no node is eligible: the nodes counted by their objections."""
        if not self._nodes:
            return "there is no node"
        group, crowd = self._group(item), self._crowd(item)
        kin = frozenset(name for name in group.open if crowd[name])
        if kin not in group.explained:
            reasons = group.reasons + Counter(self._passing(item, name) or "free" for name in group.open)
            counted = sorted(reasons.items())
            group.explained[kin] = ", ".join(f"{count} {reason}" for reason, count in counted)
        return "no node is eligible: " + _filled(group.explained[kin], item)

    # What changes it

    def put(self, item: Unplaced, name: str) -> None:
        """Puts the address on a node."""
        self._given[name][item.address] = item
        self._count(item, name, 1)

    def make_room(self, item: Unplaced) -> bool:
        """Puts the address on a node by moving others that were put on theirs, each to another; False if that fails,
        and then nothing has changed."""
        alone = not self._crowd(item).total()
        visited = set(self._hopeless) if alone else set()
        if self._make_room(item, visited):
            return True
        if alone:  # whoever comes later fails at these nodes of the same
            self._hopeless |= visited
        return False

    def _make_room(self, item: Unplaced, visited: set[str]) -> bool:
        """An augmenting path, as in a matching: a node is looked at once, for moving it again could win nothing."""
        for name in self._group(item).open:
            if name in visited or self._passing(item, name) is None:
                continue
            visited.add(name)
            for other in [*self._given[name].values()]:
                if self._attempts <= 0:
                    return False
                self._attempts -= 1
                self._take(other, name)
                if self._passing(item, name) is None:
                    self.put(item, name)
                    if self._elsewhere(other) or self._make_room(other, visited):
                        return True
                    self._take(item, name)
                self.put(other, name)
        return False

    def _elsewhere(self, item: Unplaced) -> bool:
        free = [(self._load[name], name) for name in self._group(item).open if self._passing(item, name) is None]
        if free:
            self.put(item, min(free)[1])
        return bool(free)

    def _take(self, item: Unplaced, name: str) -> None:
        del self._given[name][item.address]
        self._count(item, name, -1)

    def _count(self, item: Unplaced, name: str, step: int) -> None:
        self._load[name] += step
        self._crowd(item)[name] += step
        if name in self._families:
            self._families[name][item.address.version] += step
        if item.pool is not None and item.pool.name in self._tallies:
            self._tallies[item.pool.name][name] += step
            self._zones[item.pool.name][spread(item, self._nodes[name].labels)] += step

    # What speaks against a node

    def _group(self, item: Unplaced) -> _Group:
        address = item.address
        where: tuple[object, ...] = self._links.holding(address)
        if item.pool is None:
            where = (self._cidrs.holding(address), *where)
        key = (item.pool and item.pool.name, address.version, address if address in self._own else None, where)
        if key not in self._groups:
            self._groups[key] = self._new_group(item)
        return self._groups[key]

    def _new_group(self, item: Unplaced) -> _Group:
        group = _Group(item, [], Counter(), {})
        for name, node in self._nodes.items():
            reason = self._standing(item, node)
            if reason is not None:
                group.reasons[reason] += 1
                continue
            group.open.append(name)
            group.heaps.setdefault(spread(item, node.labels), []).append((self._load[name], name))
        for heap in group.heaps.values():
            heapify(heap)
        pool = item.pool
        if pool is not None and (pool.max_addresses_per_node or pool.topology_key) and pool.name not in self._tallies:
            holds = _membership(pool)
            tally = Counter({name: sum(map(holds, node.hosted)) for name, node in self._nodes.items()})
            self._tallies[pool.name], zones = tally, Counter[str]()
            for name, count in tally.items():
                zones[spread(item, self._nodes[name].labels)] += count
            self._zones[pool.name] = zones
        return group

    def _standing(self, item: Unplaced, node: Candidate) -> str | None:
        """What speaks against the node whatever it hosts."""
        reason = unselected(item, node) or node.barred
        if reason:
            return reason
        if node.link is None:
            return "whose runner has not reported yet"
        if not any(item.address in link.network for link in node.links):
            return "in a subnet without {address}"
        if item.address in self._own:
            mine = any(item.address == link.ip for link in node.links)
            return "whose own IP is {address}" if mine else "that is not {address} itself"
        return None

    def _passing(self, item: Unplaced, name: str) -> str | None:
        """What speaks against the node because of what it hosts."""
        full = self._full(item, name)
        if full is None and self._crowd(item)[name]:
            return "hosting another address of namespace {namespace}"
        return full

    def _full(self, item: Unplaced, name: str) -> str | None:
        pool = item.pool
        if pool is not None and (most := pool.max_addresses_per_node) and self._tallies[pool.name][name] >= most:
            return f"full with {most} addresses of pool {pool.name}"
        if name in self._families:
            hosted, capacity = self._families[name], self._nodes[name].capacity
            own = capacity.ipv4 if item.address.version == 4 else capacity.ipv6
            if own is not None and hosted[item.address.version] >= own:
                return f"whose cloud lets it have {own} IPv{item.address.version} addresses"
            if capacity.ip is not None and hosted.total() >= capacity.ip:
                return f"whose cloud lets it have {capacity.ip} addresses"
        return None

    # What is counted

    def _crowd(self, item: Unplaced) -> Counter[str]:
        """How many of the namespace's addresses each node hosts, of the IP version: one of each may share a node."""
        return self._crowds[item.namespace, item.address.version]

    def _kin(self, item: Unplaced) -> Counter[str]:
        """How many of the namespace's addresses there are for each spread."""
        kin = Counter[str]()
        if item.pool is not None and item.pool.topology_key:
            for name, count in self._crowd(item).items():
                kin[spread(item, self._nodes[name].labels)] += count
        return kin

    def _zone_totals(self, item: Unplaced) -> Counter[str]:
        if item.pool is None or item.pool.name not in self._zones:
            return Counter()
        return self._zones[item.pool.name]


def _filled(text: str, item: Unplaced) -> str:
    return text.replace("{address}", str(item.address)).replace("{namespace}", item.namespace)


def _membership(pool: EgressPool) -> Callable[[Address], bool]:
    """Whether an address is one that the pool gives."""
    pieces = ranges(pool)
    starts = [(piece.version, piece.first) for piece in pieces]

    def holds(address: Address) -> bool:
        index = bisect_right(starts, (address.version, int(address))) - 1
        return index >= 0 and address in pieces[index]

    return holds


class _Networks:
    """Finds the networks that hold an address, in a time that grows with their different lengths alone."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        self._by_length: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            starts = self._by_length.setdefault((network.version, shift), set())
            starts.add(int(network.network_address) >> shift)

    def holding(self, address: Address) -> tuple[tuple[int, int], ...]:
        """What tells these networks from all others: of each, what is cut off and what is left."""
        value, version = int(address), address.version
        return tuple(
            (shift, value >> shift)
            for (family, shift), starts in self._by_length.items()
            if family == version and value >> shift in starts
        )
