"""`hawse move`: asks Hawse to move an address to another node, and waits until that node has it."""

from __future__ import annotations

import re
import time
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum

import click
import msgspec

from egress.adapters import manifests
from egress.adapters.cluster import Cluster, ConflictError, Kind
from egress.addresses import Address, AddressError, object_name, parse_address
from egress.cli.client import Client, may_reach, put
from egress.cli.clusters import on_cluster, reached
from egress.cli.moving import Move, MoveError, Outcome, by_api
from egress.listing import who_lists
from egress.objects import MOVE_ANNOTATION, EgressAddress, Origin, Phase
from egress.operations import PermanentError, TransientError

LOOK_SECONDS = 0.5
EVENT_LOOKS = 4
"""How often the reason of a refusal is looked for: Hawse tells it after it has taken the wish away."""
ATTEMPTS = 10
"""How often the wish is written at most: each time somebody else may have changed the object since it was read."""


class Progress(StrEnum):
    """How far a move is."""

    WAITING = "waiting"
    THERE = "there"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Sight:
    """What the objects say: the claim, the node that it is wished to ("" for none), and whether the HostSubnet of the
    node in question lists the address. The claim is read before the HostSubnet."""

    claim: EgressAddress
    wish: str
    listed: bool


@click.command("move")
@click.argument("text", metavar="ADDRESS")
@click.argument("node", metavar="NODE")
@on_cluster
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    help="How long to wait.",
)
@click.option("--wait/--no-wait", default=True, help="Whether to wait until the node has the address.")
@click.option("--why", metavar="TEXT", default="", help="Why: the API keeps it with who did it.")
@may_reach
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "yaml"]),
    default="text",
    help="Text for people, or JSON or YAML.",
)
def command(  # noqa: PLR0913 - one argument for each option
    client: Client | None, *, text: str, node: str, kubeconfig: str, timeout: float, wait: bool, why: str, output: str
) -> None:
    """Move the egress address ADDRESS to NODE.

    Hawse moves it if the node may host it, and refuses otherwise. While it moves, its namespace's traffic is dropped or
    leaves with the namespace's other addresses, never with a node's IP.

    With --server or HAWSE_SERVER Hawse's API is asked, which keeps who did it and why. Otherwise the cluster itself:
    that of --kubeconfig or HAWSE_KUBECONFIG, else of $KUBECONFIG, else of ~/.kube/config, else the one in whose pod
    this runs.
    """
    try:
        address = parse_address(text)
    except AddressError as error:
        raise click.BadParameter(str(error), param_hint="ADDRESS") from None
    if client is not None:
        move = by_api(client, address, node, why, timeout if wait else None)
    elif why:
        raise click.UsageError("--why goes with --server: nobody else keeps it")
    else:
        move = _by_cluster(kubeconfig, address, node, timeout if wait else None)
    put(msgspec.json.encode(move.data()), output, lambda: [str(move)])


def _by_cluster(kubeconfig: str, address: Address, node: str, timeout: float | None) -> Move:
    try:
        return _move(reached(kubeconfig), address, node, timeout)
    except (PermanentError, TransientError, manifests.ManifestError) as error:
        raise MoveError(str(error)) from None


def progress(sight: Sight, node: str) -> Progress:
    """How far the move to `node` is, once it was wished for. Pure.

    Hawse takes the wish away last. So where it is gone and the HostSubnet does not list the address, it was refused. An
    address that its node cannot take is one to wait for: while the old node lets go the new one finds it in use.
    """
    if sight.wish == node:
        return Progress.WAITING
    if sight.wish or not sight.listed:
        return Progress.REFUSED
    return Progress.THERE if _is_there(sight.claim, node) else Progress.WAITING


def _is_there(claim: EgressAddress, node: str) -> bool:
    return claim.node == node and claim.phase is Phase.READY


def _move(cluster: Cluster, address: Address, node: str, timeout: float | None) -> Move:
    """Wishes for the move, unless it is done or wished for already, and waits for its end unless `timeout` is None."""
    known = _warnings(cluster, _look(cluster, address, node).claim.namespace).keys()
    seen = _wish(cluster, address, node)
    claim = seen.claim
    outcome = Outcome.UNCHANGED if progress(seen, node) is Progress.THERE else Outcome.ASKED
    if outcome is Outcome.ASKED and timeout is not None:
        seen = _wait(cluster, address, node, seen, timeout)
        if progress(seen, node) is Progress.REFUSED:
            raise MoveError(_refusal(cluster, seen, node, known))
        if progress(seen, node) is Progress.WAITING:
            raise MoveError(_unfinished(seen, node, timeout))
        outcome = Outcome.MOVED
    return Move(claim.address, claim.namespace, claim.node, node, outcome)


