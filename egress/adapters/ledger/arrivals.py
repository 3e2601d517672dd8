"""What a namespace's task wants to know of it, each time in one command: in a burst most of a worker's are for this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from egress.adapters import scripts
from egress.adapters.ledger.connection import NotReadyError, away, from_key
from egress.adapters.ledger.reservations import Offer, Reservations, as_entry, manual_holder, name_holder
from egress.addresses import Address
from egress.table import row_key


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a namespace: the state and holder of each address that it has, given or set by hand; the pools,
    None while the index is not built; and how new the newest Namespace is, by its resourceVersion, that anybody has
    seen."""

    entries: Mapping[Address, tuple[str, str]]
    offer: Offer | None
    version: int


@dataclass(frozen=True, slots=True)
class Promise:
    """The NetID that was taken for a namespace, None if none was; whether a NetNamespace had it at the last
    `see_netids`; whether every node has applied its row, as `fenced` has noted; and whether `see_netids` was called
    since Redis was flushed."""

    netid: int | None
    seen: bool
    fenced: bool
    known: bool


class Arrivals(Reservations):
    """See `workers.newcomers` and `workers.binding`."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        super().__init__(url, timeout)
        self._standing = self._redis.register_script(scripts.STANDING)
        self._promise = self._redis.register_script(scripts.PROMISE)

    def standing(self, namespace: str) -> Standing:
        """What is known of a namespace."""
        with away():
            version, stamp, *found = self._standing(args=[name_holder(namespace), manual_holder(namespace)])
        texts = zip(found[::2], found[1::2], strict=True)
        entries = {from_key(key): as_entry(text) for key, text in texts}
        return Standing(entries, self._offer_of(stamp) if stamp else None, int(version))

    def promise(self, namespace: str) -> Promise:
        """The NetID that was taken for a namespace, and what has become of it."""
        with away():
            known, netid, seen, fenced, epoch, change = self._promise(args=[namespace])
        if not netid:
            return Promise(None, seen=False, fenced=False, known=bool(known))
        noted = bool(change) and fenced == row_key(int(netid), epoch, int(change))
        return Promise(int(netid), seen=bool(seen), fenced=noted, known=bool(known))

    def _offer_of(self, stamp: str) -> Offer | None:
        last = self._read_offer
        try:
            return last if last is not None and last.stamp == stamp else self.offer()
        except NotReadyError:
            return None
