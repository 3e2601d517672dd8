"""The decision on one namespace: which addresses it gets while it is being created, and who may touch them later."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import structlog

from egress import pools
from egress.adapters.ledger import (
    Exhausted,
    Held,
    Ledger,
    name_holder,
    request_holder,
)
from egress.addresses import Address, AddressError
from egress.objects import ADDRESSES_ANNOTATION, REQUEST_ANNOTATION, OnExhausted
from egress.operations import TransientError
from webhook import review
from webhook.review import NamespaceObject, Request

_log = structlog.get_logger()
LATER = "Hawse cannot reach its ledger now: the namespace gets its egress address within seconds of its return"
FORGED = (
    f"annotation {ADDRESSES_ANNOTATION} is written by Hawse alone: remove it; to ask for an address use "
    f"{REQUEST_ANNOTATION}"
)


class _RefusedError(Exception):
    """The namespace may not be created as it is; the message is for the person who creates it."""

    def __init__(self, message: str, code: int = 403) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class _Given:
    """What a new namespace gets at once, and what its creator is warned of."""

    addresses: tuple[Address, ...] = ()
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """Answers admission requests.

    `hint` is called with a namespace's name when there is work for the workers; it must not raise. `trusted_users`
    are the users that may write the addresses annotation.
    """

    ledger: Ledger
    hint: Callable[[str], None]
    trusted_users: AbstractSet[str]

    def answer(self, request: Request) -> bytes:
        """The AdmissionReview that answers `request`."""
        if request.operation == "CREATE" and request.object is not None:
            return self._create(request, request.object)
        if request.operation == "UPDATE" and request.object is not None:
            return self._update(request, request.object)
        return review.allow(request.uid)

    def _create(self, request: Request, namespace: NamespaceObject) -> bytes:
        name = request.name or namespace.metadata.name
        known_as = name or f"{namespace.metadata.generate_name}?"  # the API server will put something there
        if pools.is_system(known_as):
            return review.allow(request.uid)
        holder = name_holder(name) if name else request_holder(request.uid)
        try:
            given = self._reserve(request, namespace, known_as, holder)
        except _RefusedError as error:
            return review.deny(request.uid, str(error), error.code)
        except (pools.PoolError, AddressError) as error:
            return review.deny(request.uid, str(error))
        except TransientError as error:
            _log.warning("admitted without an address", namespace=known_as, error=str(error))
            given = _Given(warning=LATER)
        if given.addresses:
            addresses = ",".join(map(str, given.addresses))
            _log.info("reserved", namespace=known_as, addresses=addresses, operation=request.uid)
            if name:
                self.hint(name)
            return review.allow(request.uid, patch=review.annotate(namespace, addresses))
        if ADDRESSES_ANNOTATION in namespace.annotations:
            return review.deny(request.uid, FORGED)
        return review.allow(request.uid, warnings=[given.warning] if given.warning else [])

    def _reserve(self, request: Request, namespace: NamespaceObject, known_as: str, holder: str) -> _Given:
        """What the namespace gets now. _RefusedError, PoolError or AddressError when it must not be created so."""
        written = namespace.annotations.get(ADDRESSES_ANNOTATION)
        # A webhook may be called again for one request, with the annotation that it wrote itself.
        if written is not None and not set(written.split(",")) <= set(map(str, self.ledger.held_by(holder))):
            raise _RefusedError(FORGED)
        offer = self.ledger.offer()
        choice = pools.choose(known_as, namespace.labels, namespace.annotations, offer.pools, offer.node_ips)
        if choice is None:
            return _Given()
        pool = choice.pool
        if request.dry_run:
            return _Given(warning=f"dry run: pool {pool.name} would give the address")
        outcome = self.ledger.reserve(holder, choice.count, pools.ranges(pool, offer.node_ips), choice.requested)
        if isinstance(outcome, Held):
            raise _RefusedError(f"address {outcome.address} is in use", code=409)
        if isinstance(outcome, Exhausted):
            _log.warning("pool exhausted", namespace=known_as, pool=pool.name, used=outcome.used)
            message = pools.exhausted(pool, choice.count, outcome.used, outcome.total)
            if pool.on_exhausted is OnExhausted.DENY:
                raise _RefusedError(message)
            return _Given(warning=f"{message}; the namespace waits for one")
        return _Given(outcome.addresses)

    def _update(self, request: Request, namespace: NamespaceObject) -> bytes:
        before = request.old_object.annotations.get(ADDRESSES_ANNOTATION) if request.old_object else None
        after = namespace.annotations.get(ADDRESSES_ANNOTATION)
        if before == after or request.user_info.username in self.trusted_users:
            return review.allow(request.uid)
        if after is None and before is not None:
            return review.allow(
                request.uid,
                patch=review.annotate(namespace, before),
                warnings=[f"annotation {ADDRESSES_ANNOTATION} is written by Hawse alone: it stays as it was"],
            )
        return review.deny(
            request.uid, f"annotation {ADDRESSES_ANNOTATION} is written by Hawse alone: leave it as it was"
        )
