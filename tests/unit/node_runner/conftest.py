"""A node in memory whose every driver call is written down in its order."""

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

import pytest

from egress.addresses import Address
from egress.program import Layout
from egress.table import Steering, SteeringHop
from lab.fakes.node import FakeNode, fake_node
from node_runner.drivers.ports import Node, ProbeTiming
from node_runner.programmer import Programmer, Result
from node_runner.retirement import Retirement

NETID = 0x1094C2
NODE1, NODE2 = IPv4Address("192.168.1.17"), IPv4Address("192.168.1.18")
FLOW = f"ip,reg0={NETID:#x} "


class _Recorded:
    """A driver whose writes and probes are appended to `calls` as (name, arguments) before they are made."""

    def __init__(self, driver: object, calls: list[tuple[str, Any]], names: dict[str, str]) -> None:
        self._driver = driver
        self._calls = calls
        self._names = names

    def __getattr__(self, name: str) -> object:
        method = getattr(self._driver, name)
        if name not in self._names:
            return method

        def call(*arguments: object, **options: object) -> object:
            self._calls.append((self._names[name], arguments))
            return method(*arguments, **options)

        return call


@dataclass
class Lab:
    """One node, `node2` of the reference example, with its program and the calls that were made."""

    fake: FakeNode
    programmer: Programmer
    node: Node
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def run(self, table: dict[int, Steering], **options: Any) -> Result:
        """One pass, with nothing resting unless said otherwise."""
        self.calls.clear()
        return self.programmer.run(table, **{"resting": {}, **options})

    @property
    def order(self) -> list[str]:
        """The names of the calls."""
        return [name for name, _ in self.calls]

    def flow(self, netid: int = NETID) -> str:
        """The actions of the flow that we have for a NetID, or ''."""
        lines = [line for line in self.fake.flows.text().splitlines() if f"ip,reg0={netid:#x} " in line]
        assert len(lines) <= 1
        return lines[0].split("actions=")[1] if lines else ""

    @property
    def addresses(self) -> set[str]:
        """Our addresses on the node."""
        return {str(address) for address in self.fake.links.read()}

    @property
    def snat(self) -> bool:
        """Whether any SNAT rule is there."""
        return "-j SNAT" in self.fake.nat.text()


@pytest.fixture
def lab() -> Lab:
    fake = fake_node(str(NODE2))
    calls: list[tuple[str, Any]] = []
    real = fake.node
    recorded: Any = [
        _Recorded(real.flows, calls, {"apply": "flows"}),
        _Recorded(real.nat, calls, {"apply": "rules"}),
        _Recorded(real.links, calls, {"apply": "addresses"}),
        _Recorded(real.arp, calls, {"probe": "probe", "announce": "announce"}),
        _Recorded(real.conntrack, calls, {"forget": "forget"}),
    ]
    node = Node(*recorded)
    return Lab(fake, Programmer("node2", node, Layout(), ProbeTiming(), Retirement(0)), node, calls)


def _row(
    address: str | None = "192.168.1.102",
    node: str = "node2",
    *,
    acknowledged: bool = False,
    netid: int = NETID,
    node_ip: Address = NODE2,
) -> dict[int, Steering]:
    hops = (SteeringHop(IPv4Address(address), node, node_ip, acknowledged, since=1),) if address else ()
    return {netid: Steering(netid, f"ns-{netid}", hops)}


@pytest.fixture
def row() -> Callable[..., dict[int, Steering]]:
    """A table of one row; without an address its traffic is dropped."""
    return _row
