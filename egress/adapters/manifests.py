"""Kubernetes manifests to the values of `egress.objects`, and back for what Hawse writes.

Readers ignore unknown fields. With `strict` (manifests that a person wrote) they also check what Kubernetes' schema
checks cannot: every address, CIDR, range and NetID. Without it (the live cluster) texts stay as they are: planning
and allocation name a wrong one, and everything else of the object still counts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from egress.addresses import (
    AddressError,
    from_object_name,
    object_name,
    parse_address,
    parse_block,
    parse_network,
    parse_range,
)
from egress.forms import learn
from egress.objects import (
    CAPACITY_ANNOTATION,
    DRAIN_ANNOTATION,
    MOVE_ANNOTATION,
    NO_LIMIT,
    OPERATION_ANNOTATION,
    Capacity,
    Condition,
    Decision,
    EgressAddress,
    EgressPool,
    Event,
    HostSubnet,
    Namespace,
    NetNamespace,
    Node,
    OnExhausted,
    OnUnselected,
    Operator,
    Origin,
    Phase,
    PoolCounts,
    PoolHeader,
    Requirement,
    Selector,
    Ticket,
    Verdict,
    operation_of,
)
from egress.operations import PermanentError
from egress.planning import MAX_NETID

GROUP = "egress.hawse.dev"
API_VERSION = f"{GROUP}/v1alpha1"
OPENSHIFT_GROUP = "network.openshift.io"

W = TypeVar("W", bound="_Manifest")
MAX_PAIRS = 4
"""How many addresses of each family a namespace may have of a dual-stack pool: eight altogether, as of any pool."""
Texts = tuple[str, ...]
Labels = dict[str, str]

_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:h|ms|m|s))+")
_DURATION_PART = re.compile(r"([0-9.]+)(h|ms|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_MAX_DURATION_TEXT = 32


class ManifestError(PermanentError, ValueError):
    """A manifest that cannot be read: which object, which field (a JSON path), and what is wrong with it."""

    def __init__(self, kind: str, name: str, path: str, problem: str) -> None:
        super().__init__(f"{kind} {name or '(unnamed)'}: {path}: {problem}")
        self.kind = kind
        self.name = name
        self.path = path
        self.problem = problem


# The wire shapes. A field that may be absent may also be null.


class _Wire(msgspec.Struct, rename="camel"):
    pass


class _Metadata(_Wire):
    name: str = ""
    uid: str = ""
    labels: Labels | None = None
    annotations: Labels | None = None
    resource_version: str = ""
    deletion_timestamp: str | None = None
    creation_timestamp: str | None = None
    finalizers: Texts | None = None


class _Manifest(_Wire):
    metadata: _Metadata


class _HostSubnet(_Manifest):
    host: str = ""
    host_ip: str = msgspec.field(default="", name="hostIP")
    subnet: str = ""
    egress_ips: Texts | None = msgspec.field(default=None, name="egressIPs")
    egress_cidrs: Texts | None = msgspec.field(default=None, name="egressCIDRs")


class _NetNamespace(_Manifest):
    netid: int
    netname: str = ""
    egress_ips: Texts | None = msgspec.field(default=None, name="egressIPs")


class _NodeSpec(_Wire):
    unschedulable: bool | None = None


class _Condition(_Wire):
    type: str
    status: str
    reason: str | None = None
    message: str | None = None
    last_transition_time: str | None = None
    observed_generation: int | None = None


class _NodeStatus(_Wire):
    conditions: tuple[_Condition, ...] | None = None


class _Node(_Manifest):
    spec: _NodeSpec | None = None
    status: _NodeStatus | None = None


_Limit = Annotated[int, msgspec.Meta(ge=0)] | None


class _CloudCapacity(_Wire):
    ipv4: _Limit = None
    ipv6: _Limit = None
    ip: _Limit = None


class _CloudInterface(_Wire):
    capacity: _CloudCapacity


_CLOUD_INTERFACES = msgspec.json.Decoder(tuple[_CloudInterface, ...])


_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class _NamespaceStatus(_Wire):
    phase: str | None = None


class _Namespace(_Manifest):
    status: _NamespaceStatus | None = None


class _Requirement(_Wire):
    key: str
    operator: Operator
    values: Texts | None = None


class _Selector(_Wire):
    match_labels: Labels | None = None
    match_expressions: tuple[_Requirement, ...] | None = None


class _PoolSpec(_Wire):
    cidrs: Texts
    excluded: Texts | None = None
    addresses_per_namespace: Annotated[int, msgspec.Meta(ge=1, le=8)] | None = None
    ip_family_policy: Literal["SingleStack", "RequireDualStack"] | None = None
    namespace_selector: _Selector | None = None
    node_selector: _Selector | None = None
    topology_key: str | None = None
    max_addresses_per_node: Annotated[int, msgspec.Meta(ge=0)] | None = None
    quarantine: str = "10m"
    on_exhausted: OnExhausted | None = None
    on_unselected: OnUnselected | None = None
    approval: Literal["none", "required"] | None = None
    ticket_profile: str | None = None


class _EgressPool(_Manifest):
    spec: _PoolSpec


class _PoolStatus(_Wire):
    capacity: int | None = None
    allocated: int | None = None
    quarantined: int | None = None
    free: int | None = None
    conditions: tuple[_Condition, ...] | None = None


class _PoolHeader(_Manifest):
    status: _PoolStatus | None = None


class _NamespaceReference(_Wire):
    name: str
    uid: str = ""


class _AddressSpec(_Wire):
    pool: str
    namespace: _NamespaceReference
    origin: Origin = Origin.AUTOMATIC
    approval: Literal["none", "required"] | None = None


class _Ticket(_Wire):
    profile: str
    serial: int = 1
    told: Event | None = None
    node: str | None = None
    conflict: str | None = None
    notes: int | None = None
    reference: str | None = None
    url: str | None = None
    handle: str | None = None
    at: _Time | None = None
    ended: bool | None = None
    sending: Event | None = None
    sending_until: _Time | None = None
    failed: Event | None = None
    failure: str | None = None


class _Decision(_Wire):
    verdict: Verdict
    by: str
    at: _Time
    source: str
    reason: str | None = None
    id: str | None = None


class _AddressStatus(_Wire):
    phase: Phase | None = None
    node: str | None = None
    quarantined_until: _Time | None = None
    ticket: _Ticket | None = None
    decision: _Decision | None = None
    conditions: tuple[_Condition, ...] | None = None


class _EgressAddress(_Manifest):
    spec: _AddressSpec
    status: _AddressStatus | None = None


learn(_HostSubnet, _NetNamespace, _Node, _Namespace, _EgressPool, _PoolHeader, _EgressAddress)


# The readers.


def host_subnet(manifest: object, *, strict: bool = False) -> HostSubnet:
    """The HostSubnet of a manifest; ManifestError names the field that is wrong."""
    wire = _convert(_HostSubnet, "HostSubnet", manifest)
    name = wire.metadata.name
    egress_ips, egress_cidrs = wire.egress_ips or (), wire.egress_cidrs or ()
    if strict:
        check = _Checks("HostSubnet", name)
        check.same_name("$.host", wire.host)
        check.text("$.hostIP", wire.host_ip, parse_address)
        if wire.subnet:
            check.text("$.subnet", wire.subnet, _parse_network)
        check.texts("$.egressIPs", egress_ips, parse_address)
        check.texts("$.egressCIDRs", egress_cidrs, _parse_network)
    return HostSubnet(name, wire.host_ip, egress_ips, egress_cidrs, wire.metadata.resource_version)


def net_namespace(manifest: object, *, strict: bool = False) -> NetNamespace:
    """The NetNamespace of a manifest; ManifestError names the field that is wrong."""
    wire = _convert(_NetNamespace, "NetNamespace", manifest)
    metadata = wire.metadata
    egress_ips = wire.egress_ips or ()
    if strict:
        check = _Checks("NetNamespace", metadata.name)
        check.same_name("$.netname", wire.netname)
        if not 0 <= wire.netid <= MAX_NETID:
            raise check.error("$.netid", f"{wire.netid} is not a NetID; give it a number from 0 to {MAX_NETID}")
        check.texts("$.egressIPs", egress_ips, parse_address)
    return NetNamespace(metadata.name, wire.netid, egress_ips, metadata.annotations or {}, metadata.resource_version)


def node(manifest: object, *, strict: bool = False) -> Node:
    """The Node of a manifest.

    A live node without a Ready condition has never reported, so it is not ready. A manifest that a person wrote
    (`strict`) has no status, and says nothing against the node. A capacity that cannot be read is none: the cloud's
    controller wrote it, and addresses without any node would be the worse for it.
    """
    wire = _convert(_Node, "Node", manifest)
    conditions = (wire.status and wire.status.conditions) or ()
    ready = next((condition.status == "True" for condition in conditions if condition.type == "Ready"), strict)
    unschedulable = bool(wire.spec and wire.spec.unschedulable)
    annotations = wire.metadata.annotations or {}
    drain = annotations.get(DRAIN_ANNOTATION, "false") != "false"
    capacity, problem = _capacity(annotations.get(CAPACITY_ANNOTATION))
    return Node(wire.metadata.name, wire.metadata.labels or {}, ready, unschedulable, drain, capacity, problem)


def _capacity(text: str | None) -> tuple[Capacity, str]:
    """What the cloud's annotation allows, the least of what its interfaces do, and what is wrong with it."""
    if text is None:
        return NO_LIMIT, ""
    try:
        interfaces = [interface.capacity for interface in _CLOUD_INTERFACES.decode(text)]
    except msgspec.DecodeError as error:
        return NO_LIMIT, f"annotation {CAPACITY_ANNOTATION}: {error}"

    def least(limits: Iterable[int | None]) -> int | None:
        return min((limit for limit in limits if limit is not None), default=None)

    return Capacity(*(least(getattr(each, name) for each in interfaces) for name in ("ipv4", "ipv6", "ip"))), ""


