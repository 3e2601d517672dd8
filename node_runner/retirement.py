"""Which addresses keep their rules though their flow is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Mapping
from collections.abc import Set as AbstractSet

from egress.addresses import Address

RETIRE_SECONDS = 10.0
"""How long the rules of an address outlive its flow. Open vSwitch changes its tables at once, but what the kernel has
cached of them only when it comes to it: until then packets come with the old mark, and without the rules they would
leave with the node's IP. It looks at all of the cache twice a second, and keeps it so small that a look takes two
seconds at most."""


class Retirement:
    """A runner's memory of which addresses may have a flow, and since when others that had one have none.

    It begins with none: then every address that has rules may have had a flow until a moment ago. `clock` gives seconds
    that never go back.
    """

    def __init__(self, seconds: float = RETIRE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._since: dict[Address, float] = {}
        self._flowing: AbstractSet[Address] | None = None

    @property
    def remembered(self) -> AbstractSet[Address]:
        """The addresses that had a flow and have none."""
        return self._since.keys()

    def among(
        self, marks: Mapping[Address, int], held: Container[Address], withheld: Container[Address]
    ) -> dict[Address, int]:
        """Those of `marks`, which are the addresses that have rules, whose rules must stand for a while though they are
        not `held`, or `withheld`. Not those of an address that never had a flow: somebody else made them."""
        flowing, since = self._flowing, self._since
        return {
            address: mark
            for address, mark in marks.items()
            if (address not in held or address in withheld)
            and (flowing is None or address in flowing or address in since)
        }

    def flows_come(self, addresses: AbstractSet[Address]) -> None:
        """They are about to get a flow, all of them or some."""
        if self._since:
            self._since = {address: since for address, since in self._since.items() if address not in addresses}
        if self._flowing is not None:
            self._flowing = self._flowing | addresses

    def flows_went(self, addresses: Iterable[Address]) -> None:
        """Their flow is gone now, and was there, or may have been, until a moment ago."""
        self._since |= dict.fromkeys(addresses, self._clock())

    def over(self, retiring: Iterable[Address]) -> set[Address]:
        """Those of `retiring` whose flow has been gone for long enough."""
        now = self._clock()
        return {address for address in retiring if now - self._since.get(address, now) >= self._seconds}

    def settle(self, flowing: AbstractSet[Address], ruled: Container[Address] | None, *, all_read: bool = True) -> None:
        """A pass has come to its end: just the addresses of `flowing` have flows, and of the others those in `ruled`
        have rules; None if that is not known. Without `all_read`, rules may stand that were not seen."""
        now = self._clock()
        if self._flowing is not None:
            for address in self._flowing - flowing:
                self._since.setdefault(address, now)
        if all_read or self._flowing is not None:
            self._flowing = flowing
        self._since = {
            address: since
            for address, since in self._since.items()
            if address not in flowing and (ruled is None or address in ruled or now - since < self._seconds)
        }
