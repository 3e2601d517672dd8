"""Nodes die, fall silent and come back on a real data plane, while a pod on another node sends every 50 ms."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from egress.adapters.ledger import Ledger
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster
from lab.failover import EGRESS_NODES, NETID, NODES, SETTINGS, Failover, Seen
from lab.real_cluster import RealCluster
from lab.stack import Stack, wait_for

from .conftest import offered

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
POOL = ("192.168.1.102-192.168.1.160", {"matchLabels": {"egress": "yes"}})


@pytest.fixture(scope="module", params=["embedded", "real"])
def trio(request: pytest.FixtureRequest, machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Hawse on three nodes, two of which may have addresses."""
    cluster: Callable[[Path], Cluster] = EmbeddedCluster
    if request.param == "real":
        request.getfixturevalue("real_binaries")
        cluster = RealCluster
    directory = tmp_path_factory.mktemp("trio")
    with Stack(directory, nodes=NODES, egress_nodes=EGRESS_NODES, settings=SETTINGS, cluster=cluster) as running:
        running.create_pool("pool", POOL[0], namespaceSelector=POOL[1])
        offered(running, "pool")
        yield running


@pytest.fixture(scope="module")
def failover(trio: Stack) -> Iterator[Failover]:
    """One namespace with an address, and a pod of it on the first node."""
    running = Failover(trio)
    yield running
    running.close()


def check(seen: Seen, *, macs: int) -> None:
    """Nobody but the address was seen, and one MAC after the other spoke as it."""
    assert seen.sources == {seen.address}
    assert seen.strangers == set()
    assert len(seen.macs()) == macs
    assert len(set(seen.macs())) == macs


