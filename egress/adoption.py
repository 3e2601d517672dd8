"""Assignments that another operator has made, as claims of Hawse's. Pure.

egressip-ipam-operator writes them into annotations of the namespaces: which EgressIPAM serves a namespace, and the
addresses that it gave it, one of each CIDR, separated by commas.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from egress.addresses import Address, AddressError, parse_address
from egress.migration import Deed
from egress.objects import EgressAddress, EgressPool, Namespace, OnUnselected, Origin, Phase
from egress.pools import MAX_ADDRESSES, annotated_addresses, is_system, opted_out, ranges

OPERATOR = "egressip-ipam-operator"
SERVED_ANNOTATION = "egressip-ipam-operator.redhat-cop.io/egressipam"
GIVEN_ANNOTATION = "egressip-ipam-operator.redhat-cop.io/egressips"


@dataclass(frozen=True, slots=True)
class Adoption:
    """One address of one namespace: what is to be done, by which claim, and instead of which."""

    namespace: str
    address: str
    deed: Deed
    pool: str = ""
    reason: str = ""
    claim: EgressAddress | None = None
    there: EgressAddress | None = None


def adopt(
    namespaces: Iterable[Namespace], claims: Iterable[EgressAddress], pools: Collection[EgressPool]
) -> list[Adoption]:
    """What is to be done for each address that the operator gave, by namespace: for all of a namespace's, or none. One
    namespace that is refused stops no other.

    A claim is as if Hawse had given the address, of the pool that covers it, but for the approval: what leaves with it
    today goes on. A claim that shows an address as set by hand, as Hawse makes it of what the operator wrote into
    NetNamespaces, is replaced.
    """
    known = {parse_address(claim.address): claim for claim in claims}
    served = sorted((item for item in namespaces if GIVEN_ANNOTATION in item.annotations), key=lambda item: item.name)
    texts = {item.name: _texts(item) for item in served}
    owners: dict[str, set[str]] = {}
    for name, given in texts.items():
        for text in given:
            owners.setdefault(text, set()).add(name)
    result = []
    for namespace in served:
        given = texts[namespace.name]
        found = [_one(namespace, text, known, pools, owners[text]) for text in given]
        reasons = [*_namespace_objections(namespace, given), *(item.reason for item in found if item.reason)]
        if reasons:
            found = [Adoption(namespace.name, text, Deed.REFUSE, reason=reasons[0]) for text in given or ("",)]
        result += found
    return result


def _texts(namespace: Namespace) -> tuple[str, ...]:
    parts = (part.strip() for part in namespace.annotations[GIVEN_ANNOTATION].split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def _namespace_objections(namespace: Namespace, given: Collection[str]) -> Iterator[str]:
    """Why nothing of the namespace can be adopted."""
    if not given:
        yield f"annotation {GIVEN_ANNOTATION} is empty"
    if namespace.deleting:
        yield "the namespace is being deleted"
    if is_system(namespace.name):
        yield "Hawse never touches a system namespace"
    if opted_out(namespace.annotations):
        yield "the namespace asks for no address of Hawse's"
    if len(given) > MAX_ADDRESSES:
        yield f"{len(given)} addresses: a namespace has at most {MAX_ADDRESSES}"
    try:
        has = set(annotated_addresses(namespace.annotations))
    except AddressError:
        has = set()
    if has and has != {address for text in given if (address := _parsed(text)) is not None}:
        yield f"Hawse has given it {', '.join(sorted(map(str, has)))} already: release these first"


def _parsed(text: str) -> Address | None:
    try:
        return parse_address(text)
    except AddressError:
        return None


def _one(
    namespace: Namespace,
    text: str,
    known: Mapping[Address, EgressAddress],
    pools: Collection[EgressPool],
    owners: Collection[str],
) -> Adoption:
    try:
        address = parse_address(text)
    except AddressError as error:
        return Adoption(namespace.name, text, Deed.REFUSE, reason=str(error))
    there = known.get(address)
    reason = next(_objections(namespace, address, there, owners), "")
    if not reason and there is not None and not there.adopted and there.namespace_uid in ("", namespace.uid):
        return Adoption(namespace.name, str(address), Deed.KEEP, there.pool)
    pool = _pool(namespace, address, pools)
    if not reason and pool is None:
        reason = f"no EgressPool may give {address}: make one that does"
    elif not reason and pool is not None and pool.on_unselected is OnUnselected.RELEASE:
        released = f"EgressPool {pool.name} does not select this namespace, and would release {address} at once"
        reason = "" if _selects(pool, namespace) else released
    if reason or pool is None:
        return Adoption(namespace.name, text, Deed.REFUSE, reason=reason)
    claim = EgressAddress(str(address), pool.name, namespace.name, namespace.uid, Origin.AUTOMATIC)
    deed = Deed.CREATE if there is None else Deed.CHANGE
    return Adoption(namespace.name, str(address), deed, pool.name, "", claim, there)


def _objections(
    namespace: Namespace, address: Address, there: EgressAddress | None, owners: Collection[str]
) -> Iterator[str]:
    """Why the address cannot be the namespace's, whatever the pools are."""
    if len(owners) > 1:
        yield f"{address} is in the annotations of {' and '.join(sorted(owners))}: leave it to one"
    if there is not None and there.namespace != namespace.name:
        yield f"{address} is {_state(there)} namespace {there.namespace}"
    if there is not None and there.phase is Phase.QUARANTINED:
        yield f"{address} is in quarantine after an earlier namespace of this name"


def _state(claim: EgressAddress) -> str:
    return "in quarantine after" if claim.phase is Phase.QUARANTINED else "held by"


def _selects(pool: EgressPool, namespace: Namespace) -> bool:
    return pool.namespace_selector is not None and pool.namespace_selector.matches(namespace.labels)


def _pool(namespace: Namespace, address: Address, pools: Collection[EgressPool]) -> EgressPool | None:
    """The first by name of the pools that may give the address; rather one that selects the namespace."""
    covering = [pool for pool in pools if not pool.deleting and any(address in piece for piece in ranges(pool))]
    return min(covering, key=lambda pool: (not _selects(pool, namespace), pool.name), default=None)
