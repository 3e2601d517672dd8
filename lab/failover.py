"""A node of the lab dies while a pod on another one sends: what the outside saw, and how long it saw nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

from lab.net.capture import Packet
from lab.net.topology import WEB, WEB_6, Address, Pod, nodes
from lab.net.traffic import Attempt
from lab.stack import Stack, wait_for

NODES = nodes(3)
"""Pods on the first, addresses on the two others."""
EGRESS_NODES = ("node2", "node3")
NETID = 0x200001
SETTINGS = {
    "HAWSE_RECONCILE_INTERVAL": "3",
    "HAWSE_SWEEP_INTERVAL": "1",
    "HAWSE_REFUSED_RETRY": "2",
    "HAWSE_REJOIN_AFTER": "5",
    # Three nodes share one emulated processor, which their looks at themselves would keep busy.
    "HAWSE_CHECK_INTERVAL": "5",
}
PATIENCE = 60.0


@dataclass
class Seen:
    """What the outside saw while something happened: the stream's attempts, and the frames on the link."""

    address: Address
    attempts: list[Attempt] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)

    @property
    def sources(self) -> set[Address | None]:
        """Whom the web server believed the pod to be."""
        return {attempt.source for attempt in self.attempts if attempt.outcome == "answered"}

    @property
    def strangers(self) -> set[Address]:
        """Sources of requests to the web server other than the address."""
        web = WEB if self.address.version == 4 else WEB_6
        requests = [packet for packet in self.packets if packet.protocol == "tcp" and packet.destination == web]
        return {packet.source for packet in requests if packet.source not in (self.address, None)}

    def macs(self) -> list[str]:
        """The MACs that spoke as the address, each time that another one did: three for one that came back."""
        result: list[str] = []
        for packet in sorted(self.packets, key=lambda packet: packet.time):
            if packet.source == self.address and (not result or result[-1] != packet.source_mac):
                result.append(packet.source_mac)
        return result

    def outage(self) -> float:
        """The longest time between two answers that followed each other, in seconds."""
        answers = sorted(attempt.ended for attempt in self.attempts if attempt.outcome == "answered")
        return max((later - earlier for earlier, later in itertools.pairwise(answers)), default=0.0)


class Failover:
    """One namespace with an address on a stack of `NODES`, and a pod of it on the first node.

    The address is of the pool that serves namespaces with the label `egress: LABEL`.
    """

    def __init__(self, stack: Stack, name: str = "egress-test", netid: int = NETID, *, label: str = "yes") -> None:
        self.stack = stack
        self.name = name
        head = {"apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "metadata": {"name": name}}
        stack.kube.create(head | {"netname": name, "netid": netid})
        self.pod: Pod = stack.network.add_pod(f"fo-{netid:x}", "node1", netid)
        namespace = stack.create_namespace(name, egress=label)
        self.address = ip_address(namespace["metadata"]["annotations"]["egress.hawse.dev/addresses"])
        self.ipv6 = self.address.version == 6
        self.flowing()

    def close(self) -> None:
        """Ends what began with it."""
        self.stack.kube.delete("Namespace", self.name)
        wait_for("deletion", lambda: self.stack.kube.get("Namespace", self.name) is None, PATIENCE)
        self.stack.kube.delete("NetNamespace", self.name)
        self.stack.network.remove_pod(self.pod.name)

    def holders(self) -> list[str]:
        """The nodes whose HostSubnet has the address, by their names in the lab."""
        lab_names = {spec.host: name for name, spec in self.stack.network.nodes.items()}
        subnets = self.stack.kube.list("HostSubnet")
        return [
            lab_names[item["metadata"]["name"]] for item in subnets if str(self.address) in item.get("egressIPs", [])
        ]

    def holder(self) -> str:
        """The one node that has it."""
        (node,) = self.holders()
        return node

    def flowing(self) -> None:
        """Waits until the pod is seen with the address."""
        wait_for(
            f"{self.pod.name} as {self.address}",
            lambda: self.stack.network.request(self.pod, timeout=1, ipv6=self.ipv6).source == self.address,
            PATIENCE,
        )

    @contextmanager
    def watched(self) -> Iterator[Seen]:
        """A request every 50 ms, and all that is on the outside link, while the block runs."""
        seen = Seen(self.address)
        capture = self.stack.network.capture("outside", "arp or icmp6 or (tcp and port 80)")
        traffic = self.stack.network.traffic(self.pod, interval=0.05, timeout=1.0, ipv6=self.ipv6)
        try:
            wait_for("an answer", lambda: any(each.outcome == "answered" for each in traffic.attempts()), PATIENCE)
            yield seen
        finally:
            seen.attempts = traffic.stop()
            seen.packets = capture.stop()

    def kill(self) -> Seen:
        """The node that has the address loses power: what was seen until another one carried it."""
        node = self.holder()
        with self.watched() as seen:
            time.sleep(1.0)
            self.stack.network.power_off(node)
            wait_for("another node", lambda: self.holders() not in ([], [node]), PATIENCE)
            self.flowing()
            time.sleep(0.5)
        return seen

    def revive(self, node: str) -> None:
        """The node boots, its runner starts, and it is no longer counted as lost."""
        began = time.time()
        self.stack.network.power_on(node)
        self.stack.start_runner(node)
        wait_for(f"the report of {node}'s runner", lambda: self.stack.reported(node, began), PATIENCE)
        host = self.stack.network.nodes[node].host
        wait_for(f"{node} is back", lambda: host not in self.stack.lost(), PATIENCE)
