"""What must hold: after every single write that nothing leaks, and of a cluster that has settled that all is right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from egress.addresses import Address, parse_address
from egress.objects import EgressAddress, NetNamespace, Phase
from egress.planning import MAX_NETID, State
from egress.table import SILENT_SECONDS, Steering
from lab.model.cluster import SimCluster
from lab.model.namespaces import annotated
from lab.model.node import LAYOUT, RETIRE_PASSES, SimNode
from lab.model.tasks import Tasks, holdings
from lab.model.traffic import Exit, exits, is_guarded, sent_out

LINK = "192.168.1."


class Violation(AssertionError):
    """Something that must hold does not; the message says what was found."""


def _must(holds: object, what: str) -> None:
    if not holds:
        raise Violation(what)


def fail_closed(nodes: Mapping[str, SimNode]) -> None:
    """No packet of a namespace with an egress address leaves with a node's IP or with another namespace's address.

    Of pods on nodes that were told of the NetID: what one does that never heard of it cannot be guarded (decision
    0007), but no other node may steer packets to it.
    """
    on_link = {name: node for name, node in nodes.items() if node.on_link}
    ips = {node.node_ip: name for name, node in nodes.items()}
    found = {name: node.found() for name, node in on_link.items()}
    users: dict[Address, set[int]] = defaultdict(set)
    for source, node in on_link.items():
        for netid in () if node.excused else node.known:
            for way in exits(netid, source, found, ips, LAYOUT):
                last = on_link[way.node]
                # Who reads a newer table may find that the namespace has no address any more.
                opened = netid not in last.known and last.read_at > node.done_at
                if last.excused or (way.address is None and opened):
                    continue
                story = f"packets of NetID {netid} on {source} leave at {way.node}"
                if way.address is None:
                    raise Violation(f"{story} with the node's IP")
                _must((netid, way.address) in last.may_use, f"{story} with {way.address}, which is not theirs")
                _must(is_guarded(found[way.node]), f"{story} unguarded")
                if way.address in last.settled_link:
                    users[way.address].add(netid)
    for name, node in on_link.items():
        for mark, (address, since) in node.cached.items():
            if not node.excused and node.clock - since < RETIRE_PASSES:
                left = sent_out(mark, name, found[name], LAYOUT).address
                story = f"packets that a flow of {name} marked {mark:#x} for {address} leave"
                _must(left == address, f"{story} with {left or 'the IP of the node'}")
                _must(is_guarded(found[name]), f"{story} unguarded")
    for address, netids in users.items():
        _must(len(netids) == 1, f"NetIDs {sorted(netids)} leave with {address}")
    holders = Counter(address for node in on_link.values() for address in node.settled_link)
    for address, count in holders.items():
        _must(count == 1, f"{count} nodes have {address} on the link")


def rows_cover(
    rows: Collection[int],
    before: Mapping[int, Steering],
    net_namespaces: Collection[NetNamespace],
    claims: Collection[EgressAddress],
) -> None:
    """After a publishing: each NetID has a row whose namespace has an address, by binding or by claim.

    So has the NetID that such a namespace had `before` its NetNamespace went: its pods run on.
    """
    claiming = {claim.namespace for claim in claims if claim.phase is not Phase.QUARANTINED}
    for item in net_namespaces:
        if 0 < item.netid <= MAX_NETID and (item.egress_ips or item.name in claiming):
            _must(item.netid in rows, f"no row for NetID {item.netid} of {item.name}")
    bound = {item.name for item in net_namespaces}
    others = {item.netid for item in net_namespaces}
    for netid, row in before.items():
        if row.namespace in claiming - bound and netid not in others:
            _must(netid in rows, f"NetID {netid} of {row.namespace} was opened with its NetNamespace gone")


def dropped_everywhere(cluster: SimCluster, netid: int) -> None:
    """A NetNamespace is about to be made: whoever speaks and can be programmed drops its NetID by now."""
    for name, node in cluster.nodes.items():
        report = cluster.ledger.reports.get(name)
        spoke = report is not None and not report.problem and cluster.now - report.heard < SILENT_SECONDS
        if spoke and node.reachable and not node.excused:
            _must(netid in node.known, f"NetID {netid} comes into use, and {name} was not told to drop it")


def is_free(cluster: SimCluster, text: str, by_hand: Collection[str]) -> None:
    """An address is about to be claimed: nobody else has it still."""
    hosts = [subnet.name for subnet in cluster.host_subnets.values() if text in subnet.egress_ips]
    _must(not hosts or text in by_hand, f"{text} is claimed while {hosts} still host it")


def settled(tasks: Tasks, by_hand: Collection[str], moved: Collection[str], ever: Collection[str]) -> None:
    """Everything that must be so once nobody has anything to do.

    `by_hand` are addresses that an admin has ever written somewhere, `moved` those that he put on another node, `ever`
    all that pools have ever covered.
    """
    _nothing_twice(tasks, by_hand, moved)
    _claims_and_namespaces_agree(tasks.cluster, by_hand)
    _nothing_outside(tasks.cluster, by_hand, ever)
    _nothing_leaked(tasks.cluster)
    _as_planned(tasks)
    _nodes_hold_what_they_should(tasks.cluster)


def _nothing_twice(tasks: Tasks, by_hand: Collection[str], moved: Collection[str]) -> None:
    cluster = tasks.cluster
    for subnet in cluster.host_subnets.values():
        placed = set(subnet.egress_ips).difference(by_hand, moved)
        owners = Counter(cluster.claims[text].namespace for text in placed if text in cluster.claims)
        _must(not owners or max(owners.values()) == 1, f"{subnet.name} has two addresses of one namespace: {owners}")
    in_use = {str(hop.address) for row in cluster.ledger.table.rows.values() for hop in row.hops}
    conflicts = " ".join(tasks.plan(cluster.ledger.table.rows, cluster.ledger.table.epoch).conflicts)
    for kind in (cluster.host_subnets.values(), cluster.net_namespaces.values()):
        where: dict[str, set[str]] = defaultdict(set)
        for item in kind:
            for text in item.egress_ips:
                where[text].add(item.name)
        for text, names in where.items():
            if len(names) > 1:
                _must(text in by_hand, f"{text} is on {sorted(names)}")
                _must(text not in in_use, f"{text} is on {sorted(names)}, and in use")
                _must(all(name in conflicts for name in names), f"{text} is on {sorted(names)}, and nobody says so")


def _claims_and_namespaces_agree(cluster: SimCluster, by_hand: Collection[str]) -> None:
    covered = cluster.covered()
    # No pool covers any more what they were given and had not claimed: they are told so, and not served.
    stuck = {
        namespace.name
        for namespace in cluster.namespaces.values()
        if any(str(a) not in cluster.claims and not any(a in piece for piece in covered) for a in annotated(namespace))
    }
    healthy = all(node.reachable and node.on_link and node.sound for node in cluster.nodes.values())
    for text, claim in cluster.claims.items():
        namespace = cluster.namespaces.get(claim.namespace)
        if claim.namespace in stuck or claim.adopted:
            continue
        if claim.phase is Phase.QUARANTINED:
            hosts = [subnet.name for subnet in cluster.host_subnets.values() if text in subnet.egress_ips]
            _must(not hosts, f"{text} is in quarantine and on {hosts}")
            continue
        _must(namespace is not None and namespace.uid == claim.namespace_uid, f"{text} is claimed by nobody")
        _must(
            namespace is not None and parse_address(text) in annotated(namespace),
            f"{claim.namespace} has {text} unasked",
        )
        hosts = [subnet.name for subnet in cluster.host_subnets.values() if text in subnet.egress_ips]
        _must(len(hosts) <= 1, f"{text} is on {hosts}")
    for namespace in cluster.namespaces.values():
        binding = cluster.net_namespaces.get(namespace.name)
        if namespace.name in stuck:
            continue
        for address in annotated(namespace):
            claim_found = cluster.claims.get(str(address))
            _must(claim_found is not None and claim_found.namespace == namespace.name, f"{address} is not claimed")
            _must(binding is not None or not healthy, f"{namespace.name} has addresses and no NetNamespace")
            if binding is not None and binding.netid:
                _must(str(address) in binding.egress_ips, f"{address} is not bound")
    for binding in cluster.net_namespaces.values():
        for text in binding.egress_ips:
            owner = cluster.claims.get(text)
            bound = owner is not None and owner.namespace == binding.name and owner.phase is not Phase.QUARANTINED
            _must(
                bound or text in by_hand or binding.name in stuck,
                f"{text} is bound to {binding.name} and not claimed by it",
            )


def _nothing_outside(cluster: SimCluster, by_hand: Collection[str], ever: Collection[str]) -> None:
    for text, claim in cluster.claims.items():
        _must(text in by_hand if claim.adopted else text in ever, f"{text} was never in a pool")
        _must(text not in cluster.ips, f"{text} is a node's own")
    for subnet in cluster.host_subnets.values():
        for text in subnet.egress_ips:
            _must(text in cluster.claims or text in by_hand, f"{subnet.name} hosts {text}, which nobody claims")
            _must(text in by_hand or text.startswith(LINK), f"{subnet.name} hosts {text}, which is not of its link")


def _nothing_leaked(cluster: SimCluster) -> None:
    """Claimed, quarantined, reserved and free are all there is, and the index says of each what the objects say."""
    objects = holdings(cluster, rebuilding=False)
    carried = {address for namespace in cluster.namespaces.values() for address in annotated(namespace)}
    index = cluster.ledger.addresses
    for address, (state, name) in objects.items():
        entry = index.get(address)
        _must(entry is not None, f"{address} is {state} by {name}, and free in the index")
        if entry is not None and entry.state != "reserved":
            _must((entry.state, entry.holder) == (state, name), f"{address}: {entry}, but is {state} by {name}")
    for address in index.keys() - objects.keys():
        entry = index[address]
        young = entry.at > cluster.now - 60
        _must(entry.state == "reserved", f"{address} is {entry} in the index, and nobody has it")
        _must(young or address in carried, f"{address} is {entry}, and never returned")


def _as_planned(tasks: Tasks) -> None:
    """The table is the plan, and packets go as the plan says from every node that can know of it."""
    cluster, table = tasks.cluster, tasks.cluster.ledger.table
    outcome = tasks.plan(table.rows, table.epoch)
    found = {name: node.found() for name, node in cluster.nodes.items() if node.on_link}
    told = [name for name, node in cluster.nodes.items() if node.reachable and node.on_link]
    by_netid = outcome.by_netid()
    for netid, state in by_netid.items():
        _must(not netid or netid in table.rows, f"{state.name} has no row")
    for netid, row in table.rows.items():
        planned = by_netid.get(netid)
        _must(not any(hop.node in cluster.ledger.lost for hop in row.hops), f"NetID {netid} goes to a lost node")
        _must(not any(hop.address in cluster.node_ips for hop in row.hops), f"NetID {netid} has a node's own IP")
        _must(len({hop.node for hop in row.hops}) == len(row.hops), f"NetID {netid} has two addresses on one node")
        via = {(hop.address, hop.node) for hop in planned.via} if planned is not None else set()
        steered = {(hop.address, hop.node) for hop in row.hops if hop.acknowledged}
        _must(via == steered, f"NetID {netid}: the table has {steered}, the plan {via}")
        for source in told:
            ways = frozenset(
                way for way in exits(netid, source, found, cluster.ips, LAYOUT) if not cluster.nodes[way.node].excused
            )
            wanted = frozenset(Exit(node, address) for address, node in via)
            mine = {way for way in wanted if way.node == source}
            alive = {way for way in mine or wanted if way.node in found}
            knowing = {way for way in alive if way.node in told and not cluster.ledger.reports[way.node].problem}
            excused = bool(cluster.ledger.reports[source].problem)
            # A node that is to host an address and does not drops, though others may be active (egress.program.render).
            excused |= any(hop.node == source and not hop.acknowledged for hop in row.hops)
            _must(excused or ways <= alive, f"NetID {netid} on {source} leaves by {ways}, not {wanted}")
            _must(excused or ways >= knowing, f"NetID {netid} on {source} leaves by {ways}, not {wanted}")
    active = {claim.namespace for claim in cluster.claims.values() if claim.phase is not Phase.QUARANTINED}
    shared = Counter(item.netid for item in cluster.net_namespaces.values())
    for binding in cluster.net_namespaces.values():
        if shared[binding.netid] == 1 and not binding.egress_ips and binding.name not in active:
            _must(binding.netid not in table.rows, f"{binding.name} has no address, and a row")
    for item in outcome.namespaces.values():
        if item.state is State.NORMAL and item.netid and item.netid not in table.rows:
            for source in told:
                if cluster.ledger.reports[source].problem:
                    continue  # it closes what it must, and opens nothing
                ways = exits(item.netid, source, found, cluster.ips, LAYOUT)
                _must(ways == {Exit(source, None)}, f"{item.name} has no address, and on {source} goes {ways}")
        for hop in item.claims:
            node, report = cluster.nodes[hop.node], cluster.ledger.reports.get(hop.node)
            if node.reachable and node.link and report is not None and not report.problem:
                refused = any(c.address == hop.address and c.reason for c in report.claims)
                _must(refused, f"{hop.address} is given to {hop.node}, which neither has it nor says why")


def _nodes_hold_what_they_should(cluster: SimCluster) -> None:
    """A node that can be programmed has the addresses that it was given and not refused, and rules for these alone."""
    for name, node in cluster.nodes.items():
        report = cluster.ledger.reports.get(name)
        if not node.reachable or report is None or report.problem:
            continue
        found, rows = node.found(), cluster.ledger.table.rows.values()
        given = {hop.address for row in rows for hop in row.hops if hop.node == name}
        refused = {claim.address for claim in report.claims if claim.reason}
        _must(found.addresses == given - refused, f"{name} has {found.addresses}, not {given} without {refused}")
        ruled = found.rules.marks.keys()
        _must(ruled == found.addresses, f"{name} has rules for {ruled} and addresses {found.addresses}")


def nothing_left(cluster: SimCluster) -> None:
    """All namespaces are gone and all quarantines over: so is everything that was there for them."""
    left = [*cluster.claims, *cluster.net_namespaces, *map(str, cluster.ledger.addresses), *cluster.ledger.table.rows]
    left += [text for subnet in cluster.host_subnets.values() for text in subnet.egress_ips]
    _must(not left, f"left: {left}")
    for node in cluster.nodes.values():
        found = node.found()
        rules = {chain: specs for chain, specs in found.rules.own.items() if specs}
        _must(not (found.flows or found.groups or found.addresses or rules), f"{node.name} still holds {found}")
