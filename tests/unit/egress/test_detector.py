"""Who programs the nodes is asked again while the API server does not say."""

from __future__ import annotations

from typing import Any

import pytest

from egress.adapters.cluster import RefusedError
from egress.adapters.networks import Detector
from egress.networks import Network
from egress.operations import TransientError


class NotYet:
    """An API server that has just started: for its first answers it knows of nobody's rights."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals

    def resources(self, group: str) -> set[str]:
        if self.refusals:
            self.refusals -= 1
            raise RefusedError(f"GET /apis/{group}: 403 forbidden")
        return {"hostsubnets", "netnamespaces"} if group.startswith("network.openshift") else set()


def test_an_api_server_that_knows_no_rights_yet_is_asked_again() -> None:
    cluster: Any = NotYet(2)
    detector = Detector(cluster, "auto")
    for _ in range(2):
        with pytest.raises(TransientError, match="403 forbidden"):
            detector()
    assert detector() is Network.RUNNER
