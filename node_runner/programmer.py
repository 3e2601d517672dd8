"""One pass over one node: read what it holds, and bring it to its program without ever failing open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

import structlog

from egress.addresses import Address
from egress.delta import Change, FlowChange, Found, applied, change, marks_of, standing, usurped
from egress.program import Flow, Layout, NodeFacts, NodeProgram, render
from egress.table import Claim, Steering, SteeringHop
from node_runner.drivers.errors import InterfaceMissing, NodeError
from node_runner.drivers.ports import LinkFacts, Node, ProbeTiming

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


FACTS_PASSES = 15
"""After how many passes the bridge's port numbers and MAC are read again though nothing hints that they changed."""


class Programmer:
    """Programs one node through its drivers. What the node holds is read anew in each pass, from the kernel and Open
    vSwitch; only the bridge's facts, which cost a process to read, are kept while passes find nothing to do."""

    def __init__(self, name: str, drivers: Node, layout: Layout, timing: ProbeTiming) -> None:
        self._name = name
        self._drivers = drivers
        self._layout = layout
        self._timing = timing
        self._facts: NodeFacts | None = None
        self._facts_age = 0

    def forget_facts(self) -> None:
        """The bridge may have changed: the next pass reads its facts anew."""
        self._facts = None

    def holds(self) -> tuple[LinkFacts, tuple[Claim, ...]]:
        """What the node holds, without a table to compare it with. Writes nothing."""
        found = self._read()
        claims = tuple(Claim(address, netid, held=True) for netid, address in sorted(standing(found).items()))
        return self._drivers.links.facts(), claims

    def run(self, table: Mapping[int, Steering], *, resting: Mapping[Address, Refusal], fresh: bool = False) -> Result:
        """Brings the node to `table`. Raises NodeError when the node as a whole cannot be programmed.

        Addresses in `resting` were refused a moment ago and are not asked for again in this pass. `fresh` is a
        runner's first pass: it also looks where nothing of ours should be.
        """
        links = self._drivers.links
        try:
            link = links.facts()
        except InterfaceMissing:
            self._fence_off(self._drivers.flows.read().flows)  # the addresses went with the interface
            raise
        if fresh:
            links.sweep()
        rows = list(table.values())
        given = {hop.address: row.netid for row in rows for hop in row.hops if hop.node == self._name}
        found = self._read(everywhere=fresh)
        refused = {address: Refusal(error.reason, str(error)) for address, error in links.refusals(given).items()}
        refused |= {address: resting[address] for address in given if address in resting and address not in refused}
        marks = marks_of(found.rules)
        asked = {address for address in given if address not in found.addresses and address not in refused}
        # An address that only the interface lacks was asked about when its flow and rule were written: somebody took
        # it away. Its traffic, which leaves with the right source, is not cut while the link is asked again.
        lacking = _standing_but_for_the_interface(found, given, asked)

        # First without the addresses that are new here: their NetIDs are dropped while the link is asked about them.
        withheld = (asked - lacking) | refused.keys()
        facts = self._bridge_facts()
        program = render(rows, facts, self._layout, withheld=withheld, marks=marks)
        step = change(program, found)
        if step and self._facts_age:
            self.forget_facts()  # flows that went may have gone with the bridge they were on
            facts = self._bridge_facts()
            program = render(rows, facts, self._layout, withheld=withheld, marks=marks)
            step = change(program, found)
        step = replace(step, add_addresses=step.add_addresses - asked)
        wrote = bool(step)
        failed = self._apply(step, program)
        after = applied(program, found)
        after = replace(after, addresses=after.addresses - asked)
        for address in usurped(program, found):
            failed[address] = _usurped(given[address])
        taken: frozenset[Address] = frozenset()
        if asked:
            for address, mac in self._drivers.arp.probe(link.interface, link.mac, asked, self._timing).items():
                refused[address] = Refusal("AddressInUse", f"{mac} answers for {address} on {link.interface}")
            program = render(rows, facts, self._layout, withheld=refused.keys(), marks=marks_of(after.rules))
            step = change(program, after)
            wrote = wrote or bool(step)
            failed |= self._apply(step, program)
            for address in usurped(program, after):
                failed[address] = _usurped(given[address])
            after = applied(program, after)
            taken = step.add_addresses - failed.keys()
        if failed:
            # Their flows must go, or the packets would leave with whatever source the other rules give them.
            refused |= failed
            program = render(rows, facts, self._layout, withheld=refused.keys(), marks=marks_of(after.rules))
            self._apply(change(program, self._read()), program)
        if taken:
            self._drivers.arp.announce(link.interface, link.mac, taken)
        return Result(link, _claims(given, program, refused), taken, refused, wrote)

    def announce(self, addresses: Iterable[Address]) -> None:
        """Tells the link again which of `addresses` this node has."""
        link = self._drivers.links.facts()
        held = self._drivers.links.read().intersection(addresses)
        if held:
            self._drivers.arp.announce(link.interface, link.mac, held)

    def _bridge_facts(self) -> NodeFacts:
        self._facts_age += 1
        if self._facts is None or self._facts_age > FACTS_PASSES:
            bridge = self._drivers.flows.facts()
            self._facts, self._facts_age = NodeFacts(self._name, bridge.tun_mac, bridge.vxlan_port), 0
        return self._facts

    def _read(self, *, everywhere: bool = False) -> Found:
        flows = self._drivers.flows.read(everywhere=everywhere)
        rules = self._drivers.nat.read()
        return Found(self._drivers.links.read(), flows.flows, flows.groups, rules, flows.foreign)

    def _apply(self, step: Change, program: NodeProgram) -> dict[Address, Refusal]:
        """Carries out `step` in its order; the addresses that could not be added, and why."""
        drivers = self._drivers
        if step.fence:
            drivers.flows.apply(step.fence)
        if step.remove_addresses:
            for address, error in drivers.links.apply(frozenset(), step.remove_addresses).items():
                _log.error("address not removed", address=str(address), reason=error.reason, error=str(error))
        if step.rules:
            try:
                drivers.nat.apply(step.rules)
            except NodeError:
                self._fence_off(program.flows)
                raise
        if step.admit:
            drivers.flows.apply(step.admit)
        failed: dict[Address, Refusal] = {}
        if step.add_addresses:
            for address, error in drivers.links.apply(step.add_addresses, frozenset()).items():
                failed[address] = Refusal(error.reason, str(error))
        if step.forget:
            drivers.conntrack.forget(step.forget)
        if step:
            _log.info(
                "applied",
                flows=len(step.fence.add) + len(step.fence.remove) + len(step.admit.add),
                rules=bool(step.rules),
                added=sorted(map(str, step.add_addresses)),
                removed=sorted(map(str, step.remove_addresses)),
            )
        return failed

    def _fence_off(self, flows: AbstractSet[Flow]) -> None:
        """Those of `flows` that count on an address or a rule which cannot be had now drop their traffic instead."""
        drops = tuple(
            Flow(flow.table, flow.priority, flow.match, flow.cookie, "drop")
            for flow in sorted(flows)
            if "->pkt_mark" in flow.actions
        )
        if drops:
            self._drivers.flows.apply(FlowChange(add=drops))


