"""`hawse migrate`: the objects of another network that keep every address, printed or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import click
import msgspec

from egress.adapters import egressips, manifests
from egress.adapters.cluster import Cluster, Kind, Listing, NotFoundError
from egress.cli.client import clean, table
from egress.cli.clusters import on_cluster, reached
from egress.migration import Deed, Step, assignments, to_ovn_kubernetes
from egress.operations import PermanentError, TransientError
from egress.ovn import Coverage

T = TypeVar("T")
_NOTHING = Listing((), "")


class MigrationError(click.ClickException):
    """What was asked for cannot be done, or not all of it. Exit code 1."""


@click.command("migrate")
@click.option(
    "--to", "network", type=click.Choice(["ovn-kubernetes"]), required=True, help="The network to migrate to."
)
@click.option("--write", is_flag=True, help="Write the objects. Without it nothing is changed.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    help="What is done for each namespace, or the objects. Without --write the objects, as YAML.",
)
@on_cluster
def command(*, network: str, write: bool, output: str | None, kubeconfig: str) -> int:
    """Print, or write, the EgressIP objects that keep every address of every namespace on OVN-Kubernetes.

    Run it as often as you like: what is there is not written again. Exit code 1 if some namespace cannot be migrated.
    """
    del network  # there is one
    cluster = reached(kubeconfig)
    try:
        steps = plan(cluster, strict=write)
        if write:
            steps = [_written(cluster, step) for step in steps]
    except (PermanentError, TransientError) as error:
        raise MigrationError(str(error)) from None
    _put(steps, output or ("table" if write else "yaml"))
    counts = Counter(step.deed for step in steps)
    told = ", ".join(f"{counts[deed]} {word}" for deed, word in _WORDS.items())
    click.echo(f"{len(steps)} namespaces: {told}{'' if write else '; nothing was written'}", err=True)
    return 1 if counts[Deed.REFUSE] else 0


_WORDS = {Deed.CREATE: "to create", Deed.CHANGE: "to change", Deed.KEEP: "as they are to be", Deed.REFUSE: "refused"}


def plan(cluster: Cluster, *, strict: bool = False) -> list[Step]:
    """What is to be done for each namespace of the cluster. `strict`: it must serve EgressIP already."""
    served = _listed(cluster, Kind.EGRESS_IP)
    if strict and served is _NOTHING:
        raise PermanentError("the cluster does not serve EgressIP of k8s.ovn.org: is OVN-Kubernetes its network yet?")
    namespaces = [manifests.namespace(item) for item in cluster.list(Kind.NAMESPACE).items]
    living = {namespace.name: dict(namespace.labels) for namespace in namespaces if not namespace.deleting}
    claims = [manifests.egress_address(item, strict=True) for item in cluster.list(Kind.EGRESS_ADDRESS).items]
    bindings = [manifests.net_namespace(item) for item in _listed(cluster, Kind.NET_NAMESPACE).items]
    coverage = Coverage(egressips.egress_ip(item) for item in served.items)
    return to_ovn_kubernetes(assignments(claims, bindings, living), coverage, living)


def _listed(cluster: Cluster, kind: Kind) -> Listing:
    try:
        return cluster.list(kind)
    except NotFoundError:
        return _NOTHING


def _written(cluster: Cluster, step: Step) -> Step:
    """The step once it is done, or why it could not be."""
    try:
        if step.deed is Deed.CREATE:
            cluster.create(Kind.EGRESS_IP, egressips.egress_ip_manifest(step.namespace, step.addresses))
        elif step.deed is Deed.CHANGE and step.there is not None:
            patch = egressips.egress_ip_patch(step.there, step.namespace, step.addresses)
            cluster.patch(Kind.EGRESS_IP, step.name, patch)
    except PermanentError as error:
        return Step(step.namespace, step.name, step.addresses, Deed.REFUSE, str(error))
    return step


def objects(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """The EgressIPs as they are once the steps are done."""
    found = []
    for step in steps:
        if step.deed is Deed.REFUSE:
            continue
        made = egressips.egress_ip_manifest(step.namespace, step.addresses)
        if step.there is not None and not step.there.own:
            made["metadata"] = {"name": step.name}
            made["spec"]["namespaceSelector"] = egressips.selector_manifest(step.there.selector)
        found.append(Kind.EGRESS_IP.head | made)
    return found


def _put(steps: list[Step], output: str) -> None:
    if output == "table":
        for line in lines(steps):
            click.echo(line)
        return
    items = objects(steps)
    if output == "json":
        data = msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items})
        click.echo(msgspec.json.format(data, indent=2).decode())
        return
    import yaml  # noqa: PLC0415 - slow to import, rarely needed

    click.echo(yaml.safe_dump_all(items, sort_keys=False, width=4096, explicit_start=True).rstrip())
    for step in steps:
        if step.deed is Deed.REFUSE:
            click.echo(f"refused: namespace {clean(step.namespace)}: {clean(step.reason)}", err=True)


def lines(steps: Iterable[Step]) -> Iterator[str]:
    """What people read. Pure."""
    rows = [(step.deed.value, step.namespace, step.name, ",".join(step.addresses), step.reason) for step in steps]
    yield from table(("WHAT", "NAMESPACE", "EGRESSIP", "ADDRESSES", "WHY NOT"), rows)
