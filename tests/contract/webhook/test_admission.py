"""Admission, request by request, on a real ledger (DESIGN.md §5)."""

import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from celery import Celery
from flask.testing import FlaskClient

from egress.adapters.ledger import Ledger, Offer, name_holder, request_holder
from egress.addresses import parse_address
from egress.messages import CONTROL_QUEUE, NAMESPACES_LATER, NAMESPACES_TASK, celery_config
from egress.objects import EgressPool, Selector
from egress.settings import Settings
from lab.net.broker import Broker
from tests.contract.webhook.conftest import INDEX_NEW, NODES, POOLS
from webhook import hinting
from webhook.app import create_app
from webhook.hinting import HINT_DELAY

Json = dict[str, Any]
ADDRESSES = "egress.hawse.dev/addresses"
POOL = "egress.hawse.dev/pool"
REQUEST = "egress.hawse.dev/request"
TRUSTED = "system:serviceaccount:hawse-system:hawse-workers"
QUEUE = "hawse-broker:control"
FIRST = "192.168.1.2"
LATER = "Hawse cannot reach its ledger now: the namespace gets its egress address within seconds of its return"

pytestmark = pytest.mark.usefixtures("ready")


def holdings(ledger: Ledger) -> dict[str, str]:
    return {str(address): f"{state} {holder}" for address, (state, holder) in ledger.usage().items()}


@pytest.mark.parametrize("annotations", [None, {}, {"a": "b", "x/y~z": "1"}])
def test_a_created_namespace_gets_exactly_its_annotation(
    create: Callable[..., Any], ledger: Ledger, annotations: Json | None
) -> None:
    answer = create(annotations=annotations)
    assert answer.own == {**(annotations or {}), ADDRESSES: FIRST}
    assert (answer.warnings, answer.message) == ([], "")
    assert holdings(ledger) == {FIRST: "reserved ns/egress-test"}


def test_a_dual_stack_pool_gives_one_of_each_family_or_none(create: Callable[..., Any], ledger: Ledger) -> None:
    assert create(annotations={POOL: "both"}).annotations[ADDRESSES] == "10.5.0.1,fd00::1"
    refused = create("other", annotations={POOL: "both"})
    assert (refused.allowed, refused.message) == (False, "pool both has too few free addresses for 2: 1 of 1 in use")
    assert holdings(ledger) == {"10.5.0.1": "reserved ns/egress-test", "fd00::1": "reserved ns/egress-test"}


def test_a_repeated_call_gets_the_same_answer(create: Callable[..., Any], ledger: Ledger) -> None:
    first = create()
    assert create().review == first.review
    assert len(ledger.usage()) == 1


def test_a_second_call_with_our_own_annotation_gets_the_same_answer(create: Callable[..., Any], ledger: Ledger) -> None:
    first = create(annotations={POOL: "pair"})
    again = create(annotations=first.annotations, uid="uid-of-the-second-call")  # a real API server's is new
    assert again.annotations == first.annotations
    assert len(ledger.usage()) == 2


def test_a_second_call_without_a_name_yet_gets_the_same_answer(
    ask: Callable[..., Any], review: Callable[[str], Json], ledger: Ledger
) -> None:
    body = review("create-namespace-generate-name")
    first = ask(body)
    body["request"]["uid"] = "uid-of-the-second-call"
    body["request"]["object"]["metadata"]["annotations"] = first.annotations
    assert ask(body).annotations == first.annotations
    assert len(ledger.usage()) == 1


@pytest.mark.parametrize("operation", [None, "", "guessed"])
def test_nobody_takes_the_address_of_a_request_without_a_name(
    ask: Callable[..., Any], review: Callable[[str], Json], operation: str | None
) -> None:
    body = review("create-namespace-generate-name")
    address = ask(body).addresses
    body["request"]["uid"] = "another-request"
    annotations = {ADDRESSES: address} | ({"egress.hawse.dev/operation": operation} if operation is not None else {})
    body["request"]["object"]["metadata"]["annotations"] = annotations
    assert not ask(body).allowed


def test_a_second_call_gets_another_pools_address_if_the_labels_changed(
    create: Callable[..., Any], ledger: Ledger
) -> None:
    first = create("moved")
    assert first.addresses == "10.9.0.1"
    again = create("moved", first.annotations | {POOL: "prod"}, uid="uid-of-the-second-call")
    assert again.addresses == FIRST
    assert holdings(ledger) == dict.fromkeys(("10.9.0.1", FIRST), "reserved ns/moved")


