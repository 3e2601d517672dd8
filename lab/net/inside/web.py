"""The web server outside the cluster: answers everybody and writes down who asked, before it answers.

HTTP on port 80 of each ADDRESS, one request a connection; UDP on port 9, a datagram's text taken as its name. A line of
LOG is ``time protocol source text``. Usage: LOG ADDRESS...
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from functools import partial

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
_LARGEST_REQUEST = 16384


def main() -> None:
    path, *addresses = sys.argv[1:]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    selector = selectors.DefaultSelector()

    def write(protocol: str, source: str, text: str) -> None:
        os.write(log, f"{time.time():.6f} {protocol} {source} {text}\n".encode())

    def accept(server: socket.socket) -> None:
        sock, (source, *_) = server.accept()
        sock.setblocking(False)
        received = bytearray()

        def read() -> None:
            try:
                part = sock.recv(4096)
                received.extend(part)
                if part and b"\r\n\r\n" not in received and len(received) < _LARGEST_REQUEST:
                    return
                if part:
                    words = received.split(b"\r\n", 1)[0].decode("latin-1").split()
                    write("http", source, words[1] if len(words) > 1 else "?")
                    sock.send(_HEAD % (len(source) + 1, f"{source}\n".encode()))
            except OSError:
                pass  # the client has reset the connection
            selector.unregister(sock)
            sock.close()

        selector.register(sock, selectors.EVENT_READ, read)

    def datagram(udp: socket.socket) -> None:
        data, (source, *_) = udp.recvfrom(2048)
        write("udp", source, data.decode("latin-1"))

    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.create_server((address, 80), family=family, backlog=1024)
        udp = socket.socket(family, socket.SOCK_DGRAM)
        udp.bind((address, 9))
        selector.register(server, selectors.EVENT_READ, partial(accept, server))
        selector.register(udp, selectors.EVENT_READ, partial(datagram, udp))
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            handle: Callable[[], None] = key.data
            handle()


main()
