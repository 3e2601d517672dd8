"""`hawse plan`: manifests in, every namespace's outcome and every node's program out. No cluster, no Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import click
import msgspec

from egress.adapters import manifests
from egress.cli.files import Document, InputError, documents
from egress.objects import EgressAddress, EgressPool, HostSubnet, NetNamespace, Node
from egress.planning import NamespacePlan, Plan, plan, with_claims, withheld
from egress.program import UNKNOWN_MAC, Layout, NodeFacts, NodeProgram, render
from egress.rules import table_name
from egress.table import table_of

_MAC = r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}"
_LAST_TABLE = 252
"""The last OpenFlow table that another can follow: 254 is OVS's own, and the flows go on to the next."""


@dataclass(slots=True)
class _Objects:
    """The objects of the input, by name."""

    host_subnets: dict[str, HostSubnet] = field(default_factory=dict)
    net_namespaces: dict[str, NetNamespace] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    pools: dict[str, EgressPool] = field(default_factory=dict)
    addresses: dict[str, EgressAddress] = field(default_factory=dict)


def _network(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise click.BadParameter(f"{error}; give a CIDR such as 10.128.0.0/14 or fd01::/48") from None


def _mac(_: click.Context, __: click.Parameter, text: str) -> str:
    import re  # noqa: PLC0415 - one option's check

    if text != UNKNOWN_MAC and not re.fullmatch(_MAC, text.lower()):
        raise click.BadParameter(f"{text!r} is not a MAC address such as 0a:58:0a:80:00:01")
    return text if text == UNKNOWN_MAC else text.lower()


@click.command("plan")
@click.option(
    "-f",
    "--filename",
    "paths",
    metavar="FILE",
    multiple=True,
    required=True,
    help="Manifests to read: a YAML or JSON file, a directory of them, or - for stdin. Repeatable.",
)
@click.argument("more_paths", nargs=-1, metavar="[FILE]...")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "yaml"]),
    default="text",
    help="Text for people, or JSON or YAML.",
)
@click.option("--offline", metavar="NODE", multiple=True, help="Plan as if this node were offline. Repeatable.")
@click.option(
    "--cluster-network",
    "cluster_networks",
    metavar="CIDR",
    multiple=True,
    default=[str(network) for network in Layout().cluster_networks],
    show_default=True,
    callback=_network,
    help="The pods' network. Repeatable.",
)
@click.option(
    "--egress-table",
    metavar="N",
    type=click.IntRange(0, _LAST_TABLE),
    default=Layout().egress_table,
    show_default=True,
    help="The OpenFlow table of egress flows; they go on to the next one.",
)
@click.option("--tun-mac", metavar="MAC", default=UNKNOWN_MAC, callback=_mac, help="tun0's MAC address, for the flows.")
@click.option("-v", "--verbose", is_flag=True, help="Name the objects that are ignored, on stderr.")
def command(  # noqa: PLR0913 - one argument for each option
    *,
    paths: tuple[str, ...],
    more_paths: tuple[str, ...],
    output: str,
    offline: tuple[str, ...],
    cluster_networks: tuple[IPv4Network | IPv6Network, ...],
    egress_table: int,
    tun_mac: str,
    verbose: bool,
) -> None:
    """Show what every namespace's traffic and every node would do, from manifests alone.

    Understands HostSubnet, NetNamespace, Node, EgressPool and EgressAddress. Every node counts as online and every
    address as acknowledged, unless --offline says otherwise. Conflicts are reported; they are not an error.
    """
    objects = _objects((*paths, *more_paths), verbose)
    unknown = sorted(set(offline) - objects.host_subnets.keys() - objects.nodes.keys())
    if unknown:
        known = ", ".join(sorted(objects.host_subnets)) or "none"
        raise click.BadParameter(f"no node {unknown[0]!r} in the input (there are: {known})", param_hint="--offline")
    net_namespaces = with_claims(objects.net_namespaces.values(), objects.addresses.values())
    outcome = plan(
        objects.host_subnets.values(),
        net_namespaces,
        offline=frozenset(offline),
        withheld=withheld(objects.addresses.values()),
    )
    layout = Layout(cluster_networks, egress_table, egress_table + 1)
    rows = list(table_of(outcome).values())
    programs = {name: render(rows, NodeFacts(name, tun_mac), layout) for name in sorted(objects.host_subnets)}
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(_as_data(outcome, programs)), indent=2))
    elif output == "yaml":
        from egress.cli.yaml_text import dump  # noqa: PLC0415 - slow to import, rarely needed

        click.echo(dump(_as_data(outcome, programs)))
    else:
        click.echo("\n".join(_as_text(outcome, programs)))


