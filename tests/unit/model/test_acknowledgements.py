"""Late reports, flushes and quick changes of mind: two nodes, and an address that an admin assigns by hand.

The large model (test_core.py) seldom comes to where one stale report of many would open a namespace; here it is most of
what happens.
"""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from lab.model import invariants
from lab.model.node import FAILURES
from lab.model.world import World

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "500"))
STEPS = int(os.environ.get("MODEL_STEPS", "50"))
NODES = ("node1", "node2")
NETIDS = {"alpha": 500, "beta": 501}
A = "192.168.1.101"
nodes = st.sampled_from(NODES)


class Machine(RuleBasedStateMachine):
    """Two nodes, two NetNamespaces and one address. Few rules, so that what is rare elsewhere is not rare here."""

    @initialize()
    def assigned(self) -> None:
        self.world = World(*NODES)
        self.world.by_hand.add(A)
        for name, netid in NETIDS.items():
            self.world.net_namespace(name, netid, ())
        self.the_address_is_assigned("alpha", "node1", 1)
        self.world.settle()

    @rule(name=st.sampled_from([*NETIDS, ""]), node=nodes, times=st.integers(0, 2))
    def the_address_is_assigned(self, name: str, node: str, times: int) -> None:
        """To one of the namespaces, or to none, and put on a node; that is published, perhaps twice."""
        cluster = self.world.cluster
        for binding in list(cluster.net_namespaces.values()):
            ips = (A,) if binding.name == name else ()
            cluster.patch(cluster.net_namespaces, binding.name, replace(binding, egress_ips=ips))
        for subnet in list(cluster.host_subnets.values()):
            ips = (A,) if subnet.name == node else ()
            cluster.patch(cluster.host_subnets, subnet.name, replace(subnet, egress_ips=ips))
        for _ in range(times):
            self.world.run("publish")

    @rule(node=nodes, late=st.booleans())
    def a_runner_makes_a_pass(self, node: str, late: bool) -> None:
        self.world.node_pass(node, late=late)

    @rule(
        trouble=st.sampled_from(["arrive", "publish", "half", "killed", "flush", "lost", "stop"]),
        node=nodes,
        steps=st.integers(0, 6),
        failure=st.sampled_from(FAILURES),
    )
    def something_happens(self, trouble: str, node: str, steps: int, failure: Callable[[], BaseException]) -> None:
        world, ledger = self.world, self.world.cluster.ledger
        match trouble:
            case "arrive":
                world.arrive()
            case "publish" if world.under_way:
                world.go_on(world.under_way[0])
            case "publish":
                world.run("publish")
            case "half":
                world.go_on(world.start("publish"), steps)
            case "killed" if world.under_way:
                world.kill(world.under_way[0])
            case "flush":
                ledger.flush()
            case "lost":
                ledger.lost = frozenset() if ledger.lost else frozenset({node})
            case "stop":
                world.cluster.nodes[node].stop_at(steps, failure)
                world.node_pass(node)

    @invariant()
    def nothing_leaks(self) -> None:
        invariants.fail_closed(self.world.cluster.nodes)

    def teardown(self) -> None:
        self.world.settle()


@pytest.mark.timeout(max(120, EXAMPLES))
def test_no_stale_word_ever_opens_a_namespace() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
