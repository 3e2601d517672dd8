"""The order in which objects are listed, and in which changes happen, decides nothing: exhaustively, for short
sequences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

import pytest

from egress.addresses import parse_address
from egress.objects import EgressAddress, HostSubnet, NetNamespace, Phase
from egress.planning import Plan, plan, with_claims
from egress.program import Layout, NodeFacts, NodeProgram, render
from egress.table import table_of

IPS = {"node1": "192.168.1.11", "node2": "192.168.1.12", "node3": "192.168.1.13"}
A, B, C, D = (f"192.168.1.{number}" for number in range(101, 105))


@dataclass(frozen=True)
class State:
    """The objects, as dictionaries in the order in which they came, and what the nodes have claimed."""

    hosts: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(IPS, ()))
    bindings: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    claims: dict[str, tuple[str, Phase]] = field(default_factory=dict)
    offline: frozenset[str] = frozenset()
    held: frozenset[tuple[str, str, int]] = frozenset()


Change = Callable[[State], State]


def host(node: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Change:
    """A HostSubnet gets addresses and loses others. Later comes last."""

    def change(state: State) -> State:
        kept = tuple(text for text in state.hosts[node] if text not in remove)
        others = {name: texts for name, texts in state.hosts.items() if name != node}
        return replace(state, hosts={**others, node: (*kept, *add)})

    return change


def bind(name: str, netid: int, *addresses: str) -> Change:
    """A NetNamespace is made, or replaced."""
    return lambda state: replace(state, bindings={**state.bindings, name: (netid, addresses)})


def unbind(name: str) -> Change:
    """A NetNamespace is deleted."""
    return lambda state: replace(state, bindings={key: item for key, item in state.bindings.items() if key != name})


def claim(address: str, name: str, phase: Phase = Phase.PENDING) -> Change:
    """An EgressAddress is made or changes its phase."""
    return lambda state: replace(state, claims={**state.claims, address: (name, phase)})


def held(address: str, node: str, netid: int) -> Change:
    """A node acknowledges an address."""
    return lambda state: replace(state, held=state.held | {(address, node, netid)})


def lost(node: str) -> Change:
    """A node counts as lost."""
    return lambda state: replace(state, offline=state.offline | {node})


def back(node: str) -> Change:
    """A node is back."""
    return lambda state: replace(state, offline=state.offline - {node})


def outcome(state: State) -> tuple[Plan, dict[str, NodeProgram]]:
    """The plan, and each node's program, marks and all."""
    subnets = [HostSubnet(name, IPS[name], texts) for name, texts in state.hosts.items()]
    bindings = [NetNamespace(name, netid, texts) for name, (netid, texts) in state.bindings.items()]
    claims = [EgressAddress(text, "pool", name, "uid", phase=phase) for text, (name, phase) in state.claims.items()]
    held = frozenset((parse_address(text), node, netid) for text, node, netid in state.held)
    planned = plan(subnets, with_claims(bindings, claims), offline=state.offline, acknowledged=held)
    rows = table_of(planned).values()
    return planned, {name: render(rows, NodeFacts(name), Layout()) for name in IPS}


TWO_NAMESPACES = (bind("a", 11, A), bind("b", 12, B), host("node1", [A]), host("node2", [B]), held(A, "node1", 11))
SEQUENCES = {
    "two namespaces come": (State(), TWO_NAMESPACES),
    "one with two addresses": (
        State(),
        (
            bind("a", 11, A, B),
            host("node1", [A]),
            host("node2", [B]),
            held(A, "node1", 11),
            held(B, "node2", 11),
            claim(A, "a"),
        ),
    ),
    "claims before bindings": (
        State(hosts={"node1": (A,), "node2": (B,), "node3": ()}),
        (claim(A, "a"), claim(B, "b"), bind("a", 11), bind("b", 12), held(B, "node2", 12), held(A, "node1", 11)),
    ),
    "an address on two nodes and in two namespaces": (
        State(),
        (
            host("node1", [A]),
            host("node2", [A]),
            bind("a", 11, A),
            bind("b", 12, A),
            bind("c", 13, B),
            host("node3", [B]),
        ),
    ),
    "a shared NetID": (
        State(hosts={"node1": (A,), "node2": (B,), "node3": ()}),
        (bind("a", 11, A), bind("b", 11, B), bind("c", 12), held(A, "node1", 11), held(B, "node2", 11), claim(C, "c")),
    ),
    "release and quarantine": (
        State(
            hosts={"node1": (A,), "node2": (B,), "node3": ()},
            bindings={"a": (11, (A,)), "b": (12, (B,))},
            claims={A: ("a", Phase.READY), B: ("b", Phase.READY)},
            held=frozenset({(A, "node1", 11), (B, "node2", 12)}),
        ),
        (
            claim(A, "a", Phase.QUARANTINED),
            unbind("a"),
            host("node1", (), [A]),
            host("node3", [C]),
            bind("c", 13, C),
            claim(C, "c"),
        ),
    ),
    "a node is lost and its addresses move": (
        State(
            hosts={"node1": (A, B), "node2": (), "node3": (C,)},
            bindings={"a": (11, (A,)), "b": (12, (B,)), "c": (13, (C,))},
            held=frozenset({(A, "node1", 11), (B, "node1", 12), (C, "node3", 13)}),
        ),
        (
            lost("node1"),
            host("node1", (), [A, B]),
            host("node2", [A]),
            host("node3", [B]),
            held(A, "node2", 11),
            held(B, "node3", 12),
        ),
    ),
    "a node is back while others are lost": (
        State(
            hosts={"node1": (A,), "node2": (B,), "node3": (C, D)},
            bindings={"a": (11, (A, B)), "b": (12, (C,)), "c": (13, (D,))},
            offline=frozenset({"node1"}),
        ),
        (back("node1"), lost("node3"), held(A, "node1", 11), held(B, "node2", 11), held(C, "node3", 12), bind("d", 14)),
    ),
    "a move by hand, make before break": (
        State(
            hosts={"node1": (A,), "node2": (), "node3": ()},
            bindings={"a": (11, (A,))},
            held=frozenset({(A, "node1", 11)}),
        ),
        (host("node2", [A]), host("node1", (), [A]), held(A, "node2", 11), bind("b", 12, B), host("node1", [B])),
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_changes_in_any_order_give_one_plan_and_one_program_for_each_node(name: str) -> None:
    start, changes = SEQUENCES[name]
    first = None
    for order in permutations(changes):
        state = start
        for change in order:
            state = change(state)
        found = outcome(state)
        first = first or found
        assert found == first
    assert first is not None
    assert first[0] != outcome(start)[0], "nothing happens here"
