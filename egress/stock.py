"""The pools with what they may give: how full each is, what is wrong with it, and what no longer fits. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

from egress.addresses import Address, Range, parse_address
from egress.objects import (
    POOL_ANNOTATION,
    Condition,
    EgressAddress,
    EgressPool,
    Namespace,
    OnUnselected,
    Origin,
    Phase,
    PoolCounts,
)
from egress.pools import opted_out, ranges

SHOWN = 3
"""How many addresses a message lists at most."""
MOST = 2**63 - 1
"""What a count in a status can be at most; an IPv6 pool may have more addresses."""
MISMATCH = "PoolMismatch"
"""The condition of an EgressAddress whose pool would not give it to its namespace now. It is there only while so."""
Entry = tuple[str, str]
"""The state (reserved, claimed or quarantined) of an address and its holder, as the ledger has them."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a namespace goes on having an address: it does unless `release`. `reason` and `message` say what does not
    fit; empty if all does."""

    release: bool = False
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Stock:
    """The pools by name, each with the addresses that it may give, sorted and disjoint."""

    pools: Mapping[str, EgressPool]
    ranges: Mapping[str, Sequence[Range]]

    @classmethod
    def of(cls, pools: Iterable[EgressPool], withheld: Collection[Address] = ()) -> Self:
        """`pools` without what is `withheld` from all of them. AddressError if a pool's addresses cannot be read."""
        by_name = {pool.name: pool for pool in pools}
        return cls(by_name, {name: ranges(pool, withheld) for name, pool in by_name.items()})

    def covers(self, pool: str, address: Address) -> bool:
        """Whether `pool` may give `address`."""
        pieces = self.ranges.get(pool, ())
        # The last piece that does not begin after the address: pieces are sorted by version, first and last.
        index = bisect_right(pieces, Range(address.version, int(address), 1 << 128)) - 1
        return index >= 0 and address in pieces[index]

    def counts(self, usage: Mapping[Address, Entry]) -> dict[str, PoolCounts]:
        """How full each pool is. What is reserved counts as allocated, and so does what was set by hand."""
        used = sorted((item.version, int(item)) for item in usage)
        waiting = sorted((item.version, int(item)) for item, (state, _) in usage.items() if state == "quarantined")
        result = {}
        for name, pieces in self.ranges.items():
            quarantined = sum(_within(waiting, piece) for piece in pieces)
            allocated = sum(_within(used, piece) for piece in pieces) - quarantined
            free = min(sum(piece.size for piece in pieces), MOST) - allocated - quarantined
            result[name] = PoolCounts(free + allocated + quarantined, allocated, quarantined, free)
        return result

    def waiting_for(self, pool: str, claims: Iterable[EgressAddress], usage: Mapping[Address, Entry]) -> list[Address]:
        """The addresses that keep `pool` from being deleted: claims of it, quarantined ones too, and what it has
        promised. Nothing that was set by hand, and nothing that another pool may just as well have given."""
        pool_of = {parse_address(claim.address): claim.pool for claim in claims}
        held = {address for address, name in pool_of.items() if name == pool}
        others = [name for name, other in self.pools.items() if name != pool and not other.deleting]
        held |= {
            address
            for address, (_, holder) in usage.items()
            if address not in pool_of
            and not holder.startswith("manual/")
            and self.covers(pool, address)
            and not any(self.covers(other, address) for other in others)
        }
        return _sorted(held)

    def conditions(
        self, pool: str, claims: Iterable[EgressAddress], waiting: Sequence[Address] = ()
    ) -> list[Condition]:
        """What is to be said of `pool`, undated. All but Valid are there only while they are true."""
        found = [Condition("Valid", status=True, reason="Valid")]
        mine = self.pools[pool]
        if mine.deleting:
            text = f"no more addresses are given; it is gone once nobody has {_listed(waiting)} any more"
            found.append(Condition("Deleting", status=True, reason="InUse", message=text))
        if shared := self._overlaps(pool):
            text = "; ".join(
                f"{', '.join(map(str, pieces[:SHOWN]))} in {other} too" for other, pieces in shared.items()
            )
            found.append(Condition("Overlapping", status=True, reason="SharedAddresses", message=text))
        outside = _sorted(
            address
            for claim in claims
            if claim.pool == pool and not self.covers(pool, address := parse_address(claim.address))
        )
        if outside:
            text = f"{_listed(outside)}: no longer in the pool, and nobody else's while their namespaces have them"
            found.append(Condition("InUseOutside", status=True, reason="NotCovered", message=text))
        return found

    def standing(self, claim: EgressAddress, namespace: Namespace) -> Standing:
        """Whether the live `namespace` keeps the address of `claim`.

        It does whatever becomes of the pool, but for two wishes: the namespace's own to have none, and that of a pool
        with onUnselected: release which no longer selects it. What an admin has claimed by hand is the admin's to end.
        """
        if claim.adopted:
            return Standing()
        pool, by_hand = self.pools.get(claim.pool), claim.origin is Origin.MANUAL
        if opted_out(namespace.annotations):
            message = f"namespace {namespace.name} asks for no address"
            return Standing(release=not by_hand, reason="OptedOut", message=message)
        if pool is None:
            reason, message = "PoolGone", f"EgressPool {claim.pool} is gone or cannot be read"
        elif not by_hand and (why := _unserved(pool, namespace)):
            reason, message = why
            if reason == "NotSelected" and pool.on_unselected is OnUnselected.RELEASE and not pool.deleting:
                return Standing(release=True, reason=reason, message=message)
        elif pool.deleting:
            reason, message = "PoolDeleting", f"EgressPool {pool.name} waits to be deleted"
        elif not self.covers(pool.name, parse_address(claim.address)):
            reason, message = "NotCovered", f"EgressPool {pool.name} has {claim.address} no more"
        else:
            return Standing()
        return Standing(reason=reason, message=f"{message}: {claim.address} stays with {namespace.name}")

    def mismatches(
        self, claims: Iterable[EgressAddress], namespaces: Iterable[Namespace]
    ) -> dict[Address, Condition | None]:
        """The condition that each claim which a live namespace keeps should have, undated; None for those that fit."""
        live = {(namespace.name, namespace.uid): namespace for namespace in namespaces}
        found: dict[Address, Condition | None] = {}
        for claim in claims:
            namespace = live.get((claim.namespace, claim.namespace_uid))
            if namespace is None or claim.phase is Phase.QUARANTINED:
                continue
            standing = self.standing(claim, namespace)
            if standing.release:
                continue  # the namespace's task is at it
            condition = Condition(MISMATCH, status=True, reason=standing.reason, message=standing.message)
            found[parse_address(claim.address)] = condition if standing.reason else None
        return found

    def _overlaps(self, pool: str) -> dict[str, list[Range]]:
        found: dict[str, list[Range]] = {}
        for name, other in sorted(self.pools.items()):
            if name == pool or other.deleting or self.pools[pool].deleting:
                continue
            if shared := _shared(self.ranges[pool], self.ranges[name]):
                found[name] = shared
        return found


