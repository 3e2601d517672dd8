"""The `hawse` commands that the documents print: each is one, and has the options that are said."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from egress.cli import hawse

ROOT = Path(__file__).parents[3]
NAMES_ONLY = {"get", "explain", "move", "plan", "plan --offline", "..."}
"""What stands for itself in a sentence, and is nothing to type."""
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_LINE = re.compile(r"^ *(?:\$ )?(?:.*\| )?hawse ([^|\n]+)", re.MULTILINE)
_SENTENCE = re.compile(r"`(?:kubectl )?hawse ([^`|]+)")


def commands() -> list[str]:
    """Their arguments: what comes after `hawse`."""
    found: set[str] = set()
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        text = page.read_text()
        for language, block in _BLOCK.findall(text):
            found |= set(_LINE.findall(block) if language in {"", "console"} else ())
        found |= set(_SENTENCE.findall(_BLOCK.sub("", text)))
    return sorted({" ".join(words.split()) for words in found} - NAMES_ONLY)


@pytest.mark.parametrize("typed", commands())
def test_click_takes_it(typed: str) -> None:
    """Up to the command itself, which is not run."""
    command: click.Command = hawse
    words = [word.removesuffix("...") for word in shlex.split(typed)]
    name, context = "hawse", None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=name)
        found, inner, words = command.resolve_command(context, words)
        assert found is not None
        assert inner is not None
        name, command = found, inner
    command.make_context(name, words, parent=context)


def test_what_prints_json_prints_yaml_too() -> None:
    """As the changelog says."""
    groups, checked = [hawse], set()
    while groups:
        group = groups.pop()
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                groups.append(command)
            for option in command.params if command is not None else ():
                if option.name == "output" and isinstance(option.type, click.Choice):
                    assert {"json", "yaml"} <= set(option.type.choices), name
                    checked.add(name)
    assert {"adopt", "plan", "watch", "nodes"} <= checked
