"""From an HTTP request to one of the reads and writes, and back."""

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
import yaml
from aiohttp import web

from lab.apiserver import discovery, errors, openapi, protobuf, reviews
from lab.apiserver.admission import Call
from lab.apiserver.auth import Tokens, User
from lab.apiserver.errors import ApiError, PageNotFound
from lab.apiserver.objects import Json, name_of
from lab.apiserver.patches import (
    APPLY_PATCH,
    JSON_PATCH,
    MERGE_PATCH,
    STRATEGIC_PATCH,
    json_patch,
    merge_patch,
    strategic_patch,
)
from lab.apiserver.representation import negotiate, respond
from lab.apiserver.resources import NAMESPACES, OWN_GROUPS, Registry, Resource
from lab.apiserver.store import Store
from lab.apiserver.watch import Selection, read_list, watch
from lab.apiserver.writes import Writes

_log = logging.getLogger(__name__)

_LARGEST_BODY = 3 * 1024 * 1024  # as on a real server
_PATCHES: dict[str, Callable[[Json, object], Json]] = {
    JSON_PATCH: json_patch,
    MERGE_PATCH: merge_patch,
    STRATEGIC_PATCH: strategic_patch,
}
_OPEN_PATHS = ("healthz", "livez", "readyz", "version")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Target:
    """What a path below /api or /apis names. ``name`` is empty for the collection."""

    resource: Resource
    namespace: str
    name: str
    subresource: str


