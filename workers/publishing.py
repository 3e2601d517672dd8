"""Brings the nodes' table to what the cluster's objects and the nodes' acknowledgements say, and nudges the nodes."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import structlog

from egress.addresses import Address
from egress.messages import PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK
from egress.objects import EgressAddress
from egress.operations import TransientError
from egress.planning import Plan
from egress.replanning import Desired, Objects, Scope, Table, changes_of, conflicts_of
from egress.table import NodeReport, Steering, lagging, only_claimants, row_key
from workers import census, failover, placing, status, stillness
from workers.confirming import Confirmed, confirm
from workers.context import Context
from workers.status import Seen
from workers.view import View

_log = structlog.get_logger()
LOCK_SECONDS = 10.0
"""How long a killed publisher keeps the others waiting. One that takes longer is refused by its change number."""
MOST_TRIES = 3
"""How often a view may turn out to be too old before all objects are listed."""
MOST_OPERATIONS = 20
"""How many admissions a line of the log names at most whose rows it is about."""
LATE_AT_A_TIME = 16
"""One node that lags is enough to know: so many are asked for their whole reports at a time."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """What a run has planned: from what, which part of the whole, and what is to be written."""

    view: View
    scope: Scope
    objects: Objects
    promised: Mapping[str, int]
    desired: Desired
    changes: Mapping[int, Steering | None]
    epoch: str
    """The table's, "" if there is none and it is built anew."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What the status is made from, once the table is written."""

    rows: int
    claims: list[EgressAddress]
    all_claims: list[EgressAddress]
    seen: Seen
    looks: str
    """What placement sees of the nodes' reports."""
    nothing: bool
    """Whether nothing was written, and no namespace waits for the nodes."""


def run(context: Context) -> int:
    """Publishes what changed and gives the number of rows that did.

    One run at a time, and a run whose table was changed under it starts over: an older view never overwrites a newer.
    What this process has planned before it does not plan again; a process without memory plans everything.
    """
    # Half of a placement, or what is so before one, would make one pass more for every node.
    context.ledger.check_free(placing.PATCHING, placing.RESCUE)
    # Planned anew in each run of a burst, and written one by one, they would keep from it those that are to be let on.
    yielding = context.memory.left_for() < status.YIELD_SECONDS and context.crowded()
    with context.memory.alone():
        told = _publish(context, yielding=yielding)
    census.take(context, told.all_claims, len(told.seen.plan.conflicts))
    left = status.Left({claim.namespace for claim in told.claims}, soon=False)
    try:
        left = status.update(context, told.claims, told.seen, yielding=yielding)
    finally:
        context.memory.leave(left.names)
    yields = yielding and context.memory.leaves()
    nothing = told.nothing and not yields and left == status.Left(set(), soon=False)
    stillness.note(context, stillness.PUBLISH, nothing=nothing)
    if left.at_once and not yields:
        context.ask(PUBLISH_TASK)
    elif left.soon or yields:
        wait = context.settings.status_interval / 2
        context.ask(PUBLISH_TASK, delay=max(wait, status.LOOK_SECONDS) if yields else wait)
    if told.seen.unplaced and context.ledger.is_news("reports", told.looks):
        context.ask(PLACE_TASK)
    return told.rows


def _publish(context: Context, *, yielding: bool) -> _Told:
    planner = context.memory.planner
    with context.ledger.exclusively("publish", LOCK_SECONDS):
        unplaced = _look(context, yielding=yielding)
        planned = _plan(context)
        relisted = planner.relisted()
        if planner.whole:
            context.ledger.set_listed(relisted)
        elif relisted:
            context.ledger.note_listed(relisted)
        if planner.whole or planner.nodes_changed:
            ips = repr(sorted(subnet.host_ip for subnet in planner.subnets.values()))
            if context.ledger.is_news("node IPs", ips):
                context.ask(RECONCILE_TASK)  # admission must not give a new node's own IP away
        if planned.changes or not planned.epoch:
            _write(context, planned)
    conflicts = conflicts_of(planned.desired)
    for conflict in conflicts:
        _log.warning("conflict", conflict=conflict)
    _go_on(context, planned.promised, planner.subnets.keys())
    failover.finish(context, planner)
    shown = planned.scope.names | planner.in_conflict()
    outcomes = {name: planner.outcomes[name] for name in shown if name in planner.outcomes}
    seen = Seen.said_so(
        Plan(outcomes, conflicts),
        planned.objects.subnets.values(),
        planned.objects.net_namespaces.values(),
        planner.said(planned.scope.addresses),
        unplaced,
    )
    claims = [claim for _, claim in sorted(planned.objects.claims.items())]
    planner.settle()
    looks = _looks_of(planner.reports) if unplaced else ""
    nothing = not planned.changes and bool(planned.epoch) and not planned.promised
    return _Told(len(planned.changes), claims, list(planner.claims.values()), seen, looks, nothing)


def _look(context: Context, *, yielding: bool) -> Mapping[Address, str]:
    """Reads what changed in the ledger since this process last published; which addresses have no node, and why."""
    memory, planner = context.memory, context.memory.planner
    memory.forget_in_time()
    read = context.ledger.read_table(memory.epoch, memory.change)
    if not read.epoch:  # a table that cannot be read is built anew, but for what it fences
        read = context.ledger.read_table()
    if not read.epoch:
        planner.see_rows({netid: row for netid, row in read.rows.items() if row is not None}, whole=True)
        memory.epoch, memory.change = "", context.ledger.change_number()
    else:
        planner.see_rows(read.rows, whole=read.whole)
        memory.epoch, memory.change = read.epoch, read.change
    if read.whole or not read.epoch:
        planner.plan_again_from_nothing()
    planner.see_lost(context.ledger.lost())
    unplaced, before = context.ledger.unplaced(), memory.unplaced
    differing = [each for each in unplaced.keys() | before.keys() if unplaced.get(each) != before.get(each)]
    left = memory.take_left() if not yielding else set()
    planner.look_again(names=left, addresses=differing)
    memory.unplaced = unplaced
    return unplaced


