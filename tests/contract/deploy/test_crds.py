"""What the CRDs accept and refuse, on a real API server, and that Hawse's own reader agrees."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from egress.adapters import manifests
from egress.adapters.manifests import ManifestError
from lab.apiserver.client import Answer
from tests.contract.deploy.conftest import DEPLOY, Installed, causes

Json = dict[str, Any]
READERS: dict[str, Callable[..., object]] = {
    "EgressPool": manifests.egress_pool,
    "EgressAddress": manifests.egress_address,
    "HostSubnet": manifests.host_subnet,
    "NetNamespace": manifests.net_namespace,
}
CIDRS = "spec.cidrs"
CLAIM = {"pool": "prod", "namespace": {"name": "shop", "uid": "u-1"}}
GOOD_NODE = {"host": "x", "hostIP": "192.168.1.17", "subnet": "10.128.0.0/23"}
GOOD_TENANT = {"netname": "x", "netid": 4711}


def pool(**spec: object) -> Json:
    return {"spec": {"cidrs": ["192.168.1.0/24"], **spec}}


def expression(operator: str, *values: str) -> Json:
    return {"matchExpressions": [{"key": "zone", "operator": operator, "values": list(values)}]}


def send(installed: Installed, kind: str, name: str, body: Json) -> tuple[Answer, Json]:
    """The answer to a dry-run creation, and the manifest that was sent."""
    api = "egress.hawse.dev/v1alpha1" if kind.startswith("Egress") else "network.openshift.io/v1"
    plural = f"{kind.lower()}es" if kind.endswith("s") else f"{kind.lower()}s"
    manifest = {"apiVersion": api, "kind": kind, "metadata": {"name": name}, **body}
    return installed.as_("admin").post(f"/apis/{api}/{plural}", manifest, dryRun="All"), manifest


@pytest.mark.parametrize(
    ("cidrs"),
    [
        ["192.168.1.0/24"],
        ["192.168.1.0/32", "192.168.1.2/31"],
        ["192.168.1.7"],
        ["192.168.1.100-192.168.1.120", "192.168.1.121 - 192.168.1.130", "192.168.2.0/24"],
        ["9.255.255.255-10.0.0.1"],
        ["192.168.1.5-192.168.1.5"],
        ["169.254.1.0/24"],
        ["fd00::/64", "fd00:0:0:1::/64", "fd01::1", "fd02::1-fd02::f"],
        ["fe80::5", "FD00::1"],
        ["10.0.0.0/8", "fd00::/8"],
        [f"10.{number}.0.100 - 10.{number}.0.120" for number in range(100, 164)],
        [f"210.{number}.100.128/25" for number in range(100, 164)],
        [f"fd00:{number:x}:{number:x}:{number:x}::/64" for number in range(0x1000, 0x1040)],
    ],
    ids=lambda cidrs: cidrs[0],
)
def test_pools_that_are_accepted(with_crds: Installed, cidrs: list[str]) -> None:
    answer, manifest = send(with_crds, "EgressPool", "x", pool(cidrs=cidrs, excluded=cidrs))
    assert answer.code == 201, answer.body
    assert manifests.egress_pool(manifest, strict=True).cidrs == tuple(cidrs)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "is no unicast address"),
        ("192.168.1.256", "is no unicast address"),
        ("192.168.001.1", "is no unicast address"),
        ("192.168.1", "is no unicast address"),
        ("0.0.0.0", "is no unicast address"),
        ("127.0.0.1", "is no unicast address"),
        ("224.0.0.1", "is no unicast address"),
        ("255.255.255.255", "is no unicast address"),
        ("::1", "is no unicast address"),
        ("ff02::1", "is no unicast address"),
        ("fe80::1%eth0", "is no unicast address"),
        ("::ffff:192.168.1.1", "is no unicast address"),
        ("192.168.1.5/24", "has bits set beyond its prefix"),
        ("fd00::1/64", "has bits set beyond its prefix"),
        ("192.168.1.0/33", "is no CIDR"),
        ("192.168.1.0/024", "is no CIDR"),
        ("192.168.1.0/", "is no CIDR"),
        ("192.168.1.0/255.255.255.0", "is no CIDR"),
        ("0.0.0.0/0", "no node could hold"),
        ("127.0.0.0/24", "no node could hold"),
        ("224.0.0.0/8", "no node could hold"),
        ("::/0", "no node could hold"),
        ("192.168.1.1-", "is no range"),
        ("-192.168.1.1", "is no range"),
        ("192.168.1.1-192.168.1.2-192.168.1.3", "is no range"),
        ("192.168.1.1-120", "is no range"),
        ("192.168.1.9-192.168.1.1", "ends before it begins"),
        ("10.0.1.0-10.0.0.255", "ends before it begins"),
        ("11.0.0.0-10.255.255.255", "ends before it begins"),
        ("192.168.1.1-fd00::1", "a range cannot begin with an IPv4 and end with an IPv6"),
        ("fd00::1-192.168.1.1", "a range cannot begin with an IPv4 and end with an IPv6"),
        ("126.0.0.1-128.0.0.1", "no node could hold"),
        ("223.0.0.1-224.0.0.1", "is no range"),
    ],
)
@pytest.mark.parametrize("field", ["cidrs", "excluded"])
def test_entries_that_are_refused(with_crds: Installed, field: str, text: str, words: str) -> None:
    answer, manifest = send(with_crds, "EgressPool", "x", pool(**{field: ["10.9.9.9", text]}))
    assert answer.code == 422, answer.body
    assert causes(answer).keys() - {CIDRS} == {f"spec.{field}[1]"}  # 0.0.0.0/0 overlaps everything, too
    assert words in answer.body["message"]
    with pytest.raises(ManifestError, match=re.escape(f"$.spec.{field}[1]")):
        manifests.egress_pool(manifest, strict=True)


OVERLAPS = [
    ["192.168.1.7", "192.168.1.7"],
    ["192.168.1.0/24", "192.168.1.7"],
    ["192.168.1.0", "192.168.1.0/24"],
    ["192.168.1.0/24", "192.168.1.128/25"],
    ["192.168.1.0/24", "192.168.1.100-192.168.1.120"],
    ["192.168.1.0/24", "192.168.0.5-192.168.1.5"],
    ["192.168.1.0/24", "192.168.1.250-192.168.2.5"],
    ["192.168.1.5", "192.168.1.5-192.168.1.9"],
    ["192.168.1.9", "192.168.1.5 - 192.168.1.9"],
    ["fd00::/64", "fd00::5"],
    ["fd00::/64", "fd00::5-fd00::9"],
    ["fd00::", "FD00:0::0"],
]


@pytest.mark.parametrize("cidrs", [order for pair in OVERLAPS for order in itertools.permutations(pair)])
def test_entries_that_overlap_are_refused(with_crds: Installed, cidrs: tuple[str, str]) -> None:
    answer, manifest = send(with_crds, "EgressPool", "x", pool(cidrs=["10.0.0.0/8", *cidrs]))
    assert answer.code == 422, answer.body
    assert causes(answer).keys() == {CIDRS}
    assert "each address may be in one of them alone" in causes(answer)[CIDRS]
    with pytest.raises(ManifestError, match=re.escape("$.spec.cidrs[2]: ")):
        manifests.egress_pool(manifest, strict=True)


@pytest.mark.parametrize(
    "cidrs",
    [
        ["192.168.1.5-192.168.1.9", "192.168.1.7"],
        ["192.168.1.5-192.168.1.9", "192.168.1.6/31"],
        ["192.168.1.5-192.168.1.9", "192.168.1.8-192.168.1.12"],
        ["fd00::9-fd00::1"],
    ],
)
def test_what_is_left_to_the_webhook_and_the_workers(with_crds: Installed, cidrs: list[str]) -> None:
    """The header of the CRD names these: more CEL than can be read. If the CRD learns them, mend it and this list."""
    answer, manifest = send(with_crds, "EgressPool", "x", pool(cidrs=cidrs))
    assert answer.code == 201
    with pytest.raises(ManifestError, match=re.escape("$.spec.cidrs[")):
        manifests.egress_pool(manifest, strict=True)


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"cidrs": []}, CIDRS, "at least 1 items"),
        ({"cidrs": None}, CIDRS, "Required value"),
        ({"addressesPerNamespace": 0}, "spec.addressesPerNamespace", "greater than or equal to 1"),
        ({"addressesPerNamespace": 9}, "spec.addressesPerNamespace", "less than or equal to 8"),
        ({"addressesPerNamespace": "2"}, "spec.addressesPerNamespace", "must be of type integer"),
        ({"ipFamilyPolicy": "Both"}, "spec.ipFamilyPolicy", "Unsupported value"),
        ({"ipFamilyPolicy": "RequireDualStack"}, CIDRS, "needs IPv4 and IPv6 addresses"),
        (
            {"ipFamilyPolicy": "RequireDualStack", "cidrs": ["10.0.0.1", "fd00::1"], "addressesPerNamespace": 5},
            "spec.addressesPerNamespace",
            "give it 4 at most",
        ),
        ({"maxAddressesPerNode": -1}, "spec.maxAddressesPerNode", "greater than or equal to 0"),
        ({"quarantine": "-5m"}, "spec.quarantine", "is no duration of 0 or more; write one such as 10m"),
        ({"quarantine": "10"}, "spec.quarantine", "is no duration of 0 or more"),
        ({"quarantine": ""}, "spec.quarantine", "is no duration of 0 or more"),
        ({"quarantine": "1d"}, "spec.quarantine", "is no duration of 0 or more"),
        ({"onExhausted": "wait"}, "spec.onExhausted", 'supported values: "deny", "admit"'),
        ({"namespaceSelector": expression("In")}, "spec.namespaceSelector.matchExpressions[0].values", "at least one"),
        ({"nodeSelector": expression("NotIn")}, "spec.nodeSelector.matchExpressions[0].values", "at least one value"),
        ({"nodeSelector": expression("Exists", "a")}, "spec.nodeSelector.matchExpressions[0].values", "takes no"),
        ({"nodeSelector": expression("Like", "a")}, "spec.nodeSelector.matchExpressions[0].operator", "Unsupported"),
    ],
)
def test_other_fields_of_a_pool_that_are_refused(with_crds: Installed, spec: Json, field: str, words: str) -> None:
    answer, manifest = send(with_crds, "EgressPool", "x", pool(**spec))
    assert answer.code == 422, answer.body
    assert field in causes(answer)
    assert words in answer.body["message"]
    with pytest.raises(ManifestError, match=re.escape(f"$.{field}")):
        manifests.egress_pool(manifest, strict=True)


@pytest.mark.parametrize("quarantine", ["0", "0s", "10m", "1h30m", "1.5h", "250ms"])
def test_durations_that_are_accepted(with_crds: Installed, quarantine: str) -> None:
    answer, manifest = send(with_crds, "EgressPool", "x", pool(quarantine=quarantine))
    assert answer.code == 201, answer.body
    assert manifests.egress_pool(manifest, strict=True).quarantine >= 0


def test_approval_that_means_nothing_is_refused(with_crds: Installed) -> None:
    answer, _ = send(with_crds, "EgressPool", "x", pool(approval="perhaps"))
    assert "spec.approval" in causes(answer)
    answer, manifest = send(with_crds, "EgressPool", "x", pool(approval="required"))
    assert answer.code == 201, answer.body
    assert manifests.egress_pool(manifest, strict=True).approval_required


@pytest.mark.parametrize(
    "name", ["192.168.1.102", "169.254.0.1", "fd00-0000-0000-0000-0000-0000-0000-0001"]
)  # fmt: skip
def test_names_of_claims_that_are_accepted(with_crds: Installed, name: str) -> None:
    answer, manifest = send(with_crds, "EgressAddress", name, {"spec": CLAIM})
    assert answer.code == 201, answer.body
    assert answer.body["spec"]["origin"] == "automatic"
    manifests.egress_address(manifest, strict=True)


@pytest.mark.parametrize(
    "name",
    [
        "shop",
        "192.168.1",
        "192.168.1.256",
        "192.168.001.1",
        "127.0.0.1",
        "224.0.0.1",
        "fd00-1",
        "fd00-0000-0000-0000-0000-0000-0000-000g",
        "ff02-0000-0000-0000-0000-0000-0000-0001",
        "0000-0000-0000-0000-0000-0000-0000-0001",
        "0000-0000-0000-0000-0000-ffff-c0a8-0101",
    ],
)
def test_names_of_claims_that_are_refused(with_crds: Installed, name: str) -> None:
    answer, manifest = send(with_crds, "EgressAddress", name, {"spec": CLAIM})
    assert answer.code == 422, answer.body
    assert f'metadata.name "{name}" is no unicast address' in answer.body["message"]
    with pytest.raises(ManifestError, match=re.escape("$.metadata.name")):
        manifests.egress_address(manifest, strict=True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pool": "other"}, "spec.pool"),
        ({"namespace": {"name": "other"}}, "spec.namespace.name"),
        ({"origin": "manual"}, "spec.origin"),
    ],
)
def test_what_a_claim_says_cannot_be_changed(with_crds: Installed, change: Json, field: str) -> None:
    admin = with_crds.as_("admin")
    path = "/apis/egress.hawse.dev/v1alpha1/egressaddresses"
    body = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "spec": CLAIM}
    admin.post(path, body | {"metadata": {"name": "192.168.1.102"}})
    answer = admin.patch(f"{path}/192.168.1.102", {"spec": change})
    assert answer.code == 422, answer.body
    assert causes(answer).keys() == {field}
    assert "cannot be changed" in causes(answer)[field]


def test_a_claim_is_taken_back_by_the_same_name_with_another_uid(with_crds: Installed) -> None:
    admin = with_crds.as_("admin")
    path = "/apis/egress.hawse.dev/v1alpha1/egressaddresses"
    body = {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressAddress", "spec": CLAIM}
    admin.post(path, body | {"metadata": {"name": "192.168.1.103"}})
    answer = admin.patch(f"{path}/192.168.1.103", {"spec": {"namespace": {"name": "shop", "uid": "u-2"}}})
    assert (answer.code, answer.body["spec"]["namespace"]["uid"]) == (200, "u-2")
    status = {"status": {"phase": "Pending", "quarantinedUntil": None, "conditions": []}}
    assert admin.patch(f"{path}/192.168.1.103/status", status).code == 200


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("HostSubnet", GOOD_NODE | {"egressIPs": ["192.168.1.102", "fd00::1"], "egressCIDRs": ["192.168.1.5/24"]}),
        ("HostSubnet", GOOD_NODE | {"subnet": "", "egressIPs": None, "egressCIDRs": None}),
        ("NetNamespace", GOOD_TENANT | {"egressIPs": ["192.168.1.102"]}),
        ("NetNamespace", {"netname": "x", "netid": 0}),
        ("NetNamespace", {"netname": "x", "netid": 0xFFFFFF, "egressIPs": []}),
    ],
)
def test_network_objects_that_are_accepted(with_crds: Installed, kind: str, body: Json) -> None:
    answer, manifest = send(with_crds, kind, "x", body)
    assert answer.code == 201, answer.body
    READERS[kind](manifest, strict=True)


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        ("HostSubnet", GOOD_NODE | {"host": "y"}, "host"),
        ("HostSubnet", GOOD_NODE | {"hostIP": "192.168.1"}, "hostIP"),
        ("HostSubnet", GOOD_NODE | {"hostIP": "127.0.0.1"}, "hostIP"),
        ("HostSubnet", GOOD_NODE | {"subnet": "10.128.0.0/99"}, "subnet"),
        ("HostSubnet", GOOD_NODE | {"egressIPs": ["192.168.1.102", "192.168.1.300"]}, "egressIPs[1]"),
        ("HostSubnet", GOOD_NODE | {"egressIPs": ["192.168.1.0/24"]}, "egressIPs[0]"),
        ("HostSubnet", GOOD_NODE | {"egressCIDRs": ["192.168.1.0"]}, "egressCIDRs[0]"),
        ("NetNamespace", GOOD_TENANT | {"netname": "y"}, "netname"),
        ("NetNamespace", GOOD_TENANT | {"netid": -1}, "netid"),
        ("NetNamespace", GOOD_TENANT | {"netid": 0x1000000}, "netid"),
        ("NetNamespace", GOOD_TENANT | {"egressIPs": ["shop"]}, "egressIPs[0]"),
    ],
)
def test_network_objects_that_are_refused(with_crds: Installed, kind: str, body: Json, field: str) -> None:
    answer, manifest = send(with_crds, kind, "x", body)
    assert answer.code == 422, answer.body
    assert causes(answer).keys() == {field}
    with pytest.raises(ManifestError, match=re.escape(f"$.{field}: ")):
        READERS[kind](manifest, strict=True)


def fields(schema: Json, path: str) -> list[str]:
    """The dotted paths of all fields below `path`, those of list items too."""
    schema = schema.get("items", schema)
    found = []
    for name, below in schema.get("properties", {}).items():
        if name not in {"apiVersion", "kind", "metadata"}:
            found += [f"{path}.{name}", *fields(below, f"{path}.{name}")]
    return found


@pytest.mark.parametrize("folder", ["crds", "components/network-objects"])
def test_every_field_is_explained(with_crds: Installed, folder: str) -> None:
    for path in (DEPLOY / folder).glob("*s.yaml"):
        crd = yaml.safe_load(path.read_text())
        (version,) = crd["spec"]["versions"]
        for field in fields(version["schema"]["openAPIV3Schema"], crd["spec"]["names"]["plural"]):
            done = with_crds.kubectl("explain", field, f"--api-version={crd['spec']['group']}/{version['name']}")
            assert done.returncode == 0, done.stderr
            assert "<empty>" not in done.stdout.split("FIELDS:")[0], done.stdout


def test_short_names_and_category(with_crds: Installed) -> None:
    for name in ("epool", "ea", "hawse"):
        done = with_crds.kubectl("get", name)
        assert done.returncode == 0, done.stderr
