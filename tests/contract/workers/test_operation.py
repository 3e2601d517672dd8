"""An assignment can be followed by the uid of the admission request that began it."""

from typing import Any

import pytest
import structlog

from egress.operations import Step

A = "192.168.1.102"
OPERATION = "egress.hawse.dev/operation"
UID = "5c1a6c1e-7a9b-4d3e-9f0a-0123456789ab"


@pytest.fixture(autouse=True)
def _clean() -> None:
    structlog.contextvars.clear_contextvars()


def test_from_admission_to_the_end_of_the_quarantine(world: Any) -> None:
    world.pool("prod", f"{A}-192.168.1.150", quarantine="0s")
    world.node("node2", "192.168.1.18")
    world.reconcile()
    world.namespace("app", {OPERATION: UID}, address=A)
    world.reconcile()
    structlog.contextvars.clear_contextvars()  # from here on it comes from the EgressAddress
    world.acknowledge()
    claim = world.kube.get("EgressAddress", A)
    assert claim["metadata"]["annotations"] == {OPERATION: UID}
    world.delete("app")
    structlog.contextvars.clear_contextvars()
    world.reconcile()
    steps = {record.step: record.operation for record in world.ledger.history("app")}
    assert steps.keys() >= {Step.CLAIM, Step.BIND, Step.PLACE, Step.PROGRAM, Step.RELEASE}
    assert set(steps.values()) == {UID}


@pytest.mark.parametrize("text", ["", "x" * 65, "a b", "line\nbreak"])
def test_what_somebody_else_wrote_there_is_not_passed_on(world: Any, text: str) -> None:
    world.pool("prod", f"{A}-192.168.1.150")
    world.reconcile()
    world.namespace("app", {OPERATION: text}, address=A)
    world.reconcile()
    assert OPERATION not in world.kube.get("EgressAddress", A)["metadata"].get("annotations", {})
    assert {record.operation for record in world.ledger.history("app")} == {""}