def namespace(manifest: object) -> Namespace:
    """The Namespace of a manifest, as the API server or an AdmissionReview holds it.

    At admission a namespace with `generateName` has no name yet: its name is empty.
    """
    wire = _convert(_Namespace, "Namespace", manifest, named=False)
    metadata = wire.metadata
    deleting = metadata.deletion_timestamp is not None or bool(wire.status and wire.status.phase == "Terminating")
    return Namespace(
        metadata.name,
        metadata.uid,
        metadata.labels or {},
        metadata.annotations or {},
        deleting,
        metadata.resource_version,
    )


def egress_pool(manifest: object, *, strict: bool = False) -> EgressPool:
    """The EgressPool of a manifest. A duration that is none is an error even without `strict`: no text can stand in
    for a number."""
    wire = _convert(_EgressPool, "EgressPool", manifest)
    spec = wire.spec
    check = _Checks("EgressPool", wire.metadata.name)
    excluded = spec.excluded or ()
    if strict:
        if not spec.cidrs:
            raise check.error("$.spec.cidrs", "is empty; give it at least one CIDR, range or address")
        check.texts("$.spec.cidrs", spec.cidrs, parse_range)
        check.no_overlap("$.spec.cidrs", spec.cidrs)
        check.texts("$.spec.excluded", excluded, parse_range)
        if spec.ip_family_policy == "RequireDualStack":
            check.both_families("$.spec.cidrs", spec.cidrs)
            if (spec.addresses_per_namespace or 1) > MAX_PAIRS:
                path, most = "$.spec.addressesPerNamespace", f"at most {MAX_PAIRS} of each family"
                raise check.error(path, f"is {spec.addresses_per_namespace}; with RequireDualStack give it {most}")
        check.selector("$.spec.namespaceSelector", spec.namespace_selector)
        check.selector("$.spec.nodeSelector", spec.node_selector)
    return EgressPool(
        wire.metadata.name,
        spec.cidrs,
        excluded,
        spec.addresses_per_namespace or 1,
        _selector(spec.namespace_selector),
        _selector(spec.node_selector),
        spec.topology_key or "",
        spec.max_addresses_per_node or 0,
        check.duration("$.spec.quarantine", spec.quarantine),
        spec.on_exhausted or OnExhausted.DENY,
        spec.approval == "required",
        spec.ticket_profile or "",
        spec.on_unselected or OnUnselected.KEEP,
        wire.metadata.deletion_timestamp is not None,
        spec.ip_family_policy == "RequireDualStack",
    )


