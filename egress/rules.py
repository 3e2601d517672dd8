"""The iptables rules of a node's egress addresses, laid out as trees of chains. Pure.

Rules of single addresses in one long chain cost every packet that walks it as many comparisons as the node has
addresses. In a tree each chain compares a few bits of what its leaves compare whole, so that a packet meets some
twenty rules of a thousand times as many. Where a rule belongs depends on nothing but the rule: a chain's name says the
bits that its rules have in common. It is there while it has rules of addresses.

Rules of IPv6 addresses are the same, in the tables of ip6tables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from ipaddress import IPv6Address
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from egress.addresses import VERSIONS, Address, make_address

if TYPE_CHECKING:
    from egress.program import Layout

OWN_PREFIX = "HAWSE-"
"""Every chain of tables nat and filter whose name begins so is ours, whichever version made it."""
TABLES = ("filter", "nat", "filter6", "nat6")
"""The tables that hold rules of ours. Those whose names end with a 6 are ip6tables', which knows them without it."""

SPINE_CHAIN = "HAWSE-EGRESS"
CLUSTER_CHAIN = "HAWSE-CLUSTER"
SNAT_CHAIN = "HAWSE-SNAT"
INPUT_CHAIN = "HAWSE-INPUT"
REJECT_CHAIN = "HAWSE-REJECT"
GUARD_CHAIN = "HAWSE-GUARD"
MARKED_CHAIN = "HAWSE-MARKED"
RESTORE_CHAIN = "HAWSE-RESTORE"
LEARN_CHAIN = "HAWSE-LEARN"
PASS_CHAIN = "HAWSE-PASS"  # noqa: S105 - a chain that lets packets pass
CHECK_CHAIN = "HAWSE-CHECK"
GUARD_MARK_CHAIN = "HAWSE-GUARD-MARK"
GUARD_SNAT_CHAIN = "HAWSE-GUARD-SNAT"
CUT_CHAIN = "HAWSE-CUT"
STALE_CONNMARK = 0x48415753
"""The connmark ("HAWS" in ASCII) of a connection that the guard has cut: the runner ends its conntrack entry."""
KNOWN_KEY = 0x4841A753
"""A connection that the guard has found right has a connmark that says with which mark: this key XOR that mark. The key
has one of kube-proxy's bits, as no mark has and STALE_CONNMARK has not: so what the guard has not found right has no
such connmark (0 is none), and what it cut is not taken for right, nor the other way round."""


def version_of(table: str) -> int:
    """The IP version of the packets that a table sees."""
    return 6 if table.endswith("6") else 4


def table_name(table: str, version: int) -> str:
    """What we call the table of iptables or ip6tables that they call `table`."""
    return f"{table}6" if version == 6 else table


def spoken(table: str) -> str:
    """A table's name as people know it."""
    return f"{table.removesuffix('6')} of ip6tables" if version_of(table) == 6 else table


class Rule(NamedTuple):
    """One iptables rule: `spec` is what follows `-A CHAIN` in `iptables -S`. A tuple, for it hashes and compares ten
    times as fast as a dataclass, and a node has thousands."""

    table: str
    chain: str
    spec: str

    def __str__(self) -> str:
        return f"-A {self.chain} {self.spec}"


