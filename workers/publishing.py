"""Brings the nodes' table to what the cluster's objects and the nodes' acknowledgements say, and nudges the nodes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import structlog

from egress.addresses import addresses_of
from egress.listing import who_lists
from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK
from egress.operations import TransientError
from egress.planning import plan, with_claims, withheld
from egress.table import (
    NodeReport,
    Steering,
    acknowledged,
    carried_over,
    fences,
    held_back,
    lagging,
    only_claimants,
    row_key,
    table_of,
    traced,
    unbound,
)
from workers import census, failover, status
from workers.context import Context
from workers.status import Seen

_log = structlog.get_logger()
LOCK_SECONDS = 10.0
"""How long a killed publisher keeps the others waiting. One that takes longer is refused by its change number."""


def run(context: Context) -> int:
    """Publishes what changed and gives the number of rows that did.

    One run at a time, and a run whose table was changed under it starts over: an older view never overwrites a newer.
    """
    context.ledger.check_free("place")  # half of a placement would make one pass more for every node
    with context.ledger.exclusively("publish", LOCK_SECONDS):
        current = context.ledger.read_table()
        expected = current.change if current.epoch else context.ledger.change_number()
        known = {netid: row for netid, row in current.rows.items() if row is not None}
        rows = known if current.epoch else {}  # a table that cannot be read is built anew, but for what it fences
        subnets = context.host_subnets()
        claims = context.egress_addresses()
        net_namespaces = context.net_namespaces()
        context.ledger.set_listed(who_lists(subnets, net_namespaces))
        if context.ledger.is_news("node IPs", repr(sorted(subnet.host_ip for subnet in subnets))):
            context.ask(RECONCILE_TASK)  # admission must not give a new node's own IP away
        reports = context.ledger.reports(subnet.name for subnet in subnets)
        epoch = ""
        if not current.epoch:
            _await_reports(context, {subnet.name for subnet in subnets if subnet.egress_ips}, reports)
            epoch = uuid.uuid4().hex
        held = acknowledged(rows, reports, current.epoch)
        lost = context.ledger.lost()
        outcome = plan(
            subnets,
            with_claims(net_namespaces, claims),
            offline=lost.keys(),
            acknowledged=held,
            withheld=withheld(claims),
        )
        promised = context.ledger.promised_netids(unbound(net_namespaces, claims))
        fenced = fences(known, promised, net_namespaces, claims)
        wanted = held_back(fenced | table_of(outcome), rows, reports, lost, context.ledger.now())
        desired = traced(carried_over(wanted, rows), claims)
        changes: dict[int, Steering | None] = {
            netid: desired.get(netid) for netid in desired.keys() | rows.keys() if desired.get(netid) != rows.get(netid)
        }
        if changes or epoch:
            number = context.ledger.publish(changes, expected=expected, epoch=epoch)
            if number is None:
                raise TransientError("the table changed while it was read")
            _log.info("published", change=number, rows=len(changes), new_table=bool(epoch))
            context.ledger.done_with("rebuild")
            # A node that is not nudged reads the table by its clock.
            first = only_claimants(changes, rows, lost) if not epoch else None
            for subnet in subnets:
                if first is None or subnet.name in first:
                    context.nudge(subnet.name)
        for conflict in outcome.conflicts:
            _log.warning("conflict", conflict=conflict)
    _go_on(context, promised, {subnet.name for subnet in subnets}, reports)
    in_use = [namespace.egress_ips for namespace in with_claims(net_namespaces, claims)]
    failover.finish(context, outcome, lost, {address for texts in in_use for address in addresses_of(texts)})
    unplaced = context.ledger.unplaced()
    census.take(context, claims, len(outcome.conflicts))
    if not status.update(context, claims, Seen.of(outcome, subnets, net_namespaces, reports, unplaced)):
        context.ask(PUBLISH_TASK, delay=context.settings.status_interval / 2)
    if unplaced and context.ledger.is_news("reports", _looks_of(reports)):
        context.ask(PLACE_TASK)
    return len(changes)


def _go_on(context: Context, promised: Mapping[str, int], nodes: set[str], reports: Mapping[str, NodeReport]) -> None:
    """Lets the namespaces go on whose NetID every node drops by now: their NetNamespace may be made."""
    if not promised:
        return
    last, now = context.ledger.last_changes(promised), context.ledger.now()
    dropped = {}
    for name, netid in promised.items():
        change = last.changes.get(name)
        if change is not None and not lagging(nodes, reports, last.epoch, change, now=now, began=last.began):
            dropped[name] = row_key(netid, last.epoch, change)
    for name in context.ledger.fenced(dropped):
        context.ask(NAMESPACE_TASK, name)


def _looks_of(reports: Mapping[str, NodeReport]) -> str:
    """What placement sees of the reports."""
    return repr(sorted((report.node, report.link, bool(report.problem)) for report in reports.values()))


def _await_reports(context: Context, hosts: set[str], reports: Mapping[str, NodeReport]) -> None:
    """Before the first table after a flush: what do the nodes hold? A table that counted it as nothing would drop
    traffic that flows. A node that does not say within `report_wait` holds nothing."""
    silent = sorted(hosts - reports.keys())
    if silent and context.ledger.waiting_for("rebuild", context.settings.report_wait):
        raise TransientError(f"the table is being rebuilt: waiting for the reports of {', '.join(silent)}")
