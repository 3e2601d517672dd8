"""The tasks of single namespaces on the simulated cluster: admission, claim, bind, release (`workers.namespaces`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from egress import pools
from egress.addresses import Address, Range, parse_address
from egress.objects import (
    ADDRESSES_ANNOTATION,
    CREATED_ANNOTATION,
    EgressAddress,
    EgressPool,
    Namespace,
    NetNamespace,
    Phase,
)
from egress.table import lagging
from lab.model.cluster import SimCluster

Task = Generator[None, None, None]
NETIDS = range(10, 60)
"""So few that one comes back to use soon."""


class WaitingError(Exception):
    """Something else must happen first."""


class NamespaceTasks:
    """`binding` is called before a NetNamespace is made, with its NetID; `claiming` before an EgressAddress is."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.binding: Callable[[int], None] = lambda _: None
        self.claiming: Callable[[str], None] = lambda _: None

    def admit(self, name: str, labels: Mapping[str, str], annotations: Mapping[str, str], uid: str) -> bool:
        """What the webhook does: reserves, and creates the namespace with its addresses. False when it refuses."""
        chosen: tuple[Address, ...] = ()
        if self.cluster.ledger.ready:
            try:
                choice = self._choice(Namespace(name, uid, labels, annotations))
            except pools.PoolError:
                return False
            if choice is not None:
                chosen = self._reserve(name, choice)
                if not chosen:
                    return False
        given = {ADDRESSES_ANNOTATION: _joined(chosen)} if chosen else {}
        self.create(name, labels, {**annotations, **given}, uid)
        return True

    def create(self, name: str, labels: Mapping[str, str], annotations: Mapping[str, str], uid: str) -> None:
        """A namespace that no webhook saw."""
        self.cluster.create(self.cluster.namespaces, name, Namespace(name, uid, labels, annotations))

    def namespace(self, name: str) -> Task:
        """Claim, bind and release of one namespace (`workers.namespaces`)."""
        cluster, ledger = self.cluster, self.cluster.ledger
        namespace = cluster.namespaces.get(name)
        yield
        claims = [claim for claim in cluster.claims.values() if claim.namespace == name]
        yield
        orphans = [claim for claim in claims if namespace is None or claim.namespace_uid != namespace.uid]
        if namespace is None or orphans:
            yield from self._release(name, orphans, namespace)
        if namespace is None:
            return
        addresses = annotated(namespace) or self._assign(namespace)
        yield
        former = [claim.address for claim in orphans if parse_address(claim.address) not in addresses]
        if not addresses:
            self._unbind(name, former)
            return
        mine = {parse_address(c.address) for c in claims if _stands(c, namespace)}
        for address in addresses:
            if address not in mine:
                if not self._claim(namespace, address):
                    self._give_up(namespace, addresses, address)
                    return
                yield
        ledger.settle("claimed", holder(name), addresses, cluster.now)
        yield
        yield from self._bind(namespace, addresses, former)

    def _choice(self, namespace: Namespace) -> pools.Choice | None:
        everything = self.cluster.pools.values()
        return pools.choose(namespace.name, namespace.labels, namespace.annotations, everything, self.cluster.node_ips)

    def _reserve(self, name: str, choice: pools.Choice) -> tuple[Address, ...]:
        cluster = self.cluster
        ranges = pools.ranges(choice.pool, cluster.node_ips)
        return cluster.ledger.reserve(holder(name), choice.count, ranges, choice.requested, cluster.now)

    def _assign(self, namespace: Namespace) -> tuple[Address, ...]:
        if not self.cluster.ledger.ready:
            raise WaitingError("the index is being rebuilt")
        try:
            choice = self._choice(namespace)
        except pools.PoolError:
            return ()
        chosen = self._reserve(namespace.name, choice) if choice is not None else ()
        if chosen:
            self._annotate(namespace, chosen)
        return chosen

    def _annotate(self, namespace: Namespace, addresses: Iterable[Address]) -> None:
        text = _joined(addresses)
        annotations = {key: value for key, value in namespace.annotations.items() if key != ADDRESSES_ANNOTATION}
        annotations |= {ADDRESSES_ANNOTATION: text} if text else {}
        self.cluster.patch(self.cluster.namespaces, namespace.name, replace(namespace, annotations=annotations))

    def _claim(self, namespace: Namespace, address: Address) -> bool:
        cluster = self.cluster
        there = cluster.claims.get(str(address))
        if there is None:
            covering = [pool for pool in cluster.pools.values() if _covers(pools.ranges(pool), address)]
            choice = None
            with suppress(pools.PoolError):
                choice = self._choice(namespace)
            if not covering:
                raise WaitingError(f"{address} is in no pool")
            chosen = choice.pool if choice is not None and choice.pool in covering else min(covering, key=_name)
            claim = EgressAddress(str(address), chosen.name, namespace.name, namespace.uid)
            self.claiming(str(address))
            cluster.create(cluster.claims, str(address), claim)
            return True
        if there.namespace != namespace.name:
            return False
        if not _stands(there, namespace):
            back = replace(there, namespace_uid=namespace.uid, phase=Phase.PENDING, quarantined_until=0.0)
            cluster.patch(cluster.claims, str(address), back)
        return True

    def _give_up(self, namespace: Namespace, addresses: tuple[Address, ...], lost: Address) -> None:
        ledger, owner = self.cluster.ledger, self.cluster.claims[str(lost)].namespace
        ledger.free(holder(namespace.name), [lost])
        ledger.settle("claimed", holder(owner), [lost], self.cluster.now)
        self._annotate(namespace, [address for address in addresses if address != lost])

    def _bind(self, namespace: Namespace, addresses: tuple[Address, ...], former: list[str]) -> Task:
        cluster, name = self.cluster, namespace.name
        wanted = [str(address) for address in addresses]
        there = cluster.net_namespaces.get(name)
        yield
        if there is None:
            taken = {other.netid for other in cluster.net_namespaces.values()}
            netid = cluster.ledger.take_netid(name, NETIDS, taken)
            if netid in taken:
                cluster.ledger.netids.pop(name)
                raise WaitingError("somebody else has that NetID by now")
            if not self._is_dropped(netid):
                raise WaitingError("the nodes do not drop it yet")
            self.binding(netid)
            annotations = {CREATED_ANNOTATION: "true"}
            cluster.create(cluster.net_namespaces, name, NetNamespace(name, netid, tuple(wanted), annotations))
            return
        if there.annotations.get(CREATED_ANNOTATION) != "true":
            cluster.ledger.netids.pop(name, None)
        if not there.netid:
            self._unbind(name, former)
        else:
            kept = [text for text in there.egress_ips if text not in former]
            bound = (*kept, *(text for text in wanted if text not in kept))
            if bound != there.egress_ips:
                cluster.patch(cluster.net_namespaces, name, replace(there, egress_ips=bound))

    def _is_dropped(self, netid: int) -> bool:
        cluster, ledger = self.cluster, self.cluster.ledger
        row = ledger.table.rows.get(netid)
        # A drop that stands for another will do: the worker finds no row of its own, and goes on after `fence_wait`.
        change = ledger.changed_at[netid] if row is not None and not row.hops else None
        nodes = list(cluster.host_subnets)
        return not lagging(nodes, ledger.reports, ledger.table.epoch, change, now=cluster.now, began=ledger.began)

    def _release(self, name: str, claims: list[EgressAddress], successor: Namespace | None) -> Task:
        cluster = self.cluster
        kept = annotated(successor) if successor is not None else ()
        for claim in claims:
            address = parse_address(claim.address)
            if claim.phase is Phase.QUARANTINED or address in kept:
                continue
            pool = cluster.pools.get(claim.pool)
            until = cluster.now + (pool.quarantine if pool is not None else 600.0)
            gone = replace(claim, phase=Phase.QUARANTINED, quarantined_until=until, node="")
            cluster.patch(cluster.claims, claim.address, gone)
            yield
            cluster.ledger.settle("quarantined", holder(name), [address], cluster.now)
            yield
        if successor is None:
            cluster.ledger.netids.pop(name, None)
            yield
            there = cluster.net_namespaces.get(name)
            if there is not None and there.annotations.get(CREATED_ANNOTATION) == "true":
                cluster.delete(cluster.net_namespaces, name, there.resource_version)
            else:
                self._unbind(name, [claim.address for claim in claims])
            yield

    def _unbind(self, name: str, addresses: list[str]) -> None:
        there = self.cluster.net_namespaces.get(name)
        if there is not None and any(text in addresses for text in there.egress_ips):
            kept = tuple(text for text in there.egress_ips if text not in addresses)
            self.cluster.patch(self.cluster.net_namespaces, name, replace(there, egress_ips=kept))


def holder(namespace: str) -> str:
    """Who has a namespace's addresses, in the index."""
    return f"ns/{namespace}"


def annotated(namespace: Namespace) -> tuple[Address, ...]:
    """The addresses that Hawse gave it."""
    return pools.annotated_addresses(namespace.annotations)


def _joined(addresses: Iterable[Address]) -> str:
    return ",".join(map(str, addresses))


def _stands(claim: EgressAddress, namespace: Namespace) -> bool:
    return claim.namespace_uid == namespace.uid and claim.phase is not Phase.QUARANTINED


def _name(pool: EgressPool) -> str:
    return pool.name


def _covers(pieces: Iterable[Range], address: Address) -> bool:
    return any(address in piece for piece in pieces)
