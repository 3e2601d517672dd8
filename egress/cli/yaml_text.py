"""YAML, read as Kubernetes reads it: dates stay texts, and a key twice in one mapping is an error."""

from __future__ import annotations

from typing import Any

import yaml

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML without libyaml: the same, slower
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class YamlTextError(ValueError):
    """A text that is not YAML; the message says where and why, in one line."""


class _Loader(_SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in _SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_all(text: str) -> list[Any]:
    """The documents of `text`, None for an empty one; YamlTextError if it is not YAML."""
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlTextError(f"{where}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a tagged scalar that its type refuses
        raise YamlTextError(" ".join(str(error).split())) from None


def dump(data: object) -> str:
    """What JSON could say, as YAML. A line is not wider than it is: one that YAML folds is no line for grep. What is
    untrusted is escaped, and stays inert."""
    return str(yaml.safe_dump(data, sort_keys=False, width=4096)).rstrip()
