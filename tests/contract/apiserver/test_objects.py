"""Create, read, update, patch and delete, and the locks and refusals around them."""

import pytest

from lab.apiserver.client import Client

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


def test_a_new_object_gets_what_only_the_server_sets(cluster: Client, name: str) -> None:
    created = cluster.post(CONFIG_MAPS, {"metadata": {"name": name}, "data": {"a": "b"}})
    meta = created.body["metadata"]
    assert created.code == 201
    assert meta["uid"]
    assert meta["creationTimestamp"].endswith("Z")
    assert int(meta["resourceVersion"]) > 0
    assert (created.body["kind"], created.body["apiVersion"]) == ("ConfigMap", "v1")
    read = cluster.get(f"{CONFIG_MAPS}/{name}")
    assert read.body["metadata"]["uid"] == meta["uid"]
    assert read.body["data"] == {"a": "b"}


def test_creating_what_exists_is_a_409_already_exists(cluster: Client, name: str) -> None:
    cluster.namespace(name)
    again = cluster.namespace(name)
    assert (again.code, again.body["reason"], again.body["kind"]) == (409, "AlreadyExists", "Status")
    assert again.body["message"] == f'namespaces "{name}" already exists'
    assert again.body["details"] == {"name": name, "kind": "namespaces"}


def test_what_is_missing_is_a_404(cluster: Client, name: str) -> None:
    missing = cluster.get(f"/api/v1/namespaces/{name}")
    assert (missing.code, missing.body["reason"]) == (404, "NotFound")
    assert missing.body["message"] == f'namespaces "{name}" not found'
    assert cluster.post(f"/api/v1/namespaces/{name}/configmaps", {"metadata": {"name": "a"}}).code == 404
    unknown = cluster.get("/apis/nobody.dev/v1/things")
    assert (unknown.code, cluster.get("/api/v1/nonsense").code) == (404, 404)


@pytest.mark.parametrize("bad", ["Capital", "under_score", "x" * 64])
def test_a_bad_name_is_a_422_that_names_the_field(cluster: Client, bad: str) -> None:
    refused = cluster.namespace(bad)
    assert (refused.code, refused.body["reason"]) == (422, "Invalid")
    assert refused.body["details"]["causes"][0]["field"] == "metadata.name"


def test_generate_name_appends_five_characters(cluster: Client, name: str) -> None:
    made = [cluster.post(CONFIG_MAPS, {"metadata": {"generateName": f"{name}-"}}).body for _ in range(2)]
    names = {obj["metadata"]["name"] for obj in made}
    assert len(names) == 2
    assert all(each.startswith(f"{name}-") and len(each) == len(name) + 6 for each in names)


def test_an_update_with_an_old_resource_version_is_a_409_conflict(cluster: Client, name: str) -> None:
    first = cluster.post(CONFIG_MAPS, {"metadata": {"name": name}}).body
    second = cluster.put(f"{CONFIG_MAPS}/{name}", first | {"data": {"a": "1"}})
    assert second.code == 200
    assert int(second.version) > int(first["metadata"]["resourceVersion"])
    late = cluster.put(f"{CONFIG_MAPS}/{name}", first | {"data": {"a": "2"}})
    assert (late.code, late.body["reason"]) == (409, "Conflict")
    assert "the object has been modified" in late.body["message"]
    patch = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "data": {"a": "3"}}
    assert cluster.patch(f"{CONFIG_MAPS}/{name}", patch).code == 409


def test_an_update_of_another_uid_is_a_409(cluster: Client, name: str) -> None:
    cluster.post(CONFIG_MAPS, {"metadata": {"name": name}})
    other = cluster.put(f"{CONFIG_MAPS}/{name}", {"metadata": {"name": name, "uid": "0-0"}})
    assert (other.code, other.body["reason"]) == (409, "Conflict")


def test_an_update_that_changes_nothing_keeps_the_version_and_no_watch_hears_of_it(cluster: Client, name: str) -> None:
    path = f"{CONFIG_MAPS}/{name}"
    first = cluster.post(CONFIG_MAPS, {"metadata": {"name": name}, "data": {"a": "1"}})
    assert cluster.put(path, first.body).version == first.version
    assert cluster.patch(path, {"data": {"a": "1"}}).version == first.version
    changed = cluster.patch(path, {"data": {"a": "2"}})
    query = {"fieldSelector": f"metadata.name={name}", "resourceVersion": first.version}
    with cluster.watch(CONFIG_MAPS, **query) as watch:
        assert watch.next()["object"]["metadata"]["resourceVersion"] == changed.version


def test_merge_and_json_patches(cluster: Client, name: str) -> None:
    path = f"{CONFIG_MAPS}/{name}"
    cluster.post(CONFIG_MAPS, {"metadata": {"name": name}, "data": {"a": "1", "b": "2"}})
    assert cluster.patch(path, {"data": {"a": None, "c": "3"}}).body["data"] == {"b": "2", "c": "3"}
    operations = [{"op": "test", "path": "/data/b", "value": "2"}, {"op": "remove", "path": "/data/b"}]
    assert cluster.patch(path, operations, JSON_PATCH).body["data"] == {"c": "3"}
    refused = cluster.patch(path, operations, JSON_PATCH)
    assert (refused.code, refused.body["reason"]) == (422, "Invalid")


def test_a_strategic_patch_merges_finalizers_and_owner_references(cluster: Client, name: str) -> None:
    path = f"{CONFIG_MAPS}/{name}"
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "1"}
    cluster.post(CONFIG_MAPS, {"metadata": {"name": name, "finalizers": ["x.dev/a"], "ownerReferences": [owner]}})
    other = owner | {"uid": "2"}
    patched = cluster.patch(path, {"metadata": {"finalizers": ["x.dev/b"], "ownerReferences": [other]}}, STRATEGIC)
    assert sorted(patched.body["metadata"]["finalizers"]) == ["x.dev/a", "x.dev/b"]
    assert sorted(item["uid"] for item in patched.body["metadata"]["ownerReferences"]) == ["1", "2"]
    removal = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x.dev/a", "x.dev/b"]}}
    assert "finalizers" not in cluster.patch(path, removal, STRATEGIC).body["metadata"]


