"""What pages, `/api/v1` and the command show: from the mirrors and the ledger, as values of `egress.views`.

Nothing here asks the API server, and nothing costs more the longer the history is. What the ledger says is read once a
second at most, whoever asks; the assignments are made anew only when an object has changed.
"""

from __future__ import annotations

import base64
import bisect
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from egress.actions import Audit, RetryRun, Trouble
from egress.adapters.ledger import Ledger
from egress.addresses import parse_address
from egress.networks import Network
from egress.objects import Condition, EgressAddress, Event, Phase, Verdict
from egress.operations import TransientError
from egress.table import Steering
from egress.tickets import FIREWALL_OPEN, conflict_of
from egress.views import (
    AddressDetail,
    Assignment,
    FailureGroup,
    NamespaceDetail,
    NodeView,
    Overview,
    Page,
    PoolView,
    RetryProgress,
)
from webhook.api.facts import Facts, Watcher
from webhook.api.mirrors import Mirrors, Pool
from webhook.api.queries import SORTS, BadRequestError, Filter

BEHIND_SECONDS = 10.0
"""A node that was not heard for so long counts as behind, whatever it has applied."""
GRACE_SECONDS = 5.0
"""A node may take so long to apply what was published before it counts as behind."""
GROUP_ITEMS = 20
"""How many assignments a group of failures names."""
MAX_LIMIT = 500
_RANK = {trouble: rank for rank, trouble in enumerate(Trouble)}


