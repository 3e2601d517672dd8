"""What the runner asks of a node, as protocols; the drivers do it for real, `lab.fakes.node` in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Interface, IPv6Interface
from threading import Event
from typing import Protocol

from egress.addresses import Address
from egress.delta import FlowChange, RuleChange, RulesFound
from egress.program import Flow, Group, Traffic
from node_runner.drivers.errors import NameInvalid, NodeError

MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
"""A MAC as all tools print it."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,27}")


def checked_name(name: str) -> str:
    """`name`, if it can be one of a bridge, port or chain; NameInvalid if a tool could take it for anything else."""
    if not _NAME.fullmatch(name):
        raise NameInvalid(
            f"{name!r} cannot be the name of a bridge, port or chain: use up to 28 letters, digits, '_', '.' or '-'"
        )
    return name


ANNOUNCE_SCHEDULE: tuple[float, ...] = (0.0, 1.0, 3.0, 7.0)
"""Seconds after taking an address at which to announce it. RFC 5227 §2.3 asks for two, 2 s apart; a switch that was
just losing frames to spanning tree or a full queue gets two chances more."""


@dataclass(frozen=True, slots=True)
class BridgeFacts:
    """What flows need to know of the bridge: vxlan0's OpenFlow port number and tun0's MAC; and whether tun0 has an IPv6
    address of global scope, as it has where pods have IPv6."""

    vxlan_port: int
    tun_mac: str
    ipv6: bool = False


@dataclass(frozen=True, slots=True)
class FlowsFound:
    """Our flows and groups on the bridge, and the keys that flows of others hold in the egress table."""

    flows: frozenset[Flow] = frozenset()
    groups: frozenset[Group] = frozenset()
    foreign: frozenset[tuple[int, int, str]] = frozenset()


class Path(StrEnum):
    """Where a flow of ours lets a namespace's packets go: out by this node, on to another, or nowhere."""

    OUT = "out"
    STEERED = "steered"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class FlowCount:
    """What one flow has counted."""

    path: Path
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """The interface that carries the node's IP: its name, kernel index, MAC and that address's prefix length; whether
    it has a link, and the gateways of its subnets that the node's routes name. `other_ips` are the node's own addresses
    there of the other IP version, one of each subnet."""

    interface: str
    index: int
    mac: str
    prefix_length: int
    carrier: bool = True
    gateways: tuple[Address, ...] = ()
    other_ips: tuple[IPv4Interface | IPv6Interface, ...] = ()


def askable(link: LinkFacts, source: Address, address: Address) -> Address | None:
    """The IP that a node whose own one is `source` asks as for `address`; None if the answer could not reach it."""
    if address.version == source.version:
        return source
    return next((own.ip for own in link.other_ips if address in own.network), None)


@dataclass(frozen=True, slots=True)
class LinkSight:
    """That interface, our addresses on it, and those that were asked about which the node cannot hold, and why."""

    facts: LinkFacts
    addresses: frozenset[Address]
    refusals: Mapping[Address, NodeError]


@dataclass(frozen=True, slots=True)
class ProbeTiming:
    """How an address is probed, in seconds.

    RFC 5227 §1.1 waits up to 1 s, sends 3 probes 1 to 2 s apart and waits 2 s more: 4 to 7 s, made for links of 2008
    whose hosts may be busy booting. On a data centre's link an answer takes under a millisecond; what the repeats
    guard against is one lost frame. Three probes and a last wait come to half a second, inside the failover's 3 s.
    """

    count: int = 3
    interval: float = 0.15
    wait: float = 0.2


class Watchable(Protocol):
    """What tells that somebody touched it."""

    def watch(self, callback: Callable[[], None], stop: Event) -> None:
        """Calls back after each burst of changes, by whomever. Blocks until `stop` is set, or returns earlier: call it
        again. NodeError if there is nothing to watch now."""


