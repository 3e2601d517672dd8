"""`hawse explain` and `hawse verify`: what should be and what is, on objects, nodes and link."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click

from egress.cli.client import Client, clean, decoded, part, prints, put, reaches, table
from egress.diagnosis import Fault, Piece
from egress.views import Explanation, NodePath, Verification


@click.command("explain")
@click.argument("namespace", metavar="NAMESPACE")
@reaches
@prints
def explain(client: Client, *, namespace: str, output: str) -> int:
    """Show the path of NAMESPACE's packets, hop by hop, with what should be and what is, and what is wrong first.

    Every node is asked to look at itself. Exit code 1 if something is wrong.
    """
    data = client.get(f"/namespaces/{part(namespace)}/path")
    way = decoded(data, Explanation)
    put(data, output, lambda: path_lines(way))
    return 1 if way.faults else 0


@click.command("verify")
@reaches
@prints
def verify(client: Client, *, output: str) -> int:
    """Check objects, nodes, addresses on the link, flows and rules against the plan. Exit code 1 with a list of what is
    wrong."""
    data = client.get("/verification")
    found = decoded(data, Verification)
    put(data, output, lambda: verification_lines(found))
    return 1 if found.total else 0


def path_lines(way: Explanation) -> Iterator[str]:
    """What people read. Pure."""
    addresses = ", ".join(map(clean, way.addresses))
    yield f"Namespace {clean(way.namespace)}: {way.state or 'gone'}{f', {addresses}' if addresses else ''}"
    if way.objects:
        yield ""
        yield "Objects"
        yield from _pieces(way.objects)
    for node in way.nodes:
        yield ""
        yield from _node(node)
    yield ""
    if way.unseen:
        yield f"{clean(way.unseen)}."
    if not way.faults:
        yield "All is as it should be."
        return
    first = way.faults[0]
    yield f"First wrong: {first.kind}{f' on {clean(first.node)}' if first.node else ''}: {clean(first.message)}"
    if len(way.faults) > 1:
        yield ""
        yield from _faults(way.faults)


def verification_lines(found: Verification) -> Iterator[str]:
    """What people read. Pure."""
    yield from _faults(found.faults)
    if found.total > len(found.faults):
        yield f"... and {found.total - len(found.faults)} more"
    if found.unseen:
        yield f"{clean(found.unseen)}."
    looked = f"{found.addresses} addresses of {found.namespaces} namespaces, on {found.nodes} nodes"
    yield f"{found.total} wrong: looked at {looked}." if found.total else f"All is as it should be: {looked}."


def _node(node: NodePath) -> Iterator[str]:
    hosts = any(trace.hosts for trace in node.traces)
    yield f"{clean(node.node)}{', by which they leave' if hosts else ''}"
    if node.trouble:
        yield f"  WRONG  {clean(node.trouble)}"
    for trace in node.traces:
        yield from _pieces(trace.pieces)


def _pieces(pieces: Iterable[Piece]) -> Iterator[str]:
    for piece in pieces:
        good = piece.wanted == piece.found
        counted = f"  ({piece.packets} packets, {piece.bytes} bytes)" if piece.packets is not None else ""
        yield f"  {'ok   ' if good else 'WRONG'}  {clean(piece.what)}: {clean(piece.wanted) or 'nothing'}{counted}"
        if not good:
            yield f"         is: {clean(piece.found) or 'nothing'}"


def _faults(faults: Iterable[Fault]) -> Iterator[str]:
    rows = [(fault.kind, fault.node, fault.namespace, fault.address, fault.message) for fault in faults]
    if rows:
        yield from table(("WRONG", "NODE", "NAMESPACE", "ADDRESS", "HOW"), rows)
