"""The table as a node was last brought to it, and what a pass over a part of it needs to know. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from egress.addresses import Address
from egress.delta import Found, RulesFound, applied
from egress.program import Layout, NodeFacts, NodeProgram, render
from egress.table import Claim, Steering


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the table that can be programmed by itself, for it shares no address with the rest.

    `rows` are those of its `netids` as they are to be, `given` the node's addresses among them, each with its NetID,
    and `found` what the node holds of this part. `others` are the node's other addresses with their marks.
    """

    netids: frozenset[int]
    rows: list[Steering]
    given: Mapping[Address, int]
    found: Found
    others: Mapping[Address, int]

    @property
    def own(self) -> bool:
        """Whether the node's own addresses, and so its rules, have to do with it."""
        return bool(self.given or self.found.addresses)


class Applied:
    """A node that holds the program of `rows` on `facts`, nothing of it withheld, and nothing else of ours. `found` is
    what it held before that, and `claims` what it says of its addresses."""

    def __init__(
        self,
        rows: Collection[Steering],
        facts: NodeFacts,
        layout: Layout,
        program: NodeProgram,
        found: Found,
        claims: tuple[Claim, ...],
    ) -> None:
        self.facts = facts
        self.addresses = program.addresses
        self.claims = claims
        self._layout = layout
        self._rows = {row.netid: row for row in rows}
        self._given = {address: netid for netid, address in program.own.items()}
        self._marks = dict(program.marks)
        self._rest = Found(rules=RulesFound(parents=found.rules.parents), foreign_flows=found.foreign_flows)

    @property
    def separable(self) -> bool:
        """Whether parts can be told apart: not where two rows give the node one address, or one row two."""
        hops = sum(hop.node == self.facts.node for row in self._rows.values() for hop in row.hops)
        return hops == len(self.addresses) == len(self._given)

    def changed(self, table: Mapping[int, Steering]) -> set[int]:
        """The NetIDs whose rows are not the same in `table`. Looks at all of it."""
        rows = self._rows
        return {netid for netid, row in table.items() if rows.get(netid) is not row} | (rows.keys() - table.keys())

    def part(self, table: Mapping[int, Steering], netids: Collection[int]) -> Part | None:
        """The part of `table` that is `netids`; None if it cannot be programmed by itself."""
        before = [self._rows[netid] for netid in netids if netid in self._rows]
        after = [table[netid] for netid in netids if netid in table]
        hops = [(hop.address, row.netid) for row in after for hop in row.hops if hop.node == self.facts.node]
        given = dict(hops)
        if len(given) < len(hops) or len(set(given.values())) < len(given):
            return None
        if any(self._given.get(address, netid) not in netids for address, netid in hops):
            return None
        leaving = {hop.address for row in before for hop in row.hops if hop.node == self.facts.node}
        others: Mapping[Address, int] = {}
        if given or leaving:
            others = {address: mark for address, mark in self._marks.items() if address not in leaving}
        program = render(before, self.facts, self._layout, marks=self._marks, others=others)
        return Part(frozenset(netids), after, given, applied(program, self._rest), others)

    def advance(self, part: Part, program: NodeProgram, claims: tuple[Claim, ...]) -> None:
        """Of `part`, the node holds `program` by now, all of it, and says so in `claims`."""
        for netid in part.netids:
            self._rows.pop(netid, None)
        self._rows |= {row.netid: row for row in part.rows}
        if not part.own:
            return
        self.addresses = self.addresses - part.found.addresses | program.addresses
        for address in part.found.addresses:
            del self._given[address], self._marks[address]
        self._given |= {address: netid for netid, address in program.own.items()}
        self._marks |= program.marks
        kept = [claim for claim in self.claims if claim.netid not in part.netids]
        self.claims = tuple(sorted([*kept, *claims], key=lambda claim: (claim.address.version, int(claim.address))))
