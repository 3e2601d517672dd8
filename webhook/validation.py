"""What is wrong with an object that somebody wants to write, as far as the ledger knows. Pure.

Only what a change *adds* is judged: an object that was there before the webhook, or that is in a contradiction already,
can always be mended step by step. What is refused names the objects concerned; it is for cluster admins.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from egress import pools
from egress.addresses import Address, AddressError, Range, addresses_of, parse_address, subtract
from egress.listing import Listed
from egress.objects import ADDRESSES_ANNOTATION, EgressAddress, EgressPool, HostSubnet, NetNamespace
from egress.planning import MAX_NETID

SHOWN = 3
"""How many addresses or ranges a message lists at most."""
Entry = tuple[str, str]
"""The state (reserved, claimed or quarantined) of an address and its holder, as the ledger has them."""


class RefusedError(Exception):
    """The object may not be written so; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the ledger knows. Without any of it, only what an object says of itself is judged.

    `entries` has the addresses that somebody has, of those that matter to the object, and `listed` which objects listed
    them when the workers looked last. `netids` says whose traffic each NetID of the nodes' table is, `links` the nodes'
    own addresses and subnets on the outside link.
    """

    pools: Sequence[EgressPool] = ()
    node_ips: frozenset[Address] = frozenset()
    entries: Mapping[Address, Entry] = field(default_factory=dict)
    listed: Mapping[Address, Listed] = field(default_factory=dict)
    netids: Mapping[int, str] = field(default_factory=dict)
    links: Mapping[str, tuple[IPv4Interface | IPv6Interface, ...]] = field(default_factory=dict)

    def hosts(self, address: Address) -> frozenset[str]:
        """The HostSubnets that list the address."""
        return frozenset(self.listed.get(address, Listed()).hosts)

    def namespaces(self, address: Address) -> frozenset[str]:
        """The namespaces whose NetNamespace lists the address, or that Hawse has given it to."""
        kind, _, name = self.entries.get(address, ("", ""))[1].partition("/")
        return frozenset(self.listed.get(address, Listed()).namespaces) | ({name} if kind == "ns" else frozenset())


def namespace_addresses(annotations: Mapping[str, str], given: Collection[Address]) -> bool:
    """Whether the addresses annotation of a new namespace says what Hawse has `given` to it, and nothing else."""
    try:
        written = pools.annotated_addresses(annotations)
    except AddressError:
        return False
    text = ",".join(map(str, written))
    return bool(written) and text == annotations[ADDRESSES_ANNOTATION] and set(written) <= set(given)


def net_namespace(new: NetNamespace, old: NetNamespace | None, facts: Facts) -> list[str]:
    """The warnings for a NetNamespace that is created or changed. RefusedError if it must not be."""
    added = _added(new.egress_ips, old.egress_ips if old else ())
    if new.egress_ips and not 0 < new.netid <= MAX_NETID and (added or old is None or old.netid != new.netid):
        what = "is the cluster's global network" if new.netid == 0 else f"is outside 1-{MAX_NETID}"
        raise RefusedError(f"NetID {new.netid} {what}, which has no egress addresses: take the egressIPs away")
    warnings = []
    for address in added:
        if address in facts.node_ips:
            raise RefusedError(f"address {address} is a node's own IP")
        warnings += _claimed_for(address, new.name, facts)
    for node, together in _grouped(new.egress_ips, added, facts.hosts):
        warnings.append(_on_one_node(together, new.name, node))
    other = facts.netids.get(new.netid, new.name)
    if other != new.name and new.egress_ips:
        warnings.append(f"NetID {new.netid} is NetNamespace {other}'s too: the traffic of both is dropped")
    kept = set(addresses_of(new.egress_ips))
    warnings += [
        f"address {address} is given to namespace {new.name} by Hawse, which will put it back"
        for address in addresses_of(old.egress_ips if old else ())
        if address not in kept and facts.entries.get(address) == ("claimed", f"ns/{new.name}")
    ]
    return warnings


def host_subnet(new: HostSubnet, old: HostSubnet | None, facts: Facts) -> list[str]:
    """The warnings for a HostSubnet that is created or changed. RefusedError if it must not be."""
    warnings = []
    own = {*facts.node_ips, *addresses_of([new.host_ip])}
    links = facts.links.get(new.name, ())
    added = _added(new.egress_ips, old.egress_ips if old else ())
    for address in added:
        if address in own:
            raise RefusedError(f"address {address} is a node's own IP")
        there = _listed(sorted(facts.hosts(address) - {new.name}))
        if there:
            warnings.append(
                f"address {address} is on node {there}, and on {new.name} now: its traffic is dropped until only one "
                f"has it; take it out of HostSubnet {there}"
            )
        if links and not any(address in link.network for link in links):
            subnets = " and ".join(str(link.network) for link in links)
            warnings.append(f"address {address} is outside {subnets}, the subnet of {new.name}, which refuses it")
        if address not in facts.entries:
            warnings += _pooled(address, facts)
    for namespace, together in _grouped(new.egress_ips, added, facts.namespaces):
        warnings.append(_on_one_node(together, namespace, new.name))
    return warnings


def pool(
    new: EgressPool, old: EgressPool | None, facts: Facts, cluster_networks: Iterable[IPv4Network | IPv6Network] = ()
) -> list[str]:
    """The warnings for a pool that is created or changed. RefusedError if it must not be.

    `facts.entries` must have all addresses in use.
    """
    after, before = pools.ranges(new), _ranges(old)
    gained, lost = subtract(after, before), subtract(before, after)
    for other in facts.pools:
        # One that is being deleted gives nothing any more: its successor may have the same addresses.
        shared = _shared(gained, _ranges(other)) if other.name != new.name and not other.deleting else []
        if shared:
            raise RefusedError(
                f"pools {new.name} and {other.name} overlap in {_listed(shared)}: take it out of one of them"
            )
    warnings = []
    nodes = _sorted(address for address in facts.node_ips if any(address in piece for piece in gained))
    if nodes:
        warnings.append(f"pool {new.name} leaves out the nodes' own IPs: {_listed(nodes)}")
    for network in cluster_networks:
        inside = _shared(gained, [Range(network.version, int(network.network_address), int(network.broadcast_address))])
        if inside:
            warnings.append(f"{_listed(inside)} is in the cluster's own network {network}: nothing outside can answer")
    stranded = _in_use(lost, facts)
    if stranded:
        warnings.append(
            f"{len(stranded)} of the addresses that pool {new.name} loses are in use ({_listed(stranded)}): they stay "
            "with their namespaces, and are not given to them again when these come back"
        )
    return warnings


def pool_deleted(old: EgressPool, facts: Facts) -> list[str]:
    """The warnings for a pool that is deleted. `facts.entries` must have all addresses in use."""
    used = _in_use(_ranges(old), facts)
    if not used:
        return []
    return [
        f"{len(used)} addresses of pool {old.name} are in use ({_listed(used)}): it gives no more of them, and is gone "
        "when their namespaces are and their quarantine is over"
    ]


def egress_address(new: EgressAddress, old: EgressAddress | None, facts: Facts) -> list[str]:
    """The warnings for a claim that a person makes by hand. RefusedError if it must not be, or if it is a change."""
    if old is not None and _spec(new) != _spec(old):
        raise RefusedError(f"the spec of EgressAddress {new.address} is Hawse's alone to change")
    if old is not None:
        return []
    address = parse_address(new.address)
    if pools.is_system(new.namespace):
        raise RefusedError(f"namespace {new.namespace} is the system's: Hawse never gives it an address")
    if address in facts.node_ips:
        raise RefusedError(f"address {address} is a node's own IP")
    warnings = _claimed_for(address, new.namespace, facts, claim=True)
    named = [pool for pool in facts.pools if pool.name == new.pool]
    if facts.pools and not any(address in piece for pool in named for piece in _ranges(pool)):
        what = f"outside pool {new.pool}" if named else f"of pool {new.pool!r}, which does not exist"
        warnings.append(f"address {address} is {what}: Hawse finds no node for it; put it on a HostSubnet by hand")
    return warnings


def _added(texts: Sequence[str], before: Sequence[str]) -> list[Address]:
    """The addresses that are new in a list. RefusedError if a new entry is no address or is in the list already."""
    rest = Counter(before)
    new = []
    for text in texts:
        if rest[text] > 0:
            rest[text] -= 1
        else:
            new.append(text)
    known = set(addresses_of((Counter(texts) - Counter(new)).elements()))
    added: list[Address] = []
    for text in new:
        try:
            address = parse_address(text)
        except AddressError as error:
            raise RefusedError(f"egressIPs: {error}") from None
        if address in known:
            raise RefusedError(f"egressIPs: {address} is listed twice")
        known.add(address)
        added.append(address)
    return added


def _grouped(
    texts: Iterable[str], added: Collection[Address], names: Callable[[Address], Iterable[str]]
) -> list[tuple[str, list[Address]]]:
    """Each name that several addresses of a list share, one of them at least an added one, with these addresses. One of
    each IP version is as it should be."""
    groups: dict[tuple[str, int], list[Address]] = defaultdict(list)
    for address in dict.fromkeys(addresses_of(texts)):
        for name in names(address):
            groups[name, address.version].append(address)
    new = set(added)
    return [
        (name, group) for (name, _), group in sorted(groups.items()) if len(group) > 1 and not new.isdisjoint(group)
    ]


def _on_one_node(addresses: Sequence[Address], namespace: str, node: str) -> str:
    return (
        f"addresses {_listed(addresses)} of namespace {namespace} are on one node, {node}: none of them carries its "
        "traffic until each is on a node of its own"
    )


def _claimed_for(address: Address, namespace: str, facts: Facts, *, claim: bool = False) -> list[str]:
    """The warnings where `address` is to be `namespace`'s by hand. RefusedError if Hawse has given it to another."""
    state, holder = facts.entries.get(address, ("", ""))
    kind, _, name = holder.partition("/")
    if kind == "uid":
        raise RefusedError(f"address {address} is being given to a namespace that is just created: choose another")
    if kind == "ns" and name != namespace:
        raise RefusedError(f"address {address} {_STATES[state].format(name)}: choose another")
    # What was set by hand is known from the last look at the objects, and may have been taken away since.
    there = _listed(sorted(facts.namespaces(address) - {namespace}))
    if there:
        return [
            f"address {address} was last seen in NetNamespace {there}: while both have it, the traffic of both drops"
        ]
    return [] if claim or holder else _pooled(address, facts)


