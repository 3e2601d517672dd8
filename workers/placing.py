"""Gives addresses a node and takes released ones off theirs: one patch per HostSubnet, however many came together."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import structlog

from egress.adapters import manifests
from egress.adapters.cluster import Kind
from egress.addresses import Address, AddressError, parse_address
from egress.messages import PUBLISH_TASK
from egress.objects import EgressAddress, HostSubnet, Node, Origin, Phase
from egress.operations import Step
from egress.placement import Candidate, Placement, Unplaced, place
from egress.table import NodeReport
from workers.context import Context, readable

_log = structlog.get_logger()
LOCK_SECONDS = 10.0
"""How long a killed run keeps the next one waiting. Two at once do no harm: each patch carries the version it read."""


def run(context: Context) -> Placement:
    """Places what has no node, clears what is in quarantine, and leaves what several nodes have to one of them.

    Raises TransientError when a HostSubnet changed meanwhile: what was not patched is placed by the next run.
    """
    with context.ledger.exclusively("place", LOCK_SECONDS):
        claims = context.egress_addresses()
        subnets = context.host_subnets()
        surplus = _surplus(claims, subnets)
        kept = {subnet.name: _without(subnet, surplus) for subnet in subnets}
        hosted = {address for subnet in kept.values() for address in _addresses(subnet)}
        placement = Placement({}, {})
        wanted = [claim for claim in claims if _homeless(claim, hosted)]
        if wanted:
            placement = _placement(context, claims, wanted, list(kept.values()))
        for subnet in subnets:
            _patch(context, subnet, kept[subnet.name], placement, claims)
    if placement.nodes or surplus or placement.refused != context.ledger.unplaced():
        context.ledger.set_unplaced(placement.refused)
        context.ask(PUBLISH_TASK)
    for address, reason in sorted(placement.refused.items(), key=lambda item: str(item[0])):
        _log.warning("not placed", address=str(address), reason=reason)
    return placement


def _surplus(claims: list[EgressAddress], subnets: list[HostSubnet]) -> set[tuple[str, Address]]:
    """What nodes must let go, each with its node: addresses in quarantine, and those of ours that another node has too.

    The lock of `run` is lost with Redis, so two runs may have placed one address on two nodes. An address of manual
    origin is its admin's: there it stays a conflict.
    """
    nodes: dict[Address, set[str]] = {}
    for subnet in subnets:
        for address in _addresses(subnet):
            nodes.setdefault(address, set()).add(subnet.name)
    result: set[tuple[str, Address]] = set()
    for claim in claims:
        address = parse_address(claim.address)
        hosts = nodes.get(address, set())
        if claim.phase is Phase.QUARANTINED:
            result |= {(node, address) for node in hosts}
        elif len(hosts) > 1 and claim.origin is not Origin.MANUAL:
            stays = claim.node if claim.node in hosts else min(hosts)
            _log.warning("on several nodes", address=claim.address, nodes=sorted(hosts), stays=stays)
            result |= {(node, address) for node in hosts - {stays}}
    return result


def _without(subnet: HostSubnet, surplus: set[tuple[str, Address]]) -> HostSubnet:
    kept = []
    for text in subnet.egress_ips:
        address = _parsed(text)
        if address is None or (subnet.name, address) not in surplus:
            kept.append(text)
    return replace(subnet, egress_ips=tuple(kept))


def _homeless(claim: EgressAddress, hosted: set[Address]) -> bool:
    return claim.phase is not Phase.QUARANTINED and not claim.adopted and parse_address(claim.address) not in hosted


def _placement(
    context: Context, claims: list[EgressAddress], wanted: list[EgressAddress], subnets: list[HostSubnet]
) -> Placement:
    pools = {pool.name: pool for pool in context.pools()}
    nodes = {node.name: node for node in readable(manifests.node, context.cluster.list(Kind.NODE).items)}
    reports = context.ledger.reports(subnet.name for subnet in subnets)
    siblings: dict[str, list[Address]] = {}
    for claim in claims:
        siblings.setdefault(claim.namespace, []).append(parse_address(claim.address))
    unplaced: list[Unplaced] = []
    poolless: dict[Address, str] = {}
    for claim in wanted:
        address, pool = parse_address(claim.address), pools.get(claim.pool)
        if pool is None:
            poolless[address] = f"its EgressPool {claim.pool} is gone or cannot be read"
        else:
            unplaced.append(Unplaced(address, claim.namespace, pool))
    candidates = [_candidate(subnet, nodes.get(subnet.name), reports.get(subnet.name)) for subnet in subnets]
    placement = place(unplaced, candidates, siblings)
    return Placement(placement.nodes, {**placement.refused, **poolless})


def _candidate(subnet: HostSubnet, node: Node | None, report: NodeReport | None) -> Candidate:
    link = ipaddress.ip_interface(report.link) if report is not None and report.link else None
    hosted = frozenset(_addresses(subnet))
    if node is None:
        return Candidate(subnet.name, {}, usable=False, link=link, hosted=hosted)
    usable = node.ready and not node.unschedulable and not (report and report.problem)
    return Candidate(subnet.name, node.labels, usable, link, hosted)


def _patch(
    context: Context, subnet: HostSubnet, kept: HostSubnet, placement: Placement, claims: list[EgressAddress]
) -> None:
    new = [str(address) for address, node in placement.nodes.items() if node == subnet.name]
    if not new and kept == subnet:
        return
    patch = {"metadata": {"resourceVersion": subnet.resource_version}, "egressIPs": [*kept.egress_ips, *new]}
    context.cluster.patch(Kind.HOST_SUBNET, subnet.name, patch)
    placed = {claim.address: claim for claim in claims}
    for text in new:
        claim = placed[text]
        context.record(Step.PLACE, claim.namespace, address=text, node=subnet.name, operation=claim.operation)


def _addresses(subnet: HostSubnet) -> list[Address]:
    return [address for text in subnet.egress_ips if (address := _parsed(text)) is not None]


def _parsed(text: str) -> Address | None:
    try:
        return parse_address(text)
    except AddressError:
        return None  # planning reports it, by its HostSubnet's name
