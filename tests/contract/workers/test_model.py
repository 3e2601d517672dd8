"""The real workers, on a real API server and Valkey, with real runners on nodes in memory: tasks run in any order,
twice or never, workers and runners die in the middle, Redis is flushed, people patch what they like.

The same must hold as of the simulated cluster (tests/unit/model). `MODEL_EXAMPLES=100` runs it for longer.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from egress import pools
from egress.adapters import manifests
from egress.adapters.ledger import NotReadyError, Reserved, name_holder
from egress.board import EGRESS_LABEL
from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, SWEEP_TASK
from lab.model import invariants
from lab.model.node import FAILURES, SimNode
from lab.model.real import FragileCluster, RealRunner, WorkerKilledError, snapshot
from lab.model.tasks import Tasks
from lab.model.world import covered
from workers.context import Context

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "40"))
STEPS = int(os.environ.get("MODEL_STEPS", "40"))
MAX_ROUNDS = 25
IPS = {"node1": "192.168.1.11", "node2": "192.168.1.12", "node3": "192.168.1.13"}
NAMES = ("alpha", "beta", "gamma")
BLUE, GREEN = "192.168.1.100-192.168.1.104", "192.168.1.112/29"

nodes = st.sampled_from(sorted(IPS))
names = st.sampled_from(NAMES)
addresses = st.sampled_from(["192.168.1.100", "192.168.1.113", "192.168.1.200"])
tasks = st.sampled_from([PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, SWEEP_TASK, NAMESPACE_TASK])


class Real:
    """One cluster for all examples; `begin` finds it, and leaves it, without any object of ours but the nodes."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.cluster = FragileCluster(str(world.cluster.kubeconfig))
        old = world.context
        world.context = Context(old.settings, old.ledger, self.cluster, old.send)
        for name, ip in IPS.items():
            world.node(name, ip, report=False)
        self.made: Counter[str] = Counter()

    def begin(self) -> None:
        kube, ledger = self.world.kube, self.world.ledger
        self.cluster.die_at(None)
        for name in NAMES:
            kube.delete("Namespace", name)
        for kind in ("NetNamespace", "EgressAddress", "EgressPool"):
            for item in kube.list(kind):
                kube.delete(kind, item["metadata"]["name"])
        for name in IPS:
            kube.patch("HostSubnet", name, {"egressIPs": []})
            kube.patch("Node", name, {"metadata": {"labels": {EGRESS_LABEL: ""}}})
        self.world.until(lambda: not any(kube.get("Namespace", name) for name in NAMES))
        ledger._redis.flushall()
        self.world.tasks.clear()
        self.world.failures.clear()
        self.by_hand: set[str] = set()
        self.moved: set[str] = set()
        self.ever: set[str] = set()
        self.nodes = {name: SimNode(name, ip, self.neighbours) for name, ip in IPS.items()}
        self.runners = {name: RealRunner(node, ledger, self.world.context.ask) for name, node in self.nodes.items()}
        for node in self.nodes.values():
            node.checked = self.check

    def neighbours(self, asking: str) -> dict[Any, str]:
        others = (node for name, node in self.nodes.items() if name != asking and node.powered and node.link)
        return {address: node.name for node in others for address in node.found().addresses}

    def check(self) -> None:
        """Nothing leaks. It is asked of the nodes alone: no object need be read."""
        invariants.fail_closed(self.nodes)

    # People

    def pool(self, name: str, cidr: str, **spec: Any) -> None:
        given = {"cidrs": [cidr], "namespaceSelector": {"matchLabels": {"colour": name}}, **spec}
        if self.world.kube.get("EgressPool", name) is None:
            self.world.pool(name, **given)
        else:
            self.world.kube.patch("EgressPool", name, {"spec": given})
        self.ever |= covered(manifests.egress_pool(self.world.kube.get("EgressPool", name))).difference(IPS.values())

    def namespace(self, name: str, colour: str, *, webhook: bool) -> None:
        """With `webhook` it has been through admission, where that could assign."""
        kube, ledger = self.world.kube, self.world.ledger
        if kube.get("Namespace", name) is not None:
            return
        annotations = {}
        if webhook:
            try:
                offer = ledger.offer()
                choice = pools.choose(name, {"colour": colour}, {}, offer.pools, offer.node_ips)
                if choice is not None:
                    ranges = pools.ranges(choice.pool, offer.node_ips)
                    outcome = ledger.reserve(name_holder(name), choice.count, ranges)
                    if not isinstance(outcome, Reserved):
                        return
                    annotations = {"egress.hawse.dev/addresses": ",".join(map(str, outcome.addresses))}
            except NotReadyError:
                pass
        metadata = {"name": name, "labels": {"colour": colour}, "annotations": annotations}
        kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self.watched(name)

    def watched(self, *names: str) -> None:
        """What the watch asks for when an object changes."""
        self.world.tasks += [(NAMESPACE_TASK, (name,)) for name in names] + [(PLACE_TASK, ()), (PUBLISH_TASK, ())]

    # Workers

    def waiting(self, which: int) -> tuple[str, tuple[str, ...]]:
        """Takes a task out of the queue."""
        tasks = self.world.tasks
        task, arguments = tasks.pop(which % len(tasks))
        return task, arguments

    def run(self, task: str, *arguments: str, again: bool = True) -> None:
        """One task, in a worker that may die of it. Then it runs `again`, for it was not acknowledged, or is lost."""
        try:
            self.world.run(task, *arguments)
        except WorkerKilledError:
            self.made["killed"] += 1
            if again:
                self.world.tasks.append((task, arguments))

    def settle(self) -> None:
        """Everybody works until nothing changes any more, and then all must be right."""
        self.cluster.die_at(None)
        for key in self.world.ledger._redis.scan_iter("hawse:pending:hawse.v1.*"):
            self.world.ledger._redis.delete(key)  # an ask that was lost keeps others quiet for 15 s: they are over
        before: object = None
        rested = False
        for _ in range(MAX_ROUNDS):
            self.run(RECONCILE_TASK)
            self.world.settle()
            for runner in self.runners.values():
                runner.step()
            self.run(PUBLISH_TASK)
            self.world.settle()
            self.run(SWEEP_TASK)
            self.world.settle()
            after = self.state()
            if before == after and rested:
                break
            if before == after:
                rested = True
                for node in self.nodes.values():
                    node.rest()
            else:
                rested = False
            before = after
        else:
            raise invariants.Violation(f"it never settles: {self.world.failures[-3:]}")
        self.made["settled"] += 1
        self.check()
        seen = snapshot(self.cluster, self.world.ledger, self.nodes.values())
        seen.now = time.time()
        simulated = Tasks(seen)
        invariants.settled(simulated, self.by_hand, self.moved, self.ever)
        self.made.update(plan.state.value for plan in simulated.plan(seen.ledger.table.rows, "x").namespaces.values())

    def state(self) -> object:
        table = self.world.ledger.read_table()
        held = {name: node.found() for name, node in self.nodes.items()}
        return self.world.versions(), table.epoch, table.change, self.world.usage(), held