def test_a_node_dies_and_another_carries_its_address(
    failover: Failover, trio: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    outages = []
    for _ in range(2):
        node = failover.holder()
        seen = failover.kill()
        check(seen, macs=2)
        assert failover.holder() != node
        outages.append(seen.outage())
        assert trio.lost() == {trio.network.nodes[node].host}
        # It boots with what nobody took from it: nothing. And it gets nothing back.
        failover.revive(node)
        assert ":eip" not in "".join(trio.addresses(node))
        assert failover.holder() != node
        with_ledger(trio, lambda ledger: wait_for("the history", lambda: steps(ledger, failover, "failover"), 60))
    with capsys.disabled():
        print("\n   a dead node's address was away for " + ", ".join(f"{seconds:.1f} s" for seconds in outages))


def steps(ledger: Ledger, failover: Failover, step: str) -> list[str]:
    return [record.message for record in ledger.history(failover.name) if record.step == step]


def with_ledger(stack: Stack, use: Callable[[Ledger], object]) -> None:
    ledger = Ledger(stack.broker.unix_url)
    try:
        use(ledger)
    finally:
        ledger.close()


def test_a_runner_that_dies_takes_nothing_with_it(failover: Failover, trio: Stack) -> None:
    node = failover.holder()
    with failover.watched() as seen:
        trio.runners[node].kill()
        time.sleep(8)
        assert trio.lost() == set()
        assert failover.holder() == node
    check(seen, macs=1)
    began = time.time()
    trio.start_runner(node)
    wait_for("its report", lambda: trio.reported(node, began), 60)


def test_a_node_that_redis_does_not_hear_keeps_what_it_answers_for(failover: Failover, trio: Stack) -> None:
    node = failover.holder()
    with failover.watched() as seen:
        trio.network.run(node, ["ip", "link", "set", "mgmt", "down"], check=True)
        time.sleep(8)
        assert trio.lost() == set()
        assert failover.holder() == node
        began = time.time()
        trio.network.run(node, ["ip", "link", "set", "mgmt", "up"], check=True)
        wait_for("its report", lambda: trio.reported(node, began), 60)
    check(seen, macs=1)


def test_a_link_that_flaps_moves_an_address_once(failover: Failover, trio: Stack) -> None:
    node = failover.holder()
    with_ledger(trio, lambda ledger: ledger._redis.delete(f"hawse:history:{failover.name}"))
    with failover.watched() as seen:
        after_the_move = 0
        for _ in range(20):  # a busy machine may miss the first times: the link was back before anybody acted
            trio.network.isolate(node)
            time.sleep(1.5)
            trio.network.restore(node)
            time.sleep(1.5)
            after_the_move += failover.holders() != [node]
            if after_the_move == 3:
                break
        failover.flowing()
        time.sleep(0.5)
    check(seen, macs=2)
    assert failover.holder() != node
    with_ledger(trio, lambda ledger: wait_for("one move", lambda: len(steps(ledger, failover, "move")) == 1, 60))
    wait_for("the node is back", lambda: trio.lost() == set(), 60)


def test_a_node_that_was_cut_off_comes_back_without_its_address(failover: Failover, trio: Stack) -> None:
    """Neither its link nor Redis reaches it; then its link comes back first."""
    node = failover.holder()
    with failover.watched() as seen:
        trio.network.run(node, ["ip", "link", "set", "mgmt", "down"], check=True)
        trio.network.isolate(node)
        wait_for("another node", lambda: failover.holders() not in ([], [node]), 60)
        failover.flowing()
        wait_for("it lets go", lambda: ":eip" not in "".join(trio.addresses(node)), 30)
        trio.network.restore(node)
        for _ in range(3):  # somebody outside asks who has it: the old node's reply would be seen
            trio.network.run("web", ["arping", "-c", "1", "-w", "1", "-I", "eth0", str(failover.address)])
        assert ":eip" not in "".join(trio.addresses(node))
        began = time.time()
        trio.network.run(node, ["ip", "link", "set", "mgmt", "up"], check=True)
        wait_for("its report", lambda: trio.reported(node, began), 60)
        time.sleep(2)
    check(seen, macs=2)
    assert ":eip" not in "".join(trio.addresses(node))


def test_a_drained_node_gives_its_address_away(failover: Failover, trio: Stack) -> None:
    node = failover.holder()
    host = trio.network.nodes[node].host
    wait_for("probation is over", lambda: not probation(trio), 60)
    with failover.watched() as seen:
        trio.kube.patch("Node", host, {"metadata": {"annotations": {"egress.hawse.dev/drain": ""}}})
        (target,) = set(EGRESS_NODES) - {node}
        wait_for("the other node", lambda: f" {failover.address}/24 " in " ".join(trio.addresses(target)), 60)
        failover.flowing()
        time.sleep(0.5)
    trio.kube.patch("Node", host, {"metadata": {"annotations": {"egress.hawse.dev/drain": None}}})
    check(seen, macs=2)


def probation(stack: Stack) -> bool:
    found: list[bool] = []
    with_ledger(stack, lambda ledger: found.append(bool(ledger.returned())))
    return found[0]


def test_an_address_is_moved_on_request(failover: Failover, trio: Stack) -> None:
    node = failover.holder()
    (target,) = set(EGRESS_NODES) - {node}
    wait_for("probation is over", lambda: not probation(trio), 60)
    with failover.watched() as seen:
        done = trio.hawse("move", str(failover.address), trio.network.nodes[target].host)
        assert done.returncode == 0, done.stderr
        time.sleep(1.0)
    check(seen, macs=2)
    assert failover.holder() == target


@pytest.mark.parametrize("trio", ["embedded"], indirect=True)
def test_an_ipv6_address_of_a_node_that_dies(trio: Stack) -> None:
    trio.create_pool(
        "six", "fd00:192:168:1::100-fd00:192:168:1::10f", namespaceSelector={"matchLabels": {"egress": "six"}}
    )
    offered(trio, "six")
    failover = Failover(trio, "egress-six", NETID + 1, label="six")
    node = failover.holder()
    seen = failover.kill()
    check(seen, macs=2)
    assert failover.holder() != node
    announced = [packet for packet in seen.packets if packet.gratuitous and packet.target == failover.address]
    assert announced[-1].source_mac == seen.macs()[-1]
    failover.revive(node)
    assert str(failover.address) not in "".join(trio.addresses(node, ipv6=True))
    failover.close()
    trio.kube.delete("EgressPool", "six")
