"""Waiting for somebody to change the node's links, addresses or nftables rules, through netlink's notifications.

Legacy iptables and Open vSwitch tell nobody; their drift is found by reading.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from threading import Event

from pyroute2.netlink import NETLINK_NETFILTER, NETLINK_ROUTE
from pyroute2.netlink.nfnetlink import NFNLGRP_NFTABLES
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK

from node_runner.drivers.netlink import messages

_LOOK_AT_STOP = 0.25
_SETTLE = 0.02
"""A change seldom comes alone: `systemctl restart NetworkManager` is dozens."""


def watch(
    callback: Callable[[], None], stop: Event, find_index: Callable[[], int | None], chains: AbstractSet[str]
) -> None:
    """Calls `callback` once after each burst of changes until `stop` is set (seen within a quarter of a second).

    Of links and addresses, those of the interface that `find_index` finds count, and all while it finds none; of
    nftables, messages that name one of `chains`, or one that begins so where it ends with a hyphen. Pods come and go
    all day, and kube-proxy rewrites its chains. The runner's own changes are announced too: whoever is called back
    finds nothing to do.
    """
    names = [chain.encode() + (b"" if chain.endswith("-") else b"\0") for chain in chains]
    with ExitStack() as stack:
        route = stack.enter_context(_listen(NETLINK_ROUTE, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        nft = stack.enter_context(_listen(NETLINK_NETFILTER, 1 << (NFNLGRP_NFTABLES - 1)))
        index = find_index()
        while not stop.is_set():
            ready, _, _ = select.select([route, nft], [], [], _LOOK_AT_STOP)
            if not ready:
                continue
            stop.wait(_SETTLE)
            moved = any(_concerns(data, index) for data in _drain(route))
            if moved:
                index = find_index()
            changed = any(data is None or any(name in data for name in names) for data in _drain(nft))
            if moved or changed:
                callback()


def _concerns(data: bytes | None, index: int | None) -> bool:
    """Whether a datagram speaks of interface `index`; ifinfomsg and ifaddrmsg both have it in their bytes 4 to 8."""
    if data is None or index is None:
        return True
    return any(struct.unpack_from("=i", body, 4)[0] == index for _, _, _, body in messages(data) if len(body) >= 8)


def _listen(family: int, groups: int) -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, family)
    listener.bind((0, groups))
    return listener


def _drain(source: socket.socket) -> list[bytes | None]:
    """The datagrams that wait; None for some that were lost."""
    waiting: list[bytes | None] = []
    while True:
        try:
            waiting.append(source.recv(65536))
        except BlockingIOError:
            return waiting
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            waiting.append(None)
