import pytest

from lab.apiserver.objects import Json
from lab.apiserver.schema import apply_defaults, prune, validate


def _messages(value: object, schema: Json) -> list[str]:
    return [f"{cause.field}: {cause.message}" for cause in validate(value, schema, "spec")]


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (1, {"type": "integer"}),
        (1.0, {"type": "integer"}),
        (1, {"type": "number"}),
        (None, {"type": "string", "nullable": True}),
        ("10%", {"x-kubernetes-int-or-string": True}),
        (80, {"x-kubernetes-int-or-string": True}),
        ("2026-11-23T08:37:41Z", {"type": "string", "format": "date-time"}),
        ("10.0.0.0/8", {"type": "string", "format": "cidr"}),
        ("anything", {"type": "string", "format": "unknown-to-us"}),
        ({"a": 1}, {"type": "object", "additionalProperties": {"type": "integer"}}),
        ("b", {"oneOf": [{"enum": ["a"]}, {"enum": ["b"]}]}),
        (["a", "b"], {"type": "array", "x-kubernetes-list-type": "set"}),
    ],
)
def test_what_is_valid(value: object, schema: Json) -> None:
    assert _messages(value, schema) == []


@pytest.mark.parametrize(
    ("value", "schema", "message"),
    [
        (True, {"type": "integer"}, 'spec: Invalid value: "boolean": spec in body must be of type integer: "boolean"'),
        (1.5, {"type": "integer"}, 'spec: Invalid value: "number": spec in body must be of type integer: "number"'),
        (None, {"type": "string"}, 'spec: Invalid value: "null": spec in body must be of type string: "null"'),
        (1, {"type": "number", "minimum": 1, "exclusiveMinimum": True}, "should be greater than 1"),
        (7, {"type": "integer", "multipleOf": 2}, "should be a multiple of 2"),
        ("", {"type": "string", "minLength": 1}, "should be at least 1 chars long"),
        ("abc", {"type": "string", "maxLength": 2}, "Too long: may not be more than 2 bytes"),
        ("1.2.3", {"type": "string", "format": "ipv4"}, "must be of type ipv4"),
        ([], {"type": "array", "minItems": 1}, "should have at least 1 items"),
        (["a", "a"], {"type": "array", "x-kubernetes-list-type": "set"}, 'spec[1]: Duplicate value: "a"'),
        ({"a": "x"}, {"type": "object", "additionalProperties": {"type": "integer"}}, "spec.a: Invalid value"),
        ("c", {"anyOf": [{"enum": ["a"]}, {"enum": ["b"]}]}, "must validate at least one schema (anyOf)"),
        ("a", {"oneOf": [{"enum": ["a"]}, {"enum": ["a"]}]}, "must validate one and only one schema (oneOf)"),
        ("a", {"not": {"enum": ["a"]}}, "must not validate"),
    ],
)
def test_what_is_not(value: object, schema: Json, message: str) -> None:
    (told,) = _messages(value, schema)
    assert message in told


def test_a_list_of_maps_is_unique_by_its_keys() -> None:
    schema = {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    assert _messages([{"type": "A", "n": 1}, {"type": "B", "n": 1}], schema) == []
    assert "spec[1]: Duplicate value" in _messages([{"type": "A", "n": 1}, {"type": "A", "n": 2}], schema)[0]


def test_pruning_keeps_what_the_server_owns_and_names_what_it_removes() -> None:
    schema = {"properties": {"spec": {"properties": {"a": {}, "l": {"items": {"properties": {"x": {}}}}}}}}
    obj = {"kind": "K", "apiVersion": "v", "metadata": {"name": "n"}, "spec": {"a": 1, "b": 2, "l": [{"x": 1, "y": 2}]}}
    assert prune(obj, schema) == ["spec.b", "spec.l[0].y"]
    assert obj == {"kind": "K", "apiVersion": "v", "metadata": {"name": "n"}, "spec": {"a": 1, "l": [{"x": 1}]}}


def test_pruning_goes_on_below_preserved_fields_that_are_described() -> None:
    schema = {
        "properties": {"free": {"x-kubernetes-preserve-unknown-fields": True, "properties": {"a": {"properties": {}}}}}
    }
    obj = {"free": {"any": 1, "a": {"odd": 1}}}
    assert prune(obj, schema) == ["free.a.odd"]
    assert obj == {"free": {"any": 1, "a": {}}}


def test_defaults_fill_what_is_missing_at_every_depth() -> None:
    schema = {
        "properties": {
            "spec": {
                "default": {},
                "properties": {"n": {"default": 3}, "m": {"nullable": True, "default": 4}, "k": {"default": 5}},
            }
        }
    }
    empty: dict[str, object] = {}
    apply_defaults(empty, schema)
    assert empty == {"spec": {"n": 3, "m": 4, "k": 5}}
    partial = {"spec": {"n": None, "m": None, "k": 0}}
    apply_defaults(partial, schema)
    assert partial == {"spec": {"n": 3, "m": None, "k": 0}}


def test_a_null_that_may_not_be_null_is_as_good_as_missing() -> None:
    schema = {"properties": {"a": {"type": "string"}, "b": {"type": "string", "nullable": True}}}
    obj: dict[str, object] = {"a": None, "b": None}
    apply_defaults(obj, schema)
    assert obj == {"b": None}
