"""AdmissionReviews on the wire."""

import base64
import json
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook import review

RECORDED = Path(__file__).parents[2] / "fixtures" / "admission"
NAMESPACES = sorted(path.name for path in RECORDED.glob("*-namespace*.json"))


def decoded(answer: review.Answer) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answer.body)
    assert (body["apiVersion"], body["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: dict[str, Any] = body["response"]
    return response


def test_there_are_recordings() -> None:
    assert len(NAMESPACES) == 5


@pytest.mark.parametrize("name", NAMESPACES)
def test_what_a_1_36_server_sends_is_read(name: str) -> None:
    body = (RECORDED / name).read_bytes()
    sent = json.loads(body)["request"]
    request = review.parse(body)
    assert request.uid == sent["uid"]
    assert request.operation == sent["operation"]
    assert request.name == sent.get("name", "")
    assert request.dry_run == sent["dryRun"]
    assert request.user_info.username == "admin"
    for value, side in ((request.object, sent["object"]), (request.old_object, sent["oldObject"])):
        assert (value is None) == (side is None)
        if value is not None:
            metadata = side["metadata"]
            assert value.metadata.name == metadata.get("name", "")
            assert value.metadata.generate_name == metadata.get("generateName", "")
            assert value.labels == metadata.get("labels", {})
            assert value.annotations == metadata.get("annotations", {})


@pytest.mark.parametrize("name", sorted(path.name for path in RECORDED.glob("*subnet.json")))
def test_other_resources_are_errors(name: str) -> None:
    with pytest.raises(review.ReviewError, match="only namespaces"):
        review.parse((RECORDED / name).read_bytes())


@given(st.binary(max_size=200))
def test_bytes_are_a_review_or_an_error_of_ours(body: bytes) -> None:
    with pytest.raises(review.ReviewError):
        review.parse(body)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["uid", "resource", "operation", "name", "userInfo", "object", "oldObject", "dryRun"]), json_values
)
def test_a_field_of_any_shape_is_read_or_an_error_of_ours(field: str, value: object) -> None:
    body = json.loads((RECORDED / "create-namespace.json").read_text())
    body["request"][field] = value
    try:
        assert isinstance(review.parse(json.dumps(body).encode()), review.Request)
    except review.ReviewError as error:
        assert str(error)  # noqa: PT017 - either outcome is right


@given(
    st.none() | st.dictionaries(st.text(), st.text(), max_size=4),
    st.dictionaries(st.text(), st.text(), min_size=1, max_size=3),
)
def test_the_patch_adds_the_annotations_and_nothing_else(
    annotations: dict[str, str] | None, new: dict[str, str]
) -> None:
    metadata = {"name": "app"} if annotations is None else {"name": "app", "annotations": annotations}
    body = json.loads((RECORDED / "create-namespace.json").read_text())
    body["request"]["object"] = {"metadata": metadata}
    namespace = review.parse(json.dumps(body).encode()).object
    assert namespace is not None
    response = decoded(review.allow("u", patch=review.annotate(namespace, new)))
    assert (response["uid"], response["allowed"], response["patchType"]) == ("u", True, "JSONPatch")
    patched = jsonpatch.apply_patch({"metadata": metadata}, json.loads(base64.b64decode(response["patch"])))
    assert patched["metadata"]["annotations"] == {**(annotations or {}), **new}
    assert patched["metadata"]["name"] == "app"


def test_answers_hold_only_what_was_said() -> None:
    assert decoded(review.allow("u")) == {"uid": "u", "allowed": True}
    assert decoded(review.allow("u", warnings=["w"])) == {"uid": "u", "allowed": True, "warnings": ["w"]}
    assert decoded(review.deny("u", "no", 409)) == {
        "uid": "u",
        "allowed": False,
        "status": {"code": 409, "message": "no"},
    }
