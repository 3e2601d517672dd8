"""Errors of the API, each of which becomes a ``metav1.Status`` body with the code, reason and words of Kubernetes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from lab.apiserver.objects import Json

if TYPE_CHECKING:
    from lab.apiserver.resources import Resource


class ApiError(Exception):
    """A refusal as the client will see it."""

    def __init__(self, code: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> Json:
        """The ``metav1.Status`` of this error."""
        body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details:
            body["details"] = self.details
        return body | {"code": self.code}


@dataclass(frozen=True, slots=True)
class Cause:
    """One field's problem: the machine-readable reason, the field's path, and what is wrong with it."""

    reason: str
    field: str
    message: str

    @classmethod
    def invalid(cls, field: str, value: object, why: str) -> Cause:
        return cls("FieldValueInvalid", field, f"Invalid value: {_shown(value)}: {why}")

    @classmethod
    def required(cls, field: str, why: str = "") -> Cause:
        return cls("FieldValueRequired", field, "Required value" + (f": {why}" if why else ""))

    @classmethod
    def forbidden(cls, field: str, why: str) -> Cause:
        return cls("FieldValueForbidden", field, f"Forbidden: {why}")

    @classmethod
    def unsupported(cls, field: str, value: object, supported: Sequence[object]) -> Cause:
        listed = ", ".join(_shown(item) for item in supported)
        return cls("FieldValueNotSupported", field, f"Unsupported value: {_shown(value)}: supported values: {listed}")


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return json.dumps(json.dumps(value, separators=(",", ":")))
    return json.dumps(value, ensure_ascii=False)


def _details(resource: Resource, name: str) -> Json:
    details: Json = {"name": name} if name else {}
    if resource.group:
        details["group"] = resource.group
    return details | {"kind": resource.plural}


def not_found(resource: Resource, name: str) -> ApiError:
    return ApiError(
        HTTPStatus.NOT_FOUND, "NotFound", f'{resource.qualified} "{name}" not found', _details(resource, name)
    )


class PageNotFound(ApiError):
    """No group of the server's own has this path: a real server then answers with bare text, not with a Status."""

    def __init__(self) -> None:
        super().__init__(HTTPStatus.NOT_FOUND, "NotFound", "404 page not found")


def no_such_path() -> ApiError:
    return ApiError(HTTPStatus.NOT_FOUND, "NotFound", "the server could not find the requested resource")


def already_exists(resource: Resource, name: str) -> ApiError:
    message = f'{resource.qualified} "{name}" already exists'
    return ApiError(HTTPStatus.CONFLICT, "AlreadyExists", message, _details(resource, name))


def conflict(resource: Resource, name: str, why: str) -> ApiError:
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return ApiError(HTTPStatus.CONFLICT, "Conflict", message, _details(resource, name))


def modified(resource: Resource, name: str) -> ApiError:
    """The optimistic lock failed."""
    why = "the object has been modified; please apply your changes to the latest version and try again"
    return conflict(resource, name, why)


def invalid(resource: Resource, name: str, causes: Sequence[Cause]) -> ApiError:
    """422 with every cause; ``causes`` must not be empty."""
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    lines = [f"{cause.field}: {cause.message}" for cause in causes]
    told = lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"
    details = _details(resource, name) | {
        "kind": resource.kind,
        "causes": [{"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in causes],
    }
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid", f'{kind} "{name}" is invalid: {told}', details)


def bad_request(message: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, "BadRequest", message)


def forbidden(resource: Resource, name: str, why: str, cause: Json | None = None) -> ApiError:
    details = _details(resource, name) | ({"causes": [cause]} if cause else {})
    message = f'{resource.qualified} "{name}" is forbidden: {why}'
    return ApiError(HTTPStatus.FORBIDDEN, "Forbidden", message, details)


def unauthorized() -> ApiError:
    return ApiError(HTTPStatus.UNAUTHORIZED, "Unauthorized", "Unauthorized")


def method_not_allowed() -> ApiError:
    message = "the server does not allow this method on the requested resource"
    return ApiError(HTTPStatus.METHOD_NOT_ALLOWED, "MethodNotAllowed", message)


def not_acceptable(supported: str) -> ApiError:
    message = f"only the following media types are accepted: {supported}"
    return ApiError(HTTPStatus.NOT_ACCEPTABLE, "NotAcceptable", message)


def unsupported_media(supported: Sequence[str], why: str = "") -> ApiError:
    message = "the body of the request was in an unknown format - accepted media types include: " + ", ".join(supported)
    code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    return ApiError(code, "UnsupportedMediaType", message + (f" ({why})" if why else ""))


def too_old(revision: int, oldest: int) -> ApiError:
    """The watch would need changes that the history no longer holds: the client must list again."""
    return ApiError(HTTPStatus.GONE, "Expired", f"too old resource version: {revision} ({oldest})")


def continue_expired() -> ApiError:
    message = (
        "The provided continue parameter is too old to display a consistent list result. You can start a new list"
        " without the continue parameter."
    )
    return ApiError(HTTPStatus.GONE, "Expired", message)


def too_large(revision: int, current: int) -> ApiError:
    """The client has seen a revision that this server has not reached."""
    return ApiError(
        HTTPStatus.GATEWAY_TIMEOUT,
        "Timeout",
        f"Timeout: Too large resource version: {revision}, current: {current}",
        {"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]},
    )


def internal(message: str) -> ApiError:
    details = {"causes": [{"message": message}]}
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", f"Internal error occurred: {message}", details)
