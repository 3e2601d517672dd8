"""Frames between the lab and its agent: one byte of kind, four of length, then the payload.

A connection carries one request: a ``CALL`` frame (JSON), an ``INPUT`` frame if the call says so, then the answer's
frames. ``RESULT`` ends it.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

CALL = b"c"
INPUT = b"i"
STARTED = b"s"
OUTPUT = b"o"
ERROR = b"e"
RESULT = b"r"

_HEAD = struct.Struct("!cI")


def send(sock: socket.socket, kind: bytes, payload: bytes = b"") -> None:
    sock.sendall(_HEAD.pack(kind, len(payload)) + payload)


def send_json(sock: socket.socket, kind: bytes, value: dict[str, Any]) -> None:
    send(sock, kind, json.dumps(value).encode())


def receive(sock: socket.socket) -> tuple[bytes, bytes]:
    """The next frame. Raises ConnectionError when the other side is gone."""
    kind, length = _HEAD.unpack(_exactly(sock, _HEAD.size))
    return kind, _exactly(sock, length)


def _exactly(sock: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = sock.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionError("the other side closed the connection")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
