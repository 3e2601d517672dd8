"""What is wanted against what is there: what to add and what to remove, and in which order. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from ipaddress import ip_address
from typing import Generic, TypeVar

from egress.addresses import VERSIONS, Address
from egress.program import COOKIE, COOKIE_MASK, Flow, Group, NodeProgram, Traffic
from egress.rules import OWN_PREFIX, SNAT_CHAIN, SPINE_CHAINS, TABLES, RuleSet, table_name, tail_of, version_of

T = TypeVar("T")
_OF_A_CHAIN = 2
"""The entries of an empty chain in a legacy table."""
_JUMP = re.compile(rf"-[jg] {re.escape(OWN_PREFIX)}\S+")


@dataclass(frozen=True, slots=True)
class Delta(Generic[T]):
    """What to add and what to remove. Falsy when there is nothing to do."""

    add: frozenset[T] = frozenset()
    remove: frozenset[T] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.add or self.remove)


def diff(desired: AbstractSet[T], actual: AbstractSet[T]) -> Delta[T]:
    """What turns `actual` into `desired`."""
    return Delta(frozenset(desired - actual), frozenset(actual - desired))


@dataclass(frozen=True)
class RulesFound:
    """What iptables holds of ours: the specs of our chains that exist, in order; of each foreign chain that we jump
    from, the specs of all its rules (a chain that does not exist is absent). `unread` says why nothing is known of
    ip6tables, where something should be."""

    own: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    parents: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    unread: str = ""

    @cached_property
    def marks(self) -> Mapping[Address, int]:
        """The mark that each address has on the node now, as our SNAT rules say; other rules in the chain say nothing.
        A node has thousands, and each pass asks several times."""
        return dict(
            translation
            for version in VERSIONS
            for spec in snat_rules(self, version)
            if (translation := _translation(spec)) is not None
        )

    def without_six(self, why: str) -> RulesFound:
        """The same, as if ip6tables could not be read."""
        own, parents = (
            {key: specs for key, specs in chains.items() if version_of(key[0]) == 4}
            for chains in (self.own, self.parents)
        )
        return RulesFound(own, parents, why)


@dataclass(frozen=True, slots=True)
class Found:
    """What a node holds that is ours, as read from the kernel and from Open vSwitch.

    `foreign_flows` are the keys of flows in the egress table that are not ours: we may not replace them.
    """

    addresses: frozenset[Address] = frozenset()
    flows: frozenset[Flow] = frozenset()
    groups: frozenset[Group] = frozenset()
    rules: RulesFound = field(default_factory=RulesFound)
    foreign_flows: frozenset[tuple[int, int, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class FlowChange:
    """One OpenFlow bundle. Flows in `add` replace those of the same key; `remove` holds only keys not in `add`."""

    add: tuple[Flow, ...] = ()
    remove: tuple[Flow, ...] = ()
    add_groups: tuple[Group, ...] = ()
    remove_groups: tuple[Group, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.add or self.remove or self.add_groups or self.remove_groups)


@dataclass(frozen=True, slots=True)
class RuleChange:
    """One iptables-restore for each IP version: its input text per table of `rules.TABLES`, in the order of
    application.

    `grows` says by how many entries legacy tables grow by it: one for a rule, and two for a chain, its head and its
    end. None where that is not known.
    """

    scripts: Mapping[str, str] = field(default_factory=dict)
    grows: int | None = field(default=None, compare=False)

    def __bool__(self) -> bool:
        return bool(self.scripts)

    def __str__(self) -> str:
        return "".join(self.scripts.values())

    def text(self, version: int) -> str:
        """The input of iptables-restore, or of ip6tables-restore; "" where it has nothing to do."""
        return "".join(script for table, script in self.scripts.items() if version_of(table) == version)


@dataclass(frozen=True, slots=True)
class Change:
    """What one pass does to a node, in the order in which it must be done to stay fail-closed.

    1. `fence`: every flow that hands packets to nobody's address or to one whose rule stands already: drops,
       steering to other nodes, removals. 2. `remove_addresses`. 3. `forget`: addresses whose translated connections
       must end, because they left this node or their namespace. Before the rules: those of an address that has left
       are what tells the next pass of it, should this one not come to its end. 4. `rules`: those of new addresses
       come, those of removed ones go. 5. `admit`: flows that hand packets to new addresses; their rule stands now.
       6. `add_addresses`, after the flows: an address change stalls ovs-vswitchd (docs/decisions/0004).
    """

    fence: FlowChange = FlowChange()
    remove_addresses: frozenset[Address] = frozenset()
    forget: frozenset[Address] = frozenset()
    rules: RuleChange = RuleChange()
    admit: FlowChange = FlowChange()
    add_addresses: frozenset[Address] = frozenset()

    def __bool__(self) -> bool:
        return bool(
            self.fence or self.remove_addresses or self.forget or self.rules or self.admit or self.add_addresses
        )


def change(program: NodeProgram, found: Found, others: AbstractSet[Address] = frozenset()) -> Change:
    """What makes a node that holds `found` hold `program`. Falsy when it does already.

    Flows of `program` whose key a foreign flow holds are left out: the caller reports them (`usurped`). Where both are
    of a part of the table (`egress.parts`), `others` are the node's other addresses.
    """
    addresses = diff(program.addresses, found.addresses)
    blocked = usurped(program, found)
    rules = rule_change(program.rules, found.rules)
    wanted = program.flows - _barred(program, found)
    changed = wanted - found.flows
    # Neither the address's own rules nor the guard against connections that began without it may be missing.
    late = {flow for flow in changed if traffic_of(flow) in program.own} if rules else set()
    early = changed - late
    # A key that gets its flow late drops until its rule stands: an old flow would hand packets to a rule that goes,
    # and no flow at all, should the rules fail, would send them out with the node's IP.
    early |= {dropping(flow) for flow in late} - found.flows
    stale = found.flows - wanted
    kept_keys = {flow.key for flow in wanted} if stale else set()
    removed = {flow for flow in stale if flow.key not in kept_keys}
    groups = diff(program.groups, found.groups)
    fence = FlowChange(
        tuple(sorted(early)),
        tuple(sorted(removed)),
        tuple(sorted(groups.add)),
        tuple(sorted(g for g in groups.remove if g.group_id not in {group.group_id for group in groups.add})),
    )
    return Change(
        fence=fence,
        remove_addresses=addresses.remove,
        # A rule tells of an address that is gone already: removed by somebody, or by a pass that did not end.
        forget=addresses.remove
        | {
            address
            for address in found.rules.marks.keys() - program.addresses
            if address not in others and address not in program.retiring
        }
        | _changed_hands(program, found),
        rules=rules,
        admit=FlowChange(tuple(sorted(late))),
        add_addresses=addresses.add - blocked,
    )


def applied(program: NodeProgram, found: Found) -> Found:
    """What the node holds once `change(program, found)` is carried out: no need to read it all again."""
    parents = {
        parent: tuple(spec for spec in specs if not _JUMP.fullmatch(spec))
        for parent, specs in found.rules.parents.items()
    }
    for jump in program.rules.jumps:
        key = (jump.table, jump.chain)
        parents[key] = (jump.spec, *parents.get(key, ()))
    rules = RulesFound(program.rules.chains, parents)
    addresses = program.addresses - (usurped(program, found) - found.addresses)
    return Found(addresses, program.flows - _barred(program, found), program.groups, rules, found.foreign_flows)


def usurped(program: NodeProgram, found: Found) -> frozenset[Address]:
    """The node's addresses that cannot be used, because a flow that is not ours holds the key of theirs."""
    return frozenset(
        address for flow in _barred(program, found) if (address := program.own.get(traffic_of(flow))) is not None
    )


