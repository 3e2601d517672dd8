"""The small languages that the server reads: JSONPath, selectors, ages, token files and protobuf."""

import datetime
from pathlib import Path

import pytest

from lab.apiserver import jsonpath, protobuf
from lab.apiserver.auth import BadTokenFile, Tokens
from lab.apiserver.errors import ApiError
from lab.apiserver.resources import BUILT_IN, version_order
from lab.apiserver.selectors import by_fields, by_label_selector, by_labels
from lab.apiserver.table import age

NAMESPACE = next(resource for resource in BUILT_IN if resource.kind == "Namespace")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".a.b", [1]),
        ("a.b", [1]),
        (".l[0]", ["x"]),
        (".l[-1]", ["y"]),
        (".l[9]", []),
        (".l[*]", ["x", "y"]),
        (".m['k.e/y']", ["v"]),
        (r".m.k\.e/y", ["v"]),
        ('.c[?(@.type=="Ready")].status', ["True"]),
        (".c[?(@.ok==true)].type", ["Ready"]),
        (".missing.x", []),
    ],
)
def test_json_paths(path: str, expected: object) -> None:
    ready = {"type": "Ready", "status": "True", "ok": True}
    document = {"a": {"b": 1}, "l": ["x", "y"], "m": {"k.e/y": "v"}, "c": [{"type": "Other"}, ready]}
    assert jsonpath.find(document, path) == expected


def test_a_json_path_that_is_not_known_says_where() -> None:
    with pytest.raises(jsonpath.BadPath, match=r"\.\.b"):
        jsonpath.find({}, ".a..b")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5, "5s"),
        (119, "119s"),
        (125, "2m5s"),
        (1200, "20m"),
        (3 * 3600 + 60, "3h1m"),
        (30 * 3600, "30h"),
        (3 * 86400, "3d"),
        (400 * 86400, "400d"),
        (800 * 86400, "2y70d"),
    ],
)
def test_ages_as_kubectl_shortens_them(seconds: int, text: str) -> None:
    now = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
    then = now - datetime.timedelta(seconds=seconds)
    assert age(then.strftime("%Y-%m-%dT%H:%M:%SZ"), now) == text


def test_label_selectors_as_objects() -> None:
    selector = {
        "matchLabels": {"a": "1"},
        "matchExpressions": [
            {"key": "b", "operator": "Exists"},
            {"key": "c", "operator": "DoesNotExist"},
            {"key": "d", "operator": "NotIn", "values": ["x"]},
        ],
    }
    matches = by_label_selector(selector)
    assert matches({"metadata": {"labels": {"a": "1", "b": ""}}})
    assert not matches({"metadata": {"labels": {"a": "1", "b": "", "d": "x"}}})
    assert not matches({"metadata": {}})
    assert by_label_selector({})({})


@pytest.mark.parametrize("text", ["a=(b", "a in b", "!a=b", "a b", "=x", "-a=b"])
def test_label_selectors_that_do_not_parse(text: str) -> None:
    with pytest.raises(ApiError) as refused:
        by_labels(text)
    assert refused.value.code == 400


def test_field_selectors() -> None:
    obj = {"metadata": {"name": "n"}, "status": {"phase": "Active"}}
    assert by_fields(NAMESPACE, "metadata.name=n,status.phase!=Terminating")(obj)
    assert not by_fields(NAMESPACE, "metadata.name!=n")(obj)
    with pytest.raises(ApiError, match=r"field label not supported: spec\.x"):
        by_fields(NAMESPACE, "spec.x=1")


def test_token_files_read_as_kube_apiserver_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "tokens.csv"
    file.write_text('abc,jane,7,"dev,ops"\n\ndef,joe,8\n')
    tokens = Tokens.read(file)
    jane = tokens.user_of("abc")
    assert jane is not None
    assert jane.info() == {"username": "jane", "uid": "7", "groups": ["dev", "ops", "system:authenticated"]}
    assert tokens.user_of("") is None
    file.write_text("abc,jane\n")
    with pytest.raises(BadTokenFile, match="line 1"):
        Tokens.read(file)


def test_versions_in_kubernetes_order() -> None:
    given = ["v1alpha1", "foo", "v2", "v1beta2", "v1", "v1beta10", "v10"]
    assert sorted(given, key=version_order) == ["v10", "v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "foo"]


# Recorded from `kubectl create namespace demo`, kubectl 1.32.4.
CREATE_NAMESPACE = bytes.fromhex(
    "6b3873000a0f0a02763112094e616d657370616365121c0a140a0464656d6f12001a0022002a0032003800420012001a020a001a002200"
)


def test_a_protobuf_namespace() -> None:
    body = protobuf.decode(CREATE_NAMESPACE)
    assert (body["apiVersion"], body["kind"], body["metadata"]) == ("v1", "Namespace", {"name": "demo"})


@pytest.mark.parametrize("cut", range(5, len(CREATE_NAMESPACE) - 4))
def test_a_protobuf_body_that_is_cut_short_is_an_error_of_its_own(cut: int) -> None:
    with pytest.raises(protobuf.BadMessage):
        protobuf.decode(CREATE_NAMESPACE[:cut])


def test_a_protobuf_kind_that_is_not_known_says_what_to_do() -> None:
    with pytest.raises(protobuf.BadMessage, match=r"Pod v1 is not read as protobuf .* send it as JSON"):
        protobuf.decode(b"k8s\x00\n\x09\n\x02v1\x12\x03Pod\x12\x00")
