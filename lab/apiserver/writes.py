"""The four writes in the order of a real server: decode, mutate, complete, check, validate, store.

Admission takes time and other requests go on meanwhile. The store is therefore asked to replace the very object that
was read; where it is no longer there, the write starts again, and a client that named a resourceVersion gets 409.
"""

from collections.abc import Callable
from http import HTTPStatus

from lab.apiserver import crds, errors, kinds, lifecycle
from lab.apiserver.admission import Admission, Call, Operation
from lab.apiserver.conversion import from_storage, to_storage
from lab.apiserver.errors import ApiError, Cause
from lab.apiserver.objects import Json, clone, generated_name, is_terminating, metadata, name_of
from lab.apiserver.resources import CRDS, NAMESPACES, Registry, Resource
from lab.apiserver.store import Stale, Store

_ATTEMPTS = 8


class Writes:
    """All changes of ``store`` go through here; ``registry`` follows the CRDs among them."""

    def __init__(self, store: Store, registry: Registry, admission: Admission) -> None:
        self._store = store
        self._registry = registry
        self._admission = admission
        for crd in store.all(CRDS):
            crds.register(registry, CRDS, crd, gone=False)

    async def create(self, call: Call, body: object) -> Json:
        """Store a new object. Raises `ApiError`."""
        resource = call.resource
        obj = _decoded(call, body)
        if metadata(obj).get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        self._check_room(call, obj)
        if not name_of(obj) and not metadata(obj).get("generateName"):
            raise errors.invalid(resource, "", [Cause.required("metadata.name", "name or generateName is required")])
        mutated = await self._admission.mutate(call, Operation.CREATE, obj, None)
        obj = _decoded(call, mutated)
        if not name_of(obj):
            obj["metadata"]["name"] = self._free_name(call, obj)
        lifecycle.new_metadata(resource, obj)
        lifecycle.check(resource, obj, None)
        await self._admission.validate(call, Operation.CREATE, obj, None)
        self._check_room(call, obj)
        if self._store.get(resource.storage, call.namespace, name_of(obj)) is not None:
            raise errors.already_exists(resource, name_of(obj))
        if call.dry_run:
            return obj
        return from_storage(resource, self._replace(resource, None, to_storage(resource, obj)))

    async def update(self, call: Call, change: Callable[[Json], object], *, patch: bool = False) -> Json:
        """Store what ``change`` makes of the present object; ``change`` is called again after a conflict.

        A ``patch`` need not name a resourceVersion. Raises `ApiError`.
        """
        resource = call.resource
        for _ in range(_ATTEMPTS):
            stored = self._stored(call)
            old = from_storage(resource, stored)
            wanted = _decoded(call, change(old))
            _check_identity(call, wanted, old, patch=patch)
            wanted = lifecycle.carry_over(resource, wanted, old, call.subresource)
            mutated = await self._admission.mutate(call, Operation.UPDATE, wanted, old)
            new = lifecycle.carry_over(resource, _decoded(call, mutated), old, call.subresource)
            lifecycle.count_generation(resource, new, old)
            lifecycle.check(resource, new, old)
            await self._admission.validate(call, Operation.UPDATE, new, old)
            if self._stored(call) is not stored:
                continue
            if call.dry_run or new == old:
                return new
            if is_terminating(new) and not lifecycle.is_held(resource, new):
                return from_storage(resource, self._remove(resource, stored, to_storage(resource, new)))
            return from_storage(resource, self._replace(resource, stored, to_storage(resource, new)))
        raise errors.modified(resource, call.name)

    async def delete(self, call: Call) -> tuple[Json, bool]:
        """Remove an object, or mark it while finalizers hold it: the object, and whether it is gone."""
        resource = call.resource
        if resource.storage == NAMESPACES and call.name in kinds.IMMORTAL_NAMESPACES:
            raise errors.forbidden(resource, call.name, "this namespace may not be deleted")
        for _ in range(_ATTEMPTS):
            stored = self._stored(call)
            lifecycle.check_preconditions(resource, stored, call.options.get("preconditions") or {})
            old = from_storage(resource, stored)
            await self._admission.mutate(call, Operation.DELETE, None, old)
            await self._admission.validate(call, Operation.DELETE, None, old)
            if self._stored(call) is not stored:
                continue
            if not lifecycle.is_held(resource, stored):
                return (old, True) if call.dry_run else (self._remove(resource, stored, stored), True)
            if is_terminating(stored):
                return old, False
            marked = lifecycle.terminating(resource, stored)
            if not call.dry_run:
                marked = self._replace(resource, stored, marked)
            return from_storage(resource, marked), False
        raise errors.modified(resource, call.name)

    def ensure(self, resource: Resource, name: str) -> None:
        """Create a cluster-scoped object that the server itself owns, without admission, unless it exists."""
        if self._store.get(resource.storage, "", name) is None:
            obj, _ = lifecycle.decode(resource, {"metadata": {"name": name}}, "")
            lifecycle.new_metadata(resource, obj)
            self._replace(resource, None, obj)

    def _stored(self, call: Call) -> Json:
        stored = self._store.get(call.resource.storage, call.namespace, call.name)
        if stored is None:
            raise errors.not_found(call.resource, call.name)
        return stored

    def _check_room(self, call: Call, obj: Json) -> None:
        """Raise where a new object's namespace, or its CRD, is missing or on its way out."""
        resource = call.resource
        if resource.namespaced:
            namespace = self._store.get(NAMESPACES, "", call.namespace)
            if namespace is None:
                message = f'namespaces "{call.namespace}" not found'
                raise ApiError(
                    HTTPStatus.NOT_FOUND, "NotFound", message, {"name": call.namespace, "kind": "namespaces"}
                )
            if is_terminating(namespace):
                why = f"unable to create new content in namespace {call.namespace} because it is being terminated"
                told = f"namespace {call.namespace} is being terminated"
                cause = {"reason": "NamespaceTerminating", "message": told, "field": "metadata.namespace"}
                raise errors.forbidden(resource, name_of(obj), why, cause)
        if resource.custom:
            crd = self._store.get(CRDS, "", resource.qualified)
            if crd is None:
                raise errors.no_such_path()
            if is_terminating(crd):
                why = "create not allowed while custom resource definition is terminating"
                raise errors.forbidden(resource, name_of(obj), why)

    def _free_name(self, call: Call, obj: Json) -> str:
        while True:
            name = generated_name(metadata(obj)["generateName"])
            if self._store.get(call.resource.storage, call.namespace, name) is None:
                return name

    def _replace(self, resource: Resource, old: Json | None, new: Json) -> Json:
        try:
            stored = self._store.replace(resource.storage, old, new)
        except Stale as error:
            raise errors.modified(resource, name_of(new)) from error
        crds.register(self._registry, resource.storage, stored, gone=False)
        if resource.storage == CRDS and is_terminating(stored):
            self._empty(stored)
        return stored

    def _remove(self, resource: Resource, old: Json, last: Json) -> Json:
        removed = self._store.remove(resource.storage, old, last)
        crds.register(self._registry, resource.storage, removed, gone=True)
        if resource.custom:
            crd = self._store.get(CRDS, "", resource.qualified)
            if crd is not None and crds.is_being_removed(crd):
                self._finish(crd)
        return removed

    def _empty(self, crd: Json) -> None:
        """Delete the objects of a CRD that is being deleted; those with finalizers stay until these are gone."""
        for resource in crds.resources_of(crd):
            for obj in self._store.all(resource.storage):
                if not lifecycle.is_held(resource, obj):
                    self._store.remove(resource.storage, obj, obj)
                elif not is_terminating(obj):
                    self._store.replace(resource.storage, obj, lifecycle.terminating(resource, obj))
        self._finish(crd)

    def _finish(self, crd: Json) -> None:
        """Remove a CRD that only the cleanup finalizer holds, once it has no objects."""
        current = self._store.get(CRDS, "", name_of(crd))
        if current is None or not crds.is_being_removed(current) or self._store.all(crds.storage_of(crd)):
            return
        last = clone(current)
        del last["metadata"]["finalizers"]
        removed = self._store.remove(CRDS, current, last)
        crds.register(self._registry, CRDS, removed, gone=True)