def _barred(program: NodeProgram, found: Found) -> AbstractSet[Flow]:
    """The flows of `program` whose key a flow that is not ours holds."""
    foreign = found.foreign_flows
    matches = {match for _, _, match in foreign}  # few; and of a node's thousands of flows hardly one is among them
    return {flow for flow in program.flows if flow.match in matches and flow.key in foreign}


_SNAT_RULE = re.compile(r"-s \S+ -m mark --mark (0x[0-9a-f]+) -j SNAT --to-source ([0-9a-f.:]+)")
_MARK_ACTION = re.compile(r"set_field:(0x[0-9a-f]+)->pkt_mark")


@lru_cache(1 << 14)
def _translation(spec: str) -> tuple[Address, int] | None:
    """The address of one of our SNAT rules, and its mark."""
    match = _SNAT_RULE.fullmatch(spec)
    try:
        return None if match is None else (ip_address(match[2]), int(match[1], 16))
    except ValueError:  # not one that we write
        return None


def snat_rules(found: RulesFound, version: int) -> Iterator[str]:
    """What stands in the chains that hold our SNAT rules for IP `version`, in this layout or an earlier one."""
    nat = table_name("nat", version)
    for (table, chain), specs in found.own.items():
        if table == nat and chain.startswith(SNAT_CHAIN):
            yield from specs


def standing(found: Found) -> dict[Traffic, Address]:
    """What leaves with an address of this node now: flow, rule and address are all there."""
    carrying = {mark: address for address, mark in found.rules.marks.items() if address in found.addresses}
    return {
        traffic: address
        for flow in found.flows
        if (mark := mark_in(flow)) is not None
        and (address := carrying.get(mark)) is not None
        and (traffic := traffic_of(flow))[1] == address.version
    }


