"""What a ticket system may say back: signed messages over HTTP, to the real process."""

from __future__ import annotations

import gzip
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from egress.adapters.ledger import Ledger
from egress.operations import Step
from lab.apiserver.process import EmbeddedCluster

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
ADDRESS = "192.168.1.7"


@pytest.fixture
def key(objects: Any) -> str:
    """Of an assignment that waits for its approval."""
    objects.pool("prod", "192.168.1.0/24")
    objects.namespace("shop")
    text: str = objects.told(ADDRESS, approval="required")
    return text


def condition(objects: Any) -> tuple[str, str]:
    (found,) = (item for item in objects.get(ADDRESS)["status"]["conditions"] if item["type"] == "FirewallOpen")
    return found["status"], found["reason"]


# What is taken


def test_an_approval_is_written_and_kept(objects: Any, sender: Any, key: str, ledger: Ledger) -> None:
    body = sender.message(ADDRESS, key)
    answer = sender.send(body, id="msg_approval")
    assert (answer.status, answer.body) == (204, b"")
    decision = objects.decision(ADDRESS)
    assert decision is not None
    assert decision.items() >= {
        "verdict": "approved", "by": "ana@example.com", "reason": "as planned", "source": "callback",
        "id": "msg_approval",
    }.items()  # fmt: skip
    assert datetime.fromisoformat(decision["at"]) == datetime.fromisoformat(json.loads(body)["timestamp"])
    assert condition(objects) == ("True", "Approved")
    (step,) = ledger.history("shop")
    assert (step.step, step.by, step.address) == (Step.DECISION, "ana@example.com", ADDRESS)
    assert step.message == "approved by desk: as planned"
    assert ledger._redis.llen("hawse-broker:table") == 1  # `publish` is asked for
    assert not ledger.first_to("hawse.v1.publish", 1.0)


def test_approval_is_withdrawn_and_given_again(objects: Any, sender: Any, key: str) -> None:
    for kind, status in (("approved", "True"), ("withdrawn", "False"), ("approved", "True"), ("rejected", "False")):
        assert sender.send(sender.message(ADDRESS, key, kind)).status == 204
        assert condition(objects)[0] == status


def test_a_replay_changes_nothing(objects: Any, sender: Any, key: str, ledger: Ledger) -> None:
    approval = sender.message(ADDRESS, key)
    signed = sender.sign(approval)
    assert sender.post(approval, signed).status == 204
    version = objects.version(ADDRESS)
    for _ in range(2):
        assert sender.post(approval, signed).status == 204
        ledger._redis.flushall()
    assert objects.version(ADDRESS) == version
    assert sender.send(sender.message(ADDRESS, key, "withdrawn")).status == 204
    version = objects.version(ADDRESS)
    for _ in range(2):
        assert sender.post(approval, signed).status == 409
        ledger._redis.flushall()
    assert objects.version(ADDRESS) == version
    assert condition(objects) == ("False", "Withdrawn")


def test_the_same_message_at_the_same_time_is_taken_once(objects: Any, sender: Any, key: str, ledger: Ledger) -> None:
    body = sender.message(ADDRESS, key)
    signed = sender.sign(body)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: sender.post(body, signed).status, range(32)))
    assert set(answers) == {204}
    assert len(ledger.history("shop")) == 1


def test_an_id_belongs_to_one_message(objects: Any, sender: Any, key: str) -> None:
    assert sender.send(sender.message(ADDRESS, key), id="msg").status == 204
    version = objects.version(ADDRESS)
    assert sender.send(sender.message(ADDRESS, key, "withdrawn"), id="msg").status == 409
    assert objects.version(ADDRESS) == version


