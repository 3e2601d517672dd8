"""Reservations, on a real server."""

import multiprocessing
from ipaddress import ip_address

import pytest

from egress.adapters.ledger import (
    Exhausted,
    Held,
    Holding,
    Ledger,
    LedgerAwayError,
    NotReadyError,
    Offer,
    Reserved,
    Standing,
    name_holder,
    request_holder,
)
from egress.addresses import parse_range
from egress.listing import Listed
from egress.objects import EgressPool, Operator, Requirement, Selector
from egress.pools import ranges
from lab.net.broker import Broker

RANGE = [parse_range("192.168.1.102-192.168.1.105")]
A, B, C, D = (ip_address(f"192.168.1.{last}") for last in range(102, 106))


@pytest.fixture(autouse=True)
def ready(ledger: Ledger) -> None:
    ledger.sync([], ledger.now(), ready=True)


def test_takes_the_lowest_free_addresses(ledger: Ledger) -> None:
    assert ledger.reserve("ns/a", 1, RANGE) == Reserved((A,))
    assert ledger.reserve("ns/b", 2, RANGE) == Reserved((B, C))


def test_the_same_holder_gets_the_same_again(ledger: Ledger) -> None:
    first = ledger.reserve("ns/a", 2, RANGE)
    assert ledger.reserve("ns/a", 2, RANGE) == first
    assert len(ledger.usage()) == 2


def test_a_full_pool_says_its_figures_and_changes_nothing(ledger: Ledger) -> None:
    ledger.reserve("ns/a", 3, RANGE)
    assert ledger.reserve("ns/b", 2, RANGE) == Exhausted(used=3, total=4)
    assert ledger.held_by("ns/b") == ()
    assert ledger.reserve("ns/c", 1, RANGE) == Reserved((D,))


def test_pairs_are_of_both_families_or_nothing(ledger: Ledger) -> None:
    six = [ip_address(f"2001:db8::{last}") for last in ("a", "b", "c")]
    both = [*RANGE, parse_range("2001:db8::a-2001:db8::c")]
    assert ledger.reserve("ns/a", 2, both, pairs=True) == Reserved((A, six[0]))
    assert ledger.reserve("ns/b", 4, both, pairs=True) == Reserved((B, C, *six[1:]))
    assert ledger.reserve("ns/a", 2, both, pairs=True) == Reserved((A, six[0]))
    assert ledger.reserve("ns/c", 2, both, pairs=True) == Exhausted(used=3, total=3)  # of IPv6
    assert ledger.held_by("ns/c") == ()
    assert ledger.reserve("ns/c", 1, both) == Reserved((D,))
    assert ledger.reserve("ns/d", 2, [*RANGE, parse_range("2001:db8::/32")], pairs=True) == Exhausted(used=4, total=4)


def test_a_requested_address_is_given_or_its_being_held_is_said(ledger: Ledger) -> None:
    assert ledger.reserve("ns/a", 1, RANGE, [C]) == Reserved((C,))
    assert ledger.reserve("ns/b", 1, RANGE, [C]) == Held(C)
    assert ledger.reserve("ns/a", 1, RANGE, [C]) == Reserved((C,))


def test_a_reservation_by_request_becomes_the_names(ledger: Ledger) -> None:
    ledger.reserve(request_holder("u-1"), 1, RANGE)
    ledger.claimed(name_holder("team-x"), [A])
    assert ledger.held_by(request_holder("u-1")) == ()
    assert ledger.held_by(name_holder("team-x")) == (A,)
    assert ledger.usage() == {A: ("claimed", "ns/team-x")}


def test_a_quarantined_address_returns_to_its_own_namespace_alone(ledger: Ledger) -> None:
    ledger.claimed("ns/a", [A])
    ledger.quarantined("ns/a", [A])
    assert ledger.reserve("ns/b", 1, RANGE) == Reserved((B,))
    assert ledger.reserve("ns/a", 1, RANGE) == Reserved((A,))
    assert ledger.usage()[A] == ("reserved", "ns/a")


def test_freed_addresses_are_given_again_but_only_by_their_holder(ledger: Ledger) -> None:
    ledger.reserve("ns/a", 1, RANGE)
    ledger.freed("ns/b", [A])
    assert ledger.usage() == {A: ("reserved", "ns/a")}
    ledger.freed("ns/a", [A])
    assert ledger.usage() == {}
    assert ledger.reserve("ns/b", 1, RANGE) == Reserved((A,))


def test_only_unconfirmed_reservations_lapse(ledger: Ledger) -> None:
    ledger.reserve("ns/a", 1, RANGE)
    ledger.reserve("ns/b", 1, RANGE)
    ledger.claimed("ns/a", [A])
    assert ledger.lapsed(older_than=-1) == {B: "ns/b"}
    assert ledger.lapsed(older_than=60) == {}


