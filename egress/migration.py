"""From the assignments of a cluster to the EgressIP objects that keep every address on OVN-Kubernetes. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from egress.addresses import Address, addresses_of, parse_address
from egress.objects import EgressAddress, NetNamespace, Phase
from egress.ovn import Coverage, EgressIP, by_name, own_name


class Deed(StrEnum):
    """What is to be done about one object."""

    CREATE = "create"
    CHANGE = "change"
    KEEP = "keep"
    """It is so already."""
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Step:
    """One namespace's EgressIP: its name and the addresses that it is to have. `there` is what it is now."""

    namespace: str
    name: str
    addresses: tuple[str, ...]
    deed: Deed
    reason: str = ""
    there: EgressIP | None = None


def assignments(
    claims: Iterable[EgressAddress], bindings: Iterable[NetNamespace], living: Collection[str]
) -> dict[str, set[Address]]:
    """The addresses of each of the `living` namespaces: what it has claimed, and what its NetNamespace lists by hand.

    Not what is in quarantine, and not what nobody has approved: nothing leaves with these.
    """
    found: dict[str, set[Address]] = defaultdict(set)
    without = set()
    for claim in claims:
        if claim.phase is Phase.QUARANTINED or claim.withheld:
            without.add((claim.namespace, parse_address(claim.address)))
        elif claim.namespace in living:
            found[claim.namespace].add(parse_address(claim.address))
    for binding in bindings:
        listed = {address for address in addresses_of(binding.egress_ips) if (binding.name, address) not in without}
        if listed and binding.name in living:
            found[binding.name] |= listed
    return dict(found)


def to_ovn_kubernetes(
    assigned: Mapping[str, Collection[Address]], coverage: Coverage, labels: Mapping[str, Mapping[str, str]]
) -> list[Step]:
    """What is to be done for each namespace, by its name. One that is refused stops no other.

    An address that two namespaces have, or that an EgressIP of another has, is refused for all of them: OVN-Kubernetes
    would give it to one.
    """
    owners: dict[Address, set[str]] = defaultdict(set)
    for namespace, addresses in assigned.items():
        for address in addresses:
            owners[address].add(namespace)
    holders: dict[Address, set[str]] = defaultdict(set)
    for item in coverage.objects:
        for address in addresses_of(item.egress_ips):
            holders[address].add(item.name)
    return [
        _step(namespace, assigned[namespace], coverage, labels.get(namespace, {}), owners, holders)
        for namespace in sorted(assigned)
    ]


def _step(
    namespace: str,
    addresses: Collection[Address],
    coverage: Coverage,
    labels: Mapping[str, str],
    owners: Mapping[Address, set[str]],
    holders: Mapping[Address, set[str]],
) -> Step:
    there = coverage.binding(namespace)
    name = there.name if there is not None else own_name(namespace)
    kept = there.egress_ips if there is not None else ()
    missing = by_name(address for address in addresses if address not in addresses_of(kept))
    wanted = (*kept, *missing)
    reason = _objection(namespace, name, addresses, owners, holders)
    if not reason and (rivals := coverage.rivals(namespace, labels)):
        names = " and ".join(item.name for item in rivals)
        reason = f"EgressIP {names} takes this namespace too: delete it, or change its selector"
    if not reason and there is None and any(item.name == name for item in coverage.objects):
        reason = f"EgressIP {name} is there and does not select this namespace alone: delete it"
    if reason:
        return Step(namespace, name, tuple(wanted), Deed.REFUSE, reason, there)
    if there is None:
        return Step(namespace, name, tuple(wanted), Deed.CREATE)
    return Step(namespace, name, tuple(wanted), Deed.CHANGE if missing else Deed.KEEP, "", there)


def _objection(
    namespace: str,
    name: str,
    addresses: Collection[Address],
    owners: Mapping[Address, set[str]],
    holders: Mapping[Address, set[str]],
) -> str:
    for address in sorted(addresses, key=lambda item: (item.version, int(item))):
        if others := owners[address] - {namespace}:
            return f"namespace {' and '.join(sorted(others))} has {address} too: leave it to one"
        if others := holders.get(address, set()) - {name}:
            return f"EgressIP {' and '.join(sorted(others))} has {address} too: leave it to one"
    return ""
