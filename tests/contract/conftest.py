"""A real Valkey server, and a ledger on it that each test finds empty."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from egress.adapters.ledger import Ledger
from lab.net.broker import Broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(Path(tmp_path_factory.mktemp("broker")), port=0) as server:
        yield server


@pytest.fixture
def ledger(broker: Broker) -> Iterator[Ledger]:
    ledger = Ledger(broker.unix_url)
    ledger._redis.flushall()
    yield ledger
    ledger.close()


def later(ledger: Ledger, seconds: float) -> None:
    """As if all heartbeats were so much longer ago: nobody waits, and no stall makes anybody silent."""
    for node in ledger._redis.zrange("hawse:beats", 0, -1):
        ledger._redis.zincrby("hawse:beats", -seconds, node)
    if ledger._redis.exists("hawse:beats-since"):
        ledger._redis.incrbyfloat("hawse:beats-since", -seconds)
