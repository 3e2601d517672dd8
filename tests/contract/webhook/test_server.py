"""The server process: its certificate, its end, its health and its metrics."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from egress.adapters.ledger import Ledger, Offer
from egress.objects import EgressPool, Selector
from lab.control_plane import free_ports
from lab.net.broker import Broker

RECORDED = Path(__file__).parents[2] / "fixtures" / "admission"
POST = (RECORDED / "create-namespace.json").read_text()
JSON_BODY = {"Content-Type": "application/json"}


class Webhook:
    """`hawse-webhook` as it runs in a pod: its certificate is in a mounted Secret, with Kubernetes' symbolic links."""

    def __init__(self, directory: Path, redis_url: str, **settings: str) -> None:
        self._secret = directory / "tls"
        self._secret.mkdir()
        for name in ("tls.crt", "tls.key"):
            (self._secret / name).symlink_to(f"..data/{name}")
        self._authority = trustme.CA()
        self._versions = 0
        self._log = directory / "log"
        self.port, self.health_port = free_ports(2)
        self._environment = os.environ | {
            "HAWSE_REDIS_URL": redis_url,
            "HAWSE_LISTEN_HOST": "127.0.0.1",
            "HAWSE_LISTEN_PORT": str(self.port),
            "HAWSE_HEALTH_HOST": "127.0.0.1",
            "HAWSE_HEALTH_PORT": str(self.health_port),
            "HAWSE_TLS_CERT": str(self._secret / "tls.crt"),
            "HAWSE_TLS_KEY": str(self._secret / "tls.key"),
            **settings,
        }

    def start(self) -> None:
        with self._log.open("wb") as log:
            command = [Path(sys.executable).parent / "hawse-webhook"]
            self.process = subprocess.Popen(command, env=self._environment, stderr=log, stdout=log)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def issue(self) -> int:
        """A new version of the Secret, in one rename, without the old one; its certificate's serial number."""
        self._versions += 1
        leaf = self._authority.issue_cert("127.0.0.1")
        version, former = (self._secret / f"..{number}" for number in (self._versions, self._versions - 1))
        version.mkdir()
        (version / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        (version / "tls.key").write_bytes(leaf.private_key_pem.bytes())
        self._point_to(version)
        if former.exists():
            for file in former.iterdir():
                file.unlink()
            former.rmdir()
        return x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).serial_number

    def _point_to(self, version: Path) -> None:
        (self._secret / "..new").symlink_to(version.name)
        (self._secret / "..new").rename(self._secret / "..data")

    def break_pair(self) -> None:
        """A certificate with another one's key."""
        version = self._secret / "..broken"
        version.mkdir()
        leaves = [self._authority.issue_cert("127.0.0.1") for _ in range(2)]
        (version / "tls.crt").write_bytes(leaves[0].cert_chain_pems[0].bytes())
        (version / "tls.key").write_bytes(leaves[1].private_key_pem.bytes())
        self._point_to(version)

    def connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)

    def get(self, path: str) -> tuple[int, str]:
        connection = self.connect()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def health(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.health_port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def answering(self) -> set[int]:
        """The processes that serve."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return set(map(int, children.read_text().split()))

    def served(self) -> int:
        """The serial number of the certificate that a new connection gets."""
        connection = self.connect()
        connection.connect()
        certificate = connection.sock.getpeercert()
        connection.close()
        return int(certificate["serialNumber"], 16)

    def log(self) -> str:
        return self._log.read_text()

    def until(self, check: Callable[[], object], seconds: float = 40) -> None:
        """Waits until `check` is true; a refused connection is as good as false."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(OSError, http.client.HTTPException):
                if check():
                    return
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)


class Callers:
    """Threads that ask for an address again and again: half of them on a connection each, half on one they keep."""

    def __init__(self, webhook: Webhook) -> None:
        self._webhook = webhook
        self._stop = threading.Event()
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(6)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, keep: bool) -> None:
        connection = None
        while not self._stop.is_set():
            try:
                connection = connection or self._webhook.connect()
                self.answers[_address(connection)] += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
            if connection is not None and not keep:
                connection.close()
                connection = None


def _address(connection: http.client.HTTPSConnection) -> str:
    """The outcome of one request: allowed, with a patch or not."""
    connection.request("POST", "/admit/namespaces", POST, JSON_BODY)
    answer = connection.getresponse()
    response = json.loads(answer.read())["response"]
    return f"{response['allowed']} {'patch' in response}"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker", port=0) as broker:
        ledger = Ledger(broker.unix_url)
        ledger.set_offer(Offer((EgressPool("prod", ("192.168.1.0/24",), namespace_selector=Selector()),)))
        ledger.sync([], ledger.now(), ready=True)
        ledger.close()
        yield broker


@pytest.fixture
def settings() -> dict[str, str]:
    """Changes to the settings."""
    return {}


@pytest.fixture
def webhook(tmp_path: Path, redis: Broker, settings: dict[str, str]) -> Iterator[Webhook]:
    webhook = Webhook(tmp_path, redis.unix_url, **settings)
    webhook.start()
    yield webhook
    webhook.stop()


