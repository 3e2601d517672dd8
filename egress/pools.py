"""Which pool serves a namespace, and which addresses a pool can give. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from egress.addresses import Address, AddressError, Range, parse_address, parse_block, parse_range, subtract
from egress.objects import ADDRESSES_ANNOTATION, OPT_OUT, POOL_ANNOTATION, REQUEST_ANNOTATION, EgressPool

SYSTEM_PREFIXES = ("kube-", "openshift-")
SYSTEM_NAMES = frozenset({"default", "kube", "openshift", "hawse-system"})
MAX_ADDRESSES = 8
"""How many addresses a namespace may have of its pool: the most that an EgressPool may say."""


class PoolError(ValueError):
    """A namespace asks for what no pool can give; the message is for the person who created it."""


def is_system(namespace: str) -> bool:
    """Whether Hawse never touches this namespace. A namespace that has no name yet is not one of these."""
    return namespace in SYSTEM_NAMES or namespace.startswith(SYSTEM_PREFIXES)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a namespace is to get: addresses of `pool`, those it asked for or any."""

    pool: EgressPool
    requested: tuple[Address, ...] = ()

    @property
    def count(self) -> int:
        """How many addresses."""
        families = 2 if self.pool.dual_stack else 1
        return len(self.requested) or self.pool.addresses_per_namespace * families


def choose(
    name: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    pools: Iterable[EgressPool],
    node_ips: Collection[Address] = (),
    gateways: Collection[Address] = (),
) -> Choice | None:
    """What the namespace is to get, or None when no pool serves it or it opted out.

    The pool its annotation names serves it, whatever that pool's selector says of it; otherwise the first by name of
    the pools whose selector matches. A pool without a selector serves only those that name it, and one that is being
    deleted serves nobody. PoolError when the annotation names no pool, or a request names an address that its pool does
    not cover.
    """
    if is_system(name):
        return None
    known = {pool.name: pool for pool in pools}
    wish = annotations.get(POOL_ANNOTATION, "").strip()
    if opted_out(annotations):
        return None
    requested = requested_addresses(annotations)
    if wish:
        if wish not in known:
            raise PoolError(f"there is no EgressPool {wish!r}: correct the annotation {POOL_ANNOTATION}")
        pool = known[wish]
        if pool.deleting:
            raise PoolError(f"EgressPool {wish!r} is being deleted: name another in the annotation {POOL_ANNOTATION}")
    else:
        serving: Iterator[EgressPool] = (
            pool
            for _, pool in sorted(known.items())
            if not pool.deleting and pool.namespace_selector is not None and pool.namespace_selector.matches(labels)
        )
        if requested:
            all_serving = list(serving)
            serving = iter([pool for pool in all_serving if _covers_all(pool, requested)] or all_serving)
        found = next(serving, None)
        if found is None:
            if requested:
                raise PoolError(f"no EgressPool serves this namespace: name one in the annotation {POOL_ANNOTATION}")
            return None
        pool = found
    for address in requested:
        check_covered(pool, address, node_ips, gateways)
    if requested and pool.dual_stack and 2 * sum(address.version == 4 for address in requested) != len(requested):
        raise PoolError(f"pool {pool.name} gives pairs: ask for as many IPv6 addresses as IPv4 ones")
    return Choice(pool, requested)


def opted_out(annotations: Mapping[str, str]) -> bool:
    """Whether the namespace wants no address at all."""
    return annotations.get(POOL_ANNOTATION, "").strip() == OPT_OUT


def annotated_addresses(annotations: Mapping[str, str]) -> tuple[Address, ...]:
    """The addresses in the annotation that Hawse writes; AddressError if it holds something else, or so many as Hawse
    never gives: while admission is away, whoever may write it could ask for a look at each."""
    parts = [part.strip() for part in annotations.get(ADDRESSES_ANNOTATION, "").split(",") if part.strip()]
    if len(parts) > MAX_ADDRESSES:
        raise AddressError(f"{len(parts)} addresses: a namespace has at most {MAX_ADDRESSES}")
    return tuple(dict.fromkeys(map(parse_address, parts)))


def exhausted(pool: EgressPool, count: int, used: int, total: int) -> str:
    """What to tell who wants `count` addresses of a pool that has too few."""
    lack = "no free address" if count == 1 else f"too few free addresses for {count}"
    return f"pool {pool.name} has {lack}: {used} of {total} in use"


def requested_addresses(annotations: Mapping[str, str]) -> tuple[Address, ...]:
    """The addresses that the request annotation asks for; PoolError if it holds something else, or too many."""
    text = annotations.get(REQUEST_ANNOTATION, "").strip()
    if not text:
        return ()
    if text.count(",") >= MAX_ADDRESSES:
        raise PoolError(f"annotation {REQUEST_ANNOTATION}: a namespace has at most {MAX_ADDRESSES} addresses")
    try:
        return tuple(dict.fromkeys(parse_address(part.strip()) for part in text.split(",")))
    except AddressError as error:
        raise PoolError(f"annotation {REQUEST_ANNOTATION}: {error}") from None


def ranges(pool: EgressPool, withheld: Iterable[Address] = ()) -> tuple[Range, ...]:
    """The addresses `pool` may give: its CIDRs without its exclusions and what is `withheld` from every pool (the
    nodes' own IPs, their gateways), sorted and disjoint.

    AddressError if a CIDR or an exclusion is malformed.
    """
    holes = [Range(address.version, int(address), int(address)) for address in withheld]
    return subtract(map(parse_range, pool.cidrs), [*map(parse_block, pool.excluded), *holes])


def check_covered(
    pool: EgressPool, address: Address, node_ips: Collection[Address] = (), gateways: Collection[Address] = ()
) -> None:
    """PoolError, saying why, unless `pool` may give `address`."""
    if address in node_ips:
        raise PoolError(f"address {address} is a node's own IP")
    if address in gateways:
        raise PoolError(f"address {address} is a node's gateway")
    if any(address in piece for piece in ranges(pool)):
        return
    if any(address in parse_block(text) for text in pool.excluded):
        raise PoolError(f"address {address} is excluded from pool {pool.name}")
    raise PoolError(f"address {address} is outside pool {pool.name} ({', '.join(pool.cidrs)})")


def _covers_all(pool: EgressPool, addresses: Iterable[Address]) -> bool:
    pieces = ranges(pool)
    return all(any(address in piece for piece in pieces) for address in addresses)