def test_nothing_is_given_while_the_index_is_not_built(ledger: Ledger) -> None:
    ledger._redis.flushall()
    with pytest.raises(NotReadyError):
        ledger.reserve("ns/a", 1, RANGE)
    with pytest.raises(NotReadyError):
        ledger.offer()
    assert ledger.is_index_new()  # nobody is called a forger by what the next one does not know


def test_sync_follows_the_objects_and_keeps_reservations(ledger: Ledger) -> None:
    ledger.reserve("ns/new", 1, RANGE)
    ledger.claimed("ns/gone", [B])
    holdings = [Holding(C, "ns/c"), Holding(D, "ns/d", quarantined=True)]
    ledger.sync(holdings, ledger.now(), ready=True)
    assert ledger.usage() == {
        A: ("reserved", "ns/new"),
        C: ("claimed", "ns/c"),
        D: ("quarantined", "ns/d"),
    }


def test_sync_does_not_free_what_came_after_its_listing(ledger: Ledger) -> None:
    listed_at = ledger.now()
    ledger.claimed("ns/a", [A])
    ledger.sync([], listed_at, ready=True)
    assert ledger.usage() == {A: ("claimed", "ns/a")}


def test_a_returning_namespace_keeps_its_reservation_through_a_sync(ledger: Ledger) -> None:
    ledger.quarantined("ns/a", [A])
    ledger.reserve("ns/a", 1, RANGE)
    ledger.sync([Holding(A, "ns/a", quarantined=True)], ledger.now() + 1, ready=True)
    assert ledger.usage() == {A: ("reserved", "ns/a")}


def test_ranges_that_cross_blocks_and_ipv6(ledger: Ledger) -> None:
    wide = [parse_range("10.0.255.254-10.1.0.1")]
    got = [ledger.reserve(f"ns/{i}", 1, wide) for i in range(5)]
    assert got[:4] == [
        Reserved((ip_address(text),)) for text in ("10.0.255.254", "10.0.255.255", "10.1.0.0", "10.1.0.1")
    ]
    assert got[4] == Exhausted(4, 4)
    six = [parse_range("2001:db8::ffff-2001:db8::1:0")]
    assert ledger.reserve("ns/six", 2, six) == Reserved((ip_address("2001:db8::ffff"), ip_address("2001:db8::1:0")))


def test_the_offer_round_trips(ledger: Ledger) -> None:
    pool = EgressPool(
        "prod",
        ("192.168.1.96/27",),
        excluded=("192.168.1.100",),
        namespace_selector=Selector({"env": "prod"}, (Requirement("x", Operator.EXISTS),)),
    )
    ledger.set_offer(Offer((pool,), frozenset([A])))
    assert ledger.offer() == Offer((pool,), frozenset([A]))
    assert A not in [address for piece in ranges(pool, [A]) for address in piece]


def test_a_redis_that_is_away_is_said_so_in_time() -> None:
    away = Ledger("redis://127.0.0.1:1/0", timeout=0.2)
    with pytest.raises(LedgerAwayError):
        away.reserve("ns/a", 1, RANGE)


def _reserve_many(url: str, worker: int, count: int, results: "multiprocessing.Queue[list[str]]") -> None:
    ledger = Ledger(url)
    wide = [parse_range("10.0.0.1-10.0.255.254")]
    got = []
    for number in range(count):
        outcome = ledger.reserve(f"ns/w{worker}-{number}", 1, wide)
        assert isinstance(outcome, Reserved)
        got.append(str(outcome.addresses[0]))
    results.put(got)