class Flows(Watchable, Protocol):
    """The bridge's flows and groups. Watched: the flows of the egress table, and Open vSwitch's own restart."""

    def facts(self) -> BridgeFacts:
        """What flows need to know of the bridge; BridgeMissing, PortMissing, OpenVSwitchUnavailable."""

    def read(self, *, everywhere: bool = False) -> FlowsFound:
        """What the bridge holds; with `everywhere` also our flows in other tables and groups that no flow uses."""

    def counts(self) -> Mapping[Traffic, FlowCount]:
        """What each of our flows in the egress table has counted."""

    def ready(self) -> None:
        """An `apply` within the next seconds takes less time. For when one is likely, and it is not yet known which."""

    def apply(self, change: FlowChange) -> None:
        """All of `change` or, with an error, nothing of it. A flow that is not ours is never removed."""

    def close(self) -> None:
        """Ends what runs for a later `apply`."""


class Nat(Protocol):
    """The node's iptables and ip6tables rules."""

    def read(self, *, six: bool = False) -> RulesFound:
        """Our chains, the chains that we jump from, and POSTROUTING of nat, which leads there. Those of ip6tables only
        with `six`, which an IPv6 address needs, or where rules of ours are there: a node without IPv6 does without.
        Where ip6tables fails, what iptables holds is known all the same."""

    def unchanged(self, *, six: bool = False) -> bool:
        """Whether nobody else has changed rules since the last `read`, as far as can be told without reading; False
        where that is not known, and with `six` where that `read` was without."""

    def ready(self) -> None:
        """As for Flows."""

    def apply(self, change: RuleChange) -> None:
        """Each table of `change` whole or not at all; ChainMissing, IptablesFailed. Those of iptables come first:
        Ip6tablesFailed says that they are as they should be."""

    def close(self) -> None:
        """As for Flows."""


class Links(Watchable, Protocol):
    """The egress addresses on the node's interface. Watched: that interface, its addresses, and nftables."""

    def facts(self) -> LinkFacts:
        """The interface that carries the node's IP; InterfaceMissing."""

    def read(self) -> frozenset[Address]:
        """Our addresses on it."""

    def look(self, addresses: Iterable[Address]) -> LinkSight:
        """`facts`, `read` and the `refusals` of `addresses`, of one moment."""

    def apply(self, add: AbstractSet[Address], remove: AbstractSet[Address]) -> dict[Address, NodeError]:
        """Removes, then adds. What is so already counts as done; an address's error leaves the others alone."""

    def sweep(self) -> frozenset[Address]:
        """Removes our addresses from interfaces that no longer carry the node's IP; says which. For a start."""

    def refusals(self, addresses: Iterable[Address]) -> dict[Address, NodeError]:
        """Those of `addresses` that this node cannot hold, and why."""


class Arp(Protocol):
    """Address conflict detection (RFC 5227; of IPv6 RFC 4862), and plain questions."""

    def probe(
        self, interface: str, mac: str, addresses: Iterable[Address], timing: ProbeTiming = ...
    ) -> dict[Address, str]:
        """Those of `addresses` that another host on the link has or is claiming, with its MAC."""

    def who_has(
        self, link: LinkFacts, source: Address, addresses: Iterable[Address], timing: ProbeTiming = ...
    ) -> dict[Address, str]:
        """Those of `addresses` that another host answers for, with its MAC, when the node asks as `source`, or as the
        one of the link's `other_ips` that shares the address's subnet: see `askable`. Those that it cannot ask for are
        left out. Unlike a probe it claims nothing, so several nodes may ask at once, and while another one probes."""

    def announce(self, interface: str, mac: str, addresses: Iterable[Address]) -> None:
        """Tells the link once that `mac` has `addresses`. Repeat by ANNOUNCE_SCHEDULE."""


class Conntrack(Protocol):
    """Connections translated to an egress address, and those that the guard has cut."""

    def count(self, addresses: Iterable[Address]) -> Mapping[Address, int]:
        """How many there are of each of `addresses`."""

    def forget(self, addresses: Iterable[Address]) -> int:
        """Ends them; how many there were."""

    def forget_stale(self) -> int:
        """Ends the connections that the guard has cut (STALE_CONNMARK), for their next packet to begin them anew."""


@dataclass(frozen=True, slots=True)
class Node:
    """All drivers of one node."""

    flows: Flows
    nat: Nat
    links: Links
    arp: Arp
    conntrack: Conntrack

    def close(self) -> None:
        """Ends what the drivers keep running, for when none is used any more."""
        self.flows.close()
        self.nat.close()
