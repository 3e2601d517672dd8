"""How full pools are, what is wrong with them, and whose address no longer fits."""

from dataclasses import replace
from ipaddress import ip_address
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.addresses import Address, make_address
from egress.objects import (
    POOL_ANNOTATION,
    EgressAddress,
    EgressPool,
    Namespace,
    OnUnselected,
    Origin,
    Phase,
    PoolCounts,
    Selector,
)
from egress.pools import ranges
from egress.stock import MISMATCH, MOST, Standing, Stock

PROD = EgressPool("prod", ("10.0.0.1-10.0.0.8",), namespace_selector=Selector({"env": "prod"}))
OTHER = EgressPool("other", ("10.0.1.1-10.0.1.4",), namespace_selector=Selector())
APP = Namespace("app", "u1", labels={"env": "prod"})
A, B = ip_address("10.0.0.1"), ip_address("10.0.0.2")
CLAIM = EgressAddress(str(A), "prod", "app", "u1")
TEST = replace(APP, labels={"env": "test"})


def standing(pool: EgressPool | None = PROD, namespace: Namespace = APP, claim: EgressAddress = CLAIM) -> Standing:
    return Stock.of([pool, OTHER] if pool else [OTHER]).standing(claim, namespace)


def asking(text: str) -> Namespace:
    return replace(APP, annotations={POOL_ANNOTATION: text})


def test_an_address_that_its_pool_would_give_again_stays() -> None:
    assert standing() == Standing()
    assert standing(namespace=replace(TEST, annotations={POOL_ANNOTATION: "prod"})) == Standing()
    assert standing(replace(PROD, namespace_selector=None), asking("prod")) == Standing()


@pytest.mark.parametrize(
    ("pool", "namespace", "reason"),
    [
        (None, APP, "PoolGone"),
        (PROD, TEST, "NotSelected"),
        (replace(PROD, namespace_selector=None), APP, "NotSelected"),
        (PROD, asking("other"), "OtherPoolAsked"),
        (replace(PROD, on_unselected=OnUnselected.RELEASE), asking("other"), "OtherPoolAsked"),
        (replace(PROD, deleting=True), APP, "PoolDeleting"),
        (replace(PROD, deleting=True, on_unselected=OnUnselected.RELEASE), TEST, "NotSelected"),
        (replace(PROD, cidrs=("10.0.0.2-10.0.0.8",)), APP, "NotCovered"),
        (replace(PROD, excluded=("10.0.0.1",)), APP, "NotCovered"),
    ],
)
def test_an_address_that_does_not_fit_stays_and_says_why(
    pool: EgressPool | None, namespace: Namespace, reason: str
) -> None:
    found = standing(pool, namespace)
    assert (found.release, found.reason) == (False, reason)
    assert found.message.endswith("10.0.0.1 stays with app")


def test_a_namespace_and_a_pool_may_wish_an_address_to_go() -> None:
    assert standing(namespace=asking(" none ")).release
    assert standing(None, asking("none")).release
    assert standing(replace(PROD, on_unselected=OnUnselected.RELEASE), TEST).release


def test_what_a_person_has_claimed_is_not_hawses_to_release() -> None:
    by_hand = replace(CLAIM, origin=Origin.MANUAL)
    assert not standing(namespace=asking("none"), claim=by_hand).release
    assert not standing(replace(PROD, on_unselected=OnUnselected.RELEASE), TEST, by_hand).release
    assert standing(namespace=asking("none"), claim=replace(by_hand, pool="")) == Standing()


def test_only_standing_claims_of_living_namespaces_are_marked() -> None:
    claims = [
        CLAIM,
        replace(CLAIM, address="10.0.0.2", namespace_uid="gone"),
        replace(CLAIM, address="10.0.0.3", phase=Phase.QUARANTINED),
        replace(CLAIM, address="10.0.0.9"),
    ]
    found = Stock.of([PROD]).mismatches(claims, [APP])
    assert found.keys() == {A, ip_address("10.0.0.9")}
    assert found[A] is None
    condition = found[ip_address("10.0.0.9")]
    assert condition is not None
    assert (condition.type, condition.status, condition.reason) == (MISMATCH, True, "NotCovered")


def test_reservations_and_what_was_set_by_hand_count_as_allocated() -> None:
    usage = {
        A: ("claimed", "ns/app"),
        B: ("reserved", "ns/b"),
        ip_address("10.0.0.3"): ("quarantined", "ns/c"),
        ip_address("10.0.0.4"): ("claimed", "manual/d"),
        ip_address("10.0.0.5"): ("claimed", "ns/outside"),
        ip_address("10.9.9.9"): ("claimed", "ns/elsewhere"),
    }
    stock = Stock.of([PROD], {ip_address("10.0.0.5"), ip_address("10.0.0.6")})
    assert stock.counts(usage) == {"prod": PoolCounts(6, 3, 1, 2)}


def test_a_pool_of_more_addresses_than_a_status_can_hold() -> None:
    stock = Stock.of([EgressPool("six", ("2001:db8::/32",))])
    counts = stock.counts({ip_address("2001:db8::5"): ("claimed", "ns/a")})["six"]
    assert counts == PoolCounts(MOST, 1, 0, MOST - 1)


_blocks = st.integers(0, 40).flatmap(lambda first: st.tuples(st.just(first), st.integers(first, 45)))


