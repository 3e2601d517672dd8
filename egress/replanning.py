"""The nodes' table, planned anew only where something changed. Pure.

What becomes of a namespace depends on those that share an address or a NetID with it, and on the nodes that have these
addresses; on nothing else. So whatever changed is planned together with all that can be reached from it in this way, by
the very functions that plan a whole cluster, and the rest stays as it was planned before. tests/unit/egress has the
proof: after any changes the outcome is that of planning everything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from egress.addresses import Address, AddressError, parse_address
from egress.listing import Listed
from egress.objects import EgressAddress, HostSubnet, NetNamespace, Phase
from egress.planning import By, Cause, NamespacePlan, Plan, plan_by_cause, with_claims, withheld
from egress.table import (
    Claim,
    NodeReport,
    Steering,
    acknowledged,
    carried_over,
    fences,
    held_back,
    table_of,
    traced,
)

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Objects:
    """The cluster's objects, each kind by the objects' names."""

    subnets: Mapping[str, HostSubnet] = field(default_factory=dict)
    claims: Mapping[str, EgressAddress] = field(default_factory=dict)
    net_namespaces: Mapping[str, NetNamespace] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Table:
    """What is planned from beside the objects: the table's `epoch` ("" while it is built anew), the NetIDs that are
    promised to namespaces which have no NetNamespace yet, and the time, in seconds since the epoch by Redis' clock."""

    epoch: str
    promised: Mapping[str, int]
    now: float


@dataclass(frozen=True, slots=True)
class Desired:
    """Each namespace's outcome, the contradictions by their causes, the rows that should be, and which namespaces wait
    for an address that its old node still holds."""

    outcomes: Mapping[str, NamespacePlan]
    conflicts: Mapping[Cause, Collection[str]]
    rows: Mapping[int, Steering]
    waiting: frozenset[str]


def desire(
    objects: Objects,
    rows: Mapping[int, Steering],
    reports: Mapping[str, NodeReport],
    lost: Mapping[str, float],
    table: Table,
) -> Desired:
    """What these objects and reports ask for, where the table has `rows` now.

    While the table is built anew, nothing of it counts but what it fences.
    """
    current = rows if table.epoch else {}
    claims = [claim for _, claim in sorted(objects.claims.items())]
    net_namespaces = list(objects.net_namespaces.values())
    outcomes, conflicts = plan_by_cause(
        objects.subnets.values(),
        with_claims(net_namespaces, claims),
        offline=lost.keys(),
        acknowledged=acknowledged(current, reports, table.epoch),
        withheld=withheld(claims),
    )
    planned = table_of(Plan(outcomes, ()))
    asked = fences(rows, table.promised, net_namespaces, claims) | planned
    wanted = held_back(asked, current, reports, lost, table.now)
    waiting = frozenset(row.namespace for netid, row in asked.items() if wanted[netid].hops != row.hops)
    return Desired(outcomes, conflicts, traced(carried_over(wanted, current), claims), waiting)


@dataclass(frozen=True, slots=True)
class Scope:
    """What is planned together: nothing in it can be reached from anything outside. `nodes` are those whose HostSubnet
    changed."""

    names: frozenset[str]
    netids: frozenset[int]
    addresses: frozenset[Address]
    nodes: frozenset[str]


class _Index(Generic[K, V]):
    """Several values for each key."""

    def __init__(self) -> None:
        self._sets: dict[K, set[V]] = {}

    def add(self, key: K, value: V) -> None:
        self._sets.setdefault(key, set()).add(value)

    def drop(self, key: K, value: V) -> None:
        values = self._sets.get(key)
        if values is not None:
            values.discard(value)
            if not values:
                del self._sets[key]

    def get(self, key: K) -> Collection[V]:
        return self._sets.get(key, ())

    def keys(self) -> Collection[K]:
        return self._sets.keys()


