"""A node of the simulated cluster: the real node program on fake drivers, which may be stopped at any write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Generic, TypeVar, cast

from egress.addresses import Address
from egress.delta import FlowChange, Found, RuleChange, mark_in
from egress.program import Layout
from egress.table import Claim, NodeReport, Steering
from lab.fakes.node import FakeFlows, FakeLinks, FakeNat, FakeNode, fake_node
from node_runner.drivers.errors import IptablesFailed, NetlinkFailed, NodeError, OpenVSwitchUnavailable
from node_runner.drivers.ports import Node as Drivers
from node_runner.drivers.ports import ProbeTiming
from node_runner.programmer import Programmer
from node_runner.retirement import Retirement

T = TypeVar("T")
D = TypeVar("D")
LAYOUT = Layout()
Rows = Mapping[int, Steering]
Given = frozenset[tuple[int, Address]]


_READS = count(1)
RETIRE_PASSES = 3.0
"""How long the rules of an address outlive its flow: a node's clock ticks once a pass."""


class KilledError(BaseException):
    """The runner's process ends here."""


@dataclass(frozen=True, slots=True)
class Table:
    """The nodes' table as a runner reads it. Without an epoch there is none."""

    epoch: str = ""
    change: int = 0
    rows: Rows = field(default_factory=dict)


