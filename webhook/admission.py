"""What a namespace gets while it is being created, and that nobody else writes it. The mutating webhook."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import structlog

from egress import pools
from egress.adapters.ledger import (
    Exhausted,
    Held,
    Hint,
    Ledger,
    Offer,
    Reserved,
    name_holder,
    request_holder,
)
from egress.addresses import Address, AddressError
from egress.objects import ADDRESSES_ANNOTATION, OPERATION_ANNOTATION, REQUEST_ANNOTATION, OnExhausted
from egress.operations import TransientError
from egress.pools import Choice
from webhook import review
from webhook.review import Answer, NamespaceObject, Outcome, Request

_log = structlog.get_logger()
_TRIES = 5
LATER = "Hawse cannot reach its ledger now: the namespace gets its egress address within seconds of its return"
FORGED = (
    f"annotation {ADDRESSES_ANNOTATION} is written by Hawse alone: remove it; to ask for an address use "
    f"{REQUEST_ANNOTATION}"
)
CHANGED = f"annotation {ADDRESSES_ANNOTATION} is written by Hawse alone: leave it as it was"
TAKEN_AWAY = f"annotation {ADDRESSES_ANNOTATION} is written by Hawse alone, and is taken away for now"


class _RefusedError(Exception):
    """The namespace may not be created as it is; the message is for the person who creates it."""

    def __init__(self, message: str, code: int = 403) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class _Given:
    """What a new namespace gets at once, and what its creator is warned of."""

    addresses: tuple[Address, ...] = ()
    warnings: tuple[str, ...] = ()
    outcome: Outcome = Outcome.ADMITTED


def _given(outcome: Reserved | Held | Exhausted, choice: Choice, known_as: str) -> _Given:
    """What the namespace gets by what the ledger says. _RefusedError if it must not be created so."""
    pool = choice.pool
    if isinstance(outcome, Held):
        raise _RefusedError(f"address {outcome.address} is in use", code=409)
    if isinstance(outcome, Exhausted):
        _log.warning("pool exhausted", namespace=known_as, pool=pool.name, used=outcome.used)
        message = pools.exhausted(pool, choice.count, outcome.used, outcome.total)
        if pool.on_exhausted is OnExhausted.DENY:
            raise _RefusedError(message)
        return _Given((), (f"{message}; the namespace waits for one",), Outcome.WITHOUT_ADDRESS)
    if outcome.untold:  # the watch will find the namespace
        _log.warning("hint not sent", namespace=known_as, error=outcome.untold)
    return _Given(outcome.addresses)


def _chosen(offer: Offer, namespace: NamespaceObject, known_as: str) -> Choice | None:
    labels, annotations = namespace.labels, namespace.annotations
    return pools.choose(known_as, labels, annotations, offer.pools, offer.node_ips, offer.gateways)


@dataclass(frozen=True, slots=True)
class Admission:
    """Answers admission requests.

    `hint` makes what tells the workers of a namespace; it goes out with the reservation. `trusted_users` are the users
    that may write the addresses annotation.
    """

    ledger: Ledger
    hint: Callable[[str], Hint]
    trusted_users: AbstractSet[str]

    def answer(self, request: Request[NamespaceObject]) -> Answer:
        """The AdmissionReview that answers `request`."""
        if request.operation == "CREATE" and request.object is not None:
            return self._create(request, request.object)
        if request.operation == "UPDATE" and request.object is not None:
            return self._update(request, request.object)
        return review.allow(request.uid)

    def _create(self, request: Request[NamespaceObject], namespace: NamespaceObject) -> Answer:
        name = request.name or namespace.metadata.name
        known_as = name or f"{namespace.metadata.generate_name}?"  # the API server will put something there
        if pools.is_system(known_as):
            return review.allow(request.uid)
        written = ADDRESSES_ANNOTATION in namespace.annotations
        operation = namespace.annotations.get(OPERATION_ANNOTATION, "") if written else ""
        operation = operation or request.uid
        # Called again for one request, we find what we wrote, under another uid: the operation is what stays.
        holder = name_holder(name) if name else request_holder(operation)
        try:
            given = self._reserve(request, namespace, known_as, holder)
        except _RefusedError as error:
            return review.deny(request.uid, str(error), error.code)
        except (pools.PoolError, AddressError) as error:
            return review.deny(request.uid, str(error))
        except TransientError as error:
            _log.warning("admitted without an address", namespace=known_as, error=str(error))
            given = _Given((), (LATER,), Outcome.WITHOUT_ADDRESS)
        if given.addresses:
            addresses = ",".join(map(str, given.addresses))
            _log.info("reserved", namespace=known_as, addresses=addresses, operation=operation)
            annotations = {ADDRESSES_ANNOTATION: addresses, OPERATION_ANNOTATION: operation}
            return review.allow(request.uid, patch=review.annotate(namespace, annotations), outcome=Outcome.ASSIGNED)
        patch = review.strip(namespace, (ADDRESSES_ANNOTATION, OPERATION_ANNOTATION)) if written else None
        warnings = (*given.warnings, TAKEN_AWAY) if written else given.warnings
        return review.allow(request.uid, patch=patch, warnings=warnings, outcome=given.outcome)

    def _reserve(
        self, request: Request[NamespaceObject], namespace: NamespaceObject, known_as: str, holder: str
    ) -> _Given:
        """What the namespace gets now. _RefusedError, PoolError or AddressError when it must not be created so."""
        self._check_written(namespace, known_as, holder)
        name = request.name or namespace.metadata.name
        # By the pools as they were last read: while it reserves, the ledger finds out whether they are others by now.
        offer = self.ledger.offer() if request.dry_run else self.ledger.last_offer()
        for _ in range(_TRIES):
            offer, choice = self._choose(offer, namespace, known_as)
            if choice is None:
                return _Given()
            if request.dry_run:
                return _Given(warnings=(f"dry run: pool {choice.pool.name} would give the address",))
            outcome = self.ledger.admit(offer, choice, holder, self.hint(name) if name else None)
            if outcome is not None:
                return _given(outcome, choice, known_as)
            offer = self.ledger.offer()
        raise TransientError("the pools change faster than they can be read")

    def _check_written(self, namespace: NamespaceObject, known_as: str, holder: str) -> None:
        """_RefusedError if the namespace comes with an annotation that Hawse has not written.

        A webhook may be called again for one request, with the annotation that it wrote itself. A ledger that has lost
        what it gave does not know it: it gives anew, and what was written goes.
        """
        written = namespace.annotations.get(ADDRESSES_ANNOTATION)
        if written is None:
            return
        if not set(written.split(",")) <= set(map(str, self.ledger.given([holder]))):
            if not self.ledger.is_index_new():
                raise _RefusedError(FORGED)
            _log.warning("replaces what was written: the index has just been built", namespace=known_as)

    def _choose(self, offer: Offer, namespace: NamespaceObject, known_as: str) -> tuple[Offer, Choice | None]:
        """What the namespace is to get, and of which offer: of `offer`, or of the current one if that gives nothing.
        PoolError or AddressError if the current one cannot give what it asks for."""

        try:
            choice = _chosen(offer, namespace, known_as)
        except (pools.PoolError, AddressError):
            choice = None
        if choice is not None:
            return offer, choice
        current = self.ledger.offer()
        return current, _chosen(current, namespace, known_as)

    def _update(self, request: Request[NamespaceObject], namespace: NamespaceObject) -> Answer:
        before = request.old_object.annotations.get(ADDRESSES_ANNOTATION) if request.old_object else None
        after = namespace.annotations.get(ADDRESSES_ANNOTATION)
        if before == after or request.user_info.username in self.trusted_users:
            return review.allow(request.uid)
        if after is None and before is not None:
            return review.allow(
                request.uid,
                patch=review.annotate(namespace, {ADDRESSES_ANNOTATION: before}),
                warnings=[f"annotation {ADDRESSES_ANNOTATION} is written by Hawse alone: it stays as it was"],
            )
        return review.deny(request.uid, CHANGED)
