"""A namespace is created, and its packets leave with its own IP."""

from ipaddress import IPv4Address

import pytest

from egress.adapters.ledger import Ledger
from lab.stack import Stack, wait_for

from .test_ipv6 import about, holds

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


def test_from_creation_to_the_wire_and_back(team, stack: Stack, ledger: Ledger) -> None:  # noqa: ANN001
    address = team.create()
    team.ready(address)
    team.steered(address)
    claim = team.claim(address)
    assert claim["spec"]["namespace"]["name"] == team.name
    assert claim["status"]["node"] == stack.network.nodes["node2"].host
    assert {c["type"]: c["status"] for c in claim["status"]["conditions"]} == dict.fromkeys(
        ("Claimed", "Bound", "Placed", "Programmed", "Ready"), "True"
    )
    assert f"set_field:{stack.network.nodes['node2'].address}->tun_dst" in team.flow("node1")
    assert "->pkt_mark" in team.flow("node2")

    # What is told of a step may come after it; and placement is asked for before the binding is told.
    def history() -> list[str]:
        return [step.step for step in reversed(ledger.history(team.name))][:4]

    wait_for("the history", lambda: history()[3:] == ["program"], 60)
    assert history()[0] == "claim"
    assert set(history()[1:3]) == {"bind", "place"}

    def reasons() -> set[str]:
        return {
            event["reason"] for event in stack.kube.list("Event") if event["involvedObject"].get("name") == team.name
        }

    wait_for("its events", lambda: {"EgressAddressAssigned", "EgressAddressReady"} <= reasons(), 60)

    stack.kube.delete("Namespace", team.name)
    team.released()
    wait_for("quarantine", lambda: team.phase(address) == "Quarantined", 60)
    for node in stack.network.nodes:
        wait_for("the address to go", lambda node=node: not holds(stack, node, address), 60)  # type: ignore[misc]
    for node in stack.network.nodes:
        wait_for("the rules to go", lambda node=node: not about(stack, node, address), 60)  # type: ignore[misc]
    assert stack.kube.get("HostSubnet", "node2.ocp.io")["egressIPs"] == []  # type: ignore[index]

    assert team.create() == address, "the same namespace within the quarantine gets the same address"
    team.ready(address)
    team.steered(address)


def test_a_name_that_the_server_generates(stack: Stack) -> None:
    metadata = {"generateName": "made-", "labels": {"egress": "yes"}}
    namespace = stack.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    address = namespace["metadata"]["annotations"]["egress.hawse.dev/addresses"]
    name = namespace["metadata"]["name"]

    def bound() -> bool:
        binding = stack.kube.get("NetNamespace", name)
        return binding is not None and binding["egressIPs"] == [address]

    wait_for("the binding", bound, 60)
    netids = [item["netid"] for item in stack.kube.list("NetNamespace")]
    assert len(netids) == len(set(netids))
    stack.kube.delete("Namespace", name)
    wait_for("the NetNamespace that Hawse made to go", lambda: stack.kube.get("NetNamespace", name) is None, 60)


def test_a_dry_run_reserves_nothing(stack: Stack, ledger: Ledger) -> None:
    before = ledger.usage()
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "dry", "labels": {"egress": "yes"}}}
    stack.kube.create(manifest, query="?dryRun=All")
    assert not ledger.usage().items() - before.items()  # quarantines of other tests may end meanwhile
    assert stack.kube.get("Namespace", "dry") is None


def test_two_merge_patches_by_hand(team, stack: Stack) -> None:  # noqa: ANN001
    address = IPv4Address("192.168.1.200")
    stack.create_namespace(team.name)
    host = stack.network.nodes["node2"].host
    hosted = (stack.kube.get("HostSubnet", host) or {}).get("egressIPs", [])
    stack.kube.patch("HostSubnet", host, {"egressIPs": [*hosted, str(address)]})
    stack.kube.patch("NetNamespace", team.name, {"egressIPs": [str(address)]})
    team.steered(address)
    stack.kube.patch("NetNamespace", team.name, {"egressIPs": []})
    team.released()
    stack.kube.patch("HostSubnet", host, {"egressIPs": hosted})
    wait_for("the address to go", lambda: not holds(stack, "node2", address), 60)
