"""What reconcile and sweep do for tickets, and that a ticket system that hangs holds nothing else up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from egress.adapters import manifests
from egress.messages import RECONCILE_TASK, SWEEP_TASK, TICKETS_TASK
from lab.accounts import Accounts
from lab.apiserver.process import EmbeddedCluster
from lab.control_plane import ControlPlane, install
from lab.kube import Kube
from lab.net.broker import Broker
from lab.tickets import Fault, Receiver

A = "192.168.1.102"
RANGE = f"{A}-192.168.1.110"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def quarantine(world: Any, ticket: dict[str, Any] | None) -> None:
    """An assignment that ended, whose quarantine is over."""
    spec = {"pool": "prod", "namespace": {"name": "gone", "uid": "u"}, "origin": "automatic"}
    manifest = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "metadata": {"name": A}}
    world.kube.create(manifest | {"spec": spec})
    until = manifests.rfc3339(time.time() - 60)
    status = {"phase": "Quarantined", "quarantinedUntil": until, "ticket": ticket}
    world.kube.patch("EgressAddress", A, {"status": status}, subresource="status")


@pytest.mark.parametrize(
    ("ticket", "profile", "stays"),
    [
        (None, "fw", False),
        ({"profile": "fw", "serial": 1, "told": "released", "ended": True}, "fw", False),
        ({"profile": "fw", "serial": 1, "told": "assigned", "ended": True}, "fw", True),
        ({"profile": "fw", "serial": 1, "told": "assigned", "ended": True, "failed": "released"}, "fw", True),
        ({"profile": "fw", "serial": 1, "ended": True, "sending": "assigned"}, "fw", True),
        ({"profile": "fw", "serial": 1, "told": "assigned", "ended": True}, "another now", True),
        ({"profile": "fw", "serial": 1, "told": "assigned", "ended": True}, "", False),
    ],
)
def test_an_address_stays_until_its_release_was_told(
    world: Any, ticket: dict[str, Any] | None, profile: str, stays: bool
) -> None:
    world.pool("prod", RANGE, ticketProfile=profile)
    quarantine(world, ticket)
    world.run(RECONCILE_TASK)
    world.tasks.clear()
    world.ledger.done_with(f"{TICKETS_TASK}:fw")
    world.run(SWEEP_TASK)
    assert (A in world.claims()) is stays
    assert ((TICKETS_TASK, ("fw",)) in world.tasks) is stays


def test_the_reconcile_asks_for_each_profile_that_has_something_to_tell(world: Any) -> None:
    world.pool("prod", RANGE, ticketProfile="fw")
    world.node("node2", "192.168.1.18")
    world.namespace("shop", {})
    world.reconcile()
    world.run(RECONCILE_TASK)
    assert (TICKETS_TASK, ("fw",)) in world.tasks


def until(check: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


@pytest.mark.timeout(300)
def test_a_ticket_system_that_hangs_holds_up_neither_the_network_nor_other_profiles(
    tmp_path: Path, broker: Broker, ledger: Any
) -> None:
    accounts = Accounts(tmp_path / "cluster")
    with (
        EmbeddedCluster(tmp_path / "cluster", history=1000) as cluster,
        Receiver() as hanging,
        Receiver() as well,
    ):
        hanging.misbehave(Fault.SLOW, times=None)
        (tmp_path / "secret").write_text(SECRET)
        profiles = [
            {"name": name, "type": "webhook", "url": url, "secretFiles": [str(tmp_path / "secret")], "timeout": 60}
            for name, url in (("dead", hanging.url), ("fw", well.url))
        ]
        (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"profiles": profiles}))
        kube = Kube(cluster.url, cluster.ca_path, cluster.token)
        install(kube)
        environment = {
            "HAWSE_TICKET_PROFILES": str(tmp_path / "profiles.yaml"),
            "HAWSE_RECONCILE_INTERVAL": "1",
            "HAWSE_SWEEP_INTERVAL": "0.5",
        }
        control = ControlPlane(
            tmp_path / "control",
            redis_url=broker.unix_url,
            kubeconfigs=accounts.kubeconfigs(cluster.kubeconfig, tmp_path),
            environment=environment,
        )
        try:
            control.start()
            for name, cidr in (("dead", "10.1.0.0/24"), ("fw", "10.2.0.0/24")):
                selector = {"matchLabels": {"pool": name}}
                spec = {"cidrs": [cidr], "namespaceSelector": selector, "ticketProfile": name}
                kind = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": name}}
                kube.create(kind | {"spec": spec})
            until(lambda: ledger.is_ready() and len(ledger.offer().pools) == 2)
            for number in range(20):
                namespace(kube, f"dead-{number}", "dead")
            until(lambda: hanging.requests)
            for number in range(20):
                namespace(kube, f"well-{number}", "fw")
            until(lambda: len(kube.list("EgressAddress")) == 40)
            until(lambda: len(well.tickets) == 20)
            assert len(hanging.requests) <= 8, "nothing there was answered"
            assert not hanging.tickets
            assert control.dead() == {}
        finally:
            control.stop()


def namespace(kube: Kube, name: str, pool: str) -> None:
    metadata = {"name": name, "labels": {"pool": pool}}
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