def pool_header(manifest: object) -> PoolHeader:
    """What is around an EgressPool's spec, which may be one that nobody can read."""
    wire = _convert(_PoolHeader, "EgressPool", manifest)
    metadata, status = wire.metadata, wire.status or _PoolStatus()
    counts = (status.capacity, status.allocated, status.quarantined, status.free)
    known = [count for count in counts if count is not None]
    return PoolHeader(
        metadata.name,
        metadata.deletion_timestamp is not None,
        metadata.finalizers or (),
        PoolCounts(*known) if len(known) == len(counts) else None,
        tuple(map(_condition, status.conditions or ())),
        metadata.resource_version,
    )


def egress_address(manifest: object, *, strict: bool = False) -> EgressAddress:
    """The EgressAddress of a manifest. Without `strict`, a name that denotes no address is taken as it stands."""
    wire = _convert(_EgressAddress, "EgressAddress", manifest)
    name, spec, status = wire.metadata.name, wire.spec, wire.status or _NO_STATUS
    address = name
    if strict or "-" in name:
        try:
            address = str(from_object_name(name))
        except AddressError as error:
            if strict:
                raise ManifestError("EgressAddress", name, "$.metadata.name", str(error)) from None
    until = status.quarantined_until
    return EgressAddress(
        address,
        spec.pool,
        spec.namespace.name,
        spec.namespace.uid,
        spec.origin,
        status.node or "",
        status.phase or Phase.PENDING,
        until.timestamp() if until else 0.0,
        tuple(map(_condition, status.conditions or ())),
        wire.metadata.resource_version,
        wire.metadata.creation_timestamp or "",
        operation_of(wire.metadata.annotations or {}),
        (wire.metadata.annotations or {}).get(MOVE_ANNOTATION, "").strip(),
        wire.metadata.uid or "",
        spec.approval == "required",
        _ticket(status.ticket),
        _decision(status.decision),
    )