class Api:
    """The HTTP face of one store."""

    def __init__(self, store: Store, registry: Registry, writes: Writes, tokens: Tokens) -> None:
        self._store = store
        self._registry = registry
        self._writes = writes
        self._tokens = tokens

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_LARGEST_BODY, middlewares=[_errors_as_status])
        app.router.add_route("*", "/{path:.*}", self._dispatch)
        return app

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        parts = [part for part in request.path.split("/") if part]
        head = parts[0] if parts else ""
        if head in _OPEN_PATHS and "Authorization" not in request.headers:
            return _open_document(head)
        user = self._tokens.authenticate(request)
        if head in _OPEN_PATHS:
            return _open_document(head)
        if head == "openapi" and len(parts) > 1:
            return self._openapi(request, parts[1:])
        if head == "api" and len(parts) > 2 and parts[1] == "v1":
            return await self._serve(request, user, "", "v1", parts[2:])
        if head == "apis" and len(parts) > 3:
            return await self._serve(request, user, parts[1], parts[2], parts[3:])
        return respond(self._discover(request, parts))

    def _discover(self, request: web.Request, parts: list[str]) -> Json:
        match parts:
            case []:
                return {
                    "paths": [
                        "/api",
                        "/apis",
                        "/healthz",
                        "/livez",
                        "/openapi/v2",
                        "/openapi/v3",
                        "/readyz",
                        "/version",
                    ]
                }
            case ["api"]:
                return discovery.core_versions(request.host)
            case ["api", "v1"]:
                return discovery.resources(self._registry, "", "v1")
            case ["apis"]:
                return discovery.groups(self._registry)
            case ["apis", group]:
                return discovery.group(self._registry, group)
            case ["apis", group, version]:
                return discovery.resources(self._registry, group, version)
        raise PageNotFound

    def _openapi(self, request: web.Request, parts: list[str]) -> web.Response:
        if parts == ["v2"]:
            if "protobuf" in request.headers.get("Accept", ""):
                body = openapi.protobuf_v2(self._registry)
                return web.Response(body=body, headers={"Content-Type": openapi.PROTOBUF_V2})
            return respond(openapi.document_v2(self._registry))
        if parts[0] != "v3":
            raise errors.no_such_path()
        rest = "/".join(parts[1:])
        return respond(openapi.document(self._registry, rest) if rest else openapi.index(self._registry))

    async def _serve(
        self, request: web.Request, user: User, group: str, version: str, parts: list[str]
    ) -> web.StreamResponse:
        if parts[0] in discovery.REVIEWS and discovery.REVIEWS[parts[0]][0] == group and len(parts) == 1:
            if request.method != "POST":
                raise errors.method_not_allowed()
            return respond(reviews.answer(parts[0], await _body(request), user, self._tokens), HTTPStatus.CREATED)
        target = self._target(group, version, parts)
        if target.name:
            return await self._serve_object(request, user, target)
        return await self._serve_collection(request, user, target)

    def _target(self, group: str, version: str, parts: list[str]) -> _Target:
        """Read the path below a group's version. Raises `ApiError` 404."""
        namespace = ""
        # /namespaces/NAME/status is about the namespace, /namespaces/NAME/configmaps about what is in it.
        if parts[0] == "namespaces" and len(parts) > 2 and not (group == "" and parts[2] in ("status", "finalize")):
            namespace, parts = parts[1], parts[2:]
        resource = self._registry.find(group, version, parts[0])
        if resource is None or len(parts) > 3 or (namespace and not resource.namespaced):
            raise errors.no_such_path() if group in OWN_GROUPS else PageNotFound
        name, subresource = (*parts[1:], "", "")[:2]
        if subresource and subresource not in resource.subresources:
            raise errors.no_such_path()
        if name and resource.namespaced and not namespace:
            raise errors.no_such_path()
        return _Target(resource, namespace, name, subresource)

    async def _serve_collection(self, request: web.Request, user: User, target: _Target) -> web.StreamResponse:
        if request.method == "POST":
            return await self._create(request, user, target)
        if request.method == "GET":
            form = negotiate(request, target.resource)
            selection = Selection(target.resource, target.namespace, request)
            if request.query.get("watch", "").lower() in ("1", "true"):
                return await watch(request, self._store, selection, form)
            return respond(read_list(self._store, selection, form))
        if request.method == "DELETE":
            return await self._delete_collection(request, user, target)
        raise errors.method_not_allowed()

    async def _serve_object(self, request: web.Request, user: User, target: _Target) -> web.StreamResponse:
        form = negotiate(request, target.resource)
        if request.method == "GET" and target.subresource != "finalize":
            stored = self._store.get(target.resource.storage, target.namespace, target.name)
            if stored is None:
                raise errors.not_found(target.resource, target.name)
            return respond(form.one(stored))
        if request.method == "DELETE" and not target.subresource:
            return await self._delete(request, user, target)
        if request.method == "PUT":
            body = await _body(request)
            call = _call(request, user, target, ("fieldManager", "fieldValidation"))
            written = await self._writes.update(call, lambda _: body)
            return respond(form.one(written), warnings=call.warnings)
        if request.method == "PATCH" and target.subresource != "finalize":
            return await self._patch(request, user, target)
        raise errors.method_not_allowed()

    async def _create(self, request: web.Request, user: User, target: _Target) -> web.StreamResponse:
        form = negotiate(request, target.resource)
        body = await _body(request)
        if target.resource.namespaced and not target.namespace:
            raise errors.method_not_allowed()
        name = name_of(body) if isinstance(body.get("metadata"), dict) else ""
        named = _Target(target.resource, target.namespace, name, "")
        call = _call(request, user, named, ("fieldManager", "fieldValidation"))
        created = await self._writes.create(call, body)
        return respond(form.one(created), HTTPStatus.CREATED, call.warnings)

    async def _patch(self, request: web.Request, user: User, target: _Target) -> web.StreamResponse:
        form = negotiate(request, target.resource)
        kind = request.content_type
        supported = [name for name in _PATCHES if name != STRATEGIC_PATCH or not target.resource.custom]
        if kind not in supported:
            why = "the embedded cluster has no server-side apply" if kind == APPLY_PATCH else ""
            raise errors.unsupported_media(supported, why)
        patch = _parsed(await request.read(), "application/json")
        call = _call(request, user, target, ("fieldManager", "fieldValidation"))
        written = await self._writes.update(call, lambda old: _PATCHES[kind](old, patch), patch=True)
        return respond(form.one(written), warnings=call.warnings)

    async def _delete(self, request: web.Request, user: User, target: _Target) -> web.StreamResponse:
        call = _call(request, user, target, (), await _delete_options(request))
        obj, gone = await self._writes.delete(call)
        resource = target.resource
        # A namespace is answered with itself even when it goes at once; other kinds with a bare success.
        if not gone or resource.storage == NAMESPACES:
            return respond(negotiate(request, resource).one(obj), warnings=call.warnings)
        details = {"name": target.name, "kind": resource.plural, "uid": obj["metadata"]["uid"]}
        if resource.group:
            details["group"] = resource.group
        body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return respond(body, warnings=call.warnings)

    async def _delete_collection(self, request: web.Request, user: User, target: _Target) -> web.StreamResponse:
        resource = target.resource
        if resource.namespaced and not target.namespace:
            raise errors.method_not_allowed()
        form = negotiate(request, resource)
        options = await _delete_options(request)
        selection = Selection(resource, target.namespace, request)
        chosen = [obj for obj in self._store.all(resource.storage, target.namespace) if selection.matches(obj)]
        warnings: list[str] = []
        for obj in chosen:
            one = _Target(resource, target.namespace, name_of(obj), "")
            call = _call(request, user, one, (), options)
            try:
                await self._writes.delete(call)
            except ApiError as error:
                if error.code != HTTPStatus.NOT_FOUND:  # gone meanwhile is as good as deleted
                    raise
            warnings += call.warnings
        return respond(form.many(chosen, {"resourceVersion": str(self._store.revision)}), warnings=warnings)


