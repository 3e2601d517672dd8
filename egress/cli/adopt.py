"""`hawse adopt`: what egressip-ipam-operator has given to namespaces becomes Hawse's to keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

import click
import msgspec

from egress.adapters import manifests
from egress.adapters.cluster import Cluster, ExistsError, Kind
from egress.addresses import object_name, parse_address
from egress.adoption import OPERATOR, Adoption, adopt
from egress.cli.client import prints, put, table
from egress.cli.clusters import on_cluster, reached
from egress.migration import Deed
from egress.objects import EgressAddress, EgressPool
from egress.operations import PermanentError, TransientError
from egress.ovn import OWN_LABEL

ATTEMPTS = 5
"""How often a claim is made in place of one that shows what was set by hand: Hawse may be quicker to make that anew."""


class AdoptionError(click.ClickException):
    """What was asked for cannot be done. Exit code 1."""


@click.command("adopt")
@click.option("--from", "operator", type=click.Choice([OPERATOR]), default=OPERATOR, help="Whose assignments.")
@click.option("--write", is_flag=True, help="Make the claims. Without it nothing is changed.")
@prints
@on_cluster
def command(*, operator: str, write: bool, output: str, kubeconfig: str) -> int:
    """Adopt the addresses that egressip-ipam-operator has given to namespaces, as its annotations say.

    Stop the operator first. An EgressPool must cover the addresses. Run it as often as you like: what is Hawse's is not
    written again. Exit code 1 if some namespace cannot be adopted.
    """
    del operator  # there is one
    cluster = reached(kubeconfig)
    try:
        found = plan(cluster)
        if write:
            found = [_written(cluster, item) for item in found]
    except (PermanentError, TransientError) as error:
        raise AdoptionError(str(error)) from None
    put(msgspec.json.encode([_data(item) for item in found]), output, lambda: lines(found))
    counts = Counter(item.deed for item in found)
    told = ", ".join(f"{counts[deed]} {word}" for deed, word in _WORDS.items())
    click.echo(f"{len(found)} addresses: {told}{'' if write else '; nothing was written'}", err=True)
    return 1 if counts[Deed.REFUSE] else 0


_WORDS = {Deed.CREATE: "to claim", Deed.CHANGE: "to claim anew", Deed.KEEP: "Hawse's already", Deed.REFUSE: "refused"}


def plan(cluster: Cluster) -> list[Adoption]:
    """What is to be done for each address that the operator gave."""
    namespaces = [manifests.namespace(item) for item in cluster.list(Kind.NAMESPACE).items]
    claims = [manifests.egress_address(item, strict=True) for item in cluster.list(Kind.EGRESS_ADDRESS).items]
    pools: list[EgressPool] = []
    for item in cluster.list(Kind.EGRESS_POOL).items:
        with suppress(manifests.ManifestError):  # one that nobody can read gives nothing
            pools.append(manifests.egress_pool(item, strict=True))
    return adopt(namespaces, claims, pools)


def _written(cluster: Cluster, item: Adoption) -> Adoption:
    """The adoption once it is done, or why it could not be."""
    if item.claim is None:
        return item
    try:
        _claim(cluster, item.claim, item.there)
    except PermanentError as error:
        return Adoption(item.namespace, item.address, Deed.REFUSE, item.pool, str(error))
    return item


def _claim(cluster: Cluster, claim: EgressAddress, there: EgressAddress | None) -> None:
    name = object_name(parse_address(claim.address))
    manifest = manifests.egress_address_manifest(claim)
    manifest["metadata"]["labels"] = {OWN_LABEL: claim.namespace}
    for attempt in range(1, ATTEMPTS + 1):
        if there is not None:
            cluster.delete(Kind.EGRESS_ADDRESS, name, resource_version=there.resource_version)
        try:
            cluster.create(Kind.EGRESS_ADDRESS, manifest)
        except ExistsError:
            found = cluster.get(Kind.EGRESS_ADDRESS, name)
            there = manifests.egress_address(found, strict=True) if found is not None else None
            if attempt == ATTEMPTS or (there is not None and not there.adopted):
                raise
            continue
        return


def _data(item: Adoption) -> dict[str, str]:
    return {
        "namespace": item.namespace,
        "address": item.address,
        "deed": item.deed.value,
        "pool": item.pool,
        "reason": item.reason,
    }


def lines(found: Iterable[Adoption]) -> Iterator[str]:
    """What people read. Pure."""
    rows = [(item.deed.value, item.namespace, item.address, item.pool, item.reason) for item in found]
    yield from table(("WHAT", "NAMESPACE", "ADDRESS", "POOL", "WHY NOT"), rows)