def _wish(cluster: Cluster, address: Address, node: str) -> Sight:
    """Writes the wish if it is not written, and the address not placed there; what is there then."""
    for _ in range(ATTEMPTS):
        seen = _look(cluster, address, node)
        if seen.wish == node or (seen.listed and not seen.wish and seen.claim.node == node):
            return seen
        metadata = {"annotations": {MOVE_ANNOTATION: node}, "resourceVersion": seen.claim.resource_version}
        try:
            cluster.patch(Kind.EGRESS_ADDRESS, object_name(address), {"metadata": metadata})
        except ConflictError:
            continue
        return replace(seen, wish=node)
    raise MoveError(f"EgressAddress {address} changes all the time: try again")


def _wait(cluster: Cluster, address: Address, node: str, seen: Sight, timeout: float) -> Sight:
    """What is to be seen when the move has ended, or after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        with suppress(TransientError):  # an API server that is away comes back: the wish is written
            seen = _look(cluster, address, node)
        if progress(seen, node) is not Progress.WAITING or time.monotonic() >= deadline:
            return seen
        time.sleep(LOOK_SECONDS)


def _look(cluster: Cluster, address: Address, node: str) -> Sight:
    """What the objects say of the address. MoveError if there is nothing for Hawse to move, or no such node."""
    manifest = cluster.get(Kind.EGRESS_ADDRESS, object_name(address))
    if manifest is None:
        raise MoveError(f"there is no EgressAddress {address}: `kubectl get egressaddresses` has all")
    claim = manifests.egress_address(manifest, strict=True)
    if claim.phase is Phase.QUARANTINED:
        raise MoveError(f"address {address} is in quarantine after namespace {claim.namespace}: no node has it")
    if claim.origin is Origin.MANUAL:
        raise MoveError(f"address {address} was assigned by hand: patch the egressIPs of the HostSubnets")
    there = cluster.get(Kind.HOST_SUBNET, node)
    if there is None and "hostsubnets" not in cluster.resources("network.openshift.io/v1"):
        raise MoveError("the cluster has no HostSubnets: its own network chooses the nodes (docs/native.md)")
    if there is None:
        raise MoveError(f"there is no HostSubnet {node}: `kubectl get hostsubnets` has all nodes")
    listed = address in who_lists([manifests.host_subnet(there)], [])
    return Sight(claim, (manifest["metadata"].get("annotations") or {}).get(MOVE_ANNOTATION, ""), listed)


def _refusal(cluster: Cluster, seen: Sight, node: str, known: AbstractSet[str]) -> str:
    """Why the move was refused, as an Event says that is not among the `known` ones."""
    claim = seen.claim
    if seen.wish:
        return f"{claim.address} is not moved to {node}: somebody has wished it to {seen.wish} meanwhile"
    for _ in range(EVENT_LOOKS):
        for event, text in _warnings(cluster, claim.namespace).items():
            if event not in known and _names(text, claim.address) and _names(text, node):
                return text
        time.sleep(LOOK_SECONDS)
    return f"Hawse does not move {claim.address} to {node}: `kubectl describe namespace {claim.namespace}` says why"


def _warnings(cluster: Cluster, namespace: str) -> dict[str, str]:
    """The namespace's warning Events; none where they may not be read, which is a right of its own."""
    try:
        return cluster.warnings(namespace)
    except (PermanentError, TransientError):
        return {}


def _unfinished(seen: Sight, node: str, timeout: float) -> str:
    claim = seen.claim
    if seen.wish == node:
        state = "it has not begun; other moves may come first, or hawse-worker does not run"
    else:
        reason = next((condition.message for condition in claim.conditions if condition.type == "Ready"), "")
        state = f"it is {claim.phase}" + (f", {reason}" if reason else "")
    return f"{claim.address} has not moved to {node} in {timeout:g} s; Hawse goes on: {state}"


def _names(text: str, word: str) -> bool:
    """Whether `word` is in `text` by itself, and not as a part of a longer name or address."""
    return re.search(rf"(?<![\w:.-]){re.escape(word)}(?!\w|[.:-]\w)", text) is not None
