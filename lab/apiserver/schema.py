"""Structural schemas of custom resources (``openAPIV3Schema``): prune, default, validate.

Checked: type, nullable, required, enum, pattern, lengths, numeric bounds, multipleOf, numbers of items and
properties, uniqueItems, list-type set and map keys, allOf/anyOf/oneOf/not, int-or-string, and the formats
``date-time``, ``ipv4``, ``ipv6`` and ``cidr``. Not evaluated: ``x-kubernetes-validations`` (CEL), other formats.
"""

import datetime
import ipaddress
import itertools
import math
import re
from collections.abc import Callable, Iterator
from functools import cache

from lab.apiserver.errors import Cause
from lab.apiserver.objects import Json, clone

# The server owns these at the root of every object; a schema does not describe them.
_ROOT_FIELDS = ("apiVersion", "kind", "metadata")


def prune(value: object, schema: Json, *, root: bool = True, path: str = "") -> list[str]:
    """Remove, in place, every field the schema does not name; returns the paths of those removed."""
    removed: list[str] = []
    if isinstance(value, list):
        for number, item in enumerate(value):
            removed += prune(item, schema.get("items") or {}, root=False, path=f"{path}[{number}]")
    if not isinstance(value, dict):
        return removed
    properties = schema.get("properties") or {}
    additional = schema.get("additionalProperties")
    keep_unknown = schema.get("x-kubernetes-preserve-unknown-fields") or additional is True
    owned = _ROOT_FIELDS if root or schema.get("x-kubernetes-embedded-resource") else ()
    for key in tuple(value):
        below = f"{path}.{key}" if path else key
        if key in owned:
            continue
        if key in properties:
            removed += prune(value[key], properties[key], root=False, path=below)
        elif isinstance(additional, dict):
            removed += prune(value[key], additional, root=False, path=below)
        elif not keep_unknown:
            del value[key]
            removed.append(below)
    return removed


def apply_defaults(value: object, schema: Json) -> None:
    """Add, in place, the schema's defaults for what is missing; a null that may not be null counts as missing."""
    if isinstance(value, list):
        for item in value:
            apply_defaults(item, schema.get("items") or {})
    if not isinstance(value, dict):
        return
    properties: Json = schema.get("properties") or {}
    for key, below in properties.items():
        if "default" in below and (key not in value or _is_stray_null(value[key], below)):
            value[key] = clone(below["default"])
    additional = schema.get("additionalProperties")
    for key in tuple(value):
        below = properties.get(key, additional)
        if not isinstance(below, dict):
            continue
        if _is_stray_null(value[key], below):
            del value[key]
        else:
            apply_defaults(value[key], below)


def _is_stray_null(value: object, schema: Json) -> bool:
    return value is None and not schema.get("nullable")


