"""The table that all nodes share: by which nodes each NetID's traffic leaves, or that it is dropped. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from egress.addresses import Address
from egress.objects import EgressAddress, NetNamespace, Phase
from egress.planning import Acknowledgement, Plan, with_claims


@dataclass(frozen=True, slots=True)
class SteeringHop:
    """An address, its node, and whether the node has acknowledged that it holds it.

    `since` is the number of the change that gave the address to the node: an acknowledgement counts only if the node
    had applied that change, for it may have held the address before, let it go, and not be back at it yet. 0 means the
    change that is being published.
    """

    address: Address
    node: str
    node_ip: Address
    acknowledged: bool
    since: int = 0


@dataclass(frozen=True, slots=True)
class Steering:
    """What the nodes must do with one NetID's traffic. Without an acknowledged hop it is dropped.

    `operation` is the admission that the assignment came from, for the nodes' logs. `former` is 0, or the place of the
    NetID among those that its namespace had before: the higher, the later.
    """

    netid: int
    namespace: str
    hops: tuple[SteeringHop, ...] = ()
    operation: str = ""
    former: int = 0


def table_of(plan: Plan) -> dict[int, Steering]:
    """The rows of `plan` by NetID. A NetID whose traffic is left alone has no row."""
    table: dict[int, Steering] = {}
    for netid, outcome in plan.by_netid().items():
        if not netid:
            continue
        hops = [SteeringHop(hop.address, hop.node, hop.node_ip, acknowledged=True) for hop in outcome.via]
        hops += [SteeringHop(hop.address, hop.node, hop.node_ip, acknowledged=False) for hop in outcome.claims]
        hops.sort(key=lambda hop: (hop.address.version, int(hop.address)))
        table[netid] = Steering(netid, outcome.name, tuple(hops))
    return table


def traced(rows: Mapping[int, Steering], claims: Iterable[EgressAddress]) -> dict[int, Steering]:
    """`rows`, each with the operation that its namespace's claims came from."""
    operations = {claim.namespace: claim.operation for claim in claims if claim.operation}
    return {netid: replace(row, operation=operations.get(row.namespace, "")) for netid, row in rows.items()}


def unbound(net_namespaces: Iterable[NetNamespace], claims: Iterable[EgressAddress]) -> set[str]:
    """The namespaces that have claims and no NetNamespace: not yet, or not any more."""
    claiming = {claim.namespace for claim in claims if claim.phase is not Phase.QUARANTINED and not claim.adopted}
    return claiming - {namespace.name for namespace in net_namespaces}


FORMER_NETIDS = 8
"""How many of the NetIDs that a namespace had before are dropped for it, the latest: enough for all that its pods may
still send with, and no table that grows with each change."""


def fences(
    current: Mapping[int, Steering],
    promised: Mapping[str, int],
    net_namespaces: Iterable[NetNamespace],
    claims: Collection[EgressAddress],
) -> dict[int, Steering]:
    """The rows that must be there, as drops, though no NetNamespace asks for them.

    Where a namespace has claims and its NetNamespace was deleted, the pods run on, and their packets carry its NetID
    still. So they do where the NetNamespace of one with egress addresses has another NetID now, until the cluster's
    network has moved them all: its former NetIDs are dropped while it has an address, the latest FORMER_NETIDS of them.
    Where the NetNamespace is about to be made, `promised` has its NetID by the namespace's name: the nodes drop it
    before any packet can carry it. A NetID that a NetNamespace has is never among these: it is that one's.
    """
    net_namespaces = with_claims(net_namespaces, claims)
    taken = {namespace.netid for namespace in net_namespaces}
    closed = {namespace.name for namespace in net_namespaces if namespace.egress_ips}
    names = unbound(net_namespaces, claims)
    wanted = {netid: Steering(netid, name) for name, netid in promised.items() if name in names and netid not in taken}
    former: dict[str, list[Steering]] = {}
    for netid, row in current.items():
        if netid in taken:
            continue
        if row.namespace in names:
            wanted[netid] = Steering(netid, row.namespace, former=row.former)
        elif row.namespace in closed:
            former.setdefault(row.namespace, []).append(row)
    for rows in former.values():
        rows.sort(key=lambda row: (not row.former, row.former, row.netid))
        for place, row in enumerate(rows[-FORMER_NETIDS:], start=1):
            wanted[row.netid] = Steering(row.netid, row.namespace, former=place)
    return wanted


