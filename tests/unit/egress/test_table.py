"""The shared table: its rows, which claims carry traffic, and what survives from one table to the next."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from itertools import pairwise

from egress.objects import EgressAddress, HostSubnet, NetNamespace, Phase
from egress.planning import plan, with_claims
from egress.table import (
    FORMER_NETIDS,
    SILENT_SECONDS,
    Claim,
    NodeReport,
    Steering,
    SteeringHop,
    acknowledged,
    carried_over,
    fences,
    held_back,
    lagging,
    only_claimants,
    table_of,
    traced,
)

A, B = IPv4Address("192.168.1.102"), IPv4Address("192.168.1.103")
IP1, IP2 = IPv4Address("192.168.1.17"), IPv4Address("192.168.1.18")
HOSTS = [HostSubnet("node1", str(IP1), (str(B),)), HostSubnet("node2", str(IP2), (str(A),))]
HELD = frozenset({(A, "node2", 5)})


def report(node: str, applied: int, *claims: Claim, epoch: str = "e") -> NodeReport:
    return NodeReport(node, 0.0, epoch, applied, claims=claims)


def row(*hops: SteeringHop, netid: int = 5) -> dict[int, Steering]:
    return {netid: Steering(netid, "app", hops)}


def test_a_row_holds_acknowledged_and_claimed_hops_in_numeric_order() -> None:
    result = table_of(plan(HOSTS, [NetNamespace("app", 5, (str(B), str(A)))], acknowledged={(B, "node1", 5)}))
    assert result == row(
        SteeringHop(A, "node2", IP2, acknowledged=False), SteeringHop(B, "node1", IP1, acknowledged=True)
    )


def test_a_normal_namespace_has_no_row_and_a_dropped_one_has_no_hops() -> None:
    result = table_of(plan(HOSTS, [NetNamespace("app", 5, ("192.168.1.104",)), NetNamespace("other", 6)]))
    assert result == row()


def test_netid_0_and_netids_out_of_range_have_no_row() -> None:
    namespaces = [NetNamespace("app", 0, (str(A),)), NetNamespace("other", 1 << 24, (str(B),))]
    assert table_of(plan(HOSTS, namespaces)) == {}


def test_namespaces_that_share_a_netid_have_one_row_that_drops() -> None:
    result = table_of(plan(HOSTS, [NetNamespace("b", 5, (str(A),)), NetNamespace("a", 5, (str(B),))]))
    assert result == {5: Steering(5, "a")}


def test_a_claim_counts_once_its_node_has_applied_the_change_that_gave_it() -> None:
    rows = row(SteeringHop(A, "node2", IP2, acknowledged=False, since=7))
    claim = Claim(A, 5, held=True)
    assert acknowledged(rows, {"node2": report("node2", 6, claim)}, "e") == frozenset()
    assert acknowledged(rows, {"node2": report("node2", 7, claim)}, "e") == HELD
    assert acknowledged(rows, {"node2": report("node2", 7, claim, epoch="old")}, "e") == frozenset()


def test_a_claim_for_another_netid_or_a_refused_one_does_not_count() -> None:
    rows = row(SteeringHop(A, "node2", IP2, acknowledged=True))
    for claim in (Claim(A, 6, held=True), Claim(A, 5, held=False), Claim(B, 5, held=True)):
        assert acknowledged(rows, {"node2": report("node2", 9, claim)}, "e") == frozenset()


def test_silence_ends_nothing() -> None:
    rows = row(SteeringHop(A, "node2", IP2, acknowledged=True, since=7))
    assert acknowledged(rows, {}, "e") == HELD
    assert acknowledged(rows, {"node2": report("node2", 6)}, "e") == HELD
    assert acknowledged(rows, {"node2": report("node2", 7)}, "e") == frozenset()


def test_a_new_table_starts_from_what_the_nodes_hold() -> None:
    reports = {"node2": report("node2", 3, Claim(A, 5, held=True), Claim(B, 6, held=False), epoch="gone")}
    assert acknowledged({}, reports, "") == HELD


def test_a_hop_that_stays_keeps_its_since() -> None:
    current = row(SteeringHop(A, "node2", IP2, acknowledged=True, since=7))
    desired = row(SteeringHop(A, "node2", IP2, acknowledged=False), SteeringHop(B, "node1", IP1, acknowledged=False))
    hops = carried_over(desired, current)[5].hops
    assert [hop.since for hop in hops] == [7, 0]


def test_a_hop_that_moves_to_another_node_or_netid_begins_anew() -> None:
    current = row(SteeringHop(A, "node2", IP2, acknowledged=True, since=7))
    moved = row(SteeringHop(A, "node1", IP1, acknowledged=False))
    other = row(SteeringHop(A, "node2", IP2, acknowledged=False), netid=6)
    assert carried_over(moved, current)[5].hops[0].since == 0
    assert carried_over(other, current)[6].hops[0].since == 0


def test_a_report_from_before_the_address_was_given_never_acknowledges() -> None:
    # The node held A for NetID 5, let it go, and is given it again by change 9: its report of change 8 is stale.
    claim = Claim(A, 5, held=True)
    rows = row(SteeringHop(A, "node2", IP2, acknowledged=False, since=9))
    for applied in (0, 1, 8):
        assert acknowledged(rows, {"node2": report("node2", applied, claim)}, "e") == frozenset()
    # A report of change 9 counts, and so does every later one.
    for applied in (9, 10):
        assert acknowledged(rows, {"node2": report("node2", applied, claim)}, "e") == HELD


def test_a_report_without_a_table_neither_begins_nor_ends_anything() -> None:
    claim = Claim(A, 5, held=True)
    fresh = row(SteeringHop(A, "node2", IP2, acknowledged=False, since=1))
    standing = row(SteeringHop(A, "node2", IP2, acknowledged=True, since=1))
    assert acknowledged(fresh, {"node2": report("node2", 0, claim, epoch="")}, "e") == frozenset()
    assert acknowledged(standing, {"node2": report("node2", 0, epoch="")}, "e") == HELD


def test_only_the_host_of_a_hop_speaks_for_it() -> None:
    rows = row(SteeringHop(A, "node2", IP2, acknowledged=False, since=1))
    assert acknowledged(rows, {"node1": report("node1", 5, Claim(A, 5, held=True))}, "e") == frozenset()


def test_an_address_that_goes_to_another_netid_begins_unacknowledged() -> None:
    # Both NetNamespaces changed between two looks: node2 holds A for NetID 5, and has no flow for 6 yet.
    current = row(SteeringHop(A, "node2", IP2, acknowledged=True, since=7))
    held = acknowledged(current, {"node2": report("node2", 7, Claim(A, 5, held=True))}, "e")
    moved = table_of(plan(HOSTS, [NetNamespace("app", 5), NetNamespace("other", 6, (str(A),))], acknowledged=held))
    assert moved == {6: Steering(6, "other", (SteeringHop(A, "node2", IP2, acknowledged=False),))}
    rebuilt = acknowledged({}, {"node2": report("node2", 7, Claim(A, 5, held=True))}, "")
    assert table_of(plan(HOSTS, [NetNamespace("other", 6, (str(A),))], acknowledged=rebuilt)) == moved


CLAIMED = EgressAddress(str(A), "prod", "app", "uid-1")


def test_a_namespace_with_a_claim_is_never_left_without_an_address() -> None:
    emptied = with_claims([NetNamespace("app", 5), NetNamespace("other", 6)], [CLAIMED])
    assert table_of(plan(HOSTS, emptied)) == table_of(plan(HOSTS, [NetNamespace("app", 5, (str(A),))]))
    assert with_claims([NetNamespace("app", 5, (str(A),))], [CLAIMED]) == [NetNamespace("app", 5, (str(A),))]
    leaving = replace(CLAIMED, phase=Phase.QUARANTINED)
    assert with_claims([NetNamespace("app", 5)], [leaving]) == [NetNamespace("app", 5)]


def test_the_row_of_a_deleted_net_namespace_stays_as_a_drop_while_a_claim_stands() -> None:
    rows = row(SteeringHop(A, "node2", IP2, acknowledged=True))
    assert fences(rows, {}, [NetNamespace("other", 6)], [CLAIMED]) == row()
    assert fences(rows, {}, [NetNamespace("other", 5)], [CLAIMED]) == {}
    assert fences(rows, {}, [], []) == {}
    assert fences(rows, {}, [], [replace(CLAIMED, phase=Phase.QUARANTINED)]) == {}


def test_a_former_netid_is_dropped_while_its_namespace_has_an_address() -> None:
    rows = row(SteeringHop(A, "node2", IP2, acknowledged=True))
    former = {5: Steering(5, "app", former=1)}
    assert fences(rows, {}, [NetNamespace("app", 7)], [CLAIMED]) == former
    assert fences(former, {}, [NetNamespace("app", 7)], [CLAIMED]) == former
    assert fences(former, {}, [], [CLAIMED]) == former, "its NetNamespace is deleted as well"
    assert fences(rows, {}, [NetNamespace("app", 7, (str(A),))], []) == former, "set by hand"
    assert fences(rows, {}, [NetNamespace("app", 0, (str(A),))], [CLAIMED]) == former, "it is global now"
    assert fences(former, {}, [NetNamespace("app", 7), NetNamespace("other", 5)], [CLAIMED]) == {}, "it is other's"
    assert fences(former, {}, [NetNamespace("app", 5)], [CLAIMED]) == {}, "it has it again"
    assert fences(former, {}, [NetNamespace("app", 7)], [replace(CLAIMED, phase=Phase.QUARANTINED)]) == {}


def test_of_many_former_netids_the_latest_are_dropped() -> None:
    netids = [500, 7, 300, 9, 100, 11, 12, 400, 14, 13, 600, 1]
    rows: dict[int, Steering] = {}
    for before, now in pairwise(netids):
        claimed = NetNamespace("app", now, (str(A),))
        rows = fences(rows | row(netid=before), {}, [claimed], [CLAIMED]) | table_of(plan(HOSTS, [claimed]))
    kept = sorted((row for row in rows.values() if row.former), key=lambda row: row.former)
    assert [row.netid for row in kept] == netids[-1 - FORMER_NETIDS : -1]
    assert fences(rows, {}, [NetNamespace("app", 1)], [CLAIMED]) == {row.netid: row for row in kept}


def test_a_promised_netid_is_dropped_before_its_net_namespace_is_made() -> None:
    assert fences({}, {"app": 5}, [NetNamespace("other", 6)], [CLAIMED]) == row()
    assert fences({}, {"app": 5}, [NetNamespace("app", 5)], [CLAIMED]) == {}, "the plan has it from here on"
    assert fences({}, {"app": 5}, [NetNamespace("other", 5)], [CLAIMED]) == {}, "somebody else has this NetID"
    assert fences({}, {"app": 5}, [], []) == {}
    assert fences({}, {"app": 5}, [], [replace(CLAIMED, phase=Phase.QUARANTINED)]) == {}
    assert fences(row(), {"app": 7}, [], [CLAIMED]) == row() | {7: Steering(7, "app")}


def test_nodes_that_live_and_do_not_know_a_change_are_lagging() -> None:
    reports = {
        "behind": replace(report("behind", 6), heard=100),
        "there": replace(report("there", 7), heard=100),
        "elsewhere": replace(report("elsewhere", 9, epoch="old"), heard=100),
        "silent": replace(report("silent", 0), heard=100 - SILENT_SECONDS),
        "broken": replace(report("broken", 0), heard=100, problem="BridgeMissing: no br0"),
    }
    nodes = [*reports, "never heard of"]
    assert lagging(nodes, reports, "e", 7, now=100, began=0) == ["behind", "elsewhere"]
    assert lagging(nodes, reports, "e", None, now=100, began=0) == ["behind", "elsewhere", "there"]
    assert lagging(nodes, reports, "e", 7, now=100, began=95) == ["behind", "elsewhere", "never heard of"]
    assert lagging([], {}, "e", 7, now=100, began=0) == []


def test_a_row_carries_the_operation_of_its_namespaces_claims() -> None:
    operation = "705ab4f5-6393-11e8-b7cc-42010a800002"
    rows = row() | {6: Steering(6, "other", operation="an earlier one")}
    expected = {5: Steering(5, "app", operation=operation), 6: Steering(6, "other")}
    assert traced(rows, [replace(CLAIMED, operation=operation)]) == expected


GIVEN = row(SteeringHop(A, "node3", IP2, acknowledged=False))
HOLDS = Claim(A, 5, held=True)


def test_an_address_is_given_to_a_node_when_the_one_before_has_let_it_go() -> None:
    holder = replace(report("node2", 3, HOLDS), heard=99.0)
    assert held_back(GIVEN, {}, {"node2": holder}, (), now=100.0) == row()
    assert held_back(GIVEN, {}, {"node2": replace(holder, claims=())}, (), now=100.0) == GIVEN
    assert held_back(GIVEN, {}, {"node2": replace(holder, claims=(replace(HOLDS, held=False),))}, (), 100.0) == GIVEN
    assert held_back(GIVEN, {}, {"node3": replace(holder, node="node3")}, (), now=100.0) == GIVEN


def test_a_node_that_is_lost_silent_or_without_a_link_is_not_waited_for() -> None:
    holder = replace(report("node2", 3, HOLDS), heard=99.0)
    assert held_back(GIVEN, {}, {"node2": holder}, ("node2",), now=100.0) == GIVEN
    assert held_back(GIVEN, {}, {"node2": replace(holder, carrier=False)}, (), now=100.0) == GIVEN
    assert held_back(GIVEN, {}, {"node2": holder}, (), now=99.0 + SILENT_SECONDS) == GIVEN


def test_what_a_node_was_given_already_is_not_taken_back() -> None:
    holder = replace(report("node2", 3, HOLDS), heard=99.0)
    assert held_back(GIVEN, GIVEN, {"node2": holder}, (), now=100.0) == GIVEN


def test_only_the_hop_that_is_waited_for_is_left_out() -> None:
    both = row(SteeringHop(A, "node3", IP2, acknowledged=False), SteeringHop(B, "node1", IP1, acknowledged=True))
    holder = replace(report("node2", 3, HOLDS), heard=99.0)
    assert held_back(both, {}, {"node2": holder}, (), now=100.0) == row(both[5].hops[1])


def test_a_node_that_cannot_let_an_address_go_is_not_waited_for() -> None:
    stuck = replace(report("node2", 3, Claim(A, 0, held=False, reason="AddressIsPrimary")), heard=99.0)
    assert held_back(GIVEN, {}, {"node2": stuck}, (), now=100.0) == GIVEN
    assert acknowledged(GIVEN, {"node2": stuck}, "e") == acknowledged({}, {"node2": stuck}, "") == frozenset()


def hop(node: str, *, acknowledged: bool = False) -> SteeringHop:
    return SteeringHop(A, node, IP2, acknowledged)


def test_what_is_only_to_be_taken_concerns_those_who_are_to_take_it() -> None:
    dropped, carried = row(), row(hop("node2", acknowledged=True))
    assert only_claimants(row(hop("node3")), dropped, ()) == {"node3"}
    assert only_claimants(row(hop("node3")), row(hop("node2")), ()) == {"node3"}
    assert only_claimants(row(hop("node3")), carried, ("node2",)) == {"node3"}
    several = row(hop("node3")) | row(hop("node4"), netid=6)
    assert only_claimants(several, dropped | row(netid=6), ()) == {"node3", "node4"}


def test_everything_else_concerns_all() -> None:
    carried = row(hop("node2", acknowledged=True))
    assert only_claimants(row(hop("node3")), {}, ()) is None  # to be dropped from now on
    assert only_claimants(row(hop("node3")), carried, ()) is None  # a living node carries it
    assert only_claimants(row(), carried, ("node2",)) is None
    assert only_claimants({5: None}, carried, ()) is None
    assert only_claimants(row(hop("node3", acknowledged=True)), row(hop("node3")), ()) is None
    assert only_claimants(row(hop("node3")) | row(netid=6), row() | row(hop("node2"), netid=6), ()) is None
