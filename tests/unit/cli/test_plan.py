"""`hawse plan`: the worked example, what input it takes, what it refuses, and that it always says the same."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from egress.cli import main

EXAMPLE = """\
apiVersion: network.openshift.io/v1
kind: NetNamespace
metadata: {name: egress-test}
netname: egress-test
netid: 1086658
egressIPs: [192.168.1.102]
---
apiVersion: network.openshift.io/v1
kind: HostSubnet
metadata: {name: node1}
host: node1
hostIP: 192.168.1.17
subnet: 10.129.0.0/23
---
apiVersion: network.openshift.io/v1
kind: HostSubnet
metadata: {name: node2}
host: node2
hostIP: 192.168.1.18
subnet: 10.130.0.0/23
egressIPs: [192.168.1.102]
"""

GOLDEN = {
    "namespaces": {
        "egress-test": {
            "netid": 1086658,
            "state": "via",
            "via": [{"address": "192.168.1.102", "node": "node2"}],
            "reasons": [],
        }
    },
    "nodes": {
        "node1": {
            "addresses": [],
            "flows": [
                "table=100,priority=100,ip,reg0=0x1094c2 "
                "actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:192.168.1.18->tun_dst,output:1"
            ],
            "nat": [],
        },
        "node2": {
            "addresses": ["192.168.1.102"],
            "flows": [
                "table=100,priority=100,ip,reg0=0x1094c2 "
                "actions=set_field:<tun0 MAC>->eth_dst,set_field:0xc0a80166->pkt_mark,goto_table:101"
            ],
            "nat": [
                "-A OPENSHIFT-MASQUERADE -j HAWSE-EGRESS",
                "-A HAWSE-EGRESS -m mark --mark 0x0 -j RETURN",
                "-A HAWSE-EGRESS -m mark --mark 0x4000/0x4000 -j RETURN",
                "-A HAWSE-EGRESS -s 10.128.0.0/14 -d 10.128.0.0/14 -j HAWSE-CLUSTER",
                "-A HAWSE-EGRESS -j HAWSE-SNAT",
                "-A HAWSE-CLUSTER -m mark --mark 0x20/0x38 -g HAWSE-CLUSTER-100",
                "-A HAWSE-CLUSTER-100 -m mark --mark 0x26/0x3f -g HAWSE-CLUSTER-100110",
                "-A HAWSE-CLUSTER-100110 -m mark --mark 0xc0a80166 -j MASQUERADE",
                "-A HAWSE-SNAT -m mark --mark 0x40/0xc0 -g HAWSE-SNAT-01",
                "-A HAWSE-SNAT-01 -m mark --mark 0x60/0xf0 -g HAWSE-SNAT-0110",
                "-A HAWSE-SNAT-0110 -m mark --mark 0x64/0xfc -g HAWSE-SNAT-011001",
                "-A HAWSE-SNAT-011001 -m mark --mark 0x66/0xff -g HAWSE-SNAT-01100110",
                "-A HAWSE-SNAT-01100110 -s 10.128.0.0/14 -m mark --mark 0xc0a80166 -j SNAT --to-source 192.168.1.102",
            ],
        },
    },
    "conflicts": [],
}


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "example.yaml"
    path.write_text(EXAMPLE)
    return path


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code = main(["plan", "-o", "json", *map(str, arguments)])
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    result: dict[str, Any] = json.loads(output.out)
    return result


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which `hawse plan` refuses its input."""
    code = main(["plan", *map(str, arguments)])
    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.endswith("\n")
    return output.err.rstrip("\n")


# The output


def test_the_worked_example_as_json(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, "-f", example) == GOLDEN


def test_the_worked_example_as_text(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-f", str(example)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "NAMESPACE    NETID    STATE  VIA",
        "egress-test  1086658  via    192.168.1.102 on node2",
        "",
        "No conflicts.",
    ]
    assert "Node node2: 192.168.1.102" in lines
    for node in GOLDEN["nodes"].values():  # type: ignore[attr-defined]
        assert {f"  flow   {flow}" for flow in node["flows"]} | {f"  nat    {rule}" for rule in node["nat"]} <= {*lines}


