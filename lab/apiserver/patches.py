"""The three patch formats. Each function returns a new object and leaves its arguments alone."""

from http import HTTPStatus

import jsonpatch  # type: ignore[import-untyped, unused-ignore]
import jsonpointer  # type: ignore[import-untyped, unused-ignore]

from lab.apiserver import errors
from lab.apiserver.objects import Json, clone, dig

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

# Lists that Kubernetes merges by a key instead of replacing them, by the last parts of their path.
# "" is a list of plain values, merged as a set. Lists not named here are replaced as a whole.
_MERGE_KEYS: dict[tuple[str, ...], str] = {
    ("metadata", "finalizers"): "",
    ("metadata", "ownerReferences"): "uid",
    ("status", "conditions"): "type",
    ("status", "addresses"): "type",
    ("webhooks",): "name",
    ("secrets",): "name",
    ("imagePullSecrets",): "name",
    ("spec", "ports"): "port",
    ("spec", "containers"): "name",
    ("spec", "volumes"): "name",
}


def json_patch(document: Json, operations: object) -> Json:
    """RFC 6902. Raises `ApiError`: 400 where the patch is malformed, 422 where it does not apply."""
    if not isinstance(operations, list) or not all(isinstance(item, dict) for item in operations):
        raise errors.bad_request("json patch must be a list of operations")
    try:
        patched = jsonpatch.JsonPatch(clone(operations)).apply(document)
    except jsonpatch.InvalidJsonPatch as error:
        raise errors.bad_request(f"error decoding patch: {error}") from error
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, TypeError, KeyError) as error:
        raise errors.ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid", f"patch does not apply: {error}") from error
    if not isinstance(patched, dict):
        raise errors.bad_request("the patched document is not an object")
    return patched


def merge_patch(document: Json, patch: object) -> Json:
    """RFC 7386: maps merge, null removes, everything else (lists too) replaces."""
    if not isinstance(patch, dict):
        raise errors.bad_request("a merge patch must be an object")
    return _merged(document, patch)


def _merged(document: object, patch: Json) -> Json:
    merged = clone(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = _merged(merged.get(key), value)
        else:
            merged[key] = clone(value)
    return merged


def strategic_patch(document: Json, patch: object) -> Json:
    """Kubernetes' strategic merge patch, as far as the built-in kinds here need it.

    Maps merge; the lists of ``_MERGE_KEYS`` merge by their key; ``$patch: delete`` and ``replace``,
    ``$deleteFromPrimitiveList/…`` and ``$retainKeys`` are honoured, ``$setElementOrder/…`` is ignored: the order of
    those lists carries no meaning here.
    """
    if not isinstance(patch, dict):
        raise errors.bad_request("a strategic merge patch must be an object")
    return _strategic(document, patch, ())


def _strategic(document: object, patch: Json, path: tuple[str, ...]) -> Json:
    if patch.get("$patch") == "replace":
        return {key: clone(value) for key, value in patch.items() if key != "$patch"}
    merged: Json = clone(document) if isinstance(document, dict) else {}
    if "$retainKeys" in patch:
        merged = {key: value for key, value in merged.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if key.startswith("$"):
            directive, _, field = key.partition("/")
            if directive == "$deleteFromPrimitiveList":
                merged[field] = [item for item in merged.get(field) or [] if item not in value]
        elif value is None or dig(value, "$patch") == "delete":
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = _strategic(merged.get(key), value, (*path, key))
        elif isinstance(value, list):
            merged[key] = _strategic_list(merged.get(key), value, (*path, key))
        else:
            merged[key] = value
    return merged


def _strategic_list(document: object, patch: list[object], path: tuple[str, ...]) -> list[object]:
    present: list[object] = clone(document) if isinstance(document, list) else []
    merge_key = _MERGE_KEYS.get(path)
    if merge_key is None or any(dig(item, "$patch") == "replace" for item in patch):
        return [clone(item) for item in patch if dig(item, "$patch") != "replace"]
    if merge_key == "":
        return present + [item for item in patch if item not in present]
    for item in patch:
        if not isinstance(item, dict) or merge_key not in item:
            raise errors.bad_request(f"map: {item} does not contain declared merge key: {merge_key}")
        at = next((n for n, old in enumerate(present) if dig(old, merge_key) == item[merge_key]), None)
        if item.get("$patch") == "delete":
            present[:] = [old for old in present if dig(old, merge_key) != item[merge_key]]
        elif at is None:
            present.append(_strategic({}, item, ()))
        else:
            present[at] = _strategic(present[at], item, ())
    return present
