"""What a node's passes cost, against the same done by hand with one process of each plain tool, in the same run.

The node is one of `lab.host_node`; the runner's programmer drives it with the real drivers. The conflict probe sends
its frames and waits for nothing; but for one address more, where it waits as it does by default, and that half second
is taken off: what is done meanwhile, the rules, keeps nobody waiting. The same without a wait has a row of its own. A
pass that a nudge brings is measured as the runner makes it: of a node that was looked at a moment ago, and of
namespaces that it drops already, as they are before they have an address. So is the look ten seconds later which takes
the rules of what was released away (docs/decisions/0034): it has rows of its own, and the tools do the same in two
steps.
"""

from __future__ import annotations

import gc
import logging
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import IPv4Address

import structlog

from bench.rows import Row, row_of
from egress.addresses import Address
from egress.delta import Change, FlowChange, Found, applied, change
from egress.program import Layout, NodeFacts, NodeProgram, render
from egress.table import Steering, SteeringHop
from lab.host_node import INTERFACE, host_node, run
from node_runner.drivers import open_node
from node_runner.drivers.ports import Node, ProbeTiming
from node_runner.programmer import Programmer
from node_runner.retirement import RETIRE_SECONDS, Retirement

SIZES = (1, 100, 1_000, 4_000)
VARIANTS = ("nft", "legacy")
GOALS_AT = 1_000
LEAST_RUNS, MOST_RUNS, SECONDS_PER_SIZE = 3, 10, 6.0
"""Each size of each variant is run through so often, until its seconds are used up."""
GOALS = {
    "claim": (2.0, 0.0),
    "steer": (3.0, 45.0),
    "re-steer": (3.0, 45.0),
    "one more": (0.0, 15.0),
    "one less": (0.0, 25.0),
    "release all": (0.0, 200.0),
    "restart, intact": (2.0, 0.0),
}
"""At GOALS_AT: how many times the floor, and how many milliseconds; 0 for no such goal."""

ME, NODE_IP, PREFIX = "node1", IPv4Address("10.20.0.1"), 16
OTHERS: dict[str, Address] = {"node2": IPv4Address("10.20.0.2"), "node3": IPv4Address("10.20.0.3")}
_AFTER_THE_WAIT = (
    "the rules were written while the probe waited; the look, the plan and the probe's sockets take 2 ms before it, "
    "and after it ovs-ofctl 2, the address 1, and what the probe's timers are late 3 (each call timed, of 10 to 12)"
)
_FLOWS = (
    "ovs-ofctl takes 18 of 30 ms, as it does for the floor, rendering and comparing in Python the rest (profile): met "
    "where the processor gives the floor less than 27"
)
WHY = {
    ("release all", "nft"): (
        "what is read, iptables-nft-save above all, takes 60 to 70 ms, the addresses 45, half of it the kernel's, "
        "ovs-ofctl 24, the rest is Python (profile of a pass of 155): met where the processor is as quick as that"
    ),
    **{("one more", variant): _AFTER_THE_WAIT for variant in VARIANTS},
    **{(work, variant): _FLOWS for work in ("steer", "re-steer") for variant in VARIANTS},
}
RULES_OF_ONE, RULES_OF_ALL = "look, the rules of one go", "look, the rules of all go"
_EXTRA = 0xFFFFF0
_FIRST_ADDRESS, _FIRST_NETID = int(IPv4Address("10.20.16.0")), 0x10000
_NO_WAITING, _WAITING = ProbeTiming(3, 0.0, 0.0), ProbeTiming()
UNWAITED = "one more, no wait for answers"
Table = dict[int, Steering]


def rows() -> Iterator[Row | str]:
    """See Row."""
    if os.geteuid():
        yield "the node is not measured: that needs root"
        return
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # a line for each pass
    try:
        for variant in VARIANTS:
            for size in SIZES:
                with host_node(variant, NODE_IP, PREFIX):
                    yield from _of(variant, size)
    finally:
        structlog.configure(**before)


