"""How long an address is away when its node dies, on the lab's real data plane; and what others publish of theirs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.rows import Row, row_of
from lab.failover import EGRESS_NODES, NODES, SETTINGS, Failover
from lab.net import preflight
from lab.stack import Stack

BY_NAME = True
"""Run where it is named, not with all: it takes half as long as all the others."""
RUNS = 10
GOAL = 3.0
PUBLISHED = (
    Row("failover, OpenShift SDN (published log)", 1, "s", 12.0, 12.0, 12.0, 0),
    Row("failover, OVN-Kubernetes (published)", 1, "s", 13.5, 12.0, 15.0, 0),
)
"""Not measured here."""
WHY = (
    "0.6 s are the heartbeat's patience, 0.3 the witnesses', 0.5 the probe of the new node; the rest: three emulated "
    "kernels and the control plane on two cores: 0.9 s and more, as the processor is"
)
NOTES = (
    "Published, and not measured here: OpenShift SDN detects after 4.0 s and has moved after 12.0 s (a log), "
    "OVN-Kubernetes takes 12 to 15 s, egressip-ipam-operator minutes."
)


def rows() -> Iterator[Row | str]:
    """The time between the last answer before a node loses power and the first one after, at a request every 50 ms.

    The three nodes share one emulated processor, which is most of what it takes beyond the heartbeat's patience.
    """
    if problems := preflight.check():
        yield f"Not measured: {'; '.join(problems)}."
        return
    outages = []
    with tempfile.TemporaryDirectory() as directory:
        lab = Stack(Path(directory), nodes=NODES, egress_nodes=EGRESS_NODES, settings=SETTINGS)
        with lab:
            lab.create_pool("pool", "192.168.1.102-192.168.1.160", namespaceSelector={"matchLabels": {"egress": "yes"}})
            failover = Failover(lab)
            for _ in range(RUNS):
                node = failover.holder()
                seen = failover.kill()
                if seen.strangers or seen.sources != {failover.address} or len(seen.macs()) != 2:
                    raise RuntimeError(f"seen as {seen.strangers | seen.sources}, by {seen.macs()}")
                outages.append(seen.outage())
                failover.revive(node)
    yield row_of("failover, a node loses power", 1, "s", outages, goal=GOAL, why=WHY)
    yield "The outages, in seconds: " + " ".join(f"{seconds:.2f}" for seconds in sorted(outages)) + "."
    yield from PUBLISHED
    yield NOTES
