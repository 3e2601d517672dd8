"""Who has which addresses on an Ethernet link: what ARP (RFC 5227) and NDP (RFC 4862) have in common.

Over one packet socket, whoever may have an address is asked some times, with a pause after each. Any packet says that
its sender has the address it was sent with. Where an address is asked for by nobody yet, which is a probe, a probe of
another host for it says the same: both then lose, as both RFCs have it, and whoever called tries again.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Collection, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

from egress.addresses import Address
from node_runner.drivers.errors import LinkFailed
from node_runner.drivers.ports import MAC, ProbeTiming

_RECEIVE_BUFFER = 1 << 20
"""A thousand probed addresses may answer at once."""
_BACKLOG_SECONDS = 1.0
_LARGEST_FRAME = 512
A = TypeVar("A", bound=Address)


class Heard(NamedTuple, Generic[A]):
    """What a packet says: that the host with this MAC has `address`, or that it probes for it."""

    mac: bytes
    address: A
    probes: bool


class Asking(Protocol[A]):
    """The packets of one protocol."""

    name: str
    ethertype: int
    nobody: A
    """The source of a probe."""

    def question(self, mac: bytes, source: A, address: A) -> bytes:
        """The frame that asks who has `address`."""

    def heard(self, frame: bytes) -> Heard[A] | None:
        """What a frame says, if it is one of this protocol."""

    def prepare(self, link: socket.socket) -> None:
        """Has `link`, which is not bound yet, receive less than everything, where that is needed."""


def mac_bytes(mac: str) -> bytes:
    """A MAC as it stands in a frame; LinkFailed if it is none."""
    if not MAC.fullmatch(mac):
        raise LinkFailed(f"{mac!r} is no Ethernet MAC; ARP and NDP need an Ethernet interface")
    return bytes.fromhex(mac.replace(":", ""))


class Link(Generic[A]):
    """A packet socket that has never seen another interface, or another protocol: it receives only from bind() on.
    To be closed."""

    def __init__(self, interface: str, protocol: Asking[A]) -> None:
        self._interface = interface
        self._protocol = protocol
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            protocol.prepare(self._socket)
            self._socket.bind((interface, protocol.ethertype))
        except OSError as error:
            raise LinkFailed(
                f"cannot open {interface} for {protocol.name}: {error.strerror}; is it there, and has the runner "
                "CAP_NET_RAW?"
            ) from error

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def send(self, frame: bytes) -> None:
        """Sends one frame. LinkFailed if it cannot be."""
        try:
            self._socket.send(frame)
        except OSError as error:
            text = os.strerror(error.errno or 0)
            raise LinkFailed(
                f"cannot send {self._protocol.name} on {self._interface}: {text}; is the link up?"
            ) from error

    def ask(self, mac: bytes, asking: Mapping[A, A], timing: ProbeTiming) -> dict[Address, str]:
        """Asks for each address as the IP that `asking` has for it, from `mac`, until each has been answered for, or
        `timing` is over. Those that another host has, with its MAC."""
        taken: dict[Address, str] = {}
        probed = frozenset(address for address, source in asking.items() if source == self._protocol.nobody)
        for number in range(1, timing.count + 1):
            for address, source in asking.items():
                if address not in taken:
                    self.send(self._protocol.question(mac, source, address))
            # From now, not from the start: a thousand frames take a while to send.
            end = time.monotonic() + (timing.interval if number < timing.count else timing.wait)
            self._listen(mac, asking, probed, taken, end)
            if len(taken) == len(asking):
                break
        return taken

    def _listen(
        self, own: bytes, wanted: Collection[A], probed: Collection[A], taken: dict[Address, str], end: float
    ) -> None:
        """Adds to `taken` what other hosts say until `end`."""
        # What has come by the end counts, though this process was kept from reading it: else a busy node would hear
        # nobody.
        while len(taken) < len(wanted) and (now := time.monotonic()) < end + _BACKLOG_SECONDS:
            ready, _, _ = select.select([self._socket], [], [], max(0.0, end - now))
            if not ready:
                return
            heard = self._receive()
            if heard is None or heard.mac == own:
                continue
            if heard.address in (probed if heard.probes else wanted):
                taken.setdefault(heard.address, heard.mac.hex(":"))

    def _receive(self) -> Heard[A] | None:
        try:
            frame, origin = self._socket.recvfrom(_LARGEST_FRAME)
        except OSError as error:
            raise LinkFailed(f"cannot receive {self._protocol.name}: {error.strerror}; is the link up?") from error
        return None if origin[2] == socket.PACKET_OUTGOING else self._protocol.heard(frame)