class Passes:
    """One node of one size: its times in milliseconds by what was done, and those of the plain tools."""

    def __init__(self, variant: str, node: Node, size: int) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self.floors: dict[str, list[float]] = defaultdict(list)
        self.size = size
        self.mine = {netid: row(netid, ME, NODE_IP) for netid in netids(size)}
        self._variant = variant
        self._now = 0.0
        self._node = node
        self._programmer = self._new()
        self._last: Table = {}
        facts = node.flows.facts()
        self._facts = NodeFacts(ME, facts.tun_mac, facts.vxlan_port)
        self._nothing = Found(
            flows=frozenset(), rules=node.nat.read(), foreign_flows=node.flows.read(everywhere=True).foreign
        )

    def once(self) -> None:
        """Everything, once by the plain tools and once by the runner."""
        more = self.mine | {_EXTRA: row(_EXTRA, ME, NODE_IP, self.size)}
        full = self.mine | {_EXTRA: Steering(_EXTRA, "extra")}
        empty: Table = {}
        self._by_tools("claim", empty, full)
        self._intact_by_tools(full)
        self._by_tools("one more", full, more)
        self._by_tools("one less", more, full, rules=RULES_OF_ONE)
        self._by_tools("release all", full, empty, rules=RULES_OF_ALL)

        self._programmer = self._new()
        self.plain("", empty)
        self.plain("claim", full)
        self._node = open_node(NODE_IP, Layout())  # which must find everything out anew
        self._programmer = self._new()
        self.plain("restart, intact", full, fresh=True, writes=False)
        self.plain("nothing to do", full, writes=False)
        self.nudged(UNWAITED, more)
        self.nudged("", full)
        self._rules_go("", full)
        self.nudged("one more", more, timing=_WAITING)
        self.nudged("one less", full)
        self._rules_go(RULES_OF_ONE, full)
        self._drift(full)
        self.plain("drift repair", full)
        self.plain("", full, writes=False)
        self.plain("release all", empty)
        self._rules_go(RULES_OF_ALL, empty)

        dropped = {netid: Steering(netid, f"ns{netid}") for netid in full}
        first, second = ({netid: row(netid, *other) for netid in full} for other in OTHERS.items())
        self.plain("", dropped)
        self._by_tools("steer", dropped, first)
        self._by_tools("re-steer", first, second)
        self._by_tools("", second, dropped)
        self.plain("", dropped, writes=False)
        self.nudged("steer", first)
        self.nudged("re-steer", second)
        self.nudged("one steered", second | {_FIRST_NETID: first[_FIRST_NETID]})
        self.plain("", empty)

    def _new(self) -> Programmer:
        return Programmer(ME, self._node, Layout(), _NO_WAITING, Retirement(clock=lambda: self._now))

    def plain(
        self,
        name: str,
        table: Table,
        *,
        fresh: bool = False,
        untouched: bool = False,
        writes: bool = True,
        timing: ProbeTiming = _NO_WAITING,
    ) -> None:
        """One pass, timed without what the probe waits by `timing`."""
        gc.collect()
        changed = {netid for netid in self._last.keys() | table.keys() if self._last.get(netid) != table.get(netid)}
        self._last = table
        began = time.perf_counter()
        self._programmer._timing = timing
        result = self._programmer.run(table, resting={}, fresh=fresh, untouched=untouched, changed=changed)
        self._note(self.times, name, began + timing.interval * (timing.count - 1) + timing.wait)
        if result.refused or (result.wrote and not writes):
            raise RuntimeError(f"{name}: refused {len(result.refused)}, wrote {result.wrote}")

    def nudged(self, name: str, table: Table, timing: ProbeTiming = _NO_WAITING) -> None:
        """As `plain`, of a node that nobody has touched since."""
        self.plain(name, table, untouched=True, timing=timing)

    def _rules_go(self, name: str, table: Table) -> None:
        """The time comes in which the rules of released addresses go."""
        self._now += RETIRE_SECONDS
        self.plain(name, table, writes=False)

    def _note(self, into: dict[str, list[float]], name: str, began: float) -> None:
        if name:
            into[name].append((time.perf_counter() - began) * 1000)

    def _program(self, table: Table) -> NodeProgram:
        return render(table.values(), self._facts, Layout())

    def _by_tools(self, name: str, before: Table, after: Table, rules: str = "") -> None:
        """From one table to the next with what the tools read on their standard input; to make that is not timed.
        With `rules`, the rules come after all else, under that name."""
        step = change(self._program(after), applied(self._program(before), self._nothing))
        restore = list(self._restore(step))
        work = [
            *self._bundle(step.fence),
            *self._batch("del", step.remove_addresses),
            *([] if rules else restore),
            *self._bundle(step.admit),
            *self._batch("add", step.add_addresses),
        ]
        for what, calls in ((name, work), (rules, restore if rules else [])):
            began = time.perf_counter()
            for argv, stdin in calls:
                run(*argv, stdin=stdin)
            self._note(self.floors, what, began)

    def _bundle(self, flows: FlowChange) -> Iterator[tuple[list[str], str]]:
        lines = [f"flow delete_strict table={f.table},priority={f.priority},{f.match}" for f in flows.remove]
        lines += [f"flow add cookie={flow.cookie:#x},{flow}" for flow in flows.add]
        if lines:
            yield ["ovs-ofctl", "--no-names", "-O", "OpenFlow13", "bundle", "br0", "-"], "\n".join([*lines, ""])

    def _restore(self, step: Change) -> Iterator[tuple[list[str], str]]:
        if step.rules:
            yield [f"iptables-{self._variant}-restore", "--noflush", "--wait=10"], str(step.rules)

    def _batch(self, verb: str, addresses: frozenset[Address]) -> Iterator[tuple[list[str], str]]:
        label = f" label {INTERFACE}:eip" if verb == "add" else ""
        lines = [f"address {verb} {address}/{PREFIX} dev {INTERFACE}{label}\n" for address in addresses]
        if lines:
            yield ["ip", "-batch", "-"], "".join(lines)

    def _intact_by_tools(self, table: Table) -> None:
        """Dumps all that the runner dumps, and compares: as sets of lines, for order and counters mean nothing here."""
        dumps = (
            ("ip", "-o", "address", "show", "dev", INTERFACE),
            (f"iptables-{self._variant}-save",),
            ("ovs-ofctl", "--no-names", "-O", "OpenFlow13", "--no-stats", "dump-flows", "br0"),
        )
        wanted = self._program(table)
        lines = {
            f" cookie={f.cookie:#x}, table=100, priority={f.priority},{f.match} actions={f.actions}"
            for f in wanted.flows
        }
        rules = {str(rule) for rule in (*wanted.rules.jumps, *wanted.rules.spine, *wanted.rules.leaves)}
        began = time.perf_counter()
        addresses, saved, flows = (run(*argv).splitlines() for argv in dumps)
        if len(addresses) <= len(table) or not lines.issubset(flows) or not rules.issubset(saved):
            raise RuntimeError("the plain tools did not program the node as they should")
        self._note(self.floors, "restart, intact", began)

    def _drift(self, table: Table) -> None:
        """Somebody takes an address and a flow away, and flushes a chain."""
        address = next(iter(table.values())).hops[0].address
        run("ip", "address", "del", f"{address}/{PREFIX}", "dev", INTERFACE)
        run("ovs-ofctl", "-O", "OpenFlow13", "del-flows", "br0", f"table=100,ip,reg0={next(iter(table)):#x}")
        run(f"iptables-{self._variant}", "-t", "nat", "-F", "HAWSE-SNAT")


def _of(variant: str, size: int) -> Iterator[Row]:
    bench = Passes(variant, open_node(NODE_IP, Layout()), size)
    began = time.monotonic()
    for number in range(MOST_RUNS):
        if number >= LEAST_RUNS and time.monotonic() - began > SECONDS_PER_SIZE:
            break
        bench.once()
    for name, times in bench.times.items():
        floors = bench.floors["one more" if name == UNWAITED else name]
        floor = statistics.median(floors) if floors else 0.0
        factor, most = GOALS.get(name, (0.0, 0.0)) if size == GOALS_AT else (0.0, 0.0)
        goal = min((goal for goal in (factor * floor, most) if goal), default=0.0)
        why = WHY.get((name, variant), "")
        yield row_of(f"node {name}, {variant}", size, "ms", times, floor=floor, goal=goal, why=why)


def netids(size: int) -> range:
    return range(_FIRST_NETID, _FIRST_NETID + size)


def row(netid: int, node: str, node_ip: Address, number: int | None = None) -> Steering:
    address = IPv4Address(_FIRST_ADDRESS + (netid - _FIRST_NETID if number is None else number))
    return Steering(netid, f"ns{netid}", (SteeringHop(address, node, node_ip, acknowledged=True),))
