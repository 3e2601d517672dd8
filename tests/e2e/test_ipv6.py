"""IPv6 and dual stack, from the CREATE to the wire: what leaves carries the assigned IPv6 address, or stays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Address, IPv6Network

import pytest

from egress.addresses import Address, object_name
from lab.net.capture import Packet
from lab.net.topology import Pod
from lab.stack import Stack, wait_for

from .conftest import at_rest, offered

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
a_nodes_concern = pytest.mark.parametrize("stack", ["embedded"], indirect=True)
"""What a node does, whatever the API server."""

POOLS = {
    "six": ("fd00:192:168:1::100-fd00:192:168:1::1ff",),
    "dual": ("192.168.1.210-192.168.1.219", "fd00:192:168:1::200-fd00:192:168:1::2ff"),
}
BY_HAND = IPv6Address("fd00:192:168:1::301")
TO_WEB = "(tcp or udp) and ((dst host 192.168.1.5 and ip[8] < 64) or (dst host fd00:192:168:1::5 and ip6[7] < 64))"
"""What the pods send: it has been routed, which takes one off its TTL or hop limit of 64. See test_fail_closed.py."""


@pytest.fixture(scope="module", autouse=True)
def pools(stack: Stack) -> Iterator[None]:
    """A pool for namespaces with the label `egress: six`, another for `egress: dual`."""
    for name, cidrs in POOLS.items():
        fields = {"ipFamilyPolicy": "RequireDualStack"} if name == "dual" else {}
        stack.create_pool(name, *cidrs, namespaceSelector={"matchLabels": {"egress": name}}, **fields)
    offered(stack, *POOLS)
    yield
    for name in POOLS:
        stack.kube.delete("EgressPool", name)


def own_addresses(stack: Stack) -> set[Address]:
    return {address for spec in stack.network.nodes.values() for address in spec.addresses}


def leaks(packets: list[Packet], stack: Stack) -> list[Packet]:
    """The packets to the web server that carry a node's own IP."""
    own = own_addresses(stack)
    return [packet for packet in packets if packet.source in own]


def holds(stack: Stack, node: str, address: Address) -> bool:
    return any(f" {address}/" in line for line in stack.addresses(node, ipv6=address.version == 6))


def about(stack: Stack, node: str, address: Address) -> list[str]:
    """What the node's ip6tables or iptables have of an address."""
    ipv6 = address.version == 6
    rules = [rule for table in ("nat", "filter") for rule in stack.rules(node, table, ipv6=ipv6)]
    return [rule for rule in rules if str(address) in rule]


def place(stack: Stack, address: Address, node: str | None) -> None:
    """By hand: the one HostSubnet that has the address, or none."""
    for name in sorted(stack.network.nodes, key=lambda name: name == node):  # taken away before it is given
        host = stack.network.nodes[name].host
        hosted = (stack.kube.get("HostSubnet", host) or {}).get("egressIPs", [])
        wanted = [each for each in hosted if each != str(address)] + [str(address)] * (name == node)
        if wanted != hosted:
            stack.kube.patch("HostSubnet", host, {"egressIPs": wanted})


def dropped(team, stack: Stack) -> None:  # noqa: ANN001
    wait_for("drops", lambda: {team.flow(node, ipv6=True) for node in stack.network.nodes} == {"drop"}, 60)


