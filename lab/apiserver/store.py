"""All objects, their revisions and the recent changes of each resource.

One process, one event loop, no await inside: every method is atomic. Objects held here are never changed in place, so
that readers, watches and list snapshots share them, and the identity of an object is its revision: whoever wants to
replace one names the very object it has read.
"""

import asyncio
import bisect
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from lab.apiserver import errors
from lab.apiserver.journal import Journal, Record
from lab.apiserver.objects import Json, name_of, namespace_of

# Lists in pages are served from the state at their first page; this many such states are kept.
_KEPT_SNAPSHOTS = 64


class EventType(StrEnum):
    """What a watch says happened to an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


class Stale(Exception):
    """The object to be replaced is no longer the stored one."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change: what the object became (for DELETED: what it last was) and what it was before."""

    type: EventType
    revision: int
    object: Json
    previous: Json | None


Key = tuple[str, str]


class Store:
    """Objects by storage name, then by namespace and name.

    ``history`` bounds the changes that are kept per storage name for watches; none outlives the process.
    """

    def __init__(self, journal: Journal, history: int) -> None:
        self._journal = journal
        self._history = history
        self._objects: dict[str, dict[Key, Json]] = {}
        self._events: dict[str, deque[Event]] = {}
        self._forgotten: dict[str, int] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._snapshots: OrderedDict[tuple[str, str, int], list[Json]] = OrderedDict()
        self._since = journal.start_revision
        self.revision = journal.start_revision
        self.closed = False
        for record in journal.replay():
            self._remember(record)
        # A real server's watch cache begins with what it finds at its start: watches from before it get 410.
        self._since = self.revision
        self._events.clear()
        self._forgotten.clear()

    def get(self, storage: str, namespace: str, name: str) -> Json | None:
        return self._objects.get(storage, {}).get((namespace, name))

    def all(self, storage: str, namespace: str = "") -> list[Json]:
        """The objects of one namespace, or of all, in the order of namespace and name."""
        kept = self._objects.get(storage, {})
        return [kept[key] for key in sorted(kept) if not namespace or key[0] == namespace]

    def replace(self, storage: str, old: Json | None, new: Json) -> Json:
        """Store ``new`` in place of ``old`` (None: it must not exist yet) and return it with its resourceVersion.

        Raises `Stale` where the stored object is another than ``old``.
        """
        if self.get(storage, namespace_of(new), name_of(new)) is not old:
            raise Stale
        return self._commit(storage, EventType.ADDED if old is None else EventType.MODIFIED, new)

    def remove(self, storage: str, old: Json, last: Json) -> Json:
        """Take ``old`` away; ``last`` is what watchers are shown. Raises `Stale` as `replace` does."""
        if self.get(storage, namespace_of(old), name_of(old)) is not old:
            raise Stale
        return self._commit(storage, EventType.DELETED, last)

    def changes(self, storage: str, after: int) -> list[Event]:
        """The changes after a revision, oldest first; `ApiError` 410 where the history does not reach back so far."""
        oldest = self._forgotten.get(storage, self._since)
        if after < oldest:
            raise errors.too_old(after, oldest)
        found: list[Event] = []
        for event in reversed(self._events.get(storage, ())):
            if event.revision <= after:
                break
            found.append(event)
        found.reverse()
        return found

    @contextmanager
    def changed(self, storage: str) -> Iterator[asyncio.Event]:
        """An event that is set at every change of ``storage`` and when the store closes."""
        signal = asyncio.Event()
        waiting = self._waiting.setdefault(storage, set())
        waiting.add(signal)
        try:
            yield signal
        finally:
            waiting.discard(signal)

    def snapshot(self, storage: str, namespace: str) -> list[Json]:
        """The present list, kept so that `page` can go on with it."""
        key = (storage, namespace, self.revision)
        if key not in self._snapshots:
            self._snapshots[key] = self.all(storage, namespace)
            while len(self._snapshots) > _KEPT_SNAPSHOTS:
                self._snapshots.popitem(last=False)
        return self._snapshots[key]

    def page(self, storage: str, namespace: str, revision: int, after: Key) -> list[Json]:
        """The rest of a snapshot after one object; `ApiError` 410 where the snapshot is gone."""
        kept = self._snapshots.get((storage, namespace, revision))
        if kept is None:
            raise errors.continue_expired()
        return kept[bisect.bisect_right(kept, after, key=lambda obj: (namespace_of(obj), name_of(obj))) :]

    def close(self) -> None:
        """End every watch and close the journal."""
        self.closed = True
        for storage in self._waiting:
            self._wake(storage)
        self._journal.close()

    def _commit(self, storage: str, kind: EventType, obj: Json) -> Json:
        revision = self.revision + 1
        stored = obj | {"metadata": obj["metadata"] | {"resourceVersion": str(revision)}}
        record = Record(revision, kind.value, storage, stored)
        self._journal.append(record)
        self._remember(record)
        self._wake(storage)
        return stored

    def _remember(self, record: Record) -> None:
        self.revision = max(self.revision, record.revision)
        kept = self._objects.setdefault(record.storage, {})
        key = (namespace_of(record.object), name_of(record.object))
        previous = kept.get(key)
        if record.type == EventType.DELETED:
            kept.pop(key, None)
        else:
            kept[key] = record.object
        if record.revision <= self._since:
            return  # part of the state the journal starts with, not a change
        events = self._events.setdefault(record.storage, deque())
        events.append(Event(EventType(record.type), record.revision, record.object, previous))
        if len(events) > self._history:
            self._forgotten[record.storage] = events.popleft().revision

    def _wake(self, storage: str) -> None:
        for signal in self._waiting.get(storage, ()):
            signal.set()
