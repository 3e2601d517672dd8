"""What Redis is to the simulated cluster: the index of addresses, the nodes' table, reports and locks, in memory.

The rules are those of the ledger's scripts, in a few lines each. A flush empties all of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from egress.addresses import Address, Range
from egress.table import NodeReport, Steering
from lab.model.node import Table


@dataclass(frozen=True, slots=True)
class Entry:
    """One address in use: `state` is reserved, claimed or quarantined."""

    state: str
    holder: str
    at: float


class BusyError(Exception):
    """Somebody else has the lock."""


class SimLedger:
    """The ledger. Public attributes are its content."""

    def __init__(self) -> None:
        self.flush()

    def flush(self) -> None:
        """All is lost, locks too."""
        self.ready = False
        self.addresses: dict[Address, Entry] = {}
        self.table = Table()
        self.reports: dict[str, NodeReport] = {}
        self.netids: dict[str, int] = {}
        self.lost: frozenset[str] = frozenset()
        self.move: tuple[Address, str, float] | None = None
        """The last planned move: the address, its new node, and until when it is waited for."""
        self.began = 0.0
        self.changed_at: dict[int, int] = {}
        self._locks: dict[str, object] = {}

    @contextmanager
    def exclusively(self, name: str) -> Iterator[None]:
        """Holds a lock, or raises BusyError."""
        if name in self._locks:
            raise BusyError(name)
        mine = self._locks[name] = object()
        try:
            yield
        finally:
            if self._locks.get(name) is mine:  # after a flush it may be another's
                del self._locks[name]

    # The index

    def reserve(
        self, holder: str, count: int, ranges: Iterable[Range], requested: Collection[Address], now: float
    ) -> tuple[Address, ...]:
        """Reserves `requested`, or what the holder has of `ranges` and then the lowest free; () if it cannot."""
        chosen = list(requested)
        if any(address in self.addresses and self.addresses[address].holder != holder for address in chosen):
            return ()
        if not chosen:
            pieces = list(ranges)
            mine = [a for a, entry in self.addresses.items() if entry.holder == holder and any(a in p for p in pieces)]
            free = (address for piece in pieces for address in piece if address not in self.addresses)
            chosen = mine[:count]
            chosen += [address for address, _ in zip(free, range(count - len(chosen)), strict=False)]
        if len(chosen) < count:
            return ()
        for address in chosen:
            old = self.addresses.get(address)
            if old is None or old.state != "claimed":
                self.addresses[address] = Entry("reserved", holder, now)
        return tuple(chosen)

    def settle(self, state: str, holder: str, addresses: Iterable[Address], now: float) -> None:
        """Follows objects that exist."""
        for address in addresses:
            old = self.addresses.get(address)
            if old is None or (old.state, old.holder) != (state, holder):
                self.addresses[address] = Entry(state, holder, now)

    def free(self, holder: str, addresses: Iterable[Address], only: str = "") -> None:
        """Gives back what is the holder's still, and in state `only` if that is given."""
        for address in addresses:
            old = self.addresses.get(address)
            if old is not None and old.holder == holder and only in ("", old.state):
                del self.addresses[address]

    def sync(self, held: Mapping[Address, tuple[str, str]], listed_at: float, *, ready: bool) -> None:
        """Brings the index to what the objects held at `listed_at`: each address with its state and holder."""
        for address, (state, holder) in held.items():
            old = self.addresses.get(address)
            back = old is not None and old.state == "reserved" and state == "quarantined" and old.holder == holder
            if old is None or (old.at <= listed_at and not back and (old.state, old.holder) != (state, holder)):
                self.addresses[address] = Entry(state, holder, listed_at)
        for address, entry in list(self.addresses.items()):
            if address not in held and entry.state != "reserved" and entry.at <= listed_at:
                del self.addresses[address]
        self.ready = self.ready or ready

    # The table

    def publish(
        self, changes: Mapping[int, Steering | None], expected: tuple[str, int], epoch: str, now: float
    ) -> bool:
        """Writes changed rows, or all of a new table; False if somebody published since `expected`."""
        if (self.table.epoch, self.table.change) != expected:
            return False
        rows = {} if epoch else dict(self.table.rows)
        number = self.table.change
        for netid, row in sorted(changes.items()):
            number += 1
            rows.pop(netid, None)
            self.changed_at[netid] = number
            if row is not None:
                rows[netid] = replace(row, hops=tuple(replace(hop, since=hop.since or number) for hop in row.hops))
        if epoch:
            self.began = now
        self.table = Table(epoch or self.table.epoch, number, rows)
        return True

    def take_netid(self, namespace: str, candidates: Iterable[int], taken: Collection[int]) -> int:
        """The NetID that was taken for the namespace, or the first candidate that nobody has."""
        if namespace not in self.netids:
            used = {*self.netids.values(), *taken}
            self.netids[namespace] = next(netid for netid in candidates if netid not in used)
        return self.netids[namespace]