class Reading:
    """All that is shown. `paused` says who has paused the automation, or ""; `network` who programs the nodes, if it
    can be asked: TransientError."""

    def __init__(
        self,
        mirrors: Mirrors,
        ledger: Ledger,
        paused: Callable[[], str],
        network: Callable[[], Network] = lambda: Network.RUNNER,
    ) -> None:
        self.network = network
        self._mirrors = mirrors
        self._ledger = ledger
        self._paused = paused
        self._watcher = Watcher(ledger)
        self._lock = threading.Lock()
        self._version = -1
        self._known: dict[str, tuple[EgressAddress, Assignment, str]] = {}
        self._sorted: dict[str, tuple[list[str], list[Assignment]]] = {}
        self._by_namespace: dict[str, list[EgressAddress]] = {}

    def state(self) -> object:
        """Equal to an earlier one if nothing that is shown has changed but the time."""
        facts = self._watcher.facts()
        reports = {node: replace(report, at=0.0, last_problem_at=0.0) for node, report in facts.reports.items()}
        behind = tuple(node.name for node in self.nodes() if _is_behind(node, facts))
        return (
            self._mirrors.versions, facts.epoch, facts.change, reports, facts.lost, behind, facts.problem,
            self._paused(), self._mirrors.verdict(),
        )  # fmt: skip

    def edition(self) -> object:
        """Equal to an earlier one only if all that is shown is as it was, but for histories and the audit; found out
        without looking at it. Different at least once a second while somebody asks."""
        versions = tuple(self._mirrors.versions.values())
        return versions, self._watcher.reads(), self._paused(), self.stale()

    def overview(self, namespaces: Collection[str] | None = None) -> Overview:
        """What is wrong, and how much there is; of `namespaces` alone unless None."""
        items = [item for item in self._all() if namespaces is None or item.namespace in namespaces]
        nodes = self.nodes() if namespaces is None else ()
        return Overview(
            _groups(items),
            tuple(node for node in nodes if _is_behind(node, self._watcher.facts())),
            dict(Counter(item.phase.value for item in items)),
            len(items),
            len(nodes),
            self.pools() if namespaces is None else (),
            self._paused(),
            self.stale(),
            *self._programmed(),
        )

    def _programmed(self) -> tuple[str, str]:
        """Who programs the nodes, and what therefore is not shown."""
        try:
            network = self.network()
        except TransientError:
            return "", ""  # that the API server is away is said elsewhere
        return network.value, network.unseen

    def paused(self) -> str:
        """Who has paused the automation, and why; "" while it runs."""
        return self._paused()

    def stale(self) -> str:
        """Why what is shown may be old; "" if it is not."""
        for mirror in self._mirrors.all:
            if not mirror.current():
                return f"the API server does not tell of changes of {mirror.kind.label}: what is shown may be old"
        facts = self._watcher.facts()
        if facts.problem or facts.epoch or not self._has_table():
            return facts.problem
        return "the nodes' table is being built anew"

    def _has_table(self) -> bool:
        """Whether nodes follow a table of ours; where that is not known, they do."""
        try:
            return not self.network().native
        except TransientError:
            return True

    def assignments(
        self,
        wanted: Filter,
        *,
        sort: str = "namespace",
        descending: bool = False,
        after: str = "",
        limit: int = 100,
    ) -> Page:
        """A page of the assignments that `wanted` lets through. BadRequestError for an unknown `sort` or `after`."""
        if sort not in SORTS:
            raise BadRequestError(f"sort is {sort!r}; give it one of {', '.join(SORTS)}")
        if not 1 <= limit <= MAX_LIMIT:
            raise BadRequestError(f"limit is {limit}; give it 1 to {MAX_LIMIT}")
        keys, items = self._ordered(sort)
        chosen = [(key, item) for key, item in zip(keys, items, strict=True) if wanted.lets_through(item)]
        if descending:
            chosen.reverse()
        start = _start([key for key, _ in chosen], _decoded(after), descending=descending) if after else 0
        page = chosen[start : start + limit]
        more = start + limit < len(chosen)
        return Page(tuple(item for _, item in page), len(chosen), _encoded(page[-1][0]) if more else "")

    def matching(self, wanted: Filter) -> list[Assignment]:
        """All assignments that `wanted` lets through."""
        return [item for item in self._all() if wanted.lets_through(item)]

    def facts(self) -> Facts:
        """What the ledger said a moment ago."""
        return self._watcher.facts()

    def all_claims(self) -> list[EgressAddress]:
        """Every claim."""
        return list(self._mirrors.claims.snapshot().items.values())

    def claims(self, namespace: str) -> tuple[EgressAddress, ...]:
        """The claims of one namespace."""
        self._all()
        return tuple(self._by_namespace.get(namespace, ()))

    def claims_by_namespace(self) -> Mapping[str, Sequence[EgressAddress]]:
        """The claims of every namespace that has some, as they are now. It never changes."""
        self._all()
        return self._by_namespace

    def retried(self, run: str) -> RetryProgress | None:
        """How far those are that somebody had tried again together; None if that is not known (any more)."""
        try:
            found = self._ledger.run(run)
        except TransientError:
            return None
        if found is None:
            return None
        claims = self.claims_by_namespace()
        counts = Counter(_became(found, map(assignment_of, claims.get(name, ()))) for name in found.namespaces)
        return RetryProgress(found, *(counts[kind] for kind in ("well", "waiting", "other", "same")))

    def namespace(self, name: str) -> NamespaceDetail | None:
        """One namespace with its history; None if it has no address, no row in the table and no history."""
        claims = self.claims(name)
        facts = self._watcher.facts()
        rows = [row for row in facts.table.values() if row.namespace == name and not row.former]
        try:
            history = self._ledger.history(name)
        except TransientError:
            history = ()
        there = name in self._mirrors.tenants.items()
        if not claims and not rows and not history and not there:
            return None
        netid = rows[0].netid if rows else None
        state = "normal" if there else ""
        reasons: tuple[str, ...] = ()
        if rows:
            active = [hop for hop in rows[0].hops if hop.acknowledged]
            state = "via" if active else "drop"
            reasons = () if active else tuple(_reasons(rows[0], claims))
        elif there and self.network().native:
            state, reasons = _natively(self.network(), claims)
        return NamespaceDetail(name, tuple(_detail(claim, netid) for claim in claims), state, reasons, history)

    def nodes(self) -> tuple[NodeView, ...]:
        """Every node that has a runner, by name."""
        facts = self._watcher.facts()
        given: Counter[str] = Counter(hop.node for row in facts.table.values() for hop in row.hops)
        names = sorted({*facts.ips, *facts.reports, *given, *facts.lost})
        return tuple(_node(name, facts, given[name]) for name in names)

    def pools(self) -> tuple[PoolView, ...]:
        """Every pool, by name."""
        return tuple(_pool(name, pool) for name, pool in sorted(self._mirrors.pools.items().items()))

    def failures(self, namespaces: Collection[str] | None = None) -> tuple[FailureGroup, ...]:
        """What is wrong, by its cause, the worst first."""
        return _groups(item for item in self._all() if namespaces is None or item.namespace in namespaces)

    def audit(self, after: str = "", limit: int = 100) -> Audit:
        """What people did, the latest first."""
        return self._ledger.audit(after, limit)

    def _all(self) -> list[Assignment]:
        return self._ordered("namespace")[1]

    def _ordered(self, sort: str) -> tuple[list[str], list[Assignment]]:
        """All assignments by the key `sort`, and their keys."""
        claims = self._mirrors.claims.snapshot()
        with self._lock:
            if claims.version != self._version:
                self._take(claims.items)
                self._version = claims.version
            if sort not in self._sorted:
                pairs = [(_key(sort, item, unique), item) for _, item, unique in self._known.values()]
                pairs.sort(key=lambda pair: pair[0])
                self._sorted[sort] = [key for key, _ in pairs], [item for _, item in pairs]
            return self._sorted[sort]

    def _take(self, claims: Mapping[str, EgressAddress]) -> None:
        before = self._known
        known = {}
        for name, claim in claims.items():
            old = before.get(name)
            known[name] = old if old is not None and old[0] is claim else _known(claim)
        by_namespace: defaultdict[str, list[EgressAddress]] = defaultdict(list)
        for claim, _, _ in known.values():
            by_namespace[claim.namespace].append(claim)
        self._known, self._sorted, self._by_namespace = known, {}, by_namespace


