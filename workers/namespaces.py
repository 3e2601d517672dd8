"""One namespace, from its annotation to a durable claim and a binding, or to the release of what it had."""

from __future__ import annotations

import random
import time

import structlog

from egress import pools
from egress.adapters import manifests
from egress.adapters.cluster import ConflictError, ExistsError, Kind
from egress.adapters.ledger import Exhausted, Held, manual_holder, name_holder, request_holder
from egress.addresses import Address, AddressError, object_name, parse_address
from egress.messages import PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK
from egress.objects import (
    ADDRESSES_ANNOTATION,
    CREATED_ANNOTATION,
    EgressAddress,
    Namespace,
    NetNamespace,
    Origin,
    Phase,
    operation_of,
)
from egress.operations import Outcome, PermanentError, Step, TransientError
from egress.table import lagging, row_key
from workers.context import NAMESPACE_LABEL, Context, readable

_log = structlog.get_logger()
DEFAULT_QUARANTINE = 600.0
NETID_CANDIDATES = 64
LOWEST_NETID, HIGHEST_NETID = 10, 0xFFFFFF
"""NetIDs below 10 are OpenShift's own."""


def converge(context: Context, name: str) -> None:
    """Brings one namespace to where it should be. Safe to run twice, late, or at the same time as another run."""
    if pools.is_system(name):
        return
    manifest = context.cluster.get(Kind.NAMESPACE, name)
    namespace = manifests.namespace(manifest) if manifest is not None else None
    claims = _claims(context, name, namespace)
    # Only what belonged to a namespace that is gone. One that is still on its way out keeps its address: its pods
    # run, and must never be seen with a node's IP. A claim without a uid, made by hand, is whoever has the name's.
    orphans = [claim for claim in claims if namespace is None or claim.namespace_uid not in ("", namespace.uid)]
    if namespace is None or orphans:
        _release(context, name, orphans, namespace)
    if namespace is None or namespace.deleting:
        return
    if operation := operation_of(namespace.annotations):
        structlog.contextvars.bind_contextvars(operation=operation)
    addresses = _assigned(context, namespace, claims)
    former = [claim.address for claim in orphans if parse_address(claim.address) not in addresses]
    if not addresses:
        _unbind(context, name, former)
        return
    mine = {parse_address(claim.address) for claim in claims if _stands(claim, namespace)}
    lost = [address for address in addresses if address not in mine and not _claim(context, namespace, address)]
    if lost:
        _give_up(context, namespace, addresses, lost)
        raise TransientError(f"namespace {name} lost {', '.join(map(str, lost))}: it gets another address")
    context.ledger.claimed(name_holder(name), addresses)
    context.ask(PUBLISH_TASK)  # the claim alone closes the namespace, where it has a NetID
    context.ask(PLACE_TASK)
    if _bind(context, namespace, addresses, former, returning=bool(mine)):
        context.ask(PUBLISH_TASK)


def _claims(context: Context, name: str, namespace: Namespace | None) -> list[EgressAddress]:
    """The namespace's EgressAddresses, those of an earlier one of its name included.

    By their names, where the ledger knows which they are: for a list the API server looks at all that there are. What
    it does not know yet, an admin's own, the reconcile tells it. Of a namespace that is gone none may be missed.
    """
    labelled = []
    if namespace is None or not context.ledger.is_ready():
        labelled = context.egress_addresses(name)
    listed = {parse_address(claim.address) for claim in labelled}
    known = {*context.ledger.held_by(name_holder(name)), *_annotated(namespace)} - listed
    found = [context.cluster.get(Kind.EGRESS_ADDRESS, object_name(address)) for address in sorted(known, key=int)]
    claims = readable(
        lambda manifest: manifests.egress_address(manifest, strict=True), [item for item in found if item is not None]
    )
    return labelled + [claim for claim in claims if claim.namespace == name]


def _stands(claim: EgressAddress, namespace: Namespace) -> bool:
    """Whether this claim is the namespace's already, so that there is nothing to do."""
    return claim.namespace_uid == namespace.uid and claim.phase is not Phase.QUARANTINED


def _assigned(context: Context, namespace: Namespace, claims: list[EgressAddress]) -> tuple[Address, ...]:
    """The addresses in the namespace's annotation; where admission could not write it, it is written now.

    While the webhook is away anybody may write the annotation: it counts only where it says what Hawse has given.
    """
    try:
        addresses = pools.annotated_addresses(namespace.annotations)
        strange = _strange(context, namespace, addresses, claims)
        problem = f"{', '.join(map(str, strange))} was not given to this namespace by Hawse" if strange else ""
    except AddressError as error:
        addresses, problem = (), str(error)
    if addresses and not problem:
        return addresses
    if not problem:
        return _assign(context, namespace)
    _log.warning("annotation ignored", namespace=namespace.name, error=problem)
    context.complain(namespace, "AnnotationIgnored", f"annotation {ADDRESSES_ANNOTATION} is replaced: {problem}")
    try:
        addresses = _assign(context, namespace)
    except PermanentError:
        _annotate(context, namespace, None)
        raise
    if not addresses:
        _annotate(context, namespace, None)
    return addresses


