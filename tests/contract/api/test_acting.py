"""Many retries at once, of objects that have changed since they were read."""

from __future__ import annotations

import threading

import pytest

from egress.actions import Trouble
from egress.adapters.cluster import Cluster
from egress.adapters.ledger import Ledger
from egress.operations import PermanentError
from lab.apiserver.process import EmbeddedCluster
from tests.contract.api.conftest import Objects
from webhook.api.acting import Acting
from webhook.api.mirrors import Mirrors
from webhook.api.reading import Reading

NAMES = ("one", "two", "three")


@pytest.fixture
def acting(cluster: EmbeddedCluster, objects: Objects, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Acting:
    """Which has read three failed tickets, and reads no more."""
    objects.pool("prod", "192.168.1.0/24")
    ticket = {"profile": "desk", "serial": 1, "failed": "assigned", "failure": "422 no such field"}
    for number, name in enumerate(NAMES, 5):
        objects.namespace(name)
        objects.claim(f"192.168.1.{number}", namespace=name)
        objects.status(f"192.168.1.{number}", phase="Ready", ticket=ticket)
    client = Cluster(str(cluster.kubeconfig))
    mirrors, stop = Mirrors.of(client), threading.Event()
    mirrors.start(stop)
    assert mirrors.wait(20)
    reading = Reading(mirrors, ledger, lambda: "")
    assert len(reading.all_claims()) == 3
    seen = mirrors.claims.snapshot()
    monkeypatch.setattr(mirrors.claims, "snapshot", lambda: seen)
    stop.set()
    return Acting(client, ledger, reading, lambda *_: None, "hawse-system")


def test_what_is_gone_keeps_no_other_waiting(acting: Acting, objects: Objects, ledger: Ledger) -> None:
    objects.kube.delete("EgressAddress", "192.168.1.5")
    made = acting.retry_all("ana", NAMES, "the field is there now")
    assert made.done == ("two", "three")
    assert made.left == 0
    assert list(made.refused) == ["one"]
    assert "assigned to nobody" in made.refused["one"]
    for number in (6, 7):
        assert "failed" not in objects.get(f"192.168.1.{number}")["status"]["ticket"]
    outcomes = {entry.subject: entry.outcome for entry in ledger.audit().items}
    assert outcomes == {"one": made.refused["one"], "two": "done", "three": "done"}


def test_what_is_away_leaves_the_rest(acting: Acting, cluster: EmbeddedCluster) -> None:
    cluster.__exit__(None, None, None)
    made = acting.retry_all("ana", NAMES, "is it back?")
    assert (made.done, made.refused, made.left) == ((), {}, 3)
    assert made.problem


def test_a_run_is_kept_with_whose_it_is(acting: Acting, ledger: Ledger) -> None:
    run = ledger.run(acting.start_retry("ana", Trouble.TICKET, "TicketFailed", NAMES, "once more"))
    assert run is not None
    assert (run.who, run.namespaces, run.trouble) == ("ana", NAMES, Trouble.TICKET)
    with pytest.raises(PermanentError, match="are enough"):
        acting.start_retry("ana", Trouble.TICKET, "TicketFailed", NAMES, "x" * 2000)
