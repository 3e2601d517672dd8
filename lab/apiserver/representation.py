"""In which form a client wants its answer: the objects, a Table, or their metadata alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import msgspec
from aiohttp import web

from lab.apiserver import errors
from lab.apiserver.conversion import from_storage
from lab.apiserver.objects import Json
from lab.apiserver.resources import Resource
from lab.apiserver.table import partial, table

_SUPPORTED = "application/json"
_VERSIONS = ("v1", "v1beta1")


class Form(Enum):
    """The forms this server writes."""

    OBJECT = "object"
    TABLE = "Table"
    METADATA = "PartialObjectMetadata"
    METADATA_LIST = "PartialObjectMetadataList"


@dataclass(frozen=True, slots=True)
class Representation:
    """How to write objects of one resource for one request."""

    resource: Resource
    form: Form
    version: str
    include: str

    def one(self, stored: Json) -> Json:
        """One object, as it comes from the store or from a write."""
        obj = from_storage(self.resource, stored)
        if self.form is Form.TABLE:
            meta = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
            return self._table([obj], meta)
        return obj if self.form is Form.OBJECT else partial(obj, self.version)

    def many(self, stored: Iterable[Json], meta: Json) -> Json:
        """A list."""
        resource = self.resource
        objects = [from_storage(resource, obj) for obj in stored]
        if self.form is Form.TABLE:
            return self._table(objects, meta)
        if self.form is not Form.OBJECT:
            kind, api_version = Form.METADATA_LIST.value, f"meta.k8s.io/{self.version}"
            objects = [partial(obj, self.version) for obj in objects]
        else:
            kind, api_version = resource.list_kind or f"{resource.kind}List", resource.api_version
        return {"kind": kind, "apiVersion": api_version, "metadata": meta, "items": objects}

    def _table(self, objects: list[Json], meta: Json) -> Json:
        return table(self.resource, objects, meta, include=self.include, version=self.version)


def negotiate(request: web.Request, resource: Resource) -> Representation:
    """The first form of the Accept header that this server writes. Raises `ApiError` 406 where there is none."""
    include = request.query.get("includeObject", "Metadata")
    accepted = ",".join(request.headers.getall("Accept", [])) or "*/*"
    for clause in accepted.split(","):
        media_type, *rest = (part.strip() for part in clause.split(";"))
        parameters = dict(part.partition("=")[::2] for part in rest)
        if media_type not in (_SUPPORTED, "application/*", "*/*"):
            continue
        if "as" not in parameters:
            return Representation(resource, Form.OBJECT, "v1", include)
        offered = parameters.get("g") == "meta.k8s.io" and parameters.get("v") in _VERSIONS
        if offered and parameters["as"] in {form.value for form in Form} - {Form.OBJECT.value}:
            return Representation(resource, Form(parameters["as"]), parameters["v"], include)
    raise errors.not_acceptable(_SUPPORTED)


def respond(body: Json, status: int = 200, warnings: Iterable[str] = ()) -> web.Response:
    """A JSON answer; every warning becomes a ``Warning: 299`` header, which kubectl shows to its user."""
    response = web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
    for warning in warnings:
        text = " ".join(warning.split()).replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{text}"')
    return response