def _strange(
    context: Context, namespace: Namespace, addresses: tuple[Address, ...], claims: list[EgressAddress]
) -> list[Address]:
    """Which of `addresses` neither the namespace's claims nor the ledger know as its own, or as reserved by the request
    that made it, when it had no name yet."""
    claimed = {parse_address(claim.address) for claim in claims}
    unclaimed = [address for address in addresses if address not in claimed]
    if not unclaimed:
        return []
    holders = context.ledger.holders(unclaimed)
    own = {name_holder(namespace.name), manual_holder(namespace.name)}
    if operation := operation_of(namespace.annotations):
        own.add(request_holder(operation))
    return [address for address in unclaimed if holders.get(address) not in own]


def _assign(context: Context, namespace: Namespace) -> tuple[Address, ...]:
    """Reserves what the namespace is to get and writes it into its annotation; nothing if no pool serves it."""
    offer = context.ledger.offer()
    try:
        choice = pools.choose(namespace.name, namespace.labels, namespace.annotations, offer.pools, offer.node_ips)
    except pools.PoolError as error:
        context.complain(namespace, "NoPool", str(error))
        raise PermanentError(str(error)) from error
    if choice is None:
        return ()
    free = pools.ranges(choice.pool, offer.node_ips)
    outcome = context.ledger.reserve(name_holder(namespace.name), choice.count, free, choice.requested)
    if isinstance(outcome, Held):
        message = f"address {outcome.address}, which namespace {namespace.name} asks for, is in use"
        context.complain(namespace, "AddressInUse", message)
        raise PermanentError(message)
    if isinstance(outcome, Exhausted):
        message = pools.exhausted(choice.pool, choice.count, outcome.used, outcome.total)
        context.complain(namespace, "PoolExhausted", message)
        raise PermanentError(message)
    _annotate(context, namespace, ",".join(map(str, outcome.addresses)))
    return outcome.addresses


def _annotate(context: Context, namespace: Namespace, addresses: str | None) -> None:
    metadata = {"resourceVersion": namespace.resource_version, "annotations": {ADDRESSES_ANNOTATION: addresses}}
    context.cluster.patch(Kind.NAMESPACE, namespace.name, {"metadata": metadata})


def _claim(context: Context, namespace: Namespace, address: Address) -> bool:
    """Makes `address` the namespace's by an object named after it; False when it is another namespace's.

    That the name exists at most once is the API server's word: no two namespaces can hold one address.
    """
    claim = EgressAddress(
        str(address),
        _pool_of(context, namespace, address),
        namespace.name,
        namespace.uid,
        _origin(namespace, address),
        operation=operation_of(namespace.annotations),
    )
    manifest = manifests.egress_address_manifest(claim)
    manifest["metadata"]["labels"] = {NAMESPACE_LABEL: namespace.name}
    try:
        context.cluster.create(Kind.EGRESS_ADDRESS, manifest)
    except ExistsError:
        there = context.cluster.get(Kind.EGRESS_ADDRESS, object_name(address))
        if there is None:
            raise ConflictError(f"EgressAddress {address} came and went") from None
        found = manifests.egress_address(there)
        if found.namespace != namespace.name:
            return False
        if _stands(found, namespace):
            return True
        _take_back(context, namespace, found)
    context.record(Step.CLAIM, namespace.name, address=str(address))
    return True


def _take_back(context: Context, namespace: Namespace, found: EgressAddress) -> None:
    """The namespace was created again: the address it had is its own again."""
    name = object_name(parse_address(found.address))
    spec = {"namespace": {"name": namespace.name, "uid": namespace.uid}}
    metadata = {"resourceVersion": found.resource_version}
    patched = context.cluster.patch(Kind.EGRESS_ADDRESS, name, {"metadata": metadata, "spec": spec})
    patch = {
        "metadata": {"resourceVersion": patched["metadata"]["resourceVersion"]},
        "status": {"phase": Phase.PENDING.value, "quarantinedUntil": None, "conditions": []},
    }
    context.cluster.patch(Kind.EGRESS_ADDRESS, name, patch, subresource="status")