Chain = tuple[str, str]
"""A chain's table and name."""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The node's iptables rules.

    `jumps` stand first in chains that are not ours and lead into ours. `chains` are ours, each with the specs of its
    rules: thousands, which are compared with what a node holds a chain at a time.
    """

    jumps: tuple[Rule, ...] = ()
    chains: Mapping[Chain, tuple[str, ...]] = field(default_factory=dict)

    @property
    def spine(self) -> tuple[Rule, ...]:
        """The fixed rules, in order."""
        return tuple(Rule(*key, spec) for key in SPINE_CHAINS for spec in self.chains.get(key, ()))

    @property
    def leaves(self) -> frozenset[Rule]:
        """The rules of single addresses and the branches that lead to them: within a chain, which holds nothing else
        but for what `tail_of` says, any two that match the same packet do the same with it, so their order means
        nothing."""
        trees = self.chains.keys() - SPINE_CHAINS
        return frozenset(Rule(*key, spec) for key in trees for spec in self.chains[key] if spec != tail_of(*key))


class Key(Enum):
    """What of a packet a tree branches on."""

    MARK = "mark"
    DESTINATION = "destination"
    TRANSLATION = "translation"
    """Where the answers to the packet's connection go: the address that it is translated to."""


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """From the root of a tree to one of the chains that hold leaves: the branches that lead there, and that chain."""

    branches: tuple[Rule, ...]
    chain: Chain


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A tree of chains from `root` on. `tail` is the last rule of each of its chains, "" for none: what becomes of a
    packet that none of the other rules is for.

    It branches on the last bits of marks and destinations, as many at a time as `steps` says: a node's addresses are of
    one subnet, so it is there that they differ. A chain's name has those that it knows as digits. Of translations it
    branches on all but the last 12, 8 and 4 bits, for iptables knows no masks but prefixes there (it drops others
    without a word); the names have them in hexadecimal. Of IPv6 addresses they have the last 32 bits as far as they are
    known, and a checksum of all before: a chain's name has room for 28 characters.
    """

    table: str
    root: str
    key: Key
    steps: tuple[int, ...] = ()
    tail: str = ""

    @property
    def version(self) -> int:
        """The IP version of its addresses."""
        return version_of(self.table)

    def way(self, key: int) -> Way:
        """The way to the leaves of a mark or an address whose number is `key`."""
        if self.key is Key.TRANSLATION:
            return _way(self, key >> _RESTS[-1] << _RESTS[-1])
        return _way(self, key & (1 << sum(self.steps)) - 1)

    def branches(self, key: int) -> list[tuple[str, str]]:
        """From the root on: the match that leads on, and the chain that it leads to."""
        if self.key is Key.TRANSLATION:
            return [(self._prefix(key, rest), f"{self.root}-{self._digits(key, rest)}") for rest in _RESTS]
        bits = sum(self.steps)
        found = []
        for known in accumulate(self.steps):
            mask = (1 << bits) - (1 << bits - known)
            found.append((self._match(key & mask, mask), f"{self.root}-{(key & mask) >> bits - known:0{known}b}"))
        return found

    def _match(self, value: int, mask: int) -> str:
        if self.key is Key.MARK:
            return f"-m mark --mark {value:#x}/{mask:#x}"
        return f"-d {make_address(value, self.version)}/{make_address(mask, self.version)}"

    def _prefix(self, key: int, rest: int) -> str:
        first = make_address(key >> rest << rest, self.version)
        return f"-m conntrack --ctrepldst {first}/{first.max_prefixlen - rest}"

    def _digits(self, key: int, rest: int) -> str:
        low = f"{(key & 0xFFFFFFFF) >> rest:0{8 - rest // 4}x}"
        return low if self.version == 4 else f"{low}{crc32(IPv6Address(key).packed[:12]) & 0xFFFF:04x}"


_OFTEN, _SELDOM = (2, 2, 2, 2), (3, 3)
"""Steps for what each connection walks; and for the rest, a fifth of the chains for twice the comparisons."""
_RESTS = (12, 8, 4)
"""How many bits of a translation each step leaves open."""


class Trees(NamedTuple):
    """The trees of one IP version."""

    cluster: Tree
    snat: Tree
    reject: Tree
    passing: Tree
    guard_mark: Tree
    guard_snat: Tree


def _trees(nat: str, filters: str) -> Trees:
    return Trees(
        Tree(nat, CLUSTER_CHAIN, Key.MARK, _SELDOM),
        Tree(nat, SNAT_CHAIN, Key.MARK, _OFTEN),
        Tree(filters, REJECT_CHAIN, Key.DESTINATION, _OFTEN),
        Tree(filters, PASS_CHAIN, Key.MARK, _OFTEN, tail=f"-g {CHECK_CHAIN}"),
        Tree(filters, GUARD_MARK_CHAIN, Key.MARK, _SELDOM),
        Tree(filters, GUARD_SNAT_CHAIN, Key.TRANSLATION),
    )


TREES = {version: _trees(table_name("nat", version), table_name("filter", version)) for version in VERSIONS}
SPINE_CHAINS = tuple(
    (table_name(table, version), chain)
    for version in VERSIONS
    for table, chain in (
        ("nat", SPINE_CHAIN),
        ("filter", INPUT_CHAIN),
        ("filter", GUARD_CHAIN),
        ("filter", MARKED_CHAIN),
        ("filter", RESTORE_CHAIN),
        ("filter", LEARN_CHAIN),
        ("filter", CHECK_CHAIN),
        ("filter", CUT_CHAIN),
    )
)
_BY_ROOT = {(tree.table, tree.root): tree for trees in TREES.values() for tree in trees}


def is_own(table: str, chain: str) -> bool:
    """Whether a chain is ours, of this version or another."""
    return chain.startswith(OWN_PREFIX) and table in TABLES


def tree_of(table: str, chain: str) -> Tree | None:
    """The tree that a chain of ours is part of; None for one with fixed rules, and for another version's."""
    root, _, digits = chain.rpartition("-")
    return _BY_ROOT.get((table, chain if digits.strip("0123456789abcdef") else root))


@lru_cache(1 << 13)
def tail_of(table: str, chain: str) -> str:
    """The spec of the rule that must be the last of a chain; "" where the order means nothing."""
    tree = tree_of(table, chain)
    return tree.tail if tree is not None else ""


