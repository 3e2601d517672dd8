"""What an EgressAddress says of itself."""

from dataclasses import replace
from ipaddress import IPv4Address

from egress.addresses import Address
from egress.objects import Condition, EgressAddress, HostSubnet, NetNamespace, Phase
from egress.planning import plan, with_claims
from egress.table import Claim, NodeReport
from workers.status import Seen, assess

A = IPv4Address("192.168.1.102")
CLAIM = EgressAddress(str(A), "prod", "app", "uid-1", resource_version="7")
HOST = HostSubnet("node2", "192.168.1.18", (str(A),))
BOUND = NetNamespace("app", 5, (str(A),))
HELD = frozenset({(A, "node2", 5)})
T0, T1 = "2026-01-01T00:00:00Z", "2026-01-01T00:00:05Z"


def status(
    claim: EgressAddress = CLAIM,
    hosts: tuple[HostSubnet, ...] = (HOST,),
    bindings: tuple[NetNamespace, ...] = (BOUND,),
    held: frozenset[tuple[Address, str, int]] = HELD,
    *,
    said: Claim | None = None,
    unplaced: str = "",
    now: str = T0,
) -> EgressAddress:
    words = {(A, "node2"): said} if said else {}
    outcome = plan(hosts, with_claims(bindings, [claim]), acknowledged=held)
    seen = Seen.of(outcome, hosts, bindings, {}, {A: unplaced} if unplaced else {})
    return assess(claim, replace(seen, said=words), now)


def told(value: EgressAddress) -> dict[str, tuple[bool, str, str]]:
    return {c.type: (c.status, c.reason, c.message) for c in value.conditions}


def test_a_claim_that_is_not_bound() -> None:
    value = status(bindings=(), unplaced="no node is eligible: 1 not ready", hosts=())
    assert (value.phase, value.node) == (Phase.PENDING, "")
    assert told(value)["Claimed"] == (True, "Claimed", "")
    assert told(value)["Bound"] == (False, "NotBound", "")
    assert told(value)["Ready"][:2] == (False, "NotBound")


def test_what_is_not_placed_says_why() -> None:
    value = status(hosts=(), unplaced="no node is eligible: 1 not ready")
    assert value.phase is Phase.PENDING
    message = f"no node hosts {A}; no node is eligible: 1 not ready"
    assert told(value)["Placed"] == (False, "NotPlaced", message)
    assert told(value)["Ready"] == (False, "NotPlaced", message)


def test_placed_and_waiting_for_its_node() -> None:
    value = status(held=frozenset())
    assert (value.phase, value.node) == (Phase.PLACED, "node2")
    assert told(value)["Placed"] == (True, "Placed", "on node node2")
    assert told(value)["Programmed"] == (False, "Waiting", f"node node2 has not acknowledged {A}")


def test_refused_by_its_node() -> None:
    said = Claim(A, 5, held=False, reason="AddressInUse", message="aa:bb answers")
    value = status(held=frozenset(), said=said)
    assert (value.phase, value.node) == (Phase.FAILED, "node2")
    assert told(value)["Programmed"] == (False, "AddressInUse", "aa:bb answers")
    assert told(value)["Ready"] == (False, "AddressInUse", "aa:bb answers")


def test_ready() -> None:
    value = status(said=Claim(A, 5, held=True))
    assert (value.phase, value.node) == (Phase.READY, "node2")
    assert {c.type: c.status for c in value.conditions} == dict.fromkeys(
        ("Claimed", "Bound", "Placed", "Programmed", "Ready"), True
    )


def test_a_conflict_names_its_parties() -> None:
    value = status(bindings=(BOUND, NetNamespace("other", 6, (str(A),))))
    assert value.phase is Phase.PENDING
    assert told(value)["Ready"][1:] == ("Conflict", f"address {A} is in NetNamespaces app and other")


def test_conditions_of_others_stay_as_they_are() -> None:
    opened = Condition("FirewallOpen", None, "Asked", "ticket 5", T0, 3)
    wrong = Condition("PoolMismatch", True, "PoolGone", "gone", T0)
    value = status(replace(CLAIM, conditions=(opened, wrong)), now=T1)
    assert value.conditions[-2:] == (opened, wrong)
    assert [condition.type for condition in value.conditions[:-2]] == [
        "Claimed",
        "Bound",
        "Placed",
        "Programmed",
        "Ready",
    ]
    assert value.phase is Phase.READY, "they say nothing about whether traffic leaves with the address"
    assert status(value, now="2026-01-01T00:01:00Z") == value


def test_a_condition_keeps_the_time_of_its_last_change_and_twice_is_once() -> None:
    waiting = status(held=frozenset(), now=T0)
    ready = status(waiting, now=T1)
    times = {c.type: c.last_transition for c in ready.conditions}
    assert times == {"Claimed": T0, "Bound": T0, "Placed": T0, "Programmed": T1, "Ready": T1}
    assert status(ready, now="2026-01-01T00:01:00Z") == ready


def test_an_emptied_net_namespace_is_not_bound_whatever_the_table_says() -> None:
    value = status(bindings=(NetNamespace("app", 5),))
    assert told(value)["Bound"] == (False, "NotBound", "")
    assert told(value)["Programmed"][0]
    assert value.phase is not Phase.READY


def test_a_reason_about_a_longer_address_is_not_about_this_one() -> None:
    short = replace(CLAIM, address="192.168.1.10")
    other = NetNamespace("app", 5, (str(A), "192.168.1.11"))
    value = status(short, hosts=(HOST,), bindings=(other,))
    assert told(value)["Bound"] == (False, "NotBound", "no node hosts 192.168.1.10")
    two = status(hosts=(HOST, HostSubnet("node3", "192.168.1.19", ("192.168.1.10",))), bindings=(other,))
    assert told(two)["Ready"][0]


def test_a_shared_netid_can_be_read() -> None:
    value = status(bindings=(BOUND, NetNamespace("other", 5)))
    assert told(value)["Bound"][0]
    assert "NetID 5 is shared by NetNamespaces app and other" in told(value)["Ready"][2]


def test_the_node_is_remembered_while_several_have_the_address() -> None:
    placed = status()
    assert placed.node == "node2"
    doubled = status(placed, hosts=(HOST, HostSubnet("node1", "192.168.1.17", (str(A),))))
    assert (doubled.node, doubled.phase) == ("node2", Phase.PENDING)
    assert status(placed, hosts=()).node == ""


def test_why_a_node_cannot_let_an_address_go_stands_beside_what_it_does_to_the_next() -> None:
    reports = {
        "node1": NodeReport("node1", 0.0, claims=(Claim(A, 0, held=False, reason="AddressIsPrimary", message="why"),)),
        "node2": NodeReport("node2", 0.0, claims=(Claim(A, 5, held=False, reason="AddressInUse", message="aa:bb"),)),
    }
    outcome = plan([HOST], with_claims([BOUND], [CLAIM]), acknowledged=frozenset())
    value = assess(CLAIM, Seen.of(outcome, [HOST], [BOUND], reports, {}), T0)
    assert value.phase is Phase.FAILED
    assert told(value)["Programmed"] == (False, "AddressInUse", "aa:bb; node node1 cannot let it go: why")
