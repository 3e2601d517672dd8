"""Which address moves next."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.addresses import Address
from egress.board import EGRESS_LABEL, Candidate, Unplaced
from egress.hosting import Resident
from egress.moves import Cause, Move, Outlook, has_arrived, is_unbalanced, next_move
from egress.objects import Capacity, EgressPool
from egress.table import Steering, SteeringHop

POOL = EgressPool("prod", ("192.168.1.0/24",))
LABELS = {EGRESS_LABEL: ""}
Town = tuple[list[Resident], list[Candidate], dict[str, list[Address]]]


def address(last: int) -> IPv4Address:
    return IPv4Address(f"192.168.1.{last}")


def town(hosted: dict[str, list[int]], **changes: dict[str, object]) -> Town:
    """Nodes and their addresses, each of a namespace of its own; `changes` to some of the nodes."""
    residents, candidates, siblings = [], [], {}
    for name, lasts in hosted.items():
        link = IPv4Interface(f"192.168.1.{10 + int(name[1:])}/24")
        candidate = Candidate(name, LABELS, link=link, hosted=frozenset(map(address, lasts)))
        candidates.append(replace(candidate, **changes.get(name, {})))  # type: ignore[arg-type]
        residents += [Resident(Unplaced(address(last), f"ns{last}", POOL), name) for last in lasts]
        siblings.update({f"ns{last}": [address(last)] for last in lasts})
    return residents, candidates, siblings


def following(there: Town, *, balance: bool = True) -> Outlook:
    residents, candidates, siblings = there
    return next_move(residents, candidates, siblings, balance=balance)


def told(move: Move | None) -> tuple[int, str, str, Cause] | None:
    if move is None:
        return None
    return int(move.item.address) & 0xFF, move.source, move.target, move.cause


def after(there: Town, move: Move) -> Town:
    residents, candidates, siblings = there
    moved = move.item.address
    return (
        [replace(each, node=move.target) if each.item == move.item else each for each in residents],
        [
            replace(each, hosted=each.hosted - {moved} | ({moved} if each.name == move.target else set()))
            for each in candidates
        ],
        siblings,
    )


@pytest.mark.parametrize(
    ("change", "cause"),
    [({"drained": True, "barred": "drained"}, Cause.DRAIN), ({"labels": {}}, Cause.UNSELECTED)],
)
def test_a_node_that_must_be_left_is_left_by_one_address_to_the_best_node(
    change: dict[str, object], cause: Cause
) -> None:
    there = town({"n1": [101, 102], "n2": [103], "n3": []}, n1=change)
    assert told(following(there).move) == (101, "n1", "n3", cause)


def test_what_cannot_leave_stops_nobody_and_is_said() -> None:
    there = town({"n1": [101, 102], "n2": [103]}, n1={"drained": True, "barred": "drained"})
    residents, candidates, siblings = there
    siblings["ns101"] = [address(101), address(103)]
    outlook = next_move(residents, candidates, siblings, balance=False)
    assert told(outlook.move) == (102, "n1", "n2", Cause.DRAIN)
    reason = "no node is eligible: 1 drained, 1 hosting another address of namespace ns101"
    assert outlook.stuck == {address(101): reason}


def test_a_request_comes_first_if_its_node_is_eligible() -> None:
    residents, candidates, siblings = town({"n1": [101], "n2": [102], "n3": []}, n1={"drained": True, "barred": "x"})
    residents[1] = replace(residents[1], move_to="n1")
    assert told(next_move(residents, candidates, siblings, balance=True).move) == (101, "n1", "n3", Cause.DRAIN)
    residents[1] = replace(residents[1], move_to="n3")
    assert told(next_move(residents, candidates, siblings, balance=True).move) == (102, "n2", "n3", Cause.REQUESTED)


def test_what_an_admin_placed_moves_on_request_alone() -> None:
    residents, candidates, siblings = town({"n1": [101], "n2": []}, n1={"drained": True, "barred": "drained"})
    residents = [replace(residents[0], fixed=True)]
    assert next_move(residents, candidates, siblings, balance=True).move is None
    residents = [replace(residents[0], move_to="n2")]
    assert told(next_move(residents, candidates, siblings, balance=True).move) == (101, "n1", "n2", Cause.REQUESTED)


def test_balance_only_where_it_is_clear_and_allowed() -> None:
    assert following(town({"n1": [101, 102], "n2": []})).move is None
    there = town({"n1": [101, 102, 103], "n2": []})
    assert told(following(there).move) == (101, "n1", "n2", Cause.BALANCE)
    assert following(there, balance=False).move is None
    assert following(town({"n1": [101, 102, 103], "n2": []}, n1={"barred": "cordoned"})).move is None
    assert following(town({"n1": [101, 102, 103], "n2": []}, n2={"capacity": Capacity(ipv4=0)})).move is None


def test_balance_keeps_a_namespaces_addresses_in_their_zones() -> None:
    pool = replace(POOL, topology_key="zone")
    zones = {name: {"labels": {**LABELS, "zone": zone}} for name, zone in {"n1": "a", "n2": "b", "n3": "a"}.items()}
    residents, candidates, siblings = town({"n1": [101], "n2": [102, 103, 104, 105], "n3": []}, **zones)
    residents = [replace(each, item=replace(each.item, pool=pool)) for each in residents]
    for last in (102, 103, 104, 105):
        siblings[f"ns{last}"] = [address(last), address(101)]  # which is in zone a
    assert next_move(residents, candidates, siblings, balance=True).move is None


def test_each_move_for_balance_brings_two_nodes_closer() -> None:
    for more in range(200):
        for fewer in range(more):
            if is_unbalanced(more, fewer):
                assert more - 1 >= fewer + 1
                assert not is_unbalanced(fewer + 1, more - 1)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.lists(st.booleans(), min_size=5, max_size=5), st.data())
def test_moves_end_the_order_means_nothing_and_nothing_goes_back(
    loads: list[int], drained: list[bool], data: st.DataObject
) -> None:
    lasts = iter(range(100, 200))
    hosted = {f"n{number}": [next(lasts) for _ in range(load)] for number, load in enumerate(loads)}
    changes = {name: {"drained": True, "barred": "x"} for name, out in zip(hosted, drained, strict=False) if out}
    there = town(hosted, **changes)
    for _ in range(sum(loads) + 1):
        outlook = following(there)
        residents, candidates, siblings = there
        mixed = data.draw(st.permutations(residents)), data.draw(st.permutations(candidates)), siblings
        assert following(mixed) == outlook
        if outlook.move is None:
            break
        there = after(there, outlook.move)
    assert following(there).move is None
    left = {candidate.name: len(candidate.hosted) for candidate in there[1]}
    open_loads = [count for name, count in left.items() if name not in changes]
    if open_loads:
        assert all(left[name] == 0 for name in changes)
        assert not is_unbalanced(max(open_loads), min(open_loads))


def test_an_address_has_arrived_when_its_new_node_has_acknowledged_it() -> None:
    def row(node: str, *, acknowledged: bool) -> Steering:
        return Steering(7, "a", (SteeringHop(address(101), node, address(12), acknowledged),))

    assert has_arrived(address(101), "n2", [None, row("n2", acknowledged=True)])
    assert not has_arrived(address(101), "n2", [row("n2", acknowledged=False)])
    assert not has_arrived(address(101), "n2", [row("n1", acknowledged=True)])
    assert not has_arrived(address(102), "n2", [row("n2", acknowledged=True)])
