"""The cluster objects that Hawse reads and writes, as values. `egress.adapters.manifests` makes them from manifests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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
RETRY_TICKET_ANNOTATION = "egress.hawse.dev/retry-ticket"
"""On an EgressAddress: tell the firewall team again what could not be told. Hawse takes the annotation away."""
PAUSED_ANNOTATION = "egress.hawse.dev/paused"
"""On Hawse's own namespace: Hawse gives, moves and takes away nothing, for the reason that it names."""
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
        for key, value in self.match_labels.items():  # asked of every pool for every namespace
            if labels.get(key) != value:
                return False
        return not self.requirements or all(requirement.matches(labels) for requirement in self.requirements)


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
    dual_stack: bool = False
    """Whether a namespace gets `addresses_per_namespace` of IPv4 and as many of IPv6, or else none."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One status condition, as Kubernetes defines them. A status of None is Unknown; `last_transition` is RFC 3339."""

    type: str
    status: bool | None
    reason: str
    message: str = ""
    last_transition: str = ""
    observed_generation: int | None = None


def dated(conditions: Iterable[Condition], before: Iterable[Condition], now: str) -> tuple[Condition, ...]:
    """Each condition with the time at which its status last changed: that of `before`, or `now` (RFC 3339)."""
    known = {condition.type: condition for condition in before}
    result = []
    for condition in conditions:
        old = known.get(condition.type)
        since = old.last_transition if old is not None and old.status == condition.status else now
        result.append(replace(condition, last_transition=since))
    return tuple(result)


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


class Event(StrEnum):
    """What the firewall team is told of an address."""

    ASSIGNED = "assigned"
    MOVED = "moved"
    CONFLICT = "conflict"
    RELEASED = "released"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the firewall team has been told of one assignment of an address, and where.

    An address is assigned anew each time that its namespace takes it up again; `serial` counts that from 1.
    """

    profile: str
    serial: int = 1
    told: Event | None = None
    """The last of assigned, released and quarantined that was told, or may have been."""
    node: str = ""
    """The node that was told last."""
    conflict: str = ""
    """The conflict that was told last, while it lasts."""
    notes: int = 0
    """How many moves and conflicts were told."""
    reference: str = ""
    """What people call the ticket, such as CHG0030001."""
    url: str = ""
    handle: str = ""
    """What the ticket system's API calls it."""
    at: float = 0.0
    """When something was told last, in seconds since the epoch."""
    ended: bool = False
    """The assignment is over: what is owed is the release."""
    sending: Event | None = None
    """What somebody is telling, or died while telling: it may have been received."""
    sending_until: float = 0.0
    """Until when whoever tells has the word alone, in seconds since the epoch."""
    failed: Event | None = None
    """What could not be told, and is not tried again until somebody asks for it."""
    failure: str = ""
    """Why."""


class Verdict(StrEnum):
    """What the firewall team, or somebody on its behalf, has decided."""

    APPROVED = "approved"
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Decision:
    """Who has decided what, when (seconds since the epoch), by which way, and why. `id` is the message that said so."""

    verdict: Verdict
    by: str
    at: float
    source: str
    reason: str = ""
    id: str = ""


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
    uid: str = ""
    approval_required: bool = False
    """Whether nothing leaves with it until somebody has approved: what its pool said when it was claimed."""
    ticket: Ticket | None = None
    decision: Decision | None = None
    """The last one about this assignment."""

    @property
    def withheld(self) -> bool:
        """Whether nothing may leave with it, for want of an approval."""
        return self.approval_required and (self.decision is None or self.decision.verdict is not Verdict.APPROVED)

    @property
    def adopted(self) -> bool:
        """Whether it only shows what an admin has set by hand: it follows the NetNamespace, and not the other way."""
        return self.origin is Origin.MANUAL and not self.pool
