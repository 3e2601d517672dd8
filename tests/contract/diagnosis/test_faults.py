"""`hawse explain` and `hawse verify` name what is wrong, of a control plane at work whose nodes are in memory.

That the same is seen on real Open vSwitch, iptables and netlink is for tests/contract/drivers and tests/e2e.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import urllib3

from egress.adapters.ledger import Ledger
from egress.delta import FlowChange, RuleChange
from egress.program import Flow
from egress.table import Steering
from lab.fakes.node import FakeNode
from lab.site import Site
from lab.stack import wait_for

pytestmark = pytest.mark.timeout(300)
Json = dict[str, Any]
NETID = 0x1000
MATCH = f"ip,reg0={NETID:#x}"


class Case:
    """A namespace with an address that works; `host` sends its packets out, and `other` steers them there."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.address = site.namespace("shop", "prod")
        wait_for("the assignment", lambda: site.phase(self.address) == "Ready", 90)
        self.host_name = site.node_of(self.address)
        self.other_name = next(name for name in site.nodes.nodes if name != self.host_name)

    @property
    def host(self) -> FakeNode:
        return self.site.nodes.nodes[self.host_name]

    @property
    def other(self) -> FakeNode:
        return self.site.nodes.nodes[self.other_name]

    def hawse(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("hawse")), *arguments]
        environment = {**os.environ, "HAWSE_SERVER": self.site.url, "KUBECONFIG": "/nowhere"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def faults(self, *arguments: str) -> list[Json]:
        done = self.hawse(*arguments, "-o", "json")
        assert done.stderr == ""
        faults: list[Json] = json.loads(done.stdout)["faults"]
        assert done.returncode == (1 if faults else 0)
        return faults

    def is_well(self) -> bool:
        return not self.faults("verify") and not self.faults("explain", "shop")

    def flow(self, node: FakeNode) -> Flow:
        return next(flow for flow in node.flows.read().flows if flow.match == MATCH)

    def replace_flow(self, node: FakeNode, actions: str) -> None:
        flow = self.flow(node)
        node.flows.apply(FlowChange(add=(Flow(flow.table, flow.priority, flow.match, flow.cookie, actions),)))

    def change_rules(self, node: FakeNode, table: str, *lines: str) -> None:
        node.nat.apply(RuleChange({table: "\n".join([f"*{table}", *lines, "COMMIT", ""])}))

    def snat(self, node: FakeNode) -> str:
        (spec,) = node.nat.read().own["nat", "HAWSE-SNAT"]
        return spec


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    # Each test asks again and again until all is well: more often, all together, than a person may.
    with Site(tmp_path_factory.mktemp("site"), HAWSE_API_ACTIONS_PER_MINUTE="100000") as site:
        yield Case(site)
        assert site.control.dead() == {}


@pytest.fixture
def case(running: Case) -> Iterator[Case]:
    """With nothing wrong, and nobody who mends."""
    running.site.nodes.mend = True
    wait_for("that all is well", running.is_well, 90)
    running.site.nodes.mend = False
    yield running
    running.site.nodes.mend = True


def missing_flow(case: Case) -> tuple[str, str]:
    case.other.flows.apply(FlowChange(remove=(case.flow(case.other),)))
    return "FlowMissing", case.other_name


def wrong_tunnel(case: Case) -> tuple[str, str]:
    flow = case.flow(case.other)
    ip = str(IPv4Address(case.site.nodes.ip_of(case.host_name)))
    assert ip in flow.actions
    case.replace_flow(case.other, flow.actions.replace(ip, "192.168.1.99"))
    return "TunnelWrong", case.other_name


def stale_address(case: Case) -> tuple[str, str]:
    assert not case.other.links.apply(frozenset({IPv4Address(case.address)}), frozenset())
    return "AddressStale", case.other_name


def stale_address_by_hand(case: Case) -> tuple[str, str]:
    case.other.links.foreign.add(IPv4Address(case.address))
    return "AddressStale", case.other_name


def missing_snat(case: Case) -> tuple[str, str]:
    case.change_rules(case.host, "nat", f"-D HAWSE-SNAT {case.snat(case.host)}")
    return "SnatMissing", case.host_name


def rule_above_ours(case: Case) -> tuple[str, str]:
    case.change_rules(case.host, "nat", "-I OPENSHIFT-MASQUERADE 1 -s 10.128.0.0/14 -j MASQUERADE")
    return "RuleShadowed", case.host_name


def rule_above_the_clusters(case: Case) -> tuple[str, str]:
    case.host.nat.put("nat", "POSTROUTING", "-s 10.128.0.0/14 -j MASQUERADE")
    return "RuleShadowed", case.host_name


def flow_above_ours(case: Case) -> tuple[str, str]:
    case.other.flows.put(Flow(100, 200, MATCH, 0, "drop"))
    return "FlowShadowed", case.other_name


def wrong_mark(case: Case) -> tuple[str, str]:
    actions = case.flow(case.host).actions
    mark = actions.split("set_field:")[-1].split("->")[0]
    case.replace_flow(case.host, actions.replace(f"set_field:{mark}->pkt_mark", "set_field:0x7f->pkt_mark"))
    return "MarkWrong", case.host_name


def foreign_holder(case: Case) -> tuple[str, str]:
    case.host.arp.neighbours[IPv4Address(case.address)] = "02:00:00:00:00:99"
    return "AddressForeign", case.host_name


FAULTS: list[Callable[[Case], tuple[str, str]]] = [
    missing_flow,
    wrong_tunnel,
    stale_address,
    stale_address_by_hand,
    missing_snat,
    rule_above_ours,
    rule_above_the_clusters,
    flow_above_ours,
    wrong_mark,
    foreign_holder,
]


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_on_a_node_is_found_and_named(case: Case, plant: Callable[[Case], tuple[str, str]]) -> None:
    try:
        kind, node = plant(case)
        for arguments in (("explain", "shop"), ("verify",)):
            found = case.faults(*arguments)
            assert [(fault["kind"], fault["node"]) for fault in found] == [(kind, node)], found
        text = case.hawse("explain", "shop").stdout
        assert f"First wrong: {kind} on {node}: " in text
        assert kind in case.hawse("verify").stdout
    finally:
        undo(case)


def undo(case: Case) -> None:
    """What the runners do not mend, for it is nobody's of theirs."""
    case.other.links.foreign.discard(IPv4Address(case.address))
    case.host.arp.neighbours.pop(IPv4Address(case.address), None)
    case.other.flows.take(Flow(100, 200, MATCH, 0, "drop"))
    case.host.nat.flush("nat", "POSTROUTING")
    if "-s 10.128.0.0/14 -j MASQUERADE" in case.host.nat.read().parents["nat", "OPENSHIFT-MASQUERADE"]:
        case.change_rules(case.host, "nat", "-D OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -j MASQUERADE")


@pytest.fixture
def unwatched(case: Case) -> Iterator[Case]:
    """Where nobody notices what people do to the objects."""
    case.site.control.kill("watch")
    case.site.control.kill("beat")
    yield case
    case.site.control.start("watch", "beat")


def test_an_address_on_two_host_subnets_is_a_conflict(unwatched: Case) -> None:
    kube = unwatched.site.kube
    kube.patch("HostSubnet", unwatched.other_name, {"egressIPs": [unwatched.address]})
    try:
        for arguments in (("explain", "shop"), ("verify",)):
            (fault,) = unwatched.faults(*arguments)
            assert fault["kind"] == "Conflict"
            assert unwatched.other_name in fault["message"]
    finally:
        kube.patch("HostSubnet", unwatched.other_name, {"egressIPs": []})


def test_an_address_that_another_host_has_from_the_beginning_is_a_conflict(case: Case) -> None:
    case.site.nodes.mend = True
    address = case.site.next_address()
    case.host.arp.neighbours[address] = "02:00:00:00:00:99"
    case.site.namespace("unlucky", "prod")

    def named() -> bool:
        found = case.faults("explain", "unlucky")
        return bool(found) and found[0]["kind"] == "Conflict" and "02:00:00:00:00:99" in found[0]["message"]

    try:
        wait_for("that the conflict is named", named, 90, every=0.5)
        assert case.faults("explain", "shop") == [], "it is no concern of others"
        assert "Conflict" in {fault["kind"] for fault in case.faults("verify")}
    finally:
        del case.host.arp.neighbours[address]


def test_an_edited_net_namespace_is_named(unwatched: Case) -> None:
    kube = unwatched.site.kube
    try:
        for edit in (["192.168.1.200"], []):
            kube.patch("NetNamespace", "shop", {"egressIPs": edit})
            for arguments in (("explain", "shop"), ("verify",)):
                first, *others = [fault["kind"] for fault in unwatched.faults(*arguments)]
                assert first == "NetNamespaceDiffers"
                assert set(others) <= {"NotReady"}, "what came of it"
    finally:
        kube.patch("NetNamespace", "shop", {"egressIPs": [unwatched.address]})


def test_a_node_that_is_behind_is_named(case: Case) -> None:
    with closing(Ledger(case.site.broker.unix_url)) as ledger:
        read = ledger.read_table()
        bystander = {0x7777: Steering(0x7777, "bystander")}
        assert ledger.publish(bystander, expected=ledger.change_number()) is not None
        wait_for(
            "that they count as behind",
            lambda: {"NodeBehind"} <= {fault["kind"] for fault in case.faults("verify")},
            90,
            every=1,
        )
        behind = [fault for fault in case.faults("explain", "shop") if fault["kind"] == "NodeBehind"]
        assert {fault["node"] for fault in behind} == {case.host_name, case.other_name}
        assert f"it has applied change {read.change} of " in behind[0]["message"]


def test_another_site_has_no_node_looked_at(case: Case) -> None:
    for path in ("/namespaces/shop/path", "/verification", "/api/v1/verification"):
        for dest, status in (("image", 403), ("iframe", 403), ("document", 200)):
            headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": dest}
            assert urllib3.request("GET", case.site.url + path, headers=headers).status == status


def test_a_node_that_does_not_answer_is_named(case: Case) -> None:
    case.site.nodes.deaf = {case.other_name}
    try:
        found = case.faults("explain", "shop")
        assert [(fault["kind"], fault["node"]) for fault in found] == [("NodeSilent", case.other_name)]
    finally:
        case.site.nodes.deaf = set()


def test_the_path_shows_what_should_be_and_is(case: Case) -> None:
    done = case.hawse("explain", "shop")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == f"Namespace shop: via, {case.address}"
    assert lines[-1] == "All is as it should be."
    assert f"  ok     NetNamespace shop: egressIPs: {case.address}" in lines
    assert f"  ok     HostSubnets with {case.address}: {case.host_name}" in lines
    assert lines.index(f"{case.host_name}, by which they leave") < lines.index(case.other_name)
    assert any(MATCH in line and "packets" in line for line in lines)
    assert f"  ok     address: {case.address}" in lines
    assert case.hawse("explain", "nobody").returncode == 1
    assert "there is no namespace nobody" in case.hawse("explain", "nobody").stderr


def test_pages_show_the_same(case: Case) -> None:
    case.other.flows.apply(FlowChange(remove=(case.flow(case.other),)))
    for path in ("/namespaces/shop/path", "/verification"):
        page = urllib3.request("GET", case.site.url + path).data.decode()
        assert "1 wrong; first: FlowMissing" in page
        assert "hawse.js" not in page
