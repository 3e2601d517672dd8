"""OVN-Kubernetes: one EgressIP for each namespace. It chooses the nodes and programs them, and its word is the status.

What Hawse writes is its own EgressIP, `hawse-NAMESPACE`. Where one is there already that selects this namespace alone,
it takes that over: its addresses are shown as set by hand, and Hawse's go into it and out of it. What selects more, or
less than a whole namespace, is somebody else's: it is never written, and a namespace that it takes gets no second one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import structlog

from egress.adapters import egressips, manifests
from egress.adapters.cluster import Cluster, ConflictError, ExistsError, Kind, NotFoundError
from egress.addresses import Address, addresses_of, object_name, parse_address
from egress.listing import who_lists
from egress.messages import PUBLISH_TASK, RECONCILE_TASK
from egress.networks import Network
from egress.objects import MOVE_ANNOTATION, EgressAddress, HostSubnet, Namespace, NetNamespace, Phase
from egress.operations import PermanentError, Step
from egress.ovn import (
    ASSIGNABLE_LABEL,
    OWN_LABEL,
    Coverage,
    EgressIP,
    OvnNode,
    as_binding,
    bindings_of,
    hosts_of,
    own_name,
    plan,
)
from egress.planning import withheld
from workers import census, status
from workers.context import Context, readable
from workers.status import Seen

_log = structlog.get_logger()
LOCK_SECONDS = 10.0
OTHERS_SECONDS = 2.0
_NOT_MOVED = "OVN-Kubernetes chooses the nodes itself: label nodes, or take labels away, to move it"


class OvnKubernetes:
    """See `workers.makers.maker.Maker`."""

    watched = (Kind.EGRESS_POOL, Kind.NAMESPACE, Kind.EGRESS_ADDRESS, Kind.NODE, Kind.EGRESS_IP)

    def nodes(self, context: Context) -> list[HostSubnet]:
        return hosts_of(_nodes(context), _coverage(context))

    def bindings(self, context: Context) -> list[NetNamespace]:
        return bindings_of(_coverage(context))

    def binding(self, context: Context, name: str) -> NetNamespace | None:
        item = _of(context, name).binding(name)
        return as_binding(name, item) if item is not None else None

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
        """See `Maker`. An address that nobody has approved is left out: nothing leaves with it."""
        del there, returning  # what is written is decided on what is there now
        coverage = _of(context, namespace.name)
        item = coverage.binding(namespace.name) or _own(context, namespace.name)
        kept = [text for text in item.egress_ips if text not in former] if item is not None else []
        held = withheld(_claims(context, addresses))
        wanted = [text for text in kept if text not in map(str, held)]
        there_already = set(addresses_of(kept))
        wanted += [str(address) for address in addresses if address not in held and address not in there_already]
        rivals = [each.name for each in coverage.rivals(namespace.name, namespace.labels)]
        if item is None and rivals:
            raise PermanentError(
                f"EgressIP {' and '.join(rivals)}, not Hawse's, takes namespace {namespace.name} already: delete it, "
                "or change its selector"
            )
        if item is None and not wanted:
            return False
        if item is not None and list(item.egress_ips) == wanted and item.only == namespace.name:
            return False
        _write(context, item, namespace.name, wanted)
        context.ask(PUBLISH_TASK)
        told = ", ".join(str(address) for address in addresses if str(address) in wanted)
        if told:
            context.record(Step.BIND, namespace.name, address=told.replace(" ", ""))
            text = f"traffic will leave with {told}, once OVN-Kubernetes has given it a node"
            context.tell(namespace.name, namespace.uid, "EgressAddressAssigned", text)
        return True

    def unbind(self, context: Context, name: str, addresses: list[str]) -> None:
        item = _of(context, name).binding(name) if addresses else None
        if item is not None and any(text in addresses for text in item.egress_ips):
            _write(context, item, name, [text for text in item.egress_ips if text not in addresses])

    def end(self, context: Context, name: str, addresses: list[str]) -> None:
        own = _own(context, name)
        if own is not None:
            context.cluster.delete(Kind.EGRESS_IP, own.name, resource_version=own.resource_version)
        else:
            self.unbind(context, name, addresses)

    def place(self, context: Context) -> int:
        """Refuses what nobody but OVN-Kubernetes can do, and labels nodes where Hawse was asked to."""
        for claim in context.egress_addresses():
            if claim.move_to:
                _refuse_move(context, claim)
        if context.settings.label_nodes:
            _label_nodes(context)
        look = repr(sorted(_nodes(context), key=lambda node: node.name))
        if context.ledger.is_news("ovn nodes", look):
            context.ask(PUBLISH_TASK)
        return 0

    def publish(self, context: Context) -> int:
        """Writes the status of the addresses from that of the EgressIPs, and has put right what was changed."""
        with context.ledger.exclusively("publish", LOCK_SECONDS):
            nodes, coverage, claims = _nodes(context), _coverage(context), context.egress_addresses()
            hosts, bindings = hosts_of(nodes, coverage), bindings_of(coverage)
            context.ledger.set_listed(who_lists(hosts, bindings))
            if context.ledger.is_news("node IPs", repr(sorted(host.host_ip for host in hosts))):
                context.ask(RECONCILE_TASK)  # admission must not give a new node's own IP away
            held = withheld(claims)
            outcome = plan(claims, coverage, _labels(context, coverage), nodes, held)
            for conflict in outcome.conflicts:
                _log.warning("conflict", conflict=conflict)
        seen = Seen.of(outcome, hosts, bindings, {}, {}, f"by {Network.OVN_KUBERNETES.known_as}, as its EgressIP says")
        decided = context.ledger.is_news("withheld", repr(sorted(map(str, held))))
        context.ask_for(sorted(_astray(claims, seen, held, decided=decided)))
        census.take(context, claims, len(outcome.conflicts))
        if status.update(context, claims, seen).soon:
            context.ask(PUBLISH_TASK, delay=context.settings.status_interval / 2)
        return 0

    def failover(self, context: Context) -> None:
        """Nothing: OVN-Kubernetes looks at its nodes itself, and its status says where an address is by now."""


# What is there


class _Others:
    """The EgressIPs that are not Hawse's, as somebody has listed them in this process within OTHERS_SECONDS: to look
    through a thousand of Hawse's own for them, for each of a thousand namespaces, would keep the API server busy. One
    that comes meanwhile is found by the publishing, which names both."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: WeakKeyDictionary[Cluster, tuple[float, tuple[EgressIP, ...]]] = WeakKeyDictionary()

    def keep(self, context: Context, items: Iterable[EgressIP]) -> None:
        others = tuple(item for item in items if not item.own)
        with self._lock:
            self._known[context.cluster] = (time.monotonic(), others)

    def get(self, context: Context) -> tuple[EgressIP, ...]:
        with self._lock:
            at, others = self._known.get(context.cluster, (float("-inf"), ()))
        if time.monotonic() - at < OTHERS_SECONDS:
            return others
        self.keep(context, _listed(context, f"!{OWN_LABEL}"))
        with self._lock:
            return self._known[context.cluster][1]


