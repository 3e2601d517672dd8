"""OpenShift SDN: it programs the nodes from HostSubnet and NetNamespace, which Hawse writes as it does for its runners.

It makes the NetNamespaces. A HostSubnet with `egressCIDRs` is its own to fill: neither that one's `egressIPs` nor any
address that such CIDRs hold is Hawse's to place. There are no runners, so that a node counts by what Kubernetes says of
it, and its subnet is not known: OpenShift SDN says nowhere what it could not do.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from egress.adapters import manifests
from egress.adapters.cluster import Kind, Manifest
from egress.addresses import Address, AddressError, addresses_of, parse_address
from egress.board import Candidate
from egress.hosting import cidrs_of, hosting
from egress.listing import who_lists
from egress.messages import PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK
from egress.networks import Network
from egress.objects import EgressAddress, HostSubnet, Namespace, NetNamespace, Phase
from egress.operations import TransientError
from egress.planning import Plan, plan, with_claims, withheld
from workers import binding, census, failover, metrics, placing, status
from workers.context import Context, readable
from workers.status import Seen

_log = structlog.get_logger()
LOCK_SECONDS = 10.0
_WORD = f"by {Network.OPENSHIFT_SDN.known_as}, as far as HostSubnet and NetNamespace show"


class OpenShiftSdn:
    """See `workers.makers.maker.Maker`."""

    watched = (
        Kind.EGRESS_POOL, Kind.HOST_SUBNET, Kind.NET_NAMESPACE, Kind.NAMESPACE, Kind.EGRESS_ADDRESS, Kind.NODE,
    )  # fmt: skip

    def nodes(self, context: Context) -> list[HostSubnet]:
        return context.host_subnets()

    def bindings(self, context: Context) -> list[NetNamespace]:
        return context.net_namespaces()

    def binding(self, context: Context, name: str) -> NetNamespace | None:
        return binding.net_namespace(context, name)

    def bind(
        self,
        context: Context,
        namespace: Namespace,
        there: NetNamespace | None,
        addresses: tuple[Address, ...],
        former: list[str],
        *,
        returning: bool,
    ) -> bool:
        if there is None:
            raise TransientError(f"OpenShift SDN has not made the NetNamespace of {namespace.name} yet")
        return binding.bind(context, namespace, there, addresses, former, returning=returning)

    def unbind(self, context: Context, name: str, addresses: list[str]) -> None:
        binding.unbind(context, name, addresses)

    def end(self, context: Context, name: str, addresses: list[str]) -> None:
        """The NetNamespace itself goes with OpenShift SDN."""
        binding.unbind(context, name, addresses)

    def place(self, context: Context) -> int:
        return len(placing.run(context, _look).nodes)

    def publish(self, context: Context) -> int:
        """Writes the status of the addresses. The nodes follow the objects without us."""
        with context.ledger.exclusively("publish", LOCK_SECONDS):
            subnets, claims, nets = context.host_subnets(), context.egress_addresses(), context.net_namespaces()
            context.ledger.set_listed(who_lists(subnets, nets))
            if context.ledger.is_news("node IPs", repr(sorted(subnet.host_ip for subnet in subnets))):
                context.ask(RECONCILE_TASK)  # admission must not give a new node's own IP away
            held, lost = withheld(claims), context.ledger.lost()
            outcome = plan(subnets, with_claims(nets, claims), offline=lost.keys(), withheld=held)
            for conflict in outcome.conflicts:
                _log.warning("conflict", conflict=conflict)
        if context.ledger.is_news("withheld", repr(sorted(map(str, held)))):
            context.ask(PLACE_TASK)  # what is approved goes to a node, and what is not any more leaves its own
        in_use = {address for net in with_claims(nets, claims) for address in addresses_of(net.egress_ips)}
        failover.finish(context, _Carried.of(outcome, in_use))
        census.take(context, claims, len(outcome.conflicts))
        seen = Seen.of(outcome, subnets, nets, {}, _unplaced(context, subnets, claims), _WORD)
        if status.update(context, claims, seen).soon:
            context.ask(PUBLISH_TASK, delay=context.settings.status_interval / 2)
        return 0

    def failover(self, context: Context) -> None:
        """A node counts as lost once Kubernetes has called it not ready for `runner_timeout`, until it is ready again:
        nobody looks at its link, and a node that only Kubernetes cannot reach still answers for its addresses."""
        with context.ledger.exclusively("failover", LOCK_SECONDS):
            subnets, before, now = context.host_subnets(), context.ledger.lost(), context.ledger.now()
            away = _away(context.cluster.list(Kind.NODE).items, time.time())
            lost = {
                subnet.name: before.get(subnet.name, now - away[subnet.name])
                for subnet in subnets
                if away.get(subnet.name, 0.0) > context.settings.runner_timeout
            }
            back = dict.fromkeys(before.keys() - lost.keys(), now)
            returned = {node: since for node, since in context.ledger.returned().items() if node not in lost} | back
            rejoining = {node: since for node, since in returned.items() if now - since < context.settings.rejoin_after}
            for subnet in subnets:
                if subnet.name in lost.keys() - before.keys():
                    addresses = addresses_of(subnet.egress_ips)
                    _log.error("node is lost", node=subnet.name, addresses=list(map(str, addresses)))
                    metrics.nodes_lost.inc()
                    context.ledger.begin_failover(addresses, lost[subnet.name])
            context.ledger.set_lost(lost, rejoining)
        if lost.keys() != before.keys():
            context.hurry(PLACE_TASK, PUBLISH_TASK)
            context.ask(PLACE_TASK)


@dataclass(frozen=True, slots=True)
class _Carried:
    """What the objects say of who carries what, see `failover.finish`."""

    carriers: Mapping[Address, tuple[str, str]]
    wanted: AbstractSet[Address]

    @classmethod
    def of(cls, outcome: Plan, wanted: AbstractSet[Address]) -> _Carried:
        hops = {hop.address: (hop.node, name) for name, each in outcome.namespaces.items() for hop in each.via}
        return cls(hops, wanted)

    def carrier(self, address: Address) -> tuple[str, str] | None:
        return self.carriers.get(address)

    def is_wanted(self, address: Address) -> bool:
        return address in self.wanted


def _look(context: Context) -> placing.View:
    """What is to be placed: without the HostSubnets that OpenShift SDN fills, and without what these take."""
    claims, subnets = context.egress_addresses(), context.host_subnets()
    listed = context.cluster.list(Kind.NET_NAMESPACE).items
    nets = readable(manifests.net_namespace, listed)
    machines = context.cluster.list(Kind.NODE).items
    nodes = {node.name: node for node in readable(manifests.node, machines)}
    existing = {str(machine["metadata"]["name"]) for machine in machines}
    own = [subnet for subnet in subnets if not subnet.egress_cidrs]
    lost, returned = context.ledger.lost(), context.ledger.returned()
    gone = {subnet.name: "without a Node object" for subnet in own if subnet.name not in existing}
    gone |= dict.fromkeys(lost, "lost")
    theirs = _theirs(subnets, (parse_address(claim.address) for claim in claims))
    found = hosting(
        [_unapproved(claim) for claim in claims if parse_address(claim.address) not in theirs],
        own,
        nets,
        context.pools(),
        gone=gone.keys(),
        all_read=len(nets) == len(listed),
    )
    candidates = []
    for subnet in own:
        kept = placing.without(subnet, {address for node, address in found.surplus if node == subnet.name})
        seen = placing.candidate_of(context, kept, nodes.get(subnet.name), None, gone.get(subnet.name, ""))
        reluctant = "that is back too short a time" if subnet.name in returned else ""
        candidates.append(_linked(replace(seen, reluctant=reluctant), subnet))
    harm = [subnet.name for subnet in own if subnet.name in lost and subnet.egress_ips]
    return placing.View(claims, own, found, candidates, settled=not returned and not harm)


def _linked(candidate: Candidate, subnet: HostSubnet) -> Candidate:
    """With its own IP, on a link that holds any address of that family: nobody says which one it is on."""
    try:
        return replace(candidate, link=ipaddress.ip_interface(f"{parse_address(subnet.host_ip)}/0"))
    except AddressError:
        return replace(candidate, barred=candidate.barred or "without a usable hostIP")


def _unapproved(claim: EgressAddress) -> EgressAddress:
    """What nobody has approved is on no node: OpenShift SDN drops what an address that no node hosts should carry."""
    return replace(claim, phase=Phase.QUARANTINED) if claim.withheld else claim


def _theirs(subnets: Collection[HostSubnet], addresses: Iterable[Address]) -> dict[Address, str]:
    """Those of `addresses` that OpenShift SDN places, each with a node whose egressCIDRs say so."""
    filled = [(subnet, cidrs_of(subnet), set(addresses_of(subnet.egress_ips))) for subnet in subnets]
    filled = [each for each in filled if each[0].egress_cidrs]
    found = {}
    for address in addresses:
        for subnet, cidrs, hosted in filled:
            if address in hosted or any(address in cidr for cidr in cidrs):
                found[address] = subnet.name
                break
    return found


def _unplaced(
    context: Context, subnets: Collection[HostSubnet], claims: Collection[EgressAddress]
) -> dict[Address, str]:
    """Why addresses have no node: what placement said, or that it is not Hawse's to choose one."""
    theirs = _theirs(subnets, [parse_address(claim.address) for claim in claims])
    return context.ledger.unplaced() | {
        address: f"it is left to OpenShift SDN: the egressCIDRs of HostSubnet {node} hold it"
        for address, node in theirs.items()
    }


def _away(machines: Collection[Manifest], now: float) -> dict[str, float]:
    """For how many seconds each node has not been ready; without those that are."""
    found = {}
    for machine in machines:
        for condition in (machine.get("status") or {}).get("conditions") or ():
            if condition.get("type") == "Ready" and condition.get("status") != "True":
                found[str(machine["metadata"]["name"])] = now - _seconds(condition.get("lastTransitionTime"), now)
    return found


def _seconds(text: str | None, otherwise: float) -> float:
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        return otherwise
