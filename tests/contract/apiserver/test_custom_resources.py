"""Resources that CRDs add: schemas, status, generation, columns, and how they go."""

from collections.abc import Callable

import pytest

from lab.apiserver.client import Client
from lab.apiserver.objects import Json
from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster

STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
SPEC = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 9},
        "mode": {"type": "string", "enum": ["deny", "admit"], "default": "deny"},
        "code": {"type": "string", "pattern": "^[a-z]+$"},
        "tags": {"type": "array", "maxItems": 2, "items": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}
STATUS = {"type": "object", "properties": {"phase": {"type": "string"}}}


def widget(path: str, name: str, **fields: object) -> Json:
    """An object for `path`, the collection's: unlike the built-in kinds it must name its kind and version."""
    api_version = "/".join(path.split("/")[2:4])
    return {"apiVersion": api_version, "kind": "Widget", "metadata": {"name": name}, **fields}


def test_defaults_are_applied_and_unknown_fields_pruned(cluster: Client, crd: Callable[..., str], name: str) -> None:
    path = crd({"spec": SPEC})
    made = cluster.post(path, widget(path, name, spec={"size": 1, "odd": 1, "free": {"a": 1}}, extra=1))
    assert made.body["spec"] == {"size": 1, "mode": "deny", "free": {"a": 1}}
    assert "extra" not in made.body
    assert any(r"unknown field \"spec.odd\"" in warning for warning in made.warnings)
    strict = cluster.post(path, widget(path, f"{name}-s", spec={"size": 1, "odd": 1}), fieldValidation="Strict")
    assert (strict.code, strict.body["reason"]) == (400, "BadRequest")
    assert 'strict decoding error: unknown field "spec.odd"' in strict.body["message"]


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({}, "spec.size", "Required value"),
        ({"size": "x"}, "spec.size", 'must be of type integer: "string"'),
        ({"size": 0}, "spec.size", "should be greater than or equal to 1"),
        ({"size": 10}, "spec.size", "should be less than or equal to 9"),
        ({"size": 1, "mode": "x"}, "spec.mode", 'Unsupported value: "x": supported values: "deny", "admit"'),
        ({"size": 1, "code": "1"}, "spec.code", "should match '^[a-z]+$'"),
        ({"size": 1, "tags": ["a", "b", "c"]}, "spec.tags", "must have at most 2 items"),
        (
            {"size": 1, "tags": [1]},
            "spec.tags[0]",
            'Invalid value: "integer": spec.tags[0] in body must be of type string',
        ),
        ({"size": None}, "spec.size", "Required value"),
    ],
)
def test_a_schema_is_kept(
    cluster: Client, crd: Callable[..., str], name: str, spec: Json, field: str, words: str
) -> None:
    path = crd({"spec": SPEC})
    refused = cluster.post(path, widget(path, name, spec=spec))
    assert (refused.code, refused.body["reason"]) == (422, "Invalid")
    assert [cause["field"] for cause in refused.body["details"]["causes"]] == [field]
    assert words in refused.body["message"]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"kind": None}, 400, "Object 'Kind' is missing"),
        ({"kind": "Other"}, 422, "must be Widget"),
        ({"apiVersion": None}, 400, "does not match the expected API version"),
        ({"apiVersion": "other.dev/v1"}, 400, "the API version in the data (other.dev/v1) does not match"),
    ],
)
def test_an_object_names_its_kind_and_version(
    cluster: Client, crd: Callable[..., str], name: str, changes: Json, code: int, words: str
) -> None:
    path = crd({"spec": SPEC})
    body = {key: value for key, value in (widget(path, name) | changes).items() if value is not None}
    refused = cluster.post(path, body)
    assert refused.code == code
    assert words in refused.body["message"]


def test_status_and_the_rest_are_written_apart(cluster: Client, crd: Callable[..., str], name: str) -> None:
    path = crd({"spec": SPEC, "status": STATUS}, status=True)
    body = widget(path, name, spec={"size": 1}, status={"phase": "Mine"})
    created = cluster.post(path, body).body
    assert "status" not in created
    assert created["metadata"]["generation"] == 1
    changed = created | {"spec": {"size": 2}, "status": {"phase": "Ready"}}
    changed["metadata"] = created["metadata"] | {"labels": {"a": "b"}}
    told = cluster.put(f"{path}/{name}/status", changed).body
    assert (told["status"], told["spec"]["size"]) == ({"phase": "Ready"}, 1)
    assert "labels" not in told["metadata"]
    assert told["metadata"]["generation"] == 1
    main = cluster.patch(f"{path}/{name}", {"spec": {"size": 3}, "status": {"phase": "Lost"}}).body
    assert (main["status"], main["spec"]["size"], main["metadata"]["generation"]) == ({"phase": "Ready"}, 3, 2)
    labelled = cluster.patch(f"{path}/{name}", {"metadata": {"labels": {"a": "b"}}}).body
    assert labelled["metadata"]["generation"] == 2


def test_without_the_subresource_there_is_no_status_path(cluster: Client, crd: Callable[..., str], name: str) -> None:
    path = crd({"spec": SPEC, "status": STATUS})
    body = widget(path, name, spec={"size": 1}, status={"phase": "Mine"})
    assert cluster.post(path, body).body["status"] == {"phase": "Mine"}
    assert cluster.get(f"{path}/{name}/status").code == 404