def _known(claim: EgressAddress) -> tuple[EgressAddress, Assignment, str]:
    """A claim as an assignment, and what tells it from all others in an order."""
    item = assignment_of(claim)
    address = parse_address(item.address)
    return claim, item, f"{address.version}{int(address):032x}"


def assignment_of(claim: EgressAddress) -> Assignment:
    """The claim as an assignment, with what is wrong with it."""
    trouble, condition = _trouble(claim)
    ready = next((item for item in claim.conditions if item.type == "Ready"), None)
    since = _seconds(ready.last_transition if ready is not None and ready.last_transition else claim.created)
    reason, message = (condition.reason, condition.message) if condition is not None else ("", "")
    return Assignment(
        claim.namespace, claim.address, claim.pool, claim.phase, claim.node, since, trouble, reason, message
    )


def _trouble(claim: EgressAddress) -> tuple[Trouble | None, Condition | None]:
    """The first thing that is wrong, and the condition that says so."""
    live = claim.phase is not Phase.QUARANTINED
    conditions = {condition.type: condition for condition in claim.conditions}
    ready, ticket, decision = conditions.get("Ready"), claim.ticket, claim.decision
    conflict = conflict_of(claim)
    if live and conflict:
        return Trouble.CONFLICT, next(item for item in claim.conditions if item.message == conflict)
    if claim.phase is Phase.FAILED:
        return Trouble.FAILED, ready
    if ticket is not None and ticket.failed in (Event.ASSIGNED, Event.RELEASED):
        return Trouble.TICKET, Condition(FIREWALL_OPEN, None, "TicketFailed", ticket.failure)
    if live and decision is not None and decision.verdict is not Verdict.APPROVED:
        return Trouble.TICKET, conditions.get(FIREWALL_OPEN)
    if claim.phase in (Phase.PENDING, Phase.PLACED):
        return Trouble.PENDING, ready or _UNSEEN
    return None, None


_UNSEEN = Condition("Ready", False, "Pending", "no worker has looked at it yet")


def _detail(claim: EgressAddress, netid: int | None) -> AddressDetail:
    return AddressDetail(
        assignment_of(claim),
        claim.origin.value,
        _seconds(claim.created),
        claim.operation,
        netid,
        claim.conditions,
        claim.ticket,
        claim.decision,
        claim.approval_required,
        claim.quarantined_until,
        claim.move_to,
    )


def _natively(network: Network, claims: Iterable[EgressAddress]) -> tuple[str, tuple[str, ...]]:
    """What a namespace's traffic does as far as the objects say, and why not more.

    OpenShift SDN drops it while no address of its NetNamespace is hosted. OVN-Kubernetes lets it out, with the node's.
    """
    live = [claim for claim in claims if claim.phase is not Phase.QUARANTINED]
    if any(claim.phase is Phase.READY for claim in live):
        return "via", ()
    bound = any(item.type == "Bound" and item.status for claim in live for item in claim.conditions)
    state = "drop" if bound and network is Network.OPENSHIFT_SDN else "normal"
    ready = ((claim, item) for claim in live for item in claim.conditions if item.type == "Ready")
    return state, tuple(f"{claim.address}: {item.message}" for claim, item in ready if item.message)


