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
    LedgerAwayError,
    NotReadyError,
    name_holder,
    request_holder,
)
from egress.addresses import AddressError
from egress.objects import ADDRESSES_ANNOTATION, REQUEST_ANNOTATION, OnExhausted
from egress.operations import TransientError
from webhook import review
from webhook.review import NamespaceObject, Request

_log = structlog.get_logger()
LATER = "Hawse cannot reach its ledger now: the namespace gets its egress address within seconds of its return"


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
        known_as = name or namespace.metadata.generate_name
        if pools.is_system(known_as):
            return review.allow(request.uid)
        holder = name_holder(name) if name else request_holder(request.uid)
        forged = namespace.annotations.get(ADDRESSES_ANNOTATION)
        try:
            if forged is not None and forged != ",".join(map(str, self.ledger.held_by(holder))):
                return review.deny(
                    request.uid,
                    f"annotation {ADDRESSES_ANNOTATION} is written by Hawse alone: remove it; "
                    f"to ask for an address use {REQUEST_ANNOTATION}",
                )
            offer = self.ledger.offer()
            choice = pools.choose(known_as, namespace.labels, namespace.annotations, offer.pools, offer.node_ips)
            if choice is None:
                return review.allow(request.uid)
            if request.dry_run:
                return review.allow(request.uid, warnings=[f"dry run: pool {choice.pool.name} would give the address"])
            free = pools.ranges(choice.pool, offer.node_ips)
            outcome = self.ledger.reserve(holder, choice.count, free, choice.requested)
        except (pools.PoolError, AddressError) as error:
            return review.deny(request.uid, str(error))
        except (LedgerAwayError, NotReadyError, TransientError) as error:
            _log.warning("admitted without an address", namespace=known_as, error=str(error))
            if forged is not None:
                return review.deny(request.uid, f"annotation {ADDRESSES_ANNOTATION} is written by Hawse alone")
            return review.allow(request.uid, warnings=[LATER])
        if isinstance(outcome, Held):
            return review.deny(request.uid, f"address {outcome.address} is in use", code=409)
        if isinstance(outcome, Exhausted):
            message = f"pool {choice.pool.name} has no free address: {outcome.used} of {outcome.total} in use"
            if choice.count > 1:
                message = (
                    f"pool {choice.pool.name} has too few free addresses for {choice.count}: " + message.split(": ")[1]
                )
            _log.warning("pool exhausted", namespace=known_as, pool=choice.pool.name, used=outcome.used)
            if choice.pool.on_exhausted is OnExhausted.DENY:
                return review.deny(request.uid, message)
            return review.allow(request.uid, warnings=[f"{message}; the namespace waits for one"])
        addresses = ",".join(map(str, outcome.addresses))
        _log.info("reserved", namespace=known_as, addresses=addresses, pool=choice.pool.name, operation=request.uid)
        if name:
            self.hint(name)
        return review.allow(request.uid, patch=review.annotate(namespace, addresses))

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
