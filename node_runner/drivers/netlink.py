"""A netlink socket for packed messages: one send for a batch, one dump for a list.

pyroute2 builds a Python object per message, 0.2 ms each; a node may hold thousands of addresses and routes, and a
hundred thousand connections. These lists are packed and walked here, with pyroute2's numbers.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR

from node_runner.drivers.errors import NetlinkFailed

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_BATCH_BYTES = 32768  # well below the 208 KiB that one send may hold by default
_RECEIVE_BYTES = 1 << 16  # a dump comes in pieces of at most 32 KiB
_NLM_F_DUMP_INTR = 0x10
_TIMEOUT = 10.0
_SOL_NETLINK, _CAP_ACK, _STRICT = 270, 10, 12


@dataclass(frozen=True, slots=True)
class Message:
    """A request: its type, its flags beyond NLM_F_REQUEST, and what follows the header."""

    kind: int
    body: bytes
    flags: int = 0


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(body: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes in `body` from `offset` on, by type."""
    found: dict[int, bytes] = {}
    end = len(body)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


class Piece(NamedTuple):
    """A piece of a dump: the bodies of the answers in it, whether it is the last, and whether the list changed while it
    was dumped."""

    bodies: list[bytes]
    last: bool
    interrupted: bool


class Netlink:
    """A socket of netlink family `family` in the caller's network namespace. A context manager.

    It has port `port` unless that is taken, or 0. Each answer has its asker's port in it: asked from the same one, what
    has not changed is answered byte for byte as before.
    """

    def __init__(self, family: int, port: int = 0) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        except OSError as error:
            raise NetlinkFailed(f"no netlink socket of family {family}: {error.strerror}", error.errno or 0) from error
        self.interrupted = False
        """Whether the list changed during the last dump, so that it may be neither the old nor the new one."""
        self._socket.settimeout(_TIMEOUT)
        try:
            self._socket.bind((port, 0))
        except OSError:
            self._socket.bind((0, 0))
        self.port: int = self._socket.getsockname()[0]
        # The kernel may be older than an option; it then does without.
        for option in (_CAP_ACK, _STRICT):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:
                continue

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the socket. Of family NETLINK_NETFILTER that takes the kernel an RCU grace period, 10 ms and more, if
        rules were deleted from nf_tables just before."""
        self._socket.close()

    def dump(self, request: Message) -> Iterator[bytes]:
        """The bodies (what follows each header) of the answers to `request`."""
        self.interrupted = False
        for data in self.pieces(request):
            piece = cut(data)
            self.interrupted = self.interrupted or piece.interrupted
            yield from piece.bodies
            if piece.last:
                return

    def pieces(self, request: Message) -> Iterator[bytes]:
        """The answers to `request` as they come, some hundred to a piece: see `cut`. Ask for none after the last."""
        self._send(_packed(request, 1, NLM_F_REQUEST | NLM_F_DUMP))
        while True:
            yield self._received()

    def get(self, request: Message) -> bytes:
        """The body of the one answer to `request`; NetlinkFailed, with the kernel's `code`, if it is an error."""
        self._send(_packed(request, 1, NLM_F_REQUEST))
        for kind, _flags, _sequence, body in self._receive():
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", body)[0]
                raise NetlinkFailed(f"the kernel refused a request: {os.strerror(code)}", code)
            return body
        raise NetlinkFailed("the kernel gave no answer to a request")

    def batch(self, requests: Sequence[Message]) -> dict[int, int]:
        """Sends `requests` in one piece (or a few, if very long). Errno by index of those that failed.

        Only the last of a piece asks for an acknowledgement: errors are reported anyway, and thousands of
        acknowledgements would overflow the socket.
        """
        failed: dict[int, int] = {}
        start = 0
        while start < len(requests):
            parts: list[bytes] = []
            size = 0
            while start + len(parts) < len(requests) and size < _BATCH_BYTES:
                index = start + len(parts)
                parts.append(_packed(requests[index], index + 1, NLM_F_REQUEST))
                size += len(parts[-1])
            last = start + len(parts) - 1
            parts[-1] = _packed(requests[last], last + 1, NLM_F_REQUEST | NLM_F_ACK)
            self._send(b"".join(parts))
            failed |= self._outcomes(last)
            start = last + 1
        return failed

    def _outcomes(self, last: int) -> dict[int, int]:
        failed: dict[int, int] = {}
        while True:
            for kind, _flags, sequence, body in self._receive():
                if kind != NLMSG_ERROR:
                    continue
                code = -struct.unpack_from("=i", body)[0]
                if code:
                    failed[sequence - 1] = code
                if sequence - 1 == last:
                    return failed

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise NetlinkFailed(f"netlink request failed: {error.strerror}") from error

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        return messages(self._received())

    def _received(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError:
            raise NetlinkFailed(f"the kernel did not answer a netlink request within {_TIMEOUT:g} s") from None
        except OSError as error:
            hint = "; the answer overflowed the socket, try again" if error.errno == errno.ENOBUFS else ""
            raise NetlinkFailed(f"netlink answer lost: {error.strerror}{hint}") from error


def cut(data: bytes) -> Piece:
    """What is in a piece of a dump; NetlinkFailed if that is an error."""
    bodies: list[bytes] = []
    last = interrupted = False
    unpack = _HEADER.unpack_from  # walked here and not by messages(): half the time of a long list
    offset, end = 0, len(data) - 16
    while offset <= end:
        length, kind, flags, _sequence, _port = unpack(data, offset)
        if length < 16:
            break
        if flags & _NLM_F_DUMP_INTR:
            interrupted = True
        if kind == NLMSG_DONE:
            last = True
            break
        body = data[offset + 16 : offset + length]
        if kind == NLMSG_ERROR:
            code = -struct.unpack_from("=i", body)[0]
            raise NetlinkFailed(f"the kernel refused a dump: {os.strerror(code)}", code)
        bodies.append(body)
        offset += (length + 3) & ~3
    return Piece(bodies, last, interrupted)


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence and body of each message in `data`."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if length < 16:
            break
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _packed(message: Message, sequence: int, flags: int) -> bytes:
    body = message.body
    return _HEADER.pack(16 + len(body), message.kind, message.flags | flags, sequence, 0) + body
