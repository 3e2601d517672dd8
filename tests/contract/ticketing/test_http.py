"""The call that all profiles make: TLS, proxies, deadlines."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from egress.operations import PermanentError
from lab.tickets import Receiver
from workers.ticketing.http import Answer, Client
from workers.ticketing.profiles.base import TicketAwayError


def _call(url: str, path: str = "", timeout: float = 5.0, ca_file: str = "", proxy: str = "") -> Answer:
    client = Client("desk", url, timeout=timeout, ca_file=ca_file, proxy=proxy)
    return client.call("POST", path, headers={"webhook-id": "one"}, body=b"{}")


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def _tls(authority: trustme.CA, name: str) -> Receiver:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return Receiver(tls=context)


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Receiver]:
    with _tls(authority, "127.0.0.1") as server:
        yield server


class Proxy:
    """Keeps the first line of each connection. It joins a CONNECT to its target, and answers all else with 204."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            head = b""
            while b"\r\n\r\n" not in head and (more := caller.recv(65536)):
                head += more
            line = head.split(b"\r\n", 1)[0].decode()
            self.lines.append(line.rpartition(" ")[0])
            method, target, _ = line.split(" ")
            if method != "CONNECT":
                caller.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                caller.close()
                continue
            host, port = target.rsplit(":", 1)
            other = socket.create_connection((host, int(port)))
            caller.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for source, sink in ((caller, other), (other, caller)):
                threading.Thread(target=self._join, args=(source, sink), daemon=True).start()

    @staticmethod
    def _join(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    running = Proxy()
    yield running
    running.stop()


def test_a_certificate_of_the_authority_is_trusted(secure: Receiver, ca_file: str) -> None:
    assert _call(secure.url, ca_file=ca_file).status == 202


def test_a_certificate_of_nobody_known_is_not(secure: Receiver) -> None:
    with pytest.raises(TicketAwayError, match=r"desk has a certificate that cannot be trusted: .*"):
        _call(secure.url)
    assert secure.requests == []


def test_a_certificate_of_another_name_is_not(authority: trustme.CA, ca_file: str) -> None:
    with _tls(authority, "other.example") as server, pytest.raises(TicketAwayError, match="IP address mismatch"):
        _call(server.url, ca_file=ca_file)


def test_an_authority_that_cannot_be_read_is_named(secure: Receiver, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"the CA file /nowhere/ca.pem cannot be used: No such file"):
        _call(secure.url, ca_file="/nowhere/ca.pem")
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(PermanentError, match="cannot be used"):
        _call(secure.url, ca_file=str(tmp_path / "ca.pem"))


def test_the_environments_proxy_is_not_followed(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    with Receiver() as server:
        _call(server.url)
        assert len(server.requests) == 1
    assert proxy.lines == []


def test_a_proxy_that_is_given_is_followed(proxy: Proxy, secure: Receiver, ca_file: str) -> None:
    assert _call("http://desk.example:81/api", "/x?y=1", proxy=proxy.url).status == 204
    assert _call(secure.url, ca_file=ca_file, proxy=proxy.url).status == 202

    assert proxy.lines == [
        "POST http://desk.example:81/api/x?y=1",
        f"CONNECT {secure.url.removeprefix('https://')}",
    ]
    assert secure.requests[0].headers["host"] == secure.url.removeprefix("https://")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_accepts_and_says_nothing_is_given_up(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TicketAwayError, match=r"desk did not answer within 0.3 s"):
            _call(url, timeout=0.3)


def test_a_handshake_that_drips_is_cut() -> None:
    """Each byte is in time; together they never end. Without the cut this test would run into its own timeout."""
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        caller, _ = listener.accept()
        try:
            caller.sendall(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb")  # a handshake record of 16 kB begins
            while not ended.wait(0.02):
                caller.sendall(b"x")
        except OSError:
            pass
        caller.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            with pytest.raises(TicketAwayError, match=r"desk did not answer within 0.3 s"):
                _call(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=0.3)
        finally:
            ended.set()
            thread.join()


def test_an_answer_that_ends_with_the_connection_and_never_ends_is_cut() -> None:
    with Receiver() as server:
        server.misbehave("drip")
        with pytest.raises(TicketAwayError, match="did not answer"):
            _call(server.url, timeout=0.3)


def test_ipv6_is_spoken() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    heads = []

    def serve() -> None:
        caller, _ = listener.accept()
        heads.append(caller.recv(65536))
        caller.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        caller.close()

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    assert _call(f"http://[::1]:{port}").status == 204
    thread.join()
    listener.close()
    assert f"\r\nHost: [::1]:{port}\r\n".encode() in heads[0]


def test_nothing_is_left_open() -> None:
    with Receiver() as server:
        _call(server.url)
        server.misbehave("down", times=3)
        for _ in range(3):
            with pytest.raises(TicketAwayError):
                _call(server.url)
    left = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for _ in range(100):
        if not any(thread.is_alive() for thread in left):
            break
        time.sleep(0.02)
    assert not any(thread.is_alive() for thread in left)
