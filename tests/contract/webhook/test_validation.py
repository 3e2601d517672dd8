"""The validating webhooks, request by request, on a real ledger."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from egress.adapters.ledger import Ledger, Offer, name_holder, request_holder
from egress.addresses import parse_address
from egress.listing import Listed
from egress.settings import Settings
from egress.table import NodeReport, Steering, SteeringHop
from lab.net.broker import Broker
from tests.contract.webhook.conftest import INDEX_NEW
from webhook.app import create_app

Json = dict[str, Any]
ADDRESSES = "egress.hawse.dev/addresses"
OPERATION = "egress.hawse.dev/operation"
TRUSTED = "system:serviceaccount:hawse-system:hawse-workers"
UNCHECKED = "Hawse cannot reach its ledger now: this was not compared with what others have"
GROUPS = {
    "namespaces": "",
    "netnamespaces": "network.openshift.io",
    "hostsubnets": "network.openshift.io",
    "egresspools": "egress.hawse.dev",
    "egressaddresses": "egress.hawse.dev",
}

pytestmark = pytest.mark.usefixtures("ready")


def reviewed(client: FlaskClient, resource: str, new: Json | None, old: Json | None = None, **request: Any) -> Json:
    """The response to a request for `new` in place of `old`."""
    operation = "DELETE" if new is None else "CREATE" if old is None else "UPDATE"
    body = {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "resource": {"group": GROUPS[resource], "version": "v1", "resource": resource},
            "name": (new or old or {})["metadata"].get("name", ""),
            "operation": operation,
            "userInfo": {"username": "alice"},
            "object": new,
            "oldObject": old,
            "dryRun": False,
            **request,
        },
    }
    answer = client.post(f"/validate/{resource}", json=body)
    assert answer.status_code == 200, answer.text
    response: Json = answer.get_json()["response"]
    assert response["uid"] == "u-1"
    assert "patch" not in response
    return response


@pytest.fixture
def review_of(client: FlaskClient) -> Callable[..., Json]:
    return lambda *arguments, **request: reviewed(client, *arguments, **request)


def refusal(response: Json) -> str:
    assert not response["allowed"]
    message: str = response["status"]["message"]
    return message


def namespace(name: str, **annotations: str) -> Json:
    return {"metadata": {"name": name, "annotations": annotations}}


def net_namespace(name: str, *addresses: str, netid: int = 7) -> Json:
    return {"metadata": {"name": name}, "netname": name, "netid": netid, "egressIPs": list(addresses)}


def host_subnet(name: str, *addresses: str, ip: str = "192.168.1.17") -> Json:
    return {"metadata": {"name": name}, "host": name, "hostIP": ip, "egressIPs": list(addresses)}


def pool(name: str, *cidrs: str, **spec: Any) -> Json:
    return {"metadata": {"name": name}, "spec": {"cidrs": list(cidrs), **spec}}


def claim(address: str, name: str, pool: str = "prod") -> Json:
    return {"metadata": {"name": address}, "spec": {"pool": pool, "namespace": {"name": name}, "origin": "manual"}}


# Namespaces


def test_the_annotation_that_hawse_wrote_passes(review_of: Callable[..., Json], create: Callable[..., Any]) -> None:
    given = create("shop")
    assert review_of("namespaces", namespace("shop", **given.annotations)) == {"uid": "u-1", "allowed": True}


@pytest.mark.parametrize("written", ["192.168.1.9", "", "nonsense", "10.9.0.1,10.9.0.2", "10.9.0.1, 10.9.0.1"])
def test_what_another_webhook_made_of_the_annotation_is_refused(
    review_of: Callable[..., Json], create: Callable[..., Any], written: str
) -> None:
    given = create("shop")
    assert given.addresses == "10.9.0.1"
    changed = namespace("shop", **(given.annotations | {ADDRESSES: written}))
    assert "is written by Hawse alone" in refusal(review_of("namespaces", changed))


def test_anothers_address_is_refused_whatever_operation_is_claimed(
    review_of: Callable[..., Json], create: Callable[..., Any]
) -> None:
    given = create("shop")
    refusal(review_of("namespaces", namespace("thief", **given.annotations)))


def test_what_a_lost_index_had_given_passes_unchecked(
    review_of: Callable[..., Json], create: Callable[..., Any], ledger: Ledger
) -> None:
    given = create("shop")
    ledger._redis.flushall()
    ledger.set_offer(Offer())
    ledger.sync([], ledger.now(), ready=True)
    answer = review_of("namespaces", namespace("shop", **given.annotations))
    assert answer["allowed"]
    assert answer["warnings"] == [UNCHECKED]
    ledger.sync([], ledger.now(), ready=True)  # as each reconcile does: that makes it no newer
    assert 0 < ledger._redis.ttl(INDEX_NEW) <= 60
    ledger._redis.delete(INDEX_NEW)
    ledger.sync([], ledger.now(), ready=True)
    refusal(review_of("namespaces", namespace("shop", **given.annotations)))


def test_a_generated_name_is_known_by_its_operation(
    review_of: Callable[..., Json], ask: Callable[..., Any], review: Callable[[str], Json], ledger: Ledger
) -> None:
    given = ask(review("create-namespace-generate-name"))
    named = namespace("app-x7k2p", **given.annotations)
    assert review_of("namespaces", named, name="")["allowed"]
    for operation in ({}, {OPERATION: "guessed"}):
        refusal(review_of("namespaces", namespace("app-x7k2p", **{ADDRESSES: given.addresses}, **operation), name=""))
    ledger.claimed(name_holder("app-x7k2p"), [parse_address(given.addresses)])
    refusal(review_of("namespaces", namespace("app-later", **given.annotations), name=""))


def test_without_the_annotation_there_is_nothing_to_say(review_of: Callable[..., Json]) -> None:
    assert review_of("namespaces", namespace("shop", a="b"))["allowed"]
    assert review_of("namespaces", namespace("shop"), namespace("shop", a="b"))["allowed"]


def test_a_change_is_for_the_workers_alone(review_of: Callable[..., Json], create: Callable[..., Any]) -> None:
    given = create("shop").annotations
    for after in ({}, {ADDRESSES: "192.168.1.9"}):
        refusal(review_of("namespaces", namespace("shop", **after), namespace("shop", **given)))
        trusted = {"userInfo": {"username": TRUSTED}}
        assert review_of("namespaces", namespace("shop", **after), namespace("shop", **given), **trusted)["allowed"]


def test_a_system_namespace_is_let_be(review_of: Callable[..., Json]) -> None:
    assert review_of("namespaces", namespace("kube-system", **{ADDRESSES: "192.168.1.9"}))["allowed"]


# The other objects


def test_an_address_that_another_namespace_has_is_refused_by_its_name(
    review_of: Callable[..., Json], create: Callable[..., Any], ledger: Ledger
) -> None:
    address = create("shop").addresses
    for settle, story in (
        (None, "is being given to namespace shop"),
        (ledger.claimed, "is held by namespace shop"),
        (ledger.quarantined, "is in quarantine after namespace shop"),
    ):
        if settle is not None:
            settle(name_holder("shop"), [parse_address(address)])
        for resource, new in (
            ("netnamespaces", net_namespace("web", address)),
            ("egressaddresses", claim(address, "web")),
        ):
            assert refusal(review_of(resource, new)) == f"address {address} {story}: choose another"
    assert review_of("netnamespaces", net_namespace("shop", address))["allowed"]


def test_an_address_of_a_request_without_a_name_is_refused(review_of: Callable[..., Json], ledger: Ledger) -> None:
    ledger.claimed(request_holder("u-9"), [parse_address("10.9.0.3")])
    assert "just created" in refusal(review_of("netnamespaces", net_namespace("web", "10.9.0.3")))


@pytest.fixture
def placed(ready: Ledger) -> None:
    """node2 hosts 192.168.1.50 for namespace shop, NetID 5, and 192.168.1.51 for nobody; node1 is in 192.168.1.0/24."""
    hop = SteeringHop(parse_address("192.168.1.50"), "node2", parse_address("192.168.1.18"), acknowledged=True)
    assert ready.publish({5: Steering(5, "shop", (hop,))}, expected=0, epoch="e") == 1
    ready.claimed(name_holder("shop"), [parse_address("192.168.1.50")])
    lists = {
        "192.168.1.50": Listed(("node2",), ("shop",)),
        "192.168.1.51": Listed(("node2",)),
        "10.0.0.7": Listed((), ("by-hand",)),
    }
    ready.set_listed({parse_address(address): listed for address, listed in lists.items()})
    ready.report(NodeReport("node1", 0.0, link="192.168.1.17/24", interface="eth0"))


@pytest.mark.usefixtures("placed")
def test_a_host_subnet_is_compared_with_the_others_and_its_link(review_of: Callable[..., Json]) -> None:
    before = host_subnet("node1")
    for address in ("192.168.1.50", "192.168.1.51"):
        warning, *_ = review_of("hostsubnets", host_subnet("node1", address), before)["warnings"]
        assert f"address {address} is on node node2, and on node1 now" in warning
        other = review_of("hostsubnets", host_subnet("node2", address, ip="192.168.1.18"), host_subnet("node2"))
        assert not any("is on node" in warning for warning in other.get("warnings", []))
    (warning,) = review_of("hostsubnets", host_subnet("node1", "10.0.0.1"), before)["warnings"]
    assert "outside 192.168.1.0/24, the subnet of node1" in warning
    assert "is a node's own IP" in refusal(review_of("hostsubnets", host_subnet("node1", "192.168.1.18"), before))
    assert "is listed twice" in refusal(review_of("hostsubnets", host_subnet("node1", "10.0.0.1", "10.0.0.1"), before))
    assert review_of("hostsubnets", host_subnet("node1"), before) == {"uid": "u-1", "allowed": True}


@pytest.mark.usefixtures("placed")
def test_a_net_namespace_is_compared_with_the_table(review_of: Callable[..., Json]) -> None:
    (warning,) = review_of("netnamespaces", net_namespace("web", "10.0.0.1", netid=5))["warnings"]
    assert warning == "NetID 5 is NetNamespace shop's too: the traffic of both is dropped"
    before = net_namespace("shop", "192.168.1.50", netid=5)
    (warning,) = review_of("netnamespaces", net_namespace("shop", netid=5), before)["warnings"]
    assert "which will put it back" in warning


@pytest.mark.usefixtures("placed")
def test_a_net_namespace_is_compared_with_the_others(review_of: Callable[..., Json]) -> None:
    (warning,) = review_of("netnamespaces", net_namespace("web", "10.0.0.7"), net_namespace("web"))["warnings"]
    assert "address 10.0.0.7 was last seen in NetNamespace by-hand" in warning
    assert review_of("netnamespaces", net_namespace("by-hand", "10.0.0.7")) == {"uid": "u-1", "allowed": True}


@pytest.mark.usefixtures("placed")
def test_before_the_workers_have_looked_only_what_the_index_says_is_refused(
    review_of: Callable[..., Json], ledger: Ledger
) -> None:
    ledger._redis.delete("hawse:listed")
    for resource, new in (
        ("hostsubnets", host_subnet("node1", "192.168.1.50")),
        ("netnamespaces", net_namespace("web", "10.0.0.7")),
    ):
        response = review_of(resource, new)
        assert (response["allowed"], response["warnings"]) == (True, [UNCHECKED])
    assert "is held by namespace shop" in refusal(review_of("netnamespaces", net_namespace("web", "192.168.1.50")))
    assert review_of("hostsubnets", host_subnet("node1")) == {"uid": "u-1", "allowed": True}


def test_pools(review_of: Callable[..., Json], create: Callable[..., Any]) -> None:
    message = refusal(review_of("egresspools", pool("new", "192.168.1.200-192.168.2.10")))
    assert message == "pools new and prod overlap in 192.168.1.200-192.168.1.254: take it out of one of them"
    message = refusal(review_of("egresspools", pool("new", "10.0.0.1", "10.0.0.0/33")))
    assert message.startswith("EgressPool new: $.spec.cidrs[1]: '10.0.0.0/33' is not a CIDR")
    (warning,) = review_of("egresspools", pool("new", "10.128.3.0/30"))["warnings"]
    assert "in the cluster's own network 10.128.0.0/14" in warning
    assert review_of("egresspools", pool("new", "10.0.0.0/24")) == {"uid": "u-1", "allowed": True}

    spare = pool("spare", "10.9.0.1-10.9.0.4")
    assert review_of("egresspools", None, spare) == {"uid": "u-1", "allowed": True}
    create("shop")
    (warning,) = review_of("egresspools", pool("spare", "10.9.0.2-10.9.0.4"), spare)["warnings"]
    assert warning.startswith("1 of the addresses that pool spare loses are in use (10.9.0.1)")
    (warning,) = review_of("egresspools", None, spare)["warnings"]
    assert warning.startswith("1 addresses of pool spare are in use (10.9.0.1)")


def test_a_claim_by_hand(review_of: Callable[..., Json]) -> None:
    assert review_of("egressaddresses", claim("192.168.1.60", "web")) == {"uid": "u-1", "allowed": True}
    assert "canonical" in refusal(review_of("egressaddresses", claim("fd00--1", "web")))
    assert "outside pool prod" in review_of("egressaddresses", claim("10.0.0.1", "web"))["warnings"][0]
    before = claim("192.168.1.60", "web")
    assert "is Hawse's alone to change" in refusal(review_of("egressaddresses", claim("192.168.1.60", "other"), before))


@pytest.mark.parametrize(
    ("resource", "new"),
    [
        ("netnamespaces", net_namespace("web", "nonsense")),
        ("hostsubnets", host_subnet("node1", "192.168.1.18")),
        ("egresspools", pool("new", "nonsense")),
        ("egressaddresses", claim("192.168.1.18", "web")),
    ],
)
def test_the_workers_may_write_everything(review_of: Callable[..., Json], resource: str, new: Json) -> None:
    refusal(review_of(resource, new))
    assert review_of(resource, new, userInfo={"username": TRUSTED}) == {"uid": "u-1", "allowed": True}


# When Redis is away: what needs no ledger is still refused, the rest is not compared, and said so


@pytest.mark.parametrize("how", ["flushed", "stopped", "hanging"])
def test_without_a_ledger_objects_pass_with_a_warning(tmp_path: Path, how: str) -> None:
    with Broker(tmp_path / "broker", port=0) as broker:
        client = create_app(Settings(redis_url=broker.unix_url, redis_timeout=0.2)).test_client()
        pid = None
        if how == "stopped":
            broker.kill()
        elif how == "hanging":
            pid = int(Ledger(broker.unix_url)._redis.info("server")["process_id"])
            os.kill(pid, signal.SIGSTOP)
        try:
            for resource, new in (
                ("netnamespaces", net_namespace("web", "10.0.0.1")),
                ("hostsubnets", host_subnet("node1", "10.0.0.1")),
                ("egresspools", pool("new", "10.0.0.0/24")),
                ("egressaddresses", claim("10.0.0.1", "web")),
            ):
                response = reviewed(client, resource, new)
                assert (response["allowed"], response["warnings"]) == (True, [UNCHECKED])
            response = reviewed(client, "namespaces", namespace("web", **{ADDRESSES: "10.0.0.1"}))
            assert (response["allowed"], response["warnings"]) == (True, [UNCHECKED])
            assert "not an IP address" in refusal(reviewed(client, "netnamespaces", net_namespace("web", "nonsense")))
        finally:
            if pid is not None:
                os.kill(pid, signal.SIGCONT)


# What is no review of the resource


@pytest.mark.parametrize("resource", sorted(GROUPS))
def test_what_is_no_review_of_the_resource_is_a_bad_request(
    client: FlaskClient, review: Callable[[str], Json], resource: str
) -> None:
    recording = "create-hostsubnet" if resource != "hostsubnets" else "create-netnamespace"
    answer = client.post(f"/validate/{resource}", json=review(recording))
    assert answer.status_code == 400
    assert f"only {resource} are reviewed here" in answer.text
    assert client.post(f"/validate/{resource}", data=b"{").status_code == 400


def test_other_resources_are_not_found(client: FlaskClient) -> None:
    assert client.post("/validate/pods", json={}).status_code == 404


@pytest.mark.parametrize("recording", ["create-hostsubnet", "create-netnamespace", "update-hostsubnet"])
def test_what_a_real_server_sent_is_understood(
    client: FlaskClient, review: Callable[[str], Json], recording: str
) -> None:
    answer = client.post(f"/validate/{recording.split('-')[1]}s", json=review(recording))
    assert answer.get_json()["response"]["allowed"] is True


@pytest.mark.parametrize("new", [None, {}, {"metadata": []}, {"metadata": {"name": "a"}, "egressIPs": 7}, {"spec": 1}])
@pytest.mark.parametrize("resource", sorted(GROUPS.keys() - {"namespaces"}))
def test_an_object_of_any_shape_is_refused_or_passed(client: FlaskClient, resource: str, new: Json | None) -> None:
    for operation in ("CREATE", "UPDATE", "DELETE", "CONNECT"):
        request = {"uid": "u", "operation": operation, "object": new, "oldObject": new}
        request["resource"] = {"group": GROUPS[resource], "resource": resource}
        body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        assert client.post(f"/validate/{resource}", json=body).status_code == 200
