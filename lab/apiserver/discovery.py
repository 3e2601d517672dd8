"""The documents by which a client learns what there is: /version, /api, /apis and the resources of each group."""

import platform

from lab.apiserver import errors
from lab.apiserver.objects import Json
from lab.apiserver.resources import Registry, Resource

# The release whose behaviour is the reference; the suffix says that this is not it.
_VERSION = "v1.36.0+hawse-embedded"
_ALL_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
# Paths beside the registry: who may do what, and who is who.
REVIEWS: dict[str, tuple[str, str, bool]] = {
    "selfsubjectaccessreviews": ("authorization.k8s.io", "SelfSubjectAccessReview", False),
    "selfsubjectrulesreviews": ("authorization.k8s.io", "SelfSubjectRulesReview", False),
    "subjectaccessreviews": ("authorization.k8s.io", "SubjectAccessReview", False),
    "selfsubjectreviews": ("authentication.k8s.io", "SelfSubjectReview", False),
    "tokenreviews": ("authentication.k8s.io", "TokenReview", False),
}


def version() -> Json:
    major, minor = _VERSION.removeprefix("v").split(".")[:2]
    return {
        "major": major,
        "minor": minor,
        "gitVersion": _VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system().lower()}/{platform.machine()}",
    }


def core_versions(address: str) -> Json:
    """/api"""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def groups(registry: Registry) -> Json:
    """/apis"""
    names = sorted({*registry.groups(), *(group for group, _, _ in REVIEWS.values())})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(registry, name) for name in names]}


def group(registry: Registry, name: str) -> Json:
    """/apis/GROUP. Raises `ApiError` 404."""
    return {"kind": "APIGroup", "apiVersion": "v1"} | _group(registry, name)


def _group(registry: Registry, name: str) -> Json:
    versions = registry.versions(name) or ["v1" for review in REVIEWS.values() if review[0] == name][:1]
    if not versions:
        raise errors.no_such_path()
    entries = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": entries, "preferredVersion": entries[0]}


def resources(registry: Registry, group_name: str, version_name: str) -> Json:
    """/api/v1 and /apis/GROUP/VERSION. Raises `ApiError` 404."""
    entries: list[Json] = []
    for resource in registry:
        if (resource.group, resource.version) == (group_name, version_name):
            entries += _entries(resource)
    for plural, (review_group, kind, namespaced) in REVIEWS.items():
        if (review_group, "v1") == (group_name, version_name):
            entry = {"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["create"]}
            entries.append(entry)
    if not entries:
        raise errors.no_such_path()
    group_version = f"{group_name}/{version_name}" if group_name else version_name
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries}


def _entries(resource: Resource) -> list[Json]:
    common = {"namespaced": resource.namespaced, "kind": resource.kind}
    whole = {"name": resource.plural, "singularName": resource.singular, **common, "verbs": _ALL_VERBS}
    if resource.short_names:
        whole["shortNames"] = list(resource.short_names)
    if resource.categories:
        whole["categories"] = list(resource.categories)
    below = [
        {
            "name": f"{resource.plural}/{name}",
            "singularName": "",
            **common,
            "verbs": ["update"] if name == "finalize" else ["get", "patch", "update"],
        }
        for name in resource.subresources
    ]
    return [whole, *below]
