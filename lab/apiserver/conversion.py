"""Between the version an object is stored in and the version a client speaks.

Custom resources convert by name alone (strategy None). Events are one storage with two faces: core/v1, in which they
are stored, and events.k8s.io/v1, where some fields have other names.
"""

from lab.apiserver.objects import Json
from lab.apiserver.resources import EVENTS, Resource

# core/v1 name -> events.k8s.io/v1 name; the other fields have one name in both.
_EVENT_FIELDS = {
    "involvedObject": "regarding",
    "message": "note",
    "reportingComponent": "reportingController",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
}


def from_storage(resource: Resource, stored: Json) -> Json:
    """A stored object as this resource shows it; the stored one itself where nothing differs."""
    if resource.api_version == resource.stored_version:
        return stored
    shown = _renamed(stored, _EVENT_FIELDS) if resource.storage == EVENTS else dict(stored)
    return shown | {"apiVersion": resource.api_version}


def to_storage(resource: Resource, shown: Json) -> Json:
    """The reverse of `from_storage`."""
    if resource.api_version == resource.stored_version:
        return shown
    stored = shown
    if resource.storage == EVENTS:
        stored = _renamed(shown, {theirs: ours for ours, theirs in _EVENT_FIELDS.items()})
    return stored | {"apiVersion": resource.stored_version}


def _renamed(obj: Json, names: dict[str, str]) -> Json:
    return {names.get(key, key): value for key, value in obj.items()}
