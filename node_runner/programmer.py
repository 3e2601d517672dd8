"""One pass over one node: read what it holds, and bring it to its program without ever failing open."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import structlog

from egress.addresses import VERSIONS, Address
from egress.delta import Change, Found, applied, change, mark_in, standing, usurped
from egress.diagnosis import Fault, Sight, Trace, examine, trace
from egress.parts import Applied, Part
from egress.program import Layout, NodeFacts, NodeProgram, render
from egress.retreat import retreat
from egress.rules import table_name, versions_among
from egress.table import Claim, Steering, SteeringHop
from node_runner.drivers.errors import AddressForeign, ChainMissing, Ip6tablesFailed, NodeError
from node_runner.drivers.ports import LinkFacts, Node, ProbeTiming
from node_runner.retirement import Retirement

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the node does not hold an address that it was given."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a pass did: the claims as they stand, addresses newly taken (to be announced), and how much it wrote.

    `probed` are the addresses it asked the link about, `refused` those it does not hold, and why.
    """

    link: LinkFacts
    claims: tuple[Claim, ...]
    taken: frozenset[Address] = frozenset()
    refused: Mapping[Address, Refusal] = field(default_factory=dict)
    wrote: bool = False


NO_CARRIER = "NoCarrier"
"""The reason why a node without a link takes no address."""
FACTS_PASSES = 15
"""After how many passes the bridge's port numbers and MAC are read again though nothing hints that they changed."""
LOOK = ProbeTiming(2, 0.05, 0.15)
"""How an inspection asks the link: a pass waits for it, so not for long."""


@dataclass(slots=True)
class _Pass:
    """A pass under way, over all of the table or a part. `found` is what the node holds of it by now; `rendered` is
    what `program` was made of. `failed` are addresses that a round should have added and could not, `kept` those that
    it could not remove; `ruled` says that rules were written."""

    part: Part
    found: Found
    refused: dict[Address, Refusal]
    program: NodeProgram = field(default_factory=NodeProgram)
    failed: dict[Address, Refusal] = field(default_factory=dict)
    kept: dict[Address, Refusal] = field(default_factory=dict)
    wrote: bool = False
    ruled: bool = False
    rendered: tuple[NodeFacts, frozenset[Address], Mapping[Address, int]] | None = None


