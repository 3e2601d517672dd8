"""What admission asks of the ledger: an address, and that the workers are told, in one step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from egress import pools
from egress.adapters import scripts
from egress.adapters.ledger.connection import NotReadyError, Script, away, from_key, key_of
from egress.adapters.ledger.reservations import Exhausted, Held, Offer, Reservations, Reserved, flat
from egress.addresses import Address, AddressError
from egress.objects import EgressPool
from egress.pools import Choice


@dataclass(frozen=True, slots=True)
class Hint:
    """Has a namespace wait for its task, which is due in `delay` seconds (see `Coordination.queue_namespaces`). And
    `message` goes into the list `queue` of Redis, unless somebody has asked for `what` (see `Coordination.first_to`)
    within the last `guard` seconds and it has not been worked on since."""

    namespace: str
    delay: float
    what: str
    guard: float
    queue: str
    message: str


class Admitting(Reservations):
    """Reservations, as admission makes them."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        super().__init__(url, timeout)
        self._admit = Script(self._redis, scripts.ADMIT)
        self._given = Script(self._redis, scripts.GIVEN)
        self._offered: tuple[str, dict[str, str]] = ("", {})

    def admit(self, offer: Offer, choice: Choice, holder: str, hint: Hint | None) -> Reserved | Held | Exhausted | None:
        """Reserves what was chosen of `offer`, which came from this ledger, as `reserve` does, and sends the hint: both
        in one step, or nothing. None, and nothing is done, if the pools are others by now: read them and choose anew.

        AddressError if the pool's addresses cannot be read; NotReadyError while the index is not built.
        """
        try:
            ranges = self._flat(offer, choice.pool)
        except AddressError:
            if self.offer().stamp == offer.stamp:
                raise
            return None
        requested = ",".join(map(key_of, choice.requested))
        args = [offer.stamp, holder, str(choice.count), requested, ranges, str(int(choice.pool.dual_stack))]
        if hint is not None:
            args += [hint.namespace, str(hint.delay), f"hawse:pending:{hint.what}"]
            args += [str(max(1, int(hint.guard * 1000))), hint.queue, hint.message]
        with away():
            reply = self._admit(*args)
        kind, _, rest = reply.partition(" ")
        match kind:
            case "ok":
                keys, _, untold = rest.partition(" ")
                return Reserved(tuple(map(from_key, keys.split(","))), untold)
            case "held":
                return Held(from_key(rest))
            case "full":
                used, total = rest.split(" ")
                return Exhausted(int(used), int(total))
            case "stale":
                return None
        raise NotReadyError("the index is being rebuilt")

    def given(self, holders: Iterable[str]) -> list[Address]:
        """The addresses that `holders` have, in whatever state. NotReadyError while the index is not built."""
        with away():
            reply = self._given(*holders)
        kind, _, keys = reply.partition(" ")
        if kind != "ok":
            raise NotReadyError("the index is being rebuilt")
        return [from_key(key) for key in keys.split(",") if key]

    def _flat(self, offer: Offer, pool: EgressPool) -> str:
        """What `pool` may give of `offer`, as the scripts take it. It is worked out once for each offer."""
        stamp, known = self._offered
        if stamp != offer.stamp:
            known = {}
            self._offered = (offer.stamp, known)
        if pool.name not in known:
            known[pool.name] = flat(pools.ranges(pool, offer.withheld))
        return known[pool.name]
