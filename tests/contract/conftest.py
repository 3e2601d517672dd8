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