def test_two_keys_are_valid_while_one_replaces_the_other(objects: Any, api: Any, sender: Any, key: str) -> None:
    old, new = api.secret("key1", SECRET), api.secret("key2", OTHER_SECRET)
    profile = {"name": "desk", "type": "webhook", "url": "https://tickets.example", "secretFiles": [old]}

    def sent_with(secret: str, kind: str) -> int:
        status: int = sender.send(sender.message(ADDRESS, key, kind), secret=secret).status
        return status

    assert [sent_with(SECRET, "approved"), sent_with(OTHER_SECRET, "withdrawn")] == [204, 401]
    api.write({"profiles": [profile | {"callback": {"secretFiles": [new, old]}}]})
    assert [sent_with(SECRET, "withdrawn"), sent_with(OTHER_SECRET, "approved")] == [204, 204]
    api.write({"profiles": [profile | {"callback": {"secretFiles": [new]}}]})
    assert [sent_with(SECRET, "withdrawn"), sent_with(OTHER_SECRET, "rejected")] == [401, 204]
    api.secret("key2", SECRET)  # what is in a file counts when it is used
    assert [sent_with(SECRET, "approved"), sent_with(OTHER_SECRET, "rejected")] == [204, 401]


def test_a_message_may_carry_several_signatures(sender: Any, key: str) -> None:
    body = sender.message(ADDRESS, key)
    signed = sender.sign(body)
    signed["webhook-signature"] = f"v1a,AAAA v1,AAAA {signed['webhook-signature']}"
    assert sender.post(body, signed).status == 204


# What is not


def test_a_decision_about_what_is_over_is_a_conflict(objects: Any, sender: Any, key: str) -> None:
    assert sender.send(sender.message(ADDRESS, f"{key}1")).status == 409
    objects.status(ADDRESS, ticket={"ended": True})
    assert sender.send(sender.message(ADDRESS, key)).status == 409
    assert objects.decision(ADDRESS) is None


def test_only_the_tickets_own_profile_decides(objects: Any, api: Any, sender: Any, key: str) -> None:
    file = api.secret("key2", OTHER_SECRET)
    webhook = {"type": "webhook", "url": "https://tickets.example", "secretFiles": [file]}
    callback = {"callback": {"secretFiles": [file]}}
    api.write({"profiles": [webhook | callback | {"name": "other"}, webhook | {"name": "mute"}]})
    body = sender.message(ADDRESS, key)
    signed = sender.sign(body, secret=OTHER_SECRET)
    for profile in ("other", "mute", "nobody", "desk"):
        assert sender.post(body, signed, profile=profile).status == 404, profile
    missing = sender.message("192.168.1.8", key)
    assert sender.post(missing, sender.sign(missing, secret=OTHER_SECRET), profile="other").status == 404
    assert objects.decision(ADDRESS) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"by": ""},
        {"by": "a" * 254},
        {"by": "ana\n#"},
        {"by": "ana\u2028"},
        {"by": "\ud800"},
        {"by": None},
        {"reason": "r" * 1025},
        {"reason": "a\rb"},
        {"reason": "a\x00"},
        {"address": "10.0.0.256"},
        {"address": "fe80::1%eth0"},
        {"address": 7},
        {"key": ""},
        {"key": "a b"},
        {"type": "dev.hawse.ticket.deleted"},
        {"type": None},
        {"timestamp": "yesterday"},
        {"timestamp": 1.5},
        {"timestamp": "2026-01-01T00:00:00"},
        {"timestamp": "0001-01-01T00:00:00+14:00"},
        {"data": []},
    ],
    ids=str,
)
def test_a_signed_message_that_means_nothing_is_a_bad_request(
    objects: Any, sender: Any, key: str, changes: dict[str, Any]
) -> None:
    version = objects.version(ADDRESS)
    answer = sender.send(sender.message(ADDRESS, key, **changes))
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(answer.body)["detail"]
    assert objects.version(ADDRESS) == version


def test_times_must_be_of_now(objects: Any, sender: Any, key: str) -> None:
    now = datetime.now(UTC)
    for distance, decided in ((-301, -8 * 86400), (400, 400)):
        moved = (now + timedelta(seconds=decided)).isoformat()
        assert sender.send(sender.message(ADDRESS, key, timestamp=moved)).status == 400, distance
        assert sender.send(sender.message(ADDRESS, key), at=time.time() + distance).status == 401, distance
    assert objects.decision(ADDRESS) is None
    assert sender.send(sender.message(ADDRESS, key, timestamp=(now - timedelta(hours=5)).isoformat())).status == 204, (
        "late"
    )


