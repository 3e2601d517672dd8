"""A namespace's NetNamespace: the addresses in it, and the NetID that nobody may use before every node drops it."""

from __future__ import annotations

import random
import time

import structlog

from egress.adapters import manifests
from egress.adapters.cluster import ConflictError, ExistsError, Kind
from egress.adapters.ledger import Promise
from egress.addresses import Address
from egress.messages import PUBLISH_TASK, RECONCILE_TASK
from egress.objects import CREATED_ANNOTATION, Namespace, NetNamespace
from egress.operations import PermanentError, Step, TransientError
from egress.table import lagging
from workers.context import Context

_log = structlog.get_logger()
NETID_CANDIDATES = 16
LOOK_SECONDS = 0.01
LOWEST_NETID, HIGHEST_NETID = 10, 0xFFFFFF
"""NetIDs below 10 are OpenShift's own."""


def bind(
    context: Context,
    namespace: Namespace,
    there: NetNamespace | None,
    addresses: tuple[Address, ...],
    former: list[str],
    *,
    returning: bool,
) -> bool:
    """Writes the addresses into `there`, the namespace's NetNamespace, making it where nobody else does, and asks for
    publishing what it wrote. Whether it wrote.

    Addresses that an admin put there by hand stay. `former` ones, of an earlier namespace of the same name, go in the
    same patch: a NetNamespace without any address would for a moment let traffic out with the node's IP. `returning`
    says that the namespace had a claim before, and so perhaps a NetNamespace.
    """
    wanted = [str(address) for address in addresses]
    if there is None:
        if not _create_net_namespace(context, namespace, wanted, returning=returning):
            return False
    else:
        if there.netid == 0:
            unbind(context, namespace.name, former)  # else their quarantine would never end
            raise PermanentError(f"namespace {namespace.name} is in the global network (NetID 0): it gets no address")
        kept = [text for text in there.egress_ips if text not in former]
        bound = [*kept, *(text for text in wanted if text not in kept)]
        if there.annotations.get(CREATED_ANNOTATION) != "true":
            context.ledger.return_netid(namespace.name)  # what Hawse took for it, if it did, is not what it has
        if bound == list(there.egress_ips):
            return False
        patch = {"metadata": {"resourceVersion": there.resource_version}, "egressIPs": bound}
        context.cluster.patch(Kind.NET_NAMESPACE, namespace.name, patch)
    context.ask(PUBLISH_TASK)
    context.record(Step.BIND, namespace.name, address=",".join(wanted))
    context.tell(namespace.name, namespace.uid, "EgressAddressAssigned", f"traffic will leave with {', '.join(wanted)}")
    return True


def _create_net_namespace(context: Context, namespace: Namespace, addresses: list[str], *, returning: bool) -> bool:
    """Makes the NetNamespace once the nodes drop its NetID; False while they do not. The publishing that hears the
    last node's word starts the namespace's task again."""
    if not context.settings.create_net_namespaces:
        raise TransientError(f"the NetNamespace of {namespace.name} is not there yet")
    promise = context.ledger.promise(namespace.name)
    netid = _netid(context, namespace, promise, returning=returning)
    if not _is_dropped(context, namespace.name, netid, noted=promise.fenced and promise.netid == netid):
        return False
    manifest = Kind.NET_NAMESPACE.head | {
        "metadata": {"name": namespace.name, "annotations": {CREATED_ANNOTATION: "true"}},
        "netname": namespace.name,
        "netid": netid,
        "egressIPs": addresses,
    }
    try:
        context.cluster.create(Kind.NET_NAMESPACE, manifest)
    except ExistsError:
        raise ConflictError(f"the NetNamespace of {namespace.name} was made by somebody else meanwhile") from None
    return True


def _netid(context: Context, namespace: Namespace, promise: Promise, *, returning: bool) -> int:
    """The NetID that was taken for the namespace, or one that is taken now."""
    if promise.netid is None:
        return _take_netid(context, namespace, promise, returning=returning)
    # Where it has been seen, its own NetNamespace was there and is not any more, or somebody else's is.
    if promise.seen and any(item.netid == promise.netid for item in context.net_namespaces()):
        context.ledger.return_netid(namespace.name)
        return _take_netid(context, namespace, promise, returning=returning)
    return promise.netid


