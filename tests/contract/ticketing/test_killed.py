"""A thousand assignments and a thousand releases, told by processes that are killed at random."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from egress.adapters import manifests
from egress.adapters.cluster import Kind
from egress.messages import TICKETS_QUEUE, TICKETS_TASK
from egress.objects import EgressAddress, Event
from lab.accounts import Accounts
from lab.apiserver.process import EmbeddedCluster
from lab.net import guarded
from lab.net.broker import Broker
from lab.tickets import Fault, Jira, Receiver, ServiceNow
from tests.contract.ticketing.conftest import Desk
from workers.tasks import sender

COUNTS = {"fw": 1000, "snow": 60, "jira": 40}
PROCESSES = 2
BETWEEN_KILLS = (120, 280)
"""How many requests come between one kill and the next: more than five kills in two thousand."""
SCRIPT = Path(sys.executable).parent / "hawse-tickets"
pytestmark = pytest.mark.timeout(600)


class Crew:
    """Processes of `hawse-tickets`, of which one is killed now and then, and begins again.

    It is time to by what was done, `progress`, and not by the clock: a fast machine would be done before anybody died.
    """

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.kills = 0
        self.progress: Callable[[], int] = lambda: 0
        self._directory = directory
        self._environment = environment
        self._stop = threading.Event()
        self._crew = [self._start(number) for number in range(PROCESSES)]
        self._thread = threading.Thread(target=self._go_on)

    def __enter__(self) -> Crew:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for process in self._crew:
            process.kill()

    def _start(self, number: int) -> guarded.Guarded:
        return guarded.start([str(SCRIPT)], self._directory / f"tickets-{number}.log", env=self._environment)

    def _go_on(self) -> None:
        dice = random.Random(5)
        due = dice.randint(*BETWEEN_KILLS)
        while not self._stop.wait(0.02):
            if self.progress() < due:
                continue
            due = self.progress() + dice.randint(*BETWEEN_KILLS)
            number = dice.randrange(PROCESSES)
            self._crew[number].kill()
            self.kills += 1
            self._crew[number] = self._start(number)


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    return Accounts(tmp_path / "cluster")


@pytest.fixture
def cluster(tmp_path: Path, accounts: Accounts) -> Iterator[EmbeddedCluster]:
    del accounts  # known before it starts
    with EmbeddedCluster(tmp_path / "cluster", history=1000) as running:
        yield running


@pytest.fixture
def crew(cluster: EmbeddedCluster, accounts: Accounts, broker: Broker, desk: Desk, tmp_path: Path) -> Crew:
    kubeconfigs = accounts.kubeconfigs(cluster.kubeconfig, tmp_path)
    return Crew(
        tmp_path,
        {
            "HAWSE_REDIS_URL": broker.unix_url,
            "HAWSE_KUBECONFIG": str(kubeconfigs["tickets"]),
            "HAWSE_TICKET_PROFILES": desk.context.settings.ticket_profiles,
            "HAWSE_HEALTH_PORT": "0",
        },
    )


def address(profile: str, number: int) -> str:
    return f"10.{list(COUNTS).index(profile)}.{number // 256}.{number % 256}"


def many(work: Callable[[str, int], None]) -> None:
    """Does `work` for each claim of each profile."""
    with ThreadPoolExecutor(8) as threads:
        jobs = [(profile, number) for profile, count in COUNTS.items() for number in range(count)]
        list(threads.map(lambda job: work(*job), jobs))


def claims(desk: Desk) -> list[EgressAddress]:
    return [manifests.egress_address(item) for item in desk.context.cluster.list(Kind.EGRESS_ADDRESS).items]


def until_told(desk: Desk, broker: Broker, event: Event) -> None:
    """Asks for runs, as the reconcile does, until `event` is told of every claim."""
    send, deadline = sender(broker.unix_url), time.monotonic() + 250
    while True:
        missing = [claim for claim in claims(desk) if claim.ticket is None or claim.ticket.told is not event]
        if not missing:
            return
        assert time.monotonic() < deadline, f"{len(missing)} are not {event}: {missing[:2]}"
        for profile in COUNTS:
            send(TICKETS_TASK, [profile], TICKETS_QUEUE, 0.0)
        time.sleep(1.0)


def test_none_is_doubled_and_none_is_missing(desk: Desk, broker: Broker, crew: Crew) -> None:
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        snow = stack.enter_context(ServiceNow())
        jira = stack.enter_context(Jira())
        quick = {"timeout": 10, "settle": 5, "release": "own"}
        token = desk.secret("token", "t0ken")
        desk.write(
            desk.webhook(receiver.url, timeout=10),
            {"name": "snow", "type": "servicenow", "url": snow.url, "tokenFile": token, **quick},
            {"name": "jira", "type": "jira", "url": jira.url, "tokenFile": token, "project": "FW", **quick},
        )
        for profile in COUNTS:
            desk.pool(profile, profile)
        many(lambda profile, number: desk.claim(address(profile, number), f"ns-{number}", pool=profile))
        for system in (receiver, snow, jira):  # beside those that are killed: fewer than would open the breaker
            system.misbehave(Fault.FILED_AND_DOWN, times=3)
        crew.progress = lambda: len(receiver.requests)
        stack.enter_context(crew)
        until_told(desk, broker, Event.ASSIGNED)
        assert Counter(kinds(receiver)) == {"assigned": COUNTS["fw"]}
        assert len(snow.records) == COUNTS["snow"]
        assert len(jira.issues) == COUNTS["jira"]
        many(lambda profile, number: desk.release(address(profile, number)))
        until_told(desk, broker, Event.RELEASED)
        assert crew.kills > 5
        assert len(receiver.requests) > len(receiver.tickets), "nothing was told twice, so nothing was seen"
    assert Counter(kinds(receiver)) == {"assigned": COUNTS["fw"], "released": COUNTS["fw"]}
    assert len({(ticket["type"], ticket["data"]["address"]) for ticket in receiver.tickets}) == 2 * COUNTS["fw"]
    assert len(snow.records) == 2 * COUNTS["snow"]
    assert len({record["correlation_id"] for record in snow.records}) == 2 * COUNTS["snow"]
    assert len(jira.issues) == 2 * COUNTS["jira"]
    labels = Counter(label for issue in jira.issues for label in issue["fields"]["labels"])
    assert set(labels.values()) <= {1, 2 * COUNTS["jira"]}, labels


def kinds(receiver: Receiver) -> list[Any]:
    return [ticket["type"].split(".")[-2] for ticket in receiver.tickets]
