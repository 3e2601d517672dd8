"""Label and field selectors: as query strings, and label selectors as objects in webhook configurations."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from lab.apiserver import errors
from lab.apiserver.objects import Json, dig, labels_of, qualified_name_problem
from lab.apiserver.resources import Resource

Predicate = Callable[[Json], bool]

# One requirement: `!key`, `key`, `key in (a,b)`, `key notin (a,b)`, `key=value`, `key==value`, `key!=value`.
_REQUIREMENT = re.compile(
    r"\s*(?:(?P<absent>!)\s*)?(?P<key>[^\s,=!()]+)\s*"
    r"(?:(?P<set>in|notin)\s*\((?P<values>[^)]*)\)|(?P<op>==|=|!=)\s*(?P<value>[^\s,=!()]*))?\s*(?:,|\Z)"
)
_FIELD = re.compile(r"\s*([^=!,\s]+)\s*(==|=|!=)([^,]*)(?:,|\Z)")
_ALWAYS_SELECTABLE = ("metadata.name", "metadata.namespace")


@dataclass(frozen=True, slots=True)
class _Requirement:
    key: str
    operator: str  # In, NotIn, Exists, DoesNotExist
    values: frozenset[str]

    def holds(self, labels: dict[str, str]) -> bool:
        if self.operator == "Exists":
            return self.key in labels
        if self.operator == "DoesNotExist":
            return self.key not in labels
        return (labels.get(self.key) in self.values) == (self.operator == "In")


def by_labels(text: str) -> Predicate:
    """The predicate of a ``labelSelector`` query. Raises `ApiError` 400 where it does not parse."""
    requirements: list[_Requirement] = []
    position = 0
    while position < len(text):
        match = _REQUIREMENT.match(text, position)
        if match is None or (match["absent"] and (match["set"] or match["op"])):
            raise errors.bad_request(f"unable to parse requirement: {text[position:]!r}")
        requirements.append(_requirement(match))
        position = match.end()
    return lambda obj: all(requirement.holds(labels_of(obj)) for requirement in requirements)


def _requirement(match: re.Match[str]) -> _Requirement:
    key = match["key"]
    problem = qualified_name_problem(key)
    if problem:
        raise errors.bad_request(f"unable to parse requirement: {key!r}: {problem}")
    if match["set"]:
        values = frozenset(value.strip() for value in match["values"].split(","))
        return _Requirement(key, "In" if match["set"] == "in" else "NotIn", values)
    if match["op"]:
        return _Requirement(key, "NotIn" if match["op"] == "!=" else "In", frozenset([match["value"]]))
    return _Requirement(key, "DoesNotExist" if match["absent"] else "Exists", frozenset())


def by_label_selector(selector: Json | None) -> Predicate:
    """The predicate of a ``metav1.LabelSelector``; an empty one selects everything."""
    selector = selector or {}
    requirements = [
        _Requirement(key, "In", frozenset([value])) for key, value in (selector.get("matchLabels") or {}).items()
    ]
    for expression in selector.get("matchExpressions") or []:
        values = frozenset(expression.get("values") or [])
        requirements.append(_Requirement(expression["key"], expression["operator"], values))
    return lambda obj: all(requirement.holds(labels_of(obj)) for requirement in requirements)


def by_fields(resource: Resource, text: str) -> Predicate:
    """The predicate of a ``fieldSelector`` query. Raises `ApiError` 400 for a field this resource does not offer."""
    wanted: list[tuple[tuple[str, ...], bool, str]] = []
    position = 0
    while position < len(text):
        match = _FIELD.match(text, position)
        if match is None:
            raise errors.bad_request(f"invalid selector: {text!r}; can't understand {text[position:]!r}")
        label = match[1]
        if label not in _ALWAYS_SELECTABLE and label not in resource.field_labels:
            raise errors.bad_request(f"field label not supported: {label}")
        wanted.append((tuple(label.split(".")), match[2] != "!=", match[3]))
        position = match.end()
    return lambda obj: all((_text(dig(obj, *path)) == value) == equal for path, equal, value in wanted)


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
