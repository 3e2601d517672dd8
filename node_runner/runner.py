"""The runner's loop: wakes when the table changed, when somebody touched the node, and by the clock."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import structlog

from egress.adapters.ledger import Ledger, TableRead
from egress.addresses import Address, parse_address
from egress.diagnosis import MOST_FAULTS, Inspection
from egress.liveness import Identity
from egress.messages import FAILOVER_TASK, PUBLISH_TASK
from egress.operations import TransientError
from egress.table import Claim, NodeReport, Steering
from node_runner.drivers.errors import NodeError
from node_runner.drivers.ports import ANNOUNCE_SCHEDULE, LinkFacts, Watchable
from node_runner.programmer import NO_CARRIER, Programmer, Refusal, unacknowledged

ANNOUNCE_RETRY_SECONDS = 1.0
WATCH_RETRY_SECONDS = 0.5
ECHO_SECONDS = 1.0
"""How long after its own writing what a runner is told of its node counts as that."""
_log = structlog.get_logger()


class Runner:
    """One node's loop. `tell` asks the workers for a task that looks at this node's report, and may raise
    TransientError. `observe` is called after each pass, with the report and how many seconds the pass took. A node
    whose link was away for `patience` seconds lets its addresses go, and asks the link before it takes them again."""

    def __init__(
        self,
        me: Identity,
        programmer: Programmer,
        ledger: Ledger,
        tell: Callable[[str], None],
        *,
        retry: float,
        patience: float = 1.0,
    ) -> None:
        self.observe: Callable[[NodeReport, float], None] = lambda *_: None
        self._name = me.node
        self._node_ip = me.ip
        self._asks = parse_address(me.ip) if me.ip else None
        self._inspections: deque[str] = deque()
        self._programmer = programmer
        self._ledger = ledger
        self._tell = tell
        self._retry = retry
        self._patience = patience
        self._hears = True
        self._down_since: float | None = None
        self._let_go = False
        self._longest_cut = 0.0
        self._look_at = float("inf")
        self._wake = threading.Event()
        self._epoch = ""
        self._change = 0
        self._table: dict[int, Steering] | None = None
        self._mine: dict[int, Steering] = {}  # the rows of the table that give this node addresses
        self._changed: set[int] | None = None  # whose rows are not those of the last pass; None: not known
        self._fresh = True
        self._news = False
        self._closed = False
        self._untold: dict[int, Steering] = {}
        self._held: frozenset[Address] = frozenset()
        self._announced: frozenset[Address] = frozenset()
        self._told: tuple[object, ...] = ((), "", (), "", True)
        self._resting: dict[Address, tuple[float, Refusal]] = {}
        self._announcements: list[tuple[float, frozenset[Address]]] = []
        self._repairs = 0
        self._last_problem, self._last_problem_at = "", 0.0
        self._look_by = float("-inf")
        self._interval = 2.0
        self._untouched = self._nudged = self._pressing = self._anew = False

    def namespaces(self) -> dict[int, str]:
        """The namespace of each NetID of the table. May be called from any thread."""
        return {netid: row.namespace for netid, row in (self._table or {}).copy().items()}

    def wake(self) -> None:
        """The table may have changed: look now."""
        self._nudged = self._pressing = True
        self._wake.set()

    def touched(self) -> None:
        """Somebody has touched the node: look now. If the runner itself has, a moment ago, look a moment later: what is
        told is most likely its own doing, and a look at it would keep what comes next waiting."""
        wrote = self._programmer.wrote
        echo = time.monotonic() - wrote < ECHO_SECONDS
        _log.debug("touched", echo=echo)
        if echo:
            self._look_at = wrote + ECHO_SECONDS
        else:
            self._untouched, self._pressing = False, True
        self._wake.set()

    def look_anew(self) -> None:
        """Somebody may have changed the bridge or the interface: look, and count on nothing known of them then."""
        self._anew = True
        self._note_carrier()
        self.touched()

    def inspect(self, namespace: str) -> None:
        """Say what is on the node against what should be, of one namespace or ("") of all: before the next pass, which
        may mend it. May be called from any thread."""
        self._inspections.append(namespace)
        self._pressing = True
        self._wake.set()

    def run(self, stop: threading.Event, interval: float) -> None:
        """Passes until `stop`; at least every `interval` seconds one that reads the whole node."""
        self._interval = interval
        while not stop.is_set():
            self._pressing = False
            self.answer_inspections()
            self.step()
            clock = time.monotonic() + interval
            while not self._pressing and not stop.is_set():
                self._wake.clear()
                if self._pressing or not self._wake.wait(max(0.0, self._due(clock) - time.monotonic())):
                    break

    def _due(self, clock: float) -> float:
        """When the next pass is due if nobody presses for one; `clock` at the latest."""
        now = time.monotonic()
        due = [clock, self._look_at, *(when for when, _ in self._announcements)]
        if self._look_by > now:
            due.append(self._look_by)
        return min(due)

    def watch(self, what: Watchable, touched: Callable[[], None], stop: threading.Event) -> None:
        """Calls `touched` whenever somebody touches this part of the node. Runs in a thread of its own."""
        broken = ""
        while not stop.is_set():
            try:
                what.watch(touched, stop)
                broken = ""
            except NodeError as error:
                if error.reason != broken:  # once, and not each second while it lasts
                    _log.warning("not watched; changes are found by looking", reason=error.reason, error=str(error))
                broken = error.reason
                stop.wait(WATCH_RETRY_SECONDS)

    def step(self) -> None:
        """One pass: read the table, program the node, report."""
        began = time.monotonic()
        self._note_carrier()
        if self._look_at <= began:
            self._untouched, self._look_at = False, float("inf")
        # Whoever must let go does so first: to ask a ledger that is away takes a second or two.
        current = self._hears = not self._yields() and self._refresh()
        if current:
            self._longest_cut = 0.0
        else:
            self._yields()
        link: LinkFacts | None = None
        claims: tuple[Claim, ...] = ()
        problem = ""
        try:
            if self._table is None:
                # Never saw a table: whatever the node holds from before stays as it is, and is only reported.
                link, claims = self._programmer.holds()
            else:
                link, claims = self._program(self._table)
        except NodeError as error:
            problem = f"{error.reason}: {error}"
            self._programmer.forget_facts()
            self._announced = frozenset()  # it may have taken addresses before it failed
            _log.error("the node cannot be programmed", reason=error.reason, error=str(error))
        self._announce()
        if link is not None and not link.carrier:
            self._let_addresses_go()  # it fell within this pass
        report = self._report(current, link, claims, problem)
        seconds = time.monotonic() - began
        self.observe(report, seconds)
        _log.debug("pass", change=self._change, seconds=round(seconds, 3))

    def _refresh(self) -> bool:
        """Reads what is new in the table; whether the ledger has one now."""
        try:
            read = self._ledger.read_table(self._epoch, self._change)
        except TransientError as error:
            _log.warning("the table cannot be read; the node stays as it is", error=str(error))
            return False
        if not read.epoch:
            return False  # Redis was flushed: the last table stands until there is a new one
        self._merge(read)
        return True

    def _note_carrier(self) -> None:
        """Notes how long the link is, or was, down. Called whenever the interface changes, for a pass may take long."""
        try:
            carrier = self._programmer.link().carrier
        except NodeError:
            return
        now = time.monotonic()
        if not carrier:
            self._down_since = now if self._down_since is None else self._down_since
        else:
            self._let_go = False
            if self._down_since is not None:
                self._longest_cut, self._down_since = max(self._longest_cut, now - self._down_since), None

    def _yields(self) -> bool:
        """Lets the node's addresses go if it has no link. Whether it has to give them up until the table is heard: its
        link was away for long, they may have been given to others, and it could not hear of it."""
        cut = self._longest_cut
        if self._down_since is not None:
            cut = max(cut, time.monotonic() - self._down_since)
            self._let_addresses_go()
        if cut < self._patience or self._table is None:
            return False
        mine = list(self._mine.values())
        if self._hears or not mine:
            return False
        _log.error("without a link and without the table: gives its addresses up", namespaces=len(mine))
        self._table |= {row.netid: replace(row, hops=()) for row in mine}
        self._mine.clear()
        self._changed = None
        self._epoch, self._change = "", 0  # the next table that is heard is read whole
        self._news, self._untouched = True, False
        return True

    def _let_addresses_go(self) -> None:
        """Takes the node's addresses off, once, because there is no link. It may come back to the link before it hears
        of a new table, and must not answer for what is another's by then: so before anybody is told, if not earlier."""
        if self._let_go or self._table is None:
            return
        self._let_go = True
        if self._held:
            _log.error("without a link: lets its addresses go", addresses=len(self._held))
            self._programmer.let_go()
            self._news, self._untouched = True, False

    def answer_inspections(self) -> None:
        """Tells what was asked for by `inspect`, of the node as it is now."""
        while self._inspections:
            namespace = self._inspections.popleft()
            try:
                self._ledger.tell_inspection(namespace, self._inspection(namespace))
            except TransientError as error:
                _log.warning("what was asked of this node cannot be told", error=str(error))

    def _inspection(self, namespace: str) -> Inspection:
        at = self._ledger.now()
        if self._table is None:
            return Inspection(self._name, at, problem="it has not seen a table yet")
        try:
            faults, traces = self._programmer.inspect(
                self._table, namespace, asks=self._asks, resting=frozenset(self._resting)
            )
        except NodeError as error:
            return Inspection(self._name, at, self._epoch, self._change, problem=f"{error.reason}: {error}")
        first = tuple(faults[:MOST_FAULTS])
        return Inspection(self._name, at, self._epoch, self._change, first, len(faults), traces)

    def addresses_of(self, node: str) -> frozenset[Address]:
        """The addresses that the table gives a node. May be called from any thread."""
        rows = (self._table or {}).copy().values()
        return frozenset(hop.address for row in rows for hop in row.hops if hop.node == node)

    def _merge(self, read: TableRead) -> None:
        if self._table is None or read.whole:
            self._table, self._mine, self._changed = {}, {}, None
        if self._changed is not None:
            self._changed |= read.rows.keys()
        for netid, row in read.rows.items():
            self._mine.pop(netid, None)
            if row is not None and any(hop.node == self._name for hop in row.hops):
                self._mine[netid] = row
            if row is None:
                self._untold[netid] = Steering(netid, self._table.get(netid, Steering(netid, "")).namespace)
                self._table.pop(netid, None)
            else:
                self._table[netid] = row
                if not read.whole:
                    self._untold[netid] = row
        self._epoch, self._change = read.epoch, read.change
        self._news = self._news or read.whole or bool(read.rows)
        # Somebody may wait for a NetID to be dropped here before it comes into use.
        self._closed = self._closed or any(row is not None and not row.hops for row in read.rows.values())

    def _program(self, table: dict[int, Steering]) -> tuple[LinkFacts, tuple[Claim, ...]]:
        now = time.monotonic()
        resting = {
            address: refusal
            for address, (until, refusal) in self._resting.items()
            if until > now and refusal.reason != NO_CARRIER  # it ends with its cause, not with time
        }
        try:
            # Only when nudged: a pass by the clock is to find what nobody tells of.
            nudged, self._nudged = self._nudged, False
            untouched = nudged and self._untouched and time.monotonic() < self._look_by
            self._untouched = True
            if self._anew and not untouched:
                self._anew = False
                self._programmer.forget_facts()
            changed, self._changed = self._changed, None
            result = self._programmer.run(
                table, resting=resting, fresh=self._fresh, untouched=untouched, changed=changed
            )
            self._changed = set()
            if not untouched:
                self._look_by = time.monotonic() + self._interval
        except NodeError:
            self._look_by = float("-inf")
            raise
        # Nothing new was asked for, nor was something given at last that had been refused: somebody touched the node.
        gained = result.taken and not result.taken & self._held
        if result.wrote and not self._news and not self._fresh and not gained:
            self._repairs += 1
            _log.warning("drift repaired", repairs=self._repairs)
        self._fresh = self._news = False  # only now: a pass that failed leaves its work to the next one
        self._held = frozenset(claim.address for claim in result.claims if claim.held)
        known = self._resting.keys()
        self._resting = {
            address: self._resting[address] if address in resting else (now + self._retry, refusal)
            for address, refusal in result.refused.items()
        }
        for address, refusal in result.refused.items():
            if address not in resting and not (refusal.reason == NO_CARRIER and address in known):
                _log.error("refused", address=str(address), reason=refusal.reason, message=refusal.message)
        self._tell_rows()
        # What is held and was never announced by this process: an earlier one may have been killed before it could.
        news = result.taken | (self._held - self._announced)
        if news:
            now = time.monotonic()
            self._announcements += [(now + after, news) for after in ANNOUNCE_SCHEDULE]
        self._announced = self._held
        return result.link, result.claims

    def _tell_rows(self) -> None:
        """Logs what the node does now with each NetID whose row changed: the last line of an operation's way."""
        for netid, row in self._untold.items():
            active = [hop.node for hop in row.hops if hop.acknowledged or hop.address in self._held]
            does = "steered" if active else "dropped"
            if self._name in active:
                does = "sent out"
            elif netid not in (self._table or {}):
                does = "left alone"
            traffic = {"netid": netid, "namespace": row.namespace, "traffic": does, "nodes": active}
            _log.info("programmed", operation=row.operation, **traffic)
        self._untold.clear()

    def _announce(self) -> None:
        """Announces what is due. What could not be is due again soon: a switch keeps the old port for hours."""
        now = time.monotonic()
        due = frozenset[Address]().union(*(addresses for when, addresses in self._announcements if when <= now))
        self._announcements = [item for item in self._announcements if item[0] > now]
        if not due:
            return
        try:
            self._programmer.announce(due)
        except NodeError as error:
            self._announcements.append((now + ANNOUNCE_RETRY_SECONDS, due))
            _log.warning("not announced; to be tried again", reason=error.reason, error=str(error))

    def _report(self, current: bool, link: LinkFacts | None, claims: tuple[Claim, ...], problem: str) -> NodeReport:
        """Says what the node holds. Without a table in the ledger the report names no epoch: nothing was applied."""
        now = time.time()
        if problem:
            self._last_problem, self._last_problem_at = problem, now
        report = NodeReport(
            self._name,
            now,
            self._epoch if current else "",
            self._change if current and not problem else 0,
            f"{self._node_ip}/{link.prefix_length}" if link is not None else "",
            link.interface if link is not None else "",
            claims,
            self._repairs,
            problem,
            link.carrier if link is not None else True,
            link.gateways if link is not None else (),
            tuple(map(str, link.other_ips)) if link is not None else (),
            last_problem=self._last_problem,
            last_problem_at=self._last_problem_at,
        )
        try:
            self._ledger.report(report)
            news = (claims, report.link, report.other_links, report.problem, report.carrier)
            behind = unacknowledged(self._mine, self._name, claims)
            if report.carrier != self._told[-1]:
                self._tell(FAILOVER_TASK)
            if not current or news != self._told or self._closed or behind:
                self._tell(PUBLISH_TASK)
                self._told = news
                self._closed = self._closed and bool(problem)
        except TransientError as error:
            _log.warning("the report was not sent", error=str(error))
        return report
