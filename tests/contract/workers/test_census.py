"""What the workers count, as Prometheus reads it."""

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from egress.messages import PUBLISH_TASK
from lab.net.broker import Broker
from workers.census import CensusCollector

A, B = "192.168.1.102", "192.168.1.103"


def shown(world: Any) -> list[str]:
    registry = CollectorRegistry()
    registry.register(CensusCollector(world.ledger))
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def counted(world: Any) -> list[str]:
    world.ledger.done_with("census")
    world.reconcile()
    return shown(world)


def test_nothing_counted_is_nothing_shown(world: Any) -> None:
    assert shown(world) == []


def test_assignments_addresses_pools_and_conflicts(world: Any) -> None:
    world.pool("prod", f"{A}-192.168.1.111", excluded=["192.168.1.111"])
    world.node("node2", "192.168.1.104")  # within the pool, and not to be given
    for name in ("a", "b"):
        world.namespace(name)
    world.reconcile()
    world.acknowledge()
    lines = counted(world)
    assert 'hawse_assignments{phase="Ready"} 2.0' in lines
    assert 'hawse_reservations{state="claimed"} 2.0' in lines
    assert 'hawse_pool_addresses{pool="prod",state="free"} 6.0' in lines
    assert 'hawse_pool_addresses{pool="prod",state="allocated"} 2.0' in lines
    assert "hawse_conflicts 0.0" in lines

    world.delete("b")
    world.reconcile()
    world.net_namespace("by-hand", 4242, A)
    lines = counted(world)
    assert 'hawse_assignments{phase="Quarantined"} 1.0' in lines
    assert 'hawse_pool_addresses{pool="prod",state="quarantined"} 1.0' in lines
    assert 'hawse_reservations{state="quarantined"} 1.0' in lines
    assert "hawse_conflicts 1.0" in lines


def test_publishing_does_not_wait_for_a_census(world: Any) -> None:
    world.run(PUBLISH_TASK)  # nobody has built the index yet
    assert world.failures == []
    assert shown(world) == []


def test_without_redis_a_scrape_shows_the_rest(world: Any, broker: Broker) -> None:
    broker.kill()
    try:
        assert shown(world) == []
    finally:
        broker.start()


def test_a_census_of_another_version_is_as_none(world: Any) -> None:
    world.ledger._redis.set("hawse:census", '{"assignments":{}}')
    assert list(CensusCollector(world.ledger).collect()) == []
