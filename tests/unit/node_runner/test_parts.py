"""Passes over what has changed bring a node to just what passes over everything do, whatever the sequence of tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import example, given, settings
from hypothesis import strategies as st

from egress.addresses import Address
from egress.delta import RuleChange
from egress.program import Layout
from egress.table import Steering, SteeringHop
from lab.fakes.node import FakeNode, fake_node
from node_runner.drivers.errors import NodeError
from node_runner.drivers.ports import FlowsFound, ProbeTiming
from node_runner.programmer import Programmer, Result
from node_runner.retirement import Retirement

NODES: dict[str, Address] = {name: IPv4Address(f"192.168.1.{17 + at}") for at, name in enumerate(["one", "two", "six"])}
ME = "one"
# Neighbours in a chain, some far away, and two whose marks collide: the third octet of one has kube-proxy's bit.
ADDRESSES = [
    IPv4Address(text)
    for text in ("192.168.1.102", "192.168.1.103", "192.168.1.118", "192.168.2.102", "192.168.65.102", "128.168.1.102")
]
SIX = [
    IPv6Address(text)
    for text in ("2001:db8::102", "2001:db8::103", "2001:db8::6667:2", "2001:db8:1::102", "2001:db8::1:102", "fd00::1")
]
TAKEN = IPv4Address("192.168.1.240")
ODD = st.lists(
    st.builds(
        lambda address, node, acknowledged: SteeringHop(address, node, NODES[node], acknowledged),
        st.sampled_from([*ADDRESSES, *ADDRESSES, TAKEN, *SIX]),
        st.sampled_from([ME, ME, *NODES]),
        st.booleans(),
    ),
    max_size=3,
    unique_by=lambda hop: hop.address,
)
ROWS = st.sampled_from([ME, ME, ME, "two", "six", "nobody", "gone", "pair", "pair", "apart"]) | ODD
"""The node that has the NetID's own address; both of its own addresses, on one node or on two; or anything, such as an
address that another NetID has as well."""
LAYOUTS = [Layout(), Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv6Network("fd01::/48")))]
CHANGES = st.lists(st.dictionaries(st.integers(1, 6), ROWS, min_size=1, max_size=3), min_size=2, max_size=12)


def changed(table: dict[int, Steering], netid: int, how: str | list[SteeringHop]) -> None:
    """Changes a row of `table`, or takes it away."""
    if how == "gone":
        table.pop(netid, None)
        return
    hops = how
    if isinstance(how, str):
        four, six = {"pair": (ME, ME), "apart": ("two", ME)}.get(how, (how, ""))
        own = ((ADDRESSES[netid - 1], four), (SIX[netid - 1], six))
        hops = [SteeringHop(address, node, NODES[node], acknowledged=True) for address, node in own if node in NODES]
    table[netid] = Steering(netid, f"ns{netid}", tuple(hops))


@dataclass
class Side:
    """A node whose passes are told, or not, that nobody has touched it."""

    partial: bool
    layout: Layout = LAYOUTS[0]
    now: float = 0
    fake: FakeNode = field(
        default_factory=lambda: fake_node(
            str(NODES[ME]),
            prefix_length=1,
            other_ips=["2001:db8::17/32"],
            neighbours={TAKEN: "aa:bb:cc:00:00:01"},
        )
    )
    fresh: bool = True
    reads: int = 0

    def __post_init__(self) -> None:
        self.programmer = Programmer(ME, self.fake.node, self.layout, ProbeTiming(), Retirement(1, lambda: self.now))
        real = self.fake.flows.read

        def counted(*, everywhere: bool = False) -> FlowsFound:
            self.reads += 1
            return real(everywhere=everywhere)

        self.fake.flows.read = counted  # type: ignore[method-assign]
        write = self.fake.nat.apply

        def sound(change: RuleChange) -> None:
            """What iptables refuses would be put right by a pass over everything, and not be seen here."""
            try:
                write(change)
            except NodeError as error:
                raise AssertionError(str(change)) from error

        self.fake.nat.apply = sound  # type: ignore[method-assign]

    def run(self, table: dict[int, Steering], changed: set[int] | None) -> tuple[Result, bool]:
        """A pass, and whether it wrote."""
        self.fake.conntrack.connections = Counter([*ADDRESSES, *SIX])
        before = self.fake.writes
        result = self.programmer.run(table, resting={}, fresh=self.fresh, untouched=self.partial, changed=changed)
        self.fresh = False
        return result, self.fake.writes > before

    def holds(self) -> tuple[object, ...]:
        """All that is on the node, and which connections were left alone. Rules of addresses may stand in any order."""
        rules = self.fake.nat.read()
        own = {chain: sorted(specs) for chain, specs in rules.own.items()}
        connections = dict(self.fake.conntrack.connections)
        return self.fake.flows.text(), own, rules.parents, self.fake.links.text(), connections


def told(result: Result) -> tuple[object, ...]:
    """What a pass says of the node."""
    return result.claims, result.taken, dict(result.refused), result.link


LAST_OF_AN_IP_VERSION: list[dict[int, str | list[SteeringHop]]] = [
    {1: "pair", 2: ME},
    {1: ME},
    {2: "pair"},
    {2: "gone"},
]


@settings(max_examples=120, deadline=None)
@given(changes=CHANGES, tells=st.booleans(), layout=st.sampled_from(LAYOUTS))
@example(changes=LAST_OF_AN_IP_VERSION, tells=True, layout=LAYOUTS[1])
def test_the_node_is_the_same_either_way(
    changes: list[dict[int, str | list[SteeringHop]]], tells: bool, layout: Layout
) -> None:
    whole, partial = (Side(partial=partial, layout=layout) for partial in (False, True))
    table: dict[int, Steering] = {}
    for change in changes:
        for netid, how in change.items():
            changed(table, netid, how)
        (expected, wrote), (result, also_wrote) = (
            whole.run(table, None),
            partial.run(table, set(change) if tells else None),
        )
        assert partial.holds() == whole.holds()
        assert told(result) == told(expected)
        assert (result.wrote, also_wrote) == (expected.wrote, wrote)
    result, wrote = partial.run(table, set())
    assert (result.wrote, wrote) == (False, False)
    # By and by the rules go of what was released, which a pass over a part leaves to the next look at everything.
    partial.partial = False
    for side in (whole, partial):
        side.now = 1
        side.run(table, None)
    assert partial.holds() == whole.holds()
    assert set(partial.fake.nat.read().marks) == partial.fake.links.read()


def test_of_a_large_table_only_what_changed_is_looked_at() -> None:
    """Ten thousand rows, of which twelve are this node's: no read of the node, and the pass meets only the changed."""
    node = Side(partial=True)
    hop = SteeringHop(ADDRESSES[0], "two", NODES["two"], acknowledged=True)
    table = {netid: Steering(netid, f"ns{netid}", (hop,)) for netid in range(1, 10_001)}
    mine = [IPv4Address(f"192.168.3.{last}") for last in range(1, 13)]
    for netid, address in enumerate(mine, start=1):
        table[netid] = Steering(netid, f"ns{netid}", (SteeringHop(address, ME, NODES[ME], acknowledged=True),))
    node.run(table, None)
    node.reads = 0

    class Untold(dict[int, Steering]):
        def values(self) -> None:  # type: ignore[override]
            raise AssertionError("the whole table was looked at")

        items = __iter__ = values  # type: ignore[assignment]

    away = replace(hop, node="six", node_ip=NODES["six"])
    for netid in (20, 1):  # another node's, and its own
        table[netid] = replace(table[netid], hops=(away,))
        node.run(Untold(table), {netid})
        assert f"{netid:#x} actions=move" in node.fake.flows.text()
    assert node.reads == 0
    assert node.fake.links.read() == set(mine[1:])
