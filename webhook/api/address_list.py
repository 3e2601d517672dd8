"""What is on an address list, and how it is written. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from egress.addresses import Address, parse_address
from egress.objects import EgressAddress, Phase

_NOT_OF_A_NAME = re.compile(r"[^-a-z0-9]", re.ASCII)
_MAX_NAME = 63


@dataclass(frozen=True, slots=True)
class Entry:
    """An address that a firewall is to let out, and whose it is."""

    address: Address
    namespace: str
    namespace_uid: str
    pool: str

    @property
    def order(self) -> tuple[int, int]:
        """Numbers in their order, those of IPv4 first."""
        return self.address.version, int(self.address)


@dataclass(frozen=True, slots=True)
class Tenant:
    """What lists ask of a namespace."""

    uid: str
    labels: Mapping[str, str]


def entry_of(claim: EgressAddress) -> Entry | None:
    """The claim's entry; None while no firewall should let it out: in quarantine, or for want of an approval."""
    if claim.phase is Phase.QUARANTINED or claim.withheld:
        return None
    return Entry(parse_address(claim.address), claim.namespace, claim.namespace_uid, claim.pool)


def select(
    entries: Iterable[Entry | None],
    tenants: Mapping[str, Tenant],
    pools: Collection[str],
    labels: Mapping[str, str],
) -> list[Entry]:
    """The entries of `pools` (all, if none is named) whose namespace carries all of `labels`, in their order. A
    namespace that nobody has seen carries none, and neither does another of the same name."""

    def carries(entry: Entry) -> bool:
        tenant = tenants.get(entry.namespace)
        if tenant is None or entry.namespace_uid not in ("", tenant.uid):
            return False
        return all(tenant.labels.get(key) == value for key, value in labels.items())

    chosen = [
        entry
        for entry in entries
        if entry is not None and (not pools or entry.pool in pools) and (not labels or carries(entry))
    ]
    return sorted(chosen, key=lambda entry: entry.order)


def text(entries: Iterable[Entry], *, comments: bool) -> bytes:
    """One address a line; with `comments` its namespace's name behind it, of which nothing can begin another line."""
    lines = (
        f"{entry.address} # {_plain(entry.namespace)}\n" if comments else f"{entry.address}\n" for entry in entries
    )
    return "".join(lines).encode("ascii")


def json(name: str, entries: Iterable[Entry]) -> bytes:
    """The same for programs, with each address's namespace and pool."""
    addresses = [{"address": str(entry.address), "namespace": entry.namespace, "pool": entry.pool} for entry in entries]
    return msgspec.json.encode({"name": name, "addresses": addresses}) + b"\n"


def digest(content: bytes) -> str:
    """The same for the same content, and for no other."""
    return hashlib.sha256(content).hexdigest()


def _plain(name: str) -> str:
    return _NOT_OF_A_NAME.sub("?", name)[:_MAX_NAME]
