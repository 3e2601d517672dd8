"""The protobuf bodies that kubectl sends: ``kubectl create namespace`` and its siblings, seen with 1.32.

Only reading, and only the kinds that kubectl creates without a manifest and this server has. Answers are always JSON,
which every such client accepts. Field numbers are those of ``generated.proto`` in k8s.io/api and k8s.io/apimachinery.
"""

import base64
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from lab.apiserver.objects import Json, timestamp

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"

_MAGIC = b"k8s\x00"
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class BadMessage(ValueError):
    """The body is not a Kubernetes protobuf message, or of a kind that is not known here."""


class _Scalar(Enum):
    STRING = "string"
    BYTES = "bytes"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    kind: "_Scalar | _Message" = _Scalar.STRING
    repeated: bool = False
    mapping: bool = False


_Message = dict[int, _Field]

_OWNER: _Message = {
    1: _Field("kind"),
    3: _Field("name"),
    4: _Field("uid"),
    5: _Field("apiVersion"),
    6: _Field("controller", _Scalar.BOOLEAN),
    7: _Field("blockOwnerDeletion", _Scalar.BOOLEAN),
}
_META = _Field(
    "metadata",
    {
        1: _Field("name"),
        2: _Field("generateName"),
        3: _Field("namespace"),
        5: _Field("uid"),
        6: _Field("resourceVersion"),
        7: _Field("generation", _Scalar.INTEGER),
        8: _Field("creationTimestamp", _Scalar.TIME),
        9: _Field("deletionTimestamp", _Scalar.TIME),
        11: _Field("labels", mapping=True),
        12: _Field("annotations", mapping=True),
        13: _Field("ownerReferences", _OWNER, repeated=True),
        14: _Field("finalizers", repeated=True),
    },
)
_RESOURCE_ATTRIBUTES: _Message = {
    number: _Field(name)
    for number, name in enumerate(("namespace", "verb", "group", "version", "resource", "subresource", "name"), 1)
}
_ACCESS: _Message = {
    1: _Field("resourceAttributes", _RESOURCE_ATTRIBUTES),
    2: _Field("nonResourceAttributes", {1: _Field("path"), 2: _Field("verb")}),
}
_KINDS: dict[tuple[str, str], _Message] = {
    ("v1", "Namespace"): {1: _META, 2: _Field("spec", {1: _Field("finalizers", repeated=True)})},
    ("v1", "ConfigMap"): {
        1: _META,
        2: _Field("data", mapping=True),
        3: _Field("binaryData", _Scalar.BYTES, mapping=True),
        4: _Field("immutable", _Scalar.BOOLEAN),
    },
    ("v1", "Secret"): {
        1: _META,
        2: _Field("data", _Scalar.BYTES, mapping=True),
        3: _Field("type"),
        4: _Field("stringData", mapping=True),
        5: _Field("immutable", _Scalar.BOOLEAN),
    },
    ("v1", "ServiceAccount"): {1: _META, 4: _Field("automountServiceAccountToken", _Scalar.BOOLEAN)},
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview"): {1: _META, 2: _Field("spec", _ACCESS)},
    ("authorization.k8s.io/v1", "SelfSubjectRulesReview"): {1: _META, 2: _Field("spec", {1: _Field("namespace")})},
    ("authentication.k8s.io/v1", "SelfSubjectReview"): {1: _META},
    ("authentication.k8s.io/v1", "TokenReview"): {1: _META, 2: _Field("spec", {1: _Field("token")})},
}
_ENVELOPE: _Message = {
    1: _Field("typeMeta", {1: _Field("apiVersion"), 2: _Field("kind")}),
    2: _Field("raw", _Scalar.BYTES),
}


def decode(body: bytes) -> Json:
    """The object in a request's body. Raises `BadMessage`."""
    if not body.startswith(_MAGIC):
        raise BadMessage("a Kubernetes protobuf body starts with k8s and a zero byte")
    try:
        envelope = _message(body[len(_MAGIC) :], _ENVELOPE)
        kind = {key: envelope.get("typeMeta", {}).get(key, "") for key in ("apiVersion", "kind")}
        fields = _KINDS.get((kind["apiVersion"], kind["kind"]))
        if fields is None:
            told = f"{kind['kind']} {kind['apiVersion']}"
            raise BadMessage(f"{told} is not read as protobuf by the embedded cluster: send it as JSON or YAML")
        if "raw" not in envelope:
            raise BadMessage("the protobuf message holds no object")
        return kind | _message(base64.b64decode(envelope["raw"]), fields)
    except (IndexError, UnicodeDecodeError) as error:
        raise BadMessage(f"the protobuf message is cut short or damaged: {error}") from error


def _message(data: bytes, fields: _Message) -> Json:
    result: Json = {}
    for number, raw in _wire(data):
        field = fields.get(number)
        if field is None:
            continue
        if field.mapping:
            pair = _message(_blob(raw), {1: _Field("key"), 2: _Field("value", field.kind)})
            result.setdefault(field.name, {})[pair.get("key", "")] = pair.get("value", "")
            continue
        value = _value(raw, field.kind)
        if field.repeated:
            result.setdefault(field.name, []).append(value)
        elif not _is_unset(value):
            result[field.name] = value
    return result


def _value(raw: int | bytes, kind: "_Scalar | _Message") -> object:
    if isinstance(kind, dict):
        return _message(_blob(raw), kind)
    if kind is _Scalar.STRING:
        return _blob(raw).decode()
    if kind is _Scalar.BYTES:
        return base64.b64encode(_blob(raw)).decode()
    if kind is _Scalar.TIME:
        seconds = dict(_wire(_blob(raw))).get(1)
        return timestamp(datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)) if seconds else None
    return bool(raw) if kind is _Scalar.BOOLEAN else raw


def _is_unset(value: object) -> bool:
    """Go writes empty strings, zero numbers and zero times where JSON would leave the field out."""
    return value is None or value == "" or (value == 0 and not isinstance(value, bool))


def _blob(raw: int | bytes) -> bytes:
    if isinstance(raw, int):
        raise BadMessage("a field of the protobuf message has the wrong wire type")
    return raw


def _wire(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and raw values: an integer for a varint, the bytes for everything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == _LENGTH:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise BadMessage(f"unknown protobuf wire type {wire}")
        if at + size > len(data):
            raise BadMessage("the protobuf message is cut short")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
