"""AdmissionReview v1 on the wire: the request as a value, the answers as bytes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from egress.objects import ADDRESSES_ANNOTATION


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


class Request(msgspec.Struct, frozen=True, rename="camel"):
    """One admission request for a Namespace. `name` is empty while the API server has not generated one."""

    uid: str
    resource: _Resource
    operation: str
    name: str = ""
    user_info: _User = _User()
    object: NamespaceObject | None = None
    old_object: NamespaceObject | None = None
    dry_run: bool = False


class _Review(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    request: Request


_DECODER = msgspec.json.Decoder(_Review)
Patch = list[dict[str, Any]]


def parse(body: bytes) -> Request:
    """The request in an AdmissionReview; ReviewError if it is none."""
    try:
        review = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReviewError(f"not an AdmissionReview: {error}") from None
    if (review.api_version, review.kind) != ("admission.k8s.io/v1", "AdmissionReview"):
        raise ReviewError(f"expected AdmissionReview admission.k8s.io/v1, got {review.kind} {review.api_version}")
    if (review.request.resource.group, review.request.resource.resource) != ("", "namespaces"):
        raise ReviewError("only namespaces are reviewed here: correct the rules of the webhook configuration")
    return review.request


def allow(uid: str, *, patch: Patch | None = None, warnings: Sequence[str] = ()) -> bytes:
    """The answer that admits, with a JSON patch and warnings for the person at the client."""
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(msgspec.json.encode(patch)).decode()
    if warnings:
        response["warnings"] = list(warnings)
    return _answer(response)


def deny(uid: str, message: str, code: int = 403) -> bytes:
    """The answer that refuses, with the reason that the client prints."""
    return _answer({"uid": uid, "allowed": False, "status": {"code": code, "message": message}})


def annotate(namespace: NamespaceObject, addresses: str) -> Patch:
    """The patch that writes the addresses annotation."""
    if namespace.metadata.annotations is None:
        return [{"op": "add", "path": "/metadata/annotations", "value": {ADDRESSES_ANNOTATION: addresses}}]
    pointer = ADDRESSES_ANNOTATION.replace("~", "~0").replace("/", "~1")
    return [{"op": "add", "path": f"/metadata/annotations/{pointer}", "value": addresses}]


def _answer(response: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
