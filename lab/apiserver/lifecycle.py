"""What becomes of an object between the client's bytes and the store: decoding, metadata rules, who may change what.

Every function here is pure but for the clock and the random uid; `writes` puts them in order around admission.
"""

import uuid
from collections.abc import Iterator

from lab.apiserver import crds, errors, kinds, schema
from lab.apiserver.errors import Cause
from lab.apiserver.objects import (
    Json,
    clone,
    dig,
    finalizers_of,
    is_terminating,
    label_value_problem,
    metadata,
    name_of,
    name_problem,
    qualified_name_problem,
    timestamp,
)
from lab.apiserver.resources import CRDS, NAMESPACES, Resource

_MUTABLE_METADATA = ("labels", "annotations", "finalizers", "ownerReferences")
_STRING_MAPS = ("labels", "annotations")
_LISTS = ("finalizers", "ownerReferences")


def decode(resource: Resource, body: object, namespace: str) -> tuple[Json, list[str]]:
    """An object as a client sent it, defaulted and pruned, and the paths of the fields that were pruned.

    Raises `ApiError` 400 where kind, apiVersion, namespace or the shape of the metadata are wrong.
    """
    if not isinstance(body, dict):
        raise errors.bad_request(f"the object provided is unrecognized: expected a {resource.kind} as a JSON object")
    obj = clone(body)
    _check_kind(resource, obj)
    meta = obj["metadata"] = _metadata(resource, obj)
    if resource.namespaced:
        if meta.setdefault("namespace", namespace) != namespace:
            raise errors.bad_request(
                f"the namespace of the provided object does not match the namespace sent on the request"
                f" ({meta['namespace']} and {namespace})"
            )
    else:
        meta.pop("namespace", None)
    removed: list[str] = []
    if resource.schema is not None:
        removed = schema.prune(obj, resource.schema)
        schema.apply_defaults(obj, resource.schema)
    kinds.fill_in(resource, obj)
    return obj, removed


def _check_kind(resource: Resource, obj: Json) -> None:
    """Raise where an object is not of the resource's kind; a built-in kind may be left out, a custom one not."""
    if resource.custom:
        if not obj.get("kind"):
            told = "the object provided is unrecognized"
            raise errors.bad_request(f"{told} (must be of type {resource.kind}): Object 'Kind' is missing")
        if obj.get("apiVersion", "") != resource.api_version:
            told = f"the API version in the data ({obj.get('apiVersion', '')})"
            raise errors.bad_request(f"{told} does not match the expected API version ({resource.api_version})")
        if obj["kind"] != resource.kind:
            cause = Cause.invalid("kind", obj["kind"], f"must be {resource.kind}")
            raise errors.invalid(resource, name_of(obj), [cause])
        return
    obj.setdefault("apiVersion", resource.api_version)
    obj.setdefault("kind", resource.kind)
    if (obj["apiVersion"], obj["kind"]) != (resource.api_version, resource.kind):
        version = str(obj["apiVersion"]).rpartition("/")[2]
        told = f'{obj["kind"]} in version "{version}" cannot be handled as a {resource.kind}'
        raise errors.bad_request(f"{told}: expected {resource.kind} in {resource.api_version}")


def _metadata(resource: Resource, obj: Json) -> Json:
    meta = obj.get("metadata") or {}
    problem = None
    if not isinstance(meta, dict):
        problem = "metadata must be an object"
    else:
        for key in _STRING_MAPS:
            value = meta.get(key) or {}
            if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
                problem = f"metadata.{key} must map strings to strings"
        for key in _LISTS:
            if not isinstance(meta.get(key) or [], list):
                problem = f"metadata.{key} must be a list"
        for key in ("name", "generateName", "namespace", "resourceVersion", "uid"):
            if not isinstance(meta.get(key) or "", str):
                problem = f"metadata.{key} must be a string"
    if problem:
        version = f'"{resource.version}"'
        kind = resource.kind
        raise errors.bad_request(f"{kind} in version {version} cannot be handled as a {kind}: {problem}")
    meta.pop("managedFields", None)
    meta.pop("selfLink", None)
    # An empty value is the same as none, and a comparison with the stored object must not see a difference.
    return {key: value for key, value in meta.items() if value not in (None, "", [], {})}


def new_metadata(resource: Resource, obj: Json) -> None:
    """Give, in place, a new object what only the server sets; its name must be settled."""
    meta = obj["metadata"]
    for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "generation"):
        meta.pop(key, None)
    meta["uid"] = str(uuid.uuid4())
    meta["creationTimestamp"] = timestamp()
    if resource.generation:
        meta["generation"] = 1
    if resource.custom and resource.status:
        obj.pop("status", None)
    kinds.finish_new(resource, obj)


