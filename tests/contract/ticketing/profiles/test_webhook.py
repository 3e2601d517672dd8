"""The profile `webhook`: the bytes that a receiver gets, and who can verify them."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import Any

import pytest

from egress.objects import Event
from egress.ticket_profiles import ProfilesError
from egress.tickets import Receipt
from lab.tickets import Receiver, Request
from workers.ticketing.errors import NotReachedError

SECRETS = (b"the-newest-of-both-secrets-123456", b"the-older-one-of-both-secrets-12")
NOW = 1_790_000_000


def _signed_by_openssl(secret: bytes, request: Request) -> str:
    """The signature as OpenSSL's command line makes it."""
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    command = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{secret.hex()}", "-binary"]
    done = subprocess.run(command, input=signed, capture_output=True, check=True)
    return "v1," + base64.b64encode(done.stdout).decode()


def test_an_assignment_arrives_byte_for_byte(office: Any, receiver: Receiver, notice: Any) -> None:
    receipt = office.system("webhook", f"{receiver.url}/hooks/egress?team=fw").tell(notice(), resumed=False)

    assert receipt == Receipt("FW-1", f"{receiver.url}/tickets/1")
    (request,) = receiver.requests
    assert (request.method, request.path, request.query) == ("POST", "/hooks/egress", {"team": "fw"})
    assert request.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert request.headers["host"] == receiver.url.removeprefix("http://")
    assert "authorization" not in request.headers
    assert request.body == (
        b'{"specversion":"1.0","id":"hawse-7c2e-1-assigned","source":"/hawse/prod%201",'
        b'"type":"dev.hawse.egress.assigned.v1","subject":"192.0.2.7","time":"2026-09-21T14:13:18.500Z",'
        b'"datacontenttype":"application/json","data":{"event":"assigned","key":"hawse-7c2e-1","namespace":"shop",'
        b'"namespaceUid":"1d0f","owner":{"openshift.io/requester":"alice"},"cluster":"prod 1","address":"192.0.2.7",'
        b'"pool":"internet","node":"node-1","previousNode":"",'
        b'"justification":"pays \\"cards\\"\\nof [code]<b>customers</b>[/code]","operation":"4f0c",'
        b'"link":"https://hawse.example/namespaces/shop","quarantinedUntil":null,"conflict":"",'
        b'"approvalRequired":true,"reference":""}}'
    )


def test_it_is_signed_with_each_secret_the_newest_first(office: Any, receiver: Receiver, notice: Any) -> None:
    office.system("webhook", receiver.url).tell(notice(), resumed=False)

    (request,) = receiver.requests
    assert request.headers["webhook-id"] == "hawse-7c2e-1-assigned"
    assert request.headers["webhook-timestamp"] == str(NOW)
    assert request.headers["webhook-signature"].split(" ") == [_signed_by_openssl(one, request) for one in SECRETS]


def test_a_secret_is_read_when_it_is_used(office: Any, receiver: Receiver, notice: Any) -> None:
    system = office.system("webhook", receiver.url, secretFiles=[office.path("new")])
    fresh = b"one that was put there afterwards"
    office.write("new", "whsec_" + base64.b64encode(fresh).decode())

    system.tell(notice(), resumed=False)

    (request,) = receiver.requests
    assert request.headers["webhook-signature"] == _signed_by_openssl(fresh, request)


def test_every_event_has_its_type(office: Any, receiver: Receiver, notice: Any) -> None:
    system = office.system("webhook", receiver.url)
    for event in Event:
        system.tell(notice(event, quarantined_until=NOW, conflict="two nodes", reference="FW-1"), resumed=False)

    assert [ticket["type"] for ticket in receiver.tickets] == [f"dev.hawse.egress.{event}.v1" for event in Event]
    assert receiver.tickets[-1]["data"]["quarantinedUntil"] == "2026-09-21T14:13:20Z"


def test_what_is_said_again_has_the_same_id(office: Any, receiver: Receiver, notice: Any) -> None:
    system = office.system("webhook", receiver.url)
    first = system.tell(notice(), resumed=False)

    assert system.tell(notice(), resumed=True) == first
    assert len(receiver.requests) == 2
    assert len(receiver.tickets) == 1


@pytest.mark.parametrize("fault", ["garbage", "oversize"])
def test_a_receiver_need_not_answer_anything(office: Any, receiver: Receiver, notice: Any, fault: str) -> None:
    receiver.misbehave(fault)

    assert office.system("webhook", receiver.url).tell(notice(), resumed=False) == Receipt()
    assert len(receiver.tickets) == 1


def test_a_template_makes_the_data(office: Any, receiver: Receiver, notice: Any) -> None:
    template = office.write(
        "data.j2",
        '{"rule": "{{ event }} {{ address }}", "why": {{ justification | tojson }},'
        ' "who": {{ owner.get("openshift.io/requester", "") | tojson }}}',
    )
    office.system("webhook", receiver.url, templateFile=template).tell(notice(), resumed=False)

    (ticket,) = receiver.tickets
    why = 'pays "cards"\nof [code]<b>customers</b>[/code]'
    assert ticket["data"] == {"rule": "assigned 192.0.2.7", "why": why, "who": "alice"}
    assert ticket["type"] == "dev.hawse.egress.assigned.v1"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ address", "unexpected end of template"),
        ('{"a": {{ adress | tojson }}}', "'adress' is undefined"),
        ('{"a": "{{ justification }}"}', "Expecting ','"),
        ("{{ owner['openshift.io/requester'] | tojson }}", "has no attribute"),
        ("NaN", "NaN is no JSON"),
        ("{{ ''.__class__.__mro__ | tojson }}", "unsafe"),
        ("{{ owner.update(a=1) | tojson }}", "unsafe"),
        ("{% if event == 'moved' %}x{% endif %}{}", "Extra data|Expecting value"),
    ],
)
def test_a_template_that_may_fail_is_refused_at_once(office: Any, template: str, why: str) -> None:
    path = office.write("data.j2", template)
    with pytest.raises(ProfilesError, match=f"(?s)profile desk: templateFile: {path}: .*({why}).*tojson"):
        office.system("webhook", "http://127.0.0.1:1", templateFile=path)


def test_a_template_that_is_not_there_is_named(office: Any) -> None:
    with pytest.raises(ProfilesError, match=r"profile desk: templateFile: /nowhere/t: .*No such file"):
        office.system("webhook", "http://127.0.0.1:1", templateFile="/nowhere/t")


@pytest.mark.parametrize("secret", ["whsec_", "whsec_a", "two\nlines", ""])
def test_a_secret_that_is_none_is_named_and_not_shown(
    office: Any, receiver: Receiver, notice: Any, secret: str
) -> None:
    path = office.write("new", secret)
    with pytest.raises(NotReachedError, match=f"the secret {path} is") as caught:
        office.system("webhook", receiver.url).tell(notice(), resumed=False)

    assert not secret or secret not in str(caught.value).replace("`whsec_`", "")
    assert receiver.requests == []


def test_the_data_is_json_that_anybody_reads(office: Any, receiver: Receiver, notice: Any) -> None:
    office.system("webhook", receiver.url).tell(notice(justification="ünï ☂ \u2028 \x00"), resumed=False)

    assert json.loads(receiver.requests[0].body)["data"]["justification"] == "ünï ☂ \u2028 \x00"
