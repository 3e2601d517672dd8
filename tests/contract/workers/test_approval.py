"""A pool that asks for approval: nothing leaves before somebody has given it, nor after he has taken it back."""

import time
from dataclasses import replace
from typing import Any

import pytest

from egress.adapters import manifests
from egress.adapters.cluster import Kind
from egress.adapters.decisions import decide, status_patch
from egress.addresses import parse_address
from egress.objects import Decision, Event, Ticket, Verdict
from egress.table import Claim, NodeReport
from egress.tickets import DecisionError, key_of

ADDRESS = "192.168.1.100"
OTHER = "192.168.1.101"
FIRST = "192.168.1.100-192.168.1.109"


def claim_of(world: Any, address: str = ADDRESS) -> Any:
    return manifests.egress_address(world.kube.get("EgressAddress", address))


def asked(world: Any, address: str = ADDRESS) -> str:
    """The ticket as it is once the firewall team was told; its key."""
    claim = claim_of(world, address)
    serial = claim.ticket.serial + 1 if claim.ticket else 1
    claim = replace(claim, ticket=Ticket("firewall", serial=serial, told=Event.ASSIGNED, reference="CHG1"))
    world.context.cluster.patch(Kind.EGRESS_ADDRESS, address, status_patch(claim), subresource="status")
    return key_of(claim)


def decided(world: Any, verdict: Verdict, key: str, address: str = ADDRESS, **fields: Any) -> None:
    decision = Decision(verdict, "alice", fields.pop("at", time.time()), "callback", "CAB of Monday")
    decide(world.context.cluster, parse_address(address), key, decision, time.time())
    world.reconcile()
    world.acknowledge()


def row(world: Any) -> Any:
    (found,) = world.ledger.read_table().rows.values()
    return found


def steered(world: Any) -> dict[str, bool]:
    return {str(hop.address): hop.acknowledged for hop in row(world).hops}


def condition(world: Any, kind: str, address: str = ADDRESS) -> tuple[bool | None, str]:
    found = next(item for item in claim_of(world, address).conditions if item.type == kind)
    return found.status, found.reason


@pytest.fixture
def guarded(world: Any) -> Any:
    """A namespace whose pool asks for approval, placed on a node."""
    world.node("node1", "192.168.1.17")
    world.pool("prod", FIRST, approval="required", ticketProfile="firewall")
    world.reconcile()
    world.namespace("app", address=ADDRESS)
    world.reconcile()
    world.acknowledge()
    return world


def test_nothing_leaves_before_the_approval_and_it_is_said_why(guarded: Any) -> None:
    assert guarded.hosted("node1") == [ADDRESS]
    assert row(guarded).hops == ()
    assert condition(guarded, "Placed") == (True, "Placed")
    assert condition(guarded, "Programmed") == (False, "AwaitingApproval")
    assert condition(guarded, "FirewallOpen") == (None, "NotAsked")
    assert condition(guarded, "Ready") == (False, "AwaitingApproval")
    before = guarded.versions()
    guarded.reconcile()
    guarded.acknowledge()
    assert guarded.versions() == before


def test_an_approval_opens_a_withdrawal_shuts_and_another_approval_opens_again(guarded: Any) -> None:
    key = asked(guarded)
    for verdict, hops in (
        (Verdict.APPROVED, {ADDRESS: True}),
        (Verdict.WITHDRAWN, {}),
        (Verdict.APPROVED, {ADDRESS: True}),
        (Verdict.REJECTED, {}),
    ):
        decided(guarded, verdict, key)
        assert steered(guarded) == hops
        assert condition(guarded, "FirewallOpen") == (bool(hops), verdict.value.capitalize())
        assert condition(guarded, "Ready")[0] is bool(hops)
    assert claim_of(guarded).decision.by == "alice"
    assert claim_of(guarded).decision.reason == "CAB of Monday"


