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
from collections import Counter
from dataclasses import dataclass

from pyroute2.netlink import NETLINK_NETFILTER
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES

from egress.delta import RuleChange
from node_runner.drivers.errors import NetlinkFailed, NodeError
from node_runner.drivers.netlink import Message, Netlink, attributes

_GETGEN = NFNL_SUBSYS_NFTABLES << 8 | 16
_NFGENMSG = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
_GEN_ID = 1
_SOL_IP, _IPT_SO_GET_INFO = 0, 64
_INFO = struct.Struct("=32s I 20s 20s I I")  # ipt_getinfo: name; hooks, where they begin and end; entries, bytes
_LIBC = ctypes.CDLL(None, use_errno=True)


def nft_generation() -> int:
    """The number of nf_tables' last transaction in the caller's network namespace."""
    with Netlink(NETLINK_NETFILTER) as netlink:
        found = attributes(netlink.get(Message(_GETGEN, _NFGENMSG)), len(_NFGENMSG))
    return int.from_bytes(found[_GEN_ID], "big")


def legacy_shape(table: str) -> tuple[bytes, int]:
    """What the kernel tells of a legacy IPv4 table without its entries: hooks and size, and how many entries."""
    info = ctypes.create_string_buffer(_INFO.pack(table.encode(), 0, b"", b"", 0, 0), _INFO.size)
    length = ctypes.c_uint32(_INFO.size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
        failed = _LIBC.getsockopt(asker.fileno(), _SOL_IP, _IPT_SO_GET_INFO, info, ctypes.byref(length))
    if failed:
        code = ctypes.get_errno()
        raise NetlinkFailed(f"the kernel tells nothing of legacy table {table}: {os.strerror(code)}", code)
    *_, entries, _size = _INFO.unpack(info.raw)
    return info.raw[32:], entries


@dataclass(frozen=True, slots=True)
class Rules:
    """What stands for the rules as they are. `count` is nf_tables' number, or that of the legacy tables' entries."""

    nft: bool
    count: int
    shape: tuple[bytes, ...] = ()

    def grown_to(self, after: Rules, change: RuleChange) -> bool:
        """Whether `after` can be these rules with `change`, and no change of anybody else's beside it. Not known, and
        so False, where legacy chains come or go."""
        if self.nft:
            return after.count == self.count + len(change.scripts)
        verbs = Counter(line[:2] for line in str(change).splitlines())
        if verbs.keys() - {"-A", "-I", "-D", "*n", "*f", "CO"}:
            return False
        return after.count == self.count + verbs["-A"] + verbs["-I"] - verbs["-D"]


def rules_now(*, nft: bool) -> Rules | None:
    """What stands for the rules of the caller's network namespace; None where the kernel does not tell."""
    try:
        if nft:
            return Rules(nft, nft_generation())
        shapes = [legacy_shape(table) for table in ("filter", "nat")]
    except NodeError:
        return None
    return Rules(nft, sum(entries for _, entries in shapes), tuple(shape for shape, _ in shapes))
