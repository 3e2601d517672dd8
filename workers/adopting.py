"""What an admin sets by hand in a NetNamespace is shown by an EgressAddress, as everything else is."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import structlog

from egress.adapters import manifests
from egress.adapters.cluster import ExistsError, Kind
from egress.adapters.ledger import NotReadyError, manual_holder
from egress.addresses import Address, AddressError, parse_address
from egress.messages import PUBLISH_TASK
from egress.objects import EgressAddress, Namespace, NetNamespace, Origin
from egress.operations import Step
from workers import releasing
from workers.context import NAMESPACE_LABEL, Context

_log = structlog.get_logger()
BY_HAND = "set by hand"


def follow(
    context: Context,
    namespace: Namespace,
    there: NetNamespace | None,
    claims: list[EgressAddress],
    given: Collection[Address],
) -> list[EgressAddress]:
    """Lets the adopted claims of a live namespace say what its NetNamespace, `there`, says; the claims it has then.

    An address that the NetNamespace lists, that Hawse has not `given` to the namespace and that nobody else has, gets a
    claim of manual origin without a pool. It goes with the entry that it stands for, without a quarantine.
    """
    listed = addresses_in(there)
    gone = [claim for claim in claims if claim.adopted and parse_address(claim.address) not in listed]
    for claim in gone:
        releasing.drop(context, claim, "taken out of the NetNamespace by hand")
    claims = [claim for claim in claims if claim not in gone]
    strange = listed - {parse_address(claim.address) for claim in claims} - set(given)
    made = [_adopt(context, namespace, address) for address in _unheld(context, namespace, strange)]
    if gone or any(made):
        context.ask(PUBLISH_TASK)
    return claims + [claim for claim in made if claim is not None]


def addresses_in(there: NetNamespace | None) -> set[Address]:
    """The addresses that a NetNamespace lists, without what is none."""
    found = set()
    for text in there.egress_ips if there is not None else ():
        with suppress(AddressError):
            found.add(parse_address(text))
    return found


def _unheld(context: Context, namespace: Namespace, addresses: Collection[Address]) -> list[Address]:
    """Those that nobody has but by hand. Where Hawse has given one to somebody, publishing names the contradiction."""
    if not addresses:
        return []
    try:
        node_ips = context.ledger.offer().node_ips
        holders = context.ledger.holders(sorted(addresses, key=int))
    except NotReadyError:
        return []  # the reconcile that rebuilds the index asks again
    own = (None, manual_holder(namespace.name))
    return sorted(
        (address for address in addresses if address not in node_ips and holders.get(address) in own), key=int
    )


def _adopt(context: Context, namespace: Namespace, address: Address) -> EgressAddress | None:
    """The claim; None if the address has one: somebody else's, since when the ledger was asked."""
    claim = EgressAddress(str(address), "", namespace.name, namespace.uid, Origin.MANUAL)
    manifest = manifests.egress_address_manifest(claim)
    manifest["metadata"]["labels"] = {NAMESPACE_LABEL: namespace.name}
    try:
        context.cluster.create(Kind.EGRESS_ADDRESS, manifest)
    except ExistsError:
        return None
    context.ledger.claimed(manual_holder(namespace.name), [address])
    context.record(Step.CLAIM, namespace.name, address=str(address), message=BY_HAND)
    context.tell(namespace.name, namespace.uid, "EgressAddressAdopted", f"{address} was {BY_HAND}: it stays so")
    return claim
