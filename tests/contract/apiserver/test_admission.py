"""Admission webhooks: what they are sent, and what becomes of their answers."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.apiserver.client import Client
from lab.apiserver.objects import Json
from lab.apiserver.process import EmbeddedCluster
from lab.apiserver.webhook_stub import Webhook
from lab.cluster import Cluster

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def _annotate(webhook: Webhook) -> None:
    webhook.answer = lambda _: webhook.json_patch(
        {"op": "add", "path": "/metadata/annotations", "value": {"by": "hook"}}
    )


def test_a_create_sends_what_a_real_server_sends(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    register()
    created = cluster.post(
        "/api/v1/namespaces",
        {"metadata": {"name": name, "labels": {"test": name}}},
        fieldManager="kubectl-create",
        fieldValidation="Strict",
    )
    (request,) = webhook.requests
    assert created.code == 201
    assert list(request) == [
        "uid", "kind", "resource", "requestKind", "requestResource", "name", "namespace", "operation", "userInfo",
        "object", "oldObject", "dryRun", "options",
    ]  # fmt: skip
    assert request["kind"] == request["requestKind"] == {"group": "", "version": "v1", "kind": "Namespace"}
    assert request["resource"] == request["requestResource"]
    assert request["resource"] == {"group": "", "version": "v1", "resource": "namespaces"}
    assert (request["name"], request["namespace"], request["operation"]) == (name, name, "CREATE")
    assert (request["oldObject"], request["dryRun"]) == (None, False)
    assert set(request["userInfo"]["groups"]) == {"system:masters", "system:authenticated"}
    assert request["options"] == {
        "kind": "CreateOptions",
        "apiVersion": "meta.k8s.io/v1",
        "fieldManager": "kubectl-create",
        "fieldValidation": "Strict",
    }
    obj = request["object"]
    assert (obj["spec"], obj["status"]) == ({}, {"phase": "Active"})
    assert obj["metadata"]["labels"] == {"test": name, "kubernetes.io/metadata.name": name}
    assert "uid" not in obj["metadata"]
    assert [path for path, _ in webhook.calls] == ["/admit?timeout=10s"]
    assert created.body["spec"] == {"finalizers": ["kubernetes"]}


def test_generate_name_leaves_name_and_label_open_until_it_is_stored(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    register()
    created = cluster.post("/api/v1/namespaces", {"metadata": {"generateName": f"{name}-", "labels": {"test": name}}})
    (request,) = webhook.requests
    assert "name" not in request
    assert "namespace" not in request
    assert request["object"]["metadata"]["labels"] == {"test": name}
    stored = created.body["metadata"]
    assert stored["labels"]["kubernetes.io/metadata.name"] == stored["name"]


def test_an_update_sends_both_objects_and_a_delete_the_old_one(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    register()
    path = f"/api/v1/namespaces/{name}"
    created = cluster.namespace(name, labels={"test": name})
    cluster.patch(path, {"metadata": {"annotations": {"a": "b"}}}, fieldManager="kubectl-annotate")
    update = webhook.last("UPDATE")
    assert update["object"]["metadata"]["annotations"] == {"a": "b"}
    assert update["oldObject"]["metadata"]["resourceVersion"] == created.version
    assert update["object"]["metadata"]["uid"] == created.body["metadata"]["uid"]
    assert update["options"]["kind"] == "UpdateOptions"
    assert update["options"]["fieldManager"] == "kubectl-annotate"
    uid = created.body["metadata"]["uid"]
    cluster.delete(path, {"preconditions": {"uid": uid}, "propagationPolicy": "Background"})
    delete = webhook.last("DELETE")
    assert delete["object"] is None
    assert delete["oldObject"]["metadata"]["uid"] == uid
    assert delete["options"]["kind"] == "DeleteOptions"
    assert delete["options"]["preconditions"] == {"uid": uid}
    assert delete["options"]["propagationPolicy"] == "Background"


def test_the_fields_are_those_of_the_recorded_reviews(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    """Against recordings of a 1.36 server: same keys, same order, same literals."""
    folder = Path(__file__).resolve().parents[2] / "fixtures" / "admission"
    register()
    labels = {"test": name}
    cluster.post("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}}, dryRun="All")
    cluster.post("/api/v1/namespaces", {"metadata": {"generateName": f"{name}-", "labels": labels}})
    cluster.namespace(name, labels=labels)
    cluster.patch(f"/api/v1/namespaces/{name}", {"metadata": {"annotations": {"a": "b"}}}, fieldManager="m")
    cluster.delete(f"/api/v1/namespaces/{name}")
    dry, generated, created, updated = webhook.requests[:4]
    pairs = {
        "create-namespace-dry-run": dry,
        "create-namespace-generate-name": generated,
        "create-namespace": created,
        "update-namespace": updated,
        "delete-namespace": webhook.last("DELETE"),
    }
    for recorded, request in pairs.items():
        real = json.loads((folder / f"{recorded}.json").read_text())["request"]
        assert [key for key in real if key != "object"] == [key for key in request if key != "object"], recorded
        for key in ("kind", "resource", "requestKind", "requestResource", "operation", "dryRun"):
            assert request[key] == real[key], (recorded, key)
        for side in ("object", "oldObject"):
            assert (real[side] is None) == (request[side] is None), (recorded, side)
            if real[side] is not None:
                assert real[side]["spec"] == request[side]["spec"]
                assert real[side]["status"] == request[side]["status"]
                fields = set(real[side]["metadata"]) - {"managedFields", "labels"}
                assert fields == set(request[side]["metadata"]) - {"managedFields", "labels"}, (recorded, side)


def test_a_patch_is_applied_before_the_object_is_stored(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    register(operations=("CREATE",))
    _annotate(webhook)
    created = cluster.namespace(name, labels={"test": name})
    assert created.body["metadata"]["annotations"] == {"by": "hook"}
    assert cluster.get(f"/api/v1/namespaces/{name}").body["metadata"]["annotations"] == {"by": "hook"}


def test_validating_webhooks_see_what_the_mutating_ones_made(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    register("validating", operations=("CREATE",))
    register("mutating", operations=("CREATE",))

    def answer(request: Json) -> Json:
        if "annotations" in request["object"]["metadata"]:
            return {"allowed": True}
        return webhook.json_patch({"op": "add", "path": "/metadata/annotations", "value": {"by": "hook"}})

    webhook.answer = answer
    cluster.namespace(name, labels={"test": name})
    assert ["annotations" in request["object"]["metadata"] for request in webhook.requests] == [False, True]


def test_a_denial_is_told_as_a_real_server_tells_it(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    register("validating")
    webhook.answer = lambda _: {"allowed": False, "status": {"code": 403, "message": "pool prod has no free address"}}
    refused = cluster.namespace(name, labels={"test": name})
    expected = f'admission webhook "validating.{name}.dev" denied the request: pool prod has no free address'
    assert (refused.code, refused.body["message"]) == (403, expected)
    assert cluster.get(f"/api/v1/namespaces/{name}").code == 404
    webhook.answer = lambda _: {"allowed": False}
    silent = cluster.namespace(name, labels={"test": name})
    assert (silent.code, silent.body["message"]) == (400, f"{expected.split(':', maxsplit=1)[0]} without explanation")


def test_warnings_reach_the_client(cluster: Client, webhook: Webhook, register: Callable[..., None], name: str) -> None:
    register()
    webhook.answer = lambda _: {"allowed": True, "warnings": ['Redis is "away"']}
    assert cluster.namespace(name, labels={"test": name}).warnings == [r'299 - "Redis is \"away\""']


def test_a_dry_run_is_told_to_the_webhook(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    register(sideEffects="NoneOnDryRun")
    answer = cluster.post("/api/v1/namespaces", {"metadata": {"name": name, "labels": {"test": name}}}, dryRun="All")
    (request,) = webhook.requests
    assert (answer.code, request["dryRun"], request["options"]["dryRun"]) == (201, True, ["All"])


@pytest.mark.parametrize(("policy", "code"), [("Fail", 500), ("Ignore", 201)])
def test_a_webhook_that_is_away(
    cluster: Client, register: Callable[..., None], name: str, policy: str, code: int
) -> None:
    register(failurePolicy=policy, clientConfig={"url": "https://127.0.0.1:1/admit"})
    answer = cluster.namespace(name, labels={"test": name})
    assert answer.code == code
    if policy == "Fail":
        assert answer.body["reason"] == "InternalError"
        assert f'failed calling webhook "mutating.{name}.dev": failed to call webhook' in answer.body["message"]


@pytest.mark.parametrize("raw", [b"{}", b"no json", b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}'])
def test_a_nonsensical_answer_is_a_failure_too(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str, raw: bytes
) -> None:
    register()
    webhook.raw = raw
    assert cluster.namespace(name, labels={"test": name}).code == 500


def test_a_webhook_with_another_certificate_is_not_trusted(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    register(clientConfig={"url": webhook.url})
    refused = cluster.namespace(name, labels={"test": name})
    assert refused.code == 500
    assert "certificate" in refused.body["message"]
    assert not webhook.requests


def test_a_slow_webhook_times_out(cluster: Client, webhook: Webhook, register: Callable[..., None], name: str) -> None:
    register(timeoutSeconds=1)
    webhook.delay = 8
    began = time.monotonic()
    refused = cluster.namespace(name, labels={"test": name})
    assert refused.code == 500
    assert "deadline exceeded" in refused.body["message"]
    assert time.monotonic() - began < 7


def test_admission_calls_run_at_once(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    register(operations=("CREATE",))
    webhook.delay = 2
    threads = [
        threading.Thread(target=cluster.namespace, args=(f"{name}-{n}",), kwargs={"labels": {"test": name}})
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert webhook.most_busy >= 4


def test_two_creates_of_one_name_during_admission_give_one_object(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    register(operations=("CREATE",))
    webhook.delay = 0.3
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(cluster.namespace(name, labels={"test": name}).code))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [201, 409, 409]


def test_a_patch_that_meets_a_change_during_admission_is_done_again(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    path = f"{CONFIG_MAPS}/{name}"
    cluster.post(CONFIG_MAPS, {"metadata": {"name": name, "labels": {"test": name}}, "data": {"a": "1"}})
    register(operations=("UPDATE",))

    def answer(request: Json) -> Json:
        if len(webhook.requests) == 1:  # somebody else changes the object meanwhile
            cluster.patch(path, {"data": {"b": "2"}})
        return {"allowed": True}

    webhook.answer = answer
    assert cluster.patch(path, {"data": {"a": "3"}}).body["data"] == {"a": "3", "b": "2"}


def test_rules_choose_by_operation_resource_and_scope(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["*"], "operations": ["CREATE"]}
    register(rules=[rule | {"scope": "Namespaced"}])
    cluster.namespace(name, labels={"test": name})
    assert not webhook.requests
    cluster.post(CONFIG_MAPS, {"metadata": {"name": name, "labels": {"test": name}}})
    cluster.patch(f"{CONFIG_MAPS}/{name}", {"data": {"a": "b"}})
    assert [request["operation"] for request in webhook.requests] == ["CREATE"]


def test_a_namespace_selector_reads_a_namespace_s_own_labels(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    selector = {"matchExpressions": [{"key": "egress", "operator": "In", "values": ["on"]}]}
    register(namespaceSelector=selector)
    cluster.namespace(f"{name}-a", labels={"test": name})
    cluster.namespace(f"{name}-b", labels={"test": name, "egress": "on"})
    for suffix in "ab":
        path = f"/api/v1/namespaces/{name}-{suffix}/configmaps"
        cluster.post(path, {"metadata": {"name": "inside", "labels": {"test": name}}})
    seen = [(request["kind"]["kind"], request["namespace"]) for request in webhook.requests]
    assert seen == [("Namespace", f"{name}-b"), ("ConfigMap", f"{name}-b")]


def test_status_is_a_subresource_to_rules(
    cluster: Client, webhook: Webhook, register: Callable[..., None], name: str
) -> None:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["namespaces/status"]}
    register(rules=[rule])
    cluster.namespace(name, labels={"test": name})
    cluster.patch(f"/api/v1/namespaces/{name}/status", {"metadata": {"annotations": {"a": "b"}}})
    assert [request["subResource"] for request in webhook.requests] == ["status"]


@pytest.mark.parametrize("changes", [{"clientConfig": {"service": {"name": "hawse", "namespace": "hawse"}}}])
def test_what_is_out_of_scope_is_refused_clearly(
    embedded_cluster: EmbeddedCluster, client_of: Callable[[Cluster], Client], name: str, changes: Json
) -> None:
    hook = {"name": "a.b.c", "admissionReviewVersions": ["v1"], "sideEffects": "None", **changes}
    hook.setdefault("clientConfig", {"url": "https://127.0.0.1:1"})
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    refused = client_of(embedded_cluster).post(path, {"metadata": {"name": name}, "webhooks": [hook]})
    assert refused.code == 422
    assert "the embedded cluster" in refused.body["message"]
