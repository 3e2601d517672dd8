"""API objects as JSON, and the few operations every part of the server needs on them.

The server is generic: a kind is data that arrives at run time with its CRD. Objects therefore stay JSON mappings
here. An object that the store holds is never changed in place; whoever wants a changed one takes a `clone` first.
"""

import datetime
import re
import secrets
from typing import Any, TypeVar, cast

Json = dict[str, Any]
_T = TypeVar("_T")

# Kubernetes' own alphabet for generated suffixes: no vowels, nothing that reads as another character.
_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_SUFFIX_LENGTH = 5
_LONGEST_BASE = 63 - _SUFFIX_LENGTH

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?\Z")


def clone(value: _T) -> _T:
    """A deep copy of a JSON value; several times faster than `copy.deepcopy`, which must expect anything."""
    if isinstance(value, dict):
        return cast(_T, {key: clone(item) for key, item in value.items()})
    if isinstance(value, list):
        return cast(_T, [clone(item) for item in value])
    return value


def metadata(obj: Json) -> Json:
    """The object's metadata; an empty mapping (not attached to the object) where there is none."""
    return obj.get("metadata") or {}


def name_of(obj: Json) -> str:
    return str(metadata(obj).get("name") or "")


def namespace_of(obj: Json) -> str:
    return str(metadata(obj).get("namespace") or "")


def labels_of(obj: Json) -> dict[str, str]:
    return metadata(obj).get("labels") or {}


def finalizers_of(obj: Json) -> list[str]:
    return metadata(obj).get("finalizers") or []


def is_terminating(obj: Json) -> bool:
    return bool(metadata(obj).get("deletionTimestamp"))


def timestamp(moment: datetime.datetime | None = None) -> str:
    """RFC 3339 in UTC with whole seconds, as metav1.Time is written."""
    return (moment or datetime.datetime.now(datetime.UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def generated_name(base: str) -> str:
    """A name for ``generateName``: the base, cut so that the whole stays a DNS label, and five random characters."""
    return base[:_LONGEST_BASE] + "".join(secrets.choice(_SUFFIX_ALPHABET) for _ in range(_SUFFIX_LENGTH))


def dig(value: object, *path: str) -> object:
    """The value at a path of keys, or None as soon as one is missing."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def name_problem(name: str, *, label: bool) -> str | None:
    """Why a name is refused, in the words of Kubernetes, or None. ``label`` asks for a DNS label, not a subdomain."""
    if label:
        if len(name) > 63:
            return "must be no more than 63 bytes"
        if not _DNS_LABEL.match(name):
            return (
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start"
                " and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is"
                " '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            )
        return None
    if len(name) > 253:
        return "must be no more than 253 bytes"
    if not _DNS_SUBDOMAIN.match(name):
        return (
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must"
            " start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is"
            " '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        )
    return None


def label_value_problem(value: str) -> str | None:
    """Why a label's value is refused, or None."""
    if len(value) > 63:
        return "must be no more than 63 bytes"
    if value and not _LABEL_NAME.match(value):
        return (
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must"
            " start and end with an alphanumeric character"
        )
    return None


def qualified_name_problem(key: str) -> str | None:
    """Why a label's or annotation's key is refused, or None."""
    prefix, slash, name = key.rpartition("/")
    if slash and name_problem(prefix, label=False):
        return "prefix part " + str(name_problem(prefix, label=False))
    if not name or len(name) > 63 or not _LABEL_NAME.match(name):
        return (
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an"
            " alphanumeric character, and be 1 to 63 characters long"
        )
    return None