def test_an_offline_node_carries_nothing(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = planned(capsys, "-f", example, "--offline", "node2")
    assert result["namespaces"]["egress-test"] == {
        "netid": 1086658,
        "state": "drop",
        "via": [],
        "reasons": ["node node2, which hosts 192.168.1.102, is offline"],
    }
    for node in result["nodes"].values():
        assert node == {
            "addresses": [],
            "flows": ["table=100,priority=100,ip,reg0=0x1094c2 actions=drop"],
            "nat": [],
        }


def test_conflicts_are_printed_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(EXAMPLE.replace("subnet: 10.129.0.0/23", "egressIPs: [192.168.1.102]"))
    conflict = "address 192.168.1.102 is on nodes node1 and node2"
    assert planned(capsys, "-f", path)["conflicts"] == [conflict]
    assert main(["plan", "-f", str(path)]) == 0
    text = capsys.readouterr().out
    assert f"Conflicts:\n  {conflict}\n" in text
    assert f"  because {conflict}\n" in text


def test_the_layout_is_an_option(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cluster-network", "10.1.0.0/16", "--cluster-network", "10.2.0.0/16", "--egress-table", "101"]
    node = planned(capsys, "-f", example, *options, "--tun-mac", "0A:58:0a:80:00:01")["nodes"]["node2"]
    assert node["flows"] == [
        "table=101,priority=100,ip,reg0=0x1094c2 "
        "actions=set_field:0a:58:0a:80:00:01->eth_dst,set_field:0xc0a80166->pkt_mark,goto_table:102"
    ]
    assert sum("-j SNAT" in rule for rule in node["nat"]) == 2
    assert not any("10.128" in rule for rule in node["nat"])


def test_a_pair_is_planned_for_both_ip_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(EXAMPLE.replace("egressIPs: [192.168.1.102]", 'egressIPs: [192.168.1.102, "2001:db8::102"]'))
    options = ["--cluster-network", "10.128.0.0/14", "--cluster-network", "fd01::/48"]
    nodes = planned(capsys, "-f", path, *options)["nodes"]
    assert nodes["node2"]["addresses"] == ["192.168.1.102", "2001:db8::102"]
    assert [flow.split()[0] for flow in nodes["node2"]["flows"]] == [
        "table=100,priority=100,ip,reg0=0x1094c2",
        "table=100,priority=100,ipv6,reg0=0x1094c2",
    ]
    snat = "-s fd01::/48 -m mark --mark 0x20010cba -j SNAT --to-source 2001:db8::102"
    assert f"-A HAWSE-SNAT-10111010 {snat}" in nodes["node2"]["nat6"]
    assert nodes["node2"]["nat"] == GOLDEN["nodes"]["node2"]["nat"]  # type: ignore[index]
    assert "nat6" not in nodes["node1"]
    assert main(["plan", "-f", str(path), *options]) == 0
    assert f"  nat6   -A HAWSE-SNAT-10111010 {snat}" in capsys.readouterr().out


def test_text_shows_the_group_that_spreads_traffic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        EXAMPLE.replace("netid: 1086658\negressIPs: [192.168.1.102]", "netid: 5\negressIPs: [10.0.0.1, 10.0.0.2]")
        .replace("subnet: 10.129.0.0/23", "egressIPs: [10.0.0.1]")
        .replace("egressIPs: [192.168.1.102]", "egressIPs: [10.0.0.2]")
        + "---\n{kind: HostSubnet, metadata: {name: node3}, hostIP: 192.168.1.19}\n"
    )
    assert main(["plan", "-f", str(path)]) == 0
    assert "  group  group_id=1207959557,type=select," in capsys.readouterr().out


# The input


def test_the_order_of_documents_and_files_means_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = EXAMPLE.split("---\n")
    (tmp_path / "a.yaml").write_text("---\n".join(reversed(parts)))
    main(["plan", "-o", "json", "-f", str(tmp_path / "a.yaml")])
    backwards = capsys.readouterr().out
    paths = []
    for number, part in enumerate(parts):
        paths.append(tmp_path / f"part{number}.yml")
        paths[-1].write_text(part)
    outputs = set()
    for order in (paths, paths[::-1]):
        assert main(["plan", "-o", "json", *(word for path in order for word in ("-f", str(path)))]) == 0
        outputs.add(capsys.readouterr().out)
    assert outputs == {backwards}
    assert json.loads(backwards) == GOLDEN


def test_one_option_takes_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, rest = EXAMPLE.split("---\n", 1)
    (tmp_path / "a.yaml").write_text(first)
    (tmp_path / "b.yaml").write_text(rest)
    assert planned(capsys, "-f", tmp_path / "a.yaml", tmp_path / "b.yaml") == GOLDEN


def test_a_directory_is_walked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = list(yaml.safe_load_all(EXAMPLE))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(documents[0]))
    (tmp_path / "deep" / "b.yml").write_text(yaml.safe_dump(documents[1]))
    (tmp_path / "deep" / "er" / "c.json").write_text(json.dumps(documents[2]))
    (tmp_path / "README.md").write_text("not: [a manifest")
    assert planned(capsys, "-f", tmp_path) == GOLDEN