def validate(value: object, schema: Json, path: str = "") -> list[Cause]:
    """Every violation of the schema, in the words of Kubernetes."""
    if value is None:
        if schema.get("nullable") or not schema:
            return []
        return [] if not schema.get("type") else [_wrong_type(path, str(schema["type"]), "null")]
    causes = _type(value, schema, path)
    if causes:
        return causes
    causes += _enum(value, schema, path)
    if isinstance(value, str):
        causes += _string(value, schema, path)
    elif isinstance(value, dict):
        causes += _object(value, schema, path)
    elif isinstance(value, list):
        causes += _array(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        causes += _number(value, schema, path)
    causes += _combined(value, schema, path)
    return causes


def _name(path: str) -> str:
    return path or "<nil>"


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "null"


def _wrong_type(path: str, wanted: str, found: str) -> Cause:
    """``found`` is what there is instead: the name of a type, or a string that does not have the wanted format."""
    why = f'{path} in body must be of type {wanted}: "{found}"'
    return Cause("FieldValueTypeInvalid", _name(path), Cause.invalid("", found, why).message)


def _type(value: object, schema: Json, path: str) -> list[Cause]:
    found = _type_of(value)
    if schema.get("x-kubernetes-int-or-string"):
        return [] if found in ("integer", "string") else [_wrong_type(path, "integer,string", found)]
    wanted = schema.get("type")
    if not wanted or found == wanted or (wanted == "number" and found == "integer"):
        return []
    if wanted == "integer" and isinstance(value, float) and value.is_integer():
        return []
    return [_wrong_type(path, str(wanted), found)]


def _enum(value: object, schema: Json, path: str) -> Iterator[Cause]:
    allowed = schema.get("enum")
    if allowed is not None and value not in allowed:
        yield Cause.unsupported(_name(path), value, allowed)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    # Go's regexps know \z where Python knows \Z; in the other syntax that schemas use the two agree.
    return re.compile(pattern.replace(r"\z", r"\Z"), re.ASCII)


def _string(value: str, schema: Json, path: str) -> Iterator[Cause]:
    yield from itertools.islice(_string_bounds(value, schema, path), 1)  # a real server names the first alone
    check = _FORMATS.get(schema.get("format", ""))
    if check and not check(value):
        yield _wrong_type(path, schema["format"], value)


def _string_bounds(value: str, schema: Json, path: str) -> Iterator[Cause]:
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        limit = schema["maxLength"]
        yield Cause("FieldValueTooLong", _name(path), f"Too long: may not be more than {limit} bytes")
    if "minLength" in schema and len(value) < schema["minLength"]:
        yield Cause.invalid(_name(path), value, f"{path} in body should be at least {schema['minLength']} chars long")
    if "pattern" in schema and not _compiled(schema["pattern"]).search(value):
        yield Cause.invalid(_name(path), value, f"{path} in body should match '{schema['pattern']}'")


def _parses(parse: Callable[[str], object], value: str) -> bool:
    try:
        parse(value)
    except ValueError:
        return False
    return True


def _cidr(value: str) -> object:
    if "/" not in value:
        raise ValueError(value)
    return ipaddress.ip_interface(value)


_FORMATS: dict[str, Callable[[str], bool]] = {
    "date-time": lambda value: "T" in value and _parses(datetime.datetime.fromisoformat, value),
    "ipv4": lambda value: _parses(ipaddress.IPv4Address, value),
    "ipv6": lambda value: _parses(ipaddress.IPv6Address, value),
    "cidr": lambda value: _parses(_cidr, value),
}


def _number(value: float, schema: Json, path: str) -> Iterator[Cause]:
    low, high, step = schema.get("minimum"), schema.get("maximum"), schema.get("multipleOf")
    if low is not None:
        exclusive = bool(schema.get("exclusiveMinimum"))
        if value < low or (exclusive and value == low):
            than = "greater than" if exclusive else "greater than or equal to"
            yield Cause.invalid(_name(path), value, f"{path} in body should be {than} {low}")
    if high is not None:
        exclusive = bool(schema.get("exclusiveMaximum"))
        if value > high or (exclusive and value == high):
            than = "less than" if exclusive else "less than or equal to"
            yield Cause.invalid(_name(path), value, f"{path} in body should be {than} {high}")
    if step and not math.isclose(value / step, round(value / step)):
        yield Cause.invalid(_name(path), value, f"{path} in body should be a multiple of {step}")


def _object(value: Json, schema: Json, path: str) -> Iterator[Cause]:
    for key in schema.get("required") or []:
        if key not in value:
            yield Cause.required(f"{path}.{key}" if path else key)
    if "maxProperties" in schema and len(value) > schema["maxProperties"]:
        yield _too_many(path, len(value), schema["maxProperties"])
    if "minProperties" in schema and len(value) < schema["minProperties"]:
        limit = schema["minProperties"]
        yield Cause.invalid(_name(path), value, f"{path} in body should have at least {limit} properties")
    properties = schema.get("properties") or {}
    additional = schema.get("additionalProperties")
    for key, item in value.items():
        below = properties.get(key, additional)
        if isinstance(below, dict):
            yield from validate(item, below, f"{path}.{key}" if path else key)


def _too_many(path: str, count: int, limit: int) -> Cause:
    items = "item" if limit == 1 else "items"
    return Cause("FieldValueTooMany", _name(path), f"Too many: {count}: must have at most {limit} {items}")


def _array(value: list[object], schema: Json, path: str) -> Iterator[Cause]:
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        yield _too_many(path, len(value), schema["maxItems"])
    if "minItems" in schema and len(value) < schema["minItems"]:
        yield Cause.invalid(_name(path), len(value), f"{path} in body should have at least {schema['minItems']} items")
    items = schema.get("items")
    if isinstance(items, dict):
        for number, item in enumerate(value):
            yield from validate(item, items, f"{path}[{number}]")
    yield from _unique(value, schema, path)


def _unique(value: list[object], schema: Json, path: str) -> Iterator[Cause]:
    keys = schema.get("x-kubernetes-list-map-keys")
    if schema.get("x-kubernetes-list-type") == "map" and keys:
        entries: list[object] = [{k: item.get(k) for k in keys} if isinstance(item, dict) else item for item in value]
    elif schema.get("uniqueItems") or schema.get("x-kubernetes-list-type") == "set":
        entries = value
    else:
        return
    for number, entry in enumerate(entries):
        if entry in entries[:number]:
            shown = Cause.invalid("", entry, "").message.removeprefix("Invalid value: ").removesuffix(": ")
            yield Cause("FieldValueDuplicate", f"{path}[{number}]", f"Duplicate value: {shown}")


def _combined(value: object, schema: Json, path: str) -> Iterator[Cause]:
    for below in schema.get("allOf") or []:
        yield from validate(value, below, path)
    if "anyOf" in schema and not any(not validate(value, below, path) for below in schema["anyOf"]):
        yield Cause.invalid(_name(path), value, f'"{path}" must validate at least one schema (anyOf)')
    if "oneOf" in schema and sum(not validate(value, below, path) for below in schema["oneOf"]) != 1:
        yield Cause.invalid(_name(path), value, f'"{path}" must validate one and only one schema (oneOf)')
    if "not" in schema and not validate(value, schema["not"], path):
        yield Cause.invalid(_name(path), value, f'"{path}" must not validate the schema (not)')