def test_ten_thousand_concurrent_reservations_give_no_address_twice_and_lose_none(
    ledger: Ledger, broker: Broker
) -> None:
    workers, each = 8, 1250
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[list[str]] = context.Queue()
    processes = [
        context.Process(target=_reserve_many, args=(broker.unix_url, worker, each, results))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    given = [address for _ in processes for address in results.get(timeout=100)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(given) == len(set(given)) == workers * each
    assert {str(address) for address in ledger.usage()} == set(given)
    # The lowest free address each time: nothing was lost on the way either.
    assert max(map(ip_address, given)) == ip_address("10.0.0.1") + workers * each - 1


def test_what_a_rebuilt_index_holds_in_a_row_is_passed_over(ledger: Ledger) -> None:
    ledger._redis.flushall()
    ledger.sync([Holding(A, "ns/a"), Holding(B, "ns/b")], ledger.now(), ready=True)
    assert ledger.reserve("ns/c", 1, RANGE) == Reserved((C,))
    assert ledger.reserve("ns/a", 2, RANGE) == Reserved((A, D))


def test_the_last_bit_of_a_block_is_kept_when_the_block_is_brought_to_length(ledger: Ledger) -> None:
    last = parse_range("10.0.255.254-10.0.255.255")
    ledger.claimed("ns/a", [ip_address("10.0.255.255")])
    assert ledger.reserve("ns/b", 1, [last]) == Reserved((ip_address("10.0.255.254"),))
    assert ledger.reserve("ns/c", 1, [last]) == Exhausted(2, 2)


def test_a_lapsed_reservation_that_was_made_anew_meanwhile_stays(ledger: Ledger) -> None:
    ledger.reserve("ns/a", 1, RANGE)
    ledger.lapse("ns/a", [A], older_than=60)
    assert ledger.usage() == {A: ("reserved", "ns/a")}
    ledger.lapse("ns/b", [A], older_than=-1)
    assert ledger.usage() == {A: ("reserved", "ns/a")}
    ledger.lapse("ns/a", [A], older_than=-1)
    assert ledger.usage() == {}


def test_what_is_no_reservation_does_not_lapse(ledger: Ledger) -> None:
    ledger.claimed("ns/a", [A])
    ledger.lapse("ns/a", [A], older_than=-1)
    assert ledger.usage() == {A: ("claimed", "ns/a")}


def test_the_end_of_a_quarantine_takes_nothing_from_a_namespace_that_is_back(ledger: Ledger) -> None:
    ledger.quarantined("ns/a", [A])
    ledger.reserve("ns/a", 1, RANGE)
    ledger.quarantine_over("ns/a", [A])
    assert ledger.usage() == {A: ("reserved", "ns/a")}
    ledger.quarantined("ns/a", [A])
    ledger.quarantine_over("ns/a", [A])
    assert ledger.usage() == {}


@pytest.mark.parametrize("name", ["a|b", "|", "a|reserved|1.5", "a\nb", "a,b", "ü"])
def test_odd_holders_are_only_names(ledger: Ledger, name: str) -> None:
    ledger.reserve(name, 1, RANGE)
    assert ledger.usage() == {A: ("reserved", name)}
    assert ledger.lapsed(older_than=-1) == {A: name}
    assert ledger.reserve(name, 1, RANGE) == Reserved((A,))
    ledger.freed(name, [A])
    assert ledger.usage() == {}
    assert ledger.held_by(name) == ()


def test_pools_that_cannot_be_read_are_as_none(ledger: Ledger) -> None:
    ledger._redis.set("hawse:offer", '{"pools":7}')
    with pytest.raises(NotReadyError):
        ledger.offer()


# Who lists what


def test_who_lists_an_address_is_known_once_it_was_looked_at(ledger: Ledger) -> None:
    assert ledger.listed([A]) is None
    ledger.set_listed({})
    assert ledger.listed([A]) == {}
    six = ip_address("fd00::1")
    lists = {A: Listed(("node1", "node2"), ("shop",)), B: Listed(("node1",)), six: Listed((), ("shop", "web"))}
    ledger.set_listed(lists)
    assert ledger.listed([A, B, C, six]) == lists
    ledger.set_listed({A: Listed(("node2",))})
    assert ledger.listed([A, B, six]) == {A: Listed(("node2",))}
    ledger.set_listed({})
    assert ledger.listed([A]) == {}


def test_the_same_lists_are_written_once(ledger: Ledger) -> None:
    lists = {A: Listed(("node1",), ("shop",))}

    def writes() -> int:
        stats = ledger._redis.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("hset", "hdel", "del"))

    ledger.set_listed(lists)
    before = writes()
    ledger.set_listed(dict(lists))
    assert writes() == before
    ledger.set_listed({B: Listed(("node1",))})
    assert writes() == before + 2


def test_what_is_known_of_a_namespace_is_one_answer(ledger: Ledger) -> None:
    assert ledger.standing("a") == Standing({}, None, 0)  # no pools are on offer
    ledger.set_offer(Offer((EgressPool("prod", ("192.168.1.0/24",)),)))
    ledger.saw_versions({"namespace": 17})
    ledger.reserve("ns/a", 1, RANGE)
    ledger.claimed("manual/a", [B])
    ledger.reserve("ns/b", 1, RANGE)
    standing = ledger.standing("a")
    assert standing == Standing({A: ("reserved", "ns/a"), B: ("claimed", "manual/a")}, ledger.offer(), 17)
    ledger.set_offer(Offer((EgressPool("other", ("192.168.1.0/24",)),)))
    assert ledger.standing("a").offer == ledger.offer() != standing.offer
    ledger._redis.delete("hawse:index")
    assert ledger.standing("a").offer is None