@pytest.mark.parametrize("dump", [json.dumps, yaml.safe_dump], ids=["json", "yaml"])
def test_a_list_is_unpacked(dump: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ANN401
    path = tmp_path / "list.txt"
    path.write_text(dump({"apiVersion": "v1", "kind": "List", "items": list(yaml.safe_load_all(EXAMPLE))}))
    assert planned(capsys, "-f", path) == GOLDEN


def test_a_typed_list_of_the_api_server_is_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = list(yaml.safe_load_all(EXAMPLE))
    for document in documents:
        del document["apiVersion"]
    net_namespaces = {"kind": "NetNamespaceList", "apiVersion": "network.openshift.io/v1", "items": documents[:1]}
    host_subnets = {"kind": "HostSubnetList", "apiVersion": "network.openshift.io/v1", "items": documents[1:]}
    for document in documents:
        del document["kind"]
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump_all([net_namespaces, host_subnets]))
    assert planned(capsys, "-f", path) == GOLDEN


def test_stdin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(EXAMPLE.encode())))
    assert planned(capsys, "-f", "-") == GOLDEN


def test_stdin_is_named_in_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"kind: [")))
    assert refused(capsys, "-f", "-").startswith("hawse: stdin: not YAML: ")


OTHERS = """\
{apiVersion: v1, kind: Node, metadata: {name: node1, creationTimestamp: 2026-01-01T00:00:00Z}}
---
{apiVersion: longhorn.io/v1beta2, kind: Node, metadata: {name: node1}, spec: {unschedulable: 5}}
---
{apiVersion: egress.hawse.dev/v1alpha1, kind: EgressPool, metadata: {name: prod}, spec: {cidrs: [192.168.1.0/24]}}
---
# nothing here
---
apiVersion: egress.hawse.dev/v1alpha1
kind: EgressAddress
metadata: {name: 192.168.1.102}
spec: {pool: prod, namespace: {name: egress-test, uid: u}}
status: {quarantinedUntil: 2026-01-01T00:00:00Z}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}}
"""


