"""`/api/v1` on the embedded API server and a real Valkey."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from egress.adapters.ledger import Ledger
from egress.addresses import parse_address
from egress.operations import Outcome, Step, StepRecord
from egress.table import Claim, NodeReport, Steering, SteeringHop
from lab.apiserver.process import EmbeddedCluster
from tests.contract.api.conftest import Answer, Api, Objects, condition

Json = dict[str, Any]
A, B = "192.168.1.5", "192.168.1.6"


@pytest.fixture
def api(make_api: Callable[..., Api], objects: Objects, cluster: EmbeddedCluster) -> Api:
    objects.pool("prod", "192.168.1.0/24")
    objects.namespace("shop")
    objects.namespace("bank")
    objects.claim(A, namespace="shop")
    objects.claim(B, namespace="bank")
    objects.status(A, phase="Ready", node="node2", conditions=[condition("True", "Ready")])
    refused = condition("False", "NetlinkFailed", "node2 cannot add it")
    objects.status(B, phase="Failed", node="node2", conditions=[refused])
    api = make_api().start()
    api.token = cluster.token  # type: ignore[attr-defined]
    api.until(lambda: read(api, "/assignments")["total"] == 2)
    return api


def asked(api: Api, method: str, path: str, body: Json | None = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    known = {"Authorization": f"Bearer {api.token}"}  # type: ignore[attr-defined]
    kind = {"Content-Type": "application/json"} if body is not None else {}
    data = json.dumps(body).encode() if body is not None else None
    return api.ask(method, f"/api/v1{path}", data, known | kind | named)


def read(api: Api, path: str) -> Any:
    answer = asked(api, "GET", path)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def did(api: Api, path: str, **body: Any) -> Json:
    answer = asked(api, "POST", path, body)
    assert answer.status == 200, answer.body
    done: Json = json.loads(answer.body)
    return done


def detail(answer: Answer) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    text: str = json.loads(answer.body)["detail"]
    return text


# Who


@pytest.mark.parametrize(
    "path",
    [
        "/overview",
        "/assignments",
        "/namespaces/shop",
        "/namespaces/shop/path",
        "/verification",
        "/nodes",
        "/pools",
        "/failures",
        "/audit",
    ],
)
def test_nobody_unknown_is_let_in(api: Api, path: str) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic YTpi"},
        {"X-Forwarded-User": "admin"},
    ):
        answer = api.ask("GET", f"/api/v1{path}", headers=headers)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert b"shop" not in answer.body


@pytest.mark.parametrize(
    "path",
    ["/namespaces/shop/retry", "/retry", "/namespaces/shop/release", f"/addresses/{A}/move",
     f"/addresses/{A}/decision", "/pause", "/resume"],
)  # fmt: skip
def test_no_action_without_a_token(api: Api, objects: Objects, path: str) -> None:
    before = objects.version(A)
    answer = api.ask("POST", f"/api/v1{path}", b'{"why": "x"}', {"Content-Type": "application/json"})
    assert answer.status == 401
    assert objects.version(A) == before
    assert read(api, "/audit")["items"] == []


def test_a_proxy_is_believed_only_where_it_is_one(make_api: Callable[..., Api], api: Api) -> None:
    trusted = make_api(HAWSE_AUTH_PROXIES="127.0.0.0/8").start()
    assert trusted.get("/api/v1/nodes", X_Forwarded_User="alice").status == 200
    assert trusted.get("/api/v1/nodes").status == 401
    elsewhere = make_api(HAWSE_AUTH_PROXIES="10.0.0.0/8").start()
    assert elsewhere.get("/api/v1/nodes", X_Forwarded_User="alice").status == 401


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_another_site_makes_no_browser_act(make_api: Callable[..., Api], api: Api, headers: Json) -> None:
    trusted = make_api(HAWSE_AUTH_PROXIES="127.0.0.0/8").start()
    known = {"X-Forwarded-User": "alice", "Content-Type": "application/json"}
    answer = trusted.ask("POST", "/api/v1/namespaces/shop/retry", b"{}", known | headers)
    assert answer.status == 403
    assert trusted.ask("POST", "/api/v1/namespaces/shop/retry", b"{}", known).status == 200


def test_anonymous_only_on_loopback(make_api: Callable[..., Api], api: Api) -> None:
    everywhere = make_api(HAWSE_ANONYMOUS="true", HAWSE_API_LISTEN_HOST="0.0.0.0").launch()
    assert everywhere.process is not None
    assert everywhere.process.wait(30) == 2
    assert "HAWSE_ANONYMOUS" in everywhere.log()
    assert make_api(HAWSE_ANONYMOUS="true").start().get("/api/v1/nodes").status == 200


def test_too_many_actions_are_refused(make_api: Callable[..., Api], api: Api) -> None:
    slow = make_api(HAWSE_API_ACTIONS_PER_MINUTE="2").start()
    slow.token = api.token  # type: ignore[attr-defined]
    assert [asked(slow, "POST", "/namespaces/shop/retry", {}).status for _ in range(3)] == [200, 200, 429]
    assert asked(slow, "GET", "/nodes").status == 200


# What is shown


def test_what_is_wrong_comes_first(api: Api) -> None:
    overview = read(api, "/overview")
    (group,) = overview["troubles"]
    assert (group["trouble"], group["reason"], group["message"]) == ("failed", "NetlinkFailed", "node2 cannot add it")
    assert [item["namespace"] for item in group["items"]] == ["bank"]
    assert overview["phases"] == {"Ready": 1, "Failed": 1}
    assert overview["assignments"] == 2


def test_assignments_are_filtered_sorted_and_paged(api: Api, objects: Objects) -> None:
    for number in range(10, 20):
        objects.claim(f"192.168.1.{number}", namespace=f"n{number}")
    api.until(lambda: read(api, "/assignments")["total"] == 12)
    assert [item["namespace"] for item in read(api, "/assignments?text=sho")["items"]] == ["shop"]
    assert [item["namespace"] for item in read(api, "/assignments?text=%20Sho")["items"]] == ["shop"]
    assert [item["address"] for item in read(api, "/assignments?phase=Failed")["items"]] == [B]
    assert read(api, "/assignments?node=node2")["total"] == 2
    assert read(api, "/assignments?pool=other")["total"] == 0
    seen: list[str] = []
    after = ""
    for _ in range(4):
        page = read(api, f"/assignments?sort=address&descending=true&limit=5&after={after}")
        seen += [item["address"] for item in page["items"]]
        after = page["after"]
        if not after:
            break
    wanted = sorted([A, B, *(f"192.168.1.{number}" for number in range(10, 20))], key=parse_address, reverse=True)
    assert seen == wanted


@pytest.mark.parametrize("query", ["sort=no", "phase=No", "limit=0", "limit=x", "after=%21", "descending=maybe"])
def test_what_makes_no_sense_is_said(api: Api, query: str) -> None:
    answer = asked(api, "GET", f"/assignments?{query}")
    assert answer.status == 400
    assert query.partition("=")[0] in detail(answer)


def test_a_namespace_has_its_history_and_its_traffic(api: Api, ledger: Ledger) -> None:
    hop = SteeringHop(parse_address(A), "node2", parse_address("192.168.1.18"), acknowledged=True)
    ledger.publish({7: Steering(7, "shop", (hop,))}, expected=ledger.change_number(), epoch="e1")
    ledger.record(StepRecord("shop", Step.CLAIM, Outcome.RETRY, 1.0, 3, A, message="\x1b[31mred"))
    api.until(lambda: read(api, "/namespaces/shop")["state"] == "via")
    shop = read(api, "/namespaces/shop")
    assert shop["addresses"][0]["netid"] == 7
    assert [(step["step"], step["attempt"], step["message"]) for step in shop["history"]] == [
        ("claim", 3, "\x1b[31mred")
    ]
    assert asked(api, "GET", "/namespaces/nobody").status == 404


def test_a_node_that_is_behind_is_shown(api: Api, ledger: Ledger) -> None:
    ledger.beat("node2", "192.168.1.18", 1.0)
    ledger.publish({7: Steering(7, "shop")}, expected=ledger.change_number(), epoch="e1")
    claims = (Claim(parse_address(A), 7, held=False, reason="AddressInUse", message="somebody has it"),)
    report = NodeReport("node2", 1.0, "e1", 0, "192.168.1.18/24", "eth0", claims, repairs=3)
    ledger.report(report)
    api.until(lambda: read(api, "/nodes"))
    api.until(lambda: read(api, "/nodes")[0]["refused"])
    (node,) = read(api, "/nodes")
    assert (node["name"], node["ip"], node["repairs"]) == ("node2", "192.168.1.18", 3)
    assert node["behind"] == node["latest"] - node["applied"] > 0
    assert "AddressInUse" in node["refused"][0]
    assert read(api, "/overview")["nodes_behind"] == [], "it was told of the change a moment ago"

    def is_behind() -> bool:
        ledger.report(report)  # it lives, and does not catch up
        return [item["name"] for item in read(api, "/overview")["nodes_behind"]] == ["node2"]

    api.until(is_behind)


def test_pools_are_shown_with_what_is_left(api: Api, objects: Objects) -> None:
    counts = {"capacity": 254, "allocated": 2, "quarantined": 0, "free": 252}
    objects.kube.patch("EgressPool", "prod", {"status": counts}, subresource="status")
    api.until(lambda: read(api, "/pools")[0]["free"] == 252)
    (pool,) = read(api, "/pools")
    assert (pool["name"], pool["cidrs"], pool["capacity"]) == ("prod", ["192.168.1.0/24"], 254)


# Actions


def test_a_retry_asks_the_workers_once_however_often_it_is_pressed(api: Api, ledger: Ledger) -> None:
    for _ in range(3):
        assert did(api, "/namespaces/bank/retry", why="the switch is back") == {"done": ["bank"]}
    queue = [json.loads(text) for text in ledger._redis.lrange("hawse-broker:control", 0, -1)]
    assert [message["headers"]["task"] for message in queue] == ["hawse.v1.namespace"]
    entries = read(api, "/audit")["items"]
    assert [(item["who"], item["verb"], item["subject"], item["outcome"]) for item in entries] == [
        ("admin", "retry", "bank", "done")
    ] * 3
    assert entries[0]["why"] == "the switch is back"


def test_all_that_match_are_retried_and_what_is_well_is_not(api: Api) -> None:
    assert did(api, "/retry", trouble="failed") == {"done": ["bank"], "refused": {}, "left": 0}
    assert did(api, "/retry", pool="other") == {"done": [], "refused": {}, "left": 0}


def test_a_failed_ticket_is_tried_again(api: Api, objects: Objects) -> None:
    ticket = {"profile": "desk", "serial": 1, "failed": "assigned", "failure": "422 no such field"}
    objects.status(A, phase="Ready", ticket=ticket)
    api.until(lambda: read(api, "/assignments?trouble=ticket")["total"] == 1)
    did(api, "/namespaces/shop/retry")
    assert "failed" not in objects.get(A)["status"]["ticket"]
    api.until(lambda: read(api, "/assignments?trouble=ticket")["total"] == 0)


def test_a_move_is_wished_for_on_the_object(api: Api, objects: Objects) -> None:
    did(api, f"/addresses/{A}/move", node="node1")
    assert objects.get(A)["metadata"]["annotations"]["egress.hawse.dev/move-to"] == "node1"
    assert asked(api, "POST", f"/addresses/{A}/move", {}).status == 400
    assert asked(api, "POST", "/addresses/192.168.1.99/move", {"node": "node1"}).status == 404
    assert asked(api, "POST", "/addresses/nonsense/move", {"node": "node1"}).status == 422
    outcomes = [item["outcome"] for item in read(api, "/audit")["items"]]
    assert outcomes[-1] == "done"
    assert "assigned to nobody" in outcomes[-2]


def test_a_release_wants_a_reason_and_has_the_namespace_opt_out(api: Api, objects: Objects) -> None:
    answer = asked(api, "POST", "/namespaces/shop/release", {"why": " "})
    assert answer.status == 422
    assert "say why" in detail(answer)
    for _ in range(2):
        did(api, "/namespaces/shop/release", why="it moves to another cluster")
    found = objects.kube.get("Namespace", "shop")
    assert found is not None
    assert found["metadata"]["annotations"]["egress.hawse.dev/pool"] == "none"


def test_a_decision_is_the_ticket_systems(api: Api, objects: Objects) -> None:
    objects.told("192.168.1.7", approval="required")
    for _ in range(2):
        did(api, "/addresses/192.168.1.7/decision", why="by phone, CHG0030001")
    decision = objects.decision("192.168.1.7")
    assert decision is not None
    assert (decision["verdict"], decision["by"], decision["source"]) == ("approved", "admin", "dashboard")
    did(api, "/addresses/192.168.1.7/decision", verdict="withdrawn", why="by mistake")
    decision = objects.decision("192.168.1.7")
    assert decision is not None
    assert decision["verdict"] == "withdrawn"


def test_the_automation_is_paused_and_resumed(api: Api, objects: Objects) -> None:
    did(api, "/pause", why="the switch is being replaced")
    api.until(lambda: read(api, "/overview")["paused"])
    assert read(api, "/overview")["paused"] == "admin: the switch is being replaced"
    did(api, "/resume")
    api.until(lambda: not read(api, "/overview")["paused"])


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"{", "application/json"), (b"[]", "application/json"), (b'{"why": 7}', "application/json"),
     (b'{"no": 7}', "application/json"), (b"why=x", "application/x-www-form-urlencoded"),
     (b"[" * 50_000, "application/json"), (b'{"why": "' + b"x" * 70_000 + b'"}', "application/json")],
)  # fmt: skip
def test_a_body_that_is_none_is_refused(api: Api, body: bytes, kind: str) -> None:
    known = {"Authorization": f"Bearer {api.token}", "Content-Type": kind}  # type: ignore[attr-defined]
    answer = api.ask("POST", "/api/v1/namespaces/shop/retry", body, known)
    assert answer.status in (400, 413)
    assert answer.headers["content-type"] == "application/problem+json"
    assert read(api, "/audit")["items"] == []


def test_a_reason_forges_no_line_of_the_log(api: Api) -> None:
    did(api, "/namespaces/shop/retry", why='x\n{"event": "action", "who": "nobody"}\x1b[2J')
    lines = [json.loads(line) for line in api.log().splitlines() if line.startswith("{")]
    assert [line["who"] for line in lines if line["event"] == "action"] == ["admin"]
    assert "\x1b" not in api.log()


def test_the_document_describes_what_there_is(api: Api) -> None:
    answer = api.ask("GET", "/api/v1/openapi.json")
    assert answer.status == 200
    document = json.loads(answer.body)
    assert {"/overview", "/assignments", "/retry", "/pause"} <= document["paths"].keys()
    assert "Assignment" in document["components"]["schemas"]


@pytest.mark.parametrize(
    ("path", "body", "kind", "name"),
    [
        ("/namespaces/shop/retry", {"why": "x"}, "EgressAddress", A),
        ("/retry", {"why": "x"}, "EgressAddress", B),
        ("/namespaces/shop/release", {"why": "x"}, "Namespace", "shop"),
        (f"/addresses/{A}/move", {"node": "node1"}, "EgressAddress", A),
        (f"/addresses/{A}/decision", {"why": "x", "verdict": "rejected"}, "EgressAddress", A),
        ("/pause", {"why": "x"}, "Namespace", "hawse-system"),
        ("/resume", {"why": "x"}, "Namespace", "hawse-system"),
    ],
)
def test_an_action_that_is_replayed_changes_nothing_more(
    api: Api, objects: Objects, path: str, body: Json, kind: str, name: str
) -> None:
    objects.status(A, phase="Ready", ticket={"profile": "desk", "serial": 1, "failed": "assigned", "failure": "422"})
    api.until(lambda: read(api, "/assignments?trouble=ticket")["total"] == 1)

    def version() -> str:
        found = objects.kube.get(kind, name)
        assert found is not None
        return str(found["metadata"]["resourceVersion"])

    did(api, path, **body)
    after = version()
    for _ in range(3):
        did(api, path, **body)
    assert version() == after
    assert len(read(api, "/audit")["items"]) >= 4, "who pressed it again is recorded too"
