"""Judges the nodes that have fallen silent, and those that are back: which of them count as lost."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import structlog

from egress.addresses import Address, addresses_of
from egress.liveness import Silence, Verdict, judge
from egress.messages import PLACE_TASK, PUBLISH_TASK
from egress.objects import HostSubnet
from egress.operations import Step
from egress.table import NodeReport
from workers import metrics, placing
from workers.context import Context

_log = structlog.get_logger()
LOCK_SECONDS = 10.0


def run(context: Context) -> dict[str, float]:
    """Brings the list of lost nodes to what is so; the nodes on it, and since when.

    A silent node is judged by what the living ones see of it on their link (`egress.liveness`). One whose runner says
    that its link is down is lost at once. A lost node stays so until its runner is heard again, over a link: only then
    has it let go what others have by now, or will before it does anything else.
    """
    with context.ledger.exclusively("failover", LOCK_SECONDS):
        subnets = context.host_subnets()
        context.ledger.expect({subnet.name: subnet.host_ip for subnet in subnets})
        before, now = context.ledger.lost(), context.ledger.now()
        reports = context.ledger.reports(subnet.name for subnet in subnets)
        silent = {item.node: item for item in context.ledger.silent(context.settings.heartbeat_patience)}
        lost = {}
        for subnet in subnets:
            since = _lost_since(context, subnet, silent, reports, before.get(subnet.name), now)
            if since is not None:
                lost[subnet.name] = since
        returned = {node: since for node, since in context.ledger.returned().items() if node not in lost}
        for node in before.keys() - lost.keys():
            returned[node] = now
            _log.warning("node is back", node=node, away=round(now - before[node], 1))
        rejoining = {node: since for node, since in returned.items() if now - since < context.settings.rejoin_after}
        for subnet in subnets:
            if subnet.name in lost and subnet.name not in before and (addresses := addresses_of(subnet.egress_ips)):
                context.ledger.begin_failover(addresses, lost[subnet.name])
                context.ledger.foretell(placing.RESCUE, placing.RESCUE_SECONDS)
        if lost != before or rejoining != context.ledger.returned():
            context.ledger.set_lost(lost, rejoining)
    for subnet in subnets:
        if subnet.name in lost.keys() - before.keys():
            addresses = addresses_of(subnet.egress_ips)
            _log.error("node is lost", node=subnet.name, addresses=list(map(str, addresses)))
            metrics.nodes_lost.inc()
    if lost.keys() != before.keys():
        context.hurry(PLACE_TASK, PUBLISH_TASK)
    stranded = any(addresses_of(subnet.egress_ips) for subnet in subnets if subnet.name in lost)
    if stranded or lost.keys() != before.keys():
        context.ask(PLACE_TASK)  # which asks for publishing: before it, that would make one pass more for the nodes
    return lost


def _lost_since(
    context: Context,
    subnet: HostSubnet,
    silent: Mapping[str, Silence],
    reports: Mapping[str, NodeReport],
    before: float | None,
    now: float,
) -> float | None:
    """Since when the node counts as lost, or None."""
    report, silence = reports.get(subnet.name), silent.get(subnet.name)
    if silence is not None and before is not None:
        return before
    if silence is None:
        if report is not None and not report.carrier:
            return before if before is not None else now
        return None
    able = [other for node, other in reports.items() if node not in silent and other.carrier]
    witnesses = _on_link(able, subnet)
    # What it refused itself is somebody else's, who goes on answering.
    refused = {claim.address for claim in report.claims if not claim.held and claim.reason} if report else set()
    sightings = [replace(seen, held=seen.held - refused) for seen in context.ledger.sightings(subnet.name)]
    verdict = judge(silence, sightings, witnesses, now, context.settings.runner_timeout)
    if verdict is Verdict.ALIVE and context.ledger.first_to(f"silent:{subnet.name}", 60.0):
        _log.error(
            "a node's runner is silent, but the node answers: it goes on as it is",
            node=subnet.name,
            seconds=round(silence.seconds, 1),
        )
    return now - silence.seconds if verdict is Verdict.LOST else None


def _on_link(reports: Iterable[NodeReport], subnet: HostSubnet) -> int:
    """How many of these nodes have the node's IP on their link, by whichever IP version."""
    with suppress(ValueError):
        host_ip = ipaddress.ip_address(subnet.host_ip)
        return sum(any(_is_on(host_ip, link) for link in (report.link, *report.other_links)) for report in reports)
    return 0


def _is_on(address: Address, link: str) -> bool:
    with suppress(ValueError):
        return address in ipaddress.ip_interface(link).network
    return False


class Carriers(Protocol):
    """Says who carries what."""

    def carrier(self, address: Address) -> tuple[str, str] | None:
        """The living node by which an address carries traffic, and its namespace; None if none does."""

    def is_wanted(self, address: Address) -> bool:
        """Whether anybody has claimed the address still."""


def finish(context: Context, planner: Carriers) -> None:
    """Ends the failovers of the addresses that carry traffic again, and says how long each took; and, without a word,
    those of addresses that nobody has claimed any more."""
    waiting = context.ledger.failovers()
    if not waiting:
        return
    now = context.ledger.now()
    for address, since in waiting.items():
        carrier = planner.carrier(address)
        if not planner.is_wanted(address):
            context.ledger.end_failover(address)
        elif carrier is not None and context.ledger.end_failover(address):
            node, namespace = carrier
            metrics.failover_duration.observe(now - since)
            message = f"carried again {now - since:.1f} s after its node was last heard of"
            context.record(Step.FAILOVER, namespace, address=str(address), node=node, message=message)
