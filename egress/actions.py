"""What people may do to Hawse, and what is kept of what they did.

Times are seconds since the epoch. Apart from `egress.views`, so that who has the ledger alone has these alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Trouble(StrEnum):
    """Why somebody should look at an assignment; the first that holds. What needs nobody has none."""

    FAILED = "failed"
    """It waits for somebody to retry it."""
    CONFLICT = "conflict"
    """Objects contradict each other, or another host answers for the address."""
    TICKET = "ticket"
    """The firewall team could not be told, or has said no."""
    PENDING = "pending"
    """It is on its way, or waits for a node, a free address or an approval."""


@dataclass(frozen=True, slots=True)
class RetryRun:
    """Namespaces that somebody had tried again together, because all had one trouble for one reason."""

    at: float
    who: str
    trouble: Trouble
    reason: str
    namespaces: tuple[str, ...]


class Verb(StrEnum):
    """What somebody may do to Hawse. `view` and these are the verbs that a SubjectAccessReview is asked for."""

    RETRY = "retry"
    RELEASE = "release"
    MOVE = "move"
    APPROVE = "approve"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An action: who did what to what, why, and what came of it."""

    id: str
    at: float
    who: str
    verb: Verb
    subject: str
    """A namespace, an address or "automation"."""
    why: str
    outcome: str
    """`done`, or the error."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Actions, the latest first. `after` goes into the next request; "" on the last page."""

    items: tuple[AuditEntry, ...]
    after: str = ""
