"""Who is in the lab, under which name and address."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

CLUSTER_NETWORK = IPv4Network("10.128.0.0/14")
OUTSIDE_NETWORK = IPv4Network("192.168.1.0/24")
GATEWAY = IPv4Address("192.168.1.1")
WEB = IPv4Address("192.168.1.5")
UPLINK = "eth0"
MANAGEMENT_INTERFACE = "mgmt"
POD_MTU = 1450
RESERVED = frozenset({"root", "web", "outside"})

_FIRST_NODE = IPv4Address("192.168.1.17")
_FIRST_MANAGEMENT = IPv4Address("10.254.0.10")
_FIRST_SUBNET = IPv4Network("10.128.0.0/23")
_SUBNET_STEP = 1 << 17  # 10.128.0.0/23, 10.130.0.0/23, ...: easily told apart
_NAME = re.compile(r"[a-z][a-z0-9-]{0,9}")  # with "v-" before it, still an interface name


@dataclass(frozen=True)
class NodeSpec:
    """A node: its name in the lab, its address on the outside link and the part of the cluster network it owns."""

    name: str
    address: IPv4Address
    subnet: IPv4Network
    management: IPv4Address

    @property
    def host(self) -> str:
        """The host name, as a HostSubnet has it."""
        return f"{self.name}.ocp.io"

    @property
    def gateway(self) -> IPv4Address:
        """tun0's address: the way out of the node's pods."""
        return self.subnet[1]


@dataclass(frozen=True)
class Pod:
    """A pod: a network namespace behind a port of its node's br0."""

    name: str
    node: str
    netid: int
    ip: IPv4Address
    ofport: int


def node(number: int) -> NodeSpec:
    """Node 1 is node1, 192.168.1.17, 10.128.0.0/23; node 2 is node2, 192.168.1.18, 10.130.0.0/23; and so on."""
    if not 1 <= number <= 20:
        raise ValueError(f"the lab numbers its nodes from 1 to 20, not {number}")
    offset = number - 1
    subnet = IPv4Network((int(_FIRST_SUBNET.network_address) + offset // 2 * 512 + offset % 2 * _SUBNET_STEP, 23))
    return NodeSpec(f"node{number}", _FIRST_NODE + offset, subnet, _FIRST_MANAGEMENT + offset)


def nodes(count: int) -> tuple[NodeSpec, ...]:
    return tuple(node(number) for number in range(1, count + 1))


DEFAULT_NODES = nodes(2)


def checked_name(name: str) -> str:
    """A name usable for a namespace and an interface. Raises ValueError."""
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise ValueError(f"{name!r} cannot name a node or pod: up to 10 of a-z, 0-9 and '-', not {sorted(RESERVED)}")
    return name
