"""The part of JSONPath that printer columns use: ``.a.b``, ``['a.b']``, ``[0]``, ``[*]``, ``[?(@.a=="b")]``."""

import re
from functools import cache

from lab.apiserver.objects import dig

_STEP = re.compile(
    r"""\.?\[\?\(\s*@(?P<filter>(?:\.[\w-]+)+)\s*==\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>\w+))\s*\)\]
    |\.?\[(?:'(?P<quoted>[^']*)'|(?P<index>-?\d+)|(?P<all>\*))\]
    |\.(?P<key>(?:\\.|[^.\[\]])+)""",
    re.VERBOSE,
)


class BadPath(ValueError):
    """The path uses something this evaluator does not know."""


@cache
def _steps(path: str) -> tuple[re.Match[str], ...]:
    path = path if path.startswith((".", "[")) else f".{path}"
    steps: list[re.Match[str]] = []
    position = 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None:
            raise BadPath(f"cannot read {path[position:]!r} in the JSONPath {path!r}")
        steps.append(match)
        position = match.end()
    return tuple(steps)


def find(document: object, path: str) -> list[object]:
    """Every value at ``path``, in document order. Raises `BadPath`."""
    values = [document]
    for step in _steps(path):
        values = [below for value in values for below in _below(value, step)]
    return values


def _below(value: object, step: re.Match[str]) -> list[object]:
    key = step["key"] or step["quoted"]
    if key is not None:
        key = key.replace("\\.", ".")
        return [value[key]] if isinstance(value, dict) and value.get(key) is not None else []
    if step["all"] and isinstance(value, dict):
        return list(value.values())
    if not isinstance(value, list):
        return []
    if step["all"]:
        return list(value)
    if step["index"]:
        index = int(step["index"])
        return [value[index]] if -len(value) <= index < len(value) else []
    wanted = next(step[name] for name in ("double", "single", "bare") if step[name] is not None)
    field = step["filter"].lstrip(".").split(".")
    return [item for item in value if _plain(dig(item, *field)) == wanted]


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
