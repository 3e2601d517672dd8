"""Which node hosts which address."""

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.addresses import Address
from egress.objects import EgressPool, Selector
from egress.placement import EGRESS_LABEL, Candidate, Unplaced, place

POOL = EgressPool("prod", ("192.168.1.0/24",))
LIMITED = replace(POOL, name="limited", max_addresses_per_node=1)
LABELS = {EGRESS_LABEL: ""}


def address(last: int) -> Address:
    return IPv4Address(f"192.168.1.{last}")


def node(name: str, *hosted: int, **changes: object) -> Candidate:
    link = IPv4Interface(f"192.168.1.{10 + int(name[-1])}/24")
    value = Candidate(name, LABELS, link=link, hosted=frozenset(map(address, hosted)))
    return replace(value, **changes)


def wanted(last: int, namespace: str = "app", pool: EgressPool = POOL) -> Unplaced:
    return Unplaced(address(last), namespace, pool)


def test_the_node_with_fewest_addresses_hosts_it_ties_go_by_name() -> None:
    candidates = [node("n3", 100), node("n2"), node("n1", 101, 102), node("n4")]
    result = place([wanted(110), wanted(111, "b"), wanted(112, "c")], candidates, {})
    assert result.nodes == {address(110): "n2", address(111): "n4", address(112): "n2"}
    assert result.refused == {}


@pytest.mark.parametrize(
    ("candidate", "pool", "reason"),
    [
        (node("n1", labels={}), POOL, f"1 without label {EGRESS_LABEL}"),
        (node("n1"), replace(POOL, node_selector=Selector({"zone": "a"})), "1 not matched by the pool's nodeSelector"),
        (node("n1", usable=False), POOL, "1 not ready"),
        (node("n1", link=None), POOL, "1 whose runner has not reported yet"),
        (node("n1", link=IPv4Interface("10.0.0.1/24")), POOL, "1 in a subnet without 192.168.1.110"),
        (node("n1", link=IPv4Interface("192.168.1.110/24")), POOL, "1 whose own IP is 192.168.1.110"),
        (node("n1", 100), LIMITED, "1 full with 1 addresses of pool limited"),
        (node("n1", 120), POOL, "1 hosting another address of namespace app"),
    ],
)
def test_each_objection_is_said(candidate: Candidate, pool: EgressPool, reason: str) -> None:
    result = place([wanted(110, pool=pool)], [candidate], {"app": [address(110), address(120)]})
    assert result.nodes == {}
    assert result.refused == {address(110): f"no node is eligible: {reason}"}


def test_a_selector_takes_the_place_of_the_label() -> None:
    pool = replace(POOL, node_selector=Selector({"zone": "a"}))
    assert place([wanted(110, pool=pool)], [node("n1", labels={"zone": "a"})], {}).nodes == {address(110): "n1"}


def test_only_the_pools_own_addresses_fill_a_node_for_it() -> None:
    other = frozenset({IPv4Address("192.168.2.1"), IPv4Address("192.168.2.2")})
    assert place([wanted(110, pool=LIMITED)], [node("n1", hosted=other)], {}).nodes == {address(110): "n1"}


def test_no_node_at_all_is_said() -> None:
    assert place([wanted(110)], [], {}).refused == {address(110): "there is no node"}


def test_reasons_are_counted() -> None:
    candidates = [node("n1", usable=False), node("n2", usable=False), node("n3", link=None)]
    assert place([wanted(110)], candidates, {}).refused == {
        address(110): "no node is eligible: 2 not ready, 1 whose runner has not reported yet"
    }


def test_two_of_a_namespace_go_to_two_nodes_or_one_waits() -> None:
    siblings = {"app": [address(110), address(111), address(112)]}
    items = [wanted(last) for last in (110, 111, 112)]
    result = place(items, [node("n1"), node("n2")], siblings)
    assert result.nodes == {address(110): "n1", address(111): "n2"}
    assert set(result.refused) == {address(112)}


items = st.lists(
    st.tuples(
        st.integers(100, 130), st.sampled_from("abc"), st.sampled_from([POOL, replace(POOL, max_addresses_per_node=2)])
    ),
    unique_by=lambda item: item[0],
    max_size=12,
)
nodes = st.lists(
    st.tuples(st.integers(1, 5), st.frozensets(st.integers(131, 140), max_size=3), st.booleans()),
    unique_by=lambda item: item[0],
    max_size=5,
)


@given(items, nodes, st.data())
def test_invariants_and_the_order_means_nothing(
    asked: list[tuple[int, str, EgressPool]], machines: list[tuple[int, frozenset[int], bool]], data: st.DataObject
) -> None:
    unplaced = [wanted(last, namespace, pool) for last, namespace, pool in asked]
    candidates = [node(f"n{number}", *hosted, usable=usable) for number, hosted, usable in machines]
    siblings: dict[str, list[Address]] = {}
    for item in unplaced:
        siblings.setdefault(item.namespace, []).append(item.address)
    result = place(unplaced, candidates, siblings)
    shuffled = place(data.draw(st.permutations(unplaced)), data.draw(st.permutations(candidates)), siblings)
    assert shuffled == result
    assert result.nodes.keys() | result.refused.keys() == {item.address for item in unplaced}
    assert not result.nodes.keys() & result.refused.keys()
    by_name = {candidate.name: candidate for candidate in candidates}
    assert all(by_name[name].usable for name in result.nodes.values())
    crowd = Counter((item.namespace, result.nodes[item.address]) for item in unplaced if item.address in result.nodes)
    assert all(count == 1 for count in crowd.values())
    for item in unplaced:
        if item.address in result.nodes and item.pool.max_addresses_per_node:
            name = result.nodes[item.address]
            before = [a for a, n in result.nodes.items() if n == name and a < item.address]  # type: ignore[operator]
            assert len(by_name[name].hosted) + len(before) < 2
