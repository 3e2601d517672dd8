"""The EgressPool objects: the finalizer that keeps one in use, their status, and whose address no longer fits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import structlog

from egress.adapters import manifests
from egress.adapters.cluster import ConflictError, Kind, Manifest, NotFoundError
from egress.adapters.ledger import Offer
from egress.addresses import Address, object_name, parse_address
from egress.objects import (
    POOL_FINALIZER,
    Condition,
    EgressAddress,
    EgressPool,
    Namespace,
    PoolCounts,
    PoolHeader,
    dated,
)
from egress.operations import PermanentError, TransientError
from egress.stock import MISMATCH, Entry, Stock
from workers.context import Context, readable

_log = structlog.get_logger()


def read(items: Iterable[Manifest]) -> list[EgressPool]:
    """The pools that can be read and whose addresses can be."""
    return readable(lambda item: manifests.egress_pool(item, strict=True), items)


def protect(context: Context, items: Iterable[Manifest]) -> None:
    """Puts the finalizer on every pool, before it gives its first address.

    A pool that cannot be patched gives addresses all the same: without the finalizer only its deletion is less kind.
    """
    for header in readable(manifests.pool_header, items):
        if not header.deleting and POOL_FINALIZER not in header.finalizers:
            _patch_finalizers(context, header, [*header.finalizers, POOL_FINALIZER])


def report(context: Context, claims: Sequence[EgressAddress], usage: Mapping[Address, Entry], offer: Offer) -> None:
    """Writes the status of every pool whose status says something else, and lets pools go that nobody needs any more.

    `usage` must not be older than `claims`: what was claimed in between is then in the one, if not in the other.
    """
    items = context.cluster.list(Kind.EGRESS_POOL).items
    stock = Stock.of(read(items), offer.withheld)
    counts = stock.counts(usage)
    giving = {pool.name for pool in offer.pools if not pool.deleting}
    for item in items:
        try:
            header = manifests.pool_header(item)
        except manifests.ManifestError as error:
            _log.error("object cannot be read", error=str(error))
            continue
        waiting = stock.waiting_for(header.name, claims, usage) if header.deleting else []
        # As long as admission does not know that the pool is to go, it may give an address of it.
        if header.deleting and not waiting and header.name not in giving:
            kept = [name for name in header.finalizers if name != POOL_FINALIZER]
            if len(kept) < len(header.finalizers):
                _patch_finalizers(context, header, kept)
            continue
        if header.name in stock.pools:
            _write(context, header, counts[header.name], stock.conditions(header.name, claims, waiting))
        else:
            _write(context, header, None, [_unreadable(item)])


def _write(context: Context, header: PoolHeader, counts: PoolCounts | None, conditions: Iterable[Condition]) -> None:
    wanted = dated(conditions, header.conditions, manifests.rfc3339(time.time()))
    if (counts, wanted) == (header.counts, header.conditions):
        return
    patch = {
        "metadata": {"resourceVersion": header.resource_version},
        "status": manifests.pool_status(counts, wanted),
    }
    try:
        context.cluster.patch(Kind.EGRESS_POOL, header.name, patch, subresource="status")
    except (ConflictError, NotFoundError):
        return  # it changed just now: that starts a reconcile, and this again
    except PermanentError as error:
        _log.error("pool's status not written", pool=header.name, error=str(error))


def _unreadable(item: Manifest) -> Condition:
    try:
        manifests.egress_pool(item, strict=True)
    except manifests.ManifestError as error:
        return Condition("Valid", status=False, reason="Unreadable", message=f"{error.path}: {error.problem}")
    return Condition("Valid", status=True, reason="Valid")


def _patch_finalizers(context: Context, header: PoolHeader, finalizers: Sequence[str]) -> None:
    patch = {"metadata": {"resourceVersion": header.resource_version, "finalizers": list(finalizers)}}
    try:
        context.cluster.patch(Kind.EGRESS_POOL, header.name, patch)
    except (TransientError, PermanentError) as error:
        _log.warning("pool's finalizer not written", pool=header.name, error=str(error))
    else:
        _log.info("pool's finalizer written", pool=header.name, protected=POOL_FINALIZER in finalizers)


def mark(
    context: Context, claims: Iterable[EgressAddress], namespaces: Iterable[Namespace], stock: Stock, until: float
) -> bool:
    """Says on each EgressAddress whether its pool would still give it; until the monotonic time `until`.

    False when some are left for the next run.
    """
    claims = list(claims)
    found = stock.mismatches(claims, namespaces)
    for claim in claims:
        address = parse_address(claim.address)
        if address not in found:
            continue
        mismatch = found[address]
        others = [condition for condition in claim.conditions if condition.type != MISMATCH]
        wanted = [*others, *([mismatch] if mismatch else [])]
        conditions = dated(wanted, claim.conditions, manifests.rfc3339(time.time()))
        if set(conditions) == set(claim.conditions):
            continue
        if time.monotonic() > until:
            return False
        patch = {
            "metadata": {"resourceVersion": claim.resource_version},
            "status": {"conditions": manifests.conditions_manifest(conditions)},
        }
        try:
            context.cluster.patch(Kind.EGRESS_ADDRESS, object_name(address), patch, subresource="status")
        except (ConflictError, NotFoundError):
            continue
        except PermanentError as error:
            _log.error("status not written", address=claim.address, error=str(error))
            continue
        if mismatch is not None:
            _log.warning(
                "does not fit its pool",
                namespace=claim.namespace,
                address=claim.address,
                reason=mismatch.reason,
                error=mismatch.message,
                operation=claim.operation,
            )
    return True
