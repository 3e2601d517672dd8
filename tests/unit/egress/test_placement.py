"""Which node hosts which address."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.addresses import Address
from egress.board import EGRESS_LABEL, Candidate, Unplaced
from egress.objects import Capacity, EgressPool, Selector
from egress.placement import place

POOL = EgressPool("prod", ("192.168.1.0/24",))
LIMITED = replace(POOL, name="limited", max_addresses_per_node=1)
A = Selector({"zone": "a"})
LABELS = {EGRESS_LABEL: ""}


def address(last: int) -> Address:
    return IPv4Address(f"192.168.1.{last}")


def node(name: str, *hosted: int, **changes: object) -> Candidate:
    link = IPv4Interface(f"192.168.1.{10 + int(name[-1])}/24")
    value = Candidate(name, LABELS, link=link, hosted=frozenset(map(address, hosted)))
    return replace(value, **changes)


def wanted(last: int, namespace: str = "app", pool: EgressPool = POOL) -> Unplaced:
    return Unplaced(address(last), namespace, pool)


def families(items: Iterable[Unplaced]) -> dict[str, list[Address]]:
    siblings: dict[str, list[Address]] = {}
    for item in items:
        siblings.setdefault(item.namespace, []).append(item.address)
    return siblings


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
        (node("n1", barred="not ready"), POOL, "1 not ready"),
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


def test_a_nodes_own_ip_goes_to_no_other_node() -> None:
    refused = place([wanted(11)], [node("n1"), node("n2")], {}).refused
    reason = "no node is eligible: 1 that is not 192.168.1.11 itself, 1 whose own IP is 192.168.1.11"
    assert refused == {address(11): reason}


def test_ipv6_addresses_go_to_nodes_of_their_network_and_count_for_themselves() -> None:
    pool = replace(POOL, name="six", cidrs=("fd00::/64",))
    six = [IPv6Address(f"fd00::{number}") for number in (1, 2, 3)]
    link, limit = IPv6Interface("fd00::ffff/64"), Capacity(ipv6=1)
    candidates = [
        node("n1"),
        node("n2", link=link, capacity=limit, hosted=frozenset({six[0]})),
        node("n3", link=link, capacity=limit, hosted=frozenset({address(100)})),
    ]
    result = place([Unplaced(six[1], "a", pool), Unplaced(six[2], "b", pool)], candidates, {})
    assert result.nodes == {six[1]: "n3"}
    assert result.refused == {
        six[2]: "no node is eligible: 1 in a subnet without fd00::3, 2 whose cloud lets it have 1 IPv6 addresses"
    }


SIX = EgressPool("six", ("fd00::/64",))


def dual(name: str, *hosted: int) -> Candidate:
    return node(name, *hosted, other_links=(IPv6Interface(f"fd00::{name[-1]}/64"),))


def test_a_node_with_both_ip_versions_takes_addresses_of_both_but_no_nodes_own() -> None:
    wanted_six = Unplaced(IPv6Address("fd00::100"), "app", SIX)
    assert place([wanted(110), wanted_six], [node("n2", 100), dual("n1")], {}).nodes[wanted_six.address] == "n1"
    assert place([wanted_six], [node("n2")], {}).refused == {
        wanted_six.address: "no node is eligible: 1 in a subnet without fd00::100"
    }
    own = Unplaced(IPv6Address("fd00::2"), "app", SIX)
    reason = "no node is eligible: 1 that is not fd00::2 itself, 1 whose own IP is fd00::2"
    assert place([own], [dual("n1"), dual("n2")], {}).refused == {own.address: reason}


def test_a_pair_may_share_a_node_where_two_of_one_ip_version_may_not() -> None:
    six = [Unplaced(IPv6Address(f"fd00::10{number}"), "app", SIX) for number in (1, 2)]
    siblings = {"app": [address(110), *(item.address for item in six)]}
    result = place([wanted(110), *six], [dual("n1")], siblings)
    assert result.nodes == {address(110): "n1", six[0].address: "n1"}
    assert result.refused == {six[1].address: "no node is eligible: 1 hosting another address of namespace app"}


def test_no_node_at_all_is_said() -> None:
    assert place([wanted(110)], [], {}).refused == {address(110): "there is no node"}


def test_reasons_are_counted() -> None:
    candidates = [node("n1", barred="not ready"), node("n2", barred="not ready"), node("n3", link=None)]
    assert place([wanted(110)], candidates, {}).refused == {
        address(110): "no node is eligible: 2 not ready, 1 whose runner has not reported yet"
    }


def test_two_of_a_namespace_go_to_two_nodes_or_one_waits() -> None:
    siblings = {"app": [address(110), address(111), address(112)]}
    items = [wanted(last) for last in (110, 111, 112)]
    result = place(items, [node("n1"), node("n2")], siblings)
    assert result.nodes == {address(110): "n1", address(111): "n2"}
    assert set(result.refused) == {address(112)}


def test_a_namespaces_addresses_are_spread_over_the_topology_before_nodes_are_levelled() -> None:
    pool = replace(POOL, topology_key="zone")
    zones = {"n1": "a", "n2": "a", "n3": "b"}
    candidates = [node(name, labels={**LABELS, "zone": zone}) for name, zone in zones.items()]
    candidates[2] = replace(candidates[2], hosted=frozenset(map(address, range(200, 210))))
    items = [wanted(110, pool=pool), wanted(111, pool=pool)]
    result = place(items, candidates, families(items))
    assert {zones[name] for name in result.nodes.values()} == {"a", "b"}


def test_a_sibling_that_is_there_already_keeps_its_zone_from_being_taken_again() -> None:
    pool = replace(POOL, topology_key="zone")
    candidates = [node("n1", 120, labels={**LABELS, "zone": "a"}), node("n2", labels={**LABELS, "zone": "a"})]
    candidates += [node("n3", 130, 131, labels={**LABELS, "zone": "b"})]
    result = place([wanted(110, pool=pool)], candidates, {"app": [address(110), address(120)]})
    assert result.nodes == {address(110): "n3"}


def test_among_equal_nodes_the_zone_with_fewer_of_the_pools_addresses_comes_first() -> None:
    pool = replace(POOL, name="narrow", cidrs=("192.168.1.0/25",), topology_key="zone")
    candidates = [
        node("n1", labels={**LABELS, "zone": "a"}),
        node("n2", 101, labels={**LABELS, "zone": "a"}),
        node("n3", labels={**LABELS, "zone": "b"}),
        node("n4", 201, labels={**LABELS, "zone": "b"}),
    ]
    assert place([wanted(110, pool=pool)], candidates, {}).nodes == {address(110): "n3"}


def test_the_cloud_limits_each_family_and_both_together() -> None:
    def refusal(capacity: Capacity) -> str:
        return "".join(place([wanted(110)], [node("n1", 100, capacity=capacity)], {}).refused.values())

    assert refusal(Capacity(ipv4=1)) == "no node is eligible: 1 whose cloud lets it have 1 IPv4 addresses"
    assert refusal(Capacity(ip=1)) == "no node is eligible: 1 whose cloud lets it have 1 addresses"
    assert refusal(Capacity(ipv4=2, ipv6=0, ip=2)) == ""


def test_an_address_of_no_pool_goes_by_the_nodes_egress_cidrs() -> None:
    cidrs = (IPv4Network("192.168.1.96/27"),)
    candidates = [node("n1"), node("n2", 100, labels={}, cidrs=cidrs), node("n3", barred="lost", cidrs=cidrs)]
    result = place([Unplaced(address(110), "app", None), Unplaced(address(200), "b", None)], candidates, {})
    assert result.nodes == {address(110): "n2"}
    assert result.refused == {
        address(200): "no node is eligible: 3 without egressCIDRs that hold 192.168.1.200",
    }


def test_a_wish_is_granted_before_all_others_if_the_node_is_eligible() -> None:
    candidates = [node("n1"), node("n2", capacity=Capacity(ipv4=1)), node("n3", barred="cordoned")]
    items = [wanted(110, "a"), wanted(111, "b"), wanted(112, "c")]
    result = place(items, candidates, families(items), {address(112): "n2", address(110): "n3"})
    assert result.nodes == {address(110): "n1", address(111): "n1", address(112): "n2"}


def test_one_with_more_choice_makes_room_for_one_with_less() -> None:
    pools = {name: replace(POOL, name=name, node_selector=Selector({name: ""})) for name in ("p", "q", "r")}
    labels = {"n1": {"p": "", "q": ""}, "n2": {"p": "", "r": ""}, "n3": {"q": "", "r": ""}}
    candidates = [node(name, labels=has, capacity=Capacity(ipv4=1)) for name, has in labels.items()]
    for names in permutations("abc"):
        items = [wanted(110 + i, name, pools["pqr"[i]]) for i, name in enumerate(names)]
        assert place(items, candidates, families(items)).refused == {}


def test_room_is_made_over_several_nodes() -> None:
    # d finds a on n1 and c on n4; c could only go to n1, a only to n2, where b is, which can go to n3.
    choices = {"a": ("n1", "n2"), "b": ("n2", "n3"), "c": ("n1", "n4"), "d": ("n1", "n4")}
    pools = {name: replace(POOL, name=name, node_selector=Selector({name: ""})) for name in choices}
    candidates = [
        node(name, labels={pool: "" for pool in pools if name in choices[pool]}, capacity=Capacity(ipv4=1))
        for name in ("n1", "n2", "n3", "n4")
    ]
    items = [wanted(110 + number, name, pools[name]) for number, name in enumerate(choices)]
    assert place(items, candidates, families(items)).refused == {}


# Many at once

POOLS = [
    POOL,
    LIMITED,
    replace(LIMITED, name="two", max_addresses_per_node=2),
    replace(POOL, name="a", node_selector=A),
]
items = st.lists(
    st.tuples(st.integers(100, 130), st.sampled_from("abcde"), st.sampled_from(POOLS)),
    unique_by=lambda item: item[0],
    max_size=12,
)
nodes = st.lists(
    st.builds(
        lambda number, hosted, zone, barred, most: node(
            f"n{number}",
            *hosted,
            labels={**LABELS, "zone": zone},
            barred=barred,
            capacity=Capacity(ip=most),
        ),
        st.integers(1, 6),
        st.frozensets(st.integers(131, 140), max_size=3),
        st.sampled_from("ab"),
        st.sampled_from(["", "", "not ready"]),
        st.none() | st.integers(0, 4),
    ),
    unique_by=lambda candidate: candidate.name,
    max_size=6,
)


@given(items, nodes, st.data())
def test_whatever_is_asked_the_rules_hold_and_the_order_means_nothing(
    asked: list[tuple[int, str, EgressPool]], candidates: list[Candidate], data: st.DataObject
) -> None:
    unplaced = [wanted(last, namespace, pool) for last, namespace, pool in asked]
    siblings = families(unplaced)
    result = place(unplaced, candidates, siblings)
    shuffled = place(data.draw(st.permutations(unplaced)), data.draw(st.permutations(candidates)), siblings)
    assert shuffled == result
    assert result.nodes.keys() | result.refused.keys() == {item.address for item in unplaced}
    assert not result.nodes.keys() & result.refused.keys()
    by_name = {candidate.name: candidate for candidate in candidates}
    placed = [(item, by_name[result.nodes[item.address]]) for item in unplaced if item.address in result.nodes]
    assert all(not host.barred for _, host in placed)
    assert all(item.pool is not POOLS[3] or host.labels["zone"] == "a" for item, host in placed)
    crowd = Counter((item.namespace, host.name) for item, host in placed)
    assert all(count == 1 for count in crowd.values())
    fullness = Counter((item.pool.name, host.name) for item, host in placed if item.pool)
    for pool in (LIMITED, POOLS[2]):
        assert all(fullness[pool.name, name] <= pool.max_addresses_per_node for name in by_name)
    for host in candidates:
        new = sum(name == host.name for name in result.nodes.values())
        assert not new or host.capacity.ip is None or len(host.hosted) + new <= host.capacity.ip


@given(items, nodes, st.data())
def test_what_is_refused_is_eligible_nowhere_in_the_end(
    asked: list[tuple[int, str, EgressPool]], candidates: list[Candidate], data: st.DataObject
) -> None:
    unplaced = [wanted(last, namespace, pool) for last, namespace, pool in asked]
    siblings = families(unplaced)
    result = place(unplaced, candidates, siblings)
    after = [
        replace(host, hosted=host.hosted | {a for a, name in result.nodes.items() if name == host.name})
        for host in candidates
    ]
    refused = [item for item in unplaced if item.address in result.refused]
    assert place(refused, after, siblings).nodes == {}


@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 3))
def test_from_nothing_equal_nodes_differ_by_one_address_at_most(count: int, machines: int, each: int) -> None:
    unplaced = [wanted(100 + number, f"ns{number // each}") for number in range(count)]
    result = place(unplaced, [node(f"n{number}") for number in range(machines)], families(unplaced))
    loads = [list(result.nodes.values()).count(f"n{number}") for number in range(machines)]
    assert max(loads) - min(loads) <= 1
    assert bool(result.refused) == (each > machines and count > machines)


def most_placeable(edges: list[list[int]], rooms: list[int]) -> int:
    """How many items can be placed, each on one of its nodes, found by trying everything."""
    if not edges:
        return 0
    best = most_placeable(edges[1:], rooms)
    for host in edges[0]:
        if rooms[host]:
            best = max(best, 1 + most_placeable(edges[1:], [r - (i == host) for i, r in enumerate(rooms)]))
    return best


@given(
    st.lists(st.sets(st.integers(0, 3), max_size=3), max_size=6),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_nothing_is_left_over_that_another_arrangement_could_place(edges: list[set[int]], rooms: list[int]) -> None:
    unplaced = [
        wanted(100 + n, f"ns{n}", replace(POOL, name=f"p{n}", node_selector=Selector({f"for-{n}": ""})))
        for n in range(len(edges))
    ]
    hosts = [
        node(
            f"n{i}", labels={f"for-{n}": "" for n, edge in enumerate(edges) if i in edge}, capacity=Capacity(ipv4=room)
        )
        for i, room in enumerate(rooms)
    ]
    placed = len(place(unplaced, hosts, families(unplaced)).nodes)
    assert placed == most_placeable([sorted(edge) for edge in edges], rooms)
