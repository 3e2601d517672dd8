"""Many nodes in one process: real runners on nodes in memory, for what concerns the control plane alone."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

import redis
from celery import Celery

from egress.adapters.ledger import Ledger
from egress.liveness import Identity
from egress.messages import INSPECT_TASK, NUDGE_TASK, node_queue, sending_config
from egress.operations import TransientError
from egress.program import Layout
from lab.fakes.node import FakeNode, fake_node
from lab.kube import Json, Kube
from node_runner.__main__ import tell
from node_runner.drivers.ports import ProbeTiming
from node_runner.programmer import Programmer
from node_runner.runner import Runner

_LOOK_SECONDS, _CHECK_SECONDS = 0.1, 2.0
"""A node looks so often for a nudge, instead of having a queue of its own, and so often without one."""
EGRESS_LABEL = "egress.hawse.dev/egress-node"


class VirtualNodes:
    """Nodes on one link, each with a `Runner` in a thread of its own."""

    def __init__(self, redis_url: str, addresses: Sequence[IPv4Address], *, prefix_length: int = 24) -> None:
        self.nodes: dict[str, FakeNode] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ledgers: list[Ledger] = []
        self._prefix_length = prefix_length
        self._redis_url = redis_url
        self.mend = True
        """Set to False, the runners leave their nodes as they are, and only say what is on them when they are asked."""
        self.deaf: set[str] = set()
        """The nodes that do not answer."""
        self._ips = {f"node{number}": address for number, address in enumerate(addresses, 1)}

    def create(self, kube: Kube) -> None:
        """Makes their Node and HostSubnet objects. All may host addresses."""
        for number, (name, address) in enumerate(self._ips.items()):
            labels = {"kubernetes.io/hostname": name, EGRESS_LABEL: ""}
            node: Json = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
            kube.create(node)
            ready = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
            kube.patch("Node", name, {"status": {"conditions": ready}}, subresource="status")
            head = {"apiVersion": "network.openshift.io/v1", "kind": "HostSubnet", "metadata": {"name": name}}
            subnet = f"10.128.{2 * number}.0/23"
            kube.create(head | {"host": name, "hostIP": str(address), "subnet": subnet, "egressIPs": []})

    def ip_of(self, name: str) -> str:
        """A node's IP."""
        return str(self._ips[name])

    def start(self) -> Self:
        """Starts the runners."""
        sending = Celery("hawse-virtual-nodes", set_as_current=False)
        sending.conf.update(sending_config(self._redis_url))
        neighbours: dict[object, str] = {}
        for name, address in self._ips.items():
            fake = fake_node(str(address), prefix_length=self._prefix_length, neighbours=neighbours)  # type: ignore[arg-type]
            ledger = Ledger(self._redis_url)
            programmer = Programmer(name, fake.node, Layout(), ProbeTiming())
            tells = partial(tell, sending, ledger)
            runner = Runner(Identity(name, str(address)), programmer, ledger, tells, retry=1.0)
            self.nodes[name] = fake
            self._ledgers.append(ledger)
            self._threads.append(threading.Thread(target=self._run, args=(name, runner, ledger), daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Ends the runners; what their nodes hold stays."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        for ledger in self._ledgers:
            ledger.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, name: str, runner: Runner, ledger: Ledger) -> None:
        nudge, due = f"{NUDGE_TASK}:{node_queue(name)}", 0.0
        broker = redis.Redis.from_url(self._redis_url)
        while not self._stop.wait(_LOOK_SECONDS):
            try:
                for namespace in _asked_of(name, broker):
                    runner.inspect(namespace)
                if name not in self.deaf:
                    runner.answer_inspections()
                if not self.mend:
                    continue
                nudged = not ledger.first_to(nudge, 0.001)
                if nudged:
                    ledger.done_with(nudge)
            except (TransientError, redis.RedisError):
                continue
            if nudged or time.monotonic() >= due:
                runner.step()
                due = time.monotonic() + _CHECK_SECONDS
        broker.close()


def _asked_of(node: str, broker: redis.Redis) -> Iterator[str]:
    """The namespaces of which the node was asked what is on it. What else its queue holds are nudges."""
    while message := broker.rpop(f"hawse-broker:{node_queue(node)}"):
        task = json.loads(message)  # type: ignore[arg-type]
        if task["headers"]["task"] == INSPECT_TASK:
            yield json.loads(base64.b64decode(task["body"]))[0][0]
