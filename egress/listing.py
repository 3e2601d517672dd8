"""Which objects list an address in their `egressIPs`. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from egress.addresses import Address, AddressError, parse_address
from egress.objects import HostSubnet, NetNamespace


@dataclass(frozen=True, slots=True)
class Listed:
    """The names of the HostSubnets and of the NetNamespaces that list an address, each in order."""

    hosts: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()


def who_lists(host_subnets: Iterable[HostSubnet], net_namespaces: Iterable[NetNamespace]) -> dict[Address, Listed]:
    """Every address that is in a list, and in whose. An entry that is no address is in none: planning reports it."""
    hosts, namespaces = _by_address(host_subnets), _by_address(net_namespaces)
    return {
        address: Listed(tuple(sorted(hosts.get(address, ()))), tuple(sorted(namespaces.get(address, ()))))
        for address in hosts.keys() | namespaces.keys()
    }


def _by_address(items: Iterable[HostSubnet | NetNamespace]) -> dict[Address, set[str]]:
    found: dict[Address, set[str]] = defaultdict(set)
    for item in items:
        for text in item.egress_ips:
            try:
                found[parse_address(text)].add(item.name)
            except AddressError:
                continue
    return found