def _plan(context: Context) -> _Planned:
    """Plans what changed. What would open a way out is planned from objects that were asked for just now."""
    epoch = context.memory.epoch
    for _ in range(MOST_TRIES):
        planned = _plan_from(context, context.views.read(context.ledger, anew=not epoch))
        confirmed = Confirmed.YES if planned.view.listed else confirm(context, planned.changes)
        if confirmed is Confirmed.YES:
            return planned
        if confirmed is Confirmed.TOO_MANY:
            break
    return _plan_from(context, context.views.read(context.ledger, anew=True))


def _plan_from(context: Context, view: View) -> _Planned:
    memory, planner, ledger = context.memory, context.memory.planner, context.ledger
    context.views.show(view, planner)
    nodes = planner.subnets.keys()
    looks = ledger.looks(nodes)
    news = {node for node in looks.keys() | memory.looks.keys() if looks.get(node) != memory.looks.get(node)}
    said = ledger.reports(news & nodes)
    planner.see_reports({node: said.get(node) for node in news})
    memory.looks = looks
    promised = ledger.promised_netids(planner.unbound)
    scope = planner.scope(promised)
    if memory.epoch:
        reports = ledger.reports(planner.asks(scope) & nodes)
    else:
        reports = ledger.reports(nodes)
        _await_reports(context, {name for name, subnet in planner.subnets.items() if subnet.egress_ips}, reports)
    objects = planner.objects(scope)
    desired = planner.plan(scope, objects, reports, Table(memory.epoch, promised, ledger.now()))
    changes = changes_of(desired, scope, planner.rows if memory.epoch else {})
    return _Planned(view, scope, objects, promised, desired, changes, memory.epoch)


def _write(context: Context, planned: _Planned) -> None:
    """Writes the rows that differ, and nudges the nodes that have something to do at once."""
    memory, planner = context.memory, context.memory.planner
    if not planned.view.listed:  # from here on nobody may publish from what is older
        context.ledger.saw_versions(planned.view.changed)
    epoch = "" if planned.epoch else uuid.uuid4().hex
    number = context.ledger.publish(planned.changes, expected=memory.change, epoch=epoch)
    if number is None:
        raise TransientError("the table changed while it was read")
    known_as = sorted({row.operation for row in planned.changes.values() if row is not None and row.operation})
    facts = {"operations": known_as[:MOST_OPERATIONS]} if known_as else {}
    _log.info("published", change=number, rows=len(planned.changes), new_table=bool(epoch), **facts)
    context.ledger.done_with("rebuild")
    # A node that is not nudged reads the table by its clock.
    first = only_claimants(planned.changes, planner.rows, planner.lost) if not epoch else None
    context.ledger.nudge(planner.subnets.keys() if first is None else first & planner.subnets.keys())
    planner.see_rows(numbered(planned.changes, memory.change), whole=bool(epoch))
    memory.epoch, memory.change = epoch or memory.epoch, number


def numbered(changes: Mapping[int, Steering | None], expected: int) -> dict[int, Steering | None]:
    """The rows as the ledger has them once they are published after the change `expected`: each with its number."""
    result: dict[int, Steering | None] = {}
    for number, (netid, row) in enumerate(sorted(changes.items()), start=expected + 1):
        hops = (hop if hop.since else replace(hop, since=number) for hop in row.hops) if row is not None else ()
        result[netid] = replace(row, hops=tuple(hops)) if row is not None else None
    return result


def _go_on(context: Context, promised: Mapping[str, int], nodes: Collection[str]) -> None:
    """Lets the namespaces go on whose NetID every node drops by now: their NetNamespace may be made."""
    if not promised:
        return
    last, now = context.ledger.last_changes(promised), context.ledger.now()
    applied = context.ledger.applied(nodes, last.epoch)
    reports: dict[str, NodeReport] = {}
    asked = set[str]()
    dropped = {}
    for name, netid in promised.items():
        change = last.changes.get(name)
        if change is None:
            continue
        late = sorted(node for node in nodes if applied.get(node, -1) < change)
        for some in (late[place : place + LATE_AT_A_TIME] for place in range(0, len(late), LATE_AT_A_TIME)):
            reports |= context.ledger.reports(set(some) - asked)
            asked.update(some)
            if lagging(some, reports, last.epoch, change, now=now, began=last.began):
                break
        else:
            dropped[name] = row_key(netid, last.epoch, change)
    context.ask_for(context.ledger.fenced(dropped))


def _looks_of(reports: Mapping[str, NodeReport]) -> str:
    """What placement sees of the reports."""
    return repr(
        sorted((report.node, report.link, report.other_links, bool(report.problem)) for report in reports.values())
    )


def _await_reports(context: Context, hosts: set[str], reports: Mapping[str, NodeReport]) -> None:
    """Before the first table after a flush: what do the nodes hold? A table that counted it as nothing would drop
    traffic that flows. A node that does not say within `report_wait` holds nothing."""
    silent = sorted(hosts - reports.keys())
    if silent and context.ledger.waiting_for("rebuild", context.settings.report_wait):
        raise TransientError(f"the table is being rebuilt: waiting for the reports of {', '.join(silent)}")
