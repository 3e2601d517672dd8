"""One pass over one node: the order of what it does, and that nothing ever leaves with the node's own IP."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from threading import Event
from typing import Any

import pytest
import structlog

from egress.addresses import Address
from egress.delta import FlowChange
from egress.program import Flow
from egress.table import Claim, Steering
from node_runner.drivers.errors import (
    AddressIsPrimary,
    BridgeMissing,
    InterfaceMissing,
    IptablesFailed,
    LinkFailed,
    NetlinkFailed,
    NodeError,
    OpenVSwitchRefused,
    PortMissing,
)
from node_runner.programmer import FACTS_PASSES, Refusal, unacknowledged

Row = Callable[..., dict[int, Steering]]
NETID = 0x1094C2
NODE1 = IPv4Address("192.168.1.17")
A = IPv4Address("192.168.1.102")
B = IPv4Address("192.168.1.103")
OWN = "set_field:0a:58:c0:a8:01:12->eth_dst,set_field:0xc0a80166->pkt_mark,goto_table:101"
FOREIGN_FLOW = Flow(100, 100, f"ip,reg0={NETID:#x}", 0, "goto_table:101")


def failing(error: NodeError) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def added(arguments: tuple[FlowChange]) -> list[str]:
    return [flow.actions for flow in arguments[0].add]


def test_an_address_is_taken_in_the_order_that_never_fails_open(lab: Any, row: Row) -> None:
    result = lab.run(row())
    assert lab.order.index("probe") < 3  # by a thread of its own, while the flow becomes a drop and rules are written
    writes = [call for call in lab.calls if call[0] != "probe"]
    assert [name for name, _ in writes] == ["flows", "rules", "flows", "addresses"]
    assert added(writes[0][1]) == ["drop"]
    assert added(writes[2][1]) == [OWN]
    assert writes[3][1] == (frozenset({A}), frozenset())
    assert result.claims == (Claim(A, NETID, held=True),)
    assert (result.taken, result.refused) == (frozenset({A}), {})
    assert (lab.flow(), lab.addresses, lab.snat) == (OWN, {str(A)}, True)


def seen_by_a_slow_probe(lab: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, str, set[str], bool]]:
    """From now on the link answers when rules have been written, or half a minute later. What was on the node then:
    whether they have been, the flow, the addresses, whether there are rules."""
    written, ask, write = Event(), lab.fake.arp.probe, lab.fake.nat.apply
    seen = []

    def apply(step: Any) -> None:
        write(step)
        written.set()

    def probe(*arguments: Any) -> Any:
        seen.append((written.wait(30), lab.flow(), lab.addresses, lab.snat))
        return ask(*arguments)

    monkeypatch.setattr(lab.fake.nat, "apply", apply)
    monkeypatch.setattr(lab.fake.arp, "probe", probe)
    return seen


def test_rules_are_written_while_the_link_is_asked(lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = seen_by_a_slow_probe(lab, monkeypatch)
    assert lab.run(row()).claims == (Claim(A, NETID, held=True),)
    assert seen == [(True, "drop", set(), True)], "rules, and nothing that leads to them"
    assert lab.order.count("rules") == 1


def test_rules_of_what_another_has_go_and_are_not_written_ahead_again(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(row(None))
    lab.fake.arp.neighbours[A] = "aa:bb:cc:dd:ee:ff"
    assert lab.run(row()).refused.keys() == {A}
    assert (lab.order.count("rules"), lab.snat, lab.flow()) == (2, False, "drop")
    beside = {**row(), **row(str(B), netid=7)}
    assert lab.run(beside, resting={A: Refusal("AddressInUse", "a moment ago")}).taken == {B}
    for _ in range(2):
        assert lab.run(beside).refused.keys() == {A}
        assert lab.order == ["probe"]
    lab.run(row(None))
    del lab.fake.arp.neighbours[A]
    assert lab.run(row()).claims == (Claim(A, NETID, held=True),)
    assert [name for name in lab.order if name != "probe"] == ["rules", "flows", "addresses"]
    lab.run(row(None))
    seen = seen_by_a_slow_probe(lab, monkeypatch)
    assert lab.run(row()).claims == (Claim(A, NETID, held=True),)
    assert seen == [(True, "drop", set(), True)], "nobody had it when it was last asked about"


def test_rules_of_what_is_asked_about_stay_where_the_link_cannot_be_asked(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(row(None))
    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.arp, "probe", failing(LinkFailed("no")))
        for _ in range(3):
            with pytest.raises(LinkFailed):
                lab.run(row())
            assert (lab.flow(), lab.addresses) == ("drop", set())
        assert "rules" not in lab.order, "they do not come and go"
    assert lab.run(row()).claims == (Claim(A, NETID, held=True),)
    assert lab.flow() == OWN
    lab.run(row(None))
    assert not lab.snat


def test_an_address_goes_in_reverse(lab: Any, row: Row) -> None:
    lab.run(row())
    lab.run(row(None))
    assert lab.order == ["flows", "addresses", "forget", "forget", "rules"]
    assert added(lab.calls[0][1]) == ["drop"]
    assert lab.calls[1][1] == (frozenset(), frozenset({A}))
    assert (lab.flow(), lab.addresses, lab.snat) == ("drop", set(), False)


def test_without_a_link_addresses_go_and_what_led_to_them_drops(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {**row(), **row("192.168.1.200", "node1", acknowledged=True, netid=9)}
    lab.run(table)
    lab.calls.clear()
    lab.programmer.let_go()
    assert lab.order == ["addresses", "flows"]
    assert (lab.flow(), lab.addresses, "tun_dst" in lab.flow(9)) == ("drop", set(), True)
    lab.programmer.let_go()
    assert lab.order.count("flows") == 1, "nothing is written twice"
    assert lab.run(table).claims == (Claim(A, NETID, held=True),)
    assert (lab.flow(), lab.addresses) == (OWN, {str(A)})
    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.links, "apply", failing(NetlinkFailed("no")))
        lab.programmer.let_go()
        assert lab.flow() == "drop", "whatever becomes of the address"
    lab.run(table)
    monkeypatch.setattr(lab.fake.flows, "apply", failing(OpenVSwitchRefused("no")))
    lab.programmer.let_go()
    assert lab.addresses == set(), "whatever becomes of the flow"


def test_a_link_that_goes_while_it_is_asked_gives_no_leave(lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(*_: object) -> dict[Address, str]:
        lab.fake.links.carrier = False
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.arp, "probe", probe)
        result = lab.run(row())
    assert (result.taken, result.refused[A].reason) == (frozenset(), "NoCarrier")
    assert (lab.flow(), lab.addresses) == ("drop", set())
    lab.fake.links.carrier = True
    assert lab.run(row()).claims == (Claim(A, NETID, held=True),)


def test_what_is_no_longer_its_own_goes_before_anything_is_asked_for(lab: Any, row: Row) -> None:
    lab.run(row())
    lab.run({**row(None), **row(str(B), netid=7)})
    assert lab.order.index("addresses") < lab.order.index("probe")
    assert lab.addresses == {str(B)}


def test_a_second_pass_writes_nothing(lab: Any, row: Row) -> None:
    table = {**row(), **row("192.168.1.200", "node1", acknowledged=True, netid=9), **row(None, netid=10)}
    lab.run(table, fresh=True)
    writes = lab.fake.writes
    result = lab.run(table)
    assert (lab.order, lab.fake.writes, result.wrote) == ([], writes, False)
    assert lab.run(table, fresh=True).wrote is False


def test_only_acknowledged_addresses_of_other_nodes_are_steered_to(lab: Any, row: Row) -> None:
    node1 = IPv4Address("192.168.1.17")
    lab.run(row("192.168.1.200", "node1", node_ip=node1))
    assert lab.flow() == "drop"
    lab.run(row("192.168.1.200", "node1", node_ip=node1, acknowledged=True))
    assert "set_field:192.168.1.17->tun_dst" in lab.flow()


def _refusals() -> list[Any]:
    return [
        pytest.param("10.0.0.1", "AddressOutsideSubnet", lambda lab: None, id="outside the subnet"),
        pytest.param("192.168.1.18", "AddressIsNodeIP", lambda lab: None, id="the node's own"),
        pytest.param(str(A), "AddressInUse", lambda lab: lab.fake.arp.neighbours.update({A: "aa:bb"}), id="answered"),
        pytest.param(str(A), "AddressForeign", lambda lab: lab.fake.links.foreign.add(A), id="foreign"),
        pytest.param(str(A), "FlowForeign", lambda lab: lab.fake.flows.put(FOREIGN_FLOW), id="foreign flow"),
    ]


@pytest.mark.parametrize(("address", "reason", "prepare"), _refusals())
def test_a_refused_address_leaves_a_drop_and_no_claim(
    lab: Any, row: Row, address: str, reason: str, prepare: Callable[[Any], None]
) -> None:
    prepare(lab)
    foreign = reason == "FlowForeign"
    for _ in range(3):
        result = lab.run(row(address))
        (claim,) = result.claims
        assert (claim.held, claim.reason) == (False, reason)
        assert claim.message
        assert result.taken == frozenset()
        assert lab.flow() == ("goto_table:101" if foreign else "drop")
        assert lab.addresses == set()
    assert not lab.snat
    # Another one, given later, is not held up.
    later = lab.run({**row(address), **row(str(B), netid=7)})
    assert Claim(B, 7, held=True) in later.claims


@pytest.mark.parametrize(("address", "reason", "prepare"), _refusals())
def test_a_refused_address_that_rests_is_not_asked_for(
    lab: Any, row: Row, address: str, reason: str, prepare: Callable[[Any], None]
) -> None:
    prepare(lab)
    refused = lab.run(row(address)).refused
    writes = lab.fake.writes
    result = lab.run(row(address), resting=refused)
    assert (lab.order, lab.fake.writes) == ([], writes)
    assert result.claims[0].reason == reason


def test_the_mac_that_answers_is_named(lab: Any, row: Row) -> None:
    lab.fake.arp.neighbours[A] = "aa:bb:cc:dd:ee:ff"
    assert lab.run(row()).refused == {A: Refusal("AddressInUse", f"aa:bb:cc:dd:ee:ff answers for {A} on eth0")}


def test_a_flow_of_somebody_else_that_appears_later_ends_the_claim(lab: Any, row: Row) -> None:
    lab.run(row())
    lab.fake.flows.put(FOREIGN_FLOW)
    result = lab.run(row())
    assert [(claim.held, claim.reason) for claim in result.claims] == [(False, "FlowForeign")]
    assert lab.addresses == set()


def test_an_address_that_the_kernel_refuses_is_fenced_off(lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lab.fake.links.apply

    def refuse(add: frozenset[Any], remove: frozenset[Any]) -> Any:
        return real(frozenset(), remove) | {address: NetlinkFailed("no buffers", 105) for address in add}

    monkeypatch.setattr(lab.fake.links, "apply", refuse)
    result = lab.run(row())
    assert result.claims == (Claim(A, NETID, held=False, reason="NetlinkFailed", message="no buffers"),)
    assert (lab.flow(), lab.addresses, lab.snat) == ("drop", set(), False)
    assert result.taken == frozenset()


def test_an_address_that_cannot_be_removed_is_reported_and_is_no_drift(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(row())
    real = lab.fake.links.apply

    def refuse(add: frozenset[Any], remove: frozenset[Any]) -> Any:
        return real(add, frozenset()) | {address: AddressIsPrimary("others would go with it") for address in remove}

    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.links, "apply", refuse)
        assert lab.run(row(None)).wrote
        for _ in range(2):
            result = lab.run(row(None))
            kept = Claim(A, 0, held=False, reason="AddressIsPrimary", message="others would go with it")
            assert (result.claims, result.refused, result.wrote) == ((kept,), {}, False)
            assert (lab.flow(), lab.addresses, lab.snat) == ("drop", {str(A)}, False)
        both = lab.run({**row(None), **row(str(B), netid=7)})
        assert both.claims == (kept, Claim(B, 7, held=True))
        assert lab.run(row()).claims[-1] == Claim(A, NETID, held=True), "it may have it again"
        lab.run(row(None))
    assert lab.run(row(None)).claims == ()
    assert lab.addresses == set()


@pytest.mark.parametrize("chain", ["HAWSE-SNAT", "HAWSE-EGRESS", "OPENSHIFT-MASQUERADE"])
def test_when_the_rules_cannot_be_written_flows_that_lack_one_drop(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    lab.run(row())
    lab.fake.nat.flush("nat", chain)
    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.nat, "apply", failing(IptablesFailed("no")))
        for table in (row(), {**row(), **row(str(B), netid=7)}):
            with pytest.raises(IptablesFailed):
                lab.run(table)
            assert lab.flow() == "drop"
            assert lab.flow(7) in ("", "drop")
    assert lab.run(row()).claims == (Claim(A, NETID, held=True),)
    assert lab.flow() == OWN


def test_when_the_rules_of_a_new_address_cannot_be_written_the_others_go_on(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(row())
    monkeypatch.setattr(lab.fake.nat, "apply", failing(IptablesFailed("no")))
    for _ in range(2):
        with pytest.raises(IptablesFailed):
            lab.run({**row(), **row(str(B), netid=7)})
        assert (lab.flow(), lab.flow(7)) == (OWN, "drop")
        assert lab.addresses == {str(A)}


def test_when_the_rules_cannot_even_be_read_our_own_flows_drop(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(row())
    monkeypatch.setattr(lab.fake.nat, "read", failing(IptablesFailed("no")))
    with pytest.raises(IptablesFailed):
        lab.run(row())
    assert lab.flow() == "drop"


def test_a_node_that_cannot_be_programmed_lets_go_what_is_no_longer_its_own(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run({**row(), **row(str(B), netid=7)})
    monkeypatch.setattr(lab.fake.nat, "read", failing(IptablesFailed("no")))
    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.flows, "apply", failing(OpenVSwitchRefused("no")))
        with pytest.raises(IptablesFailed):
            lab.run({**row("192.168.1.102", "node1"), **row(str(B), netid=7)})
        assert lab.addresses == {str(A), str(B)}, "not while a flow may still hand it packets"
    with pytest.raises(IptablesFailed):
        lab.run({**row("192.168.1.102", "node1"), **row(str(B), netid=7)})
    assert lab.order == ["flows", "addresses"]
    assert (lab.flow(), lab.addresses) == ("drop", {str(B)})


@pytest.mark.parametrize(
    ("driver", "method", "error"),
    [
        ("nat", "read", IptablesFailed("no")),
        ("flows", "facts", PortMissing("no")),
        ("links", "facts", InterfaceMissing("no")),
        ("links", "refusals", NetlinkFailed("no")),
        ("links", "sweep", NetlinkFailed("no")),
        ("arp", "probe", LinkFailed("no")),
    ],
)
def test_whatever_cannot_be_read_a_new_row_drops(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch, driver: str, method: str, error: NodeError
) -> None:
    elsewhere = row("192.168.1.200", "node1", acknowledged=True, netid=9)
    standing = row("192.168.1.201", "node1", acknowledged=True, netid=10)
    theirs = Flow(100, 100, "ip,reg0=0xb", 0, "goto_table:101")
    lab.fake.flows.put(theirs)
    lab.run(standing)
    steered = lab.flow(10)
    lab.programmer.forget_facts()
    monkeypatch.setattr(getattr(lab.fake, driver), method, failing(error))
    table = {**row(), **elsewhere, **standing, **row(None, netid=11)}
    with pytest.raises(type(error)):
        lab.run(table, fresh=True)
    assert lab.flow() == "drop"
    assert lab.flow(9) == "drop" if method != "probe" else "tun_dst" in lab.flow(9)
    assert lab.flow(10) == steered
    assert lab.flow(11) == theirs.actions
    writes = lab.fake.writes
    with pytest.raises(type(error)):
        lab.run(table, fresh=True)
    assert lab.fake.writes == writes


def test_a_port_that_is_missing_cuts_nobody_who_has_an_address(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run({**row(), **row(str(B), netid=7)})
    lab.programmer.forget_facts()
    monkeypatch.setattr(lab.fake.flows, "facts", failing(PortMissing("no")))
    with pytest.raises(PortMissing):
        lab.run({**row(), **row(None, netid=7)})
    assert (lab.flow(), lab.flow(7)) == (OWN, "drop"), "what is released drops all the same"


def test_after_a_retreat_no_group_is_left_that_no_flow_points_to(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (row(f"192.168.1.20{n}", f"node{n}", acknowledged=True)[NETID].hops[0] for n in (1, 3))
    lab.run({NETID: Steering(NETID, "app", (one, replace(other, node_ip=IPv4Address("192.168.1.19"))))})
    assert lab.flow().startswith("group:")
    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.nat, "read", failing(IptablesFailed("no")))
        with pytest.raises(IptablesFailed):
            lab.run(row(None))
    assert (lab.flow(), "select" in lab.fake.flows.text()) == ("drop", True)
    lab.run(row(None))
    assert "select" not in lab.fake.flows.text()


def test_connections_are_ended_before_the_rules_that_tell_of_them_go(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(row())
    lab.fake.conntrack.connections[A] = 3
    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.conntrack, "forget", failing(NetlinkFailed("no")))
        with pytest.raises(NetlinkFailed):
            lab.run(row(None))
    assert (lab.flow(), lab.addresses, lab.snat) == ("drop", set(), True)
    lab.run(row(None))
    assert lab.fake.conntrack.connections[A] == 0
    assert not lab.snat


def test_what_the_guard_has_cut_may_begin_anew_and_is_no_drift(lab: Any, row: Row) -> None:
    lab.fake.conntrack.stale = 2
    lab.run(row("192.168.1.200", "node1", acknowledged=True))
    assert lab.fake.conntrack.stale == 2, "a node without addresses has no guard"
    lab.run(row())
    assert lab.fake.conntrack.stale == 0
    lab.fake.conntrack.stale = 2
    assert not lab.run(row()).wrote
    assert lab.fake.conntrack.stale == 0


def test_a_new_address_whose_rule_fails_is_never_handed_packets(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab.fake.nat, "apply", failing(IptablesFailed("no")))
    with pytest.raises(IptablesFailed):
        lab.run(row())
    assert (lab.flow(), lab.addresses) == ("drop", set())


def test_an_interface_that_is_gone_leaves_no_flow_that_counts_on_it(lab: Any, row: Row) -> None:
    lab.run({**row(), **row("192.168.1.200", "node1", acknowledged=True, netid=9)})
    lab.fake.links.present = False
    with pytest.raises(InterfaceMissing):
        lab.run(row())
    assert lab.flow() == "drop"
    assert "tun_dst" in lab.flow(9)
    lab.fake.links.present = True
    lab.run(row())
    assert lab.flow() == OWN


def test_a_probe_that_cannot_be_sent_leaves_a_drop(lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.fake.arp, "probe", failing(LinkFailed("down")))
    with pytest.raises(LinkFailed):
        lab.run(row())
    assert (lab.flow(), lab.addresses) == ("drop", set())


def test_a_missing_bridge_is_said_and_nothing_is_written(lab: Any, row: Row) -> None:
    lab.fake.flows.present = False
    with pytest.raises(BridgeMissing):
        lab.run(row())
    assert [name for name in lab.order if name != "probe"] == []


@pytest.mark.parametrize(
    "touch",
    [
        lambda fake: fake.links.take_away(A),
        lambda fake: fake.flows.wipe(),
        lambda fake: fake.nat.flush("nat", "HAWSE-SNAT"),
        lambda fake: fake.nat.flush("nat", "OPENSHIFT-MASQUERADE"),
    ],
    ids=["address", "flows", "rules", "jump"],
)
def test_whatever_somebody_takes_away_is_put_back(lab: Any, row: Row, touch: Callable[[Any], None]) -> None:
    lab.run(row())
    before = (lab.fake.flows.text(), lab.fake.nat.text(), lab.fake.links.text())
    touch(lab.fake)
    result = lab.run(row())
    assert result.wrote
    assert result.claims == (Claim(A, NETID, held=True),)
    assert (lab.fake.flows.text(), lab.fake.nat.text(), lab.fake.links.text()) == before


def test_an_address_that_changes_hands_ends_the_connections_of_the_first(lab: Any, row: Row) -> None:
    lab.run(row())
    lab.fake.conntrack.connections[A] = 3
    lab.run({**row(None), **row(netid=7)})
    assert lab.fake.conntrack.connections[A] == 0
    assert (lab.flow(), lab.flow(7)) == ("drop", OWN)


def test_holds_writes_nothing_and_finds_what_stands(lab: Any, row: Row) -> None:
    assert lab.programmer.holds()[1] == ()
    lab.run({**row(), **row("192.168.1.200", "node1", acknowledged=True, netid=9)})
    writes = lab.fake.writes
    assert lab.programmer.holds()[1] == (Claim(A, NETID, held=True),)
    lab.fake.links.take_away(A)
    assert lab.programmer.holds()[1] == ()
    assert lab.fake.writes == writes


def test_foreign_flows_rules_and_addresses_are_never_touched(lab: Any, row: Row) -> None:
    other = Flow(100, 0, "ip", 0, "goto_table:101")
    lab.fake.flows.put(other)
    lab.fake.nat.put("nat", "OPENSHIFT-MASQUERADE", "-s 10.128.0.0/14 -j MASQUERADE")
    lab.fake.links.foreign.add(B)
    lab.run(row(), fresh=True)
    lab.run({}, fresh=True)
    assert str(other) in lab.fake.flows.text()
    assert "-s 10.128.0.0/14 -j MASQUERADE" in lab.fake.nat.text()
    assert "HAWSE" not in lab.fake.nat.text()
    assert B in lab.fake.links.foreign


def test_the_workers_are_told_only_what_the_table_does_not_say(row: Row) -> None:
    table = row()
    held = [Claim(A, NETID, held=True)]
    assert unacknowledged(table, "node2", held)
    assert not unacknowledged(table, "node2", [])
    assert not unacknowledged(table, "node1", held)
    acknowledged = {NETID: replace(table[NETID], hops=(replace(table[NETID].hops[0], acknowledged=True),))}
    assert not unacknowledged(acknowledged, "node2", held)
    assert unacknowledged(acknowledged, "node2", [])
    assert unacknowledged(acknowledged, "node2", [Claim(A, 7, held=True)])


def test_an_address_that_somebody_took_away_is_asked_about_without_cutting_its_traffic(lab: Any, row: Row) -> None:
    lab.run(row())
    lab.fake.links.take_away(A)
    lab.run(row())
    assert lab.order == ["probe", "addresses"]
    lab.fake.links.take_away(A)
    lab.fake.arp.neighbours[A] = "aa:bb"
    assert lab.run(row()).claims[0].reason == "AddressInUse"
    assert (lab.flow(), lab.addresses, lab.snat) == ("drop", set(), False)


class Reads:
    """Counts how often the node is read: a process or two each time."""

    def __init__(self, lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flows = self.rules = 0
        for driver, name in ((lab.fake.flows, "flows"), (lab.fake.nat, "rules")):
            self._count(driver, name, monkeypatch)

    def _count(self, driver: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        read = driver.read

        def counted(**options: Any) -> Any:
            setattr(self, name, getattr(self, name) + 1)
            return read(**options)

        monkeypatch.setattr(driver, "read", counted)


def test_where_only_steering_changes_an_untouched_node_is_not_read_again(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = row(), row("192.168.1.150", "node1", node_ip=NODE1, acknowledged=True, netid=9)
    lab.run(own)
    reads = Reads(lab, monkeypatch)
    lab.run(own | other, untouched=True)
    assert "tun_dst" in lab.flow(9)
    lab.run(own | row(None, netid=9), untouched=True)
    assert lab.flow(9) == "drop"
    lab.run(own, untouched=True)
    assert lab.flow(9) == ""
    assert (lab.flow(), lab.addresses, lab.snat) == (OWN, {str(A)}, True)
    assert (reads.flows, reads.rules) == (0, 0)


@pytest.mark.parametrize("gains", [True, False])
@pytest.mark.parametrize("rules_touched", [True, False])
def test_where_its_own_addresses_change_the_rules_are_read_unless_nobody_has_touched_them(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch, gains: bool, rules_touched: bool
) -> None:
    lab.run(row(None) if gains else row())
    reads = Reads(lab, monkeypatch)
    if rules_touched:
        lab.fake.nat.put("nat", "POSTROUTING", "-p tcp -j RETURN")
    lab.run(row() if gains else row(None), untouched=True)
    assert (reads.flows, reads.rules) == ((1, 1) if rules_touched else (0, 0))
    assert lab.addresses == ({str(A)} if gains else set())


def test_that_it_has_acknowledged_is_no_reason_to_read_the_rules(
    lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(row())
    reads = Reads(lab, monkeypatch)
    lab.fake.nat.put("nat", "POSTROUTING", "-p tcp -j RETURN")  # who could tell now of whom the last change was?
    assert not lab.run(row(acknowledged=True), untouched=True).wrote
    assert (reads.flows, reads.rules) == (0, 0)
    lab.run(row(None), untouched=True)  # what is known of the flows and rules is not more than it was
    assert (reads.flows, reads.rules) == (1, 1)
    assert (lab.flow(), lab.addresses, lab.snat) == ("drop", set(), False)


def test_a_node_that_was_touched_is_read(lab: Any, row: Row) -> None:
    lab.run(row())
    lab.fake.flows.wipe()
    lab.run(row())
    assert lab.flow() == OWN


def test_after_an_error_nothing_is_taken_as_known(lab: Any, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.run(row())
    with monkeypatch.context() as patched:
        patched.setattr(lab.fake.links, "facts", failing(LinkFailed("down")))
        with pytest.raises(LinkFailed):
            lab.run(row(), untouched=True)
    lab.fake.flows.wipe()
    lab.run(row(), untouched=True)
    assert lab.flow() == OWN


def test_ipv6_of_pods_that_nobody_has_told_of_is_no_way_out(lab: Any, row: Row) -> None:
    lab.run(row())
    assert "ipv6" not in lab.fake.flows.text()
    lab.fake.flows.give_pods_ipv6()
    with structlog.testing.capture_logs() as logged:
        for _ in range(FACTS_PASSES + 2):
            lab.run(row())
    assert f"ipv6,reg0={NETID:#x} actions=drop" in lab.fake.flows.text()
    assert [line["log_level"] for line in logged if "HAWSE_CLUSTER_NETWORKS" in line["event"]] == ["warning"]
    assert lab.flow() == OWN
    lab.run({})
    assert lab.fake.flows.text() == ""
