"""Four thousand addresses on a real node: whole, intact, fail-closed, and a pass over one of them among the others."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from egress.delta import RuleChange
from egress.program import Layout
from egress.table import Steering, SteeringHop
from lab.host_node import INTERFACE, host_node, run
from node_runner.drivers import open_node
from node_runner.drivers.errors import IptablesFailed
from node_runner.drivers.ports import Node, ProbeTiming
from node_runner.programmer import Programmer, Result
from node_runner.retirement import RETIRE_SECONDS, Retirement

from .conftest import need

MANY = 4_000
ME, NODE_IP = "node2", IPv4Address("10.20.0.1")
FIRST = int(IPv4Address("10.20.16.0"))
Table = dict[int, Steering]


def given(netid: int, number: int) -> Steering:
    hop = SteeringHop(IPv4Address(FIRST + number), ME, NODE_IP, acknowledged=False)
    return Steering(netid, f"ns{netid}", (hop,))


def holds(variant: str) -> tuple[str, str, str]:
    """Flows, rules and addresses as the tools print them, without counters."""
    flows = run("ovs-ofctl", "--no-names", "-O", "OpenFlow13", "--no-stats", "dump-flows", "br0", "table=100")
    rules = re.sub(r"^(#.*|(:\S+ \S+) \[.*)$", r"\2", run(f"iptables-{variant}-save"), flags=re.MULTILINE)
    return flows, rules, run("ip", "-4", "-o", "address", "show", "dev", INTERFACE)


def failing(change: RuleChange) -> None:
    del change
    raise IptablesFailed("another app holds the lock")


def flush_one(variant: str) -> None:
    """Empties one of the chains that hold SNAT rules."""
    chain = re.search(r"^:(HAWSE-SNAT-[01]{8}) ", holds(variant)[1], re.MULTILINE)
    assert chain is not None
    run(f"iptables-{variant}", "-t", "nat", "-F", chain[1])


class Watched:
    """The drivers of a node, whose writes are counted."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.node = node
        self.writes: list[str] = []
        for name in ("flows", "nat", "links"):
            self._count(name, getattr(node, name), monkeypatch)

    def _count(self, name: str, driver: object, monkeypatch: pytest.MonkeyPatch) -> None:
        real = driver.apply  # type: ignore[attr-defined]

        def counted(*arguments: object) -> object:
            if any(arguments):
                self.writes.append(name)
            return real(*arguments)

        monkeypatch.setattr(driver, "apply", counted)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_four_thousand(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need("ip", "ovs-vsctl", "ovs-ofctl", "ovs-vswitchd", "setpriv", f"iptables-{variant}-restore")
    with host_node(variant, NODE_IP, 16):
        watched = Watched(open_node(NODE_IP, Layout()), monkeypatch)
        node = watched.node

        now = 0.0

        def runner() -> Programmer:
            return Programmer(ME, node, Layout(), ProbeTiming(1, 0.0, 0.0), Retirement(clock=lambda: now))

        def step(programmer: Programmer, table: Table, **options: bool) -> Result:
            watched.writes.clear()
            return programmer.run(table, resting={}, **options)

        table: Table = {netid: given(netid, netid) for netid in range(1, MANY + 1)} | {9_999: Steering(9_999, "one")}
        first = runner()
        result = step(first, table, fresh=True)
        assert sum(claim.held for claim in result.claims) == MANY
        full = holds(variant)
        assert len(node.links.read()) == MANY

        restarted = runner()
        result = step(restarted, table, fresh=True)
        assert (result.wrote, watched.writes, holds(variant)) == (False, [], full)

        # One more and one less, as parts: what a look at everything finds then is just what should be there.
        more = table | {9_999: given(9_999, 9_999)}
        result = step(restarted, more, untouched=True)
        assert watched.writes == ["nat", "flows", "links"]
        assert IPv4Address(FIRST + 9_999) in node.links.read()
        result = step(runner(), more, fresh=True)
        assert (result.wrote, watched.writes) == (False, [])
        less = more | {7: Steering(7, "seven")}
        step(restarted, less, untouched=True)
        assert watched.writes == ["flows", "links"], "the rules outlive their flow"
        assert (step(runner(), less, fresh=True).wrote, watched.writes) == (False, [])

        # Rules that cannot be written leave a drop, whichever way the pass went.
        again = less | {7: given(7, 9_998)}
        with monkeypatch.context() as broken:
            broken.setattr(node.nat, "apply", failing)
            with pytest.raises(IptablesFailed):
                step(restarted, again, untouched=True)
        dropped = f"ip,reg0={7:#x} actions=drop"
        assert dropped in holds(variant)[0]
        assert IPv4Address(FIRST + 9_998) not in node.links.read()
        result = step(restarted, again, untouched=True)
        assert result.wrote
        assert dropped not in holds(variant)[0]

        # Somebody flushes a chain: a part is not programmed among rules that are not there.
        flush_one(variant)
        assert not node.nat.unchanged()
        step(restarted, again | {7: Steering(7, "seven")}, untouched=True)
        assert holds(variant)[1].count("-j SNAT") == MANY + 2, "of two the rules outlive the flow"

        gone = {netid: replace(row, hops=()) for netid, row in again.items()}
        step(restarted, gone, untouched=True)
        assert holds(variant)[1].count("-j SNAT") == MANY + 2
        now = RETIRE_SECONDS
        assert (step(restarted, gone).wrote, watched.writes) == (False, ["nat"])
        assert "HAWSE" not in holds(variant)[1]
        assert holds(variant)[0].count("actions=drop") == MANY + 2  # and the one that was there before us
        assert not node.links.read()