def test_neither_an_older_decision_nor_one_about_another_assignment_counts(guarded: Any) -> None:
    key = asked(guarded)
    approved_at = time.time()
    decided(guarded, Verdict.APPROVED, key, at=approved_at)
    decided(guarded, Verdict.WITHDRAWN, key)
    for other, at in ((key, approved_at), (f"{key}0", time.time()), (key, time.time() + 3600), ("", time.time())):
        with pytest.raises(DecisionError):
            decided(guarded, Verdict.APPROVED, other, at=at)
    assert steered(guarded) == {}


def test_an_approval_ends_with_its_assignment(guarded: Any) -> None:
    key = asked(guarded)
    decided(guarded, Verdict.APPROVED, key)
    guarded.delete("app")
    guarded.reconcile()
    guarded.acknowledge()
    assert claim_of(guarded).decision is None
    assert claim_of(guarded).ticket.ended
    with pytest.raises(DecisionError):
        decided(guarded, Verdict.APPROVED, key)
    guarded.namespace("app", address=ADDRESS)
    guarded.reconcile()
    guarded.acknowledge()
    assert claim_of(guarded).phase != "Quarantined"
    assert steered(guarded) == {}
    with pytest.raises(DecisionError):
        decided(guarded, Verdict.APPROVED, key)
    decided(guarded, Verdict.APPROVED, asked(guarded))
    assert steered(guarded) == {ADDRESS: True}


def test_a_namespace_that_was_made_again_unseen_inherits_no_approval(guarded: Any) -> None:
    key = asked(guarded)
    decided(guarded, Verdict.APPROVED, key)
    guarded.delete("app")
    guarded.namespace("app", address=ADDRESS)  # before any worker has looked
    guarded.reconcile()
    guarded.acknowledge()
    claim = claim_of(guarded)
    assert claim.phase != "Quarantined"
    assert (claim.decision, claim.ticket.ended) == (None, True)
    assert steered(guarded) == {}
    with pytest.raises(DecisionError):
        decided(guarded, Verdict.APPROVED, key)


def test_a_flush_of_redis_approves_nothing_and_forgets_no_approval(guarded: Any) -> None:
    def flush() -> None:
        """Redis loses everything; the runner goes on, and says what it holds."""
        netid, found = next(iter(guarded.ledger.read_table().rows.items()))
        held = tuple(Claim(hop.address, netid, held=True) for hop in found.hops)
        guarded.ledger._redis.flushall()
        guarded.ledger.report(NodeReport("node1", 0.0, link="192.168.1.17/24", interface="eth0", claims=held))
        guarded.reconcile()
        guarded.acknowledge()

    flush()
    assert steered(guarded) == {}
    decided(guarded, Verdict.APPROVED, asked(guarded))
    flush()
    assert steered(guarded) == {ADDRESS: True}


def test_of_two_addresses_the_approved_one_carries_the_traffic(world: Any) -> None:
    for number in (1, 2):
        world.node(f"node{number}", f"192.168.1.1{number}")
    world.pool("prod", FIRST, approval="required", addressesPerNamespace=2)
    world.reconcile()
    world.namespace("app", address=f"{ADDRESS},{OTHER}")
    world.reconcile()
    world.acknowledge()
    assert steered(world) == {}
    decided(world, Verdict.APPROVED, asked(world, OTHER), OTHER)
    assert steered(world) == {OTHER: True}


def test_a_pool_that_begins_to_ask_cuts_nobody_off(world: Any) -> None:
    world.node("node1", "192.168.1.17")
    world.pool("prod", FIRST)
    world.reconcile()
    world.namespace("app", address=ADDRESS)
    world.reconcile()
    world.acknowledge()
    world.kube.patch("EgressPool", "prod", {"spec": {"approval": "required"}})
    world.reconcile()
    world.acknowledge()
    assert steered(world) == {ADDRESS: True}
    world.namespace("later", address=OTHER)
    world.reconcile()
    world.acknowledge()
    table = {found.namespace: found.hops for found in world.ledger.read_table().rows.values()}
    assert table["later"] == ()
    assert len(table["app"]) == 1
