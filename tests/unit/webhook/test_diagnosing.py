"""What the API itself adds to what the nodes say: objects that cannot be read, and that differ."""

from __future__ import annotations

from typing import Any

import pytest

from egress.adapters import manifests
from egress.diagnosis import Fault, FaultKind
from egress.objects import EgressAddress, NetNamespace, Origin
from webhook.api.diagnosing import _of_object, _pieces, _read

A, B = "192.168.1.102", "192.168.1.103"


def claim(address: str, node: str = "node2", origin: Origin = Origin.AUTOMATIC) -> EgressAddress:
    return EgressAddress(address, "prod", "shop", "uid", origin=origin, node=node)


def faults(bound: NetNamespace | None, hosting: dict[str, list[str]], *claims: EgressAddress) -> list[Fault]:
    return [_of_object(piece, "shop") for piece in _pieces(claims, bound, hosting, {7}) if piece.found != piece.wanted]


def test_an_object_that_cannot_be_read_hides_no_other() -> None:
    head: dict[str, Any] = {"apiVersion": "network.openshift.io/v1", "kind": "HostSubnet"}
    good = head | {"metadata": {"name": "node2"}, "host": "node2", "hostIP": "192.168.1.18", "subnet": "10.128.0.0/23"}
    bad = good | {"metadata": {"name": "node3"}, "egressIPs": "all"}
    (value,), (fault,) = _read(manifests.host_subnet, [bad, good])
    assert value.name == "node2"
    assert fault.kind is FaultKind.HOST_SUBNET
    assert "node3" in fault.message


@pytest.mark.parametrize(
    ("bound", "hosting", "expected"),
    [
        (NetNamespace("shop", 7, (A,)), {A: ["node2"]}, []),
        (None, {A: ["node2"]}, [FaultKind.NET_NAMESPACE]),
        (NetNamespace("shop", 7, ()), {A: ["node2"]}, [FaultKind.NET_NAMESPACE]),
        (NetNamespace("shop", 7, (A, B)), {A: ["node2"]}, [FaultKind.NET_NAMESPACE]),
        (NetNamespace("shop", 9, (A,)), {A: ["node2"]}, [FaultKind.NET_NAMESPACE]),
        (NetNamespace("shop", 7, (A,)), {}, [FaultKind.HOST_SUBNET]),
        (NetNamespace("shop", 7, (A,)), {A: ["node3"]}, [FaultKind.HOST_SUBNET]),
        (NetNamespace("shop", 7, (A,)), {A: ["node2", "node3"]}, [FaultKind.CONFLICT]),
    ],
)
def test_objects_that_differ_are_named(
    bound: NetNamespace | None, hosting: dict[str, list[str]], expected: list[FaultKind]
) -> None:
    assert [fault.kind for fault in faults(bound, hosting, claim(A))] == expected


def test_several_addresses_are_compared_without_regard_to_their_order() -> None:
    bound = NetNamespace("shop", 7, (B, A))
    assert faults(bound, {A: ["node2"], B: ["node3"]}, claim(A), claim(B, "node3")) == []