_NO_STATUS = _AddressStatus()


def _ticket(wire: _Ticket | None) -> Ticket | None:
    if wire is None:
        return None
    return Ticket(
        wire.profile,
        wire.serial,
        wire.told,
        wire.node or "",
        wire.conflict or "",
        wire.notes or 0,
        wire.reference or "",
        wire.url or "",
        wire.handle or "",
        wire.at.timestamp() if wire.at else 0.0,
        bool(wire.ended),
        wire.sending,
        wire.sending_until.timestamp() if wire.sending_until else 0.0,
        wire.failed,
        wire.failure or "",
    )


def _decision(wire: _Decision | None) -> Decision | None:
    if wire is None:
        return None
    return Decision(wire.verdict, wire.by, wire.at.timestamp(), wire.source, wire.reason or "", wire.id or "")


def _condition(wire: _Condition) -> Condition:
    status = {"True": True, "False": False}.get(wire.status)
    return Condition(
        wire.type,
        status,
        wire.reason or "",
        wire.message or "",
        wire.last_transition_time or "",
        wire.observed_generation,
    )


# The writers.


def egress_address_manifest(value: EgressAddress) -> dict[str, Any]:
    """The manifest that claims the address: all but the status, which is a subresource (`egress_address_status`).

    With a resourceVersion it replaces exactly that version; without one it creates. AddressError if the value's
    address is none.
    """
    metadata: dict[str, Any] = {"name": object_name(parse_address(value.address))}
    if value.resource_version:
        metadata["resourceVersion"] = value.resource_version
    if value.operation:
        metadata["annotations"] = {OPERATION_ANNOTATION: value.operation}
    return {
        "apiVersion": API_VERSION,
        "kind": "EgressAddress",
        "metadata": metadata,
        "spec": {
            "pool": value.pool,
            "namespace": {"name": value.namespace, "uid": value.namespace_uid},
            "origin": value.origin.value,
            **({"approval": "required"} if value.approval_required else {}),
        },
    }


def egress_address_status(value: EgressAddress) -> dict[str, Any]:
    """The object's whole status. Every field is present, null where it has no value: a merge patch then clears it."""
    until = value.quarantined_until
    return {
        "phase": value.phase.value,
        "node": value.node,
        "quarantinedUntil": rfc3339(until) if until else None,
        **ticket_status(value),
        "conditions": conditions_manifest(value.conditions),
    }


def ticket_status(value: EgressAddress) -> dict[str, Any]:
    """What the status says of the ticket and of the decision, complete: null where it has no value."""
    ticket, decision = value.ticket, value.decision
    return {
        "ticket": ticket
        and {
            "profile": ticket.profile,
            "serial": ticket.serial,
            "told": ticket.told,
            "node": ticket.node,
            "conflict": ticket.conflict,
            "notes": ticket.notes,
            "reference": ticket.reference,
            "url": ticket.url,
            "handle": ticket.handle,
            "at": rfc3339(ticket.at) if ticket.at else None,
            "ended": ticket.ended,
            "sending": ticket.sending,
            "sendingUntil": rfc3339(ticket.sending_until) if ticket.sending_until else None,
            "failed": ticket.failed,
            "failure": ticket.failure,
        },
        "decision": decision
        and {
            "verdict": decision.verdict,
            "by": decision.by,
            "at": rfc3339(decision.at),
            "source": decision.source,
            "reason": decision.reason,
            "id": decision.id,
        },
    }


def pool_status(counts: PoolCounts | None, conditions: Iterable[Condition]) -> dict[str, Any]:
    """An EgressPool's whole status; null counts where nobody knows them."""
    return {
        "capacity": counts and counts.capacity,
        "allocated": counts and counts.allocated,
        "quarantined": counts and counts.quarantined,
        "free": counts and counts.free,
        "conditions": conditions_manifest(conditions),
    }


