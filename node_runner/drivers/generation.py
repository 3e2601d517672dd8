"""Whether the rules of a network namespace are still what they were, without reading them.

nf_tables counts its transactions: while the number stands, nothing has changed. Legacy tables have no such number; how
many entries they have and where the built-in chains begin tells of every flush, insertion and deletion, but not of an
entry that took the place of another of its size. Both are asked in microseconds, where reading takes a process.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyroute2.netlink import NETLINK_NETFILTER
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES

from egress.delta import RuleChange
from node_runner.drivers.errors import NetlinkFailed, NodeError
from node_runner.drivers.netlink import Message, Netlink, attribute, attributes

_GETGEN = NFNL_SUBSYS_NFTABLES << 8 | 16
_GETCHAIN = NFNL_SUBSYS_NFTABLES << 8 | 4
_NFPROTO = {4: 2, 6: 10}
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_NFGENMSG = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
_GEN_ID = 1
_GET_INFO = {4: (socket.AF_INET, 0, 64), 6: (socket.AF_INET6, 41, 64)}  # family; SOL_IP, SOL_IPV6; SO_GET_INFO
_INFO = struct.Struct("=32s I 20s 20s I I")  # ipt_getinfo: name; hooks, where they begin and end; entries, bytes
_TABLES = ("filter", "nat")
_LIBC = ctypes.CDLL(None, use_errno=True)


class NftGeneration:
    """Asks for the number of nf_tables' last transaction in the network namespace of the thread that asks first.

    Its socket stays open: it is asked right after each of our own transactions, when to close it may take a while.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._netlink: Netlink | None = None
        self._close: Callable[[], object] = _nothing

    def number(self) -> int:
        """The number; NetlinkFailed."""
        with self._lock:
            if self._netlink is None:
                self._netlink = Netlink(NETLINK_NETFILTER)
                self._close = weakref.finalize(self, self._netlink.close)
            try:
                found = attributes(self._netlink.get(Message(_GETGEN, _NFGENMSG)), len(_NFGENMSG))
            except NetlinkFailed:
                self._end()  # the answer may come yet, and would be taken for the next one
                raise
        return int.from_bytes(found[_GEN_ID], "big")

    def close(self) -> None:
        """Closes the socket. The next question opens another one."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._netlink = None
        self._close()


def _nothing() -> None:
    """There is no socket yet."""


def nft_has_chain(version: int, table: str, chain: str) -> bool:
    """Whether nf_tables has a chain in a table that iptables, or ip6tables, made there; False too where it does not
    tell."""
    name = attribute(_CHAIN_TABLE, table.encode() + b"\0") + attribute(_CHAIN_NAME, chain.encode() + b"\0")
    request = struct.pack("=BBH", _NFPROTO[version], 0, 0) + name
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            netlink.get(Message(_GETCHAIN, request))
    except NetlinkFailed:
        return False
    return True


def legacy_tables(version: int) -> frozenset[str]:
    """The legacy tables that this network namespace has. The file is that of the calling thread's namespace."""
    try:
        name = "ip_tables_names" if version == 4 else "ip6_tables_names"
        return frozenset(Path("/proc/thread-self/net", name).read_text().split())
    except OSError:
        return frozenset()


def legacy_shape(table: str, version: int) -> tuple[bytes, int]:
    """What the kernel tells of a legacy table without its entries: hooks and size, and how many entries."""
    info = ctypes.create_string_buffer(_INFO.pack(table.encode(), 0, b"", b"", 0, 0), _INFO.size)
    length = ctypes.c_uint32(_INFO.size)
    family, level, option = _GET_INFO[version]
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
        failed = _LIBC.getsockopt(asker.fileno(), level, option, info, ctypes.byref(length))
    if failed:
        code = ctypes.get_errno()
        raise NetlinkFailed(f"the kernel tells nothing of legacy table {table}: {os.strerror(code)}", code)
    *_, entries, _size = _INFO.unpack(info.raw)
    return info.raw[32:], entries


def legacy_shapes(version: int) -> tuple[tuple[bytes, int], ...]:
    """What the kernel tells of those of our legacy tables that are there: to ask for another would have it load that
    one. Nothing where it does not tell."""
    try:
        return tuple(legacy_shape(table, version) for table in _TABLES if table in legacy_tables(version))
    except (NodeError, OSError):
        return ()


@dataclass(frozen=True, slots=True)
class Rules:
    """What stands for the rules as they are. `count` is nf_tables' number, or that of the legacy tables' entries."""

    nft: bool
    count: int
    shape: tuple[bytes, ...] = ()

    def grown_to(self, after: Rules, change: RuleChange) -> bool:
        """Whether `after` can be these rules with `change`, and no change of anybody else's beside it. Not known, and
        so False, where legacy chains come or go in a change that does not say what it grows by."""
        if self.nft:
            return after.count == self.count + len(change.scripts)
        if change.grows is not None:
            return after.count == self.count + change.grows
        verbs = Counter(line[:2] for line in str(change).splitlines())
        if verbs.keys() - {"-A", "-I", "-D", "*n", "*f", "CO"}:
            return False
        return after.count == self.count + verbs["-A"] + verbs["-I"] - verbs["-D"]


def rules_now(nft: NftGeneration | None, *, six: bool = False) -> Rules | None:
    """What stands for the rules of the caller's network namespace, of nf_tables if `nft` is given, else of the legacy
    tables, with `six` also those of ip6tables; None where the kernel does not tell. nf_tables has one number for both.
    """
    try:
        if nft is not None:
            return Rules(nft=True, count=nft.number())
        shapes = [legacy_shape(table, 4) for table in _TABLES]
    except NodeError:
        return None
    if six:
        shapes += legacy_shapes(6)
    return Rules(False, sum(entries for _, entries in shapes), tuple(shape for shape, _ in shapes))
