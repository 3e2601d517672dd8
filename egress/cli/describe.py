"""`hawse describe`: all that is known of one namespace."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import click

from egress.cli.client import Client, clean, decoded, part, prints, put, reaches, table
from egress.views import AddressDetail, NamespaceDetail


@click.command("describe")
@click.argument("namespace", metavar="NAMESPACE")
@reaches
@prints
def command(client: Client, *, namespace: str, output: str) -> None:
    """Show the addresses of NAMESPACE, its tickets and decisions, its traffic as planned, and what was done for it."""
    data = client.get(f"/namespaces/{part(namespace)}")
    put(data, output, lambda: lines(decoded(data, NamespaceDetail)))


def lines(detail: NamespaceDetail) -> Iterator[str]:
    """What people read. Pure."""
    why = "; ".join(map(clean, detail.reasons))
    yield f"Namespace  {clean(detail.namespace)}"
    yield f"Traffic    {detail.state or 'the namespace is gone'}{f': {why}' if why else ''}"
    for address in detail.addresses:
        yield from _address(address)
    if detail.history:
        yield ""
        rows = [
            (when(step.at), step.step, step.outcome, str(step.attempt), step.address, step.node, step.by, step.message)
            for step in detail.history
        ]
        yield from table(("WHEN", "STEP", "OUTCOME", "ATTEMPT", "ADDRESS", "NODE", "BY", "MESSAGE"), rows)


def _address(detail: AddressDetail) -> Iterator[str]:
    item = detail.assignment
    yield ""
    where = f" on {clean(item.node)}" if item.node else ""
    yield f"Address    {clean(item.address) or 'none yet'}  {item.phase}{where}"
    yield f"  pool     {clean(item.pool) or '-'} ({clean(detail.origin)}), NetID {detail.netid or '-'}"
    if item.trouble is not None:
        yield f"  trouble  {item.trouble}: {clean(item.reason)} {clean(item.message)}".rstrip()
    if detail.quarantined_until:
        yield f"  kept     until {when(detail.quarantined_until)}"
    if detail.ticket is not None:
        name = detail.ticket.reference or detail.ticket.handle or "not told yet"
        yield f"  ticket   {clean(detail.ticket.profile)}: {clean(name)} {clean(detail.ticket.url)}".rstrip()
    if detail.approval_required and detail.decision is None:
        yield "  waits    for the firewall team's word"
    if detail.decision is not None:
        decision = detail.decision
        yield (
            f"  decision {decision.verdict} by {clean(decision.by)} at {when(decision.at)} ({clean(decision.source)})"
            f"{f': {clean(decision.reason)}' if decision.reason else ''}"
        )
    for condition in detail.conditions:
        said = {True: "yes", False: "no", None: "unknown"}[condition.status]
        yield f"  {clean(condition.type)}: {said}, {clean(condition.reason)} {clean(condition.message)}".rstrip()


def when(at: float) -> str:
    """A time as everybody reads it; "" for never."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at else ""