def _objects(paths: Iterable[str], verbose: bool) -> _Objects:
    """The input's objects; InputError names the file, the object and the field that cannot be used."""
    objects = _Objects()
    readers: Mapping[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
        "HostSubnet": (manifests.OPENSHIFT_GROUP, manifests.host_subnet, objects.host_subnets),
        "NetNamespace": (manifests.OPENSHIFT_GROUP, manifests.net_namespace, objects.net_namespaces),
        "Node": ("", manifests.node, objects.nodes),
        "EgressPool": (manifests.GROUP, manifests.egress_pool, objects.pools),
        "EgressAddress": (manifests.GROUP, manifests.egress_address, objects.addresses),
    }
    sources: dict[tuple[str, str], str] = {}
    for document in documents(paths):
        if document.kind not in readers or (document.kind == "Node" and document.group):
            if verbose:
                click.echo(f"{document.source}: {document.kind} ignored", err=True)
            continue
        group, read, place = readers[document.kind]
        _check_group(document, group)
        try:
            value = read(document.manifest, strict=True)
        except manifests.ManifestError as error:
            raise InputError(f"{document.source}: {error}; correct it there") from None
        name = document.manifest["metadata"]["name"]
        first = sources.setdefault((document.kind, name), document.source)
        if name in place:
            both = "twice in this file" if first == document.source else f"also in {first}"
            raise InputError(f"{document.source}: {document.kind} {name}: $.metadata.name: {both}; keep one of them")
        place[name] = value
    return objects


def _check_group(document: Document, group: str) -> None:
    # OpenShift 3.7 also served its objects without a group, as plain `v1`.
    if document.group not in {group, ""}:
        metadata = document.manifest.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        raise InputError(
            f"{document.source}: {document.kind} {name or '(unnamed)'}: $.apiVersion: group {document.group!r} is not "
            f"{group!r}; correct it there"
        )


def _as_data(outcome: Plan, programs: Mapping[str, NodeProgram]) -> dict[str, Any]:
    return {
        "namespaces": {
            name: {
                "netid": namespace.netid,
                "state": namespace.state.value,
                "via": [{"address": str(hop.address), "node": hop.node} for hop in namespace.via],
                "reasons": list(namespace.reasons),
            }
            for name, namespace in outcome.namespaces.items()
        },
        "nodes": {
            name: {
                "addresses": _addresses(program),
                "flows": [str(flow) for flow in sorted(program.flows)],
                "nat": list(_nat(program, 4)),
                **({"nat6": six} if (six := list(_nat(program, 6))) else {}),
            }
            for name, program in programs.items()
        },
        "conflicts": list(outcome.conflicts),
    }


def _addresses(program: NodeProgram) -> list[str]:
    return [str(address) for address in sorted(program.addresses, key=lambda a: (a.version, int(a)))]


def _nat(program: NodeProgram, version: int) -> Iterator[str]:
    """The rules of the nat table of iptables, or of ip6tables: the jump, then our chains in the order of their packets,
    each chain together."""
    rules, nat = program.rules, table_name("nat", version)
    yield from (str(rule) for rule in rules.jumps if rule.table == nat)
    yield from (str(rule) for rule in rules.spine if rule.table == nat)
    yield from (str(rule) for rule in sorted(rules.leaves) if rule.table == nat)


def _as_text(outcome: Plan, programs: Mapping[str, NodeProgram]) -> Iterator[str]:
    if not outcome.namespaces and not programs:
        yield "No HostSubnet and no NetNamespace in the input: there is nothing to plan."
        return
    yield from _namespace_lines(outcome.namespaces.values())
    yield ""
    if outcome.conflicts:
        yield "Conflicts:"
        yield from (f"  {conflict}" for conflict in outcome.conflicts)
    else:
        yield "No conflicts."
    for name, program in programs.items():
        yield ""
        yield f"Node {name}: {', '.join(_addresses(program)) or 'hosts no egress address'}"
        yield from (f"  flow   {flow}" for flow in sorted(program.flows))
        yield from (f"  group  {group}" for group in sorted(program.groups))
        yield from (f"  nat    {rule}" for rule in _nat(program, 4))
        yield from (f"  nat6   {rule}" for rule in _nat(program, 6))


def _namespace_lines(namespaces: Iterable[NamespacePlan]) -> Iterator[str]:
    rows: list[tuple[str, str, str, str, tuple[str, ...]]] = [("NAMESPACE", "NETID", "STATE", "VIA", ())]
    for namespace in namespaces:
        via = ", ".join(f"{hop.address} on {hop.node}" for hop in namespace.via) or "-"
        rows.append((namespace.name, str(namespace.netid), namespace.state.value, via, namespace.reasons))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, netid, state, via, reasons in rows:
        yield f"{name:<{widths[0]}}  {netid:<{widths[1]}}  {state:<{widths[2]}}  {via}"
        yield from (f"  because {reason}" for reason in reasons)
