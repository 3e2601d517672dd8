"""A pool that asks for approval: dropped before it, with the address after it, dropped again when it is withdrawn.

The firewall team is told by a signed webhook and answers by a signed callback, both over real HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Any

import pytest

from lab.stack import Stack, wait_for
from lab.tickets import Receiver

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
TO_WEB = "dst host 192.168.1.5 and (tcp or udp)"


def answer(stack: Stack, verdict: str, told: dict[str, Any], secret: str) -> int:
    """The firewall team's decision about what it was told, signed as Standard Webhooks says; the HTTP status."""
    identity, stamp = f"msg_{verdict}_{time.time_ns()}", str(int(time.time()))
    body = json.dumps(
        {
            "type": f"dev.hawse.ticket.{verdict}",
            "timestamp": datetime.now(UTC).isoformat(),
            "data": {"address": told["address"], "key": told["key"], "by": "alice", "reason": "CAB of Monday"},
        }
    ).encode()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{identity}.{stamp}.".encode() + body, hashlib.sha256).digest()
    headers = {
        "Content-Type": "application/json",
        "webhook-id": identity,
        "webhook-timestamp": stamp,
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }
    request = urllib.request.Request(f"{stack.control.api_url}/tickets/firewall/callback", body, headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def condition(team: Any, address: IPv4Address) -> tuple[str, str]:  # noqa: ANN401 - a conftest's class
    for found in team.claim(address).get("status", {}).get("conditions", []):
        if found["type"] == "FirewallOpen":
            return found["status"], found["reason"]
    return "", ""


def told_of(firewall: Receiver, address: IPv4Address) -> dict[str, dict[str, Any]]:
    """What the firewall team has been told of the address: the data of each event."""
    bodies = [json.loads(request.body) for request in firewall.requests]
    return {body["type"].split(".")[3]: body["data"] for body in bodies if body["subject"] == str(address)}


def dropped(stack: Stack, team: Any) -> None:  # noqa: ANN401
    wait_for("a drop on every node", lambda: {team.flow(node) for node in stack.network.nodes} == {"drop"}, 60)


def settled(stack: Stack) -> None:
    """Waits until nothing arrives: for a moment after a flow has changed, packets may still meet the kernel's cache."""

    def silent() -> bool:
        before = len(stack.network.datagrams())
        time.sleep(1)
        return len(stack.network.datagrams()) == before

    wait_for("silence", silent, 30)


def test_packets_wait_for_the_firewall_team(
    team,  # noqa: ANN001
    stack: Stack,
    firewall: Receiver,
    callback_secret: str,
) -> None:
    network, secret = stack.network, callback_secret
    made = stack.create_namespace(team.name, egress="guarded")
    address = IPv4Address(made["metadata"]["annotations"]["egress.hawse.dev/addresses"])
    dropped(stack, team)
    told = wait_for("the ticket", lambda: told_of(firewall, address).get("assigned"), 60)
    assert (told["namespace"], told["address"], told["pool"]) == (team.name, str(address), "guarded")
    wait_for("the question", lambda: condition(team, address) == ("Unknown", "Requested"), 60)

    streams = [network.traffic(pod, interval=0.1, protocol="udp") for pod in team.pods.values()]
    with network.capture("outside", TO_WEB) as capture:
        time.sleep(2)
        before = capture.stop()
    assert before == [], "nothing leaves before the approval"
    assert not [line for node in network.nodes for line in stack.addresses(node) if f" {address}/" in line]

    assert answer(stack, "approved", told, "whsec_" + base64.b64encode(b"somebody else's secret!!").decode()) == 401
    with network.capture("outside", TO_WEB) as capture:
        assert answer(stack, "approved", told, secret) == 204
        team.ready(address)
        team.steered(address)
        after = capture.stop()
    assert {packet.source for packet in after} == {address}
    assert condition(team, address) == ("True", "Approved")
    assert team.claim(address)["status"]["decision"]["by"] == "alice"

    assert answer(stack, "withdrawn", told, secret) == 204
    dropped(stack, team)
    wait_for(
        "the address to go",
        lambda: not [a for n in network.nodes for a in stack.addresses(n) if f" {address}/" in a],
        60,
    )
    settled(stack)
    with network.capture("outside", TO_WEB) as capture:
        time.sleep(2)
        withdrawn = capture.stop()
    for stream in streams:
        stream.stop()
    assert withdrawn == [], "nothing leaves after the withdrawal, not even of what had begun before"
    assert condition(team, address) == ("False", "Withdrawn")

    assert answer(stack, "approved", told, secret) == 204
    team.steered(address)
    stack.kube.delete("Namespace", team.name)
    team.released()
    released = wait_for("the release", lambda: told_of(firewall, address).get("released"), 60)
    assert released["key"] == told["key"]
    assert answer(stack, "approved", told, secret) in (404, 409), "that assignment is over"