def test_while_the_api_server_is_away_the_sender_comes_again(
    objects: Any, sender: Any, key: str, cluster: EmbeddedCluster
) -> None:
    body = sender.message(ADDRESS, key)
    signed = sender.sign(body)
    cluster.stop()
    answer = sender.post(body, signed)
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    cluster.start()
    assert sender.post(body, signed).status == 204
    assert condition(objects) == ("True", "Approved")


def test_without_redis_a_decision_is_taken(objects: Any, make_api: Callable[..., Any], sender: Any, key: str) -> None:
    api = make_api(HAWSE_REDIS_URL="redis://127.0.0.1:1/0", HAWSE_TICKET_PROFILES=str(sender.api.profiles)).start()
    sender.api = api
    body = sender.message(ADDRESS, key)
    signed = sender.sign(body)
    assert [sender.post(body, signed).status for _ in range(2)] == [204, 204]
    assert condition(objects) == ("True", "Approved")
    assert "publish is not asked for" in api.log()


def test_a_secret_that_cannot_be_read_is_not_the_senders_fault(api: Any, sender: Any, key: str) -> None:
    body = sender.message(ADDRESS, key)
    for text in ("", "two words", "whsec_", "whsec_x", "n0base64é"):
        api.secret("key1", text)
        answer = sender.send(body)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5"), text
        assert text == "" or text.encode() not in answer.body
    assert "n0base64" not in api.log()


# A flood


class Flood:
    """Hundreds of wrong messages, each made from a right one."""

    def __init__(self, sender: Any, key: str) -> None:
        self._sender = sender
        self._random = random.Random(7)
        self._body = sender.message(ADDRESS, key, "rejected")
        self._key = key
        self.made: list[tuple[str, bytes, dict[str, str], set[int]]] = []

    def all(self) -> list[tuple[str, bytes, dict[str, str], set[int]]]:
        for _ in range(12):
            self._forged()
            self._signed_nonsense()
            self._encoded()
            self._headers()
        return self.made

    def _add(self, what: str, body: bytes, headers: dict[str, str], *statuses: int) -> None:
        self.made.append((what, body, headers, set(statuses)))

    def _forged(self) -> None:
        body, pick = self._body, self._random
        signed = self._sender.sign(body)
        at = pick.randrange(len(body))
        self._add("another secret", body, self._sender.sign(body, secret=OTHER_SECRET), 401)
        self._add("flipped", body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :], signed, 401)
        self._add("truncated", body[:at], signed, 401)
        self._add("longer", body + b" ", signed, 401)
        self._add("old", body, self._sender.sign(body, at=time.time() - 301 - pick.randrange(10**6)), 401)
        self._add("early", body, self._sender.sign(body, at=time.time() + 320 + pick.randrange(10**6)), 401)
        self._add("another id", body, signed | {"webhook-id": "msg_other"}, 401)
        self._add(
            "another time", body, signed | {"webhook-timestamp": str(int(time.time()) + 1 + pick.randrange(9))}, 401
        )
        for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
            self._add(f"no {name}", body, {key: text for key, text in signed.items() if key != name}, 401)
            self._add(f"empty {name}", body, signed | {name: ""}, 401)
            for text in (
                "\u00e9",
                "nan",
                "inf",
                "-1",
                "1e9",
                "1.5",
                "9" * 12,
                ",",
                "v1",
                "v1,",
                "v1,!",
                "v1,a b",
                "v2,AAAA",
            ):
                self._add(f"{name} {text}", body, signed | {name: text}, 401)
        self._add("empty", b"", signed, 401)

    def _signed_nonsense(self) -> None:
        text = self._body.decode()
        at = self._random.randrange(1, len(text) - 1)
        deep = 20000
        bodies = {
            "cut and signed": text[:at],
            "deep": "[" * deep + "]" * deep,
            "deep objects": '{"a":' * 9000 + "1" + "}" * 9000,
            "a name twice": text[:-1] + ',"type":"dev.hawse.ticket.approved"}',
            "a name in data twice": text.replace('"by":', '"by":"eve","by":'),
            "NaN": text.replace('"ana@example.com"', "NaN"),
            "Infinity": text.replace('"ana@example.com"', "-Infinity"),
            "a number": "1" * 5000,
            "a huge number": text.replace('"ana@example.com"', "1e400"),
            "a text": '"x"',
            "null": "null",
            "two": text + text,
            "mark": "\ufeff" + text,
            "surrogate": text.replace("ana", "\\ud800"),
            "nothing": "",
        }
        for what, body in bodies.items():
            self._add(f"signed: {what}", body.encode(), self._sender.sign(body.encode()), 400, 401)

    def _encoded(self) -> None:
        body = self._body
        signed = self._sender.sign(body)
        self._add("gzip", gzip.compress(body), signed | {"Content-Encoding": "gzip"}, 415)
        self._add("gzip, not said", gzip.compress(body), signed, 401)
        self._add("invalid UTF-8", body.replace(b"ana", b"\xff\xfe"), signed, 401)
        self._add("UTF-16", body.decode().encode("utf-16"), signed, 401)
        for kind in (
            "text/plain",
            "application/xml",
            "multipart/form-data; boundary=x",
            "application/json5",
            "",
            "\u00e9",
        ):
            self._add(f"type {kind}", body, signed | {"Content-Type": kind}, 415)
        self._add("oversized", b" " * (64 * 1024 + 1), signed, 413)
        self._add("huge", b" " * (1024 * 1024), signed, 413)

    def _headers(self) -> None:
        body = self._body
        signed = self._sender.sign(body)
        self._add("long signature", body, signed | {"webhook-signature": "v1,AAAA " * 4000}, 401)
        self._add("longer signature", body, signed | {"webhook-signature": "v1,AAAA " * 8000}, 431)
        self._add("huge header", body, signed | {"X-Fill": "x" * 300_000}, 431)