def conditions_manifest(conditions: Iterable[Condition]) -> list[dict[str, Any]]:
    """The conditions of a status. A merge patch replaces the list as a whole: it has to name everybody's."""
    return [
        {
            "type": condition.type,
            "status": {True: "True", False: "False", None: "Unknown"}[condition.status],
            "reason": condition.reason,
            "message": condition.message,
            **({"lastTransitionTime": condition.last_transition} if condition.last_transition else {}),
            **({"observedGeneration": condition.observed_generation} if condition.observed_generation else {}),
        }
        for condition in conditions
    ]


def rfc3339(seconds: float) -> str:
    """A time, in seconds since the epoch, as Kubernetes writes it: UTC, with microseconds only where it has any."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


# Helpers.


def _convert(wire: type[W], kind: str, manifest: object, *, named: bool = True) -> W:
    try:
        value = msgspec.convert(manifest, wire)
    except msgspec.ValidationError as error:
        raise _explained(kind, manifest, str(error)) from None
    if named and not value.metadata.name:
        raise ManifestError(kind, "", "$.metadata.name", "is missing; give the object a name")
    return value


def _explained(kind: str, manifest: object, text: str) -> ManifestError:
    """msgspec's message ("Expected `str`, got `int` - at `$.a[0]`") with the object, the path first, no backquotes."""
    problem, _, path = text.partition(" - at ")
    path = path.replace("`key` in", "a key of").replace("`", "") or "$"
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", problem):
        path, problem = f"{path}.{missing[1]}", "is missing; it is required"
    else:
        problem = problem.replace("`", "").replace("Expected str", "Expected a string")
        problem = problem[:1].lower() + problem[1:]
    metadata = manifest.get("metadata") if isinstance(manifest, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return ManifestError(kind, name if isinstance(name, str) else "", path, problem)


class _Checks:
    """The checks of one object's fields; each raises a ManifestError that names the field."""

    def __init__(self, kind: str, name: str) -> None:
        self._kind = kind
        self._name = name

    def error(self, path: str, problem: str) -> ManifestError:
        return ManifestError(self._kind, self._name, path, problem)

    def same_name(self, path: str, text: str) -> None:
        # OpenShift's own validation demands it; a difference would leave two names for one thing.
        if text and text != self._name:
            raise self.error(path, f"{text!r} differs from metadata.name; make them the same")

    def text(self, path: str, text: str, parse: Callable[[str], object]) -> None:
        try:
            parse(text)
        except AddressError as error:
            raise self.error(path, str(error)) from None

    def texts(self, path: str, texts: Iterable[str], parse: Callable[[str], object]) -> None:
        for index, text in enumerate(texts):
            self.text(f"{path}[{index}]", text, parse)

    def no_overlap(self, path: str, texts: Iterable[str]) -> None:
        blocks = [(index, text, parse_block(text)) for index, text in enumerate(texts)]
        for (_, earlier, one), (index, later, other) in itertools.combinations(blocks, 2):
            if one.overlaps(other):
                problem = f"{later!r} overlaps {earlier!r}; each address may be in one of them alone"
                raise self.error(f"{path}[{index}]", problem)

    def both_families(self, path: str, texts: Iterable[str]) -> None:
        missing = {4, 6} - {parse_range(text).version for text in texts}
        if missing:
            text = (
                f"has no IPv{missing.pop()} address, which RequireDualStack needs; add a CIDR, or take the policy away"
            )
            raise self.error(path, text)

    def duration(self, path: str, text: str) -> float:
        if text == "0":
            return 0.0
        if len(text) > _MAX_DURATION_TEXT or not _DURATION.fullmatch(text):
            raise self.error(path, f"{text!r} is not a duration; write one such as 10m, 90s or 1h30m")
        return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))

    def selector(self, path: str, selector: _Selector | None) -> None:
        for index, requirement in enumerate((selector and selector.match_expressions) or ()):
            takes_values = requirement.operator in {Operator.IN, Operator.NOT_IN}
            if takes_values != bool(requirement.values):
                need = "needs at least one value" if takes_values else "takes no values"
                raise self.error(f"{path}.matchExpressions[{index}].values", f"operator {requirement.operator} {need}")


def _parse_network(text: str) -> None:
    """AddressError unless `text` is a CIDR; host bits are tolerated, as OpenShift does."""
    parse_network(text, host_bits=True)


def _selector(wire: _Selector | None) -> Selector | None:
    if wire is None:
        return None
    requirements = tuple(Requirement(r.key, r.operator, r.values or ()) for r in wire.match_expressions or ())
    return Selector(wire.match_labels or {}, requirements)
