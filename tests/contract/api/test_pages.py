"""The dashboard's pages of a real `hawse-api`, as a browser asks for them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import pytest

from egress.adapters.ledger import Ledger
from egress.addresses import parse_address
from egress.operations import Outcome, Step, StepRecord
from egress.table import Claim, NodeReport, Steering
from lab.apiserver.process import EmbeddedCluster
from tests.contract.api.conftest import Answer, Api, Objects, condition

Json = dict[str, Any]
A, B = "192.168.1.5", "192.168.1.6"
PAGES = ["/", "/assignments", "/namespaces/bank", "/nodes", "/failures", "/pools", "/audit"]
HOSTILE = "<script>alert(1)</script>\" onload='x'\x1b[2J"


@pytest.fixture
def api(make_api: Callable[..., Api], objects: Objects, ledger: Ledger) -> Api:
    objects.pool("prod", "192.168.1.0/24")
    for name, address in (("shop", A), ("bank", B)):
        objects.namespace(name)
        objects.claim(address, namespace=name)
    objects.status(A, phase="Ready", node="node2", conditions=[condition("True", "Ready")])
    objects.status(B, phase="Failed", node="node2", conditions=[condition("False", "NetlinkFailed", HOSTILE)])
    ledger.publish({7: Steering(7, "shop")}, expected=ledger.change_number(), epoch="e1")
    ledger.record(StepRecord("bank", Step.PROGRAM, Outcome.GAVE_UP, 1795500000.0, 3, B, "node2", HOSTILE * 9))
    api = make_api(HAWSE_ANONYMOUS="true").start()
    api.until(lambda: "2 assignments" in text(api.get("/assignments")))
    return api


def text(answer: Answer) -> str:
    return answer.body.decode()


def send(api: Api, path: str, headers: Json | None = None, **form: Any) -> Answer:
    known = {"Content-Type": "application/x-www-form-urlencoded"}
    known |= {"Origin": f"http://127.0.0.1:{api.port}"} if headers is None else headers
    return api.ask("POST", path, urlencode(form, doseq=True).encode(), known)


class Tags(HTMLParser):
    """Which tags there are, with which attributes; and that each that is opened is closed."""

    VOID = ("meta", "link", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_each_page_is_whole_and_asks_nobody_else(api: Api) -> None:
    for path in PAGES:
        check_whole(api, path)


def check_whole(api: Api, path: str) -> None:
    answer = api.get(path)
    assert answer.status == 200, text(answer)
    assert api.ask("HEAD", path).status == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    tags = Tags(text(answer)).found
    urls = [value or "" for _, attributes in tags for name, value in attributes.items() if name in ("href", "src")]
    assert all(url.startswith(("/", "#")) and not url.startswith("//") for url in urls)
    for url in {url for url in urls if url.startswith("/")}:
        assert api.get(url).status == 200, url


def test_what_objects_hold_is_shown_and_does_nothing(api: Api) -> None:
    for path in PAGES:
        tags = Tags(text(api.get(path))).found
        scripts = [attributes for tag, attributes in tags if tag == "script"]
        assert scripts == [{"src": "/static/hawse.js", "defer": None}]
        assert not any(name.startswith("on") or name == "style" for _, attributes in tags for name in attributes)
    assert "&lt;script&gt;alert(1)" in text(api.get("/namespaces/bank"))


def test_every_input_has_a_label(api: Api) -> None:
    for path in PAGES:
        page = re.sub(r'<input type="hidden"[^>]*>', "", text(api.get(path)))
        outside = re.sub(r"<label.*?</label>", "", page, flags=re.DOTALL)
        assert not re.search(r"<(input|select|textarea)\b", outside), path


def test_what_is_wrong_comes_first(api: Api) -> None:
    page = text(api.get("/"))
    assert page.index("1 failed: NetlinkFailed") < page.index("Totals")


def test_assignments_are_filtered_by_the_form(api: Api) -> None:
    page = text(api.get("/assignments?trouble=failed&sort=since"))
    assert "1 assignments" in page
    assert ">bank</a>" in page
    assert ">shop</a>" not in page
    assert "<option selected>failed</option>" in page
    assert api.get("/assignments?sort=colour").status == 400


def test_a_retry_is_recorded_and_the_page_says_so(api: Api) -> None:
    answer = send(api, "/namespaces/bank/retry", why="the cable is back")
    assert answer.status == 303
    assert answer.headers["location"] == "/namespaces/bank?done=retried"
    assert "Asked to try again" in text(api.get(answer.headers["location"]))
    assert "the cable is back" in text(api.get("/audit"))


def test_chosen_failures_or_all_of_a_cause_are_retried(api: Api) -> None:
    cause = {"trouble": "failed", "reason": "NetlinkFailed"}
    assert send(api, "/failures/retry", namespace=["bank"], why="one", **cause).status == 303
    answer = send(api, "/failures/retry", which="all", why="all", **cause)
    assert answer.status == 303
    assert "0 of 1 are no longer failed (NetlinkFailed)" in text(api.get(answer.headers["location"]))
    entries = json.loads(api.get("/api/v1/audit").body)["items"]
    assert [(entry["subject"], entry["why"]) for entry in entries] == [("bank", "all"), ("bank", "one")]
    assert send(api, "/failures/retry").status == 400
    assert send(api, "/failures/retry", which="chosen", **cause).status == 400, "none was chosen: not all are meant"
    assert send(api, "/failures/retry", namespace=["shop"], **cause).status == 400, "it has another trouble, or none"
    for query in ("run=", "run=nothing", f"run={'x' * 500}"):
        assert "no longer" not in text(api.get(f"/failures?{query}"))


def test_the_progress_of_many_is_theirs_and_nobody_elses(api: Api, objects: Objects) -> None:
    """More than are asked for at once; one is refused, and those that fail meanwhile do not count."""

    def fail(number: int) -> None:
        objects.namespace(f"batch-{number}")
        objects.claim(f"192.168.1.{number}", namespace=f"batch-{number}")
        refused = condition("False", "OutOfSubnet", "not here")
        objects.status(f"192.168.1.{number}", phase="Failed", node="node1", conditions=[refused])

    def progress(where: str) -> str:
        return " ".join(re.sub("<[^>]*>", " ", text(api.get(where))).split())

    for number in range(100, 130):
        fail(number)
    cause = {"trouble": "failed", "reason": "OutOfSubnet"}
    api.until(lambda: "30 failed: OutOfSubnet" in text(api.get("/failures")))
    where = send(api, "/failures/retry", which="all", why="the subnet is larger now", **cause).headers["location"]
    assert "0 of 30 are no longer failed (OutOfSubnet)" in progress(where)
    assert "Tried again by anonymous" in progress(where)
    api.until(lambda: len(json.loads(api.get("/api/v1/audit").body)["items"]) == 30)
    for number in range(100, 110):
        objects.status(f"192.168.1.{number}", phase="Ready", node="node2", conditions=[condition("True", "Ready")])
    objects.status("192.168.1.110", phase="Pending", conditions=[condition("False", "NoNode", "none has room")])
    objects.status("192.168.1.111", phase="Failed", conditions=[condition("False", "NetlinkFailed", "no such device")])
    for number in range(130, 150):
        fail(number)
    wanted = "12 of 30 are no longer failed (OutOfSubnet)"
    api.until(lambda: wanted in progress(where))
    assert "10 well, 1 on their way, 1 with another trouble, 18 still or again with this one" in progress(where)


def test_an_address_is_moved_and_decided_on_from_its_page(api: Api, objects: Objects) -> None:
    assert send(api, f"/addresses/{A}/move", why="node2 is drained").status == 400
    assert send(api, f"/addresses/{A}/move", node="node1", why="node2 is drained").status == 400, "not confirmed"
    assert "egress.hawse.dev/move-to" not in (objects.get(A)["metadata"].get("annotations") or {})
    answer = send(api, f"/addresses/{A}/move", node="node1", why="node2 is drained", sure="yes")
    assert (answer.status, answer.headers["location"]) == (303, "/namespaces/shop?done=moved")
    assert objects.get(A)["metadata"]["annotations"]["egress.hawse.dev/move-to"] == "node1"

    assert send(api, f"/addresses/{A}/decision", verdict="approved", why="ana").status == 422, "it has no ticket"
    objects.status(A, phase="Placed", node="node2", ticket={"profile": "desk", "serial": 1, "told": "assigned"})
    assert send(api, f"/addresses/{A}/decision", verdict="perhaps", why="ana").status == 400
    assert send(api, f"/addresses/{A}/decision", verdict="rejected", why="ana").status == 400, "not confirmed"
    assert send(api, f"/addresses/{A}/decision", verdict="rejected", why="ana", sure="yes").status == 303
    assert (objects.decision(A) or {})["verdict"] == "rejected"


def test_a_release_wants_the_name_and_a_reason(api: Api, objects: Objects) -> None:
    assert send(api, "/namespaces/shop/release", why="it moves", sure="bank").status == 400
    assert send(api, "/namespaces/shop/release", why="", sure="shop").status in (400, 422)
    found = objects.kube.get("Namespace", "shop")
    assert found is not None
    assert "egress.hawse.dev/pool" not in (found["metadata"].get("annotations") or {})
    assert send(api, "/namespaces/shop/release", why="it moves", sure="shop").status == 303
    found = objects.kube.get("Namespace", "shop")
    assert found is not None
    assert found["metadata"]["annotations"]["egress.hawse.dev/pool"] == "none"


def test_a_pause_is_seen_on_every_page(api: Api) -> None:
    assert send(api, "/pause", why="the switch is replaced").status == 303
    api.until(lambda: "Paused by anonymous: the switch is replaced" in text(api.get("/pools")))
    assert send(api, "/resume").status == 303
    api.until(lambda: "Paused by" not in text(api.get("/pools")))


def test_another_site_presses_no_button(api: Api) -> None:
    others: list[Json] = [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "https://other.example"},
    ]
    for path in ("/namespaces/bank/retry", "/namespaces/bank/release", "/failures/retry", "/pause", "/resume",
                 f"/addresses/{B}/move", f"/addresses/{B}/decision"):  # fmt: skip
        for headers in others:
            assert send(api, path, headers, why="evil", sure="bank", namespace="bank").status == 403
    assert json.loads(api.get("/api/v1/audit").body)["items"] == []


def test_nobody_unknown_sees_a_page(make_api: Callable[..., Api], api: Api, cluster: EmbeddedCluster) -> None:
    guarded = make_api().start()
    for path in PAGES:
        answer = guarded.get(path)
        assert answer.status == 401
        assert "bank" not in text(answer)
        assert guarded.get(path, Authorization=f"Bearer {cluster.token}").status == 200
    assert send(guarded, "/namespaces/bank/retry").status == 401


def test_what_is_not_there_is_said_on_a_page(api: Api) -> None:
    answer = api.get("/namespaces/nobody")
    assert answer.status == 404
    assert "there is no namespace nobody" in text(answer)


def test_a_ticket_that_failed_is_retried_from_its_page(api: Api, objects: Objects) -> None:
    ticket = {"profile": "desk", "serial": 1, "failed": "assigned", "failure": "422 no such field"}
    objects.status(A, phase="Ready", ticket=ticket)
    api.until(lambda: "422 no such field" in text(api.get("/failures")))
    assert send(api, "/namespaces/shop/retry", why="the field is there now").status == 303
    assert "failed" not in objects.get(A)["status"]["ticket"]
    api.until(lambda: "422 no such field" not in text(api.get("/failures")))


def test_who_asked_for_what_is_among_the_steps(api: Api) -> None:
    assert send(api, "/namespaces/bank/retry", why="the cable is back").status == 303
    (asked, *_) = json.loads(api.get("/api/v1/namespaces/bank").body)["history"]
    assert (asked["step"], asked["by"], asked["message"]) == ("asked", "anonymous", "retry: the cable is back")
    assert "retry: the cable is back" in text(api.get("/namespaces/bank"))


def test_columns_sort_and_turn_around(api: Api) -> None:
    links = re.findall(
        r'<th scope="col"( aria-sort="[a-z]+")?><a href="([^"]*)">Address', text(api.get("/assignments"))
    )
    ((here, url),) = links
    assert here == ""
    for expected, order in (("ascending", [">shop<", ">bank<"]), ("descending", [">bank<", ">shop<"])):
        page = text(api.get(url.replace("&amp;", "&")))
        ((here, url),) = re.findall(r'<th scope="col"( aria-sort="[a-z]+")?><a href="([^"]*)">Address', page)
        assert expected in here
        assert sorted(order, key=page.index) == order


def test_a_ticket_is_a_link_only_where_it_leads_to_a_web_page(api: Api, objects: Objects) -> None:
    for url, linked in (("https://desk.example/CHG1", True), ("javascript:alert(1)", False), ("//evil.example", False)):
        ticket = {"profile": "desk", "serial": 1, "told": "assigned", "reference": "CHG1", "url": url}
        objects.status(A, phase="Ready", node="node2", ticket=ticket)
        api.until(lambda url=url: url in text(api.get("/api/v1/namespaces/shop")))  # type: ignore[misc]
        page = text(api.get("/namespaces/shop"))
        assert "CHG1" in page
        assert (f'href="{url}"' in page) == linked


def test_a_long_history_comes_in_parts(api: Api, ledger: Ledger) -> None:
    for number in range(60):
        step = StepRecord("shop", Step.WORK, Outcome.RETRY, 1795500000.0 + number, 1, message=f"try {number}.")
        ledger.record(replace(step, traceback="Traceback <b>\n" * 600))
    seen: list[str] = []
    url = "/namespaces/shop"
    for _ in range(3):
        page = text(api.get(url))
        assert len(page) < 250_000
        seen += re.findall(r"<td data-label=\"Message\">(try \d+)\.", page)
        found = re.search(r'<a rel="next" href="([^"]*)">Earlier steps', page)
        url = found[1].replace("&amp;", "&") if found else ""
    assert url == ""
    assert seen == [f"try {number}" for number in range(59, -1, -1)]
    assert api.get("/namespaces/shop?steps=x").status == 400


def test_a_node_shows_its_last_error_and_no_endless_list(api: Api, ledger: Ledger) -> None:
    claims = tuple(
        Claim(
            parse_address(f"10.0.{number // 250}.{number % 250 + 1}"), 7, held=False, reason="AddressInUse", message="x"
        )
        for number in range(1000)
    )
    said = {"last_problem": "OvsFailed: br0 is gone", "last_problem_at": time.time() - 300}
    ledger.report(NodeReport("node2", 1.0, "e1", 1, "192.168.1.18/16", "eth0", claims, **said))
    ledger.beat("node2", "192.168.1.18", 1.0)  # the last: a page that is seen for the first time has it all
    api.until(lambda: "5 min ago: OvsFailed: br0 is gone" in text(api.get("/nodes")))
    page = text(api.get("/nodes"))
    assert "5 min ago: OvsFailed: br0 is gone" in page
    assert "and 997 more" in page
    assert len(page) < 10_000
    assert 'href="/assignments?node=node2"' in page


def test_no_page_sets_a_cookie(api: Api) -> None:
    for path in PAGES:
        assert "set-cookie" not in api.get(path).headers
    assert "set-cookie" not in send(api, "/namespaces/bank/retry").headers


def test_a_page_that_others_look_at_is_made_anew_when_it_changes(api: Api, objects: Objects) -> None:
    for _ in range(20):
        assert "192.168.1.77" not in text(api.get("/assignments?sort=address"))
    objects.claim("192.168.1.77", namespace="shop")
    api.until(lambda: "192.168.1.77" in text(api.get("/assignments?sort=address")))
    assert "Asked to try again" in text(api.get("/?done=retried"))
    assert "Asked to try again" not in text(api.get("/"))
