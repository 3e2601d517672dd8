"""What the server serves: the built-in resources, and the registry to which CRDs add theirs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lab.apiserver.objects import Json

_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?\Z")
_STABILITY = {"alpha": 0, "beta": 1, None: 2}


@dataclass(frozen=True, slots=True)
class PrinterColumn:
    """One ``additionalPrinterColumns`` entry; priority above 0 shows with ``-o wide`` alone."""

    name: str
    type: str
    json_path: str
    description: str = ""
    format: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource in one version, with what decides how its writes are treated.

    ``storage`` names where objects are kept; the versions of one resource share it. ``stored_version`` is the
    apiVersion that kept objects carry. ``generation`` counts changes of everything but metadata and status.
    ``unconditional_update`` allows a PUT without resourceVersion. ``status_metadata`` lets a write to ``/status``
    change labels and annotations too, as Kubernetes does for nodes and namespaces and not for custom resources.
    ``field_labels`` are the paths a fieldSelector may name besides metadata.name and metadata.namespace.
    """

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    storage: str
    stored_version: str
    namespaced: bool
    list_kind: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    status: bool = False
    generation: bool = False
    unconditional_update: bool = True
    status_metadata: bool = False
    label_name: bool = False
    field_labels: tuple[str, ...] = ()
    custom: bool = False
    schema: Json | None = None
    columns: tuple[PrinterColumn, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """The name used in messages: ``hostsubnets.network.openshift.io``, ``namespaces``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def subresources(self) -> tuple[str, ...]:
        names = ["status"] if self.status else []
        return tuple([*names, "finalize"] if self.storage == NAMESPACES else names)


NAMESPACES = "/namespaces"
CRDS = "apiextensions.k8s.io/customresourcedefinitions"
MUTATING = "admissionregistration.k8s.io/mutatingwebhookconfigurations"
VALIDATING = "admissionregistration.k8s.io/validatingwebhookconfigurations"
EVENTS = "/events"

_EVENT_FIELDS = (
    *(f"involvedObject.{part}" for part in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion")),
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "type",
)


def _core(kind: str, plural: str, *, namespaced: bool = True, short: tuple[str, ...] = ()) -> Resource:
    return Resource("", "v1", kind, plural, kind.lower(), f"/{plural}", "v1", namespaced, short_names=short)


def _with(resource: Resource, **changes: object) -> Resource:
    values = {name: getattr(resource, name) for name in Resource.__slots__}
    return Resource(**(values | changes))


def _rbac(kind: str, plural: str, *, namespaced: bool = True) -> Resource:
    group = "rbac.authorization.k8s.io"
    return Resource(group, "v1", kind, plural, kind.lower(), f"{group}/{plural}", f"{group}/v1", namespaced)


def _webhooks(kind: str, storage: str) -> Resource:
    group, plural = storage.split("/")
    return Resource(
        group, "v1", kind, plural, kind.lower(), storage, f"{group}/v1", False,
        generation=True, unconditional_update=False, categories=("api-extensions",),
    )  # fmt: skip


BUILT_IN: tuple[Resource, ...] = (
    _with(
        _core("Namespace", "namespaces", namespaced=False, short=("ns",)),
        status=True, status_metadata=True, label_name=True, field_labels=("status.phase",),
    ),
    _with(
        _core("Node", "nodes", namespaced=False, short=("no",)),
        status=True, status_metadata=True, field_labels=("spec.unschedulable",),
    ),
    _with(
        _core("Pod", "pods", short=("po",)),
        status=True, status_metadata=True, categories=("all",),
        field_labels=("spec.nodeName", "status.phase"),
    ),
    _with(
        _core("Service", "services", short=("svc",)),
        status=True, status_metadata=True, label_name=True, categories=("all",), field_labels=("spec.type",),
    ),
    _core("ConfigMap", "configmaps", short=("cm",)),
    _with(_core("Secret", "secrets"), field_labels=("type",)),
    _core("ServiceAccount", "serviceaccounts", short=("sa",)),
    _with(_core("Event", "events", short=("ev",)), field_labels=_EVENT_FIELDS),
    Resource(
        "events.k8s.io", "v1", "Event", "events", "event", EVENTS, "v1", True,
        short_names=("ev",), field_labels=_EVENT_FIELDS,
    ),
    Resource(
        "coordination.k8s.io", "v1", "Lease", "leases", "lease", "coordination.k8s.io/leases",
        "coordination.k8s.io/v1", True, unconditional_update=False,
    ),
    _rbac("Role", "roles"),
    _rbac("RoleBinding", "rolebindings"),
    _rbac("ClusterRole", "clusterroles", namespaced=False),
    _rbac("ClusterRoleBinding", "clusterrolebindings", namespaced=False),
    _webhooks("MutatingWebhookConfiguration", MUTATING),
    _webhooks("ValidatingWebhookConfiguration", VALIDATING),
    Resource(
        "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions",
        "customresourcedefinition", CRDS, "apiextensions.k8s.io/v1", False,
        short_names=("crd", "crds"), categories=("api-extensions",),
        status=True, generation=True, unconditional_update=False,
    ),
)  # fmt: skip


def version_order(version: str) -> tuple[int, int, int, str]:
    """A sort key that puts v2 before v1 before v1beta2 before v1alpha1 before anything else, newest first."""
    match = _VERSION.match(version)
    if match is None:
        return (1, 0, 0, version)
    major, stage, minor = match.groups()
    return (-_STABILITY[stage], -int(major), -int(minor or 0), version)


class Registry:
    """The resources served now. CRDs come and go at run time; the built-in ones stay."""

    def __init__(self) -> None:
        self._resources: dict[tuple[str, str, str], Resource] = {}
        for resource in BUILT_IN:
            self.add(resource)

    def __iter__(self) -> Iterator[Resource]:
        return iter(tuple(self._resources.values()))

    def add(self, resource: Resource) -> None:
        self._resources[resource.group, resource.version, resource.plural] = resource

    def drop_storage(self, storage: str) -> None:
        """Forget every custom resource kept under ``storage``."""
        for key, resource in tuple(self._resources.items()):
            if resource.storage == storage and resource.custom:
                del self._resources[key]

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._resources.get((group, version, plural))

    def versions(self, group: str) -> list[str]:
        """The versions of a group, preferred one first."""
        return sorted({resource.version for resource in self if resource.group == group}, key=version_order)

    def groups(self) -> list[str]:
        """All named groups, sorted; the core group is not among them."""
        return sorted({resource.group for resource in self if resource.group})

    def by_storage(self, storage: str) -> Resource | None:
        """The resource in the version that is stored."""
        for resource in self:
            if resource.storage == storage and resource.api_version == resource.stored_version:
                return resource
        return None