def test_from_creation_to_the_wire_and_back(team, stack: Stack) -> None:  # noqa: ANN001
    (address,) = team.create_of("six")
    assert address in IPv6Network("fd00:192:168:1::100/120")
    team.ready(address)
    team.steered(address)
    claim = team.claim(address)
    assert claim["metadata"]["name"] == object_name(address)
    assert claim["status"]["node"] == stack.network.nodes["node2"].host
    for number, pod in enumerate(team.pods.values()):
        assert stack.network.request(pod, f"/{team.name}/{number}", timeout=10, ipv6=True).ok
    log = [entry.source for entry in stack.network.access_log() if entry.path.startswith(f"/{team.name}/")]
    assert log == [address] * len(team.pods)
    assert f"set_field:{stack.network.nodes['node2'].address}->tun_dst" in team.flow("node1", ipv6=True)
    assert "->pkt_mark" in team.flow("node2", ipv6=True)
    assert holds(stack, "node2", address)
    (snat,) = [rule for rule in about(stack, "node2", address) if f"--to-source {address}" in rule]
    assert not snat.startswith("[0:")
    # Who has no address leaves with the node's own, whatever else the node has: IPv6 has no secondary addresses.
    bystander = stack.network.add_pod("bystander", "node2", 0xB0B0)
    assert stack.network.request(bystander, timeout=10, ipv6=True).source == stack.network.nodes["node2"].addresses[1]
    stack.network.remove_pod(bystander.name)
    # The other family has no address, so it does not leave.
    assert not any(stack.network.request(pod, timeout=1).ok for pod in team.pods.values())

    stack.kube.delete("Namespace", team.name)
    team.released()
    wait_for("quarantine", lambda: team.phase(address) == "Quarantined", 60)
    for node in stack.network.nodes:
        wait_for("the address to go", lambda node=node: not holds(stack, node, address), 60)  # type: ignore[misc]
    for node in stack.network.nodes:
        wait_for("the rules to go", lambda node=node: not about(stack, node, address), 60)  # type: ignore[misc]
    assert team.create_of("six") == [address], "the same namespace within the quarantine gets the same address"


def test_each_address_of_a_pair_shows_for_its_family(team, stack: Stack) -> None:  # noqa: ANN001
    pair = team.create_of("dual")
    assert pair[0] in IPv4Network("192.168.1.208/28")
    assert pair[1] in IPv6Network("fd00:192:168:1::200/120")
    for address in pair:
        team.ready(address)
    with stack.network.capture("outside", TO_WEB) as capture:
        for address in pair:
            team.steered(address)
        for number, pod in enumerate(team.pods.values()):
            for ipv6 in (False, True):
                assert stack.network.request(pod, f"/{team.name}/{number}/{ipv6}", timeout=10, ipv6=ipv6).ok
        seen = capture.stop()
    log = {entry.path: entry.source for entry in stack.network.access_log()}
    for number in range(len(team.pods)):
        assert [log[f"/{team.name}/{number}/{ipv6}"] for ipv6 in (False, True)] == pair
    assert {packet.source for packet in seen} == set(pair), leaks(seen, stack)[:5]


@a_nodes_concern
def test_not_one_packet_leaves_with_a_nodes_ipv6(team, stack: Stack) -> None:  # noqa: ANN001
    """From the moment that the nodes know: before a node has the address, when its runner is killed, while the address
    moves, once no node has it any more, and when one has it again."""
    network = stack.network
    stack.create_namespace(team.name)
    # Connections that were begun before: the kernel has translated them to a node's IPv6 already.
    streams = [
        network.traffic(pod, interval=interval, protocol=kind, ipv6=True)
        for pod in team.pods.values()
        for kind, interval in (("udp", 0.1), ("http", 0.2))
    ]
    wait_for("answers", lambda: all(any(a.source for a in each.attempts()) for each in streams[1::2]), 60)
    stack.kube.patch("NetNamespace", team.name, {"egressIPs": [str(BY_HAND)]})
    dropped(team, stack)
    with network.capture("outside", TO_WEB) as capture:
        place(stack, BY_HAND, "node2")
        team.steered(BY_HAND)
        for node in network.nodes:
            stack.runners[node].kill()
            stack.start_runner(node)
        for node in ("node1", "node2"):
            place(stack, BY_HAND, node)
            wait_for(f"{BY_HAND} on {node}", lambda node=node: holds(stack, node, BY_HAND), 60)  # type: ignore[misc]
            team.steered(BY_HAND)
        place(stack, BY_HAND, None)
        wait_for("the release", lambda: not holds(stack, "node2", BY_HAND), 60)
        dropped(team, stack)
        time.sleep(1)
        place(stack, BY_HAND, "node2")
        team.steered(BY_HAND)
        time.sleep(1)
        seen = capture.stop()
    for stream in streams:
        stream.stop()
    stack.kube.patch("NetNamespace", team.name, {"egressIPs": []})
    place(stack, BY_HAND, None)
    assert {packet.source for packet in seen} == {BY_HAND}, leaks(seen, stack)[:5]
    ports = {packet.source_port for packet in seen if packet.protocol == "udp"}
    assert len(ports) == len(team.pods), "a flow that was begun before the assignment never came back"


