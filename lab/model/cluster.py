"""The simulated cluster: its objects as values with versions, the ledger, the nodes, and who may change what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from egress.addresses import Address, Range, parse_address
from egress.board import EGRESS_LABEL
from egress.objects import EgressAddress, EgressPool, HostSubnet, Namespace, NetNamespace, Node
from egress.pools import ranges
from lab.model.ledger import SimLedger
from lab.model.node import SimNode

Versioned = TypeVar("Versioned", HostSubnet, NetNamespace, Namespace, EgressAddress)


class ConflictError(Exception):
    """The object changed since it was read, is gone, or exists already."""


class SimCluster:
    """All there is. `now` is in seconds, and moves with every write; `ips` are the nodes' names by their IPs."""

    def __init__(self, nodes: Mapping[str, str]) -> None:
        self.now = 1000.0
        self.namespaces: dict[str, Namespace] = {}
        self.net_namespaces: dict[str, NetNamespace] = {}
        self.host_subnets: dict[str, HostSubnet] = {}
        self.claims: dict[str, EgressAddress] = {}
        self.pools: dict[str, EgressPool] = {}
        self.node_objects: dict[str, Node] = {}
        self.ledger = SimLedger()
        self.ips = {ip: name for name, ip in nodes.items()}
        self.nodes = {name: SimNode(name, ip, self._neighbours) for name, ip in nodes.items()}
        self._version = 0
        for name, ip in nodes.items():
            self.node_objects[name] = Node(name, {EGRESS_LABEL: ""})
            self.create(self.host_subnets, name, HostSubnet(name, ip))

    @property
    def node_ips(self) -> frozenset[Address]:
        """The nodes' own IPs, which no pool gives."""
        return frozenset(parse_address(ip) for ip in self.ips)

    def covered(self) -> list[Range]:
        """What the pools cover now."""
        return [piece for pool in self.pools.values() for piece in ranges(pool, self.node_ips)]

    def create(self, kind: dict[str, Versioned], name: str, new: Versioned) -> Versioned:
        """A new object; ConflictError if its name is taken."""
        if name in kind:
            raise ConflictError(name)
        kind[name] = replace(new, resource_version=self._next_version())
        return kind[name]

    def patch(self, kind: dict[str, Versioned], name: str, new: Versioned) -> Versioned:
        """Replaces an object by `new`, which was made from what was read; ConflictError if it changed meanwhile."""
        self._check(kind, name, new.resource_version)
        kind[name] = replace(new, resource_version=self._next_version())
        return kind[name]

    def delete(self, kind: dict[str, Versioned], name: str, resource_version: str) -> None:
        """Deletes an object that is still as it was read."""
        self._check(kind, name, resource_version)
        del kind[name]
        self.now += 0.001

    def _check(self, kind: Mapping[str, Versioned], name: str, resource_version: str) -> None:
        if name not in kind or kind[name].resource_version != resource_version:
            raise ConflictError(name)

    def _next_version(self) -> str:
        self._version += 1
        self.now += 0.001
        return str(self._version)

    def _neighbours(self, asking: str) -> dict[Address, str]:
        return {
            address: name
            for name, node in self.nodes.items()
            if name != asking and node.powered and node.link
            for address in node.found().addresses
        }
