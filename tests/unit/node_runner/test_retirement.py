"""The rules of an address outlive its flow, of which the kernel may have cached what is over."""

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from egress.addresses import Address, preferred_mark
from egress.program import Layout
from egress.table import Steering, SteeringHop
from lab.fakes.node import FakeNode, fake_node
from node_runner.drivers.errors import IptablesFailed, LinkFailed, NetlinkFailed, NodeError
from node_runner.drivers.ports import ProbeTiming
from node_runner.programmer import Programmer, Refusal, Result
from node_runner.retirement import RETIRE_SECONDS, Retirement

Row = Callable[..., dict[int, Steering]]
A, B = IPv4Address("192.168.1.102"), IPv4Address("192.168.1.103")
AWAY = {"node": "node1", "node_ip": IPv4Address("192.168.1.17")}


class Clock:
    """Seconds that a test lets go by."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(lab: Any) -> Clock:
    """The clock of the lab's runner, to which its node is new."""
    clock = Clock()
    restart(lab, clock)
    return clock


def restart(lab: Any, clock: Clock) -> None:
    """Another runner: it remembers nothing."""
    lab.programmer = Programmer("node2", lab.node, Layout(), ProbeTiming(), Retirement(clock=clock))


@pytest.mark.parametrize("partial", [False, True])
def test_the_rules_go_when_no_packet_can_have_the_mark_any_more(
    lab: Any, row: Row, clock: Clock, partial: bool
) -> None:
    lab.run(row())
    lab.run(row(None), untouched=partial)
    assert lab.order == ["flows", "addresses", "forget"]
    assert (lab.flow(), lab.addresses, lab.snat) == ("drop", set(), True)
    clock.now += RETIRE_SECONDS - 0.1
    assert not lab.run(row(None)).wrote
    assert (lab.order, lab.snat) == ([], True)
    clock.now += 0.1
    assert not lab.run(row(None)).wrote, "nobody has touched the node: that would be counted as drift"
    assert lab.order == ["forget", "rules"], "packets that came late may have begun connections"
    assert not lab.fake.nat.read().own
    assert not lab.run(row(None)).wrote
    assert lab.order == []


def test_whoever_sends_meanwhile_keeps_the_rules_of_all(lab: Any, row: Row, clock: Clock) -> None:
    """Passes over a part of the table leave those of the others alone."""
    other = row(str(B), netid=7)
    lab.run({**row(), **other})
    lab.run({**row(None), **other}, untouched=True)
    lab.run({**row(None), **row(None, netid=7)}, untouched=True)
    lab.run({**row(None), **other}, untouched=True)
    assert (lab.flow(), lab.addresses) == ("drop", {str(B)})
    assert lab.fake.nat.read().marks.keys() == {A, B}
    clock.now += RETIRE_SECONDS
    lab.run({**row(None), **other})
    assert lab.fake.nat.read().marks.keys() == {B}


@pytest.mark.parametrize("partial", [False, True])
def test_an_address_that_comes_back_finds_its_rules(lab: Any, row: Row, clock: Clock, partial: bool) -> None:
    lab.run(row())
    lab.run(row(None))
    clock.now += RETIRE_SECONDS / 2
    lab.run(row(), untouched=partial)
    assert "rules" not in lab.order
    assert lab.addresses == {str(A)}
    clock.now += RETIRE_SECONDS
    assert not lab.run(row()).wrote
    lab.run(row(None))
    clock.now += RETIRE_SECONDS - 0.1
    lab.run(row(None))
    assert lab.snat, "its time has begun anew"


def test_a_runner_without_memory_counts_from_its_first_pass(lab: Any, row: Row, clock: Clock) -> None:
    lab.run(row())
    lab.run(row(None))
    clock.now += RETIRE_SECONDS - 0.1
    restart(lab, clock)
    lab.run(row(None), fresh=True)
    clock.now += RETIRE_SECONDS - 0.1
    lab.run(row(None))
    assert lab.snat
    clock.now += 0.1
    lab.run(row(None))
    assert not lab.fake.nat.read().own