def carry_over(resource: Resource, new: Json, old: Json, subresource: str) -> Json:
    """The object that an update asks for: ``new`` where this endpoint may write, ``old`` everywhere else."""
    if subresource == "status":
        result = _only(("status",), new, old)
        if resource.status_metadata:
            result["metadata"] = _kept_metadata(new, old)
        return result
    if subresource == "finalize":
        result = clone(old)
        result["spec"] = {**result.get("spec", {}), "finalizers": dig(new, "spec", "finalizers") or []}
        return result
    result = clone(new)
    result["metadata"] = _kept_metadata(new, old)
    if resource.status:
        result = _only(("status",), old, result)
    if resource.storage == NAMESPACES:
        result["spec"] = clone(old["spec"])
    if resource.storage == CRDS:
        crds.establish(result)
    return result


def _only(keys: tuple[str, ...], source: Json, base: Json) -> Json:
    result = clone(base)
    for key in keys:
        if key in source:
            result[key] = clone(source[key])
        else:
            result.pop(key, None)
    return result


def _kept_metadata(new: Json, old: Json) -> Json:
    kept = {key: value for key, value in metadata(old).items() if key not in _MUTABLE_METADATA}
    return clone(kept | {key: value for key, value in metadata(new).items() if key in _MUTABLE_METADATA and value})


def count_generation(resource: Resource, new: Json, old: Json) -> None:
    """Raise, in place, ``metadata.generation`` where something other than metadata and status has changed."""
    if not resource.generation:
        return
    beside = {"metadata", "status"} if resource.status else {"metadata"}
    changed = any(new.get(key) != old.get(key) for key in (new.keys() | old.keys()) - beside)
    new["metadata"]["generation"] = metadata(old).get("generation", 1) + changed


def check(resource: Resource, new: Json, old: Json | None) -> None:
    """Raise `ApiError` 422 with everything that is wrong with an object about to be stored."""
    causes = [*_check_metadata(resource, new, old), *kinds.check(resource, new)]
    if resource.schema is not None:
        described = {key: value for key, value in new.items() if key != "metadata"}
        causes += [cause for cause in schema.validate(described, resource.schema) if cause.field != "metadata"]
    if causes:
        raise errors.invalid(resource, name_of(new), causes)


def _check_metadata(resource: Resource, new: Json, old: Json | None) -> Iterator[Cause]:
    name = name_of(new)
    if not name:
        yield Cause.required("metadata.name", "name or generateName is required")
    elif old is None and (problem := name_problem(name, label=resource.label_name)):
        yield Cause.invalid("metadata.name", name, problem)
    for key, value in (metadata(new).get("labels") or {}).items():
        if problem := qualified_name_problem(key):
            yield Cause.invalid("metadata.labels", key, problem)
        if problem := label_value_problem(value):
            yield Cause.invalid("metadata.labels", value, problem)
    for key in metadata(new).get("annotations") or {}:
        if problem := qualified_name_problem(key.lower()):
            yield Cause.invalid("metadata.annotations", key, problem)
    if old is not None and is_terminating(old):
        added = [finalizer for finalizer in finalizers_of(new) if finalizer not in finalizers_of(old)]
        if added:
            shown = ", ".join(f'"{finalizer}"' for finalizer in added)
            why = "no new finalizers can be added if the object is being deleted, found new finalizers []string{"
            yield Cause.forbidden("metadata.finalizers", f"{why}{shown}}}")


def check_preconditions(resource: Resource, obj: Json, wanted: Json) -> None:
    """Raise `ApiError` 409 where the uid or resourceVersion of a delete's preconditions is not the object's."""
    meta = metadata(obj)
    for key, label, story in (
        ("uid", "UID", "been deleted and then recreated"),
        ("resourceVersion", "ResourceVersion", "been modified"),
    ):
        if wanted.get(key) and wanted[key] != meta[key]:
            why = (
                f"the {label} in the precondition ({wanted[key]}) does not match the {label} in record ({meta[key]})."
                f" The object might have {story}"
            )
            raise errors.conflict(resource, name_of(obj), why)


def is_held(resource: Resource, obj: Json) -> bool:
    """Whether finalizers still keep an object that is to be deleted."""
    held = bool(finalizers_of(obj))
    return held or (resource.storage == NAMESPACES and bool(dig(obj, "spec", "finalizers")))


def terminating(resource: Resource, obj: Json) -> Json:
    """The object as it waits for its finalizers after a DELETE."""
    result = clone(obj)
    meta = result["metadata"]
    meta["deletionTimestamp"] = timestamp()
    if resource.storage == CRDS:
        crds.mark_terminating(result)
        return result
    meta["deletionGracePeriodSeconds"] = 0
    if "generation" in meta:
        meta["generation"] += 1
    if resource.storage == NAMESPACES:
        result["status"] = {**result.get("status", {}), "phase": "Terminating"}
        del meta["deletionGracePeriodSeconds"]
    return result
