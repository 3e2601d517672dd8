"""`hawse retry`, `release`, `approve`, `pause` and `resume`: what a person may have Hawse do, by its API."""

from __future__ import annotations

import click
import msgspec

from egress.actions import Trouble
from egress.cli.client import Client, clean, decoded, part, prints, put, reaches
from egress.objects import Phase, Verdict

_why = click.option("--why", metavar="TEXT", required=True, help="Why: it is kept with who did it.")
_yes = click.option("-y", "--yes", is_flag=True, help="Do not ask whether it is meant.")


@click.command("retry")
@click.argument("namespaces", metavar="[NAMESPACE]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that have failed, or those of them that are matched.")
@click.option("--text", default="", help="With --all: whose namespace or address has this in it.")
@click.option("--phase", type=click.Choice([phase.value for phase in Phase]), default=None, help="With --all.")
@click.option("--pool", default="", help="With --all.")
@click.option("--node", default="", help="With --all.")
@click.option("--trouble", type=click.Choice([trouble.value for trouble in Trouble]), default=None, help="With --all.")
@click.option("--why", metavar="TEXT", default="", help="Why: it is kept with who did it.")
@reaches
@prints
def retry(
    client: Client, *, namespaces: tuple[str, ...], everything: bool, why: str, output: str, **match: str | None
) -> int:
    """Try again at once what has failed for each NAMESPACE, or for all. To ask twice does nothing twice."""
    wanted = {name: value for name, value in match.items() if value}
    if everything == bool(namespaces):
        raise click.UsageError("name namespaces, or use --all")
    if wanted and not everything:
        raise click.UsageError(f"--{next(iter(wanted))} goes with --all")
    if everything:
        data = client.post("/retry", {"why": why, **wanted})
    else:
        done = [name for each in namespaces for name in _retry_one(client, each, why)]
        data = msgspec.json.encode({"done": done, "left": 0})
    answer = decoded(data, _Done)
    put(data, output, lambda: [*(f"{clean(name)}: tried again" for name in answer.done), *_left(answer)])
    for name, reason in answer.refused.items():
        click.echo(f"hawse retry: {clean(name)}: {clean(reason)}", err=True)
    return 1 if answer.refused else 0


def _retry_one(client: Client, namespace: str, why: str) -> list[str]:
    return decoded(client.post(f"/namespaces/{part(namespace)}/retry", {"why": why}), _Done).done


def _left(answer: _Done) -> list[str]:
    if answer.left:
        return [f"{answer.left} more are left: repeat the command"]
    return [] if answer.done or answer.refused else ["nothing has failed that matches"]


@click.command("release")
@click.argument("namespace", metavar="NAMESPACE")
@_why
@_yes
@reaches
@prints
def release(client: Client, *, namespace: str, why: str, yes: bool, output: str) -> None:
    """Take the addresses of NAMESPACE away: its traffic leaves with the nodes' IPs from then on."""
    _confirm(yes, f"Connections of {namespace} end, and its traffic leaves with the nodes' IPs. Go on?")
    data = client.post(f"/namespaces/{part(namespace)}/release", {"why": why})
    put(data, output, lambda: [f"{namespace}: is asked to let its addresses go"])


@click.command("approve")
@click.argument("address", metavar="ADDRESS")
@click.option(
    "--verdict",
    type=click.Choice([verdict.value for verdict in Verdict]),
    default=Verdict.APPROVED.value,
    show_default=True,
    help="What the firewall team has said.",
)
@_why
@_yes
@reaches
@prints
def approve(client: Client, *, address: str, verdict: str, why: str, yes: bool, output: str) -> None:
    """Say on behalf of the ticket system what became of ADDRESS."""
    if verdict != Verdict.APPROVED:
        _confirm(yes, f"The traffic that leaves with {address} may be cut. Go on?")
    data = client.post(f"/addresses/{part(address)}/decision", {"why": why, "verdict": verdict})
    put(data, output, lambda: [f"{address}: {verdict}"])


@click.command("pause")
@_why
@reaches
@prints
def pause(client: Client, *, why: str, output: str) -> None:
    """Have Hawse give, move and take away nothing until `hawse resume`. Nodes keep what they do."""
    data = client.post("/pause", {"why": why})
    put(data, output, lambda: ["paused"])


@click.command("resume")
@click.option("--why", metavar="TEXT", default="", help="Why: it is kept with who did it.")
@reaches
@prints
def resume(client: Client, *, why: str, output: str) -> None:
    """End a pause."""
    data = client.post("/resume", {"why": why})
    put(data, output, lambda: ["resumed"])


def _confirm(yes: bool, question: str) -> None:
    if not yes:
        click.confirm(question, abort=True, err=True)


class _Done(msgspec.Struct):
    done: list[str]
    left: int = 0
    refused: dict[str, str] = {}
