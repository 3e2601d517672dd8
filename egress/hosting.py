"""From the cluster's objects to what placement is asked: which addresses want a node, which may move, which nodes must
let one go. Pure; the result does not depend on the order of the objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from egress.addresses import Address, AddressError, addresses_of, parse_address, parse_network
from egress.board import Unplaced
from egress.objects import EgressAddress, EgressPool, HostSubnet, NetNamespace, Origin, Phase


@dataclass(frozen=True, slots=True)
class Resident:
    """An address on a node that Hawse may move. `fixed`: an admin put it there, and only a request moves it."""

    item: Unplaced
    node: str
    move_to: str = ""
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Hosting:
    """What the objects say of the addresses and their nodes.

    `surplus` is what nodes must let go. `poolless` are addresses whose pool cannot be found, with their nodes ("" for
    none) and the reason. `siblings` has every address of each namespace.
    """

    surplus: frozenset[tuple[str, Address]]
    homeless: tuple[Unplaced, ...]
    residents: tuple[Resident, ...]
    poolless: Mapping[Address, tuple[str, str]]
    siblings: Mapping[str, frozenset[Address]]


def hosting(
    claims: Iterable[EgressAddress],
    subnets: Iterable[HostSubnet],
    net_namespaces: Iterable[NetNamespace],
    pools: Iterable[EgressPool],
    *,
    gone: Collection[str] = (),
    all_read: bool = True,
) -> Hosting:
    """The hosting of a whole cluster. `gone` are nodes that are lost, which keep nothing that another node has too.

    Without `all_read` some NetNamespace could not be read: then an address that is in none of the others may be in
    that one, and stays.

    An address with a claim goes where its pool wants it. In quarantine it is on no node. Where several nodes have it,
    one of them keeps it, unless an admin put it there by hand: then it stays a conflict.

    An address without a claim is an admin's, and so is one whose claim only shows what an admin has set. Where
    HostSubnets' egressCIDRs hold it and no other HostSubnet has it, it goes to one of these, and it leaves them when it
    is in no NetNamespace any more.
    """
    build = _Building(list(subnets), gone)
    known = {pool.name: pool for pool in pools}
    claimed: set[Address] = set()
    for claim in sorted((claim for claim in claims if not claim.adopted), key=lambda claim: claim.address):
        claimed.add(parse_address(claim.address))
        build.claim(claim, known)
    owners: dict[Address, str] = {}
    for namespace in sorted(net_namespaces, key=lambda namespace: namespace.name):
        for address in addresses_of(namespace.egress_ips):
            build.siblings[namespace.name].add(address)
            owners.setdefault(address, namespace.name)  # in two of them it is a conflict wherever it is
    for address, owner in owners.items():
        if address not in claimed:
            build.bound(address, owner)
    if all_read:
        build.unbind(claimed | owners.keys())
    return build.result()


class _Building:
    def __init__(self, subnets: list[HostSubnet], gone: Collection[str]) -> None:
        self._gone = gone
        self.siblings: dict[str, set[Address]] = defaultdict(set)
        self._hosts: dict[Address, set[str]] = defaultdict(set)
        for subnet in subnets:
            for address in addresses_of(subnet.egress_ips):
                self._hosts[address].add(subnet.name)
        self._cidrs = {subnet.name: cidrs for subnet in subnets if (cidrs := cidrs_of(subnet))}
        self._surplus: set[tuple[str, Address]] = set()
        self._homeless: list[Unplaced] = []
        self._residents: list[Resident] = []
        self._poolless: dict[Address, tuple[str, str]] = {}

    def claim(self, claim: EgressAddress, pools: Mapping[str, EgressPool]) -> None:
        address = parse_address(claim.address)
        hosts = self._hosts.get(address, set())
        if claim.phase is Phase.QUARANTINED:
            self._let_go(address, hosts)
            return
        self.siblings[claim.namespace].add(address)
        fixed = claim.origin is Origin.MANUAL
        if len(hosts) > 1 and fixed:
            return
        node = self._keeper(hosts, claim.move_to, claim.node)
        self._let_go(address, hosts - {node})
        pool = pools.get(claim.pool)
        if pool is None:
            if not fixed or not node:
                self._poolless[address] = (node, f"its EgressPool {claim.pool} is gone or cannot be read")
            return
        self._add(Unplaced(address, claim.namespace, pool), node, claim.move_to, fixed=fixed)

    def bound(self, address: Address, namespace: str) -> None:
        """An address that a NetNamespace lists, without a claim."""
        covering = self._covering(address)
        hosts = self._hosts.get(address, set())
        if hosts - covering:  # an admin's choice, before that of ours
            self._let_go(address, hosts & covering)
        elif covering:
            node = self._keeper(hosts)
            self._let_go(address, hosts - {node})
            self._add(Unplaced(address, namespace, None), node)

    def unbind(self, used: set[Address]) -> None:
        """Takes off what is neither claimed nor in any NetNamespace, where Hawse put it."""
        for address, hosts in self._hosts.items():
            if address not in used:
                self._let_go(address, hosts & self._covering(address))

    def result(self) -> Hosting:
        return Hosting(
            frozenset(self._surplus),
            tuple(self._homeless),
            tuple(self._residents),
            self._poolless,
            {name: frozenset(addresses) for name, addresses in self.siblings.items()},
        )

    def _keeper(self, hosts: set[str], *preferred: str) -> str:
        """The one of `hosts` that keeps the address; "" if there is none."""
        fit = {host for host in hosts if host not in self._gone} or hosts
        return next((node for node in preferred if node in fit), min(fit, default=""))

    def _covering(self, address: Address) -> set[str]:
        return {name for name, cidrs in self._cidrs.items() if any(address in cidr for cidr in cidrs)}

    def _let_go(self, address: Address, nodes: Iterable[str]) -> None:
        self._surplus |= {(node, address) for node in nodes}

    def _add(self, item: Unplaced, node: str, move_to: str = "", *, fixed: bool = False) -> None:
        if node:
            self._residents.append(Resident(item, node, move_to, fixed))
        else:
            self._homeless.append(item)


def cidrs_of(subnet: HostSubnet) -> tuple[IPv4Network | IPv6Network, ...]:
    """The HostSubnet's egressCIDRs, without those that are none."""
    found = []
    for text in subnet.egress_cidrs:
        try:
            found.append(parse_network(text, host_bits=True))
        except AddressError:
            continue
    return tuple(found)