def test_a_flood_of_wrong_callbacks_changes_nothing(objects: Any, api: Any, sender: Any, key: str) -> None:
    """Forged, replayed, truncated, oversized and wrongly encoded ones, over HTTP, eight at a time."""
    approval = sender.message(ADDRESS, key)
    signed = sender.sign(approval)
    assert sender.post(approval, signed).status == 204
    later = sender.message(ADDRESS, key, "withdrawn")
    assert sender.send(later).status == 204
    version = objects.version(ADDRESS)
    wrong = Flood(sender, key).all()
    wrong += [("replayed", approval, signed, {409})] * 50
    assert len(wrong) > 500

    def post(item: tuple[str, bytes, dict[str, str], set[int]]) -> str | None:
        what, body, headers, statuses = item
        try:
            answer = sender.post(body, {name: text.encode("latin-1", "replace") for name, text in headers.items()})
        except OSError as error:  # the server closes before all of it was sent
            return None if what in ("huge header", "huge", "oversized") else f"{what}: {error!r}"
        told = answer.headers.get("content-type")
        if answer.status not in statuses or told != "application/problem+json":
            return f"{what}: {answer.status} {told} {answer.body[:200]!r}"
        if b"Traceback" in answer.body or (answer.status == 401 and b"detail" in answer.body):
            return f"{what} tells: {answer.body[:300]!r}"
        return None

    with ThreadPoolExecutor(8) as pool:
        assert [failure for failure in pool.map(post, wrong) if failure] == []
    assert _half(api) in (b"", b"HTTP/1.1 400", b"HTTP/1.1 401")  # a body that never comes whole
    assert objects.version(ADDRESS) == version
    assert api.process.poll() is None
    assert "Traceback" not in api.log()
    assert "request failed" not in api.log()
    assert sender.send(sender.message(ADDRESS, key)).status == 204
    assert condition(objects) == ("True", "Approved")


def _half(api: Any) -> bytes:
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(
            b"POST /tickets/desk/callback HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(12)


def test_a_body_may_come_in_chunks_and_be_no_longer(api: Any, sender: Any, key: str) -> None:
    body = sender.message(ADDRESS, key)

    def chunks(more: int) -> Iterator[bytes]:
        yield body[:50]
        yield body[50:]
        for _ in range(more):
            yield b" " * 1024

    assert api.ask("POST", "/tickets/desk/callback", chunks(100), sender.sign(body)).status == 413
    assert api.ask("POST", "/tickets/desk/callback", chunks(0), sender.sign(body)).status == 204