class Replanner:
    """What was planned, and what changed since. Tell it what is so by `see_*`, ask for the `scope` that this touches,
    `plan` it, and `settle` once that is written down: until then whatever was seen stays to be planned."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Nothing is known: the next plan is a whole one."""
        self.subnets: dict[str, HostSubnet] = {}
        self.net_namespaces: dict[str, NetNamespace] = {}
        self.claims: dict[str, EgressAddress] = {}
        self.rows: dict[int, Steering] = {}
        self.reports: dict[str, NodeReport] = {}
        self.lost: Mapping[str, float] = {}
        self.outcomes: dict[str, NamespacePlan] = {}
        self.unbound: set[str] = set()
        """The namespaces that have claims and no NetNamespace."""
        self._hosts: _Index[Address, str] = _Index()
        self._ips: _Index[Address, str] = _Index()
        self._lists: _Index[Address, str] = _Index()
        self._sharing: _Index[int, str] = _Index()
        self._claims_of: _Index[str, str] = _Index()
        self._claims_at: _Index[Address, str] = _Index()
        self._rows_of: _Index[str, int] = _Index()
        self._rows_on: _Index[str, int] = _Index()
        self._said: dict[Address, dict[str, Claim]] = {}
        self._holders: _Index[Address, str] = _Index()
        self._held: set[tuple[Address, str, int]] = set()
        self._unsettled: set[int] = set()
        self._waiting: frozenset[str] = frozenset()
        self._conflicts: dict[Cause, frozenset[str]] = {}
        self._names: set[str] = set()
        self._netids: set[int] = set()
        self._addresses: set[Address] = set()
        self._nodes: set[str] = set()
        self._relisted: set[Address] = set()
        self._whole = True

    # What is so

    def see_subnets(self, subnets: Mapping[str, HostSubnet | None], *, whole: bool) -> None:
        """These HostSubnets are so now, None for one that is gone; with `whole` there are no others."""
        for name, subnet in _news(self.subnets, subnets, whole=whole):
            self._see_subnet(name, self.subnets.get(name), subnet)
            _put(self.subnets, name, subnet)

    def see_claims(self, claims: Mapping[str, EgressAddress | None], *, whole: bool) -> None:
        """The same of EgressAddresses."""
        touched = set[str]()
        for key, claim in _news(self.claims, claims, whole=whole):
            old = self.claims.get(key)
            touched.update(each.namespace for each in (old, claim) if each is not None)
            self._see_claim(key, old, claim)
            _put(self.claims, key, claim)
        for name in touched:
            self._note_unbound(name)

    def see_net_namespaces(self, net_namespaces: Mapping[str, NetNamespace | None], *, whole: bool) -> None:
        """The same of NetNamespaces."""
        for name, net_namespace in _news(self.net_namespaces, net_namespaces, whole=whole):
            self._see_net_namespace(name, self.net_namespaces.get(name), net_namespace)
            _put(self.net_namespaces, name, net_namespace)
            self._note_unbound(name)

    def see_rows(self, rows: Mapping[int, Steering | None], *, whole: bool) -> None:
        """These rows of the table are so now, None for none; with `whole` there are no others."""
        gone = dict.fromkeys(self.rows.keys() - rows.keys()) if whole else {}
        for netid, row in [*gone.items(), *rows.items()]:
            old = self.rows.get(netid)
            if old == row:
                continue
            for known, act in ((old, _Index.drop), (row, _Index.add)):
                if known is not None:
                    act(self._rows_of, known.namespace, netid)
                    for hop in known.hops:
                        act(self._rows_on, hop.node, netid)
            _put(self.rows, netid, row)
            self._netids.add(netid)
            self._names.update(each.namespace for each in (old, row) if each is not None)
            self._note_settled(netid)

    def see_reports(self, reports: Mapping[str, NodeReport | None]) -> None:
        """These nodes say so now; None for one that has said nothing."""
        for node, report in reports.items():
            old = self.reports.get(node)
            before = old.claims if old is not None else ()
            after = report.claims if report is not None else ()
            self._addresses.update(claim.address for claim in set(before) ^ set(after))
            if (old is None or old.carrier) != (report is None or report.carrier):
                self._addresses.update(claim.address for claim in (*before, *after))
            for claim in before:
                words = self._said.get(claim.address, {})
                words.pop(node, None)
                if not words:
                    self._said.pop(claim.address, None)
                self._holders.drop(claim.address, node)
                self._held.discard((claim.address, node, claim.netid))
            for claim in after:
                self._said.setdefault(claim.address, {})[node] = claim
                if claim.held:
                    self._holders.add(claim.address, node)
                    self._held.add((claim.address, node, claim.netid))
            _put(self.reports, node, report)
            for netid in self._rows_on.get(node):
                self._note_settled(netid)

    def see_lost(self, lost: Mapping[str, float]) -> None:
        """These nodes count as lost now."""
        for node in lost.keys() ^ self.lost.keys():
            self._addresses.update(self._hosted_by(self.subnets.get(node)))
            self._netids.update(self._rows_on.get(node))
        self.lost = dict(lost)

    def look_again(self, *, names: Iterable[str] = (), addresses: Iterable[Address] = ()) -> None:
        """Something else changed that concerns these namespaces and addresses."""
        self._names.update(names)
        self._addresses.update(addresses)

    # What is planned

    def scope(self, promised: Mapping[str, int]) -> Scope:
        """What must be planned anew, with all that can be reached from it.

        Beside what changed, that is whatever may change by itself: a namespace that waits for an address which its old
        node holds, one without a NetNamespace, and a row of which its nodes say something else than it does.
        """
        if self._whole:
            names = self.net_namespaces.keys() | {claim.namespace for claim in self.claims.values()}
            names |= {row.namespace for row in self.rows.values()}
            netids = {*self._sharing.keys(), *self.rows, *promised.values()}
            addresses = {*self._hosts.keys(), *self._ips.keys(), *self._lists.keys(), *self._claims_at.keys()}
            return Scope(frozenset(names), frozenset(netids), frozenset(addresses), frozenset(self.subnets))
        names, netids, addresses = set[str](), set[int](), set[Address]()
        todo_names = self._names | self._waiting | self.unbound
        todo_netids = self._netids | self._unsettled | set(promised.values())
        todo_addresses = set(self._addresses)
        while todo_names or todo_netids or todo_addresses:
            names |= todo_names
            netids |= todo_netids
            addresses |= todo_addresses
            found_names = {name for netid in todo_netids for name in self._sharing.get(netid)}
            found_names.update(self.rows[netid].namespace for netid in todo_netids if netid in self.rows)
            for address in todo_addresses:
                found_names.update(self._lists.get(address))
                found_names.update(self.claims[key].namespace for key in self._claims_at.get(address))
            found_netids, found_addresses = set[int](), set[Address]()
            for name in todo_names:
                found_netids.update(self._rows_of.get(name))
                found_addresses.update(parse_address(self.claims[key].address) for key in self._claims_of.get(name))
                if (net_namespace := self.net_namespaces.get(name)) is not None:
                    found_netids.add(net_namespace.netid)
                    found_addresses.update(_addresses(net_namespace.egress_ips))
            todo_names = found_names - names
            todo_netids = found_netids - netids
            todo_addresses = found_addresses - addresses
        return Scope(frozenset(names), frozenset(netids), frozenset(addresses), frozenset(self._nodes))

    def asks(self, scope: Scope) -> set[str]:
        """The nodes whose reports `plan` needs as they are now."""
        nodes = {node for address in scope.addresses for node in self._holders.get(address)}
        nodes.update(hop.node for netid in scope.netids if netid in self.rows for hop in self.rows[netid].hops)
        return nodes

    def objects(self, scope: Scope) -> Objects:
        """The objects in `scope`; of HostSubnets, which are not in one alone, what of them matters there."""
        hosts = {node for address in scope.addresses for node in self._hosts.get(address)} | scope.nodes
        hosts.update(node for address in scope.addresses for node in self._ips.get(address))
        for node in list(hosts):
            ip = _parsed_or_none(self.subnets[node].host_ip) if node in self.subnets else None
            if ip is not None:
                hosts.update(self._ips.get(ip))
        keys = {key for name in scope.names for key in self._claims_of.get(name)}
        keys.update(key for address in scope.addresses for key in self._claims_at.get(address))
        return Objects(
            {node: self._reduced(node, scope) for node in sorted(hosts) if node in self.subnets},
            {key: self.claims[key] for key in keys},
            {name: self.net_namespaces[name] for name in scope.names if name in self.net_namespaces},
        )

    def plan(self, scope: Scope, objects: Objects, reports: Mapping[str, NodeReport], table: Table) -> Desired:
        """Plans `scope` anew: its `objects`, where the nodes that `asks` names say `reports`. What is outside stays as
        it was.

        `rows` of the answer are those of the scope, `conflicts` are all.
        """
        rows = {netid: self.rows[netid] for netid in scope.netids if netid in self.rows}
        desired = desire(objects, rows, reports, self.lost, table)
        if self._whole:
            self.outcomes.clear()
            self._conflicts.clear()
        for name in scope.names:
            _put(self.outcomes, name, desired.outcomes.get(name))
        for cause in _causes(scope):
            texts = desired.conflicts.get(cause)
            _put(self._conflicts, cause, frozenset(texts) if texts else None)
        self._waiting = desired.waiting
        return replace(desired, conflicts=dict(self._conflicts))

    def settle(self) -> None:
        """What was planned is written down: from now on only what is seen next counts as changed."""
        for pending in (self._names, self._netids, self._addresses, self._nodes, self._relisted):
            pending.clear()
        self._whole = False

    # What is known

    @property
    def whole(self) -> bool:
        """Whether the next plan is of everything."""
        return self._whole

    def plan_again_from_nothing(self) -> None:
        """The next plan is of everything, whatever changed."""
        self._whole = True

    @property
    def nodes_changed(self) -> bool:
        """Whether a HostSubnet is another than before."""
        return bool(self._nodes)

    def parties(self, netid: int) -> set[str]:
        """The namespaces for which the table has a row of this NetID, and those that have it."""
        names = set(self._sharing.get(netid))
        if netid in self.rows:
            names.add(self.rows[netid].namespace)
        return names

    def claims_at(self, address: Address) -> list[EgressAddress]:
        """The claims of an address."""
        return [self.claims[key] for key in self._claims_at.get(address)]

    def relisted(self) -> dict[Address, Listed]:
        """The addresses whose listing objects changed, or all of a whole plan, and which objects list them."""
        addresses = {*self._hosts.keys(), *self._lists.keys()} if self._whole else self._relisted
        return {
            address: Listed(tuple(sorted(self._hosts.get(address))), tuple(sorted(self._lists.get(address))))
            for address in addresses
        }

    def said(self, addresses: Iterable[Address]) -> dict[tuple[Address, str], Claim]:
        """What the nodes say of these addresses."""
        return {(address, node): claim for address in addresses for node, claim in self._said.get(address, {}).items()}

    def in_conflict(self) -> set[str]:
        """The namespaces that are a party of a contradiction."""
        texts = {text for found in self._conflicts.values() for text in found}
        if not texts:
            return set()
        parties = set[str]()
        for by, what in self._conflicts:
            match by, what:
                case By.NAMESPACE, str():
                    parties.add(what)
                case By.NETID, int():
                    parties.update(self._sharing.get(what))
                case By.ADDRESS, _:
                    parties.update(self._owners(what))  # type: ignore[arg-type]
                case By.HOST_IP, _:
                    nodes = self._ips.get(what)  # type: ignore[arg-type]
                    hosted = (each for node in nodes for each in self._hosted_by(self.subnets.get(node)))
                    parties.update(name for address in hosted for name in self._owners(address))
        return {name for name in parties if name in self.outcomes and texts.intersection(self.outcomes[name].reasons)}

    def carrier(self, address: Address) -> tuple[str, str] | None:
        """The living node and the namespace for which it carries an address; None if nobody does."""
        for name in self._owners(address):
            for hop in self.outcomes[name].via if name in self.outcomes else ():
                if hop.address == address and hop.node not in self.lost:
                    return hop.node, name
        return None

    def is_wanted(self, address: Address) -> bool:
        """Whether a NetNamespace lists the address, or one is there whose namespace has claimed it."""
        claims = (self.claims[key] for key in self._claims_at.get(address))
        return bool(self._lists.get(address)) or any(
            _binds(claim) and claim.namespace in self.net_namespaces for claim in claims
        )

    # One object more, or less, or another

    def _see_subnet(self, name: str, old: HostSubnet | None, new: HostSubnet | None) -> None:
        before, after = self._hosted_by(old), self._hosted_by(new)
        old_ip = _parsed_or_none(old.host_ip) if old is not None else None
        new_ip = _parsed_or_none(new.host_ip) if new is not None else None
        moved = old is None or new is None or old.host_ip != new.host_ip
        touched = before | after if moved else before ^ after
        ips = [ip for ip in (old_ip, new_ip) if moved and ip is not None]
        for ip in ips:
            touched.update(each for node in self._ips.get(ip) for each in self._hosted_by(self.subnets.get(node)))
        for address in before - after:
            self._hosts.drop(address, name)
        for address in after - before:
            self._hosts.add(address, name)
        if old_ip is not None:
            self._ips.drop(old_ip, name)
        if new_ip is not None:
            self._ips.add(new_ip, name)
        self._relisted |= before ^ after
        self._addresses |= touched
        self._addresses.update(ips)
        self._nodes.add(name)

    def _see_claim(self, key: str, old: EgressAddress | None, new: EgressAddress | None) -> None:
        for claim, act in ((old, _Index.drop), (new, _Index.add)):
            if claim is not None:
                act(self._claims_of, claim.namespace, key)
                act(self._claims_at, parse_address(claim.address), key)
                self._names.add(claim.namespace)
                self._addresses.add(parse_address(claim.address))

    def _see_net_namespace(self, name: str, old: NetNamespace | None, new: NetNamespace | None) -> None:
        self._names.add(name)
        for item, act in ((old, _Index.drop), (new, _Index.add)):
            if item is not None:
                act(self._sharing, item.netid, name)
                self._netids.add(item.netid)
                for address in _addresses(item.egress_ips):
                    act(self._lists, address, name)
                    self._addresses.add(address)
                    self._relisted.add(address)

    def _note_unbound(self, name: str) -> None:
        if name not in self.net_namespaces and any(_binds(self.claims[key]) for key in self._claims_of.get(name)):
            self.unbound.add(name)
        else:
            self.unbound.discard(name)

    def _note_settled(self, netid: int) -> None:
        """A row is settled whose hops are acknowledged, or not, as their nodes say they hold the address: whatever else
        they report, it stays so."""
        row = self.rows.get(netid)
        if row is None or all(hop.acknowledged == ((hop.address, hop.node, netid) in self._held) for hop in row.hops):
            self._unsettled.discard(netid)
        else:
            self._unsettled.add(netid)

    def _owners(self, address: Address) -> set[str]:
        claims = (self.claims[key] for key in self._claims_at.get(address))
        return {*self._lists.get(address), *(claim.namespace for claim in claims if _binds(claim))}

    def _hosted_by(self, subnet: HostSubnet | None) -> set[Address]:
        return set(_addresses(subnet.egress_ips)) if subnet is not None else set()

    def _reduced(self, node: str, scope: Scope) -> HostSubnet:
        subnet = self.subnets[node]
        if node in scope.nodes:
            return subnet
        kept = [text for text in subnet.egress_ips if _parsed_or_none(text) in scope.addresses]
        return replace(subnet, egress_ips=tuple(kept)) if len(kept) < len(subnet.egress_ips) else subnet


