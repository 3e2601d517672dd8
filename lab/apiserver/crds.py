"""CustomResourceDefinitions: checked and defaulted on the way in, turned into resources once they are stored."""

from collections.abc import Iterator

from lab.apiserver.errors import Cause
from lab.apiserver.objects import Json, clone, metadata, name_of, timestamp
from lab.apiserver.resources import CRDS, PrinterColumn, Registry, Resource

# Real servers put this on every CRD: the CRD goes when the last of its objects has gone.
CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"

_AGE = PrinterColumn("Age", "date", ".metadata.creationTimestamp")


def storage_of(crd: Json) -> str:
    """Where the objects of this CRD are kept."""
    spec = crd["spec"]
    return f"{spec['group']}/{spec['names']['plural']}"


def fill_in(crd: Json) -> None:
    """Default, in place, the names and the conversion strategy."""
    spec = crd.setdefault("spec", {})
    names = spec.setdefault("names", {})
    if names.get("kind"):
        names.setdefault("singular", str(names["kind"]).lower())
        names.setdefault("listKind", f"{names['kind']}List")
    spec.setdefault("conversion", {"strategy": "None"})


def check(crd: Json) -> Iterator[Cause]:
    """What is wrong with a CRD."""
    spec = crd.get("spec") or {}
    names = spec.get("names") or {}
    for field, value in (("spec.group", spec.get("group")), ("spec.scope", spec.get("scope"))):
        if not value:
            yield Cause.required(field)
    for field in ("plural", "kind"):
        if not names.get(field):
            yield Cause.required(f"spec.names.{field}")
    if spec.get("scope") not in (None, "Cluster", "Namespaced"):
        yield Cause.unsupported("spec.scope", spec["scope"], ["Cluster", "Namespaced"])
    expected = f"{names.get('plural')}.{spec.get('group')}"
    if name_of(crd) != expected:
        yield Cause.invalid("metadata.name", name_of(crd), 'must be spec.names.plural+"."+spec.group')
    if (spec.get("conversion") or {}).get("strategy", "None") != "None":
        yield Cause.unsupported("spec.conversion.strategy", spec["conversion"]["strategy"], ["None"])
    versions = spec.get("versions") or []
    if sum(bool(version.get("storage")) for version in versions) != 1:
        yield Cause.invalid("spec.versions", [], "must have exactly one version marked as storage version")
    for number, version in enumerate(versions):
        field = f"spec.versions[{number}]"
        if not version.get("name"):
            yield Cause.required(f"{field}.name")
        root = (version.get("schema") or {}).get("openAPIV3Schema")
        if root is None:
            yield Cause.required(f"{field}.schema.openAPIV3Schema", "schemas are required")
        elif root.get("type") != "object":
            where = f"{field}.schema.openAPIV3Schema.type"
            yield Cause.invalid(where, root.get("type", ""), "must be object at the root")


def establish(crd: Json) -> None:
    """Write, in place, the status a controller gives to an accepted CRD, and its cleanup finalizer."""
    now = timestamp()
    status = crd.setdefault("status", {})
    status["acceptedNames"] = clone(crd["spec"]["names"])
    stored = [version["name"] for version in crd["spec"]["versions"] if version.get("storage")]
    status["storedVersions"] = sorted({*status.get("storedVersions", []), *stored})
    status.setdefault("conditions", [
        _condition("NamesAccepted", "NoConflicts", "no conflicts found", now),
        _condition("Established", "InitialNamesAccepted", "the initial names have been accepted", now),
    ])  # fmt: skip
    finalizers = crd["metadata"].setdefault("finalizers", [])
    if CLEANUP_FINALIZER not in finalizers:
        finalizers.append(CLEANUP_FINALIZER)


def mark_terminating(crd: Json) -> None:
    """Say, in place, in the status of a CRD that its objects are being deleted."""
    told = "CustomResource deletion is in progress"
    crd["status"]["conditions"].append(_condition("Terminating", "InstanceDeletionInProgress", told, timestamp()))


def _condition(kind: str, reason: str, message: str, now: str) -> Json:
    return {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now}


def resources_of(crd: Json) -> Iterator[Resource]:
    """One resource for every served version of a stored CRD."""
    spec = crd["spec"]
    names, group = spec["names"], spec["group"]
    stored = next(version["name"] for version in spec["versions"] if version.get("storage"))
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        yield Resource(
            group=group,
            version=version["name"],
            kind=names["kind"],
            list_kind=names["listKind"],
            plural=names["plural"],
            singular=names["singular"],
            storage=storage_of(crd),
            stored_version=f"{group}/{stored}",
            namespaced=spec["scope"] == "Namespaced",
            short_names=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            status="status" in (version.get("subresources") or {}),
            generation=True,
            unconditional_update=False,
            field_labels=tuple(field["jsonPath"].lstrip(".") for field in version.get("selectableFields") or []),
            custom=True,
            schema=version["schema"]["openAPIV3Schema"],
            columns=tuple(_columns(version)) or (_AGE,),
        )


def _columns(version: Json) -> Iterator[PrinterColumn]:
    for column in version.get("additionalPrinterColumns") or []:
        yield PrinterColumn(
            column["name"], column["type"], column["jsonPath"],
            column.get("description", ""), column.get("format", ""), column.get("priority", 0),
        )  # fmt: skip


def register(registry: Registry, storage: str, crd: Json, *, gone: bool) -> None:
    """Bring the registry up to date after ``crd`` was stored or removed; other objects change nothing."""
    if storage != CRDS:
        return
    registry.drop_storage(storage_of(crd))
    if not gone:
        for resource in resources_of(crd):
            registry.add(resource)


def is_being_removed(crd: Json) -> bool:
    """Whether nothing but its remaining objects holds a CRD."""
    return bool(metadata(crd).get("deletionTimestamp")) and metadata(crd).get("finalizers") == [CLEANUP_FINALIZER]
