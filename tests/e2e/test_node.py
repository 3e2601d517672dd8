"""What a node does besides the main job: drift, foreign things, restarts without writes, refusals."""

from __future__ import annotations

import time
from ipaddress import IPv4Address

import pytest

from lab.stack import RUNNER, Stack, wait_for

from .conftest import at_rest

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("stack", ["embedded"], indirect=True),  # what a node does, whatever the API server
]


def fingerprint(stack: Stack, node: str) -> str:
    """All that the node holds, without counters: addresses, flows, groups, rules."""
    run = stack.network.run
    flows = run(node, ["ovs-ofctl", "-O", "OpenFlow13", "--no-names", "--no-stats", "dump-flows", "br0"]).stdout
    groups = run(node, ["ovs-ofctl", "-O", "OpenFlow13", "--no-names", "dump-groups", "br0"]).stdout.splitlines()[1:]
    rules = [line for line in run(node, ["iptables-save"]).stdout.splitlines() if not line.startswith("#")]
    rules = [line.partition(" [")[0] for line in rules]
    return "\n".join([*stack.addresses(node), *sorted(flows.splitlines()), *groups, *rules])


def applied(stack: Stack, node: str) -> int:
    """How many times the node's runner wrote anything."""
    return stack.said(node, "applied")


def test_foreign_things_are_as_before_byte_for_byte(team, stack: Stack) -> None:  # noqa: ANN001
    run = stack.network.run
    for command in (
        "ip address add 192.168.1.77/24 dev eth0 label eth0:mine",
        "ovs-ofctl -O OpenFlow13 add-flow br0 cookie=0x1,table=100,priority=200,ip,reg0=0x7b,actions=drop",
        "ovs-ofctl -O OpenFlow13 add-flow br0 cookie=0x4861777300000000,table=100,priority=7,ip,reg0=0x7c,actions=drop",
        "ovs-ofctl -O OpenFlow13 add-group br0 group_id=5,type=all,bucket=actions=output:1",
        "iptables -w 20 -t nat -A OPENSHIFT-MASQUERADE -s 10.99.0.0/16 -j ACCEPT",
        "iptables -w 20 -A FORWARD -s 10.98.0.0/16 -j ACCEPT",
        "iptables -w 20 -N SOMEBODY",
        "iptables -w 20 -A SOMEBODY -m comment --comment HAWSE-SNAT -j RETURN",
    ):
        run("node2", command.split(), check=True)
    at_rest(stack)
    before = {node: fingerprint(stack, node) for node in stack.network.nodes}
    address = team.create()
    team.ready(address)
    team.steered(address)
    assert fingerprint(stack, "node2") != before["node2"]
    stack.kube.delete("Namespace", team.name)
    team.released()
    wait_for("the node as before", lambda: fingerprint(stack, "node2") == before["node2"], 60, every=0.5)
    assert {node: fingerprint(stack, node) for node in stack.network.nodes} == before
    for command in (
        "ip address del 192.168.1.77/24 dev eth0",
        "ovs-ofctl -O OpenFlow13 del-flows br0 table=100,ip,reg0=0x7b",
        "ovs-ofctl -O OpenFlow13 del-flows br0 table=100,ip,reg0=0x7c",
        "ovs-ofctl -O OpenFlow13 del-groups br0 group_id=5",
        "iptables -w 20 -t nat -D OPENSHIFT-MASQUERADE -s 10.99.0.0/16 -j ACCEPT",
        "iptables -w 20 -D FORWARD -s 10.98.0.0/16 -j ACCEPT",
        "iptables -w 20 -F SOMEBODY",
        "iptables -w 20 -X SOMEBODY",
    ):
        run("node2", command.split(), check=True)


def test_a_restart_with_everything_in_place_writes_nothing(team, stack: Stack) -> None:  # noqa: ANN001
    address = team.create()
    team.ready(address)
    team.steered(address)
    at_rest(stack)
    monitor = stack.network.spawn("node2", ["ip", "monitor", "address"], log="monitor")
    before = {node: (applied(stack, node), fingerprint(stack, node)) for node in stack.network.nodes}
    since = flow_ages(stack)
    for node in stack.network.nodes:
        stack.runners[node].kill()
        now = time.time()
        stack.start_runner(node)
        wait_for("a pass", lambda node=node, now=now: stack.reported(node, now), 60)  # type: ignore[misc]
    time.sleep(5)
    assert {node: (applied(stack, node), fingerprint(stack, node)) for node in stack.network.nodes} == before
    assert all(age > since[node] for node, age in flow_ages(stack).items()), "a flow was written anew"
    monitor.kill()
    assert not monitor.log.read_text().strip(), "an address was touched"


def flow_ages(stack: Stack) -> dict[str, float]:
    """Per node, the age in seconds of its youngest flow of ours."""
    ages = {}
    for node in stack.network.nodes:
        flows = [flow for flow in stack.flows(node) if "cookie=0x486177736" in flow]
        ages[node] = min(float(flow.partition("duration=")[2].partition("s")[0]) for flow in flows)
    return ages