def rules_of(marks: Mapping[Address, int], layout: Layout) -> RuleSet:
    """The rules of the node's addresses, each with its mark.

    nat: what has no mark or kube-proxy's returns; marked packets to in-cluster destinations are MASQUERADEd, all
    others get their address by SNAT. filter: new connections to an egress address are REJECTed; and a packet whose
    mark and whose connection's translation are not of the same address is rejected. A connection keeps its translation
    whatever the nat rules say: begun before the assignment, the node's IP; begun before a release, the address. The
    connmark tells the runner to end it, so that it may begin anew.
    """
    if not marks:
        return RuleSet()  # a node without addresses carries no chain of ours at all
    leaves: dict[Way, list[str]] = defaultdict(list)
    networks = {version: layout.networks(version) for version in VERSIONS}
    for address, mark in marks.items():
        version = address.version
        for way, spec in _leaves(int(address), version, mark, networks[version]):
            leaves[way].append(spec)
    trees: dict[Chain, set[str]] = defaultdict(set)
    for way, specs in leaves.items():
        trees[way.chain].update(specs)
        for table, chain, spec in way.branches:
            trees[table, chain].add(spec)
    return _rule_set(versions_among(marks), trees, layout)


def _rule_set(versions: AbstractSet[int], trees: Mapping[Chain, AbstractSet[str]], layout: Layout) -> RuleSet:
    """The chains of `trees` that hold something, with what they need where there are addresses of `versions`."""
    jumps = tuple(jump for version in sorted(versions) for jump in _jumps(version, layout))
    chains: dict[Chain, tuple[str, ...]] = {}
    for version in sorted(versions):
        chains |= _spine(version, layout.networks(version))
    for key, specs in trees.items():
        if specs:
            tail = tail_of(*key)
            chains[key] = (*sorted(specs), tail) if tail else tuple(sorted(specs))
    return RuleSet(jumps, chains)


def _jumps(version: int, layout: Layout) -> tuple[Rule, ...]:
    nat, filters = table_name("nat", version), table_name("filter", version)
    return (
        Rule(nat, layout.masquerade_chain, f"-j {SPINE_CHAIN}"),
        Rule(filters, "INPUT", f"-j {INPUT_CHAIN}"),
        Rule(filters, "FORWARD", f"-j {GUARD_CHAIN}"),
    )


@lru_cache(8)
def _spine(version: int, networks: tuple[str, ...]) -> dict[Chain, tuple[str, ...]]:
    """The chains of fixed rules. A packet that needs no tree meets none."""
    spine = ["-m mark --mark 0x0 -j RETURN", "-m mark --mark 0x4000/0x4000 -j RETURN"]
    spine += [f"-s {source} -d {other} -j {CLUSTER_CHAIN}" for source in networks for other in networks]
    spine.append(f"-j {SNAT_CHAIN}")
    guard = [f"-d {network} -j RETURN" for network in networks]
    # A connection's first packet is yet to be translated. What belongs to no connection has no status, and goes on.
    guard.append("-m conntrack ! --ctstatus CONFIRMED -j RETURN")
    guard.append(f"-m mark ! --mark 0x0 -g {MARKED_CHAIN}")
    # Only the direction of the pods' packets: the answers carry no mark.
    lost = f"-m conntrack --ctdir ORIGINAL -g {GUARD_SNAT_CHAIN}"
    guard.append(lost)
    # No match compares a packet's mark with its connection's. But the mark XOR the connmark is the key if this says
    # that, and XOR it once more the mark again. What somebody else wrote there gives no key, and the trees are asked.
    xor = "-j CONNMARK --restore-mark --nfmask 0x0 --ctmask 0xffffffff"
    marked = [xor, f"-m mark --mark {KNOWN_KEY:#x} -g {RESTORE_CHAIN}", f"-j {RESTORE_CHAIN}", f"-g {PASS_CHAIN}"]
    learn = [
        f"-j CONNMARK --set-xmark {KNOWN_KEY:#x}/0xffffffff",
        "-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0x0",
    ]
    check = [f"-j {GUARD_MARK_CHAIN}", lost]
    stale = [
        # The last packets of a connection that was ended belong to none: a reset would answer what is over.
        "-m conntrack --ctstate INVALID -j DROP",
        f"-j CONNMARK --set-xmark {STALE_CONNMARK:#x}/0xffffffff",
        "-p tcp -j REJECT --reject-with tcp-reset",
        "-j DROP",
    ]
    nat, filters = table_name("nat", version), table_name("filter", version)
    return {
        (nat, SPINE_CHAIN): tuple(spine),
        (filters, INPUT_CHAIN): (f"-m conntrack --ctstate NEW -j {REJECT_CHAIN}",),
        (filters, GUARD_CHAIN): tuple(guard),
        (filters, MARKED_CHAIN): tuple(marked),
        (filters, RESTORE_CHAIN): (xor,),
        (filters, LEARN_CHAIN): tuple(learn),
        (filters, CHECK_CHAIN): tuple(check),
        (filters, CUT_CHAIN): tuple(stale),
    }


