"""The cluster objects that Hawse reads and writes, as values. `egress.adapters.manifests` makes them from manifests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

POOL_ANNOTATION = "egress.hawse.dev/pool"
"""On a namespace: the pool to serve it, or `none` to opt out."""
REQUEST_ANNOTATION = "egress.hawse.dev/request"
"""On a namespace: the addresses it asks for, separated by commas."""
ADDRESSES_ANNOTATION = "egress.hawse.dev/addresses"
"""On a namespace: the addresses it has, separated by commas. Written by Hawse alone."""
OPERATION_ANNOTATION = "egress.hawse.dev/operation"
"""On a namespace: the uid of the admission request that gave it its addresses, to be found again in every log. On an
EgressAddress the same."""
CREATED_ANNOTATION = "egress.hawse.dev/created"
"""On a NetNamespace: Hawse created it, and deletes it with its namespace."""
MOVE_ANNOTATION = "egress.hawse.dev/move-to"
"""On an EgressAddress: the node that it is to move to. Hawse takes the annotation away once it has, or cannot."""
DRAIN_ANNOTATION = "egress.hawse.dev/drain"
"""On a Node: its addresses move elsewhere, one at a time, and it gets no more. Any value but `false`."""
CAPACITY_ANNOTATION = "cloud.network.openshift.io/egress-ipconfig"
"""On a Node, by the cloud's controller: how many egress addresses the cloud lets it have."""
POOL_FINALIZER = "egress.hawse.dev/in-use"
"""On an EgressPool: it stays, and gives nothing any more, until nobody has an address of it."""
OPT_OUT = "none"
_OPERATION = re.compile(r"[0-9A-Za-z-]{1,64}")


def operation_of(annotations: Mapping[str, str]) -> str:
    """The admission that these annotations name; "" if none, or if it is not of the form that Hawse writes."""
    text = annotations.get(OPERATION_ANNOTATION, "")
    return text if _OPERATION.fullmatch(text) else ""


@dataclass(frozen=True, slots=True)
class HostSubnet:
    """A node as OpenShift SDN describes it: its name, its IP on the outside link, the egress addresses it hosts.

    Addresses are texts as the object holds them: whoever wrote a wrong one must be told, not ignored.
    """

    name: str
    host_ip: str
    egress_ips: tuple[str, ...] = ()
    egress_cidrs: tuple[str, ...] = ()
    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class NetNamespace:
    """A namespace's NetID (VXLAN tenant, 0 to 2^24-1) and the egress addresses that its traffic must leave with."""

    name: str
    netid: int
    egress_ips: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many egress addresses a node's cloud lets it have: of IPv4, of IPv6, of both together. None is any number."""

    ipv4: int | None = None
    ipv6: int | None = None
    ip: int | None = None


NO_LIMIT = Capacity()


@dataclass(frozen=True, slots=True)
class Node:
    """A Kubernetes node: what placement asks of it.

    `drain`: it is to lose its addresses. `problem` is what of its annotations cannot be read, and does not count.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True
    unschedulable: bool = False
    drain: bool = False
    capacity: Capacity = NO_LIMIT
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace: its identity, labels and annotations, and whether it is on its way out."""

    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    deleting: bool = False
    resource_version: str = ""


class Operator(StrEnum):
    """How a requirement compares a label with its values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One of a selector's matchExpressions."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether `labels` meets it, by the rules of Kubernetes label selectors."""
        match self.operator:
            case Operator.IN:
                return labels.get(self.key) in self.values
            case Operator.NOT_IN:
                return labels.get(self.key) not in self.values
            case Operator.EXISTS:
                return self.key in labels
            case Operator.DOES_NOT_EXIST:
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class Selector:
    """A Kubernetes label selector; an empty one matches everything."""

    match_labels: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether `labels` meets every part of it."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            requirement.matches(labels) for requirement in self.requirements
        )


class OnExhausted(StrEnum):
    """What becomes of a namespace that a full pool would serve."""

    DENY = "deny"
    ADMIT = "admit"


class OnUnselected(StrEnum):
    """What becomes of the addresses of a namespace that the pool's selector no longer matches."""

    KEEP = "keep"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class EgressPool:
    """A set of addresses, the namespaces it serves and the nodes that may host them. `quarantine` is in seconds.

    One that is `deleting` gives no address any more.
    """

    name: str
    cidrs: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    addresses_per_namespace: int = 1
    namespace_selector: Selector | None = None
    node_selector: Selector | None = None
    topology_key: str = ""
    max_addresses_per_node: int = 0
    quarantine: float = 600.0
    on_exhausted: OnExhausted = OnExhausted.DENY
    approval_required: bool = False
    ticket_profile: str = ""
    on_unselected: OnUnselected = OnUnselected.KEEP
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """One status condition, as Kubernetes defines them. A status of None is Unknown; `last_transition` is RFC 3339."""

    type: str
    status: bool | None
    reason: str
    message: str = ""
    last_transition: str = ""
    observed_generation: int | None = None


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """How full a pool is, in addresses: allocated, quarantined and free ones together are its capacity."""

    capacity: int
    allocated: int
    quarantined: int
    free: int


@dataclass(frozen=True, slots=True)
class PoolHeader:
    """What an EgressPool object says beside its spec; `counts` is None until it was counted."""

    name: str
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    counts: PoolCounts | None = None
    conditions: tuple[Condition, ...] = ()
    resource_version: str = ""


class Origin(StrEnum):
    """How an address came to its namespace."""

    AUTOMATIC = "automatic"
    REQUESTED = "requested"
    MANUAL = "manual"


class Phase(StrEnum):
    """Where an EgressAddress is on its way."""

    PENDING = "Pending"
    PLACED = "Placed"
    READY = "Ready"
    FAILED = "Failed"
    QUARANTINED = "Quarantined"


@dataclass(frozen=True, slots=True)
class EgressAddress:
    """The durable claim of one address by one namespace; its object's name is the address."""

    address: str
    pool: str
    namespace: str
    namespace_uid: str
    origin: Origin = Origin.AUTOMATIC
    node: str = ""
    phase: Phase = Phase.PENDING
    quarantined_until: float = 0.0
    """Seconds since the epoch; 0 unless the phase is Quarantined."""
    conditions: tuple[Condition, ...] = ()
    resource_version: str = ""
    created: str = ""
    """When the object was made, RFC 3339."""
    operation: str = ""
    """The admission that it came from, see `operation_of`; "" if it came from none."""
    move_to: str = ""
    """The node that somebody wants it on, see `MOVE_ANNOTATION`; "" for none."""

    @property
    def adopted(self) -> bool:
        """Whether it only shows what an admin has set by hand: it follows the NetNamespace, and not the other way."""
        return self.origin is Origin.MANUAL and not self.pool
