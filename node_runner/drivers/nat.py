"""iptables and ip6tables: our chains and the jumps to them, of each read with one -save, changed with one -restore."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import TypeVar

from egress.addresses import VERSIONS
from egress.delta import RuleChange, RulesFound
from egress.rules import GUARD_CHAIN, INPUT_CHAIN, OWN_PREFIX, SPINE_CHAIN, TABLES, is_own, table_name, version_of
from node_runner.commands import CommandFailed, printed, search_path
from node_runner.drivers.errors import ChainMissing, Ip6tablesFailed, IptablesFailed, NodeError
from node_runner.drivers.generation import NftGeneration, Rules, legacy_shapes, legacy_tables, nft_has_chain, rules_now
from node_runner.drivers.ports import checked_name
from node_runner.drivers.restorer import Restorer

_READ_SECONDS = 20.0
_WRITE_SECONDS = 60.0
"""10,000 addresses take 2.5 s; the lock of the legacy variant may have to be waited for."""
_RESTORE = ("--noflush", "--wait=10")
_REST = {True: float("inf"), False: 5.0}
"""How long an iptables-restore that is not told anything stays, by whether it is known to be nft's. Since 1.8.8 the
legacy one ends by itself when the seconds of its last --wait are over, used or not."""
_COMMANDS = {4: "iptables", 6: "ip6tables"}
_TABLES_SIX = {table for table in TABLES if version_of(table) == 6}

T = TypeVar("T")

_JUMP = re.compile(rf"-[jg] {re.escape(OWN_PREFIX)}\S+")


class Variant(StrEnum):
    """Which of the kernel's two packet filters the iptables commands speak to."""

    NFT = "nft"
    LEGACY = "legacy"


class Iptables:
    """The iptables rules of the node. `masquerade_chain` (of table nat) is the chain that ours hangs from.

    Most distributions install both variants, and each is blind to the other's rules: ours must be in the one that
    holds `masquerade_chain`. `variant` overrides the search. ip6tables is of the same variant.
    """

    def __init__(self, masquerade_chain: str = "OPENSHIFT-MASQUERADE", variant: Variant | str | None = None) -> None:
        self._parent = checked_name(masquerade_chain)
        self._fixed = None if variant is None else Variant(variant)
        self._found: Variant | None = None
        self._six = False
        self._known: Rules | None = None
        self._restorers: dict[tuple[Variant | None, int], Restorer] = {}
        self._generation = NftGeneration()
        self._without: tuple[tuple[bytes, int], ...] | None = None

    def variant(self) -> Variant | None:
        """The variant in use; None while neither holds the chain, which means whatever `iptables` is on this node."""
        if self._fixed is not None:
            return self._fixed
        if self._found is None:
            self._found = next(filter(self._holds_parent, _candidates()), None)
        return self._found

    def check(self, version: int = 4) -> None:
        """ChainMissing unless the chain that ours hangs from exists, in iptables or (`version` 6) in ip6tables."""
        rules = self.read(six=version == 6)
        if version == 6 and rules.unread:
            raise Ip6tablesFailed(rules.unread)
        if (table_name("nat", version), self._parent) not in rules.parents:
            raise self._missing(version)

    def read(self, *, six: bool = False) -> RulesFound:
        """See ports.Nat. One process for all tables of an IP version: mangle and raw are short, and a second one costs
        more. So does one that only asks whether a variant is the one: the first read is that question too."""
        for restorer in list(self._restorers.values()):
            restorer.tidy()
        rules = self._read_found(six=six)
        if rules.own and (self._fixed or self._found) is Variant.NFT:
            self._restorer(4).ready()  # it stays for good, so it may as well be there before the first change
        return rules

    def _read_found(self, *, six: bool) -> RulesFound:
        """Of the variant that holds the chain which ours hangs from, if that is known or found."""
        if self._fixed is None and self._found is None:
            for variant in _candidates():
                rules = self._read(variant, six=six)
                if ("nat", self._parent) in rules.parents:
                    self._found = variant
                    return rules
        rules = self._read(self._fixed or self._found, six=six)
        if ("nat", self._parent) not in rules.parents:
            self._found = None  # the next read looks in both variants again
        return rules

    def _read(self, variant: Variant | None, *, six: bool) -> RulesFound:
        self._six = (six or self._may_hold_six(variant)) and _is_installed(_tool(variant, "save", 6))
        before, self._known = self._standing(variant), None
        own: dict[tuple[str, str], list[str]] = {}
        others: dict[tuple[str, str], list[str]] = {}
        saved, unread = self._saved(variant)
        for version, text in saved.items():
            _sort(text, version, own, others)
        parents = {key: tuple(specs) for key, specs in others.items() if self._is_parent(*key, specs)}
        if ("nat", self._parent) in parents and not unread and before == self._standing(variant):
            self._known = before
            if self._six and not any(table in _TABLES_SIX for table, _ in own):
                self._without = legacy_shapes(6)
        return RulesFound({key: tuple(specs) for key, specs in own.items()}, parents, unread)

    def ready(self) -> None:
        """See ports.Nat. iptables-restore asks the kernel nothing, and takes no lock, before it has read a table's
        name."""
        if self._fixed is not None or self._found is not None:  # to look for the variant takes longer, and may fail
            self._restorer(4).ready()

    def apply(self, change: RuleChange) -> None:
        """See ports.Nat."""
        if not change:
            return
        before, self._known = self._known, None
        for version in VERSIONS:
            if text := change.text(version):
                self._restore(version, text)
        if before is not None and (after := self._now()) is not None and before.grown_to(after, change):
            self._known = after

    def unchanged(self, *, six: bool = False) -> bool:
        """See ports.Nat. See `generation` for how far legacy tables can tell."""
        return self._known is not None and (self._six or not six) and self._now() == self._known

    def close(self) -> None:
        """See ports.Nat."""
        self._generation.close()
        for restorer in list(self._restorers.values()):
            restorer.close()

    def _restore(self, version: int, text: str) -> None:
        restorer = self._restorer(version)
        try:
            _failing(lambda: restorer.run(text, timeout=_WRITE_SECONDS))
        except IptablesFailed as failed:
            error: NodeError = failed
            try:
                self.check(version)
            except NodeError as cause:  # the usual one, which has a better message
                error = cause
            raise (Ip6tablesFailed(str(error)) if version == 6 else error) from None

    def _restorer(self, version: int) -> Restorer:
        key = variant, _ = self.variant(), version
        if key not in self._restorers:
            argv = [self._tool("restore", version), *_RESTORE]
            self._restorers[key] = Restorer(argv, _REST[variant is Variant.NFT])
        return self._restorers[key]

    def _now(self) -> Rules | None:
        return self._standing(self.variant())

    def _standing(self, variant: Variant | None) -> Rules | None:
        if variant is None:
            return None
        return rules_now(self._generation if variant is Variant.NFT else None, six=self._six)

    def _may_hold_six(self, variant: Variant | None) -> bool:
        """Whether ip6tables may hold rules of ours, as far as can be told in no time."""
        if variant is Variant.NFT:
            chains = (("nat", SPINE_CHAIN), ("filter", INPUT_CHAIN), ("filter", GUARD_CHAIN))
            return any(nft_has_chain(6, table, chain) for table, chain in chains)
        if not legacy_tables(6):
            return False
        return self._without is None or legacy_shapes(6) != self._without

    def _saved(self, variant: Variant | None) -> tuple[dict[int, str], str]:
        """What each -save prints, side by side; and why that of ip6tables does not, without which IPv4 goes on."""
        if not self._six:
            return {4: _call(_tool(variant, "save"), timeout=_READ_SECONDS)}, ""
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(_call, _tool(variant, "save", 6), timeout=_READ_SECONDS)
            saved = {4: _call(_tool(variant, "save"), timeout=_READ_SECONDS)}
            try:
                return saved | {6: other.result()}, ""
            except IptablesFailed as error:
                return saved, str(error)

    def _is_parent(self, table: str, chain: str, specs: list[str]) -> bool:
        usual = {("nat", self._parent), ("nat", "POSTROUTING"), ("filter", "INPUT"), ("filter", "FORWARD")}
        return (table.removesuffix("6"), chain) in usual or any(_JUMP.fullmatch(spec) for spec in specs)

    def _holds_parent(self, variant: Variant) -> bool:
        saved = _call(f"iptables-{variant}-save", "-t", "nat", timeout=_READ_SECONDS)
        return any(line.startswith(f":{self._parent} ") for line in saved.splitlines())

    def _tool(self, verb: str, version: int = 4) -> str:
        return _tool(self.variant(), verb, version)

    def _missing(self, version: int) -> ChainMissing:
        variant = self.variant() or "nft or legacy"
        return ChainMissing(
            f"chain {self._parent} does not exist in table nat of {variant} {_COMMANDS[version]}: set "
            "the masquerade chain to the one this cluster's POSTROUTING jumps to (POSTROUTING itself will do)"
        )