class Machine(RuleBasedStateMachine):
    """What may happen, in any order."""

    real: Real
    since_settled = 0

    @initialize(colours=st.lists(st.sampled_from(["blue", "green"]), max_size=2), work=st.booleans())
    def a_cluster_at_work(self, colours: list[str], work: bool) -> None:
        self.real.begin()
        self.real.pool("blue", BLUE, quarantine="1h")
        self.real.pool("green", GREEN, quarantine="0s", addressesPerNamespace=2)
        self.real.run(RECONCILE_TASK)
        for name, colour in zip(NAMES, colours, strict=False):
            self.real.namespace(name, colour, webhook=True)
        if work:
            self.real.settle()

    @rule(task=tasks, name=names)
    def a_task_runs(self, task: str, name: str) -> None:
        """Nobody asked for it, or it is a doubled one."""
        self.real.run(task, *((name,) if task == NAMESPACE_TASK else ()))

    @rule(which=st.integers(0, 99), many=st.integers(1, 5))
    def waiting_tasks_run(self, which: int, many: int) -> None:
        for _ in range(min(many, len(self.real.world.tasks))):
            task, arguments = self.real.waiting(which)
            self.real.run(task, *arguments)

    @rule(which=st.integers(0, 99), calls=st.integers(0, 9), after=st.booleans(), again=st.booleans())
    def a_worker_dies_of_a_task(self, which: int, calls: int, after: bool, again: bool) -> None:
        if not self.real.world.tasks:
            return
        task, arguments = self.real.waiting(which)
        self.real.cluster.die_at(calls, after=after)
        self.real.run(task, *arguments, again=again)
        self.real.cluster.die_at(None)

    @rule(which=st.integers(0, 99))
    def a_task_is_lost(self, which: int) -> None:
        if self.real.world.tasks:
            self.real.waiting(which)

    @rule()
    def redis_is_flushed(self) -> None:
        self.real.world.ledger._redis.flushall()

    @precondition(lambda self: self.since_settled > 4)
    @rule()
    def all_settles(self) -> None:
        self.real.settle()
        self.since_settled = 0

    @rule(name=names, colour=st.sampled_from(["blue", "green"]), webhook=st.booleans())
    def a_namespace_is_created(self, name: str, colour: str, webhook: bool) -> None:
        self.real.namespace(name, colour, webhook=webhook)

    @rule(name=names)
    def a_namespace_is_deleted(self, name: str) -> None:
        if self.real.world.kube.get("Namespace", name) is not None:
            self.real.world.delete(name)
            self.real.watched(name)

    @rule(name=names, ips=st.sets(addresses, max_size=1), gone=st.booleans())
    def somebody_patches_a_net_namespace(self, name: str, ips: set[str], gone: bool) -> None:
        if self.real.world.kube.get("NetNamespace", name) is None:
            return
        if gone:
            self.real.world.kube.delete("NetNamespace", name)
        else:
            self.real.by_hand |= ips
            self.real.world.kube.patch("NetNamespace", name, {"egressIPs": sorted(ips)})
        self.real.watched(name)

    @rule(node=nodes, ips=st.sets(addresses, max_size=2), keep=st.booleans())
    def somebody_patches_a_host_subnet(self, node: str, ips: set[str], keep: bool) -> None:
        self.real.by_hand |= ips
        kept = [text for text in self.real.world.hosted(node) if text not in ips] if keep else []
        self.real.world.kube.patch("HostSubnet", node, {"egressIPs": [*kept, *sorted(ips)]})
        self.real.watched()

    @rule(which=st.integers(0, 99))
    def somebody_deletes_a_claim(self, which: int) -> None:
        claims = sorted(self.real.world.claims())
        if claims:
            text = claims[which % len(claims)]
            self.real.by_hand.add(text)
            self.real.world.kube.delete("EgressAddress", text)
            self.real.watched(*NAMES)

    @rule(
        name=st.sampled_from(["blue", "green"]),
        cidr=st.sampled_from([BLUE, GREEN, "192.168.1.103-192.168.1.116"]),
        each=st.integers(1, 2),
    )
    def a_pool_is_edited(self, name: str, cidr: str, each: int) -> None:
        self.real.pool(name, cidr, addressesPerNamespace=each)

    @rule(node=nodes, labelled=st.booleans())
    def a_node_is_labelled(self, node: str, labelled: bool) -> None:
        self.real.world.kube.patch("Node", node, {"metadata": {"labels": {EGRESS_LABEL: "" if labelled else None}}})

    @rule(node=nodes)
    def a_runner_makes_a_pass(self, node: str) -> None:
        self.real.runners[node].step()

    @rule(node=nodes, writes=st.integers(0, 6), failure=st.sampled_from(range(len(FAILURES))))
    def a_runner_is_stopped_in_a_pass(self, node: str, writes: int, failure: int) -> None:
        self.real.nodes[node].stop_at(writes, FAILURES[failure])
        self.real.runners[node].step()

    @rule(node=nodes, what=st.sampled_from(["flows", "nat", "filter", "addresses"]))
    def somebody_touches_a_node(self, node: str, what: str) -> None:
        self.real.nodes[node].touch(what)

    @invariant()
    def nothing_leaks(self) -> None:
        self.real.made["steps"] += 1
        self.since_settled += 1
        self.real.check()

    def teardown(self) -> None:
        """It settles once more, whatever state it was left in."""
        self.real.settle()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("settings", [{"fence_wait": 1.0, "reservation_lifetime": 0.0}])
@pytest.mark.timeout(max(300, 60 * EXAMPLES))
def test_whatever_happens_the_workers_settle_as_planned_and_nothing_leaks(world: Any) -> None:
    real = Real(world)

    class OnThis(Machine):
        pass

    OnThis.real = real
    run_state_machine_as_test(OnThis, settings=bounded())
    print(dict(real.made))
    assert real.made["settled"] >= EXAMPLES
    assert real.made["via"], "nothing was ever sent anywhere"


def bounded() -> settings:
    """Without a hunt for the smallest failure unless more is asked for: each try costs seconds."""
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    if "MODEL_EXAMPLES" in os.environ:
        phases.append(Phase.shrink)
    return settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