def test_a_dry_run_reserves_nothing(ask: Callable[..., Any], review: Callable[[str], Json], ledger: Ledger) -> None:
    answer = ask(review("create-namespace-dry-run"))
    assert answer.allowed
    assert answer.addresses is None
    assert answer.warnings == ["dry run: pool spare would give the address"]
    assert ledger.usage() == {}


def test_generated_names_are_told_apart_by_the_request(
    ask: Callable[..., Any], review: Callable[[str], Json], ledger: Ledger
) -> None:
    def generated(uid: str) -> str:
        body = review("create-namespace-generate-name")
        body["request"]["uid"] = uid
        address: str = ask(body).addresses
        return address

    first, second = generated("u-1"), generated("u-2")
    assert (first, second) == ("10.9.0.1", "10.9.0.2")
    assert generated("u-1") == first
    assert holdings(ledger) == {first: f"reserved {request_holder('u-1')}", second: f"reserved {request_holder('u-2')}"}


@pytest.mark.parametrize(
    ("generate", "served"), [("kube-", False), ("openshift-", False), ("kube", True), ("default", True), ("a", True)]
)
def test_a_generated_name_is_a_systems_by_its_prefix(
    ask: Callable[..., Any], review: Callable[[str], Json], generate: str, served: bool
) -> None:
    body = review("create-namespace-generate-name")
    body["request"]["object"]["metadata"]["generateName"] = generate
    assert (ask(body).addresses is not None) is served


def test_a_requested_address_is_given(create: Callable[..., Any], ledger: Ledger) -> None:
    assert create(annotations={REQUEST: "192.168.1.77"}).addresses == "192.168.1.77"
    assert holdings(ledger) == {"192.168.1.77": "reserved ns/egress-test"}