def _open_document(head: str) -> web.Response:
    return respond(discovery.version()) if head == "version" else web.Response(text="ok")


def _call(
    request: web.Request, user: User, target: _Target, names: tuple[str, ...], options: Json | None = None
) -> Call:
    """The write that a request asks for, with its options from the query (and, for a delete, the body)."""
    options = dict(options or {})
    dry_run = request.query.getall("dryRun", [])
    if dry_run:
        options["dryRun"] = dry_run
    if options.get("dryRun") and options["dryRun"] != ["All"]:
        raise errors.bad_request(f'dryRun: Unsupported value: {options["dryRun"]}: supported values: "All"')
    options |= {name: request.query[name] for name in names if request.query.get(name)}
    return Call(target.resource, target.namespace, target.name, target.subresource, user, options)


async def _delete_options(request: web.Request) -> Json:
    raw = await request.read()
    body = _parsed(raw, request.content_type) if raw else {}
    if not isinstance(body, dict):
        raise errors.bad_request("DeleteOptions must be an object")
    options = {key: value for key, value in body.items() if key not in ("kind", "apiVersion") and value is not None}
    for name in ("propagationPolicy", "gracePeriodSeconds"):
        if request.query.get(name):
            options[name] = request.query[name]
    return options


async def _body(request: web.Request) -> Json:
    """The object in a request's body. Raises `ApiError` 400 or 415."""
    body = _parsed(await request.read(), request.content_type)
    if not isinstance(body, dict):
        raise errors.bad_request("the object provided is unrecognized: expected an object")
    return body


def _parsed(raw: bytes, content_type: str) -> object:
    try:
        # Clients that send JSON without saying so are common; aiohttp then reports octet-stream.
        if content_type in ("application/json", "application/octet-stream"):
            parsed: object = msgspec.json.decode(raw)
        elif content_type in ("application/yaml", "text/yaml"):
            # Through JSON, so that a date in YAML is refused here and not when it is stored.
            parsed = json.loads(json.dumps(yaml.safe_load(raw)))
        elif content_type == protobuf.MEDIA_TYPE:
            parsed = protobuf.decode(raw)
        else:
            raise errors.unsupported_media(["application/json", "application/yaml"])
    except (msgspec.DecodeError, yaml.YAMLError, TypeError, ValueError) as error:
        raise errors.bad_request(f"the object provided is unrecognized: {error}") from error
    return parsed


@web.middleware
async def _errors_as_status(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except PageNotFound as error:
        return web.Response(text=f"{error.message}\n", status=error.code)
    except ApiError as error:
        return respond(error.status(), error.code)
    except web.HTTPException as error:
        reason = HTTPStatus(error.status).phrase.title().replace(" ", "")
        return respond(ApiError(error.status, reason, error.reason).status(), error.status)
    except ConnectionError:
        raise
    except Exception as error:  # noqa: BLE001 - the client gets a Status whatever went wrong, the log the traceback
        _log.exception("%s %s failed", request.method, request.path)
        failure = errors.internal(f"{type(error).__name__}: {error}")
        return respond(failure.status(), failure.code)
