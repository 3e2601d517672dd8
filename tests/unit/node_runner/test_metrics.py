"""What a runner counts: sums that only grow, whatever becomes of the flows, and verdicts that mean what they say."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from egress.program import COOKIE, Flow
from egress.table import Claim, NodeReport
from lab.fakes.node import fake_node
from node_runner import metrics
from node_runner.drivers.ports import FlowCount, Path
from node_runner.metrics import Passes, Tally, TrafficCollector

NAMES = {1: "app", 2: "shop"}


def out(packets: int, path: Path = Path.OUT) -> FlowCount:
    return FlowCount(path, packets, packets * 100)


def begun(**counts: FlowCount) -> Tally:
    """A tally that has had its first look."""
    tally = Tally()
    tally.add({(int(netid.removeprefix("n")), 4): count for netid, count in counts.items()}, {})
    return tally


def packets(tally: Tally, name: str = "app", path: Path = Path.OUT) -> int:
    return tally.totals[name, path].packets


def test_a_flow_that_grows_is_counted_once() -> None:
    tally = begun()
    tally.add({(1, 4): out(5)}, NAMES)
    tally.add({(1, 4): out(12)}, NAMES)
    assert packets(tally) == 12
    assert tally.totals["app", Path.OUT].bytes == 1200


def test_both_ip_versions_are_of_one_namespace_whatever_becomes_of_each() -> None:
    tally = begun()
    tally.add({(1, 4): out(5), (1, 6): out(7)}, NAMES)
    tally.add({(1, 4): out(6), (1, 6): out(9, Path.DROPPED)}, NAMES)
    assert (packets(tally), packets(tally, path=Path.DROPPED)) == (13, 2)


def test_a_flow_that_begins_anew_adds_to_the_sum() -> None:
    tally = begun()
    for count in (5, 2, 40):
        tally.add({(1, 4): out(count)}, NAMES)
    assert packets(tally) == 5 + 40


def test_a_flow_that_replaces_another_goes_on_with_its_counts() -> None:
    tally = begun()
    tally.add({(1, 4): out(5, Path.DROPPED)}, NAMES)
    tally.add({(1, 4): out(9, Path.STEERED)}, NAMES)
    assert (packets(tally, path=Path.DROPPED), packets(tally, path=Path.STEERED)) == (5, 4)


def test_what_a_flow_counted_before_this_process_is_not_counted_again() -> None:
    tally = begun(n1=out(1000))
    tally.add({(1, 4): out(1003), (2, 4): out(7)}, NAMES)
    assert (packets(tally), packets(tally, "shop")) == (3, 7)


def test_a_namespace_that_is_gone_is_forgotten_and_its_netid_may_be_anothers() -> None:
    tally = begun()
    tally.add({(1, 4): out(5)}, NAMES)
    tally.add({}, {2: "shop"})
    assert not tally.totals
    tally.add({(1, 4): out(9)}, {1: "other"})
    assert packets(tally, "other") == 9
    tally.add({(3, 4): out(9)}, NAMES)  # no row says whose it is yet
    assert len(tally.totals) == 0
    tally.add({(3, 4): out(10)}, {3: "late"})
    assert packets(tally, "late") == 10


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["on", "replaced", "anew"])), min_size=1))
def test_sums_never_shrink_and_never_exceed_what_passed(turns: list[tuple[int, str]]) -> None:
    tally, count, path, passed, anew = begun(), 0, Path.OUT, 0, False
    before: dict[Any, int] = {}
    for more, what in turns:
        if what == "replaced":
            path = Path.STEERED if path is Path.OUT else Path.OUT
        if what == "anew":
            count, anew = 0, True
        count += more
        passed += more
        tally.add({(1, 4): FlowCount(path, count, count * 100)}, NAMES)
        after = {key: total.packets for key, total in tally.totals.items()}
        assert all(after[key] >= value for key, value in before.items())
        assert sum(after.values()) <= passed
        assert anew or sum(after.values()) == passed
        before = after


def test_counts_are_read_when_they_are_asked_for_and_never_before() -> None:
    fake = fake_node()
    for netid in NAMES:
        fake.flows.put(Flow(100, 100, f"ip,reg0={netid:#x}", COOKIE | netid, "drop"))
    looks: list[int] = []

    def counts() -> Any:
        looks.append(1)
        return fake.flows.counts()

    registry = CollectorRegistry()
    registry.register(TrafficCollector(counts, lambda: NAMES))
    assert len(looks) == 1
    text = generate_latest(registry).decode()
    assert len(looks) == 2
    assert 'hawse_namespace_packets_total{namespace="app",path="dropped"} 0.0' in text
    assert 'hawse_namespace_bytes_total{namespace="shop",path="dropped"} 0.0' in text
    fake.flows.present = False
    assert "hawse_namespace" not in generate_latest(registry).decode()


def test_ready_is_a_pass_without_a_problem_and_a_table_once_seen() -> None:
    passes = Passes()
    assert passes.ready() == "no pass is done yet"
    passes.observe(NodeReport("n", 1.0), 0.1)
    assert passes.ready() == "the node has not seen a table yet"
    passes.observe(NodeReport("n", 1.0, "e", 3), 0.1)
    assert passes.ready() is None
    passes.observe(NodeReport("n", 1.0), 0.1)  # Redis is away
    assert passes.ready() is None
    passes.observe(NodeReport("n", 1.0, "e", problem="BridgeMissing: there is no br0"), 0.1)
    assert passes.ready() == "BridgeMissing: there is no br0"
    assert passes.alive() is None


def test_a_pass_is_measured() -> None:
    passes = Passes()
    repairs = metrics.drift_repairs._value.get()
    claims = tuple(Claim(address, 1, held) for address, held in (("a", True), ("b", False), ("c", True)))  # type: ignore[arg-type]
    passes.observe(NodeReport("n", 1.0, "e", 3, claims=claims, repairs=2), 0.1)
    passes.observe(NodeReport("n", 1.0, "e", 7, claims=claims, repairs=2, problem="ChainMissing: no"), 0.1)
    text = generate_latest().decode()
    assert metrics.drift_repairs._value.get() == repairs + 2
    assert "hawse_node_applied_change 7.0" in text
    assert "hawse_node_addresses 2.0" in text
    assert "hawse_node_refused_addresses 1.0" in text
    assert 'hawse_node_problem{reason="ChainMissing"} 1.0' in text
    passes.observe(NodeReport("n", 1.0, "e", 7, repairs=2), 0.1)
    assert "hawse_node_problem{" not in generate_latest().decode()


def test_a_loop_that_is_stuck_is_not_alive(monkeypatch: Any) -> None:
    monkeypatch.setattr(metrics, "STUCK_SECONDS", -1.0)
    assert "silent" in str(Passes().alive())