def _give_up(context: Context, namespace: Namespace, addresses: tuple[Address, ...], lost: list[Address]) -> None:
    """Takes addresses that turned out to be another's out of the annotation, for others where the pool has them."""
    message = f"{', '.join(map(str, lost))} is held by another namespace"
    context.record(Step.CLAIM, namespace.name, outcome=Outcome.RETRY, message=message)
    context.ledger.freed(name_holder(namespace.name), lost)
    for address in lost:
        there = context.cluster.get(Kind.EGRESS_ADDRESS, object_name(address))
        if there is not None:
            context.ledger.claimed(name_holder(manifests.egress_address(there).namespace), [address])
    context.tell(namespace.name, namespace.uid, "AddressLost", message, warning=True)
    try:
        assigned = _assign(context, namespace)
    except PermanentError:  # the next run fails of the same, and says so
        assigned = ()
    if not assigned:
        kept = [address for address in addresses if address not in lost]
        _annotate(context, namespace, ",".join(map(str, kept)) or None)


def _bind(
    context: Context, namespace: Namespace, addresses: tuple[Address, ...], former: list[str], *, returning: bool
) -> bool:
    """Writes the addresses into the namespace's NetNamespace, making it where nobody else does. Whether it wrote.

    Addresses that an admin put there by hand stay. `former` ones, of an earlier namespace of the same name, go in the
    same patch: a NetNamespace without any address would for a moment let traffic out with the node's IP. `returning`
    says that the namespace had a claim before, and so perhaps a NetNamespace.
    """
    wanted = [str(address) for address in addresses]
    manifest = context.cluster.get(Kind.NET_NAMESPACE, namespace.name)
    if manifest is None:
        if not _create_net_namespace(context, namespace, wanted, returning=returning):
            return False
    else:
        there = manifests.net_namespace(manifest)
        if there.netid == 0:
            raise PermanentError(f"namespace {namespace.name} is in the global network (NetID 0): it gets no address")
        kept = [text for text in there.egress_ips if text not in former]
        bound = [*kept, *(text for text in wanted if text not in kept)]
        if there.annotations.get(CREATED_ANNOTATION) != "true":
            context.ledger.return_netid(namespace.name)  # what Hawse took for it, if it did, is not what it has
        if bound == list(there.egress_ips):
            return False
        patch = {"metadata": {"resourceVersion": there.resource_version}, "egressIPs": bound}
        context.cluster.patch(Kind.NET_NAMESPACE, namespace.name, patch)
    context.record(Step.BIND, namespace.name, address=",".join(wanted))
    context.tell(namespace.name, namespace.uid, "EgressAddressAssigned", f"traffic will leave with {', '.join(wanted)}")
    return True


def _create_net_namespace(context: Context, namespace: Namespace, addresses: list[str], *, returning: bool) -> bool:
    """Makes the NetNamespace once the nodes drop its NetID; False while they do not. The publishing that hears the
    last node's word starts the namespace's task again."""
    if not context.settings.create_net_namespaces:
        raise TransientError(f"the NetNamespace of {namespace.name} is not there yet")
    netid = _netid(context, namespace, returning=returning)
    if not _is_dropped(context, namespace.name, netid):
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


def _netid(context: Context, namespace: Namespace, *, returning: bool) -> int:
    """The NetID that was taken for the namespace, or one that is taken now."""
    promised = context.ledger.promised_netids([namespace.name]).get(namespace.name)
    if promised is None:
        return _take_netid(context, namespace, returning=returning)
    # Where it has been seen, its own NetNamespace was there and is not any more, or somebody else's is.
    if context.ledger.is_netid_seen(promised) and any(item.netid == promised for item in context.net_namespaces()):
        context.ledger.return_netid(namespace.name)
        promised = None
    return promised or _take_netid(context, namespace, returning=returning)


def _take_netid(context: Context, namespace: Namespace, *, returning: bool) -> int:
    # A list of thousands for each of a burst's namespaces would keep the API server from everything else. What was made
    # since the last reconcile has a NetID of ours, which the ledger knows, or one in sixteen million.
    taken: set[int] = set()
    if returning or not context.ledger.has_seen_netids():
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