class SimNode:
    """One node and its runner.

    `known` are the rows that it answers for: those of its last whole pass and, while or after a pass that did not end,
    those that the new table has as well. `may_use` are the NetIDs with the addresses that these tables give them here.
    `excused` is true from the moment in which somebody took its flows or rules away (or it booted) until its next
    whole pass: what it lets out meanwhile is a limit that decision 0007 names. `read_at` grows with each read of the
    table by any node: who has the greater one has the newer table; `done_at` is that of its last whole pass.
    `settled_link` holds the addresses that it took with its link up and has had on the link ever since. `cached` are
    the marks that flows gave packets and give no more, each with its address and the time when its flow went: the
    kernel may give them still.
    """

    def __init__(self, name: str, node_ip: str, neighbours: Callable[[str], Mapping[Address, str]]) -> None:
        self.name = name
        self.node_ip = node_ip
        self.fake: FakeNode = fake_node(node_ip)
        self.powered = True
        self.running = True
        self.link = True
        self.ledger = True
        self.known: frozenset[int] = frozenset()
        self.may_use: Given = frozenset()
        self.excused = False
        self.read_at = self.done_at = 0
        self.settled_link: set[Address] = set()
        self.clock = 0.0
        self.cached: dict[int, tuple[Address, float]] = {}
        self.checked: Callable[[], None] = lambda: None
        self._neighbours = neighbours
        self._writes_left: int | None = None
        self._injected: BaseException | None = None
        self._failure: Callable[[], BaseException] = KilledError
        self._start()

    def _start(self) -> None:
        self.drivers = Drivers(
            cast("Any", _GuardedFlows(self.fake.flows, self._write)),
            cast("Any", _GuardedNat(self.fake.nat, self._write)),
            cast("Any", _GuardedLinks(self.fake.links, self._write)),
            cast("Any", _Arp(self)),
            cast("Any", self.fake.conntrack),
        )
        self._programmer = Programmer(self.name, self.drivers, LAYOUT, ProbeTiming(), self.retirement())
        self.table: Table | None = None
        self._fresh = True
        self._untouched = 0

    def retirement(self) -> Retirement:
        """What a runner of it that starts knows of addresses without flows."""
        return Retirement(RETIRE_PASSES, lambda: self.clock)

    @property
    def reachable(self) -> bool:
        """Whether its runner lives and gets through to the ledger."""
        return self.powered and self.running and self.ledger

    @property
    def sound(self) -> bool:
        """Whether it has its bridge and its interface."""
        return self.fake.flows.present and self.fake.links.present

    # What happens to it

    def restart(self) -> None:
        """The runner starts with no memory; the node holds what it held."""
        self.running = True
        self._start()

    def boot(self) -> None:
        """The node comes back from a power cut: nothing of ours is left on it."""
        self.fake = fake_node(self.node_ip)
        self.powered = self.link = True
        self.known, self.may_use, self.excused = frozenset(), frozenset(), True
        self.settled_link.clear()
        self.cached.clear()
        self.restart()

    def mend(self) -> None:
        """Whatever is broken is not any more."""
        if not self.powered:
            self.boot()
        if not self.running:
            self.restart()
        self.link = self.ledger = True
        self.fake.links.present = self.fake.flows.present = True

    def touch(self, what: str) -> None:
        """Somebody takes a part of the node away; the interface or the bridge comes back at the next time."""
        self._untouched = 0
        match what:
            case "flows":
                self.fake.flows.wipe()
                self.cached.clear()
                self.excused = True
            case "nat":
                self.fake.nat.flush("nat", LAYOUT.masquerade_chain)
                self.excused = True
            case "filter":
                self.fake.nat.flush("filter", "FORWARD")
                self.excused = True
            case "addresses":
                for address in self.found().addresses:
                    self.fake.links.take_away(address)
                self.settled_link.clear()
            case "interface":
                self.fake.links.present = not self.fake.links.present
            case "bridge":
                self.fake.flows.present = not self.fake.flows.present

    def switch(self, what: str) -> None:
        """Its runner, its way to the ledger, its cable or its power goes, or comes back."""
        self._untouched = 0
        match what:
            case "runner" if self.running:
                self.running = False
            case "runner":
                self.restart()
            case "ledger":
                self.ledger = not self.ledger
            case "cable":
                self.link = not self.link
                self.settled_link.clear()
            case "power" if self.powered:
                self.powered = False
                self.settled_link.clear()
            case "power":
                self.boot()

    def stop_at(self, writes: int | None, failure: Callable[[], BaseException] = KilledError) -> None:
        """The write after the next `writes` ones fails, before it does anything; None: none does."""
        self._writes_left, self._failure, self._injected = writes, failure, None

    # What it does

    @property
    def on_link(self) -> bool:
        """Whether packets can pass it at all."""
        return self.powered and self.link and self.fake.flows.present

    def found(self) -> Found:
        """What it holds of ours, also while its interface or its bridge is away."""
        bridge, self.fake.flows.present = self.fake.flows.present, True
        flows = self.fake.flows.read(everywhere=True)
        self.fake.flows.present = bridge
        return Found(frozenset(self.fake.links._own), flows.flows, flows.groups, self.fake.nat.read(), flows.foreign)

    def run_pass(self, published: Table | None, now: float) -> NodeReport | None:
        """One pass of the runner, as `node_runner.runner` makes it; its report, or None if it did not come to its end.

        `published` is what it reads in the ledger, or None where it does not get through to it.
        """
        if published is not None and published.epoch:
            self.table = published
            self.read_table()
        self.clock += 1
        current = published is not None and bool(published.epoch)
        claims: tuple[Claim, ...] = ()
        problem = ""
        self.fake.links.carrier = self.link
        try:
            claims = self._program(self.table.rows) if self.table is not None else self._programmer.holds()[1]
        except KilledError:
            self.restart()
            return None
        except NodeError as error:
            problem = f"{error.reason}: {error}"
            self._programmer.forget_facts()
            if self.table is not None:
                self.end(self.table.rows, problem=problem)
        finally:
            self.stop_at(None)
        table = self.table if current and self.table is not None else Table()
        applied = 0 if problem else table.change
        link = "" if problem else f"{self.node_ip}/24"
        report = NodeReport(self.name, now, table.epoch, applied, link, "eth0", claims, 0, problem, heard=now)
        return replace(report, carrier=self.link)

    def _program(self, rows: Rows) -> tuple[Claim, ...]:
        self.begin(rows)
        # As a runner does that is nudged, and now and then by the clock: all is read only where it was touched.
        result = self._programmer.run(rows, resting={}, fresh=self._fresh, untouched=self._untouched % 4 > 0)
        self._fresh, self._untouched = False, self._untouched + 1
        self.end(rows)
        return result.claims

    def read_table(self) -> None:
        """Its runner has read the table."""
        self.read_at = next(_READS)

    def begin(self, rows: Rows) -> None:
        """A pass begins. What only the earlier table had may be opened in it; what only `rows` have is not closed yet,
        and an address may still be used as the earlier table said."""
        self.known &= rows.keys()
        self.may_use |= self._given(rows)

    def end(self, rows: Rows, *, problem: str = "") -> None:
        """A pass has come to its end, or because of a `problem` to its retreat: what it could not program is closed
        then, unless the bridge itself is away or the retreat's own write was the one that failed."""
        if not problem:
            self.may_use, self.done_at = self._given(rows), self.read_at
        if problem and self.excused:
            self.cached.clear()  # the rules that somebody took away stay away: a retreat mends none
        in_retreat = self._injected is not None and str(self._injected) not in problem
        if not problem or (self.fake.flows.present and not in_retreat):
            self.known, self.excused = frozenset(rows), False

    def _given(self, rows: Rows) -> Given:
        return frozenset((row.netid, hop.address) for row in rows.values() for hop in row.hops if hop.node == self.name)

    def _write(self, do: Callable[[], T]) -> T:
        """One write to the node: it may fail instead, and the world is looked at after it."""
        if self._writes_left is not None:
            if self._writes_left == 0:
                self._writes_left = None
                self._injected = self._failure()
                raise self._injected
            self._writes_left -= 1
        before, gave = self.fake.links._own.copy(), self._gives()
        result = do()
        held, gives = self.fake.links._own, self._gives()
        self.cached = {mark: was for mark, was in self.cached.items() if mark not in gives}
        self.cached |= {mark: (address, self.clock) for mark, address in gave.items() if mark not in gives}
        if self.link:
            self.settled_link |= held - before
        self.settled_link &= held
        self.checked()
        return result

    def _gives(self) -> dict[int, Address]:
        """The marks that the flows give packets, each with the address that the rules make of it."""
        found = self.found()
        marked = {mark: address for address, mark in found.rules.marks.items()}
        return {mark: marked[mark] for flow in found.flows if (mark := mark_in(flow)) in marked and mark is not None}

    def rest(self) -> None:
        """Time goes by in which nobody has anything to do: the next pass looks at everything."""
        self.clock += RETIRE_PASSES
        self._untouched = 0

    def neighbours(self) -> Mapping[Address, str]:
        """Who has which address on the link, as far as this node can see."""
        return self._neighbours(self.name) if self.link else {}