def _usurped(netid: int) -> Refusal:
    return Refusal("FlowForeign", f"a flow that is not Hawse's steers NetID {netid}: remove it from the egress table")


def _standing_but_for_the_interface(
    found: Found, given: Mapping[Address, int], asked: AbstractSet[Address]
) -> frozenset[Address]:
    """Those of `asked` whose flow, for the NetID they are given for, and rule are there: only the address is not."""
    carrying = standing(replace(found, addresses=found.addresses | asked))
    return frozenset(address for address in asked if carrying.get(given[address]) == address)


def _claims(
    given: Mapping[Address, int], program: NodeProgram, refused: Mapping[Address, Refusal]
) -> tuple[Claim, ...]:
    claims = []
    for address, netid in sorted(given.items(), key=lambda item: (item[0].version, int(item[0]))):
        refusal = refused.get(address)
        if refusal is not None:
            claims.append(Claim(address, netid, held=False, reason=refusal.reason, message=refusal.message))
        else:
            claims.append(Claim(address, netid, held=program.own.get(netid) == address))
    return tuple(claims)


def unacknowledged(table: Mapping[int, Steering], node: str, claims: Iterable[Claim]) -> bool:
    """Whether the table says something else of this node's claims than the node itself: the workers must hear."""
    held: AbstractSet[tuple[Address, int]] = {(claim.address, claim.netid) for claim in claims if claim.held}
    hops: list[tuple[int, SteeringHop]] = [
        (row.netid, hop) for row in table.values() for hop in row.hops if hop.node == node
    ]
    return any(hop.acknowledged != ((hop.address, netid) in held) for netid, hop in hops)