def test_an_unknown_media_type_is_a_415(cluster: Client, name: str) -> None:
    cluster.post(CONFIG_MAPS, {"metadata": {"name": name}})
    refused = cluster.patch(f"{CONFIG_MAPS}/{name}", {}, "application/x-nonsense")
    assert (refused.code, refused.body["reason"]) == (415, "UnsupportedMediaType")


def test_finalizers_hold_a_deleted_object_until_they_are_gone(cluster: Client, name: str) -> None:
    path = f"{CONFIG_MAPS}/{name}"
    created = cluster.post(CONFIG_MAPS, {"metadata": {"name": name, "finalizers": ["x.dev/a"]}})
    with cluster.watch(CONFIG_MAPS, fieldSelector=f"metadata.name={name}", resourceVersion=created.version) as watch:
        held = cluster.delete(path)
        assert (held.code, held.body["kind"]) == (200, "ConfigMap")
        assert held.body["metadata"]["deletionTimestamp"]
        added = cluster.patch(path, {"metadata": {"finalizers": ["x.dev/a", "x.dev/b"]}})
        assert (added.code, added.body["reason"]) == (422, "Invalid")
        assert cluster.patch(path, {"metadata": {"finalizers": None}}).code == 200
        assert [watch.next()["type"] for _ in range(2)] == ["MODIFIED", "DELETED"]
    assert cluster.get(path).code == 404


def test_delete_obeys_preconditions(cluster: Client, name: str) -> None:
    path = f"{CONFIG_MAPS}/{name}"
    meta = cluster.post(CONFIG_MAPS, {"metadata": {"name": name}}).body["metadata"]
    for wrong in ({"uid": "0-0"}, {"resourceVersion": "1"}):
        refused = cluster.delete(path, {"preconditions": wrong})
        assert (refused.code, refused.body["reason"]) == (409, "Conflict")
    right = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
    gone = cluster.delete(path, {"preconditions": right})
    assert (gone.code, gone.body["status"], gone.body["details"]["uid"]) == (200, "Success", meta["uid"])
    assert cluster.delete(path).code == 404


def test_a_dry_run_answers_and_stores_nothing(cluster: Client, name: str) -> None:
    path = f"{CONFIG_MAPS}/{name}"
    body = {"metadata": {"name": name}, "data": {"a": "1"}}
    assert cluster.post(CONFIG_MAPS, body, dryRun="All").code == 201
    assert cluster.get(path).code == 404
    created = cluster.post(CONFIG_MAPS, body)
    assert cluster.patch(path, {"data": {"a": "2"}}, dryRun="All").body["data"] == {"a": "2"}
    assert cluster.delete(path, dryRun="All").code == 200
    assert cluster.get(path).version == created.version
    assert cluster.post(CONFIG_MAPS, body, dryRun="Some").code in (400, 422)


def test_delete_collection_takes_what_the_selector_names(cluster: Client, name: str) -> None:
    for number in range(3):
        labels = {"test": name, "keep": str(number == 0).lower()}
        cluster.post(CONFIG_MAPS, {"metadata": {"name": f"{name}-{number}", "labels": labels}})
    assert cluster.delete(CONFIG_MAPS, labelSelector=f"test={name},keep=false").code == 200
    left = cluster.get(CONFIG_MAPS, labelSelector=f"test={name}").body["items"]
    assert [obj["metadata"]["name"] for obj in left] == [f"{name}-0"]


def test_an_event_has_two_faces(cluster: Client, name: str) -> None:
    event = {
        "metadata": {"name": name},
        "involvedObject": {"kind": "Namespace", "name": name, "namespace": "default"},
        "message": "told",
        "reason": "Told",
        "type": "Normal",
        "reportingComponent": "test",
    }
    assert cluster.post("/api/v1/namespaces/default/events", event).code == 201
    other = cluster.get(f"/apis/events.k8s.io/v1/namespaces/default/events/{name}").body
    assert (other["note"], other["regarding"]["name"]) == ("told", name)
    found = cluster.get("/api/v1/namespaces/default/events", fieldSelector=f"involvedObject.name={name}").body["items"]
    assert len(found) == 1


def test_only_a_known_token_is_let_in(cluster: Client) -> None:
    for token in (None, "wrong"):
        stranger = type(cluster)(cluster.url, cluster.ca, token)
        refused = stranger.get("/api/v1/namespaces")
        # A real server may let the anonymous in as far as RBAC, which then says 403.
        assert refused.code in ((401, 403) if token is None else (401,))
        assert refused.body["kind"] == "Status"


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
def test_health(cluster: Client, path: str) -> None:
    assert cluster.get(path).body == "ok"


def test_reviews_tell_who_and_what(cluster: Client) -> None:
    who = {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {"token": cluster.token}}
    status = cluster.post("/apis/authentication.k8s.io/v1/tokenreviews", who).body["status"]
    assert status["authenticated"] is True
    assert "system:masters" in status["user"]["groups"]
    wrong = cluster.post("/apis/authentication.k8s.io/v1/tokenreviews", who | {"spec": {"token": "no"}}).body["status"]
    assert not wrong.get("authenticated")
    attributes = {"resourceAttributes": {"verb": "get", "resource": "pods"}}
    may = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": attributes}
    answer = cluster.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", may)
    assert (answer.code, answer.body["status"]["allowed"]) == (201, True)
