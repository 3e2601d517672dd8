"""AdmissionReview v1 on the wire: the request as a value, the answers as bytes."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")
Manifest = dict[str, Any]
NAMESPACES = ("", "namespaces")
"""A resource's group and plural name."""


class ReviewError(ValueError):
    """The body is not an AdmissionReview that Hawse understands; the message says what is wrong with it."""


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    generate_name: str = ""
    uid: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class NamespaceObject(msgspec.Struct, frozen=True):
    """What admission reads of a Namespace."""

    metadata: _Meta = _Meta()

    @property
    def labels(self) -> dict[str, str]:
        """Its labels, if any."""
        return self.metadata.labels or {}

    @property
    def annotations(self) -> dict[str, str]:
        """Its annotations, if any."""
        return self.metadata.annotations or {}


class _Resource(msgspec.Struct, frozen=True):
    group: str = ""
    resource: str = ""


class _User(msgspec.Struct, frozen=True):
    username: str = ""


class Request(msgspec.Struct, Generic[T], frozen=True, rename="camel"):
    """One admission request. `name` is empty while the API server has not generated one."""

    uid: str
    resource: _Resource
    operation: str
    name: str = ""
    user_info: _User = _User()
    object: T | None = None
    old_object: T | None = None
    dry_run: bool = False


class _Review(msgspec.Struct, Generic[T], frozen=True, rename="camel"):
    api_version: str
    kind: str
    request: Request[T]


_NAMESPACE_DECODER = msgspec.json.Decoder(_Review[NamespaceObject])
_DECODER = msgspec.json.Decoder(_Review[Manifest])
Patch = list[dict[str, Any]]


def parse(body: bytes) -> Request[NamespaceObject]:
    """The request for a Namespace in an AdmissionReview; ReviewError if it is none."""
    return _parsed(_NAMESPACE_DECODER, body, NAMESPACES)


def parse_object(body: bytes, resource: tuple[str, str]) -> Request[Manifest]:
    """The request for an object of `resource` in an AdmissionReview; ReviewError if it is none."""
    return _parsed(_DECODER, body, resource)


def _parsed(decoder: msgspec.json.Decoder[_Review[T]], body: bytes, resource: tuple[str, str]) -> Request[T]:
    try:
        review = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReviewError(f"not an AdmissionReview: {error}") from None
    if (review.api_version, review.kind) != ("admission.k8s.io/v1", "AdmissionReview"):
        raise ReviewError(f"expected AdmissionReview admission.k8s.io/v1, got {review.kind} {review.api_version}")
    if (review.request.resource.group, review.request.resource.resource) != resource:
        raise ReviewError(f"only {resource[1]} are reviewed here: correct the rules of the webhook configuration")
    return review.request


class Outcome(StrEnum):
    """What became of a request, for the metrics."""

    ADMITTED = "admitted"
    ASSIGNED = "assigned"
    """Admitted with an egress address."""
    WITHOUT_ADDRESS = "admitted_without_address"
    """A pool serves the namespace, and it gets its address later."""
    REFUSED = "refused"
    ERROR = "error"
    """Hawse has no answer: the API server does what failurePolicy says."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An AdmissionReview that answers a request, as bytes, and what it says."""

    outcome: Outcome
    body: bytes


def allow(
    uid: str, *, patch: Patch | None = None, warnings: Sequence[str] = (), outcome: Outcome = Outcome.ADMITTED
) -> Answer:
    """The answer that admits, with a JSON patch and warnings for the person at the client."""
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(msgspec.json.encode(patch)).decode()
    if warnings:
        response["warnings"] = list(warnings)
    return Answer(outcome, _encoded(response))


def deny(uid: str, message: str, code: int = 403) -> Answer:
    """The answer that refuses, with the reason that the client prints."""
    return Answer(
        Outcome.REFUSED, _encoded({"uid": uid, "allowed": False, "status": {"code": code, "message": message}})
    )


def annotate(namespace: NamespaceObject, annotations: Mapping[str, str]) -> Patch:
    """The patch that writes `annotations`, and leaves the namespace's others as they are."""
    if namespace.metadata.annotations is None:
        return [{"op": "add", "path": "/metadata/annotations", "value": dict(annotations)}]
    return [{"op": "add", "path": _pointer(name), "value": value} for name, value in annotations.items()]


def strip(namespace: NamespaceObject, names: Iterable[str]) -> Patch:
    """The patch that takes the annotations of these `names` away, as far as the namespace has them."""
    return [{"op": "remove", "path": _pointer(name)} for name in names if name in namespace.annotations]


def _pointer(annotation: str) -> str:
    return f"/metadata/annotations/{annotation.replace('~', '~0').replace('/', '~1')}"


def _encoded(response: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