def test_it_counts_from_the_pass_whose_flows_were_written(
    lab: Any, row: Row, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from one that had to leave them as they were."""
    lab.run(row())

    def fail(*_: object, **__: object) -> None:
        raise IptablesFailed("no")

    with monkeypatch.context() as broken:
        broken.setattr(lab.fake.flows, "apply", fail)
        with pytest.raises(IptablesFailed):
            lab.run(row(**AWAY))
    clock.now += RETIRE_SECONDS
    lab.run(row(**AWAY))
    assert (lab.flow(), lab.snat) == ("drop", True)
    clock.now += RETIRE_SECONDS
    lab.run(row(**AWAY))
    assert not lab.snat


def test_rules_that_somebody_adds_go_at_once_and_are_counted(lab: Any, row: Row, clock: Clock) -> None:
    lab.run(row())
    planted = f"-s 10.128.0.0/14 -m mark --mark {int(B):#x} -j SNAT --to-source {B}"
    lab.fake.nat.put("nat", "HAWSE-SNAT", planted)
    assert lab.run(row()).wrote
    assert lab.fake.nat.read().marks.keys() == {A}


def test_what_is_refused_keeps_its_rules_as_long(lab: Any, row: Row, clock: Clock) -> None:
    """It had a flow until a moment ago, whoever has its address now."""
    lab.run(row())
    lab.fake.links.take_away(A)
    lab.fake.arp.neighbours[A] = "aa:bb"
    refused = lab.run(row()).refused
    assert (lab.flow(), lab.addresses, lab.snat) == ("drop", set(), True)
    clock.now += RETIRE_SECONDS
    lab.run(row(), resting=refused)
    assert (lab.flow(), lab.snat) == ("drop", False)


def test_an_inspection_finds_no_fault_in_them(lab: Any, row: Row, clock: Clock) -> None:
    lab.run(row())
    lab.run(row(None))
    assert lab.programmer.inspect(row(None), "", asks=None, resting=())[0] == []
    clock.now += RETIRE_SECONDS
    lab.run(row(None))
    assert lab.programmer.inspect(row(None), "", asks=None, resting=())[0] == []


def test_an_address_whose_flow_came_and_went_again_counts_from_then(
    lab: Any, row: Row, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each retry gives it a flow and takes it away, for the interface does not take the address."""
    real = lab.fake.links.apply

    def refuse(add: frozenset[Any], remove: frozenset[Any]) -> Any:
        return real(frozenset(), remove) | {address: NetlinkFailed("no buffers", 105) for address in add}

    monkeypatch.setattr(lab.fake.links, "apply", refuse)
    for _ in range(5):
        assert lab.run(row()).refused
        assert (lab.flow(), lab.snat) == ("drop", True)
        clock.now += RETIRE_SECONDS / 2
    lab.run(row(None))
    assert lab.snat
    clock.now += RETIRE_SECONDS
    lab.run(row(None))
    assert not lab.snat


@pytest.mark.parametrize(("part", "error"), [("nat", IptablesFailed), ("links", LinkFailed)])
def test_a_pass_that_fails_forgets_none_of_the_flows_that_it_wrote(
    lab: Any, row: Row, clock: Clock, monkeypatch: pytest.MonkeyPatch, part: str, error: type[NodeError]
) -> None:
    """A comes back in a pass that cannot take the rules of another away, or not put it on the interface, and goes."""
    other, left = row(str(B), netid=7), row(None, netid=7)
    lab.run({**row(), **other})
    lab.run({**row(None), **left})
    clock.now += RETIRE_SECONDS

    def fail(*_: object, **__: object) -> None:
        raise error("no")

    with monkeypatch.context() as broken:
        broken.setattr(getattr(lab.fake, part), "apply", fail)
        with pytest.raises(error):
            lab.run({**row(), **left})
    lab.run({**row(None), **left})
    assert lab.flow() == "drop"
    assert A in lab.fake.nat.read().marks


def test_a_flow_that_somebody_puts_back_counts(lab: Any, row: Row, clock: Clock) -> None:
    """As Open vSwitch's restart does, with the flows that were saved."""
    lab.run(row())
    (saved,) = lab.fake.flows.read().flows
    lab.run(row(None))
    clock.now += RETIRE_SECONDS
    lab.fake.flows.put(saved)
    lab.run(row(None))
    assert (lab.flow(), lab.snat) == ("drop", True)


def test_another_namespace_gets_the_address_without_the_connections_of_the_first(
    lab: Any, row: Row, clock: Clock
) -> None:
    lab.run({**row(), **row(None, netid=7)})
    lab.run({**row(None), **row(None, netid=7)})
    lab.fake.conntrack.connections[A] = 1  # of a packet that came late
    lab.run({**row(None), **row(netid=7)})
    assert lab.addresses == {str(A)}
    assert not lab.fake.conntrack.connections[A]


def test_where_the_chain_is_gone_that_leads_to_them_the_rules_go_at_once(lab: Any, row: Row, clock: Clock) -> None:
    """Nothing reaches them, and to write the jump would fail in every pass."""
    lab.run(row())
    del lab.fake.nat._chains["nat", "OPENSHIFT-MASQUERADE"]
    lab.run(row(None))
    assert not lab.fake.nat.read().own
    restart(lab, clock)
    assert not lab.run(row(None), fresh=True).wrote


SIX, SIX_TOO = IPv6Address("2001:db8::102"), IPv6Address("2001:db8::103")
SAME_MARK = IPv4Address("128.168.65.102")
DUAL = Layout(cluster_networks=(IPv4Network("10.128.0.0/14"), IPv6Network("fd01::/48")))


@dataclass
class Dual:
    """A node in a wide subnet, with IPv6."""

    clock: Clock = field(default_factory=Clock)
    fake: FakeNode = field(default_factory=lambda: fake_node(prefix_length=0, other_ips=["2001:db8::18/64"]))
    fresh: bool = True

    def __post_init__(self) -> None:
        self.restart(DUAL)

    def restart(self, layout: Layout) -> None:
        self.programmer = Programmer("node2", self.fake.node, layout, ProbeTiming(), Retirement(clock=self.clock))
        self.fresh = True

    def run(self, *addresses: Address, resting: tuple[Address, ...] = ()) -> Result:
        """A pass with the first of `addresses` for NetID 1, and so on."""
        table = {
            netid: Steering(netid, f"ns{netid}", (SteeringHop(address, "node2", IPv4Address("192.168.1.18"), True),))
            for netid, address in enumerate(addresses, 1)
        }
        refused = {address: Refusal("Ip6tablesFailed", "") for address in resting}
        result = self.programmer.run(table, resting=refused, fresh=self.fresh)
        self.fresh = False
        return result

    @property
    def marks(self) -> dict[Address, int]:
        return dict(self.fake.nat.read(six=True).marks)


def test_a_mark_is_given_to_nobody_else_meanwhile() -> None:
    node = Dual()
    assert preferred_mark(A) == preferred_mark(SAME_MARK)
    node.run(A)
    mark = node.marks[A]
    node.run(SAME_MARK)
    assert node.marks.keys() == {A, SAME_MARK}
    assert (node.marks[A], node.marks[SAME_MARK] == mark) == (mark, False)


@pytest.mark.parametrize("fails", ["read", "written"])
def test_where_ip6tables_fails_for_a_pass_no_rule_goes_early(fails: str) -> None:
    """All flows of IPv6 are drops then, and for a while the kernel may know the old ones."""
    node = Dual()
    node.run(SIX)
    node.fake.nat.six_cannot_be = {fails}
    assert node.run(SIX, SIX_TOO).refused.keys() == {SIX, SIX_TOO}
    node.fake.nat.six_cannot_be.clear()
    node.clock.now += 1
    node.run(SIX, SIX_TOO, resting=(SIX, SIX_TOO))
    assert node.marks.keys() == {SIX}
    node.clock.now += RETIRE_SECONDS - 0.5
    node.run(SIX, SIX_TOO, resting=(SIX, SIX_TOO))
    assert not node.marks


def test_a_first_pass_that_cannot_read_ip6tables_knows_nothing_of_ipv6() -> None:
    node = Dual()
    node.run(SIX)
    node.restart(DUAL)
    node.fake.nat.six_cannot_be = {"read"}
    node.run(SIX)
    node.fake.nat.six_cannot_be.clear()
    node.run(SIX, resting=(SIX,))
    assert node.marks.keys() == {SIX}


def test_rules_for_pods_without_a_network_go_at_once() -> None:
    """The setting has lost the IPv6 network: there is no rule to translate with."""
    node = Dual()
    node.run(A, SIX)
    node.restart(Layout())
    assert node.run(A, SIX).refused.keys() == {SIX}
    assert node.marks.keys() == {A}