_others = _Others()


def _listed(context: Context, label: str = "") -> list[EgressIP]:
    return readable(egressips.egress_ip, context.cluster.list(Kind.EGRESS_IP, label=label).items)


def _coverage(context: Context) -> Coverage:
    items = _listed(context)
    _others.keep(context, items)
    return Coverage(items)


def _of(context: Context, name: str) -> Coverage:
    """What concerns one namespace: its own EgressIP, and all that are not Hawse's, of which there are few."""
    own = _own(context, name)
    return Coverage([*_others.get(context), *([own] if own is not None else [])])


def _own(context: Context, name: str) -> EgressIP | None:
    """The namespace's own EgressIP, whatever its selector says by now."""
    manifest = context.cluster.get(Kind.EGRESS_IP, own_name(name))
    item = egressips.egress_ip(manifest) if manifest is not None else None
    return item if item is not None and item.own else None


def _nodes(context: Context) -> list[OvnNode]:
    return readable(egressips.node, context.cluster.list(Kind.NODE).items)


def _labels(context: Context, coverage: Coverage) -> dict[str, dict[str, str]]:
    """The namespaces' labels, where an EgressIP asks for more than a name."""
    if not coverage.broad:
        return {}
    namespaces = readable(manifests.namespace, context.cluster.list(Kind.NAMESPACE).items)
    return {namespace.name: dict(namespace.labels) for namespace in namespaces}


