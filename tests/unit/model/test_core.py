"""Pools, namespaces, nodes, people's patches, failures and restarts, in any order, against the pure core.

Every write to a node is looked at for leaks; whenever all has settled, everything is (`lab.model.invariants`). For
more than a look: `MODEL_EXAMPLES=2000 make test TESTS=tests/unit/model`.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from egress.board import EGRESS_LABEL
from egress.objects import REQUEST_ANNOTATION, EgressPool, Selector
from lab.model import invariants
from lab.model.cluster import SimCluster
from lab.model.namespaces import annotated
from lab.model.node import FAILURES
from lab.model.world import WORK, World, covered

STEPS = int(os.environ.get("MODEL_STEPS", "100"))
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "120"))
LEAST_STEPS = 2000

NODES = ("node1", "node2", "node3", "node4")
NAMES = ("alpha", "beta", "gamma", "delta")
BLUE, GREEN = "192.168.1.100-192.168.1.104", "192.168.1.112/29"
nodes = st.sampled_from(NODES)
names = st.sampled_from(NAMES)
addresses = st.sampled_from(
    ["192.168.1.100", "192.168.1.101", "192.168.1.113", "192.168.1.200", "192.168.1.12", "10.1.1.1"]
)
colours = st.sampled_from(["blue", "green", "none"])
tasks = st.sampled_from(["place", "publish", "publish", "reconcile", "sweep", "namespace"])
steps = st.integers(0, 9)


class Machine(RuleBasedStateMachine):
    """The world and all that may happen to it."""

    made: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.world = World(*NODES)
        self.since_settled = 0

    @property
    def cluster(self) -> SimCluster:
        return self.world.cluster

    @initialize(colours=st.lists(st.sampled_from(["blue", "green"]), max_size=3), work=st.booleans())
    def a_cluster_at_work(self, colours: list[str], work: bool) -> None:
        self.world.pool(_pool("blue", BLUE))
        self.world.pool(_pool("green", GREEN, addresses_per_namespace=2, quarantine=30.0))
        self.world.settle()
        for name, colour in zip(NAMES, colours, strict=False):
            self.world.tasks.admit(name, {"colour": colour}, {}, self.world.new_uid())
        if work:
            self.world.settle()

    # Workers

    @rule(task=tasks, name=names, steps=steps)
    def a_task_begins(self, task: str, name: str, steps: int) -> None:
        arguments = (name,) if task == "namespace" else ()
        self.world.go_on(self.world.start(task, *arguments), steps)

    @rule(task=tasks, name=names)
    def a_task_runs(self, task: str, name: str) -> None:
        self.world.run(task, *((name,) if task == "namespace" else ()))

    @precondition(lambda self: self.world.under_way)
    @rule(which=st.integers(0, 99), steps=steps)
    def a_task_goes_on(self, which: int, steps: int) -> None:
        tasks = self.world.under_way
        self.world.go_on(tasks[which % len(tasks)], steps)

    @precondition(lambda self: self.world.under_way)
    @rule(which=st.integers(0, 99))
    def a_worker_is_killed(self, which: int) -> None:
        tasks = self.world.under_way
        self.world.kill(tasks[which % len(tasks)])

    @rule()
    def redis_is_flushed(self) -> None:
        self.cluster.ledger.flush()

    @rule(lost=st.sets(nodes, max_size=2))
    def nodes_count_as_lost(self, lost: set[str]) -> None:
        """Rightly or wrongly."""
        self.cluster.ledger.lost = frozenset(lost)

    @rule(order=st.permutations(WORK))
    def everybody_works(self, order: list[str]) -> None:
        """What most of the time is made of, though not to the end."""
        self.world.round(order)

    @precondition(lambda self: self.since_settled > 4)
    @rule()
    def all_settles(self) -> None:
        self.world.settle()
        self.since_settled = 0
        Machine.made["settled"] += 1
        outcome = self.world.tasks.plan(self.cluster.ledger.table.rows, self.cluster.ledger.table.epoch)
        Machine.made.update(plan.state.value for plan in outcome.namespaces.values())

    @precondition(lambda self: self.since_settled > 4)
    @rule(seconds=st.sampled_from([20.0, 100.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        """Nobody has work to do for so long."""
        self.world.settle()
        self.cluster.now += seconds
        self.world.settle()
        self.since_settled = 0

    # People

    @rule(which=st.integers(0, 3), colour=colours, webhook=st.booleans(), request=st.none() | st.none() | addresses)
    def a_namespace_is_created(self, which: int, colour: str, webhook: bool, request: str | None) -> None:
        absent = [name for name in NAMES if name not in self.cluster.namespaces]
        if not absent:
            return
        name = absent[which % len(absent)]
        annotations = {REQUEST_ANNOTATION: request} if request else {}
        labels = {"colour": colour}
        if not webhook:
            self.world.tasks.create(name, labels, annotations, self.world.new_uid())
        elif self.world.tasks.admit(name, labels, annotations, self.world.new_uid()):
            pool = self.cluster.pools.get(colour)
            given = set(map(str, annotated(self.cluster.namespaces[name])))
            assert given <= (covered(pool).difference(self.cluster.ips) if pool else set()), "more than its pool has"

    @rule(name=names)
    def a_creation_is_refused_after_admission(self, name: str) -> None:
        if name not in self.cluster.namespaces and self.world.tasks.admit(name, {"colour": "blue"}, {}, "never"):
            del self.cluster.namespaces[name]

    @precondition(lambda self: self.cluster.namespaces)
    @rule(which=st.integers(0, 3))
    def a_namespace_is_deleted(self, which: int) -> None:
        del self.cluster.namespaces[sorted(self.cluster.namespaces)[which % len(self.cluster.namespaces)]]

    @rule(name=names, netid=st.sampled_from([0, 10, 11, 500, 501]), ips=st.sets(addresses, max_size=2))
    def somebody_makes_a_net_namespace(self, name: str, netid: int, ips: set[str]) -> None:
        if name in self.cluster.namespaces and name not in self.cluster.net_namespaces:
            self.world.net_namespace(name, netid, sorted(ips))

    @rule(name=names, netid=st.sampled_from([0, 10, 11, 500, 501]))
    def projects_are_joined(self, name: str, netid: int) -> None:
        if (there := self.cluster.net_namespaces.get(name)) is not None:
            self.cluster.patch(self.cluster.net_namespaces, name, replace(there, netid=netid))

    @rule(name=names, ips=st.sets(addresses, max_size=2), keep=st.booleans())
    def somebody_patches_a_net_namespace(self, name: str, ips: set[str], keep: bool) -> None:
        if (there := self.cluster.net_namespaces.get(name)) is not None:
            self.world.by_hand |= ips
            listed = (*(there.egress_ips if keep else ()), *sorted(ips))
            new = replace(there, egress_ips=tuple(dict.fromkeys(listed)))
            self.cluster.patch(self.cluster.net_namespaces, name, new)

    @rule(name=names)
    def somebody_deletes_a_net_namespace(self, name: str) -> None:
        self.cluster.net_namespaces.pop(name, None)

    @rule(node=nodes, ips=st.sets(addresses, max_size=2), keep=st.booleans())
    def somebody_patches_a_host_subnet(self, node: str, ips: set[str], keep: bool) -> None:
        self.world.by_hand |= ips
        there = self.cluster.host_subnets[node]
        listed = (*(there.egress_ips if keep else ()), *sorted(ips))
        self.cluster.patch(self.cluster.host_subnets, node, replace(there, egress_ips=tuple(dict.fromkeys(listed))))

    @rule(node=nodes, which=st.integers(0, 99))
    def somebody_moves_an_address(self, node: str, which: int) -> None:
        hosting = [(s, text) for s in self.cluster.host_subnets.values() for text in s.egress_ips if s.name != node]
        if hosting:
            source, text = hosting[which % len(hosting)]
            self.world.moved.add(text)
            kept = tuple(other for other in source.egress_ips if other != text)
            self.cluster.patch(self.cluster.host_subnets, source.name, replace(source, egress_ips=kept))
            there = self.cluster.host_subnets[node]
            new = replace(there, egress_ips=tuple(dict.fromkeys((*there.egress_ips, text))))
            self.cluster.patch(self.cluster.host_subnets, node, new)

    @precondition(lambda self: self.cluster.claims)
    @rule(which=st.integers(0, 99))
    def somebody_deletes_a_claim(self, which: int) -> None:
        text = sorted(self.cluster.claims)[which % len(self.cluster.claims)]
        self.world.by_hand.add(text)  # what listed it stays, and is an admin's from now on
        del self.cluster.claims[text]

    @rule(
        name=st.sampled_from(["blue", "green"]),
        cidr=st.sampled_from(
            [BLUE, GREEN, "192.168.1.103-192.168.1.116", "192.168.1.100", "192.168.1.12-192.168.1.16", "10.1.1.0/29"]
        ),
        excluded=st.sets(addresses, max_size=1),
        each=st.integers(1, 3),
        most=st.sampled_from([0, 1]),
    )
    def a_pool_is_edited(self, name: str, cidr: str, excluded: set[str], each: int, most: int) -> None:
        self.world.pool(
            _pool(name, cidr, excluded=tuple(excluded), addresses_per_namespace=each, max_addresses_per_node=most)
        )

    @rule(name=st.sampled_from(["blue", "green"]))
    def a_pool_is_deleted(self, name: str) -> None:
        self.cluster.pools.pop(name, None)

    @rule(node=nodes, ready=st.booleans(), labelled=st.booleans())
    def a_node_object_changes(self, node: str, ready: bool, labelled: bool) -> None:
        there = self.cluster.node_objects[node]
        self.cluster.node_objects[node] = replace(there, ready=ready, labels={EGRESS_LABEL: ""} if labelled else {})

    # Nodes

    @rule(node=nodes, late=st.booleans())
    def a_runner_makes_a_pass(self, node: str, late: bool) -> None:
        self.world.node_pass(node, late=late)

    @rule(node=nodes, writes=st.integers(0, 6), failure=st.sampled_from(FAILURES))
    def a_runner_is_stopped_in_a_pass(self, node: str, writes: int, failure: Callable[[], BaseException]) -> None:
        self.cluster.nodes[node].stop_at(writes, failure)
        self.world.node_pass(node)

    @rule()
    def late_reports_arrive(self) -> None:
        self.world.arrive()

    @rule(node=nodes, what=st.sampled_from(["runner", "ledger", "cable", "power"]))
    def something_goes_or_comes_back(self, node: str, what: str) -> None:
        self.cluster.nodes[node].switch(what)

    @rule(node=nodes, what=st.sampled_from(["flows", "nat", "filter", "addresses", "interface", "bridge"]))
    def somebody_touches_a_node(self, node: str, what: str) -> None:
        self.cluster.nodes[node].touch(what)

    @rule(node=nodes)
    def a_node_is_mended(self, node: str) -> None:
        self.cluster.nodes[node].mend()

    @invariant()
    def nothing_leaks(self) -> None:
        Machine.made["steps"] += 1
        self.since_settled += 1
        invariants.fail_closed(self.cluster.nodes)

    def teardown(self) -> None:
        """All is mended, and everybody leaves: then nothing is left."""
        for node in self.cluster.nodes.values():
            node.mend()
        self.world.settle()
        self.world.everybody_leaves()
        for _ in range(3):
            self.world.settle()
            self.cluster.now += 1000
        self.world.settle()
        invariants.nothing_left(self.cluster)


def _pool(name: str, *cidrs: str, **spec: Any) -> EgressPool:  # noqa: ANN401
    return EgressPool(name, cidrs, namespace_selector=Selector({"colour": name}), **spec)


@pytest.mark.timeout(max(120, 10 * EXAMPLES))
def test_whatever_happens_nothing_leaks_and_all_settles_as_planned() -> None:
    Machine.made.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{Machine.made['steps']} steps")
    assert Machine.made["steps"] >= LEAST_STEPS