def leaves_of(address: Address, mark: int, layout: Layout) -> frozenset[Rule]:
    """The rules of one address, and of no other."""
    leaves = _leaves(int(address), address.version, mark, layout.networks(address.version))
    return frozenset(Rule(*way.chain, spec) for way, spec in leaves)


@lru_cache(1 << 12)
def _leaves(number: int, version: int, mark: int, networks: tuple[str, ...]) -> tuple[tuple[Way, str], ...]:
    """A node is looked at every other second, and its addresses stay: seven megabytes for a third of a look's time."""
    cluster, snat, reject, passing, guard_mark, guard_snat = _ways(number, version, mark)
    address = make_address(number, version)
    text, exactly = str(address), f"-m mark --mark {mark:#x}"
    icmp = "icmp6" if version == 6 else "icmp"
    here = f"-m conntrack --ctrepldst {text}"
    # None says again what the way to it has said: of 4,000 addresses it would be megabytes more to write and to walk.
    return (
        (cluster, f"{exactly} -j MASQUERADE"),
        (reject, f"-d {text}/{address.max_prefixlen} -j REJECT --reject-with {icmp}-port-unreachable"),
        # What is as it should be is told first, and goes on its way. What comes to the guard's own trees is not.
        (passing, f"{exactly} {here} -g {LEARN_CHAIN}"),
        (guard_mark, f"{exactly} -j {CUT_CHAIN}"),
        (guard_snat, f"{here} -j {CUT_CHAIN}"),
        *((snat, f"-s {network} {exactly} -j SNAT --to-source {text}") for network in networks),
    )


def branches_of(address: Address, mark: int) -> frozenset[Rule]:
    """The rules that lead to those of one address; others may share them."""
    return frozenset(branch for way in _ways(int(address), address.version, mark) for branch in way.branches)


def _ways(number: int, version: int, mark: int) -> list[Way]:
    """In the order of Trees."""
    return [tree.way(mark if tree.key is Key.MARK else number) for tree in TREES[version]]


@lru_cache(1 << 12)
def _way(tree: Tree, key: int) -> Way:
    """By goto: a packet that has been down one branch is not for another."""
    branches = []
    chain = tree.root
    for match, child in tree.branches(key):
        branches.append(Rule(tree.table, chain, f"{match} -g {child}"))
        chain = child
    return Way(tuple(branches), (tree.table, chain))


def chains_of(marks: Mapping[Address, int]) -> set[Chain]:
    """The chains of all trees that hold rules of these addresses, or lead to them."""
    ways = [way for address, mark in marks.items() for way in _ways(int(address), address.version, mark)]
    return {(rule.table, rule.chain) for way in ways for rule in way.branches} | {way.chain for way in ways}


def rules_amid(
    there: Mapping[Chain, tuple[str, ...]],
    leaving: Mapping[Address, int],
    coming: Mapping[Address, int],
    others: Iterable[Address],
    layout: Layout,
) -> RuleSet:
    """`rules_of` the node's addresses, of some of its chains: those that are the way to `leaving`, whose rules stand,
    or to `coming`, whose are to. `there` are these chains, as far as they are there, with rules of `others`, which
    stay.
    """
    trees = {key: set(specs) - {tail_of(*key)} for key, specs in there.items() if key not in SPINE_CHAINS}
    for address, mark in leaving.items():
        for rule in leaves_of(address, mark, layout):
            trees[rule.table, rule.chain].discard(rule.spec)
    for address, mark in coming.items():
        for rule in (*branches_of(address, mark), *leaves_of(address, mark, layout)):
            trees.setdefault((rule.table, rule.chain), set()).add(rule.spec)
    for address, mark in leaving.items():
        for tree in TREES[address.version]:
            _prune(trees, tree, mark if tree.key is Key.MARK else int(address))
    return _rule_set(versions_among(coming) | versions_among(others), trees, layout)


def versions_among(addresses: Iterable[Address]) -> set[int]:
    """The IP versions of `addresses`, of which there may be thousands: to ask each for its version takes long."""
    return {6 if kind is IPv6Address else 4 for kind in set(map(type, addresses))}


def _prune(trees: dict[Chain, set[str]], tree: Tree, key: int) -> None:
    """Takes the branches away that lead to nothing any more."""
    way = tree.way(key)
    child = way.chain
    for branch in reversed(way.branches):
        if trees.get(child):
            return
        trees.pop(child, None)
        child = (branch.table, branch.chain)
        trees.get(child, set()).discard(branch.spec)
