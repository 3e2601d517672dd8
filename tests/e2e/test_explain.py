"""`hawse explain` and `hawse verify` on real Open vSwitch, iptables and ARP: faults that no runner may mend."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import CompletedProcess
from typing import Any

import pytest

from lab.stack import Stack, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


def asked(stack: Stack, *arguments: str) -> CompletedProcess[str]:
    """What the command says once every node has answered: they share one emulated processor, and may take too long."""

    def answered() -> CompletedProcess[str] | None:
        done = stack.hawse(*arguments)
        return None if "NodeSilent" in done.stdout else done

    return wait_for("an answer of every node", answered, 60)


def faults(stack: Stack, *arguments: str) -> list[tuple[str, str]]:
    done = asked(stack, *arguments, "-o", "json")
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout)["faults"]
    assert done.returncode == bool(found)
    return [(fault["kind"], fault["node"]) for fault in found]


@contextmanager
def planted(stack: Stack, where: str, add: str, remove: str) -> Iterator[None]:
    stack.network.run(where, add.split(), check=True)
    try:
        yield
    finally:
        stack.network.run(where, remove.split(), check=True)


def test_the_path_is_shown_and_what_is_wrong_on_it(team, stack: Stack) -> None:  # noqa: ANN001
    address = team.create()
    team.ready(address)
    team.steered(address)
    wait_for("that all is well", lambda: not faults(stack, "explain", team.name), 90, every=0.5)
    done = asked(stack, "explain", team.name)
    print(done.stdout)
    assert done.stdout.splitlines()[-1] == "All is as it should be."
    assert f"  ok     address: {address}" in done.stdout
    assert len(re.findall(r"flow: .*\([1-9][0-9]* packets, [1-9][0-9]* bytes\)", done.stdout)) == 2, "on both nodes"
    assert "verify" in stack.hawse("--help").stdout

    host, other = (stack.network.nodes[name].host for name in ("node2", "node1"))
    netid = (stack.kube.get("NetNamespace", team.name) or {})["netid"]
    ofctl = "ovs-ofctl -O OpenFlow13"
    flow = f"table=100,priority=200,ip,reg0={netid:#x}"
    with planted(stack, "node1", f"{ofctl} add-flow br0 {flow},actions=drop", f"{ofctl} --strict del-flows br0 {flow}"):
        assert faults(stack, "explain", team.name) == [("FlowShadowed", other)]
        assert ("FlowShadowed", other) in faults(stack, "verify")
    rule = "POSTROUTING -s 10.128.0.0/14 -j MASQUERADE"
    inserted = f"iptables -w 20 -t nat -I {rule}"
    with planted(stack, "node2", inserted, f"iptables -w 20 -t nat -D {rule}"):
        assert faults(stack, "explain", team.name) == [("RuleShadowed", host)]
        assert ("RuleShadowed", host) in faults(stack, "verify")
    by_hand = f"address {{}} {address}/32 dev lo"
    with planted(stack, "node1", f"ip {by_hand.format('add')}", f"ip {by_hand.format('del')}"):
        assert ("AddressStale", other) in faults(stack, "explain", team.name)
        assert ("AddressStale", other) in faults(stack, "verify")
    on_link = f"address {{}} {address}/24 dev eth0"
    with planted(stack, "web", f"ip {on_link.format('add')}", f"ip {on_link.format('del')}"):
        assert ("AddressForeign", host) in faults(stack, "explain", team.name)
        assert ("AddressForeign", host) in faults(stack, "verify")
    wait_for("that all is well again", lambda: not faults(stack, "explain", team.name), 90, every=0.5)
