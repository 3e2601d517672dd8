"""The rules of DESIGN §6: when a namespace's traffic is dropped, and what is never done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.addresses import AddressError, parse_address
from egress.objects import HostSubnet, NetNamespace
from egress.planning import MAX_NETID, Hop, NamespacePlan, Plan, State, plan

A, B, C = "192.168.1.102", "192.168.1.103", "192.168.1.104"
IP = {"node1": "192.168.1.17", "node2": "192.168.1.18", "node3": "192.168.1.19"}


def host(name: str, *egress_ips: str, ip: str = "") -> HostSubnet:
    return HostSubnet(name, ip or IP[name], egress_ips)


def netns(name: str, netid: int, *egress_ips: str) -> NetNamespace:
    return NetNamespace(name, netid, egress_ips)


def hop(address: str, node: str) -> Hop:
    return Hop(IPv4Address(address), node, IPv4Address(IP[node]))


def only(result: Plan, name: str = "app") -> NamespacePlan:
    return result.namespaces[name]


# One test for each row of the table "When a namespace's traffic is dropped"


def test_no_egress_ips_is_normal_and_has_no_flow() -> None:
    result = plan([host("node1", A)], [netns("app", 5)])
    assert only(result) == NamespacePlan("app", 5, State.NORMAL)
    assert result.by_netid() == {}
    assert result.conflicts == ()


def test_the_reference_example_leaves_via_its_node() -> None:
    result = plan([host("node1"), host("node2", A)], [netns("app", 1086658, A)])
    assert only(result) == NamespacePlan("app", 1086658, State.VIA, (hop(A, "node2"),))
    assert result.conflicts == ()


def test_an_address_no_node_hosts_is_inactive() -> None:
    outcome = only(plan([host("node1"), host("node2")], [netns("app", 5, A)]))
    assert outcome.state is State.DROP
    assert outcome.reasons == (f"no node hosts {A}",)


def test_an_address_of_an_offline_node_is_inactive() -> None:
    outcome = only(plan([host("node1", A)], [netns("app", 5, A)], offline={"node1"}))
    assert outcome.state is State.DROP
    assert (outcome.via, outcome.claims) == ((), ())
    assert outcome.reasons == (f"node node1, which hosts {A}, is offline",)


def test_an_address_whose_claim_is_not_acknowledged_is_inactive() -> None:
    outcome = only(plan([host("node1", A)], [netns("app", 5, A)], acknowledged=set()))
    assert outcome.state is State.DROP
    assert outcome.claims == (hop(A, "node1"),)
    assert outcome.reasons == (f"node node1 has not acknowledged {A}",)


def test_an_acknowledgement_of_another_node_does_not_count() -> None:
    acknowledged = {(IPv4Address(A), "node2", 5)}
    assert only(plan([host("node1", A)], [netns("app", 5, A)], acknowledged=acknowledged)).state is State.DROP


def test_an_acknowledgement_for_another_netid_does_not_count() -> None:
    # The node holds the address, but its flow for this NetID is not there yet: steered packets would leave as they are.
    acknowledged = {(IPv4Address(A), "node1", 6)}
    outcome = only(plan([host("node1", A)], [netns("app", 5, A)], acknowledged=acknowledged))
    assert (outcome.state, outcome.claims) == (State.DROP, (hop(A, "node1"),))


def test_an_address_on_two_host_subnets_is_inactive_everywhere_and_names_both() -> None:
    result = plan([host("node2", A), host("node1", A)], [netns("app", 5, A)])
    assert only(result).state is State.DROP
    assert (only(result).via, only(result).claims) == ((), ())
    assert result.conflicts == (f"address {A} is on nodes node1 and node2",)
    assert only(result).reasons == result.conflicts


def test_an_address_on_two_host_subnets_is_a_conflict_even_if_nobody_uses_it() -> None:
    assert plan([host("node2", A), host("node1", A)], []).conflicts == (f"address {A} is on nodes node1 and node2",)


def test_an_address_on_two_host_subnets_is_a_conflict_even_if_one_has_no_usable_host_ip() -> None:
    result = plan([host("node1", A), host("node2", A, ip="x")], [netns("app", 5, A)])
    assert only(result).state is State.DROP
    assert f"address {A} is on nodes node1 and node2" in result.conflicts


def test_an_address_in_two_net_namespaces_drops_both_entirely_and_names_both() -> None:
    result = plan(
        [host("node1", A), host("node2", B), host("node3", C)],
        [netns("one", 5, A, B), netns("two", 6, A, C), netns("three", 7)],
    )
    assert result.conflicts == (f"address {A} is in NetNamespaces one and two",)
    for name in ("one", "two"):
        assert only(result, name).state is State.DROP
        assert (only(result, name).via, only(result, name).claims) == ((), ())
        assert only(result, name).reasons == result.conflicts
    assert only(result, "three").state is State.NORMAL


def test_two_addresses_of_a_namespace_on_one_node_are_both_inactive() -> None:
    result = plan([host("node1", A, B)], [netns("app", 5, A, B)])
    assert only(result).state is State.DROP
    assert (only(result).via, only(result).claims) == ((), ())
    assert result.conflicts == (f"addresses {A} and {B} of namespace app are all on node node1",)


def test_a_pair_of_both_ip_versions_may_share_a_node_and_two_of_one_may_not() -> None:
    pair, other = "2001:db8::102", "2001:db8::103"
    outcome = only(plan([host("node1", A, pair)], [netns("app", 5, A, pair)]))
    assert [str(hop.address) for hop in outcome.via] == [A, pair]
    outcome = only(plan([host("node1", A, pair, other)], [netns("app", 5, A, pair, other)]))
    assert [str(hop.address) for hop in outcome.via] == [A]
    assert outcome.reasons == (f"addresses {pair} and {other} of namespace app are all on node node1",)


def test_two_addresses_on_one_node_leave_a_third_elsewhere_active() -> None:
    result = plan([host("node1", A, B), host("node2", C)], [netns("app", 5, A, B, C)])
    assert only(result).via == (hop(C, "node2"),)


def test_two_addresses_of_different_namespaces_on_one_node_are_fine() -> None:
    result = plan([host("node1", A, B)], [netns("one", 5, A), netns("two", 6, B)])
    assert [outcome.state for outcome in result.namespaces.values()] == [State.VIA, State.VIA]
    assert result.conflicts == ()


def test_without_an_active_address_traffic_is_dropped() -> None:
    result = plan([host("node1", A)], [netns("app", 5, A, B)], offline={"node1"})
    assert only(result).state is State.DROP
    assert only(result).reasons == (f"no node hosts {B}", f"node node1, which hosts {A}, is offline")


def test_an_inactive_address_leaves_the_other_one_active() -> None:
    result = plan([host("node1", A), host("node2", B)], [netns("app", 5, A, B)], offline={"node1"})
    assert only(result).via == (hop(B, "node2"),)
    assert only(result).state is State.VIA


def test_several_active_addresses_all_carry_traffic() -> None:
    result = plan([host("node2", A), host("node1", B)], [netns("app", 5, B, A)])
    assert only(result).via == (hop(A, "node2"), hop(B, "node1"))


def test_two_net_namespaces_with_one_netid_are_refused_and_others_unaffected() -> None:
    result = plan([host("node1", A), host("node2", B)], [netns("one", 5, A), netns("two", 5), netns("three", 6, B)])
    assert result.conflicts == ("NetID 5 is shared by NetNamespaces one and two: their traffic cannot be told apart",)
    assert only(result, "one").state is State.DROP
    assert only(result, "one").reasons == result.conflicts
    assert only(result, "three").via == (hop(B, "node2"),)
    assert result.by_netid()[5].via == ()


def test_a_shared_netid_without_egress_ips_is_nobody_s_concern() -> None:
    result = plan([], [netns("one", 5), netns("two", 5), netns("default", 0), netns("kube-system", 0)])
    assert result.conflicts == ()
    assert {outcome.state for outcome in result.namespaces.values()} == {State.NORMAL}


def test_netid_0_is_refused_and_others_unaffected() -> None:
    result = plan([host("node1", A)], [netns("one", 0, A), netns("default", 0), netns("two", 6)])
    (conflict,) = result.conflicts
    assert conflict.startswith("NetID 0")
    assert "one" in conflict
    assert only(result, "one") == NamespacePlan("one", 0, State.NORMAL, reasons=(conflict,))
    assert only(result, "default") == NamespacePlan("default", 0, State.NORMAL)
    assert result.by_netid() == {}


@pytest.mark.parametrize("netid", [-1, MAX_NETID + 1])
def test_a_netid_out_of_range_is_refused_and_has_no_flow(netid: int) -> None:
    result = plan([host("node1", A)], [netns("one", netid, A)])
    assert str(netid) in result.conflicts[0]
    assert result.by_netid() == {}


# What else an input can hold


def test_a_text_that_is_no_address_is_named_and_drops() -> None:
    result = plan([host("node1", "x")], [netns("app", 5, "y")])
    assert only(result).state is State.DROP
    assert only(result).reasons == ("egressIPs: 'y' is not an IP address",)
    assert result.conflicts == ("HostSubnet node1: egressIPs: 'x' is not an IP address",)


def test_a_node_without_a_usable_host_ip_hosts_nothing_and_is_named() -> None:
    result = plan([host("node1", A, ip="x")], [netns("app", 5, A)])
    assert only(result).state is State.DROP
    assert "HostSubnet node1: hostIP: 'x' is not an IP address" in result.conflicts
    assert "node1" in only(result).reasons[0]


def test_a_node_s_own_ip_is_no_egress_address() -> None:
    result = plan([host("node1", IP["node2"]), host("node2")], [netns("app", 5, IP["node2"])])
    assert only(result).state is State.DROP
    assert result.conflicts == (f"address {IP['node2']} is the own IP of node node2",)


def test_two_nodes_with_one_host_ip_are_a_conflict_whatever_the_order() -> None:
    hosts = [host("node1", A, ip=B), host("node2", B, ip=B)]
    results = [plan(order, [netns("app", 5, A)]) for order in (hosts, hosts[::-1])]
    assert results[0] == results[1]
    assert f"hostIP {B} is of HostSubnets node1 and node2" in results[0].conflicts
    assert only(results[0]).state is State.DROP  # the packets might reach the other node


def test_the_same_address_twice_in_one_list_counts_once() -> None:
    result = plan([host("node1", A, A)], [netns("app", 5, A, A)])
    assert only(result).via == (hop(A, "node1"),)
    assert result.conflicts == ()


# Properties

NODES = ("n1", "n2", "n3", "n4")
addresses = st.sampled_from([f"10.9.0.{n}" for n in range(1, 8)] + ["fd00::1", "x", "10.8.0.1"])
address_lists = st.lists(addresses, max_size=4).map(tuple)
host_subnets = st.builds(
    HostSubnet,
    name=st.sampled_from(NODES),
    host_ip=st.sampled_from(["10.8.0.1", "10.8.0.2", "10.8.0.3", "10.8.0.4", "x"]),
    egress_ips=address_lists,
)
net_namespaces = st.builds(
    NetNamespace,
    name=st.sampled_from(["a", "b", "c", "d", "e"]),
    netid=st.sampled_from([0, 1, 2, 3, 4, 5, MAX_NETID, MAX_NETID + 1, -1]),
    egress_ips=address_lists,
)
acknowledgements = st.none() | st.frozensets(
    st.tuples(
        st.sampled_from([f"10.9.0.{n}" for n in range(1, 8)]).map(IPv4Address),
        st.sampled_from(NODES),
        st.integers(1, 5),
    )
)


@dataclass
class World:
    """The objects of a cluster after a sequence of changes, as a watch would hold them."""

    hosts: dict[str, HostSubnet] = field(default_factory=dict)
    namespaces: dict[str, NetNamespace] = field(default_factory=dict)

    def after(self, changes: Iterable[HostSubnet | NetNamespace]) -> World:
        for value in changes:
            if isinstance(value, HostSubnet):
                self.hosts[value.name] = value
            else:
                self.namespaces[value.name] = value
        return self


changes = st.lists(host_subnets | net_namespaces, max_size=20)


@given(changes, st.frozensets(st.sampled_from(NODES)), acknowledgements, st.data())
def test_any_sequence_of_changes_that_ends_in_the_same_objects_gives_the_same_plan(
    sequence: list[HostSubnet | NetNamespace],
    offline: frozenset[str],
    acknowledged: frozenset[tuple[IPv4Address, str, int]] | None,
    data: st.DataObject,
) -> None:
    world = World().after(sequence)
    final: list[HostSubnet | NetNamespace] = [*world.hosts.values(), *world.namespaces.values()]
    # Anything may have happened before, and the last change of each object may come in any order.
    other = World().after(data.draw(changes))
    other.hosts = {name: value for name, value in other.hosts.items() if name in world.hosts}
    other.namespaces = {name: value for name, value in other.namespaces.items() if name in world.namespaces}
    other = other.after(data.draw(st.permutations(final)))
    shuffled = World().after(data.draw(st.permutations(final)))
    results = [
        plan(w.hosts.values(), list(w.namespaces.values()), offline=offline, acknowledged=acknowledged)
        for w in (world, other, shuffled)
    ]
    assert results[0] == results[1] == results[2]
    assert list(results[0].namespaces) == list(results[1].namespaces) == sorted(world.namespaces)


@given(changes, st.data())
def test_the_order_inside_the_lists_means_nothing(
    sequence: list[HostSubnet | NetNamespace], data: st.DataObject
) -> None:
    world = World().after(sequence)

    def shuffled(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(data.draw(st.permutations(values)))

    hosts = [HostSubnet(h.name, h.host_ip, shuffled(h.egress_ips)) for h in world.hosts.values()]
    namespaces = [NetNamespace(n.name, n.netid, shuffled(n.egress_ips)) for n in world.namespaces.values()]
    assert plan(hosts, namespaces) == plan(world.hosts.values(), list(world.namespaces.values()))


@given(changes, st.frozensets(st.sampled_from(NODES)), acknowledgements)
def test_invariants(
    sequence: list[HostSubnet | NetNamespace],
    offline: frozenset[str],
    acknowledged: frozenset[tuple[IPv4Address, str, int]] | None,
) -> None:
    world = World().after(sequence)
    namespaces = list(world.namespaces.values())
    result = plan(world.hosts.values(), namespaces, offline=offline, acknowledged=acknowledged)

    assert result.namespaces.keys() == world.namespaces.keys()
    sharing = Counter(namespace.netid for namespace in namespaces)
    users: Counter[object] = Counter()
    hosting: dict[object, set[str]] = {}
    for name, outcome in result.namespaces.items():
        namespace = world.namespaces[name]
        used = outcome.via + outcome.claims
        if namespace.egress_ips:
            assert outcome.state is not State.NORMAL or not 0 < namespace.netid <= MAX_NETID
        elif sharing[namespace.netid] == 1:
            assert outcome == NamespacePlan(name, namespace.netid, State.NORMAL)
        assert (outcome.state is State.VIA) == bool(outcome.via)
        assert outcome.state is State.NORMAL or outcome.via or outcome.reasons
        assert len({h.node for h in used}) == len(used)
        for h in used:
            users[h.address] += 1
            hosting.setdefault(h.address, set()).add(h.node)
            assert str(h.address) in namespace.egress_ips
            assert str(h.address) in world.hosts[h.node].egress_ips
            assert h.node not in offline
            assert h.node_ip == parse_address(world.hosts[h.node].host_ip)
        if acknowledged is not None:
            assert all((h.address, h.node, outcome.netid) in acknowledged for h in outcome.via)
            assert not any((h.address, h.node, outcome.netid) in acknowledged for h in outcome.claims)
    assert all(count == 1 for count in users.values())
    assert all(len(nodes) == 1 for nodes in hosting.values())
    # No address in use is anywhere else, not even where its row was refused for another reason.
    for address in users:
        assert sum(str(address) in namespace.egress_ips for namespace in namespaces) == 1
        assert sum(str(address) in h.egress_ips for h in world.hosts.values()) == 1
        assert not any(is_same(h.host_ip, address) for h in world.hosts.values())
    assert list(result.conflicts) == sorted(set(result.conflicts))
    for netid, outcome in result.by_netid().items():
        assert 0 < netid <= MAX_NETID
        assert outcome.state is not State.NORMAL
        assert sharing[netid] == 1 or outcome.state is State.DROP


def is_same(text: str, address: object) -> bool:
    try:
        return parse_address(text) == address
    except AddressError:
        return False