_STATES = {
    "reserved": "is being given to namespace {}",
    "claimed": "is held by namespace {}",
    "quarantined": "is in quarantine after namespace {}",
}


def _pooled(address: Address, facts: Facts) -> list[str]:
    """The warning where an address is taken by hand that a pool could give."""
    return [
        f"address {address} is in pool {pool.name}, which may give it away before Hawse has seen this: "
        "put it into the pool's excluded first"
        for pool in facts.pools
        if any(address in piece for piece in _ranges(pool))
    ]


def _in_use(ranges: Sequence[Range], facts: Facts) -> list[Address]:
    """The addresses in `ranges` that Hawse has given to somebody."""
    return _sorted(
        address
        for address, (_, holder) in facts.entries.items()
        if not holder.startswith("manual/") and any(address in piece for piece in ranges)
    )


def _shared(some: Iterable[Range], others: Sequence[Range]) -> list[Range]:
    return [Range(a.version, max(a.first, b.first), min(a.last, b.last)) for a in some for b in others if a.overlaps(b)]


def _ranges(pool: EgressPool | None) -> tuple[Range, ...]:
    """A pool's addresses; none if they cannot be read, for it can give none then."""
    try:
        return pools.ranges(pool) if pool is not None else ()
    except AddressError:
        return ()


def _spec(claim: EgressAddress) -> tuple[str, ...]:
    return (claim.pool, claim.namespace, claim.namespace_uid, claim.origin)


def _sorted(addresses: Iterable[Address]) -> list[Address]:
    return sorted(addresses, key=lambda address: (address.version, int(address)))


def _listed(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:SHOWN]))
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"