def test_other_objects_change_nothing_and_are_named_with_v(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "others.yaml"
    path.write_text(OTHERS)
    assert planned(capsys, "-f", example, "-f", path) == GOLDEN
    assert main(["plan", "-v", "-f", str(path)]) == 0
    assert capsys.readouterr().err == f"{path}: Node ignored\n{path}: Deployment ignored\n"


def test_no_object_of_ours_is_an_empty_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("")
    assert planned(capsys, "-f", path) == {"namespaces": {}, "nodes": {}, "conflicts": []}
    assert main(["plan", "-f", str(path)]) == 0
    assert "nothing to plan" in capsys.readouterr().out


# What is refused: exit code 2, and one line that names the file, the object and the field


HOST = "kind: HostSubnet\nmetadata: {name: node2.ocp.io}\nhostIP: 192.168.1.18\n"
NETNS = "kind: NetNamespace\nmetadata: {name: app}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HOST + "egressIPs: [x]\n", "HostSubnet node2.ocp.io: $.egressIPs[0]: 'x' is not an IP address"),
        (HOST + "egressIPs: 10.0.0.1\n", "HostSubnet node2.ocp.io: $.egressIPs: expected array | null, got str"),
        (
            HOST + "egressCIDRs: [10.0.0.0/77]\n",
            "HostSubnet node2.ocp.io: $.egressCIDRs[0]: '10.0.0.0/77' is not a CIDR",
        ),
        (
            HOST.replace("192.168.1.18", "192.168.1.300"),
            "HostSubnet node2.ocp.io: $.hostIP: '192.168.1.300' is not an IP",
        ),
        ("kind: HostSubnet\nhostIP: 10.0.0.1\n", "HostSubnet (unnamed): $.metadata: is missing"),
        (NETNS, "NetNamespace app: $.netid: is missing"),
        (NETNS + "netid: many\n", "NetNamespace app: $.netid: expected int, got str"),
        (NETNS + "netid: 16777216\n", "NetNamespace app: $.netid: 16777216 is not a NetID"),
        (NETNS + "netid: 5\nnetid: 6\n", "not YAML: line 4, column 1: key 'netid' twice"),
        (HOST + "---\n" + HOST, "HostSubnet node2.ocp.io: $.metadata.name: twice in this file"),
        ("kind: Node\nmetadata: {name: n}\nspec: {unschedulable: 3}\n", "Node n: $.spec.unschedulable: expected bool"),
        (
            "kind: EgressPool\nmetadata: {name: p}\nspec: {cidrs: [10.0.0.9-10.0.0.1]}\n",
            "EgressPool p: $.spec.cidrs[0]: '10.0.0.9-10.0.0.1' ends before it begins",
        ),
        (
            "kind: EgressPool\nmetadata: {name: p}\nspec: {cidrs: [10.0.0.1], quarantine: ten}\n",
            "EgressPool p: $.spec.quarantine: 'ten' is not a duration",
        ),
        (
            "kind: EgressAddress\nmetadata: {name: web}\nspec: {pool: p, namespace: {name: n}}\n",
            "EgressAddress web: $.metadata.name: 'web' is not an IP address",
        ),
        ("apiVersion: network.openshit.io/v1\n" + NETNS, "NetNamespace app: $.apiVersion: group 'network.openshit.io'"),
        ("metadata: {name: app}\n", "document 1 (app): $.kind: missing"),
        ("kind: 5\n", "document 1: $.kind: missing or not a string"),
        ("kind: [5]\n", "document 1: $.kind: missing or not a string"),
        ("apiVersion: 1\nkind: Node\n", "document 1: $.apiVersion: missing or not a string"),
        ("kind: List\nitems: 5\n", "document 1: $.items: not a list"),
        ("kind: List\nitems: [5]\n", "document 1, item 0 is not an object"),
        ("--- 5\n", "document 1 is not an object"),
        ("a: [\n", "not YAML: line 2, column 1: "),
        ("\tx", "not YAML: line 1, column 1: "),
        ("a: \x07", "not YAML: "),
        ("a: !!python/object:os.system {}\n", "not YAML: line 1, column 4: "),
        ("a: !!int x\n", "not YAML: "),
        ("a: *b\n", "not YAML: line 1, column 4: "),
        ('{"kind": ', "not YAML: line 2, column 1: "),
        ("[" * 100_000, ""),
    ],
)
def test_a_malformed_manifest_is_refused(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert refused(capsys, "-f", path).startswith(f"hawse: {path}: {expected}")


def test_malformed_json_is_named_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"kind": ')
    assert refused(capsys, "-f", path).startswith(f"hawse: {path}: not JSON: ")


def test_the_same_object_in_two_files_names_both(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "more.yaml"
    path.write_text("kind: HostSubnet\nmetadata: {name: node1}\nhostIP: 10.0.0.1\n")
    line = refused(capsys, "-f", example, "-f", path)
    assert line.startswith(f"hawse: {path}: HostSubnet node1: $.metadata.name: also in {example}")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"kind: \xff\xfe")
    assert "not UTF-8 text" in refused(capsys, "-f", path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in refused(capsys, "-f", tmp_path / "none.yaml")


def test_a_directory_without_manifests_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no *.yaml" in refused(capsys, "-f", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--offline", "node9"], "no node 'node9' in the input (there are: node1, node2)"),
        (["--cluster-network", "10.0.0.1/8"], "10.0.0.1/8 has host bits set"),
        (["--cluster-network", "fd00::/1000"], "give a CIDR such as 10.128.0.0/14 or fd01::/48"),
        (["--egress-table", "254"], "254 is not in the range"),
        (["--tun-mac", "x"], "'x' is not a MAC address"),
        (["-o", "xml"], "'xml' is not one of"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_option_is_refused(
    arguments: list[str], expected: str, example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "-f", example, *arguments)
    assert expected in line
    assert line.startswith("hawse plan: ")


def test_without_a_file_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "-f" in refused(capsys)


# The command itself


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hawse ")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "plan" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plann"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
