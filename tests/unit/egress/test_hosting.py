"""Which addresses want a node, which may move, and which nodes must let one go."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.board import Unplaced
from egress.hosting import Resident, hosting
from egress.objects import EgressAddress, EgressPool, HostSubnet, NetNamespace, Origin, Phase

A, B, C = (IPv4Address(f"192.168.1.{last}") for last in (102, 103, 104))
POOL = EgressPool("prod", ("192.168.1.0/24",))
CIDRS = ("192.168.1.0/24",)


def claim(address: IPv4Address, namespace: str = "a", **changes: object) -> EgressAddress:
    return EgressAddress(str(address), "prod", namespace, "", **changes)  # type: ignore[arg-type]


def subnet(name: str, *addresses: IPv4Address, cidrs: tuple[str, ...] = ()) -> HostSubnet:
    return HostSubnet(name, "192.168.1.17", tuple(map(str, addresses)), cidrs)


def bound(name: str, *addresses: IPv4Address) -> NetNamespace:
    return NetNamespace(name, 7, tuple(map(str, addresses)))


def test_a_claim_without_a_node_is_homeless_and_one_with_a_node_lives_there() -> None:
    found = hosting([claim(A), claim(B, "b", move_to="n2")], [subnet("n1", B)], [], [POOL])
    assert found.homeless == (Unplaced(A, "a", POOL),)
    assert found.residents == (Resident(Unplaced(B, "b", POOL), "n1", "n2"),)


def test_quarantine_and_doubles_leave_and_an_admins_double_stays() -> None:
    claims = [
        claim(A, phase=Phase.QUARANTINED),
        claim(B, "b", node="n2"),
        claim(C, "c", origin=Origin.MANUAL),
    ]
    found = hosting(claims, [subnet("n1", A, B, C), subnet("n2", B, C)], [], [POOL])
    assert found.surplus == {("n1", A), ("n1", B)}
    assert [resident.node for resident in found.residents] == ["n2"]


def test_of_several_nodes_one_that_lives_keeps_the_address_first_the_one_asked_for_then_the_one_that_had_it() -> None:
    hosts = [subnet("n1", A), subnet("n2", A), subnet("n3", A)]

    def keeper(gone: set[str], **changes: str) -> str:
        return hosting([claim(A, **changes)], hosts, [], [POOL], gone=gone).residents[0].node

    assert keeper(set()) == "n1"
    assert keeper(set(), node="n3") == "n3"
    assert keeper(set(), node="n3", move_to="n2") == "n2"
    assert keeper({"n3"}, node="n3") == "n1"
    assert keeper({"n1", "n2", "n3"}, node="n3") == "n3"


def test_a_manual_claim_is_moved_by_nobody_but_a_request() -> None:
    (resident,) = hosting([claim(A, origin=Origin.MANUAL)], [subnet("n1", A)], [], [POOL]).residents
    assert resident.fixed


def test_a_claim_whose_pool_is_gone_says_so() -> None:
    found = hosting([claim(A), claim(B, "b")], [subnet("n1", B)], [], [])
    reason = "its EgressPool prod is gone or cannot be read"
    assert found.poolless == {A: ("", reason), B: ("n1", reason)}
    assert found.homeless == found.residents == ()


def test_addresses_that_an_admin_bound_are_their_namespaces_too() -> None:
    assert hosting([claim(A)], [], [bound("a", B)], [POOL]).siblings == {"a": {A, B}}


@pytest.mark.parametrize("cidrs", [(), ("192.168.2.0/24",), ("nonsense",)])
def test_without_covering_cidrs_an_address_without_a_claim_is_the_admins(cidrs: tuple[str, ...]) -> None:
    found = hosting([], [subnet("n1", A, cidrs=cidrs), subnet("n2", C, cidrs=cidrs)], [bound("a", A, B)], [POOL])
    assert (found.surplus, found.homeless, found.residents) == (frozenset(), (), ())


def test_with_covering_cidrs_it_is_placed_kept_once_and_taken_off() -> None:
    hosts = [subnet("n1", B, C, cidrs=CIDRS), subnet("n2", B, cidrs=CIDRS)]
    found = hosting([], hosts, [bound("a", A, B)], [POOL])
    assert found.homeless == (Unplaced(A, "a", None),)
    assert found.residents == (Resident(Unplaced(B, "a", None), "n1"),)
    assert found.surplus == {("n2", B), ("n1", C)}


def test_nothing_is_taken_off_for_want_of_a_net_namespace_that_may_be_there() -> None:
    found = hosting([], [subnet("n1", C, cidrs=CIDRS)], [], [POOL], all_read=False)
    assert found.surplus == frozenset()


def test_a_claim_comes_before_cidrs() -> None:
    found = hosting([claim(A)], [subnet("n1", A, cidrs=CIDRS)], [], [POOL])
    assert found.residents == (Resident(Unplaced(A, "a", POOL), "n1"),)
    assert found.surplus == frozenset()


def test_a_host_without_cidrs_comes_before_those_with() -> None:
    found = hosting([], [subnet("n1", A, cidrs=CIDRS), subnet("n2", A)], [bound("a", A)], [])
    assert found.surplus == {("n1", A)}
    assert found.residents == ()


addresses = st.sets(st.sampled_from([A, B, C]), max_size=3)
subnets = st.lists(
    st.builds(
        lambda name, hosted, cidrs: subnet(name, *sorted(hosted), cidrs=cidrs),
        st.sampled_from(["n1", "n2", "n3"]),
        addresses,
        st.sampled_from([(), CIDRS]),
    ),
    unique_by=lambda item: item.name,
)
claims = st.lists(
    st.builds(
        lambda address, namespace, phase, origin, node: claim(
            address, namespace, phase=phase, origin=origin, node=node
        ),
        st.sampled_from([A, B, C]),
        st.sampled_from("ab"),
        st.sampled_from([Phase.READY, Phase.QUARANTINED]),
        st.sampled_from(list(Origin)),
        st.sampled_from(["", "n1", "n2"]),
    ),
    unique_by=lambda item: item.address,
)
bindings = st.lists(
    st.builds(lambda name, held: bound(name, *sorted(held)), st.sampled_from("abc"), addresses),
    unique_by=lambda item: item.name,
)


@given(claims, subnets, bindings, st.data())
def test_the_order_means_nothing_and_no_address_is_in_two_lists(
    claimed: list[EgressAddress], hosts: list[HostSubnet], nets: list[NetNamespace], data: st.DataObject
) -> None:
    found = hosting(claimed, hosts, nets, [POOL])
    again = hosting(
        data.draw(st.permutations(claimed)), data.draw(st.permutations(hosts)), data.draw(st.permutations(nets)), [POOL]
    )
    assert again == found
    listed = [item.address for item in found.homeless] + [resident.item.address for resident in found.residents]
    assert len(listed) == len(set(listed))
    by_name = {host.name: host for host in hosts}
    assert all(str(address) in by_name[node].egress_ips for node, address in found.surplus)
    assert all((resident.node, resident.item.address) not in found.surplus for resident in found.residents)