@a_nodes_concern
def test_from_the_first_packet_on(stack: Stack) -> None:
    """A new namespace whose pods begin to send, in both families, the moment its network exists; the capture begins
    before its CREATE."""
    name = "six-from-the-start"
    network = stack.network
    pods: list[Pod] = []
    streams = []
    with network.capture("outside", TO_WEB) as capture:
        made = stack.create_namespace(name, egress="six")
        address = IPv6Address(made["metadata"]["annotations"]["egress.hawse.dev/addresses"])
        bound = wait_for("its network", lambda: stack.kube.get("NetNamespace", name), 60, every=0.02)
        for index, node in enumerate(network.nodes, 1):
            pods.append(network.add_pod(f"six-{index}", node, bound["netid"]))
            streams += [network.traffic(pods[-1], interval=0.05, protocol=kind, ipv6=True) for kind in ("udp", "http")]
            streams.append(network.traffic(pods[-1], interval=0.2))
        for pod in pods:
            wait_for(
                f"{pod.name} as {address}",
                lambda pod=pod: network.request(pod, timeout=1, ipv6=True).source == address,  # type: ignore[misc]
                60,
            )
        for stream in streams:
            stream.stop()
        seen = capture.stop()
    for pod in pods:
        network.remove_pod(pod.name)
    stack.kube.delete("Namespace", name)
    wait_for("its end", lambda: stack.kube.get("NetNamespace", name) is None, 60)
    wait_for("its address gone", lambda: not holds(stack, "node2", address), 60)
    assert {packet.source for packet in seen} == {address}, leaks(seen, stack)[:5]


@a_nodes_concern
def test_a_namespace_with_an_ipv4_address_alone_sends_no_ipv6(team, stack: Stack) -> None:  # noqa: ANN001
    network = stack.network
    address = team.create()
    team.ready(address)
    team.steered(address)
    with network.capture("outside", TO_WEB) as capture:
        streams = [
            network.traffic(pod, interval=0.1, timeout=0.5, protocol=kind, ipv6=True)
            for pod in team.pods.values()
            for kind in ("udp", "http")
        ]
        team.steered(address)
        assert not any(network.request(pod, timeout=1, ipv6=True).ok for pod in team.pods.values())
        for stream in streams:
            assert stream.stop()
        seen = capture.stop()
    assert {packet.source for packet in seen} == {address}, leaks(seen, stack)[:5]
    first, second = team.pods.values()
    assert network.run(first.name, ["ping", "-6", "-c5", "-W10", str(second.ip6)]).returncode == 0, (
        "it is in the cluster"
    )

    # Without Hawse's flow it leaves with the node's own address, and the capture shows it.
    stack.runners["node1"].kill()
    command = ["ovs-ofctl", "-O", "OpenFlow13", "del-flows", "br0", f"table=100,ipv6,reg0={team.netid:#x}"]
    network.run("node1", command, check=True)
    with network.capture("outside", TO_WEB) as capture:
        nodes_own = network.nodes["node1"].addresses[1]
        wait_for("the leak", lambda: network.request(first, timeout=2, ipv6=True).source == nodes_own, 60)
        seen = capture.stop()
    stack.start_runner("node1")
    assert seen
    assert leaks(seen, stack) == seen
    dropped(team, stack)
    wait_for(
        "its end", lambda: not network.request(first, timeout=1, ipv6=True).ok, 60
    )  # the kernel's cache may be late


@a_nodes_concern
def test_drift_is_put_back_and_a_restart_writes_nothing(team, stack: Stack) -> None:  # noqa: ANN001
    (address,) = team.create_of("six")
    team.ready(address)
    team.steered(address)
    at_rest(stack)
    wanted = {node: holding(stack, node) for node in stack.network.nodes}
    for node, command in (
        ("node2", f"ip address del {address}/64 dev eth0"),
        ("node2", "ip6tables -w 20 -t nat -F HAWSE-SNAT"),
        ("node2", f"ovs-ofctl -O OpenFlow13 del-flows br0 table=100,ipv6,reg0={team.netid:#x}"),
        ("node1", f"ovs-ofctl -O OpenFlow13 mod-flows br0 table=100,ipv6,reg0={team.netid:#x},actions=drop"),
    ):
        before = applied(stack, node)
        stack.network.run(node, command.split(), check=True)
        wait_for(command, lambda node=node, before=before: applied(stack, node) > before, 60)  # type: ignore[misc]
        wait_for(command, lambda node=node: holding(stack, node) == wanted[node], 60)  # type: ignore[misc]
    team.steered(address)
    writes = {node: applied(stack, node) for node in stack.network.nodes}
    for node in stack.network.nodes:
        stack.runners[node].kill()
        now = time.time()
        stack.start_runner(node)
        wait_for("a pass", lambda node=node, now=now: stack.reported(node, now), 60)  # type: ignore[misc]
    assert {node: applied(stack, node) for node in stack.network.nodes} == writes
    assert {node: holding(stack, node) for node in stack.network.nodes} == wanted