@given(
    st.lists(_blocks, min_size=1, max_size=5),
    st.lists(_blocks, max_size=3),
    st.sets(st.integers(0, 45)),
    st.dictionaries(st.integers(0, 50), st.sampled_from(["reserved", "claimed", "quarantined"])),
)
def test_the_counts_always_add_up_and_lookup_agrees_with_the_ranges(
    blocks: list[tuple[int, int]], holes: list[tuple[int, int]], own: set[int], used: dict[int, str]
) -> None:
    base = int(ip_address("10.0.0.0"))

    def address(number: int) -> Address:
        return make_address(base + number, 4)

    def texts(pairs: list[tuple[int, int]]) -> tuple[str, ...]:
        return tuple(f"{address(first)}-{address(last)}" for first, last in pairs)

    pool = EgressPool("p", texts(blocks), texts(holes))
    withheld = {address(number) for number in own}
    stock = Stock.of([pool], withheld)
    members = {item for piece in ranges(pool, withheld) for item in piece}
    assert {item for item in map(address, range(60)) if stock.covers("p", item)} == members
    usage = {address(number): (state, "ns/x") for number, state in used.items()}
    counts = stock.counts(usage)["p"]
    assert counts.capacity == len(members)
    assert counts.allocated + counts.quarantined + counts.free == counts.capacity
    assert counts.quarantined == sum(item in members and state == "quarantined" for item, (state, _) in usage.items())
    assert counts.free == len(members - usage.keys())


# What is said of a pool


def said(stock: Stock, pool: str, claims: list[EgressAddress], waiting: list[Address]) -> dict[str, str]:
    return {condition.type: condition.message for condition in stock.conditions(pool, claims, waiting)}


def test_a_pool_without_trouble_is_valid_and_nothing_else() -> None:
    assert said(Stock.of([PROD, OTHER]), "prod", [CLAIM], []) == {"Valid": ""}


def test_addresses_in_use_that_the_pool_has_no_more_are_named() -> None:
    claims = [replace(CLAIM, address=f"10.0.0.{last}") for last in (9, 10, 11, 12, 1)]
    found = said(Stock.of([PROD]), "prod", claims, [])
    assert found["InUseOutside"].startswith("10.0.0.9, 10.0.0.10, 10.0.0.11 and 1 more:")


def test_pools_that_overlap_name_each_other_whatever_their_order() -> None:
    pools = [PROD, replace(OTHER, cidrs=("10.0.0.7-10.0.1.1",)), EgressPool("third", ("10.0.0.8",))]
    for order in permutations(pools):
        stock = Stock.of(order)
        assert said(stock, "prod", [], [])["Overlapping"] == "10.0.0.7-10.0.0.8 in other too; 10.0.0.8 in third too"
        assert "10.0.0.8 in prod too" in said(stock, "third", [], [])["Overlapping"]


def test_the_successor_of_a_pool_that_is_deleted_does_not_overlap_it() -> None:
    stock = Stock.of([replace(PROD, deleting=True), replace(PROD, name="next")])
    assert said(stock, "next", [], []) == {"Valid": ""}
    assert "10.0.0.1" in said(stock, "prod", [CLAIM], [A])["Deleting"]


def test_a_pool_waits_for_its_claims_and_for_what_it_promised() -> None:
    going = replace(PROD, deleting=True)
    claims = [
        replace(CLAIM, address="10.0.7.7"),  # the pool was edited since
        replace(CLAIM, address="10.0.0.2", phase=Phase.QUARANTINED),
        replace(CLAIM, address="10.0.0.3", pool="other"),
    ]
    usage = {
        ip_address("10.0.0.3"): ("claimed", "ns/x"),
        ip_address("10.0.0.4"): ("reserved", "ns/y"),
        ip_address("10.0.0.5"): ("claimed", "ns/z"),  # whose object was made after the list was read
        ip_address("10.0.0.6"): ("claimed", "manual/x"),
    }
    found = Stock.of([going]).waiting_for("prod", claims, usage)
    assert list(map(str, found)) == ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.7.7"]
    successor = replace(PROD, name="next", cidrs=("10.0.0.4",))
    assert ip_address("10.0.0.4") not in Stock.of([going, successor]).waiting_for("prod", claims, usage)
    assert Stock.of([going]).waiting_for("prod", [], {}) == []


@given(
    st.lists(_blocks, min_size=1, max_size=5), st.lists(_blocks, min_size=1, max_size=5), st.sets(st.integers(0, 45))
)
def test_an_overlap_is_found_where_there_is_one(
    mine: list[tuple[int, int]], theirs: list[tuple[int, int]], own: set[int]
) -> None:
    base = int(ip_address("10.0.0.0"))

    def pool(name: str, pairs: list[tuple[int, int]]) -> EgressPool:
        texts = (f"{make_address(base + first, 4)}-{make_address(base + last, 4)}" for first, last in pairs)
        return EgressPool(name, tuple(texts))

    stock = Stock.of([pool("a", mine), pool("b", theirs)], {make_address(base + number, 4) for number in own})
    everything = [make_address(base + number, 4) for number in range(60)]
    shared = [item for item in everything if stock.covers("a", item) and stock.covers("b", item)]
    text = said(stock, "a", [], []).get("Overlapping")
    assert (text is not None) == bool(shared)
    if text is not None:
        assert text.startswith(str(shared[0]))
