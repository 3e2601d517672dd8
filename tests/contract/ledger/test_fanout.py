"""What one change costs many nodes: one nudge each, and of the table only what changed."""

import base64
import json
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from celery import Celery
from kombu import Connection

from egress.adapters.ledger import Ledger
from egress.adapters.ledger.table import MOST_NUDGES
from egress.listing import Listed
from egress.messages import NUDGE_TASK, node_config, node_queue, sending_config
from egress.table import Claim, NodeReport, Steering, SteeringHop
from lab.net.broker import Broker

NODES = [f"node{number}" for number in range(50)]
A = IPv4Address("192.168.1.102")


def waiting(ledger: Ledger, node: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in ledger._redis.lrange(f"hawse-broker:{node_queue(node)}", 0, -1)]


def shape(value: object) -> object:
    """Which keys there are, and of what types, and what does not differ from message to message."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return value if value in (NUDGE_TASK, 2, 0, "", "60000", "base64", "py", "node.node1", None) else type(value)


def test_a_nudge_is_what_celery_would_have_sent(ledger: Ledger, broker: Broker) -> None:
    ledger.nudge(["node1"])
    (ours,) = waiting(ledger, "node1")
    ledger._redis.flushall()
    app = Celery(set_as_current=False)
    app.conf.update(sending_config(broker.unix_url))
    app.send_task(NUDGE_TASK, args=[], queue=node_queue("node1"), expires=60, retry=False)
    (theirs,) = waiting(ledger, "node1")
    assert shape(ours) == shape(theirs)
    assert json.loads(base64.b64decode(ours["body"])) == json.loads(base64.b64decode(theirs["body"]))


def test_kombu_takes_a_nudge_from_its_own_nodes_queue(ledger: Ledger, broker: Broker) -> None:
    ledger.nudge(NODES)
    config = node_config(broker.unix_url, "node7")
    with Connection(config["broker_url"], transport_options=config["broker_transport_options"]) as connection:
        message = connection.SimpleQueue(node_queue("node7")).get(timeout=5)
        assert message.headers["task"] == NUDGE_TASK
        assert message.payload[:2] == [[], {}]
        message.reject(requeue=True)
        connection.SimpleQueue(node_queue("node7")).get(timeout=5).ack()
    assert [len(waiting(ledger, node)) for node in NODES] == [int(node != "node7") for node in NODES]


def test_a_node_that_has_a_nudge_gets_no_other_and_one_that_is_away_not_many(ledger: Ledger) -> None:
    assert ledger.nudge(NODES) == len(NODES)
    assert ledger.nudge(NODES) == 0
    for _ in range(MOST_NUDGES + 3):
        ledger.done_with(f"{NUDGE_TASK}:{node_queue('node3')}")
        ledger.nudge(NODES)
    assert [len(waiting(ledger, node)) for node in NODES if node != "node3"] == [1] * (len(NODES) - 1)
    assert len(waiting(ledger, "node3")) == MOST_NUDGES
    assert ledger.nudge([]) == 0


def traffic(ledger: Ledger, work: Callable[[], object]) -> tuple[int, dict[str, int]]:
    """The bytes that Redis sends for `work`, and how often it carries out which command."""

    def state() -> tuple[int, dict[str, int]]:
        calls = {name[8:]: stats["calls"] for name, stats in ledger._redis.info("commandstats").items()}
        return ledger._redis.info("stats")["total_net_output_bytes"], calls

    def sent(act: Callable[[], object]) -> tuple[int, dict[str, int], dict[str, int]]:
        before, calls = state()
        act()
        after, more = state()
        return after - before, calls, more

    state()
    work()  # from now on it makes no command known that was not
    idle = min(sent(lambda: None)[0] for _ in range(3))  # what asking itself sends
    size, calls, more = min((sent(work) for _ in range(3)), key=lambda taken: taken[0])
    return size - idle, {
        name: number - calls.get(name, 0)
        for name, number in more.items()
        if number > calls.get(name, 0) and name != "info"
    }


def row(number: int) -> Steering:
    hop = SteeringHop(IPv4Address("10.0.0.0") + number, "node1", A, acknowledged=True, since=1)
    return Steering(1000 + number, f"namespace-{number:05}", (hop,))


@pytest.mark.parametrize("size", [10, 5000])
def test_a_runner_reads_what_changed_and_nothing_else(ledger: Ledger, size: int) -> None:
    table = {each.netid: each for each in map(row, range(size))}
    assert ledger.publish(table, expected=0, epoch="e") == size
    read = ledger.read_table()
    assert read.rows == table
    changed = replace(row(7), operation="another")
    ledger.publish({changed.netid: changed}, expected=size)
    told = ledger._redis.hget("hawse:table", str(changed.netid))

    size_of_answer, commands = traffic(ledger, lambda: ledger.read_table(read.epoch, read.change))
    assert ledger.read_table(read.epoch, read.change).rows == {changed.netid: changed}
    assert len(told) < size_of_answer < len(told) + 120  # epoch, change, NetID, and how they are framed
    assert commands == {"evalsha": 1, "exists": 1, "get": 3, "zrangebyscore": 1, "hget": 1}

    size_of_answer, commands = traffic(ledger, lambda: ledger.read_table(read.epoch, size + 1))
    assert size_of_answer < 60
    assert "hget" not in commands


def test_a_report_that_says_the_same_looks_the_same(ledger: Ledger) -> None:
    said = NodeReport("n1", 1.0, "e", 3, "10.0.0.1/24", "eth0", (Claim(A, 5, held=True),))
    ledger.report(said)
    before = ledger.looks(["n1", "n2"])
    assert before["n1"]
    assert not before["n2"]
    ledger.report(replace(said, at=9.0, applied=4, repairs=2))
    assert ledger.looks(["n1", "n2"]) == before
    assert (ledger.applied(["n1", "n2"], "e"), ledger.applied(["n1"], "f")) == ({"n1": 4}, {})
    for other in (
        replace(said, claims=(Claim(A, 6, held=True),)),
        replace(said, claims=(Claim(A, 5, held=False, reason="InUse"),)),
        replace(said, problem="no bridge"),
        replace(said, carrier=False),
        replace(said, link="10.0.0.1/16"),
    ):
        ledger.report(other)
        assert ledger.looks(["n1"])["n1"] not in ("", before["n1"])
    assert ledger.looks([]) == ledger.applied([], "e") == {}


def test_a_report_of_a_version_that_knows_one_link_alone_is_read(ledger: Ledger) -> None:
    old = b'{"at":1.0,"epoch":"e","applied":3,"link":"10.0.0.1/24","interface":"","claims":[],"repairs":0,"problem":""}'
    ledger._report(args=["n1", old])
    report = ledger.reports(["n1"])["n1"]
    assert (report.link, report.other_links) == ("10.0.0.1/24", ())


def test_a_report_of_a_version_that_says_no_look_is_another_each_time(ledger: Ledger) -> None:
    old = '{"at":1.0,"epoch":"e","applied":3,"link":"","interface":"","claims":[],"repairs":0,"problem":""}'
    ledger._report(args=["n1", old])
    first = ledger.looks(["n1"])["n1"]
    assert ledger.reports(["n1"])["n1"].applied == ledger.applied(["n1"], "e")["n1"] == 3
    time.sleep(1.1)
    ledger._report(args=["n1", old])
    assert ledger.looks(["n1"])["n1"] not in ("", first)


def test_what_lists_an_address_is_noted_alone(ledger: Ledger) -> None:
    other = IPv4Address("192.168.1.103")
    ledger.set_listed({A: Listed(("node1",)), other: Listed((), ("app",))})
    ledger.note_listed({A: Listed(("node2",), ("app",))})
    assert ledger.listed([A, other]) == {A: Listed(("node2",), ("app",)), other: Listed((), ("app",))}
    ledger.note_listed({other: Listed()})
    assert ledger.listed([A, other]) == {A: Listed(("node2",), ("app",))}


def test_the_versions_that_somebody_has_seen_never_fall(ledger: Ledger) -> None:
    assert ledger.seen_versions() == {}
    ledger.saw_versions({"netnamespace": 10, "hostsubnet": 7})
    ledger.saw_versions({"netnamespace": 9, "hostsubnet": 8})
    assert ledger.seen_versions() == {"netnamespace": 10, "hostsubnet": 8}
    ledger.forget_version("netnamespace")
    assert ledger.seen_versions() == {"hostsubnet": 8}