@dataclass(frozen=True, slots=True)
class Claim:
    """What a node says of one address: held for a NetID's traffic, or refused, with a reason and a message.

    A refused one with NetID 0 is not the node's any more, and still on it: it could not be removed.
    """

    address: Address
    netid: int
    held: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a runner says of its node.

    `epoch` and `applied` are the table and the change its node now holds ("" and 0: none yet). `link` is the node's
    address and prefix on the outside link; `problem` is what keeps the whole node from being programmed.
    """

    node: str
    at: float
    epoch: str = ""
    applied: int = 0
    link: str = ""
    interface: str = ""
    claims: tuple[Claim, ...] = ()
    repairs: int = 0
    problem: str = ""
    carrier: bool = True
    """Whether its interface has a link. Without one nobody on it can reach the node, whatever its runner says."""
    gateways: tuple[Address, ...] = ()
    """Its gateways on that link: addresses that no namespace may have."""
    other_links: tuple[str, ...] = ()
    """Its addresses of the other IP version on that link, with their prefixes, one of each subnet."""
    heard: float = field(default=0.0, compare=False)
    """When it came, by Redis' clock, which is everybody's; 0 for one that is still to be sent."""
    last_problem: str = ""
    """The last `problem` since the runner began, though it may have passed; and when it was seen last."""
    last_problem_at: float = 0.0


def acknowledged(
    rows: Mapping[int, Steering], reports: Mapping[str, NodeReport], epoch: str
) -> frozenset[Acknowledgement]:
    """The addresses that carry traffic, each with its node and NetID.

    One begins to when the node says that it holds the address for the NetID it was given for, having applied the
    change that gave it. It ends when a node that had applied that change no longer says so; silence ends nothing here.

    With `epoch` "" the table is being built anew: `rows` does not matter, and what the nodes hold counts as it stands,
    for a node changes nothing until it sees a new table.
    """
    held = {
        (claim.address, node, claim.netid) for node, report in reports.items() for claim in report.claims if claim.held
    }
    if not epoch:
        return frozenset(held)
    result: set[Acknowledgement] = set()
    for netid, row in rows.items():
        for hop in row.hops:
            report = reports.get(hop.node)
            informed = report is not None and report.epoch == epoch and report.applied >= hop.since
            if (hop.address, hop.node, netid) in held if informed else hop.acknowledged:
                result.add((hop.address, hop.node, netid))
    return frozenset(result)


SILENT_SECONDS = 10.0
"""A node whose runner has said nothing for so long is not waited for. Five times a runner's usual interval."""


def row_key(netid: int, epoch: str, change: int) -> str:
    """What tells a row from every other and every later one."""
    return f"{netid}:{epoch}:{change}"


def lagging(
    nodes: Iterable[str], reports: Mapping[str, NodeReport], epoch: str, change: int | None, *, now: float, began: float
) -> list[str]:
    """Those of `nodes` that do not know `change` of table `epoch` yet; None is a change that is still to be published.

    One that is silent, or that cannot be programmed at all, is not counted: it would keep all others waiting. Silence
    is told by Redis' clock; `began` is when the table did: after a flush all are silent at first.
    """
    late = []
    for node in nodes:
        report = reports.get(node)
        if report is None:
            if now - began < SILENT_SECONDS:
                late.append(node)
            continue
        ignorant = change is None or report.epoch != epoch or report.applied < change
        if ignorant and not report.problem and now - report.heard < SILENT_SECONDS:
            late.append(node)
    return sorted(late)


def held_back(
    desired: Mapping[int, Steering],
    current: Mapping[int, Steering],
    reports: Mapping[str, NodeReport],
    lost: Collection[str],
    now: float,
) -> dict[int, Steering]:
    """`desired` without the hops that are new and whose address another living node still holds.

    It has to let the address go first, and says so in its next report. Asked for earlier, the new node would find it
    answered for on the link and refuse it for a while. A node that is lost, or silent, is not waited for: whether it
    still has the address is for the new node's probe to find. Nor is one that says that it cannot let the address go:
    that may last for ever. Its traffic is dropped, the new node refuses the address and asks for it again and again,
    and the status has the reasons of both.
    """
    holders: dict[Address, set[str]] = {}
    for node, report in reports.items():
        if node not in lost and report.carrier and now - report.heard < SILENT_SECONDS:
            for claim in report.claims:
                if claim.held:
                    holders.setdefault(claim.address, set()).add(node)
    result: dict[int, Steering] = {}
    for netid, row in desired.items():
        known = {(hop.address, hop.node) for hop in current[netid].hops} if netid in current else set()
        hops = tuple(
            hop
            for hop in row.hops
            if (hop.address, hop.node) in known or not holders.get(hop.address, set()) - {hop.node}
        )
        result[netid] = replace(row, hops=hops)
    return result


def only_claimants(
    changes: Mapping[int, Steering | None], current: Mapping[int, Steering], lost: Collection[str]
) -> set[str] | None:
    """The nodes that alone have something to do at once about `changes`; None if all have.

    Where a row's addresses are all still to be taken, and no living node carried its traffic before, it is for those
    that are to take them: whatever the others do with the packets now, drop them or send them to a dead node, may wait
    until there is a node to send them to.
    """
    claimants: set[str] = set()
    for netid, row in changes.items():
        before = current[netid].hops if netid in current else ()
        carried = any(hop.acknowledged and hop.node not in lost for hop in before)
        if row is None or not row.hops or carried or any(hop.acknowledged for hop in row.hops):
            return None
        if netid not in current:
            return None  # a NetID that is to be dropped from now on
        claimants |= {hop.node for hop in row.hops}
    return claimants


def carried_over(desired: Mapping[int, Steering], current: Mapping[int, Steering]) -> dict[int, Steering]:
    """`desired` with the `since` of every hop that `current` gives the same NetID already."""
    result: dict[int, Steering] = {}
    for netid, row in desired.items():
        old = {(hop.address, hop.node): hop.since for hop in current[netid].hops} if netid in current else {}
        hops = tuple(replace(hop, since=old.get((hop.address, hop.node), 0)) for hop in row.hops)
        result[netid] = replace(row, hops=hops)
    return result
