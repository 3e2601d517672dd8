"""Which objects list an address."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from egress.addresses import parse_address
from egress.listing import Listed, who_lists
from egress.objects import HostSubnet, NetNamespace

A, B, SIX = (parse_address(text) for text in ("10.0.0.1", "10.0.0.2", "fd00::1"))


def test_every_list_is_named_in_order_and_only_once() -> None:
    subnets = [HostSubnet("node2", "", ("10.0.0.1",)), HostSubnet("node1", "", ("10.0.0.1", "10.0.0.1", "FD00:0::1"))]
    bindings = [NetNamespace("shop", 5, ("10.0.0.2", "10.0.0.1"))]
    assert who_lists(subnets, bindings) == {
        A: Listed(("node1", "node2"), ("shop",)),
        B: Listed((), ("shop",)),
        SIX: Listed(("node1",)),
    }


def test_what_is_no_address_is_in_no_list() -> None:
    assert who_lists([HostSubnet("node1", "", ("nonsense", ""))], []) == {}


lists = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "x"])), max_size=3
)


@given(lists, lists, st.randoms(use_true_random=False))
def test_the_order_of_the_objects_does_not_matter(
    hosts: dict[str, list[str]], bound: dict[str, list[str]], order: Random
) -> None:
    subnets = [HostSubnet(name, "", tuple(texts)) for name, texts in hosts.items()]
    bindings = [NetNamespace(name, 1, tuple(texts)) for name, texts in bound.items()]
    before = who_lists(subnets, bindings)
    order.shuffle(subnets)
    order.shuffle(bindings)
    assert who_lists(subnets, bindings) == before
    for address, listed in before.items():
        assert set(listed.hosts) == {name for name, texts in hosts.items() if str(address) in texts}
        assert set(listed.namespaces) == {name for name, texts in bound.items() if str(address) in texts}