def _claims(context: Context, addresses: tuple[Address, ...]) -> list[EgressAddress]:
    found = [context.cluster.get(Kind.EGRESS_ADDRESS, object_name(address)) for address in addresses]
    return readable(
        lambda item: manifests.egress_address(item, strict=True), [item for item in found if item is not None]
    )


def _astray(claims: list[EgressAddress], seen: Seen, held: frozenset[Address], *, decided: bool) -> set[str]:
    """The namespaces whose EgressIP does not say any more what it said, or says what nobody has approved; and, where
    somebody has just `decided`, not yet what is approved. Whatever else is missing its own task is at, or the reconcile
    finds: to ask for it here at each publishing, which every task asks for, would never end."""
    names = set()
    for claim in claims:
        address = parse_address(claim.address)
        bound = (claim.namespace, address) in seen.bound
        was = next((item.status for item in claim.conditions if item.type == "Bound"), None)
        if claim.phase is Phase.QUARANTINED or claim.adopted:
            continue
        lost = not bound and address not in held and (was or (decided and claim.approval_required))
        if lost or (bound and address in held):
            names.add(claim.namespace)
    return names


# What is done


def _write(context: Context, item: EgressIP | None, namespace: str, addresses: list[str]) -> None:
    if item is None:
        try:
            context.cluster.create(Kind.EGRESS_IP, egressips.egress_ip_manifest(namespace, addresses))
        except ExistsError:
            if _own(context, namespace) is not None:
                raise ConflictError(f"EgressIP {own_name(namespace)} was made meanwhile") from None
            raise PermanentError(
                f"EgressIP {own_name(namespace)} is not Hawse's, and has the name that it needs: delete it"
            ) from None
    elif item.own and not addresses:
        context.cluster.delete(Kind.EGRESS_IP, item.name, resource_version=item.resource_version)
    else:
        context.cluster.patch(Kind.EGRESS_IP, item.name, egressips.egress_ip_patch(item, namespace, addresses))


def _refuse_move(context: Context, claim: EgressAddress) -> None:
    metadata = {"resourceVersion": claim.resource_version, "annotations": {MOVE_ANNOTATION: None}}
    try:
        context.cluster.patch(Kind.EGRESS_ADDRESS, object_name(parse_address(claim.address)), {"metadata": metadata})
    except (ConflictError, NotFoundError):
        return  # its status was written meanwhile: the next run does it
    message = f"{claim.address} does not move to {claim.move_to}: {_NOT_MOVED}"
    context.tell(claim.namespace, claim.namespace_uid, "MoveRefused", message, warning=True)


def _label_nodes(context: Context) -> None:
    """Labels the ready nodes that some pool selects. Never takes a label away: nobody knows who relies on it."""
    selectors = [pool.node_selector for pool in context.pools() if pool.node_selector is not None]
    for node in readable(manifests.node, context.cluster.list(Kind.NODE).items):
        if ASSIGNABLE_LABEL in node.labels or not node.ready:
            continue
        if any(selector.matches(node.labels) for selector in selectors):
            context.cluster.patch(Kind.NODE, node.name, {"metadata": {"labels": {ASSIGNABLE_LABEL: ""}}})
            _log.info("node labelled", node=node.name, label=ASSIGNABLE_LABEL)