def test_strategic_patches_are_refused(cluster: Client, crd: Callable[..., str], name: str) -> None:
    path = crd({"spec": SPEC})
    cluster.post(path, widget(path, name, spec={"size": 1}))
    refused = cluster.patch(f"{path}/{name}", {"spec": {"size": 2}}, STRATEGIC)
    assert (refused.code, refused.body["reason"]) == (415, "UnsupportedMediaType")


def test_server_side_apply_is_refused_with_a_reason(
    embedded_cluster: EmbeddedCluster, client_of: Callable[[Cluster], Client], name: str
) -> None:
    refused = client_of(embedded_cluster).patch(f"/api/v1/namespaces/{name}", {}, APPLY, fieldManager="t")
    assert refused.code == 415
    assert "no server-side apply" in refused.body["message"]


def test_an_update_must_name_a_resource_version(cluster: Client, crd: Callable[..., str], name: str) -> None:
    path = crd({"spec": SPEC})
    cluster.post(path, widget(path, name, spec={"size": 1}))
    kind = cluster.get(f"{path}/{name}").body
    body = {key: kind[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": name}}
    refused = cluster.put(f"{path}/{name}", body)
    assert (refused.code, refused.body["reason"]) == (422, "Invalid")
    assert "must be specified for an update" in refused.body["message"]


def test_printer_columns(cluster: Client, crd: Callable[..., str], name: str) -> None:
    columns = [
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Tags", "type": "string", "jsonPath": ".spec.tags", "priority": 1},
        {"name": "Ready", "type": "string", "jsonPath": '.spec.free.conditions[?(@.type=="Ready")].status'},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]
    path = crd({"spec": SPEC}, columns=columns)
    free = {"conditions": [{"type": "Other", "status": "No"}, {"type": "Ready", "status": "True"}]}
    cluster.post(path, widget(path, name, spec={"size": 4, "tags": ["a", "b"], "free": free}))
    table = cluster.get(path, headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}).body
    assert [(each["name"], each["priority"]) for each in table["columnDefinitions"]] == [
        ("Name", 0), ("Size", 0), ("Tags", 1), ("Ready", 0), ("Age", 0),
    ]  # fmt: skip
    cells = table["rows"][0]["cells"]
    assert cells[:4] == [name, 4, '["a","b"]', "True"]
    assert cells[4].endswith("s")


def test_a_crd_is_established_and_discovered(
    cluster: Client, crd: Callable[..., str], eventually: Callable[..., None]
) -> None:
    path = crd({"spec": SPEC}, status=True)
    group = path.split("/")[2]
    where = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.{group}"
    eventually(lambda: cluster.get(where).body["status"]["acceptedNames"]["kind"] == "Widget")
    conditions = {each["type"]: each["status"] for each in cluster.get(where).body["status"]["conditions"]}
    assert (conditions["Established"], conditions["NamesAccepted"]) == ("True", "True")
    found = {entry["name"]: entry for entry in cluster.get(f"/apis/{group}/v1").body["resources"]}
    assert set(found) == {"widgets", "widgets/status"}
    assert (found["widgets"]["shortNames"], found["widgets"]["singularName"]) == (["wd"], "widget")


def test_deleting_a_crd_deletes_its_objects_but_waits_for_their_finalizers(
    cluster: Client, crd: Callable[..., str], name: str, eventually: Callable[..., None]
) -> None:
    path = crd({"spec": SPEC})
    group = path.split("/")[2]
    where = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.{group}"
    held = widget(path, f"{name}-b", spec={"size": 1})
    held["metadata"]["finalizers"] = ["x.dev/a"]
    assert [cluster.post(path, each).code for each in (widget(path, f"{name}-a", spec={"size": 1}), held)] == [201] * 2
    assert cluster.delete(where).code == 200
    eventually(lambda: cluster.get(f"{path}/{name}-a").code == 404)
    assert cluster.get(where).body["metadata"]["deletionTimestamp"]
    eventually(lambda: "deletionTimestamp" in cluster.get(f"{path}/{name}-b").body["metadata"])
    conditions = {each["type"] for each in cluster.get(where).body["status"]["conditions"]}
    assert "Terminating" in conditions
    late = cluster.post(path, widget(path, f"{name}-c", spec={"size": 1}))
    assert (late.code, late.body["reason"]) == (403, "Forbidden")
    assert "create not allowed while custom resource definition is terminating" in late.body["message"]
    cluster.patch(f"{path}/{name}-b", {"metadata": {"finalizers": None}})
    eventually(lambda: cluster.get(where).code == 404)
    eventually(lambda: cluster.get(path).code == 404)


def test_a_crd_without_a_schema_is_refused(cluster: Client, name: str) -> None:
    group = f"{name}.example.dev"
    body = {
        "metadata": {"name": f"widgets.{group}"},
        "spec": {
            "group": group,
            "scope": "Cluster",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": True, "storage": True}],
        },
    }
    refused = cluster.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body)
    assert refused.code == 422
    assert "schema" in refused.body["message"]
