"""`hawse completion`: the script that makes a shell complete the command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes `hawse`.

    For bash, in ~/.bashrc: source <(hawse completion bash)
    """
    made = get_completion_class(shell)
    if made is None:  # click knows these three
        raise click.ClickException(f"click does not know {shell} any more")
    root = ctx.find_root().command
    click.echo(made(root, {}, "hawse", "_HAWSE_COMPLETE").source())
