"""`hawse get`: assignments, nodes and pools as tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import msgspec

from egress.actions import Trouble
from egress.cli.client import Client, ago, clean, decoded, prints, put, reaches, table
from egress.objects import Phase
from egress.views import Assignment, NodeView, Overview, Page, PoolView

PAGE = 500
HEADER = ("NAMESPACE", "ADDRESS", "POOL", "PHASE", "NODE", "SINCE", "TROUBLE")


@click.group("get")
def command() -> None:
    """Show assignments, nodes or pools."""


def filtered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options that say which assignments are meant."""
    phases, troubles = [phase.value for phase in Phase], [trouble.value for trouble in Trouble]
    for option in (
        click.option("-n", "--namespace", default="", help="One namespace: all that somebody may see, perhaps."),
        click.option("--trouble", type=click.Choice(troubles), default=None),
        click.option("--node", default=""),
        click.option("--pool", default=""),
        click.option("--phase", type=click.Choice(phases), default=None),
        click.option("--text", default="", help="Only those whose namespace or address has this in it."),
    ):
        function = option(function)
    return function


@command.command("assignments")
@filtered
@click.option("--sort", type=click.Choice(["namespace", "address", "pool", "phase", "node", "since", "trouble"]))
@click.option("--descending", is_flag=True)
@reaches
@prints
def assignments(client: Client, *, output: str, **query: str | bool | None) -> None:
    """Show the assignments, all of them or those that the options let through."""
    data = all_pages(client, **query)
    put(data, output, lambda: table(HEADER, map(row, decoded(data, Page).items)))


def all_pages(client: Client, **query: str | bool | None) -> bytes:
    """The assignments that a filter lets through, as one page."""
    after, items = "", list[msgspec.Raw]()
    while True:
        page = decoded(client.get("/assignments", **query, after=after, limit=PAGE), _RawPage)
        items += page.items
        after = page.after
        if not after:
            return msgspec.json.encode({"items": items, "total": len(items)})


class _RawPage(msgspec.Struct):
    items: list[msgspec.Raw]
    after: str = ""


def row(item: Assignment) -> tuple[str, ...]:
    """An assignment under HEADER."""
    trouble = f"{item.trouble}: {item.reason}" if item.trouble is not None else ""
    return item.namespace, item.address, item.pool, item.phase, item.node, ago(item.since), trouble


@command.command("nodes")
@reaches
@prints
def nodes(client: Client, *, output: str) -> None:
    """Show the nodes: when each was heard, how far it is, and what it holds."""
    data = client.get("/nodes")

    def lines() -> list[str]:
        views = decoded(data, tuple[NodeView, ...])
        unseen = "" if views else decoded(client.get("/overview"), Overview).unseen
        return [f"{clean(unseen)}."] if unseen else _nodes(views)

    put(data, output, lines)


def _nodes(views: tuple[NodeView, ...]) -> list[str]:
    header = ("NODE", "IP", "HEARD", "APPLIED", "LATEST", "HOLDS", "GIVEN", "REPAIRED", "STATE")
    now = time.time()
    return list(
        table(
            header,
            [
                (
                    view.name, view.ip, ago(view.heard, now), str(view.applied), str(view.latest), str(view.held),
                    str(view.given), str(view.repairs), _state(view),
                )
                for view in views
            ],
        )
    )  # fmt: skip


def _state(view: NodeView) -> str:
    if view.lost_since:
        return "lost"
    if not view.carrier:
        return "no link"
    return view.problem or "; ".join(view.refused) or ("no table" if view.behind is None else "ok")


@command.command("pools")
@reaches
@prints
def pools(client: Client, *, output: str) -> None:
    """Show the pools, and how full they are."""
    data = client.get("/pools")
    put(data, output, lambda: _pools(decoded(data, tuple[PoolView, ...])))


def _pools(views: tuple[PoolView, ...]) -> list[str]:
    header = ("POOL", "CIDRS", "ADDRESSES", "ALLOCATED", "QUARANTINED", "FREE", "APPROVAL", "TICKETS")
    return list(
        table(
            header,
            [
                (
                    view.name, ",".join(view.cidrs), str(view.capacity), str(view.allocated), str(view.quarantined),
                    str(view.free), "required" if view.approval_required else "", view.ticket_profile,
                )
                for view in views
            ],
        )
    )  # fmt: skip
