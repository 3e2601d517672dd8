"""What people and programs are shown of Hawse: the same values make the pages, `/api/v1` and the `hawse` command.

Times are seconds since the epoch, 0.0 for never; addresses and other texts are as the objects hold them, untrusted.
"""

from __future__ import annotations

from dataclasses import dataclass

from egress.actions import RetryRun, Trouble
from egress.diagnosis import Fault, Piece, Trace
from egress.objects import Condition, Decision, Phase, Ticket
from egress.operations import StepRecord


@dataclass(frozen=True, slots=True)
class Assignment:
    """One address of one namespace, or (without an address) a namespace that waits for one."""

    namespace: str
    address: str
    pool: str
    phase: Phase
    node: str
    since: float
    """When the phase began, as far as that is known."""
    trouble: Trouble | None = None
    reason: str = ""
    """The reason of the condition that makes the trouble, in CamelCase."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the assignments that a filter lets through. `after` goes into the next request; "" on the last page."""

    items: tuple[Assignment, ...]
    total: int
    after: str = ""


@dataclass(frozen=True, slots=True)
class AddressDetail:
    """One address of a namespace with all that its object says."""

    assignment: Assignment
    origin: str
    created: float
    operation: str
    netid: int | None
    conditions: tuple[Condition, ...]
    ticket: Ticket | None
    decision: Decision | None
    approval_required: bool
    quarantined_until: float = 0.0
    move_to: str = ""
    """The node that somebody wants it to be on; "" once it is there, or cannot go there."""


@dataclass(frozen=True, slots=True)
class NamespaceDetail:
    """One namespace: its addresses, its traffic as planned, and what was done for it, the latest first."""

    namespace: str
    addresses: tuple[AddressDetail, ...]
    state: str
    """normal, via or drop, as `hawse plan` has it; "" for a namespace that is gone."""
    reasons: tuple[str, ...]
    history: tuple[StepRecord, ...]


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as its runner reported it. `behind` is by how many changes; None: it has no table, or another one."""

    name: str
    ip: str
    heard: float
    lost_since: float
    applied: int
    latest: int
    behind: int | None
    carrier: bool
    held: int
    given: int
    """How many addresses the table gives it."""
    refused: tuple[str, ...]
    """The addresses it was given and does not hold, each with why."""
    repairs: int
    problem: str
    last_problem: str = ""
    """The last one since its runner began, though it may have passed; and when it was there last."""
    last_problem_at: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool and how full it is, in addresses."""

    name: str
    cidrs: tuple[str, ...]
    capacity: int
    allocated: int
    quarantined: int
    free: int
    approval_required: bool
    ticket_profile: str
    conditions: tuple[Condition, ...] = ()
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Assignments that have the same trouble for the same reason, worst first, and one message of theirs."""

    trouble: Trouble
    reason: str
    message: str
    count: int
    items: tuple[Assignment, ...]
    """The first of them."""


@dataclass(frozen=True, slots=True)
class Overview:
    """What is wrong first, then how much there is."""

    troubles: tuple[FailureGroup, ...]
    nodes_behind: tuple[NodeView, ...]
    phases: dict[str, int]
    assignments: int
    nodes: int
    pools: tuple[PoolView, ...]
    paused: str = ""
    """Who has paused the automation, and why; "" while it runs."""
    stale: str = ""
    """Why what is shown may be old: what cannot be reached; "" if nothing."""
    network: str = "runner"
    """Who programs the nodes: runner, openshift-sdn or ovn-kubernetes."""
    unseen: str = ""
    """What cannot be shown because the cluster's own network programs the nodes; "" if nothing."""


@dataclass(frozen=True, slots=True)
class NodePath:
    """What one node says of one namespace. `trouble` is why it says nothing; `at` when it was looked at."""

    node: str
    at: float
    traces: tuple[Trace, ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The way of a namespace's packets: what is wrong, the first cause first, and each node's part."""

    namespace: str
    state: str
    """normal, via or drop, as `hawse plan` has it; "" for a namespace that is gone."""
    addresses: tuple[str, ...]
    objects: tuple[Piece, ...]
    """The cluster's objects: what each should say, and what it says."""
    nodes: tuple[NodePath, ...]
    """The nodes that send its packets out first, then those that steer them there."""
    faults: tuple[Fault, ...]
    unseen: str = ""
    """What was not looked at because the cluster's own network programs the nodes; "" if nothing."""


@dataclass(frozen=True, slots=True)
class Verification:
    """All that is not as it should be, and how much was looked at."""

    namespaces: int
    addresses: int
    nodes: int
    faults: tuple[Fault, ...]
    total: int
    """How many faults there are; `faults` are the first of them."""
    unseen: str = ""
    """As for `Explanation`."""


@dataclass(frozen=True, slots=True)
class RetryProgress:
    """What has become of a run: how many of its namespaces are well, are on their way, are in another trouble, and have
    still, or again, the one they had."""

    run: RetryRun
    well: int
    waiting: int
    other: int
    same: int

    @property
    def asked(self) -> int:
        """How many there are."""
        return len(self.run.namespaces)

    @property
    def changed(self) -> int:
        """How many no longer have the trouble they had."""
        return self.asked - self.same