def _reasons(row: Steering, claims: Iterable[EgressAddress]) -> Iterable[str]:
    """Why the traffic of a row is dropped."""
    for claim in claims:
        ready = next((item for item in claim.conditions if item.type == "Ready" and not item.status), None)
        if ready is not None and ready.message:
            yield f"{claim.address}: {ready.message}"
    for hop in row.hops:
        yield f"{hop.node} does not hold {hop.address} yet"


def _node(name: str, facts: Facts, given: int) -> NodeView:
    report = facts.reports.get(name)
    ip = facts.ips.get(name, "")
    lost = facts.lost.get(name, 0.0)
    if report is None:
        return NodeView(name, ip, 0.0, lost, 0, facts.change, None, carrier=True, held=0, given=given, refused=(),
                        repairs=0, problem="its runner has not reported")  # fmt: skip
    behind = max(0, facts.change - report.applied) if report.epoch and report.epoch == facts.epoch else None
    refused = tuple(
        f"{claim.address}: {claim.reason}: {claim.message}"
        for claim in report.claims
        if not claim.held and claim.reason
    )
    return NodeView(
        name,
        ip,
        report.heard,
        lost,
        report.applied,
        facts.change,
        behind,
        report.carrier,
        sum(claim.held for claim in report.claims),
        given,
        refused,
        report.repairs,
        report.problem,
        report.last_problem,
        report.last_problem_at,
    )


def _is_behind(node: NodeView, facts: Facts) -> bool:
    silent = facts.now - node.heard > BEHIND_SECONDS
    late = facts.now - facts.lagging.get(node.name, facts.now) > GRACE_SECONDS
    return bool(node.behind is None or late or node.lost_since or node.problem or not node.carrier or silent)


def _became(run: RetryRun, items: Iterable[Assignment]) -> str:
    """What has become of one namespace of a run: the worst of its addresses counts."""
    left = [item for item in items if item.trouble is not None]
    if any((item.trouble, item.reason) == (run.trouble, run.reason) for item in left):
        return "same"
    if any(item.trouble is not Trouble.PENDING for item in left):
        return "other"
    return "waiting" if left else "well"


def _pool(name: str, pool: Pool) -> PoolView:
    spec, counts = pool.spec, pool.header.counts
    return PoolView(
        name,
        spec.cidrs if spec is not None else (),
        counts.capacity if counts is not None else 0,
        counts.allocated if counts is not None else 0,
        counts.quarantined if counts is not None else 0,
        counts.free if counts is not None else 0,
        spec.approval_required if spec is not None else False,
        spec.ticket_profile if spec is not None else "",
        pool.header.conditions,
        pool.header.deleting,
    )


def _groups(items: Iterable[Assignment]) -> tuple[FailureGroup, ...]:
    by_cause: defaultdict[tuple[Trouble, str], list[Assignment]] = defaultdict(list)
    for item in items:
        if item.trouble is not None:
            by_cause[item.trouble, item.reason].append(item)
    groups = [
        FailureGroup(trouble, reason, members[0].message, len(members), tuple(members[:GROUP_ITEMS]))
        for (trouble, reason), members in by_cause.items()
    ]
    return tuple(sorted(groups, key=lambda group: (_RANK[group.trouble], -group.count, group.reason)))


def _key(sort: str, item: Assignment, unique: str) -> str:
    """What `item` is sorted by: never the same for two."""
    match sort:
        case "address":
            value = ""
        case "phase":
            value = item.phase.value
        case "since":
            value = f"{item.since:020.3f}"
        case "trouble":
            value = str(_RANK[item.trouble]) if item.trouble is not None else "9"
        case _:
            value = {"namespace": item.namespace, "pool": item.pool, "node": item.node}[sort]
    return f"{value}\0{unique}"


def _start(keys: list[str], after: str, *, descending: bool) -> int:
    """The place of the first key beyond `after`, which may be gone by now."""
    if not descending:
        return bisect.bisect_right(keys, after)
    return len(keys) - bisect.bisect_left(keys[::-1], after)


def _encoded(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except ValueError:
        raise BadRequestError("after is not what an earlier page gave: begin with the first page") from None


def _seconds(text: str) -> float:
    """RFC 3339 as seconds since the epoch; 0.0 for what is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