def _decoded(call: Call, body: object) -> Json:
    """The object, with a complaint about unknown fields as ``fieldValidation`` asks: Strict, Warn or Ignore."""
    resource = call.resource
    obj, unknown = lifecycle.decode(resource, body, call.namespace)
    mode = call.options.get("fieldValidation") or "Warn"
    problems = [f'unknown field "{path}"' for path in unknown]
    if problems and mode == "Strict":
        what = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
        raise errors.bad_request(f"{what}: strict decoding error: {', '.join(problems)}")
    if mode == "Warn":
        call.warnings.extend(problem for problem in problems if problem not in call.warnings)
    return obj


def _check_identity(call: Call, wanted: Json, old: Json, *, patch: bool) -> None:
    """Raise where an update names another object, or another state of it, than the one that is stored."""
    resource, meta, present = call.resource, metadata(wanted), metadata(old)
    if (name_of(wanted) or call.name) != call.name:
        told = f"the name of the object ({name_of(wanted)}) does not match the name on the URL ({call.name})"
        raise errors.bad_request(told)
    if meta.get("uid") and meta["uid"] != present["uid"]:
        why = f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {present['uid']}"
        raise errors.conflict(resource, call.name, why)
    version = meta.get("resourceVersion")
    if version and version != present["resourceVersion"]:
        raise errors.modified(resource, call.name)
    if not version and not patch and not resource.unconditional_update:
        cause = Cause.invalid("metadata.resourceVersion", 0, "must be specified for an update")
        raise errors.invalid(resource, call.name, [cause])
