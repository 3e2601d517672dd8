"""Each component is killed at a random moment of a burst and started again: the end is the same."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3

from egress.adapters.ledger import Ledger
from egress.addresses import from_object_name
from lab.control_plane import COMPONENTS
from lab.kube import KubeError
from lab.stack import Stack, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
BURST = 6


@pytest.fixture
def names(stack: Stack, component: str) -> Iterator[list[str]]:
    """The namespaces of a burst, to be created. A test that fails leaves none to the next."""
    names = [f"burst-{component}-{number}" for number in range(BURST)]
    yield names
    for name in names:
        stack.kube.delete("Namespace", name)


@pytest.mark.parametrize("component", ["webhook", "worker", "watch", "beat", "broker", "apiserver", "node1", "node2"])
def test_killed_in_a_burst_and_again_in_its_release(
    stack: Stack, ledger: Ledger, component: str, names: list[str]
) -> None:
    draw = random.Random(component)
    with ThreadPoolExecutor(2) as pool:
        creations = [pool.submit(insist, component, stack.create_namespace, name, egress="yes") for name in names]
        kill_and_restart(stack, component, draw)
        for creation in creations:
            creation.result()  # none is refused, whoever was away
    wait_for("all assignments", lambda: all_ready(stack, names), 90, every=0.5)

    claims = {item["metadata"]["name"]: item for item in stack.kube.list("EgressAddress")}
    held = {name: claim for name, claim in claims.items() if claim.get("status", {}).get("phase") != "Quarantined"}
    owners = {name: claim["spec"]["namespace"]["name"] for name, claim in held.items()}
    assert sorted(owners.values()) == sorted(names), "each namespace holds one address, and nobody else any"
    annotated = {
        namespace["metadata"]["annotations"]["egress.hawse.dev/addresses"]: namespace["metadata"]["name"]
        for namespace in stack.kube.list("Namespace")
        if namespace["metadata"]["name"] in names
    }
    assert annotated == owners
    bound = {tuple(item["egressIPs"]) for item in stack.kube.list("NetNamespace") if item["netname"] in names}
    assert bound == {(address,) for address in owners}
    netids = [item["netid"] for item in stack.kube.list("NetNamespace")]
    assert len(netids) == len(set(netids))
    hosted = [address for item in stack.kube.list("HostSubnet") for address in item.get("egressIPs", [])]
    assert sorted(hosted) == sorted(owners)
    on_the_node = {line.split()[3].split("/")[0] for line in stack.addresses("node2")} - {"192.168.1.18"}
    assert on_the_node == set(owners)

    with ThreadPoolExecutor(2) as pool:
        deletions = [pool.submit(insist, component, stack.kube.delete, "Namespace", name) for name in names]
        kill_and_restart(stack, component, draw)
        for deletion in deletions:
            deletion.result()

    def released() -> bool:
        phases = {
            item["metadata"]["name"]: item.get("status", {}).get("phase") for item in stack.kube.list("EgressAddress")
        }
        return all(phases[address] == "Quarantined" for address in owners) and not any(
            item.get("egressIPs") for item in stack.kube.list("HostSubnet")
        )

    wait_for("the release", released, 90, every=0.5)
    wait_for(
        "clean nodes",
        lambda: not any("cookie=0x486177736" in f for n in stack.network.nodes for f in stack.flows(n)),
        60,
    )

    def settled() -> bool:
        objects = {from_object_name(item["metadata"]["name"]) for item in stack.kube.list("EgressAddress")}
        usage = ledger.usage()
        return set(usage) == objects and {state for state, _ in usage.values()} == {"quarantined"}

    wait_for("an index without leaks", settled, 60)


def insist(component: str, request: Callable[..., object], *arguments: str, **labels: str) -> None:
    """A request as a person makes it: once more when the API server itself was away. Nothing else is an excuse."""
    while True:
        try:
            request(*arguments, **labels)
        except urllib3.exceptions.HTTPError:
            if component != "apiserver":
                raise
            time.sleep(0.2)
        except KubeError as error:
            if component != "apiserver":
                raise
            if error.code == 409:  # done before, and the answer was lost
                return
            if error.code < 500 and "not yet ready to handle request" not in str(error):
                raise
            time.sleep(0.2)
        else:
            return


def kill_and_restart(stack: Stack, component: str, draw: random.Random) -> None:
    """SIGKILL after a moment, and a new start after another."""
    time.sleep(draw.uniform(0, 0.1))
    if component in COMPONENTS:
        stack.control.kill(component)
        time.sleep(draw.uniform(0, 0.5))
        stack.control.start(component)
    elif component == "broker":
        stack.broker.kill()
        time.sleep(draw.uniform(0, 0.5))
        stack.broker.start()
    elif component == "apiserver":
        stack.cluster.kill()
        time.sleep(draw.uniform(0, 0.5))
        stack.cluster.start()
    else:
        stack.runners[component].kill()
        time.sleep(draw.uniform(0, 0.5))
        stack.start_runner(component)


def all_ready(stack: Stack, names: list[str]) -> bool:
    claims = [item for item in stack.kube.list("EgressAddress") if item["spec"]["namespace"]["name"] in names]
    ready = [item["spec"]["namespace"]["name"] for item in claims if item.get("status", {}).get("phase") == "Ready"]
    return sorted(ready) == sorted(names)