ADDRESSES = ("ip", "-o", "address", "show", "dev", "eth0")
RULES = ("iptables-save", "-t", "nat")
FLOWS = ("ovs-ofctl", "-O", "OpenFlow13", "--no-names", "--no-stats", "dump-flows", "br0", "table=100")
DRIFT = {
    "address deleted": ("node2", "ip address del {address}/24 dev eth0", ADDRESSES),
    "chain flushed": ("node2", "iptables -w 20 -t nat -F HAWSE-SNAT", RULES),
    "jump deleted": ("node2", "iptables -w 20 -t nat -F OPENSHIFT-MASQUERADE", RULES),
    "all rules flushed": ("node2", "iptables -w 20 -t nat -F", RULES),
    "flow deleted": ("node1", "ovs-ofctl -O OpenFlow13 del-flows br0 table=100,ip,reg0={netid:#x}", FLOWS),
    "egress node's flow deleted": (
        "node2",
        "ovs-ofctl -O OpenFlow13 del-flows br0 table=100,ip,reg0={netid:#x}",
        FLOWS,
    ),
    "flow changed": (
        "node1",
        "ovs-ofctl -O OpenFlow13 mod-flows br0 table=100,ip,reg0={netid:#x},actions=drop",
        FLOWS,
    ),
}
"""What somebody does, on which node, and the one command that shows it: looking competes with the node looked at."""


def seen_of_ours(stack: Stack, node: str, look: tuple[str, ...]) -> set[str]:
    """The lines of what `look` prints that are about us, without counters."""
    lines = stack.network.run(node, look, check=True).stdout.splitlines()
    return {line.partition(" [")[0] for line in lines if "HAWSE" in line or "0x486177736" in line or ":eip" in line}


def test_drift_is_put_back(team, stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ANN001
    address = team.create()
    team.ready(address)
    team.steered(address)
    at_rest(stack)
    wanted = {node: fingerprint(stack, node) for node in stack.network.nodes}
    saved = stack.network.run("node2", ["iptables-save", "-t", "nat"], check=True).stdout
    took = {}
    for what, (node, command, look) in DRIFT.items():
        ours = seen_of_ours(stack, node, look)
        assert ours
        stack.network.run(node, command.format(address=address, netid=team.netid).split(), check=True)
        began = time.monotonic()
        wait_for(what, lambda node=node, look=look, ours=ours: ours <= seen_of_ours(stack, node, look), 60, every=0.3)  # type: ignore[misc]
        took[what] = time.monotonic() - began
        # What the SDN owns is the SDN's to put back.
        stack.network.run("node2", ["iptables-restore", "-w", "20"], input=saved, check=True)
        wait_for("all as before", lambda node=node: fingerprint(stack, node) == wanted[node], 60)  # type: ignore[misc]
    for node in stack.network.nodes:
        stack.network.restart_ovs(node)
        began = time.monotonic()
        wait_for("flows after a restart of Open vSwitch", lambda node=node: team.flow(node), 60)  # type: ignore[misc]
        took[f"Open vSwitch restarted on {node}"] = time.monotonic() - began
    team.steered(address)
    with capsys.disabled():
        print("\n   drift put back after " + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in took.items()))


def test_an_address_that_somebody_answers_for_is_refused(team, stack: Stack) -> None:  # noqa: ANN001
    run = stack.network.run
    address = IPv4Address("192.168.1.249")
    run("web", ["ip", "address", "add", f"{address}/32", "dev", "eth0"], check=True)
    mac = run("web", ["cat", "/sys/class/net/eth0/address"], check=True).stdout.strip()
    try:
        assert team.create({"egress.hawse.dev/request": str(address)}) == address
        wait_for("the refusal", lambda: team.phase(address) == "Failed", 60)
        status = {c["type"]: c for c in team.claim(address)["status"]["conditions"]}
        assert status["Programmed"]["reason"] == "AddressInUse"
        assert mac in status["Programmed"]["message"]
        wait_for("drops", lambda: {team.flow(node) for node in stack.network.nodes} == {"drop"}, 60)
        for pod in team.pods.values():
            assert not stack.network.request(pod, timeout=1).ok
    finally:
        run("web", ["ip", "address", "del", f"{address}/32", "dev", "eth0"], check=True)
    team.ready(address)
    team.steered(address)


@pytest.mark.parametrize(
    ("address", "reason"),
    [("192.168.7.7", "AddressOutsideSubnet"), ("192.168.1.255", "Address")],
)
def test_an_address_that_the_node_cannot_hold_is_refused(team, stack: Stack, ledger, address: str, reason: str) -> None:  # noqa: ANN001
    host = stack.network.nodes["node2"].host
    hosted = (stack.kube.get("HostSubnet", host) or {}).get("egressIPs", [])
    stack.create_namespace(team.name)
    stack.kube.patch("HostSubnet", host, {"egressIPs": [*hosted, address]})
    stack.kube.patch("NetNamespace", team.name, {"egressIPs": [address]})
    try:

        def refused() -> bool:
            claims = ledger.reports([host])[host].claims
            return any(str(claim.address) == address and claim.reason.startswith(reason) for claim in claims)

        wait_for("the refusal", refused, 60)
        wait_for("drops", lambda: {team.flow(node) for node in stack.network.nodes} == {"drop"}, 60)
    finally:
        stack.kube.patch("NetNamespace", team.name, {"egressIPs": []})
        stack.kube.patch("HostSubnet", host, {"egressIPs": hosted})


def test_a_node_without_its_bridge_says_so(stack: Stack, ledger) -> None:  # noqa: ANN001
    stack.runners["node1"].kill()
    stack.start_runner("node1", ["env", "HAWSE_BRIDGE=br-none", RUNNER])
    host = stack.network.nodes["node1"].host
    try:
        wait_for("the problem", lambda: ledger.reports([host])[host].problem.startswith("BridgeMissing"), 60)
    finally:
        stack.runners["node1"].kill()
        now = time.time()
        stack.start_runner("node1")
        wait_for("a good report", lambda: stack.reported("node1", now), 60)
    assert ledger.reports([host])[host].problem == ""
