"""iptables: our chains and the jumps to them, read with one iptables-save, changed with one iptables-restore."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path

from egress.delta import RuleChange, RulesFound
from egress.rules import OWN_PREFIX, is_own
from node_runner.commands import CommandFailed, Standby, run, search_path
from node_runner.drivers.errors import ChainMissing, IptablesFailed
from node_runner.drivers.generation import Rules, rules_now
from node_runner.drivers.ports import checked_name

_READ_SECONDS = 20.0
_WRITE_SECONDS = 60.0
"""10,000 addresses take 2.5 s; the lock of the legacy variant may have to be waited for."""
_RESTORE = ("--noflush", "--wait=10")

_DECLARATION = re.compile(r":(?P<chain>\S+) ")
_JUMP = re.compile(rf"-[jg] {re.escape(OWN_PREFIX)}\S+")


class Variant(StrEnum):
    """Which of the kernel's two packet filters the iptables commands speak to."""

    NFT = "nft"
    LEGACY = "legacy"


class Iptables:
    """The iptables rules of the node. `masquerade_chain` (of table nat) is the chain that ours hangs from.

    Most distributions install both variants, and each is blind to the other's rules: ours must be in the one that
    holds `masquerade_chain`. `variant` overrides the search.
    """

    def __init__(self, masquerade_chain: str = "OPENSHIFT-MASQUERADE", variant: Variant | str | None = None) -> None:
        self._parent = checked_name(masquerade_chain)
        self._fixed = None if variant is None else Variant(variant)
        self._found: Variant | None = None
        self._known: Rules | None = None
        self._standby = Standby()

    def variant(self) -> Variant | None:
        """The variant in use; None while neither holds the chain, which means whatever `iptables` is on this node."""
        if self._fixed is not None:
            return self._fixed
        if self._found is None:
            # Asking the legacy tool makes the kernel load legacy tables, and a node must not get those by being asked.
            if "nat" in _legacy_tables() and self._holds_parent(Variant.LEGACY):
                self._found = Variant.LEGACY
            elif shutil.which("iptables-nft-save", path=search_path()) and self._holds_parent(Variant.NFT):
                self._found = Variant.NFT
        return self._found

    def check(self) -> None:
        """ChainMissing unless the chain that ours hangs from exists."""
        if ("nat", self._parent) not in self.read().parents:
            raise self._missing()

    def read(self) -> RulesFound:
        """See ports.Nat. One process for all tables: mangle and raw are short, and a second one costs more."""
        before, self._known = self._now(), None
        own: dict[tuple[str, str], list[str]] = {}
        others: dict[tuple[str, str], list[str]] = {}
        table = ""
        for line in _call(self._tool("save"), timeout=_READ_SECONDS).splitlines():
            if line.startswith("-A "):
                _, chain, spec = (line + " ").split(" ", 2)
                key = table, chain
                (own if is_own(*key) else others).setdefault(key, []).append(spec[:-1])
            elif line.startswith("*"):
                table = line[1:]
            elif declared := _DECLARATION.match(line):
                key = table, declared["chain"]
                (own if is_own(*key) else others)[key] = []
        usual = {("nat", self._parent), ("nat", "POSTROUTING"), ("filter", "INPUT"), ("filter", "FORWARD")}
        parents = {
            key: tuple(specs)
            for key, specs in others.items()
            if key in usual or any(_JUMP.fullmatch(spec) for spec in specs)
        }
        if ("nat", self._parent) not in parents:
            self._found = None  # the next read looks in both variants again
        elif before == self._now():
            self._known = before
        return RulesFound({key: tuple(specs) for key, specs in own.items()}, parents)

    def ready(self) -> AbstractContextManager[None]:
        """See ports.Nat. iptables-restore asks the kernel nothing, and takes no lock, before it has read a table's
        name."""
        if self._fixed is None and self._found is None:
            return nullcontext()  # to look for the variant takes longer, and may fail
        return self._standby.ready([self._tool("restore"), *_RESTORE])

    def apply(self, change: RuleChange) -> None:
        """See ports.Nat."""
        if not change:
            return
        before, self._known = self._known, None
        argv = [self._tool("restore"), *_RESTORE]
        try:
            _failing(lambda: self._standby.run(argv, stdin=str(change), timeout=_WRITE_SECONDS))
        except IptablesFailed:
            self.check()  # the usual cause has a better message
            raise
        if before is not None and (after := self._now()) is not None and before.grown_to(after, change):
            self._known = after

    def unchanged(self) -> bool:
        """See ports.Nat. See `generation` for how far legacy tables can tell."""
        return self._known is not None and self._now() == self._known

    def _now(self) -> Rules | None:
        variant = self.variant()
        return None if variant is None else rules_now(nft=variant is Variant.NFT)

    def _holds_parent(self, variant: Variant) -> bool:
        saved = _call(f"iptables-{variant}-save", "-t", "nat", timeout=_READ_SECONDS)
        return any(line.startswith(f":{self._parent} ") for line in saved.splitlines())

    def _tool(self, verb: str) -> str:
        variant = self.variant()
        tool = f"iptables-{verb}" if variant is None else f"iptables-{variant}-{verb}"
        if shutil.which(tool, path=search_path()) is None:  # a distribution with one variant only may not name it
            tool = f"iptables-{verb}"
        return tool

    def _missing(self) -> ChainMissing:
        return ChainMissing(
            f"chain {self._parent} does not exist in table nat of {self.variant() or 'nft or legacy'} iptables: set "
            "the masquerade chain to the one this cluster's POSTROUTING jumps to (POSTROUTING itself will do)"
        )


def _legacy_tables() -> frozenset[str]:
    """The legacy tables that this network namespace has. The file is that of the calling thread's namespace."""
    try:
        return frozenset(Path("/proc/thread-self/net/ip_tables_names").read_text().split())
    except OSError:
        return frozenset()


def _call(tool: str, *arguments: str, timeout: float) -> str:
    return _failing(lambda: run([tool, *arguments], timeout=timeout))


def _failing(command: Callable[[], str]) -> str:
    try:
        return command()
    except CommandFailed as error:
        raise IptablesFailed(f"{error}; nothing of the failing table was changed") from error
