"""Which node hosts which address. Pure and deterministic: the same input gives the same output, in whatever order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface

from egress.addresses import Address
from egress.objects import EgressPool
from egress.pools import ranges

EGRESS_LABEL = "egress.hawse.dev/egress-node"
"""On a node: it may host addresses of pools that have no nodeSelector."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as placement sees it.

    `link` is the node's address and prefix on the outside link, as its runner reported it, or None if it has not yet.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    usable: bool = True
    link: IPv4Interface | IPv6Interface | None = None
    hosted: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class Unplaced:
    """An address that wants a node: its namespace and pool."""

    address: Address
    namespace: str
    pool: EgressPool


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each address goes, and for each that goes nowhere, why."""

    nodes: Mapping[Address, str]
    refused: Mapping[Address, str]


def place(
    wanted: Collection[Unplaced], candidates: Iterable[Candidate], siblings: Mapping[str, Iterable[Address]]
) -> Placement:
    """A node for each of `wanted`, fewest hosted addresses first, ties by name; what is hosted already stays.

    A node is eligible when it is usable, its labels match the pool's nodeSelector (without one: it carries
    `EGRESS_LABEL`), its link's subnet holds the address, it hosts fewer of the pool's addresses than
    maxAddressesPerNode, and it hosts no other address of the namespace (`siblings`: every address of each namespace).
    """
    nodes = {candidate.name: candidate for candidate in candidates}
    hosted = {name: set(candidate.hosted) for name, candidate in nodes.items()}
    placed: dict[Address, str] = {}
    refused: dict[Address, str] = {}
    for item in sorted(wanted, key=lambda item: (item.address.version, int(item.address))):
        family = set(siblings.get(item.namespace, ()))
        reasons: dict[str, int] = defaultdict(int)
        eligible: list[tuple[int, str]] = []
        for name, candidate in nodes.items():
            reason = _objection(item, candidate, hosted[name], family)
            if reason is None:
                eligible.append((len(hosted[name]), name))
            else:
                reasons[reason] += 1
        if eligible:
            _, name = min(eligible)
            placed[item.address] = name
            hosted[name].add(item.address)
        else:
            refused[item.address] = _explained(reasons)
    return Placement(placed, refused)


def _objection(item: Unplaced, candidate: Candidate, hosted: set[Address], family: set[Address]) -> str | None:
    """Why `candidate` may not host the address; the first reason that holds, or None."""
    pool, link = item.pool, candidate.link
    selected = pool.node_selector.matches(candidate.labels) if pool.node_selector else EGRESS_LABEL in candidate.labels
    wanted_label = "not matched by the pool's nodeSelector" if pool.node_selector else f"without label {EGRESS_LABEL}"
    most = pool.max_addresses_per_node
    full = bool(most) and sum(any(address in piece for piece in ranges(pool)) for address in hosted) >= most
    objections = (
        (not selected, wanted_label),
        (not candidate.usable, "not ready"),
        (link is None, "whose runner has not reported yet"),
        (link is not None and item.address not in link.network, f"in a subnet without {item.address}"),
        (link is not None and item.address == link.ip, f"whose own IP is {item.address}"),
        (full, f"full with {most} addresses of pool {pool.name}"),
        (bool(hosted & family), f"hosting another address of namespace {item.namespace}"),
    )
    return next((reason for holds, reason in objections if holds), None)


def _explained(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return "there is no node"
    return "no node is eligible: " + ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