@pytest.mark.parametrize(
    ("request_text", "message"),
    [
        ("192.168.2.1", "address 192.168.2.1 is outside pool prod (192.168.1.0/24)"),
        ("192.168.1.1", "address 192.168.1.1 is excluded from pool prod"),
        ("192.168.1.18", "address 192.168.1.18 is a node's own IP"),
        ("192.168.1.77, nonsense", f"annotation {REQUEST}: 'nonsense' is not an IP address"),
        ("192.168.1.255", "address 192.168.1.255 is outside pool prod (192.168.1.0/24)"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_with_its_reason(
    create: Callable[..., Any], ledger: Ledger, request_text: str, message: str
) -> None:
    answer = create(annotations={REQUEST: request_text, POOL: "prod"})
    assert not answer.allowed
    assert answer.message == message
    assert ledger.usage() == {}


def test_a_requested_address_that_is_held_is_refused_without_naming_the_holder(create: Callable[..., Any]) -> None:
    create("secret-project", {REQUEST: "192.168.1.77", POOL: "prod"})
    answer = create("other", {REQUEST: "192.168.1.77", POOL: "prod"})
    assert answer.message == "address 192.168.1.77 is in use"
    assert "secret-project" not in str(answer.review)
    assert answer.review["response"]["status"]["code"] == 409


def test_a_namespace_may_opt_out(create: Callable[..., Any], ledger: Ledger) -> None:
    answer = create(annotations={POOL: "none"})
    assert answer.allowed
    assert answer.annotations == {POOL: "none"}
    assert ledger.usage() == {}


def test_a_pool_that_does_not_exist_is_named(create: Callable[..., Any]) -> None:
    answer = create(annotations={POOL: "prud"})
    assert answer.message == f"there is no EgressPool 'prud': correct the annotation {POOL}"


def test_a_full_pool_says_its_figures(create: Callable[..., Any], ledger: Ledger) -> None:
    ledger.set_offer(Offer((EgressPool("prod", ("192.168.1.0/24",), namespace_selector=Selector()),)))
    given = [create(f"n{number}").addresses for number in range(254)]
    assert len(set(given)) == 254
    answer = create("one-more")
    assert not answer.allowed
    assert answer.message == "pool prod has no free address: 254 of 254 in use"


def test_a_full_pool_that_lets_namespaces_wait_warns(create: Callable[..., Any]) -> None:
    create("a", {POOL: "waiting"})
    answer = create("b", {POOL: "waiting"})
    assert answer.allowed
    assert answer.addresses is None
    assert answer.warnings == ["pool waiting has no free address: 1 of 1 in use; the namespace waits for one"]


def test_too_few_addresses_for_several_says_so(create: Callable[..., Any], ledger: Ledger) -> None:
    assert create("a", {POOL: "pair"}).addresses == "10.6.0.1,10.6.0.2"
    answer = create("b", {POOL: "pair"})
    assert answer.message == "pool pair has too few free addresses for 2: 2 of 3 in use"
    assert ledger.held_by(name_holder("b")) == ()


def test_a_returning_namespace_gets_its_address_back(create: Callable[..., Any], ledger: Ledger) -> None:
    create("a")
    address = parse_address("10.9.0.1")
    ledger.quarantined(name_holder("a"), [address])
    assert create("b").addresses == "10.9.0.2"
    assert create("a").addresses == "10.9.0.1"


@pytest.mark.parametrize("forged", ["192.168.1.9", "", "nonsense", f"{FIRST},192.168.1.9"])
def test_a_forged_annotation_is_refused(create: Callable[..., Any], ledger: Ledger, forged: str) -> None:
    create()
    answer = create(annotations={ADDRESSES: forged})
    assert not answer.allowed
    assert ADDRESSES in answer.message
    assert REQUEST in answer.message
    assert len(ledger.usage()) == 1


def test_what_a_lost_index_had_given_is_given_anew(create: Callable[..., Any], ledger: Ledger) -> None:
    given = create("a").annotations
    ledger._redis.flushall()
    ledger.set_offer(Offer(POOLS, NODES))
    ledger.sync([], ledger.now(), ready=True)
    assert create("b").addresses == given[ADDRESSES]
    answer = create("a", annotations=given)
    assert answer.addresses == "10.9.0.2"
    assert holdings(ledger) == {given[ADDRESSES]: "reserved ns/b", "10.9.0.2": "reserved ns/a"}


def test_while_the_index_is_new_what_is_forged_is_taken_away(create: Callable[..., Any], ledger: Ledger) -> None:
    ledger._redis.set(INDEX_NEW, "1")
    answer = create(annotations={POOL: "none", ADDRESSES: "192.168.1.9"})
    assert answer.annotations == {POOL: "none"}
    assert not ledger.usage()


def test_an_opted_out_namespace_cannot_keep_the_annotation_of_its_former_self(
    create: Callable[..., Any], ledger: Ledger
) -> None:
    first = create()
    ledger.quarantined(name_holder("egress-test"), [parse_address(first.addresses)])
    answer = create(annotations={POOL: "none", ADDRESSES: first.addresses})
    assert answer.annotations == {POOL: "none"}
    assert answer.warnings == [f"annotation {ADDRESSES} is written by Hawse alone, and is taken away for now"]


@pytest.mark.parametrize("name", ["default", "kube-system", "openshift-sdn", "openshift", "hawse-system"])
def test_system_namespaces_are_untouched(create: Callable[..., Any], ledger: Ledger, name: str) -> None:
    answer = create(name, {POOL: "prod"})
    assert answer.allowed
    assert (answer.annotations, answer.warnings) == ({POOL: "prod"}, [])
    assert ledger.usage() == {}


@pytest.mark.parametrize("name", ["a|b", "a,b|reserved|1", "a\nb", "ns/x|", "ü€", "x" * 4000])
def test_a_name_that_the_api_server_will_refuse_later_leaks_nothing(
    create: Callable[..., Any], ledger: Ledger, name: str
) -> None:
    assert create(name).allowed
    assert list(ledger.usage().values()) == [("reserved", name_holder(name))]
    for address, holder in ledger.lapsed(older_than=-1).items():
        ledger.lapse(holder, [address], older_than=-1)
    assert ledger.usage() == {}


# Updates and deletions


@pytest.fixture
def update(ask: Callable[..., Any], review: Callable[[str], Json]) -> Callable[..., Any]:
    """Asks for an update of a namespace's annotations."""

    def asking(before: Json | None, after: Json | None, user: str = "alice") -> Any:
        body = review("update-namespace")
        body["request"]["userInfo"]["username"] = user
        for side, annotations in (("oldObject", before), ("object", after)):
            metadata = body["request"][side]["metadata"]
            metadata.pop("annotations", None)
            if annotations is not None:
                metadata["annotations"] = annotations
        return ask(body)

    return asking


@pytest.mark.parametrize("before", [None, {}, {ADDRESSES: FIRST}])
def test_the_annotation_can_be_changed_by_nobody_else(update: Callable[..., Any], before: Json | None) -> None:
    answer = update(before, {ADDRESSES: "192.168.1.9"})
    assert not answer.allowed
    assert ADDRESSES in answer.message


@pytest.mark.parametrize("after", [None, {}, {"a": "b"}])
def test_a_removed_annotation_is_put_back_with_a_warning(update: Callable[..., Any], after: Json | None) -> None:
    answer = update({ADDRESSES: FIRST}, after)
    assert answer.annotations == {**(after or {}), ADDRESSES: FIRST}
    assert len(answer.warnings) == 1


def test_a_trusted_user_may_write_and_remove_it(update: Callable[..., Any]) -> None:
    assert update(None, {ADDRESSES: FIRST}, TRUSTED).annotations == {ADDRESSES: FIRST}
    assert update({ADDRESSES: FIRST}, {}, TRUSTED).annotations == {}


def test_other_changes_pass(update: Callable[..., Any], ask: Callable[..., Any], review: Callable[..., Json]) -> None:
    assert update({ADDRESSES: FIRST}, {ADDRESSES: FIRST, "a": "b"}).annotations == {ADDRESSES: FIRST, "a": "b"}
    assert ask(review("update-namespace")).warnings == []


def test_a_deletion_passes(ask: Callable[..., Any], review: Callable[[str], Json]) -> None:
    answer = ask(review("delete-namespace"))
    assert answer.allowed
    assert "patch" not in answer.review["response"]


# When Redis is away


def test_redis_flushed_admits_with_a_warning(create: Callable[..., Any], ledger: Ledger) -> None:
    ledger._redis.flushall()
    answer = create()
    assert answer.allowed
    assert (answer.addresses, answer.warnings) == (None, [LATER])


def test_redis_flushed_between_two_calls_takes_away_what_it_gave(create: Callable[..., Any], ledger: Ledger) -> None:
    first = create(annotations={"a": "b"})
    ledger._redis.flushall()
    again = create(annotations=first.annotations)
    assert again.annotations == {"a": "b"}
    assert again.warnings[0] == LATER


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker", port=0) as broker:
        yield broker


@pytest.fixture
def own_create(own_broker: Broker, review: Callable[[str], Json]) -> Callable[..., Json]:
    client = create_app(Settings(redis_url=own_broker.unix_url)).test_client()

    def asking(annotations: Json | None = None) -> Json:
        body = review("create-namespace")
        body["request"]["object"]["metadata"]["annotations"] = annotations
        answer = client.post("/admit/namespaces", json=body)
        assert answer.status_code == 200
        response: Json = answer.get_json()["response"]
        return response

    return asking


@pytest.mark.parametrize("how", ["stopped", "hanging"])
def test_redis_away_admits_with_a_warning_in_time(
    own_broker: Broker, own_create: Callable[..., Json], how: str
) -> None:
    assert own_create()["warnings"] == [LATER]  # no index yet
    pid = None
    if how == "stopped":
        own_broker.kill()
    else:
        assert own_broker._process is not None
        pid = int(Ledger(own_broker.unix_url)._redis.info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        response = own_create()
        assert time.monotonic() - began < 4  # the API server waits 5 s
        assert response["allowed"]
        assert response["warnings"] == [LATER]
        patch = own_create({ADDRESSES: "192.168.1.9", "a": "b"})["patch"]  # whoever has written it
        assert json.loads(base64.b64decode(patch)) == [
            {"op": "remove", "path": "/metadata/annotations/egress.hawse.dev~1addresses"}
        ]
    finally:
        if pid is not None:
            os.kill(pid, signal.SIGCONT)


def test_while_redis_hangs_one_request_waits_for_it_and_the_others_are_answered_at_once(
    own_broker: Broker, own_create: Callable[..., Json]
) -> None:
    ledger = Ledger(own_broker.unix_url)
    ledger.set_offer(Offer(POOLS, NODES))
    ledger.sync([], ledger.now(), ready=True)
    assert "patch" in own_create()
    pid = int(ledger._redis.info("server")["process_id"])
    with structlog.testing.capture_logs() as lines, ThreadPoolExecutor(4) as threads:
        os.kill(pid, signal.SIGSTOP)
        try:
            asked = [threads.submit(own_create) for _ in range(40)]
            answers = [each.result(60) for each in asked]
        finally:
            os.kill(pid, signal.SIGCONT)
    assert [(answer["allowed"], answer["warnings"]) for answer in answers] == [(True, [LATER])] * 40
    errors = [line["error"] for line in lines if line["event"] == "admitted without an address"]
    at_once = [error for error in errors if "somebody waits for it" in error]
    assert len(errors) == 40
    assert len(at_once) >= 20  # in fact 35: the first four waited, and one after them
    assert "patch" in own_create()


def test_a_queue_that_takes_no_hint_costs_nothing(create: Callable[..., Any], ledger: Ledger) -> None:
    ledger._redis.set(QUEUE, "no list")
    with structlog.testing.capture_logs() as logged:
        assert create().addresses == FIRST
    (said,) = [line for line in logged if line["event"] == "hint not sent"]
    assert "WRONGTYPE" in said["error"]


# What tells the workers


def test_a_hint_is_what_celery_would_have_sent(create: Callable[..., Any], ledger: Ledger, broker: Broker) -> None:
    create()
    app = Celery("hawse-webhook")
    app.conf.update(celery_config(broker.unix_url))
    app.send_task(NAMESPACES_TASK, args=[], queue=CONTROL_QUEUE, countdown=HINT_DELAY, retry=False)
    celerys, ours = (json.loads(text) for text in ledger._redis.lrange(QUEUE, 0, -1))
    etas = [datetime.fromisoformat(message["headers"]["eta"]) for message in (celerys, ours)]
    assert abs(etas[0] - etas[1]) < timedelta(seconds=5)
    for message in (celerys, ours):
        properties, headers = message["properties"], message["headers"]
        assert properties["correlation_id"] == headers["root_id"] == headers["id"]
        message["body"] = json.loads(base64.b64decode(message["body"]))
        for own in ("id", "root_id", "eta", "origin"):
            assert headers.pop(own)
        for own in ("correlation_id", "delivery_tag", "reply_to"):
            assert properties.pop(own)
    assert ours == celerys


def test_a_worker_of_celery_takes_the_hint(
    create: Callable[..., Any], ledger: Ledger, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hinting, "HINT_DELAY", 60.0)  # it is not over before we have looked
    create()
    app, got = Celery("worker"), []
    app.conf.update(celery_config(broker.unix_url))
    with app.connection_for_read() as connection, connection.SimpleQueue(CONTROL_QUEUE) as queue:
        message = queue.get(timeout=5)
        got.append((message.headers["task"], message.payload[0]))
        message.ack()
    assert got == [(NAMESPACES_TASK, [])]
    assert 0 < (ledger.next_turn() or 0) <= 60  # the namespace is to be stored first
    assert ledger.next_namespaces(9) == []
    ledger.queue_namespaces("egress-test")  # the watch is mostly faster
    assert ledger.next_namespaces(9) == ["egress-test"]


def test_one_message_is_sent_for_all_hints_until_somebody_comes(create: Callable[..., Any], ledger: Ledger) -> None:
    create()
    create()
    assert (ledger._redis.llen(QUEUE), ledger.namespaces_waiting()) == (1, 1)
    ledger.done_with(NAMESPACES_LATER)
    create()
    assert (ledger._redis.llen(QUEUE), ledger.namespaces_waiting()) == (2, 1)


def test_a_list_that_takes_no_hint_costs_nothing(create: Callable[..., Any], ledger: Ledger) -> None:
    ledger._redis.set("hawse:waiting", "no sorted set")
    with structlog.testing.capture_logs() as logged:
        assert create().addresses == FIRST
    (said,) = [line for line in logged if line["event"] == "hint not sent"]
    assert "WRONGTYPE" in said["error"]


@pytest.mark.parametrize("recording", ["create-namespace-dry-run", "create-namespace-generate-name"])
def test_no_hint_of_what_is_not_to_be_or_has_no_name(
    ask: Callable[..., Any], review: Callable[[str], Json], ledger: Ledger, recording: str
) -> None:
    ask(review(recording))
    assert (ledger._redis.llen(QUEUE), ledger.namespaces_waiting()) == (0, 0)


# Pools that change between two requests


def test_pools_are_those_of_the_moment_though_they_are_remembered(create: Callable[..., Any], ledger: Ledger) -> None:
    assert create("first").addresses == "10.9.0.1"
    ledger.set_offer(Offer((EgressPool("other", ("10.5.0.1",), namespace_selector=Selector()),)))
    assert create("second").addresses == "10.5.0.1"
    ledger.set_offer(Offer((EgressPool("named", ("10.4.0.1-10.4.0.2",)),)))
    assert create("third").addresses is None  # by no selector
    assert create("fourth", {POOL: "named"}).addresses == "10.4.0.1"
    assert not create("fifth", {POOL: "other"}).allowed
    ledger.set_offer(Offer((EgressPool("named", ("10.4.0.1-10.4.0.2",)),), frozenset([parse_address("10.4.0.2")])))
    assert create("sixth", {POOL: "named"}).message == "pool named has no free address: 1 of 1 in use"
    ledger.set_offer(Offer((EgressPool("named", ("no address",)),)))
    assert create("seventh", {POOL: "named"}).message == "'no address' is not an IP address"
    ledger.set_offer(Offer((EgressPool("named", ("10.3.0.1",)),)))
    assert create("eighth", {POOL: "named"}).addresses == "10.3.0.1"


def test_pools_that_an_older_version_has_written_are_told_apart(create: Callable[..., Any], ledger: Ledger) -> None:
    text = ledger._redis.get("hawse:offer")
    for number in (1, 2):
        older = json.loads(text) | {"pools": [{"name": "old", "cidrs": [f"10.5.0.{number}"]}]}
        del older["stamp"]
        ledger._redis.set("hawse:offer", json.dumps(older))
        assert create(f"app-{number}", {POOL: "old"}).addresses == f"10.5.0.{number}"
    ledger._redis.set("hawse:offer", '{"stamp":"no pools at all"}')
    assert create("app-3", {POOL: "old"}).warnings == [LATER]
    ledger._redis.delete("hawse:offer")
    assert create("app-4", {POOL: "old"}).warnings == [LATER]


def test_a_redis_that_was_started_anew_gives_nothing_until_its_index_is_built(
    own_broker: Broker, own_create: Callable[..., Json]
) -> None:
    ledger = Ledger(own_broker.unix_url)
    for _ in range(2):
        ledger.set_offer(Offer(POOLS, NODES))
        ledger.sync([], ledger.now(), ready=True)
        assert "patch" in own_create()
        stale = ledger._redis.get("hawse:index")
        own_broker.restart()
        ledger.set_offer(Offer(POOLS, NODES))
        ledger._redis.set("hawse:index", stale)  # as a Redis that keeps its data has it
        assert own_create()["warnings"] == [LATER]


# What is no review of a namespace


@pytest.mark.parametrize(
    "recording", ["create-hostsubnet", "update-hostsubnet", "create-netnamespace", "update-netnamespace"]
)
def test_other_resources_are_told_apart(client: FlaskClient, review: Callable[[str], Json], recording: str) -> None:
    answer = client.post("/admit/namespaces", json=review(recording))
    assert answer.status_code == 400
    assert "only namespaces are reviewed here" in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}',
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":null}',
        b"[" * 100_000,
        b'{"x":' * 100_000,
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":7}}',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_what_is_no_review_is_a_bad_request(client: FlaskClient, body: bytes) -> None:
    answer = client.post("/admit/namespaces", data=body)
    assert answer.status_code == 400
    assert answer.text.strip()


def test_wrong_kinds_and_versions_are_bad_requests(client: FlaskClient, review: Callable[[str], Json]) -> None:
    for change in ({"kind": "Pod"}, {"apiVersion": "admission.k8s.io/v1beta1"}):
        assert client.post("/admit/namespaces", json=review("create-namespace") | change).status_code == 400


@pytest.mark.parametrize("annotations", [{"a": 1}, ["a"], "a", {"a": None}])
def test_annotations_of_the_wrong_shape_are_bad_requests(
    client: FlaskClient, review: Callable[[str], Json], annotations: object
) -> None:
    body = review("create-namespace")
    body["request"]["object"]["metadata"]["annotations"] = annotations
    assert client.post("/admit/namespaces", json=body).status_code == 400


def test_half_a_surrogate_is_a_bad_request_or_a_name(client: FlaskClient, review: Callable[[str], Json]) -> None:
    body = json.dumps(review("create-namespace")).replace('"egress-test"', '"\\ud800"')
    assert client.post("/admit/namespaces", data=body).status_code in (200, 400)


def test_a_huge_body_is_refused_and_a_large_one_is_not(client: FlaskClient, review: Callable[[str], Json]) -> None:
    assert client.post("/admit/namespaces", data=b"x" * (9 << 20)).status_code == 413
    body = review("create-namespace")
    body["request"]["object"]["metadata"]["annotations"] = {"a": "b" * (1 << 20)}
    assert client.post("/admit/namespaces", json=body).status_code == 200


def test_a_get_is_not_allowed_and_health_is_told(client: FlaskClient) -> None:
    assert client.get("/admit/namespaces").status_code == 405
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/readyz").text == "ok\n"
