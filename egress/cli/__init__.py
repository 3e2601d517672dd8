"""The `hawse` command. A command's module is imported when the command runs, so that each starts fast."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

COMMANDS = {
    "adopt": ("egress.cli.adopt", "Adopt the addresses that egressip-ipam-operator has given to namespaces."),
    "approve": ("egress.cli.act:approve", "Say on behalf of the ticket system what became of an address."),
    "completion": ("egress.cli.completion", "Print the script by which a shell completes this command."),
    "describe": ("egress.cli.describe", "Show all that is known of one namespace."),
    "explain": ("egress.cli.verify:explain", "Show the path of a namespace's packets, and what is wrong first."),
    "get": ("egress.cli.get", "Show assignments, nodes or pools."),
    "migrate": ("egress.cli.migrate", "Print, or write, the EgressIP objects that keep every address."),
    "move": ("egress.cli.move", "Move an egress address to another node."),
    "plan": ("egress.cli.plan", "Show what every namespace's traffic and every node would do, from manifests alone."),
    "pause": ("egress.cli.act:pause", "Have Hawse give, move and take away nothing until it is resumed."),
    "release": ("egress.cli.act:release", "Take a namespace's addresses away."),
    "resume": ("egress.cli.act:resume", "End a pause."),
    "retry": ("egress.cli.act:retry", "Try again at once what has failed."),
    "status": ("egress.cli.status", "Show what is wrong, and how much there is."),
    "verify": ("egress.cli.verify:verify", "Check objects, nodes, flows, rules and addresses against the plan."),
    "watch": ("egress.cli.watch", "Show assignments as they change."),
}
"""Each command's module, and what it is called there if not `command`; and its line in `hawse --help`."""


class _Commands(click.Group):
    """A group that knows its commands by name and imports the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        try:
            module, _, name = COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), name or "command")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "egress":
                raise
            raise click.ClickException(
                f"`hawse {cmd_name}` needs the Python package {error.name}: pip install 'hawse[cli]'"
            ) from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx) if name in COMMANDS])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow to import, rarely needed

    try:
        click.echo(f"hawse {version('hawse')}")
    except PackageNotFoundError:
        click.echo("hawse (not installed)")
    ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
)
def hawse() -> None:
    """Gives every Kubernetes namespace one fixed way out of the cluster: its own source IP."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `hawse` and returns its exit code: 0 done, 1 the thing asked for failed, 2 bad usage or input.

    An error is one line on stderr.
    """
    try:
        result = hawse.main(args=arguments, prog_name="hawse", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "hawse"
        line = " ".join(error.format_message().split())
        hint = f" (see `{command} --help`)" if isinstance(error, click.UsageError) else ""
        click.echo(f"{command}: {line}{hint}", err=True)
        return error.exit_code
    except click.Abort:
        click.echo("hawse: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader has gone (`hawse plan | head`): not an error, but Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result if isinstance(result, int) else 0
