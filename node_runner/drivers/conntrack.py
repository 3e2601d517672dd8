"""Connections to be ended, through ctnetlink: one dump, one batch of deletes, one socket.

The `conntrack` tool takes one reply address a process, each with a dump of its own; pyroute2's NFCTSocket decodes each
entry into objects, seconds on a node with a hundred thousand connections. Here an entry is walked as far as its reply
tuple or its mark, and its original tuple goes back to the kernel as it came.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pyroute2.netlink import NETLINK_NETFILTER
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK
from pyroute2.netlink.nfnetlink.nfctsocket import IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_CT_GET

from egress.addresses import Address
from egress.rules import STALE_CONNMARK
from node_runner.drivers.errors import NetlinkFailed
from node_runner.drivers.netlink import Message, Netlink, attribute, attributes

_GET = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
_DELETE = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
_NFGENMSG = struct.Struct("=BBH")  # family; version, resource
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_TUPLE_ORIG, _TUPLE_REPLY, _MARK, _ID, _ZONE, _MARK_MASK = 1, 2, 8, 12, 18, 21
_TUPLE_IP, _IP_V4_DST, _IP_V6_DST = 1, 2, 4
_NESTED = 0x8000
_ABSENT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT})
"""What a kernel answers that has no ctnetlink."""
_STALE = struct.pack("!I", STALE_CONNMARK)
_STALE_ALONE = _NFGENMSG.pack(socket.AF_UNSPEC, 0, 0) + attribute(_MARK, _STALE) + attribute(_MARK_MASK, b"\xff" * 4)
"""A dump of the entries with our connmark: the kernel looks through its table, and copies out only these."""
_TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_count")


class KernelConntrack:
    """The conntrack table of the network namespace."""

    def count(self, addresses: Iterable[Address]) -> Mapping[Address, int]:
        """See ports.Conntrack."""
        wanted = _packed(addresses)
        if not wanted or _tracked() == 0:
            return {}
        try:
            with Netlink(NETLINK_NETFILTER) as netlink:
                return Counter(address for address, _ in _translated(netlink, wanted))
        except NetlinkFailed as error:
            _only_if_untracked(error)
            return {}

    def forget(self, addresses: Iterable[Address]) -> int:
        """See ports.Conntrack."""
        wanted = _packed(addresses)
        if not wanted or _tracked() == 0:
            return 0
        try:
            return _end(lambda netlink: (entry for _, entry in _translated(netlink, wanted)))
        except NetlinkFailed as error:
            _only_if_untracked(error)
            return 0

    def forget_stale(self) -> int:
        """See ports.Conntrack. Without ctnetlink they stay cut, until they end by themselves."""
        if _tracked() == 0:
            return 0
        try:
            return _end(_stale)
        except NetlinkFailed as error:
            if error.code not in _ABSENT:
                raise
            return 0


def _end(find: Callable[[Netlink], Iterator[_Entry]]) -> int:
    """Ends the connections whose entries `find` reads; how many."""
    with Netlink(NETLINK_NETFILTER) as netlink:
        entries = list(find(netlink))
        failed = netlink.batch([Message(_DELETE, entry.identity()) for entry in entries])
    lasting = [code for code in failed.values() if code != errno.ENOENT]  # ENOENT: it ended by itself meanwhile
    if lasting:
        raise NetlinkFailed(
            f"{len(lasting)} of {len(entries)} connections could not be ended: {os.strerror(lasting[0])}"
        )
    return len(entries)


def _only_if_untracked(error: NetlinkFailed) -> None:
    """Lets `error` pass if it says that ctnetlink is not there and no connection is tracked either."""
    if error.code not in _ABSENT:
        raise error
    if tracked := _tracked():
        raise NetlinkFailed(
            f"{tracked} connections are tracked, and the kernel does not let them be ended: "
            "run `modprobe nf_conntrack_netlink` on this node",
            error.code,
        ) from error


def _tracked() -> int | None:
    """How many connections are tracked. A dump walks the kernel's whole table, 9 ms, even where it is empty."""
    try:
        return int(_TRACKED.read_text())
    except OSError:
        return None


def _packed(addresses: Iterable[Address]) -> dict[bytes, Address]:
    return {address.packed: address for address in addresses}


def _translated(netlink: Netlink, wanted: Mapping[bytes, Address]) -> Iterator[tuple[Address, _Entry]]:
    """The entries whose replies come to one of `wanted`, with that address. One dump for each IP version: of all at
    once the kernel would send those that nobody asked for."""
    for version in sorted({address.version for address in wanted.values()}):
        kind = _IP_V4_DST if version == 4 else _IP_V6_DST
        for body in netlink.dump(Message(_GET, _NFGENMSG.pack(_FAMILIES[version], 0, 0))):
            entry = attributes(body, _NFGENMSG.size)
            reply = attributes(attributes(entry.get(_TUPLE_REPLY, b"")).get(_TUPLE_IP, b""))
            address = wanted.get(reply.get(kind, b""))
            if address is not None:
                yield address, _Entry(body[0], entry)


def _stale(netlink: Netlink) -> Iterator[_Entry]:
    """The entries with our connmark; looked at again, for a kernel that cannot filter sends all."""
    for body in netlink.dump(Message(_GET, _STALE_ALONE)):
        entry = attributes(body, _NFGENMSG.size)
        if entry.get(_MARK) == _STALE:
            yield _Entry(body[0], entry)


class _Entry(NamedTuple):
    """An entry of the table: its address family, and its attributes by kind."""

    family: int
    parts: Mapping[int, bytes]

    def identity(self) -> bytes:
        """Original tuple, zone and id: without the id a new connection with the same tuple could be hit."""
        body = _NFGENMSG.pack(self.family, 0, 0) + attribute(_TUPLE_ORIG | _NESTED, self.parts[_TUPLE_ORIG])
        for kind in (_ZONE, _ID):
            if kind in self.parts:
                body += attribute(kind, self.parts[kind])
        return body