def _take_netid(context: Context, namespace: Namespace, promise: Promise, *, returning: bool) -> int:
    # A list of thousands for each of a burst's namespaces would keep the API server from everything else. What was made
    # since the last reconcile has a NetID of ours, which the ledger knows, or one in sixteen million.
    taken: set[int] = set()
    if returning or not promise.known:
        taken = {other.netid for other in context.net_namespaces()}
    # Random and not the next one: a NetID comes back to use as late as can be. S311: it is no secret.
    draw = random.Random(f"{namespace.name}/{namespace.uid}")  # noqa: S311
    candidates = [draw.randint(LOWEST_NETID, HIGHEST_NETID) for _ in range(NETID_CANDIDATES)]
    if returning:
        # Its NetNamespace was deleted by hand: its pods run on with the NetID that the table still drops.
        rows = context.ledger.read_table().rows.values()
        candidates = [row.netid for row in rows if row is not None and row.namespace == namespace.name] + candidates
    netid = context.ledger.take_netid(namespace.name, [netid for netid in candidates if netid not in taken])
    if netid is None:
        raise TransientError("no free NetID found in this try")
    return netid


def _is_dropped(context: Context, name: str, netid: int, *, noted: bool) -> bool:
    """Whether the nodes drop `netid`, so that from the first packet on nothing leaves with a node's IP. The publishing
    that hears the last node's word notes it, and `noted` says so.

    A node that does not answer for `fence_wait` keeps nobody from having a network: what it does with the first
    packets is not known (docs/decisions/0007).
    """
    what = f"fence:{name}"
    if noted:
        context.ledger.done_with(what)
        return True
    alone = context.patience and context.gathered is None and not context.ledger.namespaces_waiting()
    if alone and _is_soon_dropped(context, name, netid):
        context.ledger.done_with(what)
        return True
    wait = context.settings.fence_wait
    if wait and context.ledger.waiting_for(what, wait):
        context.ask(RECONCILE_TASK, delay=wait)  # should that word never come: one look, however many wait
        return False
    context.ledger.done_with(what)
    nodes, last = [subnet.name for subnet in context.host_subnets()], context.ledger.last_changes({name: netid})
    reports, now, change = context.ledger.reports(nodes), context.ledger.now(), last.changes.get(name)
    waiting = lagging(nodes, reports, last.epoch, change, now=now, began=last.began)
    if waiting:
        if any(other.netid == netid for other in context.net_namespaces()):
            context.ledger.return_netid(name)
            raise TransientError(f"NetID {netid} of {name} is somebody else's by now: it gets another")
        _log.error("goes on though nodes may not drop it yet", namespace=name, netid=netid, nodes=waiting)
    return True


def _is_soon_dropped(context: Context, name: str, netid: int) -> bool:
    """Waits a moment for all nodes to drop `netid`: mostly that takes less than another task would. Not for one of
    many, which would keep the others waiting."""
    nodes = [subnet.name for subnet in context.host_subnets()]
    until = time.monotonic() + context.patience
    while time.monotonic() < until:
        last = context.ledger.last_changes({name: netid})
        change = last.changes.get(name)
        if change is not None:
            reports, now = context.ledger.reports(nodes), context.ledger.now()
            if not lagging(nodes, reports, last.epoch, change, now=now, began=last.began):
                return True
        time.sleep(LOOK_SECONDS)
    return False


def end(context: Context, name: str, addresses: list[str]) -> None:
    """Ends the binding of a namespace that is gone. A NetNamespace that Hawse did not make stays, without addresses."""
    there = net_namespace(context, name)
    if there is not None and there.annotations.get(CREATED_ANNOTATION) == "true":
        context.cluster.delete(Kind.NET_NAMESPACE, name, resource_version=there.resource_version)
    else:
        unbind(context, name, addresses)


def unbind(context: Context, name: str, addresses: list[str]) -> None:
    """Takes `addresses` out of the NetNamespace."""
    there = net_namespace(context, name) if addresses else None
    if there is not None and any(text in addresses for text in there.egress_ips):
        kept = [text for text in there.egress_ips if text not in addresses]
        patch = {"metadata": {"resourceVersion": there.resource_version}, "egressIPs": kept}
        context.cluster.patch(Kind.NET_NAMESPACE, name, patch)


def net_namespace(context: Context, name: str) -> NetNamespace | None:
    """The namespace's NetNamespace, if there is one."""
    manifest = context.cluster.get(Kind.NET_NAMESPACE, name)
    return manifests.net_namespace(manifest) if manifest is not None else None