def netid_of(flow: Flow) -> int:
    """The NetID of one of our flows."""
    return flow.cookie & ~COOKIE_MASK


def traffic_of(flow: Flow) -> Traffic:
    """The NetID and IP version of one of our flows."""
    return flow.cookie & ~COOKIE_MASK, 6 if flow.match.startswith("ipv6,") else 4


def is_ours(cookie: int) -> bool:
    """Whether a flow with this cookie is one of ours."""
    return cookie & COOKIE_MASK == COOKIE


def rule_change(desired: RuleSet, found: RulesFound) -> RuleChange:
    """The iptables-restore input that brings our chains and jumps from `found` to `desired`.

    A chain whose fixed rules differ is rewritten as a whole; rules of single addresses come and go one by one. A chain
    of ours that `desired` does not have goes, so that an empty one leaves nothing. Rules of other chains are never
    mentioned, save for our own jumps.
    """
    scripts: dict[str, str] = {}
    grows = 0
    differing: dict[str, list[str]] = {table: [] for table in TABLES}
    gone: dict[str, list[str]] = {table: [] for table in TABLES}
    for table, chain in sorted(key for key, specs in desired.chains.items() if found.own.get(key) != specs):
        differing[table].append(chain)
    for table, chain in sorted(found.own.keys() - desired.chains.keys()):
        gone[table].append(chain)
    for table in TABLES:
        declared: list[str] = []
        lines: list[str] = []
        for chain in differing[table]:
            wanted, there = desired.chains[table, chain], found.own.get((table, chain))
            edits = _edits(table, chain, wanted, there)
            if edits is None:  # it is written anew
                declared.append(f":{chain} - [0:0]")
                edits = [f"-A {chain} {spec}" for spec in wanted]
            lines += edits
            grows += len(wanted) - (-_OF_A_CHAIN if there is None else len(there))
        jumps = {jump.chain: jump.spec for jump in desired.jumps if jump.table == table}
        hooks: list[str] = []
        for (owner, parent), specs in sorted(found.parents.items()):
            if owner == table:
                hooks += _jump_lines(parent, jumps.pop(parent, None), specs)
        hooks += [f"-I {parent} 1 {spec}" for parent, spec in sorted(jumps.items())]
        grows += sum(1 if line.startswith("-I") else -1 for line in hooks)
        grows -= sum(len(found.own[table, chain]) + _OF_A_CHAIN for chain in gone[table])
        lines += hooks
        lines += [f"-F {chain}" for chain in gone[table]] + [f"-X {chain}" for chain in gone[table]]
        if declared or lines:
            scripts[table] = "\n".join([f"*{table.removesuffix('6')}", *declared, *lines, "COMMIT", ""])
    return RuleChange(scripts, grows)


def _edits(table: str, chain: str, wanted: tuple[str, ...], there: tuple[str, ...] | None) -> list[str] | None:
    """What makes a chain that holds `there` hold `wanted`; None where it must be, or had better be, written anew."""
    if there is None or (table, chain) in SPINE_CHAINS:
        return None
    have, want = set(there), set(wanted)
    if len(have) != len(there) or (tail_of(table, chain) and there[-1:] != wanted[-1:]):
        return None
    more, less = want - have, have - want
    if len(less) > len(there) // 2:
        return None
    return [f"-D {chain} {spec}" for spec in sorted(less)] + [f"-I {chain} 1 {spec}" for spec in sorted(more)]


def _jump_lines(parent: str, wanted: str | None, there: tuple[str, ...]) -> list[str]:
    """Our jump stands once, and first: a rule before it could take our packets away."""
    ours = [spec for spec in there if _JUMP.fullmatch(spec)]
    if ours == ([wanted] if wanted else []) and (not wanted or there[0] == wanted):
        return []
    return [f"-D {parent} {spec}" for spec in ours] + ([f"-I {parent} 1 {wanted}"] if wanted else [])


def dropping(flow: Flow) -> Flow:
    """`flow`, but it drops."""
    return Flow(flow.table, flow.priority, flow.match, flow.cookie, "drop")


def _changed_hands(program: NodeProgram, found: Found) -> frozenset[Address]:
    """Addresses that stay here, but whose packets came from another NetID until now."""
    odd = found.flows - program.flows  # the others are of the address that `program` has for them
    if not odd:
        return frozenset()
    staying = {mark: address for address, mark in program.marks.items() if address in found.addresses}
    return frozenset(
        address
        for flow in odd
        if (mark := mark_in(flow)) is not None
        and (address := staying.get(mark)) is not None
        and program.own.get(traffic_of(flow)) != address
    )


def mark_in(flow: Flow) -> int | None:
    """The mark that `flow` gives packets, if it does."""
    match = _MARK_ACTION.search(flow.actions)
    return int(match[1], 16) if match else None