def _causes(scope: Scope) -> Iterable[Cause]:
    """All that a contradiction within `scope` can be about."""
    for address in scope.addresses:
        yield By.ADDRESS, address
        yield By.HOST_IP, address
    for netid in scope.netids:
        yield By.NETID, netid
    for name in scope.names:
        yield By.NAMESPACE, name
    for node in scope.nodes:
        yield By.NODE, node


def _binds(claim: EgressAddress) -> bool:
    """Whether the namespace of a claim must leave with its address, whatever its NetNamespace says."""
    return claim.phase is not Phase.QUARANTINED and not claim.adopted


def _news(old: Mapping[str, V], new: Mapping[str, V | None], *, whole: bool) -> list[tuple[str, V | None]]:
    """What is another, or gone, in `new`."""
    gone: list[tuple[str, V | None]] = [(name, None) for name in old if name not in new] if whole else []
    return gone + [(name, value) for name, value in new.items() if old.get(name) != value]


def _put(items: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        items.pop(key, None)
    else:
        items[key] = value


def _parsed_or_none(text: str) -> Address | None:
    try:
        return parse_address(text)
    except AddressError:
        return None


def _addresses(texts: Iterable[str]) -> Iterable[Address]:
    return [address for text in texts if (address := _parsed_or_none(text)) is not None]


def changes_of(desired: Desired, scope: Scope, rows: Mapping[int, Steering]) -> dict[int, Steering | None]:
    """The rows of `scope` that are to be written; None for one that is to go."""
    return {
        netid: desired.rows.get(netid)
        for netid in scope.netids | desired.rows.keys()
        if desired.rows.get(netid) != rows.get(netid)
    }


def conflicts_of(desired: Desired) -> tuple[str, ...]:
    """The contradictions, each named once with all its parties."""
    return tuple(sorted({text for texts in desired.conflicts.values() for text in texts}))
