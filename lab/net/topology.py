"""Who is in the lab, under which name and address."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

CLUSTER_NETWORK = IPv4Network("10.128.0.0/14")
OUTSIDE_NETWORK = IPv4Network("192.168.1.0/24")
GATEWAY = IPv4Address("192.168.1.1")
WEB = IPv4Address("192.168.1.5")
CLUSTER_NETWORK_6 = IPv6Network("fd00:10:128::/56")
OUTSIDE_NETWORK_6 = IPv6Network("fd00:192:168:1::/64")
GATEWAY_6 = IPv6Address("fd00:192:168:1::1")
WEB_6 = IPv6Address("fd00:192:168:1::5")
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
class IPv6Side:
    """What a node of a dual-stack cluster has of IPv6: as `NodeSpec` has of IPv4."""

    address: IPv6Address
    subnet: IPv6Network

    @property
    def gateway(self) -> IPv6Address:
        """tun0's address."""
        return self.subnet[1]


@dataclass(frozen=True)
class NodeSpec:
    """A node: its name in the lab, its address on the outside link and the part of the cluster network it owns.

    The tunnel between nodes is IPv4's, and carries both families. Without `ipv6` nothing of the node but the kernel's
    own link-local addresses is IPv6.
    """

    name: str
    address: IPv4Address
    subnet: IPv4Network
    management: IPv4Address
    ipv6: IPv6Side | None = None

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The node's own addresses on the outside link, IPv4 first."""
        return (self.address,) if self.ipv6 is None else (self.address, self.ipv6.address)

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
    """A pod: a network namespace behind a port of its node's br0. On a dual-stack node it has `ip6` too."""

    name: str
    node: str
    netid: int
    ip: IPv4Address
    ofport: int
    ip6: IPv6Address | None = None

    @property
    def mac(self) -> str:
        """0a:58 and its IPv4 address."""
        return "0a:58:" + ":".join(f"{octet:02x}" for octet in self.ip.packed)


def node(number: int, *, ipv6: bool = True) -> NodeSpec:
    """Node 1 is node1, 192.168.1.17, 10.128.0.0/23; node 2 is node2, 192.168.1.18, 10.130.0.0/23; and so on.

    With `ipv6` node 1 is fd00:192:168:1::17 as well, fd00:10:128:1::/64; node 2 ::18, fd00:10:128:2::/64.
    """
    if not 1 <= number <= 20:
        raise ValueError(f"the lab numbers its nodes from 1 to 20, not {number}")
    offset = number - 1
    subnet = IPv4Network((int(_FIRST_SUBNET.network_address) + offset // 2 * 512 + offset % 2 * _SUBNET_STEP, 23))
    side = IPv6Side(
        # The last octet of its IPv4 address, as it is read: its digits, though they are hexadecimal here.
        OUTSIDE_NETWORK_6[int(str((_FIRST_NODE + offset).packed[-1]), 16)],
        IPv6Network((int(CLUSTER_NETWORK_6.network_address) + (number << 64), 64)),
    )
    return NodeSpec(f"node{number}", _FIRST_NODE + offset, subnet, _FIRST_MANAGEMENT + offset, side if ipv6 else None)


def nodes(count: int, *, ipv6: bool = True) -> tuple[NodeSpec, ...]:
    """The first `count` nodes, of a dual-stack cluster or of an IPv4 one."""
    return tuple(node(number, ipv6=ipv6) for number in range(1, count + 1))


DEFAULT_NODES = nodes(2)


def checked_name(name: str) -> str:
    """A name usable for a namespace and an interface. Raises ValueError."""
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise ValueError(f"{name!r} cannot name a node or pod: up to 10 of a-z, 0-9 and '-', not {sorted(RESERVED)}")
    return name
