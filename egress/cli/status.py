"""`hawse status`: what is wrong first, then how much there is."""

from __future__ import annotations

from collections.abc import Iterator

import click

from egress.cli.client import Client, clean, decoded, prints, put, reaches
from egress.views import Overview


@click.command("status")
@reaches
@prints
def command(client: Client, *, output: str) -> int:
    """Show what is wrong, and how much there is. Exit code 1 if something needs somebody."""
    data = client.get("/overview")
    overview = decoded(data, Overview)
    put(data, output, lambda: lines(overview))
    return 1 if overview.troubles or overview.nodes_behind or overview.stale else 0


def lines(overview: Overview) -> Iterator[str]:
    """What people read. Pure."""
    if overview.stale:
        yield f"OLD: {clean(overview.stale)}"
    if overview.paused:
        yield f"PAUSED by {clean(overview.paused)}"
    for group in overview.troubles:
        why = f"{group.reason}: {group.message}" if group.message else group.reason
        yield f"{group.trouble.upper()} {group.count}: {clean(why)}"
        for item in group.items:
            yield f"   {clean(item.namespace)}  {clean(item.address) or 'no address'}  {clean(item.node)}".rstrip()
        if group.count > len(group.items):
            yield f"   ... and {group.count - len(group.items)} more: hawse get assignments --trouble {group.trouble}"
    for node in overview.nodes_behind:
        yield f"BEHIND {clean(node.name)}: {_behind(node.behind)}; {clean(node.problem) or 'see hawse get nodes'}"
    if not (overview.troubles or overview.nodes_behind or overview.stale):
        yield "Nothing needs anybody."
    phases = ", ".join(f"{count} {clean(phase)}" for phase, count in sorted(overview.phases.items()))
    yield f"{overview.assignments} assignments{f' ({phases})' if phases else ''}, {overview.nodes} nodes"
    if overview.unseen:
        yield f"{clean(overview.unseen)}."
    for pool in overview.pools:
        yield f"pool {clean(pool.name)}: {pool.allocated + pool.quarantined} of {pool.capacity}, {pool.free} free"


def _behind(changes: int | None) -> str:
    if changes is None:
        return "has no table"
    return f"{changes} changes" if changes else "not heard, or lost"
