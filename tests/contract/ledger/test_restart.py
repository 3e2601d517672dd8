"""A Redis that comes back from its disk may know less than those who used it: what it held before is made anew."""

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from egress.adapters.ledger import Holding, Ledger, NotReadyError, Offer, Reserved
from egress.addresses import parse_range
from egress.table import NodeReport, Steering
from lab.net.broker import Broker

RANGE = [parse_range("192.168.1.102-192.168.1.105")]
A, B = ip_address("192.168.1.102"), ip_address("192.168.1.103")


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path, port=0, persistent=True) as server:
        yield server


@pytest.fixture
def durable_ledger(durable: Broker) -> Iterator[Ledger]:
    ledger = Ledger(durable.unix_url)
    yield ledger
    ledger.close()


def test_the_table_of_an_earlier_run_counts_as_none(durable: Broker, durable_ledger: Ledger) -> None:
    ledger = durable_ledger
    assert ledger.publish({5: Steering(5, "five"), 6: Steering(6, "six")}, expected=0, epoch="e1") == 2
    durable.restart()
    assert ledger.change_number() == 2
    for reader in (("", 0), ("e1", 2), ("e1", 3)):
        assert ledger.read_table(*reader).epoch == ""
    assert ledger.publish({5: None}, expected=2) is None
    assert ledger.publish({7: Steering(7, "seven")}, expected=2, epoch="e2") == 3
    assert set(ledger.read_table("e1", 3).rows) == {7}
    assert ledger.publish({8: Steering(8, "eight")}, expected=3) == 4


def test_the_index_of_an_earlier_run_is_not_ready(durable: Broker, durable_ledger: Ledger) -> None:
    ledger = durable_ledger
    ledger.set_offer(Offer())
    ledger.sync([Holding(A, "ns/a")], ledger.now(), ready=True)
    assert ledger.is_ready()
    assert ledger.holders([A, B]) == {A: "ns/a"}
    durable.restart()
    assert not ledger.is_ready()
    for ask in (lambda: ledger.reserve("ns/b", 1, RANGE), ledger.offer, lambda: ledger.holders([A])):
        with pytest.raises(NotReadyError):
            ask()
    ledger.sync([Holding(B, "ns/b")], ledger.now(), ready=False)
    assert not ledger.is_ready()
    ledger.sync([Holding(B, "ns/b")], ledger.now(), ready=True)
    assert ledger.offer() == Offer()
    assert ledger.reserve("ns/c", 1, RANGE) == Reserved((A,))


def test_a_report_of_an_earlier_run_counts_as_none(durable: Broker, durable_ledger: Ledger) -> None:
    ledger = durable_ledger
    report = NodeReport("node2", 1.0, "e1", 3, "192.168.1.18/24", "eth0")
    ledger.report(report)
    assert ledger.reports(["node2"]) == {"node2": report}
    durable.restart()
    assert ledger.reports(["node2"]) == {}
    ledger.report(report)
    assert ledger.reports(["node2"]) == {"node2": report}
