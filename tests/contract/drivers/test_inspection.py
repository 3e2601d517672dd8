"""What an inspection finds on a node, fake and real: each fault that is planted, by its name, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from egress.delta import FlowChange, RuleChange
from egress.diagnosis import FaultKind
from egress.program import Flow, Layout
from egress.table import Steering, SteeringHop
from node_runner.drivers.ports import ProbeTiming
from node_runner.programmer import Programmer

from .conftest import NEIGHBOUR_MAC, NODE, NODE_IP, OTHER_IP, Rig, eventually, run

OURS, THEIRS = IPv4Address("192.168.1.102"), IPv4Address("192.168.1.103")
TABLE = {
    0x10: Steering(0x10, "shop", (SteeringHop(OURS, NODE, NODE_IP, acknowledged=True),)),
    0x20: Steering(0x20, "bank", (SteeringHop(THEIRS, "node3", OTHER_IP, acknowledged=True),)),
}
MASQUERADE = "-s 10.128.0.0/14 -j MASQUERADE"


class Bench:
    """A node that is as it should be."""

    def __init__(self, rig: Rig, request: pytest.FixtureRequest) -> None:
        self.rig = rig
        self.request = request
        self.programmer = Programmer(NODE, rig.node, Layout(), ProbeTiming(1, 0.05, 0.1))
        self.programmer.run(TABLE, resting={}, fresh=True)

    def flow(self, netid: int) -> Flow:
        match = f"ip,reg0={netid:#x}"
        return next(flow for flow in self.rig.node.flows.read().flows if flow.match == match)

    def put(self, flow: Flow, old: str, new: str) -> None:
        assert old in flow.actions
        changed = Flow(flow.table, flow.priority, flow.match, flow.cookie, flow.actions.replace(old, new))
        self.rig.node.flows.apply(FlowChange(add=(changed,)))

    def foreign(self, flow: str, as_flow: Flow) -> None:
        if self.rig.fake is not None:
            self.rig.fake.flows.put(as_flow)
        else:
            run("ovs-ofctl", "-O", "OpenFlow13", "add-flow", "br0", flow)

    def rules(self, table: str, line: str) -> None:
        self.rig.node.nat.apply(RuleChange({table: f"*{table}\n{line}\nCOMMIT\n"}))

    def named(self, namespace: str = "", asks: IPv4Address | None = None) -> list[tuple[FaultKind, str]]:
        faults, _ = self.programmer.inspect(TABLE, namespace, asks=asks, resting=())
        assert all(fault.node == NODE for fault in faults)
        return [(fault.kind, fault.namespace) for fault in faults]


@pytest.fixture
def bench(rig: Rig, request: pytest.FixtureRequest) -> Bench:
    made = Bench(rig, request)
    assert made.named() == []
    return made


def missing_flow(bench: Bench) -> tuple[FaultKind, str]:
    bench.rig.node.flows.apply(FlowChange(remove=(bench.flow(0x20),)))
    return FaultKind.FLOW_MISSING, "bank"


def wrong_tunnel(bench: Bench) -> tuple[FaultKind, str]:
    bench.put(bench.flow(0x20), str(OTHER_IP), "192.168.1.99")
    return FaultKind.TUNNEL_WRONG, "bank"


def wrong_mark(bench: Bench) -> tuple[FaultKind, str]:
    flow = bench.flow(0x10)
    mark = flow.actions.split("->pkt_mark")[0].rpartition(":")[2]
    bench.put(flow, f"set_field:{mark}->pkt_mark", "set_field:0x7f->pkt_mark")
    return FaultKind.MARK_WRONG, "shop"


def flow_that_drops(bench: Bench) -> tuple[FaultKind, str]:
    flow = bench.flow(0x10)
    bench.put(flow, flow.actions, "drop")
    return FaultKind.FLOW_WRONG, "shop"


def flow_of_nobody(bench: Bench) -> tuple[FaultKind, str]:
    flow = bench.flow(0x20)
    cookie = flow.cookie - 0x20 + 0x30
    bench.rig.node.flows.apply(FlowChange(add=(Flow(100, 100, "ip,reg0=0x30", cookie, "drop"),)))
    return FaultKind.FLOW_STALE, ""


def flow_above_ours(bench: Bench) -> tuple[FaultKind, str]:
    bench.foreign("table=100,priority=200,ip,reg0=0x10 actions=drop", Flow(100, 200, "ip,reg0=0x10", 0, "drop"))
    return FaultKind.FLOW_SHADOWED, "shop"


def flow_above_all(bench: Bench) -> tuple[FaultKind, str]:
    bench.foreign("table=100,priority=200,ip actions=drop", Flow(100, 200, "ip", 0, "drop"))
    return FaultKind.FLOW_SHADOWED, ""


def missing_snat(bench: Bench) -> tuple[FaultKind, str]:
    (spec,) = bench.rig.node.nat.read().own["nat", "HAWSE-SNAT"]
    bench.rules("nat", f"-D HAWSE-SNAT {spec}")
    return FaultKind.SNAT_MISSING, "shop"


def missing_guard(bench: Bench) -> tuple[FaultKind, str]:
    spec = bench.rig.node.nat.read().own["filter", "HAWSE-GUARD-SNAT"][0]
    bench.rules("filter", f"-D HAWSE-GUARD-SNAT {spec}")
    return FaultKind.RULE_MISSING, "shop"


def missing_jump(bench: Bench) -> tuple[FaultKind, str]:
    bench.rules("nat", "-D OPENSHIFT-MASQUERADE -j HAWSE-EGRESS")
    return FaultKind.JUMP_MISSING, ""


def rule_above_ours(bench: Bench) -> tuple[FaultKind, str]:
    bench.rules("nat", f"-I OPENSHIFT-MASQUERADE 1 {MASQUERADE}")
    return FaultKind.RULE_SHADOWED, ""


def rule_above_the_clusters(bench: Bench) -> tuple[FaultKind, str]:
    bench.rules("nat", f"-I POSTROUTING 1 {MASQUERADE}")
    return FaultKind.RULE_SHADOWED, ""


def rule_within_ours(bench: Bench) -> tuple[FaultKind, str]:
    bench.rules("nat", f"-I HAWSE-SNAT 1 {MASQUERADE}")
    return FaultKind.RULE_SHADOWED, ""


def stale_address(bench: Bench) -> tuple[FaultKind, str]:
    assert not bench.rig.node.links.apply(frozenset({THEIRS}), frozenset())
    return FaultKind.ADDRESS_STALE, "bank"


def stale_address_by_hand(bench: Bench) -> tuple[FaultKind, str]:
    if bench.rig.fake is not None:
        bench.rig.fake.links.foreign.add(THEIRS)
    else:
        run("ip", "address", "add", f"{THEIRS}/24", "dev", bench.rig.interface)
    return FaultKind.ADDRESS_STALE, "bank"


def missing_address(bench: Bench) -> tuple[FaultKind, str]:
    assert not bench.rig.node.links.apply(frozenset(), frozenset({OURS}))
    return FaultKind.ADDRESS_MISSING, "shop"


FAULTS: list[Callable[[Bench], tuple[FaultKind, str]]] = [
    missing_flow, wrong_tunnel, wrong_mark, flow_that_drops, flow_of_nobody, flow_above_ours, flow_above_all,
    missing_snat, missing_guard, missing_jump, rule_above_ours, rule_above_the_clusters, rule_within_ours,
    stale_address, stale_address_by_hand, missing_address,
]  # fmt: skip


def test_each_fault_is_named_and_nothing_else(rig: Rig, request: pytest.FixtureRequest) -> None:
    """One after the other on one node, which a pass mends between them, but for what is not its own."""
    bench = Bench(rig, request)
    assert bench.named() == []
    lasting: list[tuple[FaultKind, str]] = []
    for plant in FAULTS:
        name = plant.__name__
        fault = plant(bench)
        found = bench.named()
        for known in lasting:
            found.remove(known)
        assert found == [fault], name
        for namespace in ("shop", "bank"):
            concerned = fault[1] in ("", namespace)
            assert (fault in bench.named(namespace)) == concerned, name
        bench.programmer.run(TABLE, resting={})
        lasting = bench.named()
        assert set(lasting) <= {
            (FaultKind.FLOW_SHADOWED, "shop"), (FaultKind.FLOW_SHADOWED, ""), (FaultKind.RULE_SHADOWED, ""),
            (FaultKind.ADDRESS_STALE, "bank"),
        }, name  # fmt: skip


def test_another_host_that_answers_for_an_address_is_named(bench: Bench) -> None:
    if bench.rig.fake is not None:
        bench.rig.fake.arp.neighbours[OURS] = NEIGHBOUR_MAC
    else:
        netns = bench.request.getfixturevalue("netns")
        with netns.beyond[0]:
            run("ip", "address", "add", f"{OURS}/24", "dev", "eth0")
        eventually(lambda: "state UP" in run("ip", "link", "show", bench.rig.interface))
    faults, _ = bench.programmer.inspect(TABLE, "", asks=NODE_IP, resting=())
    assert [fault.kind for fault in faults] == [FaultKind.ADDRESS_FOREIGN]
    assert NEIGHBOUR_MAC in faults[0].message


def test_the_trace_says_what_should_be_and_what_is(bench: Bench) -> None:
    _, (trace,) = bench.programmer.inspect(TABLE, "shop", asks=None, resting=())
    assert (trace.netid, trace.hosts) == (0x10, True)
    assert all(piece.wanted == piece.found for piece in trace.pieces)
    assert (trace.pieces[0].what, trace.pieces[-1].what) == ("flow", "address")
    assert (trace.pieces[0].packets, trace.pieces[0].bytes) == (0, 0)
    assert any("--to-source 192.168.1.102" in piece.wanted for piece in trace.pieces)
    bench.rig.node.flows.apply(FlowChange(remove=(bench.flow(0x20),)))
    _, (trace,) = bench.programmer.inspect(TABLE, "bank", asks=None, resting=())
    assert (trace.hosts, trace.pieces[0].found, trace.pieces[0].packets) == (False, "", None)


def test_it_writes_nothing(bench: Bench) -> None:
    before = bench.rig.foreign_text()
    for namespace in ("", "shop", "nobody"):
        bench.programmer.inspect(TABLE, namespace, asks=NODE_IP, resting=())
    assert bench.rig.foreign_text() == before
