"""Has the firewall team told again what could not be told, whoever asks for it: the API, the CLI, or an annotation."""

from __future__ import annotations

from dataclasses import replace

from egress import tickets
from egress.adapters import manifests
from egress.adapters.cluster import Cluster, ConflictError, Kind, NotFoundError
from egress.adapters.decisions import TRIES, status_patch, with_condition
from egress.addresses import Address, object_name
from egress.objects import RETRY_TICKET_ANNOTATION, EgressAddress


def retry(cluster: Cluster, address: Address, now: float, *, answers: bool = True) -> EgressAddress:
    """The claim of `address`, of which nothing counts as given up any more, and the annotation that asked for it is
    gone. `now` is in seconds since the epoch, `answers` whether its ticket system says what it decides.

    NotFoundError if nobody has the address. The next run for the profile tells it; whoever wants that at once asks for
    one.
    """
    name = object_name(address)
    for _ in range(TRIES):
        manifest = cluster.get(Kind.EGRESS_ADDRESS, name)
        if manifest is None:
            raise NotFoundError(f"{address} is assigned to nobody")
        claim = manifests.egress_address(manifest)
        try:
            if claim.ticket is not None and claim.ticket.failed is not None:
                claim = replace(claim, ticket=tickets.retried(claim.ticket))
                patch = status_patch(with_condition(claim, answers=answers, now=now))
                manifest = cluster.patch(Kind.EGRESS_ADDRESS, name, patch, subresource="status")
            if RETRY_TICKET_ANNOTATION in (manifest["metadata"].get("annotations") or {}):
                version = manifest["metadata"]["resourceVersion"]
                metadata = {"resourceVersion": version, "annotations": {RETRY_TICKET_ANNOTATION: None}}
                manifest = cluster.patch(Kind.EGRESS_ADDRESS, name, {"metadata": metadata})
        except ConflictError:
            continue
        return manifests.egress_address(manifest)
    raise ConflictError(f"EgressAddress {address} changes all the time")