def _candidates() -> Iterator[Variant]:
    """The variants that may hold the node's rules. To ask the legacy tool makes the kernel load legacy tables, and a
    node must not get those by being asked."""
    if "nat" in legacy_tables(4):
        yield Variant.LEGACY
    if _is_installed("iptables-nft-save"):
        yield Variant.NFT


def _tool(variant: Variant | None, verb: str, version: int = 4) -> str:
    """The command's name on this node: a distribution with one variant only may not name it."""
    plain = f"{_COMMANDS[version]}-{verb}"
    named = plain if variant is None else f"{_COMMANDS[version]}-{variant}-{verb}"
    return named if _is_installed(named) else plain


def _is_installed(tool: str) -> bool:
    return shutil.which(tool, path=search_path()) is not None


def _sort(
    text: str, version: int, own: dict[tuple[str, str], list[str]], others: dict[tuple[str, str], list[str]]
) -> None:
    """Sorts what -save prints into our chains and those of others: of each table its name, its chains, its rules."""
    for part in f"\n{text}".split("\n*")[1:]:
        head, *rules = part.partition("\nCOMMIT")[0].split("\n-A ")
        name, *declarations = head.split("\n")
        table = table_name(name, version)
        chains: dict[str, list[str]] = defaultdict(list)
        for declaration in declarations:
            if declaration.startswith(":"):
                chains[declaration[1:].partition(" ")[0]] = []
        for rule in rules:  # there are thousands
            chain, _, spec = rule.partition(" ")
            chains[chain].append(spec)
        for chain, specs in chains.items():
            (own if is_own(table, chain) else others)[table, chain] = specs


def _call(tool: str, *arguments: str, timeout: float) -> str:
    return _failing(lambda: printed([tool, *arguments], timeout=timeout))


def _failing(command: Callable[[], T]) -> T:
    try:
        return command()
    except CommandFailed as error:
        raise IptablesFailed(f"{error}; nothing of the failing table was changed") from error