def holding(stack: Stack, node: str) -> str:
    """All of IPv6 that the node holds, without counters: addresses, flows of the egress table, rules."""
    flows = ["ovs-ofctl", "-O", "OpenFlow13", "--no-names", "--no-stats", "dump-flows", "br0", "table=100"]
    lines = stack.network.run(node, flows, check=True).stdout.splitlines()
    rules = [rule.partition("] ")[2] for table in ("nat", "filter") for rule in stack.rules(node, table, ipv6=True)]
    return "\n".join([*stack.addresses(node, ipv6=True), *sorted(lines), *rules])


def applied(stack: Stack, node: str) -> int:
    """How many times the node's runner wrote anything."""
    return stack.said(node, "applied")


@a_nodes_concern
def test_an_address_that_somebody_answers_for_is_refused(team, stack: Stack) -> None:  # noqa: ANN001
    run = stack.network.run
    address = IPv6Address("fd00:192:168:1::150")
    run("web", ["ip", "address", "add", f"{address}/128", "dev", "eth0", "nodad"], check=True)
    mac = run("web", ["cat", "/sys/class/net/eth0/address"], check=True).stdout.strip()
    try:
        assert team.create_of("six", {"egress.hawse.dev/request": str(address)}) == [address]
        wait_for("the refusal", lambda: team.phase(address) == "Failed", 60)
        status = {c["type"]: c for c in team.claim(address)["status"]["conditions"]}
        assert status["Programmed"]["reason"] == "AddressInUse"
        assert mac in status["Programmed"]["message"]
        dropped(team, stack)
        assert not holds(stack, "node2", address)
        for pod in team.pods.values():
            assert not stack.network.request(pod, timeout=1, ipv6=True).ok
    finally:
        run("web", ["ip", "address", "del", f"{address}/128", "dev", "eth0"], check=True)
    team.ready(address)
    team.steered(address)


@a_nodes_concern
def test_whoever_is_on_the_link_learns_of_a_move_at_once(team, stack: Stack) -> None:  # noqa: ANN001
    """Nobody sends, so nothing but the announcement can tell the web server: it asks nothing itself."""
    network = stack.network
    stack.create_namespace(team.name)
    stack.kube.patch("NetNamespace", team.name, {"egressIPs": [str(BY_HAND)]})
    place(stack, BY_HAND, "node2")
    team.steered(BY_HAND)
    macs = {
        node: network.run(node, ["cat", "/sys/class/net/eth0/address"], check=True).stdout.strip()
        for node in network.nodes
    }
    assert neighbour(stack, BY_HAND) == macs["node2"]
    with network.capture("outside", "icmp6") as capture:
        place(stack, BY_HAND, "node1")

        def announced() -> bool:
            return any(
                packet.gratuitous and packet.target == BY_HAND and packet.source_mac == macs["node1"]
                for packet in capture.packets()
            )

        wait_for("the announcement", announced, 60, every=0.02)
        learnt = neighbour(stack, BY_HAND)
        seen = capture.stop()
    assert learnt == macs["node1"]
    web = network.run("web", ["cat", "/sys/class/net/eth0/address"], check=True).stdout.strip()
    asked = [p for p in seen if p.neighbour == "solicitation" and p.target == BY_HAND and p.source_mac == web]
    assert asked == []
    team.steered(BY_HAND)
    stack.kube.patch("NetNamespace", team.name, {"egressIPs": []})
    place(stack, BY_HAND, None)


def neighbour(stack: Stack, address: Address) -> str:
    """The MAC that the web server has for an address."""
    line = stack.network.run("web", ["ip", "neighbour", "show", str(address)], check=True).stdout
    return line.partition("lladdr ")[2].partition(" ")[0]
