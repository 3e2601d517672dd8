"""Manifest files in, documents out: YAML, JSON, lists, directories, stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

SUFFIXES = (".yaml", ".yml", ".json")
STDIN = "-"


class InputError(click.ClickException):
    """Input that cannot be used. The message is one line that names the file and says what to do."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Document:
    """One object of a file."""

    source: str
    kind: str
    group: str
    manifest: dict[str, Any]


def documents(paths: Iterable[str]) -> Iterator[Document]:
    """The objects in `paths` (files, directories, `-` for stdin), lists unpacked; InputError if one is unreadable."""
    for path in _files(paths):
        source = "stdin" if path == STDIN else path
        for index, value in enumerate(_parsed(source, _read(path)), start=1):
            if value is not None:
                yield from _objects(source, f"document {index}", value)


def _files(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if path == STDIN or not os.path.isdir(path):
            yield path
            continue
        found = sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if name.endswith(SUFFIXES)
        )
        if not found:
            raise InputError(f"{path}: no *.yaml, *.yml or *.json file in this directory; name one that has some")
        yield from found


def _read(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; name a file that can be read") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); give it YAML or JSON manifests") from None


def _parsed(source: str, text: str) -> list[Any]:
    """The documents of a text. JSON is tried first where the text looks like it: it is many times faster."""
    try:
        if text.lstrip()[:1] in {"{", "["}:
            try:
                return [msgspec.json.decode(text)]
            except msgspec.DecodeError as error:
                if source.endswith(".json"):
                    raise InputError(f"{source}: not JSON: {error}; correct it there") from None
        from egress.cli import yaml_text  # noqa: PLC0415 - not needed for JSON, and slow to import

        try:
            return yaml_text.load_all(text)
        except yaml_text.YamlTextError as error:
            raise InputError(f"{source}: not YAML: {error}; correct it there") from None
    except RecursionError:
        raise InputError(f"{source}: nested too deeply; give it Kubernetes manifests") from None


def _objects(source: str, place: str, value: object, kind: str = "") -> Iterator[Document]:
    if not isinstance(value, dict):
        raise InputError(f"{source}: {place} is not an object; every document must be a manifest with a kind")
    kind = value.get("kind") or kind
    version = value.get("apiVersion") or ""
    if not isinstance(kind, str) or not kind or not isinstance(version, str):
        field = "kind" if isinstance(version, str) else "apiVersion"
        raise InputError(f"{source}: {place}{_named(value)}: $.{field}: missing or not a string; give it one")
    if kind.endswith("List") and "items" in value:
        items = value["items"] or []
        if not isinstance(items, list):
            raise InputError(f"{source}: {place}: $.items: not a list; give {kind} a list of objects")
        # The API server leaves the kind out of the items of a typed list.
        for index, item in enumerate(items):
            yield from _objects(source, f"{place}, item {index}", item, kind.removesuffix("List"))
        return
    yield Document(source, kind, version.rpartition("/")[0], value)


def _named(value: dict[str, Any]) -> str:
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f" ({name})" if isinstance(name, str) else ""