FAILURES: tuple[Callable[[], BaseException], ...] = (
    KilledError,
    lambda: OpenVSwitchUnavailable("Open vSwitch does not answer"),
    lambda: IptablesFailed("another app holds the lock"),
    lambda: NetlinkFailed("no buffer space"),
)


class _Guarded(Generic[D]):
    """A driver whose every write passes through `write`."""

    def __init__(self, driver: D, write: Callable[[Callable[[], Any]], Any]) -> None:
        self._driver = driver
        self._write = write

    def __getattr__(self, name: str) -> object:
        return getattr(self._driver, name)


class _GuardedFlows(_Guarded[FakeFlows]):
    def apply(self, change: FlowChange) -> None:
        self._write(partial(self._driver.apply, change))


class _GuardedNat(_Guarded[FakeNat]):
    """iptables-restore writes one table after the other."""

    def apply(self, change: RuleChange) -> None:
        for table, script in change.scripts.items():
            self._write(partial(self._driver.apply, RuleChange({table: script})))


class _GuardedLinks(_Guarded[FakeLinks]):
    """Addresses are removed, and others added, one at a time. One that the kernel refuses leaves the others alone."""

    def apply(self, add: AbstractSet[Address], remove: AbstractSet[Address]) -> dict[Address, NodeError]:
        failed: dict[Address, NodeError] = {}
        steps = [(frozenset[Address](), frozenset({address}), address) for address in sorted(remove, key=int)]
        steps += [(frozenset({address}), frozenset[Address](), address) for address in sorted(add, key=int)]
        for new, gone, address in steps:
            try:
                failed |= self._write(partial(self._driver.apply, new, gone))
            except NodeError as error:
                failed[address] = error
        return failed


class _Arp:
    """The link: asked about an address, whoever has it answers."""

    def __init__(self, node: SimNode) -> None:
        self._node = node

    def probe(self, interface: str, mac: str, addresses: Iterable[Address], timing: ProbeTiming) -> dict[Address, str]:
        del interface, mac, timing
        there = self._node.neighbours()
        return {address: there[address] for address in addresses if address in there}

    def announce(self, interface: str, mac: str, addresses: Collection[Address]) -> None:
        del interface, mac, addresses
