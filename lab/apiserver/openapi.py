"""As much OpenAPI as kubectl reads before it writes.

Recent kubectl (1.32 was tried) looks in /openapi/v3 for the query parameter ``fieldValidation`` on a kind's PATCH, and
leaves validation to the server where it finds it. Older ones (1.20 was tried) download /openapi/v2, in protobuf alone;
they look for ``dryRun`` there, and skip validating kinds that it does not define. Schemas are those of the CRDs.
"""

import hashlib
import json

from lab.apiserver import errors
from lab.apiserver.objects import Json
from lab.apiserver.resources import Registry, Resource

PROTOBUF_V2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"

_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation")
_INFO = {"title": "Hawse embedded cluster", "version": "v1"}


def index(registry: Registry) -> Json:
    """/openapi/v3: where the document of each group and version is."""
    paths: Json = {}
    for where in sorted({_where(resource) for resource in registry}):
        digest = hashlib.sha256(json.dumps(document(registry, where), sort_keys=True).encode()).hexdigest()
        paths[where] = {"serverRelativeURL": f"/openapi/v3/{where}?hash={digest[:32].upper()}"}
    return {"paths": paths}


def document(registry: Registry, where: str) -> Json:
    """/openapi/v3/api/v1 and /openapi/v3/apis/GROUP/VERSION. Raises `ApiError` 404."""
    resources = [resource for resource in registry if _where(resource) == where]
    if not resources:
        raise errors.no_such_path()
    schemas = {_schema_name(resource): _schema(resource) for resource in resources if resource.schema is not None}
    paths = {_path(resource): _operations(resource, version=3) for resource in resources}
    return {"openapi": "3.0.0", "info": _INFO, "paths": paths, "components": {"schemas": schemas}}


def document_v2(registry: Registry) -> Json:
    """/openapi/v2 as JSON."""
    paths = {_path(resource): _operations(resource, version=2) for resource in registry}
    return {"swagger": "2.0", "info": _INFO, "paths": paths, "definitions": {}}


def _where(resource: Resource) -> str:
    return f"apis/{resource.api_version}" if resource.group else f"api/{resource.api_version}"


def _path(resource: Resource) -> str:
    inside = "namespaces/{namespace}/" if resource.namespaced else ""
    return f"/{_where(resource)}/{inside}{resource.plural}/{{name}}"


def _schema_name(resource: Resource) -> str:
    return ".".join([*reversed(resource.group.split(".")), resource.version, resource.kind])


def _gvk(resource: Resource) -> Json:
    return {"group": resource.group, "kind": resource.kind, "version": resource.version}


def _schema(resource: Resource) -> Json:
    return {**(resource.schema or {}), "x-kubernetes-group-version-kind": [_gvk(resource)]}


def _operations(resource: Resource, *, version: int) -> Json:
    kind = {"type": "string"} if version == 2 else {"schema": {"type": "string"}}
    operation: Json = {
        "parameters": [{"name": name, "in": "query", **kind} for name in _PARAMETERS],
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-group-version-kind": _gvk(resource),
    }
    operations = {"patch": {"operationId": f"patch{resource.kind}", "x-kubernetes-action": "patch", **operation}}
    if version == 3 and resource.schema is not None:
        reference = {"$ref": f"#/components/schemas/{_schema_name(resource)}"}
        answer = {"description": "OK", "content": {"application/json": {"schema": reference}}}
        operations["get"] = {
            "operationId": f"read{resource.kind}",
            "x-kubernetes-action": "get",
            **operation,
            "responses": {"200": answer},
        }
    return operations


def protobuf_v2(registry: Registry) -> bytes:
    """/openapi/v2 as the protobuf message ``openapi.v2.Document`` of github.com/google/gnostic."""
    info = _text(1, _INFO["title"]) + _text(2, _INFO["version"])
    paths = b"".join(_bytes(2, _text(1, _path(resource)) + _bytes(2, _path_item(resource))) for resource in registry)
    return _text(1, "2.0") + _bytes(2, info) + _bytes(8, paths)


def _path_item(resource: Resource) -> bytes:
    """A ``PathItem`` with ``patch`` (8), an ``Operation``: id (5), parameters (8), responses (9), extensions (13)."""
    # Each query parameter is wrapped in ParametersItem.parameter, Parameter.non_body_parameter and its query variant.
    parameters = b"".join(
        _bytes(8, _bytes(1, _bytes(2, _bytes(3, _text(2, "query") + _text(4, name) + _text(6, "string")))))
        for name in _PARAMETERS
    )
    # The extension is YAML text: NamedAny(name 1, value 2 = Any(yaml 2)).
    gvk = "".join(f"{key}: {json.dumps(value)}\n" for key, value in _gvk(resource).items())
    extension = _text(1, "x-kubernetes-group-version-kind") + _bytes(2, _text(2, gvk))
    responses = _bytes(1, _text(1, "200") + _bytes(2, _bytes(1, _text(1, "OK"))))
    operation = _text(5, f"patch{resource.kind}") + parameters + _bytes(9, responses) + _bytes(13, extension)
    return _bytes(8, operation)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, content: str) -> bytes:
    return _bytes(field, content.encode())
