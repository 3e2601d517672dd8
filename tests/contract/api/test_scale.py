"""Ten thousand assignments and three hundred nodes: how large the pages are, and how fast they come (printed)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from egress.adapters.ledger import Ledger
from egress.table import NodeReport, Steering
from tests.contract.api.conftest import Api, Objects

MANY, NODES, ROUNDS = 10_000, 300, 40
MOST_BYTES = 500_000
PAGES = ("/", "/assignments", "/assignments?sort=since", "/failures", "/nodes", "/pools", "/namespaces/ns-77")


@pytest.mark.timeout(240)
def test_no_page_grows_with_the_cluster(
    make_api: Callable[..., Api], objects: Objects, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    objects.pool("prod", "10.0.0.0/16")
    for number in range(MANY):
        address = f"10.0.{number // 250}.{number % 250 + 1}"
        objects.claim(address, namespace=f"ns-{number}")
        if number % 50 == 0:
            failed = {"type": "Ready", "status": "False", "reason": "NetlinkFailed", "message": "no such device"}
            failed["lastTransitionTime"] = "2026-11-24T05:00:00Z"
            objects.status(address, phase="Failed", node="node1", conditions=[failed])
    ledger.publish({7: Steering(7, "ns-7")}, expected=ledger.change_number(), epoch="e1")
    for number in range(NODES):
        name, ip = f"node{number}", f"10.1.{number // 250}.{number % 250 + 1}"
        ledger.beat(name, ip, 1.0)
        ledger.report(NodeReport(name, time.time(), "e1", 0, f"{ip}/16", "eth0"))
    api = make_api(HAWSE_ANONYMOUS="true").start()
    api.until(lambda: f"{MANY} assignments" in api.get("/assignments").body.decode())
    figures = []
    for path in PAGES:
        times = []
        for each in range(ROUNDS):
            if each % 4 == 0:  # what is shown was kept: it is made anew
                objects.status("10.0.0.1", phase="Ready", node=f"node{each}", conditions=[])
            began = time.monotonic()
            answer = api.get(path)
            times.append(time.monotonic() - began)
            assert answer.status == 200
            assert len(answer.body) < MOST_BYTES
        figures.append(f"{path} {sorted(times)[int(ROUNDS * 0.95)] * 1000:.0f} ms, {len(answer.body) / 1000:.0f} kB")
    assert f"and {NODES - 5} more" in api.get("/").body.decode()
    with capsys.disabled():
        print(f"\n   {MANY} assignments, {NODES} nodes; p95 and size: " + "; ".join(figures))
