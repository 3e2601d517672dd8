"""Parsing, ranges, object names and packet marks."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from egress.addresses import (
    KUBE_PROXY_BITS,
    Address,
    AddressError,
    Range,
    assign_marks,
    from_object_name,
    object_name,
    parse_address,
    parse_range,
    preferred_mark,
    subtract,
)

ipv4 = st.ip_addresses(v=4)
any_address = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def is_usable(address: Address) -> bool:
    try:
        parse_address(str(address))
    except AddressError:
        return False
    return True


unicast = any_address.filter(is_usable)

# Few low bits and the bits that are folded: most sets collide.
colliding = st.builds(
    lambda high, fold, low: IPv4Address(high << 16 | fold << 14 | low),
    st.sampled_from([0xC0A8, 0x80A8, 0x40A8, 0x00A8, 0xC0A9, 0x80A9]),
    st.integers(0, 3),
    st.integers(1, 2),
)


# Parsing


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1.2.3",
        "1.2.3.4.5",
        "1.2.3.256",
        "192.168.001.2",
        " 1.2.3.4",
        "1.2.3.4/32",
        "224.0.0.1",
        "0.0.0.0",
        "127.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
        "fe80::1%eth0",
        "::ffff:192.168.1.2",
    ],
)
def test_what_is_no_usable_address_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(AddressError) as error:
        parse_address(text)
    assert repr(text) in str(error.value)


@given(unicast)
def test_an_object_name_gives_its_address_back(address: Address) -> None:
    name = object_name(address)
    assert from_object_name(name) == address
    assert ":" not in name


def test_the_object_name_of_an_ipv6_address_is_expanded_with_dashes() -> None:
    assert object_name(IPv6Address("fd00::1")) == "fd00-0000-0000-0000-0000-0000-0000-0001"


@pytest.mark.parametrize("name", ["fd00--1", "FD00-0000-0000-0000-0000-0000-0000-0001", "fd00::1", "1-2", "web", ""])
def test_a_name_that_is_not_canonical_is_refused(name: str) -> None:
    with pytest.raises(AddressError):
        from_object_name(name)


# Ranges


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("192.168.1.0/24", "192.168.1.1", "192.168.1.254"),
        ("192.168.1.0/30", "192.168.1.1", "192.168.1.2"),
        ("192.168.1.0/31", "192.168.1.0", "192.168.1.1"),
        ("192.168.1.7/32", "192.168.1.7", "192.168.1.7"),
        ("192.168.1.7", "192.168.1.7", "192.168.1.7"),
        ("192.168.1.0-192.168.1.255", "192.168.1.0", "192.168.1.255"),
        ("192.168.1.5 - 192.168.1.5", "192.168.1.5", "192.168.1.5"),
        ("fd00::/126", "fd00::1", "fd00::3"),
        ("fd00::/127", "fd00::", "fd00::1"),
        ("fd00::5", "fd00::5", "fd00::5"),
    ],
)
def test_parse_range(text: str, first: str, last: str) -> None:
    parsed = parse_range(text)
    assert (parsed.first, parsed.last) == (
        int(ipaddress.ip_address(first)),
        int(ipaddress.ip_address(last)),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "10.0.0.1-",
        "-10.0.0.1",
        "10.0.0.9-10.0.0.1",
        "10.0.0.1-fd00::1",
        "10.0.0.1/24",
        "10.0.0.0/33",
        "x/24",
        "224.0.0.0/24",
        "127.0.0.0/8",
        "0.0.0.0/32",
        "ff02::/16",
        "0.0.0.0/0",
        "126.0.0.1-128.0.0.1",
        "10.0.0.0/255.255.255.0",
        "10.0.0.0/08",
        " 10.0.0.1-10.0.0.2",
    ],
)
def test_what_is_no_range_of_usable_addresses_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_range(text)


ranges = st.builds(
    lambda version, first, size: Range(version, first, first + size),
    st.sampled_from([4, 6]),
    st.integers(1, 60),
    st.integers(0, 20),
)


@given(ranges)
def test_a_range_s_text_gives_it_back(piece: Range) -> None:
    shifted = Range(piece.version, piece.first + (10 << 24), piece.last + (10 << 24))
    assert parse_range(str(shifted)) == shifted


@given(st.integers(0, 2**32 - 1), st.integers(8, 32))
def test_a_cidr_s_addresses_are_its_hosts(value: int, length: int) -> None:
    network = ipaddress.ip_network((value >> (32 - length) << (32 - length), length))
    if not (is_usable(network[0]) and is_usable(network[-1])):
        return
    parsed = parse_range(str(network))
    hosts = network.num_addresses if length >= 31 else network.num_addresses - 2
    assert parsed.size == hosts
    assert network[0] in parsed or length < 31
    assert make_both(parsed)[0] in network
    assert make_both(parsed)[1] in network


def make_both(piece: Range) -> tuple[Address, Address]:
    return IPv4Address(piece.first), IPv4Address(piece.last)


def members(pieces: list[Range] | tuple[Range, ...]) -> set[tuple[int, int]]:
    return {(piece.version, value) for piece in pieces for value in range(piece.first, piece.last + 1)}


@given(st.lists(ranges, max_size=6), st.lists(ranges, max_size=6))
def test_subtract_is_set_difference_as_sorted_disjoint_ranges(pieces: list[Range], holes: list[Range]) -> None:
    result = subtract(pieces, holes)
    assert members(result) == members(pieces) - members(holes)
    assert list(result) == sorted(result)
    assert sum(piece.size for piece in result) == len(members(result))  # disjoint
    assert all(piece.first <= piece.last for piece in result)


@given(st.lists(ranges, max_size=6), st.lists(ranges, max_size=6), st.randoms(use_true_random=False))
def test_subtract_depends_on_no_order(pieces: list[Range], holes: list[Range], random: object) -> None:
    shuffled_pieces, shuffled_holes = list(pieces), list(holes)
    random.shuffle(shuffled_pieces)  # type: ignore[attr-defined]
    random.shuffle(shuffled_holes)  # type: ignore[attr-defined]
    assert members(subtract(shuffled_pieces, shuffled_holes)) == members(subtract(pieces, holes))


def test_subtract_works_on_networks_too_large_to_enumerate() -> None:
    hole = parse_range("fd00::ffff")
    before, after = subtract([parse_range("fd00::/64")], [hole])
    assert before.size + after.size == 2**64 - 2
    assert IPv6Address("fd00::ffff") not in before
    assert IPv6Address("fd00::ffff") not in after


# Marks


def test_the_reference_address_is_its_own_mark() -> None:
    assert assign_marks([IPv4Address("192.168.1.102")]) == {IPv4Address("192.168.1.102"): 0xC0A80166}


def test_all_of_192_168() -> None:
    addresses = [IPv4Address(0xC0A80000 | low) for low in range(0x10000)]
    marks = assign_marks(addresses)
    assert len(set(marks.values())) == len(addresses)
    for address, mark in marks.items():
        assert mark
        assert not mark & KUBE_PROXY_BITS
        if not int(address) & KUBE_PROXY_BITS:
            assert mark == int(address)


def test_a_pool_of_ipv6_has_a_mark_for_each_that_an_ipv4_pool_beside_it_leaves_alone() -> None:
    six = [IPv6Address((0x20010DB8 << 96) | low) for low in range(1, 0x10000)]
    four = [IPv4Address(0xC0A80000 | low) for low in range(0x4000)]
    marks = assign_marks([*six, *four])
    assert len(set(marks.values())) == len(marks) == len(six) + len(four)
    assert not any(mark & KUBE_PROXY_BITS or not mark for mark in marks.values())
    assert all(marks[address] == int(address) for address in four)
    assert marks == assign_marks([*reversed(four), *reversed(six)])


def test_samples_of_10() -> None:
    addresses = [IPv4Address(0x0A000000 | low) for low in range(1, 0x1000000, 257)]
    marks = assign_marks(addresses)
    assert len(set(marks.values())) == len(addresses)
    assert not any(mark & KUBE_PROXY_BITS or not mark for mark in marks.values())


@given(any_address)
@example(IPv4Address("64.0.64.0"))  # folds to 0, which is no mark
@example(IPv4Address("192.0.192.0"))
@example(IPv6Address("::"))
def test_any_address_alone_has_a_mark_that_nobody_else_uses(address: Address) -> None:
    (mark,) = assign_marks([address]).values()
    assert 0 < mark <= 0xFFFFFFFF
    assert not mark & KUBE_PROXY_BITS


mixed = st.lists(st.one_of(colliding, any_address), max_size=30, unique=True)


@given(mixed)
def test_marks_are_unique_on_the_node(addresses: list[Address]) -> None:
    marks = assign_marks(addresses)
    assert marks.keys() == set(addresses)
    assert len(set(marks.values())) == len(marks)
    assert all(0 < mark <= 0xFFFFFFFF and not mark & KUBE_PROXY_BITS for mark in marks.values())


@given(mixed, st.randoms(use_true_random=False))
def test_marks_depend_on_no_order(addresses: list[Address], random: object) -> None:
    shuffled = list(addresses)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign_marks(shuffled) == assign_marks(addresses)


@given(mixed)
def test_an_address_that_is_its_own_mark_has_it_whatever_collides(addresses: list[Address]) -> None:
    marks = assign_marks(addresses)
    for address in addresses:
        if address.version == 4 and int(address) and not int(address) & KUBE_PROXY_BITS:
            assert marks[address] == int(address)


@given(st.lists(mixed, min_size=2, max_size=6))
def test_an_address_that_stays_keeps_its_mark(history: list[list[Address]]) -> None:
    marks: dict[Address, int] = {}
    for addresses in history:
        following = assign_marks(addresses, marks)
        for address in following.keys() & marks.keys():
            assert following[address] == marks[address]
        marks = following


@given(st.lists(mixed, min_size=2, max_size=6))
def test_no_mark_changes_hands_in_one_step(history: list[list[Address]]) -> None:
    marks: dict[Address, int] = {}
    for addresses in history:
        following = assign_marks(addresses, marks)
        before = {mark: address for address, mark in marks.items()}
        assert all(before.get(mark, address) == address for address, mark in following.items())
        marks = following


@given(
    mixed,
    st.dictionaries(colliding, st.integers(0, 0x1FFFFFFFF) | st.sampled_from([0, 0x4000, 0x8000, 0xC0A80001])),
)
def test_a_previous_mark_that_may_not_be_used_is_replaced(
    addresses: list[Address], previous: dict[Address, int]
) -> None:
    marks = assign_marks(addresses, previous)
    assert len(set(marks.values())) == len(set(addresses))
    assert all(0 < mark <= 0xFFFFFFFF and not mark & KUBE_PROXY_BITS for mark in marks.values())


def test_it_ends_even_when_every_mark_with_the_same_low_half_is_taken() -> None:
    held: dict[Address, int] = {}
    for low in (1, 2):  # all marks whose low half is 1, and all whose low half is 2, are held
        for high in range(0x10000):
            held[IPv6Address(1 << 64 | low << 32 | high)] = high << 16 | low
    late = IPv4Address("192.168.0.1")
    marks = assign_marks([*held, late], held)
    assert marks[late] & 0xFFFF == 3
    assert len(set(marks.values())) == len(held) + 1


@given(ipv4)
def test_the_preferred_mark_never_holds_kube_proxy_s_bits(address: IPv4Address) -> None:
    assert not preferred_mark(address) & KUBE_PROXY_BITS
