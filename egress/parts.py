"""Programming a part of the table by itself, on a node that is known to hold the program of all of it. Pure.

The part goes the way of the whole: `render` makes its program, `delta.change` the difference. Only what both are given
is less: the rows of some NetIDs, and of what the node holds their flows, their addresses, and those chains that hold
rules of these addresses, or are on the way to them.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import chain

from egress.addresses import Address, assign_marks
from egress.delta import Found, RulesFound, applied
from egress.program import Layout, NodeFacts, NodeProgram, render
from egress.rules import SPINE_CHAINS, chains_of, rules_amid
from egress.table import Claim, Steering


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the table that shares no address with the rest. Without `netids` it is all of it.

    `rows` are its rows as they are to be, `given` the node's addresses among them, each with its NetID, and `found`
    what the node holds of this part. `others` are the node's other addresses, with their marks, and those that retire.
    """

    rows: list[Steering]
    given: Mapping[Address, int]
    found: Found
    netids: frozenset[int] = frozenset()
    others: Mapping[Address, int] = field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether the node's own addresses, and so its rules, have to do with it."""
        return bool(self.given or self.found.addresses)

    def render(
        self,
        found: Found,
        facts: NodeFacts,
        layout: Layout,
        withheld: AbstractSet[Address],
        marks: Mapping[Address, int],
        retiring: Mapping[Address, int],
    ) -> NodeProgram:
        """The program of the part on a node that holds `found` of it by now; see `program.render` for the rest."""
        known = {**marks, **self.others}
        program = render(self.rows, facts, layout, withheld=withheld, marks=known, retiring=retiring)
        if not self.others or not self.own:
            return program
        leaving = {
            address: mark
            for address, mark in found.rules.marks.items()
            if address not in self.others and address not in program.retiring
        }
        others = chain(self.others, program.retiring)
        return replace(program, rules=rules_amid(found.rules.own, leaving, program.marks, others, layout))


class Applied:
    """A node that holds the program of `rows` on `facts`, nothing of it withheld, and nothing else of ours but the
    rules of addresses that retire.

    `found` is what it held before that, `ruled` whether rules were written, and `claims` what it says of its addresses.
    """

    def __init__(  # noqa: PLR0913 - what a pass over everything knows at its end
        self,
        rows: Collection[Steering],
        facts: NodeFacts,
        layout: Layout,
        program: NodeProgram,
        found: Found,
        claims: tuple[Claim, ...],
        *,
        ruled: bool,
    ) -> None:
        self.facts = facts
        self.addresses = program.addresses
        self.claims = claims
        self._layout = layout
        self._rows = {row.netid: row for row in rows}
        self._given = {address: netid for (netid, _), address in program.own.items()}
        self._marks = {**program.marks, **program.retiring}
        self._found, self._program = found, program if ruled else None
        self._foreign = found.foreign_flows
        self._known: tuple[dict[tuple[str, str], tuple[str, ...]], Found] | None = None

    def stands_on(self, addresses: frozenset[Address]) -> bool:
        """Whether the interface holds just the node's `addresses`. Then they are kept for the next comparison: equal
        addresses compare one by one, in Python, and the same ones do not."""
        same = addresses == self.addresses
        if same:
            self.addresses = addresses
        return same

    @property
    def separable(self) -> bool:
        """Whether parts can be told apart: not where two rows give the node one address, or one row two."""
        hops = sum(hop.node == self.facts.node for row in self._rows.values() for hop in row.hops)
        return hops == len(self.addresses) == len(self._given)

    def _holds(self) -> tuple[dict[tuple[str, str], tuple[str, ...]], Found]:
        """The chains that are ours; and what no part changes, but for our jumps among the rules of others."""
        if self._known is None:
            found = self._found if self._program is None else applied(self._program, self._found)
            rest = Found(rules=RulesFound(parents=found.rules.parents), foreign_flows=found.foreign_flows)
            self._known = dict(found.rules.own), rest
        return self._known

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
        if len(given) < len(hops) or len({(netid, address.version) for address, netid in hops}) < len(hops):
            return None
        if any(self._given.get(address, netid) not in netids for address, netid in hops):
            return None
        leaving = {hop.address for row in before for hop in row.hops if hop.node == self.facts.node}
        if not given and not leaving:
            found = applied(render(before, self.facts, self._layout), Found(foreign_flows=self._foreign))
            return Part(after, given, found, frozenset(netids))
        others = self._marks.copy()  # to hash an address takes long, and a copy does not
        for address in (*leaving, *given):
            others.pop(address, None)
        held, rest = self._holds()
        found = applied(render(before, self.facts, self._layout, marks=self._marks), rest)
        chains = dict(held)
        if others:
            concerned = chains_of(assign_marks(given, self._marks))
            concerned |= chains_of({address: self._marks[address] for address in leaving})
            chains = {key: chains[key] for key in concerned.union(SPINE_CHAINS) if key in chains}
        rules = RulesFound(chains, rest.rules.parents)
        return Part(after, given, replace(found, rules=rules), frozenset(netids), others)

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
        self._given |= {address: netid for (netid, _), address in program.own.items()}
        self._marks |= {**program.marks, **program.retiring}
        held, rest = self._holds()
        for key in part.found.rules.own:
            held.pop(key, None)
        after = applied(program, part.found).rules
        held |= after.own
        self._known = held, replace(rest, rules=RulesFound(parents=after.parents))
        kept = [claim for claim in self.claims if claim.netid not in part.netids]  # in order, and thousands
        for claim in claims:
            insort(kept, claim, key=lambda claim: (claim.address.version, int(claim.address)))
        self.claims = tuple(kept)