def _is_dropped(context: Context, name: str, netid: int) -> bool:
    """Whether the nodes drop `netid`, so that from the first packet on nothing leaves with a node's IP. The publishing
    that hears the last node's word notes it.

    A node that does not answer for `fence_wait` keeps nobody from having a network: what it does with the first
    packets is not known (docs/decisions/0007).
    """
    what = f"fence:{name}"
    last = context.ledger.last_changes({name: netid})
    change = last.changes.get(name)
    if change is not None and context.ledger.is_fenced(name, row_key(netid, last.epoch, change)):
        context.ledger.done_with(what)
        return True
    wait = context.settings.fence_wait
    if wait and context.ledger.waiting_for(what, wait):
        context.ask(RECONCILE_TASK, delay=wait)  # should that word never come: one look, however many wait
        return False
    context.ledger.done_with(what)
    nodes = [subnet.name for subnet in context.host_subnets()]
    reports, now = context.ledger.reports(nodes), context.ledger.now()
    waiting = lagging(nodes, reports, last.epoch, change, now=now, began=last.began)
    if waiting:
        if any(other.netid == netid for other in context.net_namespaces()):
            context.ledger.return_netid(name)
            raise TransientError(f"NetID {netid} of {name} is somebody else's by now: it gets another")
        _log.error("goes on though nodes may not drop it yet", namespace=name, netid=netid, nodes=waiting)
    return True


def _release(context: Context, name: str, claims: list[EgressAddress], successor: Namespace | None) -> None:
    """Ends what a namespace that is gone had: binding and claim, the latter with a quarantine.

    The claim's object stays until the quarantine ends, so that it outlives any restart of ours. The claims go first:
    one that stands keeps the namespace's packets from leaving, whatever its NetNamespace says. If this ends in
    between, the reconcile finds a NetNamespace whose namespace is gone.
    """
    leaving = [claim for claim in claims if claim.phase is not Phase.QUARANTINED]
    periods = {pool.name: pool.quarantine for pool in context.pools()} if leaving else {}
    kept = _annotated(successor)
    for claim in leaving:
        if parse_address(claim.address) in kept:
            continue  # the same name is back and has the same address: it is taken over, not released
        until = time.time() + periods.get(claim.pool, DEFAULT_QUARANTINE)
        address = parse_address(claim.address)
        patch = {
            "metadata": {"resourceVersion": claim.resource_version},
            "status": {
                "phase": Phase.QUARANTINED.value,
                "node": "",
                "quarantinedUntil": manifests.rfc3339(until),
                "conditions": [],
            },
        }
        context.cluster.patch(Kind.EGRESS_ADDRESS, object_name(address), patch, subresource="status")
        context.ledger.quarantined(name_holder(name), [address])
        context.record(Step.RELEASE, name, address=claim.address, operation=claim.operation)
    if successor is None:
        context.ledger.return_netid(name)  # first: what a later namespace of the name finds must not be this one's
        _delete_binding(context, name, [claim.address for claim in claims])
    if leaving:
        context.ask(PLACE_TASK)
        context.ask(PUBLISH_TASK)


def _annotated(namespace: Namespace | None) -> tuple[Address, ...]:
    try:
        return pools.annotated_addresses(namespace.annotations) if namespace is not None else ()
    except AddressError:
        return ()


def _delete_binding(context: Context, name: str, addresses: list[str]) -> None:
    """Ends the binding of a namespace that is gone. A NetNamespace that Hawse did not make stays, without addresses."""
    there = _net_namespace(context, name)
    if there is not None and there.annotations.get(CREATED_ANNOTATION) == "true":
        context.cluster.delete(Kind.NET_NAMESPACE, name, resource_version=there.resource_version)
    else:
        _unbind(context, name, addresses)


def _unbind(context: Context, name: str, addresses: list[str]) -> None:
    """Takes `addresses` out of the NetNamespace."""
    there = _net_namespace(context, name) if addresses else None
    if there is not None and any(text in addresses for text in there.egress_ips):
        kept = [text for text in there.egress_ips if text not in addresses]
        patch = {"metadata": {"resourceVersion": there.resource_version}, "egressIPs": kept}
        context.cluster.patch(Kind.NET_NAMESPACE, name, patch)


def _net_namespace(context: Context, name: str) -> NetNamespace | None:
    manifest = context.cluster.get(Kind.NET_NAMESPACE, name)
    return manifests.net_namespace(manifest) if manifest is not None else None


def _pool_of(context: Context, namespace: Namespace, address: Address) -> str:
    """The pool that gave the address: the one that would be chosen now, if it covers it, else any that does."""
    offer = context.ledger.offer()
    try:
        choice = pools.choose(namespace.name, namespace.labels, namespace.annotations, offer.pools)
    except pools.PoolError:
        choice = None
    covering = [pool for pool in offer.pools if any(address in piece for piece in pools.ranges(pool))]
    if choice is not None and choice.pool in covering:
        return choice.pool.name
    if not covering:
        raise PermanentError(f"address {address} of namespace {namespace.name} is in no EgressPool")
    return min(pool.name for pool in covering)


def _origin(namespace: Namespace, address: Address) -> Origin:
    try:
        requested = pools.requested_addresses(namespace.annotations)
    except pools.PoolError:
        requested = ()
    return Origin.REQUESTED if address in requested else Origin.AUTOMATIC
