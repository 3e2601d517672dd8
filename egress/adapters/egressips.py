"""EgressIP and Node manifests to the values of `egress.ovn`, and back for what Hawse writes.

The kind is ovn-kubernetes' own (k8s.ovn.org/v1). Its status is no subresource: a merge patch of the spec leaves it be.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, TypeVar

import msgspec

from egress.adapters.cluster import Manifest
from egress.adapters.manifests import ManifestError
from egress.addresses import addresses_of
from egress.forms import learn
from egress.objects import Operator, Requirement, Selector
from egress.ovn import ASSIGNABLE_LABEL, NAME_LABEL, OWN_LABEL, EgressIP, OvnNode, own_name

_IFADDR = "k8s.ovn.org/node-primary-ifaddr"
_HOST_CIDRS = "k8s.ovn.org/host-cidrs"
_CLOUD = "cloud.network.openshift.io/egress-ipconfig"
"""On a Node: by OVN-Kubernetes, its primary address and all its addresses, with their prefixes; by the cloud's
controller, the networks that it may have addresses of."""
Texts = tuple[str, ...]
T = TypeVar("T")


class _Metadata(msgspec.Struct, rename="camel"):
    name: str
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    resource_version: str = ""


class _Requirement(msgspec.Struct):
    key: str
    operator: Operator
    values: Texts | None = None


class _Selector(msgspec.Struct, rename="camel"):
    match_labels: dict[str, str] | None = None
    match_expressions: tuple[_Requirement, ...] | None = None


class _Spec(msgspec.Struct, rename="camel"):
    namespace_selector: _Selector
    egress_ips: Texts | None = msgspec.field(default=None, name="egressIPs")
    pod_selector: _Selector | None = None
    traffic_selector: _Selector | None = None


class _Item(msgspec.Struct):
    node: str
    egress_ip: str = msgspec.field(name="egressIP")


class _Status(msgspec.Struct):
    items: tuple[_Item, ...] | None = None


class _EgressIP(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec
    status: _Status | None = None


class _Address(msgspec.Struct):
    type: str
    address: str


class _Condition(msgspec.Struct):
    type: str
    status: str


class _NodeStatus(msgspec.Struct):
    addresses: tuple[_Address, ...] | None = None
    conditions: tuple[_Condition, ...] | None = None


class _Node(msgspec.Struct):
    metadata: _Metadata
    status: _NodeStatus | None = None


class _Families(msgspec.Struct):
    ipv4: str = ""
    ipv6: str = ""


class _Interface(msgspec.Struct):
    ifaddr: _Families | None = None


learn(_EgressIP, _Node, _Families, _Interface)


def egress_ip(manifest: Manifest) -> EgressIP:
    """The EgressIP of a manifest; ManifestError names what cannot be read."""
    try:
        wire = msgspec.convert(manifest, _EgressIP)
    except msgspec.ValidationError as error:
        name = str((manifest.get("metadata") or {}).get("name", ""))
        raise ManifestError("EgressIP", name, "$", str(error)) from None
    spec, items = wire.spec, (wire.status and wire.status.items) or ()
    return EgressIP(
        wire.metadata.name,
        spec.egress_ips or (),
        _selector(spec.namespace_selector),
        any(_restricts(each) for each in (spec.pod_selector, spec.traffic_selector)),
        tuple((item.egress_ip, item.node) for item in items),
        wire.metadata.labels or {},
        wire.metadata.annotations or {},
        wire.metadata.resource_version,
    )


def egress_ip_manifest(namespace: str, addresses: Iterable[str]) -> dict[str, Any]:
    """The EgressIP that Hawse makes for a namespace."""
    return {
        "metadata": {"name": own_name(namespace), "labels": {OWN_LABEL: namespace}},
        "spec": {"egressIPs": list(addresses), "namespaceSelector": {"matchLabels": {NAME_LABEL: namespace}}},
    }


def egress_ip_patch(there: EgressIP, namespace: str, addresses: Iterable[str]) -> dict[str, Any]:
    """The merge patch that lets `there` have these addresses; of Hawse's own also its selector."""
    spec: dict[str, Any] = {"egressIPs": list(addresses)}
    if there.own and there.only != namespace:
        labels: dict[str, str | None] = dict.fromkeys(there.selector.match_labels)
        selector = {"matchLabels": labels | {NAME_LABEL: namespace}, "matchExpressions": None}
        spec |= {"namespaceSelector": selector, "podSelector": None, "trafficSelector": None}
    return {"metadata": {"resourceVersion": there.resource_version}, "spec": spec}


def selector_manifest(selector: Selector) -> dict[str, Any]:
    """A selector as an object holds it."""
    expressions = [
        {"key": each.key, "operator": each.operator.value, **({"values": list(each.values)} if each.values else {})}
        for each in selector.requirements
    ]
    labels = {"matchLabels": dict(selector.match_labels)} if selector.match_labels else {}
    return labels | ({"matchExpressions": expressions} if expressions else {})


def node(manifest: Manifest) -> OvnNode:
    """The Node of a manifest. What its annotations say that cannot be read is left out."""
    try:
        wire = msgspec.convert(manifest, _Node)
    except msgspec.ValidationError as error:
        name = str((manifest.get("metadata") or {}).get("name", ""))
        raise ManifestError("Node", name, "$", str(error)) from None
    labels, notes = wire.metadata.labels or {}, wire.metadata.annotations or {}
    status = wire.status or _NodeStatus()
    ips = addresses_of(item.address for item in status.addresses or () if item.type == "InternalIP")
    ready = any(item.type == "Ready" and item.status == "True" for item in status.conditions or ())
    return OvnNode(wire.metadata.name, tuple(ips), ASSIGNABLE_LABEL in labels, ready, _networks(notes))


def _networks(notes: dict[str, str]) -> tuple[IPv4Network | IPv6Network, ...]:
    primary = _decoded(notes.get(_IFADDR), _Families) or _Families()
    clouds = _decoded(notes.get(_CLOUD), tuple[_Interface, ...]) or ()
    families = [primary, *(item.ifaddr for item in clouds if item.ifaddr is not None)]
    texts = [*(_decoded(notes.get(_HOST_CIDRS), Texts) or ()), *(each.ipv4 for each in families)]
    found = []
    for text in [*texts, *(each.ipv6 for each in families)]:
        try:
            found.append(ip_network(text, strict=False))
        except ValueError:
            continue
    return tuple(dict.fromkeys(found))


def _decoded(text: str | None, form: type[T]) -> T | None:
    try:
        return msgspec.json.decode(text, type=form) if text else None
    except msgspec.DecodeError:
        return None


def _selector(wire: _Selector) -> Selector:
    found = tuple(Requirement(each.key, each.operator, each.values or ()) for each in wire.match_expressions or ())
    return Selector(wire.match_labels or {}, found)


def _restricts(wire: _Selector | None) -> bool:
    return wire is not None and bool(wire.match_labels or wire.match_expressions)
