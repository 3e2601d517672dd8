"""Redis comes back from its disk without its last second (DESIGN.md §4, §11)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from egress.messages import PUBLISH_TASK, SWEEP_TASK
from lab.net.broker import Broker

A, B, C = "192.168.1.102", "192.168.1.103", "192.168.1.104"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker", port=0, persistent=True) as server:
        yield server


def test_what_nodes_and_objects_saw_in_the_lost_second_is_not_lost(world: Any, broker: Broker) -> None:
    world.pool("prod", f"{A}-192.168.1.150")
    world.node("node2", "192.168.1.18")
    world.node("node3", "192.168.1.19")
    world.namespace("first")
    world.reconcile()
    world.acknowledge()
    (log,) = (broker.directory / "appendonlydir").glob("*.incr.aof")
    saved = log.stat().st_size

    world.namespace("second")
    world.reconcile()
    world.acknowledge()
    seen = world.ledger.read_table()
    held = world.ledger.reports(["node2", "node3"])
    broker.kill()
    with log.open("r+b") as file:
        file.truncate(saved)
    broker.start()

    assert world.ledger.change_number() < seen.change
    assert world.ledger.read_table(seen.epoch, seen.change).epoch == ""  # the nodes stand still
    for report in held.values():
        world.ledger.report(replace(report, epoch="", applied=0))
    world.tasks.clear()
    world.run(SWEEP_TASK)
    world.run(PUBLISH_TASK)
    world.settle()
    again = world.ledger.read_table(seen.epoch, seen.change)
    assert again.whole
    assert again.epoch != seen.epoch
    hops = {str(hop.address): hop.acknowledged for row in again.rows.values() for hop in row.hops}
    assert hops == {A: True, B: True}
    assert world.usage() == {A: ("claimed", "ns/first"), B: ("claimed", "ns/second")}
    world.namespace("third")
    world.reconcile()
    assert world.annotation("third") == C
