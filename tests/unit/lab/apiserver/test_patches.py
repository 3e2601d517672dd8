import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.apiserver.errors import ApiError
from lab.apiserver.objects import Json, clone
from lab.apiserver.patches import json_patch, merge_patch, strategic_patch

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=2), below, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=2), VALUES, max_size=4)


@pytest.mark.parametrize(
    ("document", "patch", "expected"),
    [  # the examples of RFC 7386, appendix A, whose documents are objects
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_as_in_the_rfc(document: Json, patch: Json, expected: object) -> None:
    assert merge_patch(document, patch) == expected


@given(OBJECTS, OBJECTS)
def test_merging_twice_equals_merging_once_and_leaves_the_original(document: Json, patch: Json) -> None:
    before = clone(document)
    once = merge_patch(document, patch)
    assert merge_patch(once, patch) == once
    assert document == before


@given(OBJECTS)
def test_a_patch_that_removes_every_key_leaves_nothing(document: Json) -> None:
    assert merge_patch(document, dict.fromkeys(document)) == {}


@pytest.mark.parametrize("operations", [{}, [1], [{"op": "fly", "path": "/a"}], [{"op": "add"}]])
def test_a_malformed_json_patch_is_a_400(operations: object) -> None:
    with pytest.raises(ApiError) as refused:
        json_patch({}, operations)
    assert refused.value.code == 400


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/missing"},
        {"op": "replace", "path": "/missing", "value": 1},
        {"op": "test", "path": "/a", "value": 2},
        {"op": "add", "path": "/list/9", "value": 1},
        {"op": "add", "path": "/no/such/parent", "value": 1},
    ],
)
def test_a_json_patch_that_does_not_apply_is_a_422_and_changes_nothing(operation: Json) -> None:
    document = {"a": 1, "list": []}
    with pytest.raises(ApiError) as refused:
        json_patch(document, [{"op": "add", "path": "/b", "value": 1}, operation])
    assert refused.value.code == 422
    assert document == {"a": 1, "list": []}


def test_a_json_patch_reads_escaped_slashes() -> None:
    patched = json_patch({"m": {}}, [{"op": "add", "path": "/m/egress.hawse.dev~1pool", "value": "p"}])
    assert patched == {"m": {"egress.hawse.dev/pool": "p"}}


def test_a_strategic_patch_merges_conditions_by_type_and_deletes_on_request() -> None:
    document = {"status": {"conditions": [{"type": "A", "status": "False"}, {"type": "B", "status": "True"}]}}
    patch = {"status": {"conditions": [{"type": "A", "status": "True"}, {"type": "B", "$patch": "delete"}]}}
    assert strategic_patch(document, patch) == {"status": {"conditions": [{"type": "A", "status": "True"}]}}


def test_a_strategic_patch_replaces_lists_that_have_no_key() -> None:
    assert strategic_patch({"spec": {"taints": [1, 2]}}, {"spec": {"taints": [3]}}) == {"spec": {"taints": [3]}}


def test_a_strategic_patch_of_whole_maps() -> None:
    assert strategic_patch({"data": {"a": "1"}}, {"data": {"$patch": "replace", "b": "2"}}) == {"data": {"b": "2"}}
    assert strategic_patch({"spec": {"a": 1, "b": 2}}, {"spec": {"$retainKeys": ["b"], "b": 3}}) == {"spec": {"b": 3}}
