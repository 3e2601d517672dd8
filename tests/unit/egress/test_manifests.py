"""Manifests in, values out, and back; and that the CRDs name the fields that are read."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from egress.adapters import manifests
from egress.adapters.manifests import ManifestError
from egress.addresses import object_name
from egress.objects import (
    NO_LIMIT,
    Capacity,
    Condition,
    Decision,
    EgressAddress,
    EgressPool,
    Event,
    HostSubnet,
    Namespace,
    NetNamespace,
    Node,
    OnExhausted,
    Operator,
    Origin,
    Phase,
    Requirement,
    Selector,
    Ticket,
    Verdict,
)
from egress.operations import Outcome, outcome_of

DEPLOY = Path(__file__).parents[3] / "deploy"
CRDS = {path.stem: path for path in DEPLOY.glob("**/*s.yaml") if "kind: CustomResourceDefinition" in path.read_text()}


def manifest(name: str = "x", **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - a manifest holds anything
    return {"apiVersion": "any/v1", "kind": "Any", "metadata": {"name": name}, **fields}


def annotated(**annotations: str) -> dict[str, Any]:
    return {"metadata": {"name": "x", "annotations": {f"egress.hawse.dev/{k}": v for k, v in annotations.items()}}}


def limited(*capacities: dict[str, int]) -> dict[str, Any]:
    """A node whose cloud says what each of its interfaces may have."""
    text = json.dumps([{"interface": "eni-0", "ifaddr": {"ipv4": "10.0.128.0/18"}, "capacity": c} for c in capacities])
    return {"metadata": {"name": "x", "annotations": {"cloud.network.openshift.io/egress-ipconfig": text}}}


# Reading


def test_a_host_subnet() -> None:
    value = manifests.host_subnet(
        {
            "metadata": {"name": "node2", "resourceVersion": "7", "uid": "u"},
            "host": "node2",
            "hostIP": "192.168.1.18",
            "subnet": "10.130.0.0/23",
            "egressIPs": ["192.168.1.102"],
            "egressCIDRs": ["192.168.1.0/24"],
        },
        strict=True,
    )
    assert value == HostSubnet("node2", "192.168.1.18", ("192.168.1.102",), ("192.168.1.0/24",), "7")


def test_a_net_namespace() -> None:
    value = manifests.net_namespace(
        {
            "metadata": {"name": "app", "annotations": {"a": "b"}, "resourceVersion": "7"},
            "netname": "app",
            "netid": 1086658,
            "egressIPs": ["192.168.1.102"],
        },
        strict=True,
    )
    assert value == NetNamespace("app", 1086658, ("192.168.1.102",), {"a": "b"}, "7")


@pytest.mark.parametrize(
    "text", ["", "no JSON", "{}", '[{"capacity": 3}]', '[{"capacity": {"ipv4": -1}}]', "[[]]", "[{}]"]
)
def test_a_capacity_that_cannot_be_read_limits_nothing_and_is_told(text: str) -> None:
    metadata = {"name": "x", "annotations": {"cloud.network.openshift.io/egress-ipconfig": text}}
    node = manifests.node({"metadata": metadata}, strict=True)
    assert node.capacity == NO_LIMIT
    assert node.problem.startswith("annotation cloud.network.openshift.io/egress-ipconfig: ")


def test_fields_that_are_null_count_as_absent() -> None:
    value = manifests.net_namespace(
        {"metadata": {"name": "app", "annotations": None, "labels": None}, "netid": 1, "egressIPs": None}
    )
    assert value == NetNamespace("app", 1)


def test_unknown_fields_are_ignored() -> None:
    assert manifests.net_namespace(manifest("app", netid=1, unheard={"of": [1]})) == NetNamespace("app", 1)


@pytest.mark.parametrize(
    ("fields", "strict", "expected"),
    [
        ({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, False, Node("x")),
        ({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, True, Node("x", ready=False)),
        ({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, False, Node("x", ready=False)),
        ({"status": {"conditions": [{"type": "DiskPressure", "status": "True"}]}}, False, Node("x", ready=False)),
        ({}, False, Node("x", ready=False)),
        ({}, True, Node("x")),
        ({"spec": {"unschedulable": True}}, True, Node("x", unschedulable=True)),
        (annotated(drain=""), True, Node("x", drain=True)),
        (annotated(drain="yes"), True, Node("x", drain=True)),
        (annotated(drain="false"), True, Node("x")),
        (limited({"ipv4": 14, "ipv6": 15}), True, Node("x", capacity=Capacity(14, 15))),
        (limited({"ip": 10}), True, Node("x", capacity=Capacity(ip=10))),
        (limited({"ipv4": 14}, {"ipv4": 3, "ip": 9}), True, Node("x", capacity=Capacity(3, ip=9))),
        (limited(), True, Node("x")),
    ],
)
def test_a_node(fields: dict[str, Any], strict: bool, expected: Node) -> None:
    assert manifests.node(manifest() | fields, strict=strict) == expected


def test_a_namespace() -> None:
    metadata = {"name": "app", "uid": "u", "labels": {"l": "1"}, "annotations": {"a": "2"}, "resourceVersion": "3"}
    expected = Namespace("app", "u", {"l": "1"}, {"a": "2"}, resource_version="3")
    assert manifests.namespace({"metadata": metadata}) == expected
    assert manifests.namespace({"metadata": metadata | {"deletionTimestamp": "2026-01-01T00:00:00Z"}}).deleting
    assert manifests.namespace({"metadata": metadata, "status": {"phase": "Terminating"}}).deleting


def test_a_namespace_at_admission_may_have_no_name_yet() -> None:
    assert manifests.namespace({"metadata": {"generateName": "app-"}}) == Namespace("", "")


def test_an_egress_pool_with_everything() -> None:
    value = manifests.egress_pool(
        manifest(
            "prod",
            spec={
                "cidrs": ["192.168.1.0/24", "10.0.0.1-10.0.0.9", "10.1.1.1"],
                "excluded": ["192.168.1.1"],
                "addressesPerNamespace": 2,
                "namespaceSelector": {
                    "matchLabels": {"env": "prod"},
                    "matchExpressions": [
                        {"key": "team", "operator": "NotIn", "values": ["a", "b"]},
                        {"key": "egress", "operator": "Exists"},
                    ],
                },
                "nodeSelector": {},
                "topologyKey": "zone",
                "maxAddressesPerNode": 9,
                "quarantine": "1h30m",
                "onExhausted": "admit",
                "approval": "required",
                "ticketProfile": "fw",
            },
        ),
        strict=True,
    )
    assert value == EgressPool(
        "prod",
        ("192.168.1.0/24", "10.0.0.1-10.0.0.9", "10.1.1.1"),
        ("192.168.1.1",),
        2,
        Selector(
            {"env": "prod"},
            (Requirement("team", Operator.NOT_IN, ("a", "b")), Requirement("egress", Operator.EXISTS)),
        ),
        Selector(),
        "zone",
        9,
        5400.0,
        OnExhausted.ADMIT,
        approval_required=True,
        ticket_profile="fw",
    )


def test_an_egress_pool_s_defaults_are_the_value_s_own() -> None:
    assert manifests.egress_pool(manifest("p", spec={"cidrs": ["10.0.0.1"]})) == EgressPool("p", ("10.0.0.1",))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("90s", 90), ("1h30m", 5400), ("0", 0), ("0s", 0), ("1.5h", 5400), ("500ms", 0.5), ("1m1s", 61)],
)
def test_durations(text: str, seconds: float) -> None:
    pool = manifests.egress_pool(manifest(spec={"cidrs": [], "quarantine": text}))
    assert pool.quarantine == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "10 m", "1d", "10m ", "٣m", "9" * 40 + "s", "1.h", "inf"])
def test_what_is_no_duration_is_an_error_even_when_not_strict(text: str) -> None:
    with pytest.raises(ManifestError, match=r"EgressPool x: \$\.spec\.quarantine: .* is not a duration"):
        manifests.egress_pool(manifest(spec={"cidrs": [], "quarantine": text}))


# What is wrong is named

GOOD_HOST = {"hostIP": "192.168.1.18"}
GOOD_POOL = {"cidrs": ["10.0.0.0/24"]}
BOTH = {"cidrs": ["10.0.0.0/24", "2001:db8::/64"]}
GOOD_CLAIM = {"pool": "p", "namespace": {"name": "n"}}
READERS = {
    "HostSubnet": manifests.host_subnet,
    "NetNamespace": manifests.net_namespace,
    "Node": manifests.node,
    "EgressPool": manifests.egress_pool,
    "EgressAddress": manifests.egress_address,
}

STRICT_ONLY = [
    ("HostSubnet", {}, "$.hostIP: '' is not an IP address"),
    ("HostSubnet", GOOD_HOST | {"host": "y"}, "$.host: 'y' differs from metadata.name"),
    ("HostSubnet", {"hostIP": "x"}, "$.hostIP: 'x' is not an IP address"),
    ("HostSubnet", GOOD_HOST | {"subnet": "10.0.0.0"}, "$.subnet: '10.0.0.0' is not a CIDR"),
    ("HostSubnet", GOOD_HOST | {"subnet": "10.0.0.0/99"}, "$.subnet: '10.0.0.0/99' is not a CIDR"),
    ("HostSubnet", GOOD_HOST | {"egressIPs": ["10.0.0.1", "x"]}, "$.egressIPs[1]: 'x' is not an IP address"),
    ("HostSubnet", GOOD_HOST | {"egressIPs": ["224.0.0.1"]}, "$.egressIPs[0]: '224.0.0.1' is not a unicast address"),
    ("HostSubnet", GOOD_HOST | {"egressCIDRs": ["10.0.0.1"]}, "$.egressCIDRs[0]: '10.0.0.1' is not a CIDR"),
    ("NetNamespace", {"netid": 1, "netname": "y"}, "$.netname: 'y' differs from metadata.name"),
    ("NetNamespace", {"netid": -1}, "$.netid: -1 is not a NetID"),
    ("NetNamespace", {"netid": 1 << 24}, "$.netid: 16777216 is not a NetID"),
    ("NetNamespace", {"netid": 1, "egressIPs": ["y"]}, "$.egressIPs[0]: 'y' is not an IP address"),
    ("EgressPool", {"spec": {"cidrs": []}}, "$.spec.cidrs: is empty"),
    ("EgressPool", {"spec": {"cidrs": ["10.0.0.1/24"]}}, "$.spec.cidrs[0]: '10.0.0.1/24' is not a CIDR"),
    ("EgressPool", {"spec": {"cidrs": ["10.0.0.9-10.0.0.1"]}}, "$.spec.cidrs[0]: '10.0.0.9-10.0.0.1' ends before"),
    ("EgressPool", {"spec": GOOD_POOL | {"excluded": ["q"]}}, "$.spec.excluded[0]: 'q' is not an IP address"),
    (
        "EgressPool",
        {"spec": GOOD_POOL | {"nodeSelector": {"matchExpressions": [{"key": "k", "operator": "In"}]}}},
        "$.spec.nodeSelector.matchExpressions[0].values: operator In needs at least one value",
    ),
    (
        "EgressPool",
        {
            "spec": GOOD_POOL
            | {"namespaceSelector": {"matchExpressions": [{"key": "k", "operator": "Exists", "values": ["v"]}]}}
        },
        "$.spec.namespaceSelector.matchExpressions[0].values: operator Exists takes no values",
    ),
    (
        "EgressPool",
        {"spec": GOOD_POOL | {"ipFamilyPolicy": "RequireDualStack"}},
        "$.spec.cidrs: has no IPv6 address, which RequireDualStack needs",
    ),
    (
        "EgressPool",
        {"spec": BOTH | {"ipFamilyPolicy": "RequireDualStack", "addressesPerNamespace": 5}},
        "$.spec.addressesPerNamespace: is 5; with RequireDualStack give it at most 4 of each family",
    ),
    ("EgressAddress", {"spec": GOOD_CLAIM}, "$.metadata.name: 'x' is not an IP address"),
]

ALWAYS = [
    ("HostSubnet", {"hostIP": 5}, "$.hostIP: expected a string, got int"),
    ("HostSubnet", GOOD_HOST | {"egressIPs": "10.0.0.1"}, "$.egressIPs: expected array | null, got str"),
    ("HostSubnet", GOOD_HOST | {"egressIPs": ["10.0.0.1", 7]}, "$.egressIPs[1]: expected a string, got int"),
    ("HostSubnet", {"metadata": {"name": ""}}, "$.metadata.name: is missing"),
    ("HostSubnet", {"metadata": {}}, "$.metadata.name: is missing"),
    ("HostSubnet", {"metadata": None}, "$.metadata: expected object, got null"),
    ("NetNamespace", {}, "$.netid: is missing"),
    ("NetNamespace", {"netid": "5"}, "$.netid: expected int, got str"),
    ("NetNamespace", {"netid": True}, "$.netid: expected int, got bool"),
    (
        "NetNamespace",
        {"netid": 1, "metadata": {"name": "x", "annotations": {1: "y"}}},
        "a key of $.metadata.annotations",
    ),
    ("Node", {"spec": {"unschedulable": "yes"}}, "$.spec.unschedulable: expected bool | null, got str"),
    ("EgressPool", {}, "$.spec: is missing"),
    ("EgressPool", {"spec": {}}, "$.spec.cidrs: is missing"),
    ("EgressPool", {"spec": GOOD_POOL | {"onExhausted": "wait"}}, "$.spec.onExhausted: invalid enum value 'wait'"),
    (
        "EgressPool",
        {"spec": GOOD_POOL | {"ipFamilyPolicy": "Both"}},
        "$.spec.ipFamilyPolicy: invalid enum value 'Both'",
    ),
    ("EgressPool", {"spec": GOOD_POOL | {"approval": "maybe"}}, "$.spec.approval: invalid enum value 'maybe'"),
    (
        "EgressPool",
        {"spec": GOOD_POOL | {"addressesPerNamespace": 0}},
        "$.spec.addressesPerNamespace: expected int >= 1",
    ),
    ("EgressPool", {"spec": GOOD_POOL | {"quarantine": 600}}, "$.spec.quarantine: expected a string, got int"),
    ("EgressAddress", {"spec": {"pool": "p"}}, "$.spec.namespace: is missing"),
    ("EgressAddress", {"spec": GOOD_CLAIM, "status": {"phase": "Odd"}}, "$.status.phase: invalid enum value 'Odd'"),
    (
        "EgressAddress",
        {"spec": GOOD_CLAIM, "status": {"quarantinedUntil": "2026-01-01T00:00:00"}},
        "$.status.quarantinedUntil: ",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "text"), STRICT_ONLY + ALWAYS)
def test_a_wrong_field_is_named(kind: str, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ManifestError) as error:
        READERS[kind](manifest(**fields), strict=True)
    name = "(unnamed)" if not (fields.get("metadata", {"name": "x"}) or {}).get("name") else "x"
    assert str(error.value).startswith(f"{kind} {name}: {text}")
    assert "\n" not in str(error.value)
    assert "`" not in str(error.value)


@pytest.mark.parametrize(("kind", "fields", "text"), STRICT_ONLY)
def test_what_only_people_get_wrong_stays_as_it_is_when_live(kind: str, fields: dict[str, Any], text: str) -> None:
    assert READERS[kind](manifest(**fields)) is not None, text


@pytest.mark.parametrize(("kind", "fields", "text"), ALWAYS)
def test_what_cannot_be_read_is_an_error_when_live_too(kind: str, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ManifestError, match=kind):
        READERS[kind](manifest(**fields))


@pytest.mark.parametrize("kind", sorted(READERS))
@pytest.mark.parametrize("value", [None, [], "text", 5, {}, {"metadata": []}, {"metadata": {"name": 5}}])
def test_what_is_no_manifest_at_all_is_an_error(kind: str, value: object) -> None:
    with pytest.raises(ManifestError, match=rf"^{kind} \(unnamed\): \$"):
        READERS[kind](value, strict=True)


# Writing

names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
unicast = st.one_of(
    st.integers(0x01000000, 0x7EFFFFFF).map(IPv4Address), st.integers(0x20 << 120, (0xFE << 120) - 1).map(IPv6Address)
)
times = st.integers(0, 4_000_000_000_000_000).map(lambda micros: micros / 1e6)
conditions = st.builds(
    Condition,
    type=st.sampled_from(["Claimed", "Bound", "Placed", "Programmed", "FirewallOpen", "Ready"]),
    status=st.booleans(),
    reason=st.text(max_size=9),
    message=st.text(max_size=20),
    last_transition=st.just("") | st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
)
egress_addresses = st.builds(
    EgressAddress,
    address=unicast.map(str),
    pool=st.just("") | names,
    namespace=names,
    namespace_uid=st.just("") | names,
    origin=st.sampled_from(Origin),
    node=st.just("") | names,
    phase=st.sampled_from(Phase),
    quarantined_until=times,
    conditions=st.lists(conditions, max_size=4).map(tuple),
    resource_version=st.just("") | names,
)


@given(egress_addresses, st.booleans())
def test_an_egress_address_comes_back_as_it_was_written(value: EgressAddress, strict: bool) -> None:
    written = manifests.egress_address_manifest(value) | {"status": manifests.egress_address_status(value)}
    assert manifests.egress_address(json.loads(json.dumps(written)), strict=strict) == value


def test_the_written_manifest() -> None:
    value = EgressAddress(
        "fd00::1",
        "prod",
        "app",
        "u-1",
        Origin.REQUESTED,
        "node2",
        Phase.QUARANTINED,
        1_800_000_000,
        (Condition("Ready", False, "Released", "gone", "2026-01-01T00:00:00Z"), Condition("Bound", True, "Bound")),
    )
    assert manifests.egress_address_manifest(value) == {
        "apiVersion": "egress.hawse.dev/v1alpha1",
        "kind": "EgressAddress",
        "metadata": {"name": "fd00-0000-0000-0000-0000-0000-0000-0001"},
        "spec": {"pool": "prod", "namespace": {"name": "app", "uid": "u-1"}, "origin": "requested"},
    }
    assert manifests.egress_address_status(value) == {
        "phase": "Quarantined",
        "node": "node2",
        "quarantinedUntil": "2027-01-15T08:00:00Z",
        "ticket": None,
        "decision": None,
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "Released",
                "message": "gone",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            },
            {"type": "Bound", "status": "True", "reason": "Bound", "message": ""},
        ],
    }


@pytest.mark.parametrize("required", [True, False])
def test_a_ticket_and_a_decision_come_back_as_they_were_written(required: bool) -> None:
    ticket = Ticket(
        "firewall", 3, Event.ASSIGNED, "node2", "somebody else has it", 2, "CHG1", "https://t/1", "h1",
        1_800_000_000.125, True, Event.RELEASED, 1_800_000_015.5, Event.MOVED, "it said no",
    )  # fmt: skip
    decision = Decision(Verdict.WITHDRAWN, "alice", 1_800_000_001.25, "callback", "CAB", "msg_1")
    value = EgressAddress(
        "10.0.0.1", "p", "n", "u", uid="o-1", approval_required=required, ticket=ticket, decision=decision
    )
    manifest = manifests.egress_address_manifest(value)
    manifest["metadata"]["uid"] = "o-1"
    for written in (value, replace(value, ticket=Ticket("x"), decision=None), replace(value, ticket=None)):
        manifest["status"] = manifests.egress_address_status(written)
        assert manifests.egress_address(msgspec.json.decode(msgspec.json.encode(manifest))) == written


def test_a_status_without_quarantine_clears_it_in_a_merge_patch() -> None:
    value = EgressAddress("10.0.0.1", "p", "n", "u")
    assert manifests.egress_address_status(value)["quarantinedUntil"] is None


def test_a_live_object_whose_name_is_no_address_keeps_it() -> None:
    assert manifests.egress_address(manifest("odd-name", spec=GOOD_CLAIM)).address == "odd-name"


@given(unicast)
def test_the_name_of_a_written_object_is_the_address(address: IPv4Address | IPv6Address) -> None:
    written = manifests.egress_address_manifest(EgressAddress(str(address), "p", "n", "u"))
    assert written["metadata"]["name"] == object_name(address)


@pytest.mark.parametrize(
    ("cidrs", "overlapping"),
    [
        (["10.0.0.0/24", "10.0.0.255"], "'10.0.0.255' overlaps '10.0.0.0/24'"),
        (["10.0.0.1-10.0.0.9", "10.0.0.4"], "'10.0.0.4' overlaps '10.0.0.1-10.0.0.9'"),
        (["10.0.0.1-10.0.0.9", "10.0.0.9-10.0.0.12"], "'10.0.0.9-10.0.0.12' overlaps '10.0.0.1-10.0.0.9'"),
        (["10.0.0.1", "10.0.0.1"], "'10.0.0.1' overlaps '10.0.0.1'"),
        (["fd00::/64", "fd00::5-fd00::7"], "'fd00::5-fd00::7' overlaps 'fd00::/64'"),
    ],
)
def test_entries_of_a_pool_that_overlap_are_refused(cidrs: list[str], overlapping: str) -> None:
    pool = manifest(spec={"cidrs": ["10.9.0.0/24", *cidrs]})
    assert manifests.egress_pool(pool).cidrs == ("10.9.0.0/24", *cidrs)
    with pytest.raises(ManifestError, match=re.escape(f"EgressPool x: $.spec.cidrs[2]: {overlapping}")):
        manifests.egress_pool(pool, strict=True)


# The CRDs


def schema(plural: str) -> dict[str, Any]:
    text = CRDS[plural].read_text()
    (version,) = yaml.safe_load(text)["spec"]["versions"]
    result: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return result


def wire_fields(struct: type) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize(
    ("plural", "path", "struct"),
    [
        ("hostsubnets", (), manifests._HostSubnet),
        ("netnamespaces", (), manifests._NetNamespace),
        ("egresspools", ("spec",), manifests._PoolSpec),
        ("egresspools", ("spec", "nodeSelector"), manifests._Selector),
        ("egresspools", ("spec", "namespaceSelector"), manifests._Selector),
        ("egressaddresses", ("spec",), manifests._AddressSpec),
        ("egressaddresses", ("spec", "namespace"), manifests._NamespaceReference),
        ("egressaddresses", ("status",), manifests._AddressStatus),
    ],
)
def test_every_field_that_is_read_is_in_the_crd(plural: str, path: tuple[str, ...], struct: type) -> None:
    place = schema(plural)
    for name in path:
        place = place["properties"][name]
    assert wire_fields(struct) <= place["properties"].keys()


def structural(place: dict[str, Any], path: str = "$") -> None:
    assert "type" in place, path
    for name, inner in place.get("properties", {}).items():
        if name == "metadata":
            continue  # the API server's own, which it describes by itself
        structural(inner, f"{path}.{name}")
        assert "description" in inner, f"{path}.{name}"
    for name in place.get("required", ()):
        assert name in place["properties"], f"{path}.{name}"
    if place["type"] == "array":
        structural(place["items"], f"{path}[]")


@pytest.mark.parametrize("path", CRDS.values(), ids=CRDS.keys())
def test_a_crd_is_complete(path: Path) -> None:
    crd = yaml.safe_load(path.read_text())
    names = crd["spec"]["names"]
    (version,) = crd["spec"]["versions"]
    assert crd["metadata"]["name"] == f"{names['plural']}.{crd['spec']['group']}"
    assert path.stem == names["plural"]
    assert crd["spec"]["scope"] == "Cluster"
    assert ("subresources" in version) == (crd["spec"]["group"] == manifests.GROUP)
    assert version["additionalPrinterColumns"]
    structural(version["schema"]["openAPIV3Schema"])


def test_what_cannot_be_read_is_not_tried_again() -> None:
    assert outcome_of(ManifestError("NetNamespace", "app", "$.netid", "is missing"), 1) is Outcome.GAVE_UP