def test_it_waits_for_its_certificate_and_says_so(webhook: Webhook) -> None:
    webhook.until(lambda: "waiting for the certificate" in webhook.log())
    with pytest.raises(OSError):
        webhook.connect().connect()
    serial = webhook.issue()
    webhook.until(lambda: webhook.served() == serial)
    assert webhook.log().count("waiting for the certificate") == 1


def test_it_may_be_ended_while_it_waits(webhook: Webhook) -> None:
    webhook.until(lambda: "waiting for the certificate" in webhook.log())
    webhook.process.terminate()
    assert webhook.process.wait(60) == 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("settings", [{"HAWSE_DRAIN_TIME": "0", "HAWSE_REDIS_TIMEOUT": "5"}])
def test_certificates_change_without_a_failed_request(webhook: Webhook) -> None:
    serial = webhook.issue()
    webhook.until(lambda: webhook.served() == serial)
    callers = Callers(webhook)
    try:
        for _ in range(2):
            serial, former = webhook.issue(), webhook.answering()
            # New connections get the new one, and its process is the only one in the end.
            webhook.until(lambda serial=serial: all(webhook.served() == serial for _ in range(5)))
            webhook.until(lambda former=former: not webhook.answering() & former)
    finally:
        callers.stop()
    assert callers.failures == []
    assert set(callers.answers) == {"True True"}
    webhook.process.terminate()
    assert webhook.process.wait(60) == 0


def test_a_certificate_with_anothers_key_is_not_served(webhook: Webhook) -> None:
    serial = webhook.issue()
    webhook.until(lambda: webhook.served() == serial)
    webhook.break_pair()
    webhook.until(lambda: "the new certificate is not served" in webhook.log())
    assert webhook.served() == serial
    serial = webhook.issue()
    webhook.until(lambda: webhook.served() == serial)


@pytest.mark.parametrize("settings", [{"HAWSE_DRAIN_TIME": "6", "HAWSE_REDIS_TIMEOUT": "12"}])
def test_it_ends_when_nobody_asks_any_more_and_finishes_what_it_has_begun(webhook: Webhook, redis: Broker) -> None:
    webhook.issue()
    webhook.until(lambda: webhook.get("/readyz") == (200, "ok\n"))
    webhook.until(lambda: webhook.health("/readyz") == (200, "ok\n"))
    callers = Callers(webhook)
    webhook.process.terminate()
    webhook.until(lambda: webhook.get("/readyz")[0] == 503)
    assert webhook.health("/readyz") == (503, "the webhook is about to end\n")
    assert webhook.health("/healthz") == (200, "ok\n")
    asked = sum(callers.answers.values())
    webhook.until(lambda: sum(callers.answers.values()) > asked)  # whoever has not heard yet is served
    callers.stop()
    assert callers.failures == []
    assert set(callers.answers) == {"True True"}

    # Redis hangs, so the last requests are still being answered when the time is over.
    pid = int(Ledger(redis.unix_url)._redis.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    results: list[str] = []
    last = [threading.Thread(target=lambda: results.append(_address(webhook.connect()))) for _ in range(4)]
    try:
        for thread in last:
            thread.start()
        webhook.until(lambda: not _listens(webhook.port))
        assert results == []
    finally:
        os.kill(pid, signal.SIGCONT)
    for thread in last:
        thread.join()
    assert results == ["True True"] * 4
    assert webhook.process.wait(60) == 0
    assert "error" not in webhook.log()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_counts_in_the_process_that_answers(webhook: Webhook) -> None:
    webhook.issue()
    webhook.until(lambda: webhook.health("/readyz")[0] == 200)
    assert 'outcome="admitted_without_address"' in webhook.health("/metrics")[1]  # there from the beginning
    connection = webhook.connect()
    for body in (POST, "{", (RECORDED / "update-namespace.json").read_text()):
        connection.request("POST", "/admit/namespaces", body, JSON_BODY)
        connection.getresponse().read()
    lines = webhook.health("/metrics")[1].splitlines()
    counted = {line for line in lines if line.startswith("hawse_admission_requests_total") and line[-4:] != " 0.0"}
    assert counted == {
        f'hawse_admission_requests_total{{operation="{operation}",outcome="{outcome}",resource="namespaces",'
        'webhook="mutating"} 1.0'
        for operation, outcome in (("CREATE", "assigned"), ("", "error"), ("UPDATE", "admitted"))
    }
    assert 'hawse_admission_duration_seconds_count{resource="namespaces",webhook="mutating"} 3.0' in lines


def test_without_redis_it_stays_ready_and_says_what_that_means(webhook: Webhook, redis: Broker) -> None:
    webhook.issue()
    webhook.until(lambda: webhook.get("/readyz") == (200, "ok\n"))
    redis.kill()
    status, text = webhook.get("/readyz")
    assert status == 200
    assert text.startswith("ok, but namespaces are admitted without an address: Redis is away")


def test_a_serving_process_that_dies_ends_the_program(webhook: Webhook) -> None:
    webhook.issue()
    webhook.until(lambda: webhook.get("/healthz")[0] == 200)
    (serving,) = webhook.answering()
    os.kill(serving, signal.SIGKILL)
    assert webhook.process.wait(60) == 1  # so that whoever started it begins again
