"""Many nodes in one process: real runners on nodes in memory, for what concerns the control plane alone."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

import redis
from celery import Celery

from egress.adapters.ledger import Ledger
from egress.addresses import Address
from egress.liveness import Identity
from egress.messages import FAILOVER_TASK, INSPECT_TASK, NUDGE_TASK, node_queue, sending_config
from egress.operations import TransientError
from egress.program import Layout
from lab.fakes.node import FakeArp, FakeNode, fake_node
from lab.kube import Json, Kube
from node_runner.__main__ import tell
from node_runner.drivers.ports import Arp, ProbeTiming
from node_runner.heartbeat import Heartbeat
from node_runner.programmer import Programmer
from node_runner.runner import Runner

_ASK_SECONDS, _CHECK_SECONDS = 1, 2.0
"""How long a node listens to its queue at a time, and how often it looks at the table without a nudge."""
_BEAT_SECONDS, _PATIENCE = 0.2, 0.6
EGRESS_LABEL = "egress.hawse.dev/egress-node"
AT_ONCE = ProbeTiming(0, 0.0, 0.0)


class _PatientArp(FakeArp):
    """Answers a probe after as long as a real link is listened to."""

    def __init__(self, neighbours: dict[Address, str], waits: ProbeTiming) -> None:
        super().__init__(neighbours)
        self._seconds = waits.interval * max(0, waits.count - 1) + waits.wait

    def probe(
        self, interface: str, mac: str, addresses: Iterable[Address], timing: ProbeTiming = AT_ONCE
    ) -> dict[Address, str]:
        """See ports.Arp."""
        time.sleep(self._seconds)
        return super().probe(interface, mac, addresses, timing)


@dataclass
class _Node:
    """One node: what is on it, its runner, and whether it was nudged."""

    fake: FakeNode
    runner: Runner
    ledger: Ledger
    broker: redis.Redis
    heartbeat: Heartbeat
    due: threading.Event = field(default_factory=threading.Event)
    steps: threading.Lock = field(default_factory=threading.Lock)


class VirtualNodes:
    """Nodes on one link, each with a `Runner` in a thread of its own, and a thread that takes what its queue brings.

    `probe` is how long a probe of the link waits for answers; at once unless it is given. `beating` nodes say that they
    live, as real ones do.
    """

    def __init__(
        self,
        redis_url: str,
        addresses: Sequence[IPv4Address],
        *,
        prefix_length: int = 24,
        probe: ProbeTiming = AT_ONCE,
        beating: bool = False,
    ) -> None:
        self._running: dict[str, _Node] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._prefix_length = prefix_length
        self._redis_url = redis_url
        self._probe = probe
        self._beating = beating
        self._mend = True
        self.deaf: set[str] = set()
        """The nodes that do not answer."""
        self._ips = {f"node{number}": address for number, address in enumerate(addresses, 1)}

    @property
    def nodes(self) -> Mapping[str, FakeNode]:
        """What is on each node, by its name."""
        return {name: node.fake for name, node in self._running.items()}

    @property
    def mend(self) -> bool:
        """Set to False, the runners leave their nodes as they are, and only say what is on them when they are asked."""
        return self._mend

    @mend.setter
    def mend(self, mend: bool) -> None:
        self._mend = mend
        for node in self._running.values():
            with node.steps:  # what had begun is over
                pass

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
        neighbours: dict[Address, str] = {}
        for name, address in self._ips.items():
            fake = fake_node(str(address), prefix_length=self._prefix_length, neighbours=neighbours)
            arp: Arp = _PatientArp(neighbours, self._probe) if self._probe != AT_ONCE else fake.arp
            drivers = replace(fake.node, arp=arp)
            ledger = Ledger(self._redis_url)
            me = Identity(name, str(address))
            programmer = Programmer(name, drivers, Layout(), self._probe)
            runner = Runner(me, programmer, ledger, partial(tell, sending, ledger), retry=1.0)
            asks = partial(tell, sending, ledger, FAILOVER_TASK)
            heartbeat = Heartbeat(me, ledger, drivers, runner.addresses_of, asks, patience=_PATIENCE)
            broker = redis.Redis.from_url(self._redis_url)
            self._running[name] = _Node(fake, runner, ledger, broker, heartbeat)
        for name, node in self._running.items():
            self._begin(self._run, name, node)
            self._begin(self._listen, name, node)
            if self._beating:
                self._begin(node.heartbeat.beat_until, self._stop, _BEAT_SECONDS)
        return self

    def _begin(self, run: object, *arguments: object) -> None:
        self._threads.append(threading.Thread(target=run, args=arguments, daemon=True))  # type: ignore[arg-type]
        self._threads[-1].start()

    def stop(self) -> None:
        """Ends the runners; what their nodes hold stays."""
        self._stop.set()
        for node in self._running.values():
            node.due.set()
        for thread in self._threads:
            thread.join(10)
        for node in self._running.values():
            node.ledger.close()
            node.broker.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _listen(self, name: str, node: _Node) -> None:
        """Takes what comes for the node, as its Celery worker does: nudges, and what it is asked of itself."""
        queue = f"hawse-broker:{node_queue(name)}"
        while not self._stop.is_set():
            try:
                came = node.broker.brpop([queue], _ASK_SECONDS)
                if not came:
                    continue
                task = json.loads(came[1])
                if task["headers"]["task"] == INSPECT_TASK:
                    node.runner.inspect(json.loads(base64.b64decode(task["body"]))[0][0])
                else:
                    node.ledger.done_with(f"{NUDGE_TASK}:{node_queue(name)}")
                    node.runner.wake()
                node.due.set()
            except (TransientError, redis.RedisError):
                self._stop.wait(_ASK_SECONDS)

    def _run(self, name: str, node: _Node) -> None:
        while not self._stop.is_set():
            node.due.clear()
            if name not in self.deaf:
                node.runner.answer_inspections()
            with node.steps:
                if self._mend:
                    node.runner.step()
            node.due.wait(_CHECK_SECONDS)