class Programmer:
    """Programs one node through its drivers. What the node holds is read anew in each pass, from the kernel and Open
    vSwitch; only the bridge's facts, which cost a process to read, are kept while passes find nothing to do."""

    def __init__(
        self, name: str, drivers: Node, layout: Layout, timing: ProbeTiming, retirement: Retirement | None = None
    ) -> None:
        self._name = name
        self._drivers = drivers
        self._layout = layout
        self._timing = timing
        self._facts: NodeFacts | None = None
        self._facts_age = 0
        self._applied: Applied | None = None
        self._six_fails = ""  # why ip6tables is left alone in this pass
        self._retreated = False  # what flows pointed to, such as groups, may stand without them
        self._denied: AbstractSet[Address] = frozenset()  # by the link, when it was last asked about them
        self._retirement = retirement or Retirement()
        self.wrote = float("-inf")
        """When it last began or ended writing, by the monotonic clock; may be read from any thread."""

    def forget_facts(self) -> None:
        """The bridge may have changed: the next pass reads its facts anew."""
        self._facts = None

    def holds(self) -> tuple[LinkFacts, tuple[Claim, ...]]:
        """What the node holds, without a table to compare it with. Writes nothing."""
        found = self._read()
        claims = tuple(Claim(address, netid, held=True) for (netid, _), address in sorted(standing(found).items()))
        return self._drivers.links.facts(), claims

    def link(self) -> LinkFacts:
        """The node's interface as it is now."""
        return self._drivers.links.facts()

    def let_go(self) -> None:
        """Takes all of our addresses off the interface at once, and then has the flows drop that hand packets to them.
        For a node without a link, from which no packet leaves: it may be back before the next pass, which sees to all
        else, has come that far, and another node may have the addresses by then. None is taken back until there is a
        link."""
        try:
            for address, error in self._drivers.links.apply(frozenset(), self._drivers.links.read()).items():
                _log.error("address not removed", address=str(address), reason=error.reason, error=str(error))
        except NodeError as error:
            _log.error("addresses not removed", reason=error.reason, error=str(error))
        try:
            flows = self._drivers.flows.read()
            self._drop((), Found(flows=flows.flows, groups=flows.groups, foreign_flows=flows.foreign))
        except NodeError as error:
            _log.error("flows do not drop", reason=error.reason, error=str(error))

    def announce(self, addresses: Iterable[Address]) -> None:
        """Tells the link which of `addresses` this node has."""
        link = self._drivers.links.facts()
        held = self._drivers.links.read().intersection(addresses)
        if held:
            self._drivers.arp.announce(link.interface, link.mac, held)

    def sight(self, table: Mapping[int, Steering], asks: Address | None, namespace: str) -> Sight:
        """What is on the node and around it, read anew. Asks the link, as `asks`, who else has the addresses of
        `namespace`, or of all if "". Writes nothing."""
        drivers = self._drivers
        flows = drivers.flows.read(everywhere=True)
        rules = drivers.nat.read(six=_any_six(self._given(table.values())))
        found = Found(drivers.links.read(), flows.flows, flows.groups, rules, flows.foreign)
        hops = {hop.address: (row.namespace, hop.node) for row in table.values() for hop in row.hops}
        refusals = drivers.links.refusals(hops)
        strangers = frozenset(address for address, error in refusals.items() if isinstance(error, AddressForeign))
        link = drivers.links.facts()
        asked = {address for address in found.addresses if namespace in ("", hops.get(address, ("", ""))[0])}
        answers = drivers.arp.who_has(link, asks, asked, LOOK) if asks and asked and link.carrier else {}
        counts = {traffic: (count.packets, count.bytes) for traffic, count in drivers.flows.counts().items()}
        return Sight(found, strangers, answers, counts)

    def wanted(self, table: Mapping[int, Steering], sight: Sight, resting: Collection[Address]) -> NodeProgram:
        """What should be on a node that looks like `sight`, and refuses `resting`."""
        bridge = self._drivers.flows.facts()
        facts = NodeFacts(self._name, bridge.tun_mac, bridge.vxlan_port)
        given = self._given(table.values())
        refused = frozenset(self._drivers.links.refusals(given)).union(resting, self._unmet(given, sight.found))
        marks = sight.found.rules.marks
        retiring = self._retiring(Part(list(table.values()), given, sight.found), sight.found, refused)
        return render(table.values(), facts, self._layout, withheld=refused, marks=marks, retiring=retiring)

    def inspect(
        self, table: Mapping[int, Steering], namespace: str, *, asks: Address | None, resting: Collection[Address]
    ) -> tuple[list[Fault], tuple[Trace, ...]]:
        """What is wrong on the node, of `namespace` or ("") of all; and what it does with the packets of `namespace`.
        NodeError if that cannot be read."""
        sight = self.sight(table, asks, namespace)
        program = self.wanted(table, sight, resting)
        rows = [row for row in table.values() if namespace and row.namespace == namespace]
        faults = examine(self._name, table, program, sight, self._layout, namespace)
        return faults, trace(rows, self._name, program, sight, self._layout)

    def run(
        self,
        table: Mapping[int, Steering],
        *,
        resting: Mapping[Address, Refusal],
        fresh: bool = False,
        untouched: bool = False,
        changed: Collection[int] | None = None,
    ) -> Result:
        """Brings the node to `table`. Raises NodeError when the node as a whole cannot be programmed; then every
        NetID of the table that has no flow drops, and so does every flow that counts on what does not stand.

        Addresses in `resting` were refused a moment ago and are not asked for again in this pass. `fresh` is a
        runner's first pass: it also looks where nothing of ours should be. What is taken is not announced yet.

        `untouched` says that nobody has told of a change of the node since it was last looked at, a moment ago. Then
        only the rows that are not those of the last pass are looked at, and of the node only its interface. `changed`
        has the NetIDs of these rows, and may have more; None if that is not known.
        """
        known, self._applied = self._applied, None
        self._six_fails = ""
        try:
            result = None
            if untouched and known is not None and not resting:
                result = self._run_part(table, known, known.changed(table) if changed is None else changed)
            if result is None:
                result = self._run_whole(list(table.values()), resting, fresh=fresh)
        except NodeError:
            self._retreated = True
            self._retreat(list(table.values()))
            raise
        self._retreated = False
        return result

    def _run_part(self, table: Mapping[int, Steering], known: Applied, netids: Collection[int]) -> Result | None:
        """A pass over the rows of `netids`, where the node holds what is `known`. None if that cannot be counted on, or
        if it failed: a pass over everything finds what was done."""
        drivers = self._drivers
        part = known.part(table, netids) if self._facts is known.facts and self._facts_age < FACTS_PASSES else None
        if part is None:
            return None
        self._make_ready(part)
        try:
            sight = drivers.links.look(part.given)
            if not known.stands_on(sight.addresses) or sight.refusals or not sight.facts.carrier:
                return None
            at_work = _Pass(part, part.found, {})
            asked = frozenset(part.given.keys() - part.found.addresses)
            # Where nothing is to be written, the rules matter no more than those of the addresses beside: most often
            # that is the row which says that this node has acknowledged.
            six = _any_six((*part.given, *part.found.addresses))
            if self._unmet(part.given, part.found) or (
                part.own and (asked or self._differs(at_work)) and not drivers.nat.unchanged(six=six)
            ):
                return None
            self._facts_age += 1
            with ThreadPoolExecutor(1) as pool:
                taken = self._rounds(at_work, sight.facts, asked, self._ask_early(pool, at_work, sight.facts, asked))
        except NodeError as error:
            _log.warning("the whole node is looked at", reason=error.reason, error=str(error))
            return None
        if at_work.failed or at_work.kept:
            return self._run_whole(list(table.values()), at_work.failed, fresh=False)
        known.advance(part, at_work.program, _claims(part.given, at_work.program, at_work.refused, {}))
        self._retirement.settle(known.addresses, None)
        if not at_work.refused:
            self._applied = known
        return Result(sight.facts, known.claims, taken, at_work.refused, at_work.wrote)

    def _run_whole(self, rows: list[Steering], resting: Mapping[Address, Refusal], *, fresh: bool) -> Result:
        """A pass over everything. Where ip6tables cannot be written, one without IPv6 addresses: IPv4 goes on."""
        try:
            return self._run(rows, resting, fresh=fresh)
        except Ip6tablesFailed as error:
            _log.error("no IPv6 address is held", reason=error.reason, error=str(error))
            self._six_fails = str(error)
            return self._run(rows, resting, fresh=fresh)

    def _make_ready(self, part: Part) -> None:
        """Has the tools started while the node is looked at; but not for a row which only says that this node has
        acknowledged what it holds. Rules are written for what comes: those of what goes stay for a while."""
        if part.netids and (not part.own or part.given.keys() != part.found.addresses):
            if part.given.keys() - part.found.addresses:
                self._drivers.nat.ready()  # it is needed first, and takes longest
            self._drivers.flows.ready()

    def _run(self, rows: list[Steering], resting: Mapping[Address, Refusal], *, fresh: bool) -> Result:
        self._facts_age += 1
        given = self._given(rows)
        with ThreadPoolExecutor(4) as pool:
            knowing = pool.submit(self._bridge_facts)
            reading = self._start_reading(pool, everywhere=fresh or self._retreated, six=_any_six(given))
            if fresh:
                self._drivers.links.sweep()
            sight = self._drivers.links.look(given)
            link, here = sight.facts, sight.addresses
            guarded = here or given or self._retirement.remembered
            ending = pool.submit(self._drivers.conntrack.forget_stale) if guarded else None
            refused = self._refused(given, resting, sight.refusals)
            if not link.carrier:
                refused |= _unlinked(link, given.keys() - here)
            asked = frozenset(given.keys() - refused.keys() - here)
            at_work = _Pass(Part(rows, given, Found(here)), Found(here), refused)
            early = self._ask_early(pool, at_work, link, asked)
            # Most often the marks are what they would be on an empty node: this is done while the tools still read.
            self._render(at_work, knowing.result(), asked | refused.keys(), {}, {})
            at_work.found = reading(here)
            all_read = not at_work.found.rules.unread
            if unmet := self._unmet(given, at_work.found):
                at_work.refused |= {address: why for address, why in unmet.items() if address not in refused}
                asked -= unmet.keys()
            taken = self._rounds(at_work, link, asked, early)
        if at_work.failed:
            # Their flows must go, or the packets would leave with whatever source the other rules give them.
            at_work.refused |= at_work.failed
            at_work.found = self._read(six=_any_six(given))
            self._round(at_work, withheld=at_work.refused.keys())
        self._take_rules_away(at_work)
        self._retirement.settle(at_work.program.addresses, at_work.program.retiring, all_read=all_read)
        if ending is not None and (ended := ending.result()):
            _log.info("ended connections that the guard had cut", connections=ended)
        claims = _claims(given, at_work.program, at_work.refused, at_work.kept)
        facts = self._facts
        if facts is not None and not at_work.refused and not at_work.kept:
            known = Applied(rows, facts, self._layout, at_work.program, at_work.found, claims, ruled=at_work.ruled)
            known.stands_on(here)  # most often it does, and then the next pass compares the same objects
            self._applied = known if known.separable else None
        return Result(link, claims, taken, at_work.refused, at_work.wrote)

    def _ask_early(
        self, pool: Executor, at_work: _Pass, link: LinkFacts, asked: frozenset[Address]
    ) -> Future[dict[Address, Refusal]] | None:
        """Asks the link while the node is read and fenced; but not before the node has let go what is another's by now:
        two that are to swap addresses would find each other's."""
        return (
            pool.submit(self._probe, link, asked)
            if asked and at_work.found.addresses <= at_work.part.given.keys()
            else None
        )

    def _rounds(
        self,
        at_work: _Pass,
        link: LinkFacts,
        asked: frozenset[Address],
        early: Future[dict[Address, Refusal]] | None,
    ) -> frozenset[Address]:
        """First without the addresses that are new here: their NetIDs are dropped while the link is asked. But one that
        only the interface lacks was asked about when its flow and rule were written: somebody took it away. Its
        traffic, which leaves with the right source, is not cut while the link is asked again. Those that were taken."""
        lacking = _standing_but_for_the_interface(at_work.found, at_work.part.given, asked)
        self._round(at_work, withheld=(asked - lacking) | at_work.refused.keys(), later=asked)
        if not asked:
            return frozenset()
        self._drivers.nat.ready()
        self._drivers.flows.ready()
        if early is not None:
            self._write_rules_ahead(at_work, asked)
        answered = early.result() if early is not None else self._probe(link, asked)
        denied = {address: why for address, why in answered.items() if address in asked}
        self._denied = (self._denied - asked) | denied.keys()
        at_work.refused |= denied
        return self._round(at_work, withheld=at_work.refused.keys())

    def _write_rules_ahead(self, at_work: _Pass, asked: frozenset[Address]) -> None:
        """Writes the rules of addresses that the link is being asked about: that takes long, and without a flow they
        do nothing. Those of one that is refused go in the next round. So not of one that the link denied when it was
        last asked: each time that it is asked again, they would come and go."""
        program = self._plan(at_work, at_work.refused.keys() | (asked & self._denied))
        rules = change(program, at_work.found, at_work.part.others.keys()).rules
        if rules:
            self._apply(Change(rules=rules))
            at_work.found = replace(at_work.found, rules=applied(program, at_work.found).rules)

    def _probe(self, link: LinkFacts, asked: AbstractSet[Address]) -> dict[Address, Refusal]:
        """Those of `asked` that may not be taken, and why. A link that went away meanwhile may have told nothing."""
        answers = self._drivers.arp.probe(link.interface, link.mac, asked, self._timing)
        if not self._drivers.links.facts().carrier:
            return _unlinked(link, asked)
        return {
            address: Refusal("AddressInUse", f"{mac} answers for {address} on {link.interface}")
            for address, mac in answers.items()
        }

    def _given(self, rows: Iterable[Steering]) -> dict[Address, int]:
        """The addresses that `rows` give this node, each with its NetID."""
        return {hop.address: row.netid for row in rows for hop in row.hops if hop.node == self._name}

    def _unmet(self, given: Iterable[Address], found: Found) -> dict[Address, Refusal]:
        """Those of `given` that cannot be translated on this node, and why: others go on without them. Only of IPv6:
        without the chain of IPv4 nothing can be done at all."""
        six = [address for address in given if address.version == 6]
        if not six:
            return {}
        chain = self._layout.masquerade_chain
        if not self._layout.networks(6):
            why = Refusal("NoClusterNetwork", "the pods have no IPv6 network: add it to HAWSE_CLUSTER_NETWORKS")
        elif found.rules.unread:
            why = Refusal(Ip6tablesFailed.reason, found.rules.unread)
        elif (table_name("nat", 6), chain) not in found.rules.parents:
            why = Refusal(
                ChainMissing.reason,
                f"chain {chain} does not exist in table nat of ip6tables: set the masquerade chain to one that "
                "POSTROUTING of iptables and of ip6tables jumps to (POSTROUTING itself will do)",
            )
        else:
            return {}
        return dict.fromkeys(six, why)

    def _refused(
        self, given: Mapping[Address, int], resting: Mapping[Address, Refusal], errors: Mapping[Address, NodeError]
    ) -> dict[Address, Refusal]:
        refused = {address: resting[address] for address in given if address in resting} if resting else {}
        for address, error in errors.items():
            refused[address] = Refusal(error.reason, str(error))
        return refused

    def _round(
        self, at_work: _Pass, withheld: AbstractSet[Address], later: AbstractSet[Address] = frozenset()
    ) -> frozenset[Address]:
        """Brings the node to the program without `withheld`, save that those in `later` are not put on the interface
        yet. The addresses that were."""
        program = self._plan(at_work, withheld, later)
        others = at_work.part.others.keys()
        step = change(program, at_work.found, others)
        if step and self._facts_age and not at_work.part.netids:
            self.forget_facts()  # flows that went may have gone with the bridge they were on
            if (again := self._plan(at_work, withheld, later)) is not program:
                program, step = again, change(again, at_work.found, others)
        coming, ending = step.add_addresses - later, self._without_flow(program, at_work.found, step)
        # Late packets of whoever had an address until a moment ago may have begun connections.
        back = coming & self._retirement.remembered
        step = replace(step, add_addresses=coming, forget=step.forget | back)
        if step:
            self._retirement.flows_come(program.addresses)
        failed, kept = self._apply(step)
        if ending - step.forget:
            self._drivers.conntrack.forget(ending - step.forget)
        self._retirement.flows_went(ending)
        failed |= {address: _usurped(at_work.part.given[address]) for address in usurped(program, at_work.found)}
        at_work.ruled = at_work.ruled or bool(step.rules)
        if later:
            after = applied(program, at_work.found)
            at_work.found = replace(after, addresses=after.addresses - later)
        at_work.failed |= failed
        at_work.kept = {
            address: why for address, why in at_work.kept.items() if address not in step.remove_addresses
        } | kept
        at_work.wrote = at_work.wrote or bool(_but_for(step, kept))
        return step.add_addresses - failed.keys()

    def _without_flow(self, program: NodeProgram, found: Found, step: Change) -> AbstractSet[Address]:
        """The addresses whose rules stay and that are without a flow from `step` on, or perhaps since a moment ago."""
        ending = program.retiring.keys() - self._retirement.remembered
        if program.retiring and step.fence:
            gone = {mark_in(flow) for flow in found.flows - program.flows}  # one may be there again, by somebody's hand
            ending |= {address for address, mark in program.retiring.items() if mark in gone}
        return ending

    def _take_rules_away(self, at_work: _Pass) -> None:
        """Takes away the rules of addresses that have been without a flow for long enough, in a pass over everything.
        That is no repair, and does not count as one."""
        over = self._retirement.over(at_work.program.retiring)
        if not over or at_work.rendered is None:
            return
        facts, withheld, retiring = at_work.rendered
        at_work.found = applied(at_work.program, at_work.found)
        marks = at_work.found.rules.marks
        left = {address: mark for address, mark in retiring.items() if address not in over}
        self._render(at_work, facts, withheld, marks, left)
        self._apply(change(at_work.program, at_work.found))
        at_work.ruled = True

    def _differs(self, at_work: _Pass) -> bool:
        return bool(change(self._plan(at_work, frozenset()), at_work.found, at_work.part.others.keys()))

    def _plan(
        self, at_work: _Pass, withheld: AbstractSet[Address], later: AbstractSet[Address] = frozenset()
    ) -> NodeProgram:
        """The program without `withheld`; that of `at_work` if it would be the same. The rules of those in `later`
        stay where they are there: most often they are about to be wanted."""
        facts, marks = self._bridge_facts(), at_work.found.rules.marks
        retiring = self._retiring(at_work.part, at_work.found, withheld)
        retiring |= {address: marks[address] for address in withheld & later if address in marks}
        kept = at_work.program.marks.items() <= marks.items() and len(set(marks.values())) == len(marks)
        if at_work.rendered != (facts, withheld, retiring) or not kept:
            self._render(at_work, facts, frozenset(withheld), marks, retiring)
        return at_work.program

    def _render(
        self,
        at_work: _Pass,
        facts: NodeFacts,
        withheld: frozenset[Address],
        marks: Mapping[Address, int],
        retiring: Mapping[Address, int],
    ) -> None:
        at_work.program = at_work.part.render(at_work.found, facts, self._layout, withheld, marks, retiring)
        at_work.rendered = facts, withheld, retiring

    def _retiring(self, part: Part, found: Found, withheld: AbstractSet[Address]) -> dict[Address, int]:
        """The addresses of `part` whose rules stay, with their marks, though they are not to have a flow. Where the
        chain is gone that leads to them, no packet comes there, and they could not be written."""
        marks, chain = found.rules.marks, self._layout.masquerade_chain
        reached = {version for version in VERSIONS if (table_name("nat", version), chain) in found.rules.parents}
        if part.others or not versions_among(marks) <= reached:
            marks = {
                address: mark
                for address, mark in marks.items()
                if address not in part.others and address.version in reached
            }
        return self._retirement.among(marks, part.given, withheld)

    def _bridge_facts(self) -> NodeFacts:
        facts = self._facts  # another thread may forget them at any time
        if facts is None or self._facts_age > FACTS_PASSES:
            bridge = self._drivers.flows.facts()
            if bridge.ipv6 and not self._layout.networks(6) and not self._layout.unknown_ipv6:
                _log.warning("pods have IPv6 that HAWSE_CLUSTER_NETWORKS says nothing of: it is dropped where we steer")
                self._layout = replace(self._layout, unknown_ipv6=True)
            facts = NodeFacts(self._name, bridge.tun_mac, bridge.vxlan_port)
            self._facts, self._facts_age = facts, 0
        return facts

    def _start_reading(
        self, pool: Executor, *, everywhere: bool = False, six: bool
    ) -> Callable[[frozenset[Address]], Found]:
        """Has Open vSwitch and iptables read at the same time; gives what the node holds when told its addresses."""
        rules_read = pool.submit(self._drivers.nat.read, six=six)  # it takes longest
        flows_read = pool.submit(self._drivers.flows.read, everywhere=everywhere)

        def found(addresses: frozenset[Address]) -> Found:
            flows, rules = flows_read.result(), rules_read.result()
            if self._six_fails:
                rules = rules.without_six(self._six_fails)
            return Found(addresses, flows.flows, flows.groups, rules, flows.foreign)

        return found

    def _read(self, *, six: bool = False) -> Found:
        with ThreadPoolExecutor(3) as pool:
            reading, addresses = self._start_reading(pool, six=six), pool.submit(self._drivers.links.read)
            return replace(reading(frozenset()), addresses=addresses.result())  # a missing bridge is said first

    def _apply(self, step: Change) -> tuple[dict[Address, Refusal], dict[Address, Refusal]]:
        """Carries out `step` in its order; the addresses that could not be added, those that could not be removed, and
        why."""
        drivers = self._drivers
        if step.rules:
            drivers.nat.ready()
        if step.fence:
            with self._writing():
                drivers.flows.apply(step.fence)
        if step.admit:
            drivers.flows.ready()
        kept = self._let_go(step.remove_addresses)
        if step.forget:
            drivers.conntrack.forget(step.forget)
        if step.rules:
            with self._writing():
                drivers.nat.apply(step.rules)
        if step.admit:
            with self._writing():
                drivers.flows.apply(step.admit)
        failed: dict[Address, Refusal] = {}
        if step.add_addresses:
            with self._writing():
                for address, error in drivers.links.apply(step.add_addresses, frozenset()).items():
                    failed[address] = Refusal(error.reason, str(error))
        if done := _but_for(step, kept):
            _log.info(
                "applied",
                flows=len(step.fence.add) + len(step.fence.remove) + len(step.admit.add),
                rules=bool(step.rules),
                added=sorted(map(str, step.add_addresses)),
                removed=sorted(map(str, done.remove_addresses)),
            )
        return failed, kept

    def _retreat(self, rows: list[Steering]) -> None:
        """Writes the drops that must stand whatever else fails. Then the node lets go what the table does not give it,
        for another may have it by now. Should even that fail, it is logged: the caller is about to raise what came
        first."""
        try:
            flows = self._drivers.flows.read()
            found = Found(flows=flows.flows, groups=flows.groups, foreign_flows=flows.foreign)
            try:
                found = replace(found, addresses=self._drivers.links.read())
                found = replace(found, rules=self._drivers.nat.read(six=_any_six(found.addresses)))
            except NodeError as error:
                _log.warning("not all is known of the node's addresses and rules", error=str(error))
            self._drop(rows, found)
            self._let_go(found.addresses - self._given(rows).keys())
        except NodeError as error:
            _log.error("the retreat is not complete", reason=error.reason, error=str(error))

    def _drop(self, rows: Iterable[Steering], found: Found) -> None:
        """Writes the drops of a retreat."""
        drops = retreat(rows, self._name, found, self._layout)
        if drops:
            with self._writing():
                self._drivers.flows.apply(drops)
            _log.warning("traffic dropped", flows=len(drops.add))

    def _let_go(self, addresses: AbstractSet[Address]) -> dict[Address, Refusal]:
        """Takes `addresses` off the interface; those that stay, and why."""
        kept: dict[Address, Refusal] = {}
        if addresses:
            with self._writing():
                for address, error in self._drivers.links.apply(frozenset(), addresses).items():
                    _log.error("address not removed", address=str(address), reason=error.reason, error=str(error))
                    kept[address] = Refusal(error.reason, str(error))
        return kept

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Whoever watches the node is told of a write while it is made, or a moment later."""
        self.wrote = time.monotonic()
        try:
            yield
        finally:
            self.wrote = time.monotonic()


def _any_six(addresses: Iterable[Address]) -> bool:
    """Whether there is an IPv6 address among `addresses`."""
    return 6 in versions_among(addresses)


def _unlinked(link: LinkFacts, addresses: Iterable[Address]) -> dict[Address, Refusal]:
    """Why the node takes none of `addresses` now: without a link it could not ask who has them."""
    why = Refusal(NO_CARRIER, f"{link.interface} has no link: the address is taken when it has one")
    return dict.fromkeys(addresses, why)


def _usurped(netid: int) -> Refusal:
    return Refusal("FlowForeign", f"a flow that is not Hawse's steers NetID {netid}: remove it from the egress table")


def _standing_but_for_the_interface(
    found: Found, given: Mapping[Address, int], asked: AbstractSet[Address]
) -> frozenset[Address]:
    """Those of `asked` whose flow, for the NetID they are given for, and rule are there: only the address is not."""
    if not asked:
        return frozenset()
    carrying = standing(replace(found, addresses=found.addresses | asked))
    return frozenset(address for address in asked if carrying.get((given[address], address.version)) == address)


def _but_for(step: Change, kept: Mapping[Address, Refusal]) -> Change:
    """`step` without what it could not do, for each pass tries that again."""
    return replace(step, remove_addresses=step.remove_addresses - kept.keys(), forget=step.forget - kept.keys())


def _claims(
    given: Mapping[Address, int],
    program: NodeProgram,
    refused: Mapping[Address, Refusal],
    kept: Mapping[Address, Refusal],
) -> tuple[Claim, ...]:
    claims = [
        Claim(address, 0, held=False, reason=why.reason, message=why.message)
        for address, why in sorted(kept.items(), key=lambda item: (item[0].version, int(item[0])))
        if address not in given
    ]
    for address, netid in sorted(given.items(), key=lambda item: (item[0].version, int(item[0]))):
        refusal = refused.get(address) if refused else None
        if refusal is not None:
            claims.append(Claim(address, netid, held=False, reason=refusal.reason, message=refusal.message))
        else:
            claims.append(Claim(address, netid, held=program.own.get((netid, address.version)) == address))
    return tuple(claims)


def unacknowledged(table: Mapping[int, Steering], node: str, claims: Iterable[Claim]) -> bool:
    """Whether the table says something else of this node's claims than the node itself: the workers must hear."""
    held: AbstractSet[tuple[Address, int]] = {(claim.address, claim.netid) for claim in claims if claim.held}
    hops: list[tuple[int, SteeringHop]] = [
        (row.netid, hop) for row in table.values() for hop in row.hops if hop.node == node
    ]
    return any(hop.acknowledged != ((hop.address, netid) in held) for netid, hop in hops)