def _within(items: Sequence[tuple[int, int]], piece: Range) -> int:
    """How many of `items`, sorted pairs of IP version and address, are in `piece`."""
    return bisect_right(items, (piece.version, piece.last)) - bisect_left(items, (piece.version, piece.first))


def _shared(some: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """What two pools' ranges have in common."""
    found, at = [], 0
    for piece in some:
        while at < len(others) and (others[at].version, others[at].last) < (piece.version, piece.first):
            at += 1
        for other in islice(others, at, None):
            if not piece.overlaps(other):
                break
            found.append(Range(piece.version, max(piece.first, other.first), min(piece.last, other.last)))
    return found


def _unserved(pool: EgressPool, namespace: Namespace) -> tuple[str, str] | None:
    """The reason and message where `pool` would not serve `namespace` if it were new; None where it would."""
    wish = namespace.annotations.get(POOL_ANNOTATION, "").strip()
    if wish:
        message = f"namespace {namespace.name} asks for EgressPool {wish}, and has an address of {pool.name}"
        return ("OtherPoolAsked", message) if wish != pool.name else None
    selector = pool.namespace_selector
    if selector is None or not selector.matches(namespace.labels):
        return "NotSelected", f"EgressPool {pool.name} does not select namespace {namespace.name} any more"
    return None


def _sorted(addresses: Iterable[Address]) -> list[Address]:
    return sorted(set(addresses), key=lambda address: (address.version, int(address)))


def _listed(addresses: Sequence[Address]) -> str:
    shown = ", ".join(map(str, addresses[:SHOWN]))
    return shown if len(addresses) <= SHOWN else f"{shown} and {len(addresses) - SHOWN} more"
