"""Ten thousand assignments and three hundred nodes: how large the pages are, how fast they come, and what two hundred
people cost that look at one while it changes (printed)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import aiohttp
import msgspec
import pytest

from egress.actions import AuditEntry, Verb
from egress.adapters.ledger import Ledger
from egress.diagnosis import Inspection, Piece, Trace
from egress.operations import Outcome, Step, StepRecord
from egress.table import NodeReport, Steering
from lab.net.broker import Broker
from tests.contract.api.conftest import Api, Objects
from tests.contract.api.test_events import cpu_seconds

MANY, NODES, ROUNDS = 10_000, 300, 40
MOST_BYTES = 500_000
PAGES = (
    "/", "/assignments", "/assignments?sort=since", "/failures", "/nodes", "/pools", "/audit", "/namespaces/ns-77",
    "/namespaces/ns-7/path",
)  # fmt: skip
WATCHERS, WATCHED_SECONDS = 200, 8.0
REST_SECONDS = 1.0
"""Between two updates of one page: hawse.js' REST."""


@pytest.mark.timeout(240)
def test_no_page_grows_with_the_cluster(
    make_api: Callable[..., Api], objects: Objects, ledger: Ledger, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    objects.pool("prod", "10.0.0.0/16")
    for number in range(MANY):
        address = f"10.0.{number // 250}.{number % 250 + 1}"
        objects.claim(address, namespace=f"ns-{number}")
        if number % 50 == 0:
            failed = {"type": "Ready", "status": "False", "reason": "NetlinkFailed", "message": "no such device"}
            failed["lastTransitionTime"] = "2026-11-24T05:00:00Z"
            objects.status(address, phase="Failed", node="node1", conditions=[failed])
    for number in range(100):  # as much as a history holds, of a namespace that has failed all the time
        step = StepRecord("ns-77", Step.WORK, Outcome.RETRY, time.time(), number, message="x" * 2000)
        ledger.record(replace(step, traceback='  File "workers/tasks.py", line 1\n' * 220))
        entry = AuditEntry("", time.time(), "ana", Verb.RETRY, f"ns-{number}", "why " * 250, "it failed " * 100)
        ledger.record_action(entry)
    ledger.publish({7: Steering(7, "ns-7")}, expected=ledger.change_number(), epoch="e1")
    for number in range(NODES):
        name, ip = f"node{number}", f"10.1.{number // 250}.{number % 250 + 1}"
        ledger.beat(name, ip, 1.0)
        ledger.report(NodeReport(name, time.time(), "e1", 0, f"{ip}/16", "eth0"))
    api = make_api(HAWSE_ANONYMOUS="true", HAWSE_API_ACTIONS_PER_MINUTE="1000").start()
    api.until(lambda: f"{MANY} assignments" in api.get("/assignments").body.decode())
    nodes_answer = threading.Thread(target=answer_for_nodes, args=(broker.unix_url, done := threading.Event()))
    nodes_answer.start()
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
    done.set()
    nodes_answer.join()
    assert f"and {NODES - 5} more" in api.get("/").body.decode()
    with capsys.disabled():
        print(f"\n   {MANY} assignments, {NODES} nodes; p95 and size: " + "; ".join(figures))
    used, changes, updates = asyncio.run(look_on(api, objects))
    with capsys.disabled():
        print(f"   {WATCHERS} pages watched, {changes} changes, {updates} updates: {used:.2f} cores")


def answer_for_nodes(url: str, done: threading.Event) -> None:
    """What the runners do when they are asked: each says, again and again, what it does with the packets of ns-7."""
    actions = "move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.1.0.1->tun_dst,output:1"
    flow = f"table=100,priority=100,ip,reg0=0x7 actions={actions}"
    trace = Trace(7, hosts=False, pieces=(Piece("flow", flow, flow, 123456, 1234567890),))
    with closing(Ledger(url)) as ledger:
        while not done.wait(0.1):
            now = ledger.now()
            answers = ledger._redis.pipeline(transaction=False)  # three hundred machines, of which this is one
            for node in (f"node{number}" for number in range(NODES)):
                said = Inspection(node, now, "e1", 1, traces=(trace,))
                answers.set(f"hawse:inspection:{node}:ns-7", msgspec.json.encode(said), ex=60)
            answers.execute()


async def look_on(api: Api, objects: Objects) -> tuple[float, int, int]:
    """Cores that the server uses while WATCHERS look at the assignments and something changes twice a second; how often
    something changed, and how often a page was brought up to date."""
    base, updates, changes = f"http://127.0.0.1:{api.port}", 0, 0

    async def watch(session: aiohttp.ClientSession) -> None:
        nonlocal updates
        async with session.get(f"{base}/api/v1/events") as stream:
            assert stream.status == 200
            async for line in stream.content:
                if line.startswith(b"event: change"):
                    async with session.get(f"{base}/assignments") as page:
                        assert page.status == 200
                        await page.read()
                    updates += 1
                    await asyncio.sleep(REST_SECONDS)

    connector, timeout = aiohttp.TCPConnector(limit=2 * WATCHERS), aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        watching = [asyncio.create_task(watch(session)) for _ in range(WATCHERS)]
        while updates < WATCHERS:
            await asyncio.sleep(0.1)
        assert api.process is not None
        before, began, updates = cpu_seconds(api.process.pid), time.monotonic(), 0
        while time.monotonic() - began < WATCHED_SECONDS:
            changes += 1
            status = {"phase": "Ready", "node": f"node{changes}", "conditions": []}
            await asyncio.to_thread(objects.status, "10.0.0.1", **status)
            await asyncio.sleep(0.5)
        used = (cpu_seconds(api.process.pid) - before) / (time.monotonic() - began)
        for task in watching:
            task.cancel()
        ended = await asyncio.gather(*watching, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended[:1]
    return used, changes, updates
