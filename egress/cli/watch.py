"""`hawse watch`: assignments as they change."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click
import msgspec

from egress.cli.client import AwayError, Client, clean, decoded, reaches
from egress.cli.get import all_pages, filtered, row
from egress.cli.yaml_text import dump
from egress.views import Assignment, Page

AGAIN_SECONDS = 2.0
REST_SECONDS = 1.0
"""Between two reads, however fast things change."""


@click.command("watch")
@filtered
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "yaml"]),
    default="text",
    help="A line each, or JSON, a line each, or YAML, a document each.",
)
@reaches
def command(client: Client, *, output: str, **query: str | None) -> None:
    """Show the assignments, and each that changes, until interrupted."""
    seen: dict[tuple[str, str], Assignment] = {}
    for now in _reads(client, query):
        for key in seen.keys() - now.keys():
            _say(seen[key], output, gone=True)
        for key, item in now.items():
            if seen.get(key) != item:
                _say(item, output)
        seen = now


def _reads(client: Client, query: dict[str, str | None]) -> Iterator[dict[tuple[str, str], Assignment]]:
    """What there is, now and after each change. While the API is away, what is known stays."""
    away = ""
    while True:
        try:
            for _ in client.changes():
                page = decoded(all_pages(client, **query), Page)
                away = ""
                yield {(item.namespace, item.address): item for item in page.items}
                time.sleep(REST_SECONDS)
        except AwayError as error:
            if not away:  # once, and not every two seconds while it lasts
                click.echo(f"hawse watch: {error.format_message()}; asking again until it is back", err=True)
            away = error.format_message()
            time.sleep(AGAIN_SECONDS)


def _say(item: Assignment, output: str, *, gone: bool = False) -> None:
    if output != "text":
        data = msgspec.json.encode({"event": "gone" if gone else "is", "assignment": item})
        click.echo(data.decode() if output == "json" else f"---\n{dump(msgspec.json.decode(data))}")
        return
    namespace, address, pool, phase, node, _, trouble = map(clean, row(item))
    phase = "gone" if gone else phase
    click.echo(
        "  ".join(text or "-" for text in (time.strftime("%H:%M:%S"), namespace, address, pool, phase, node, trouble))
    )
