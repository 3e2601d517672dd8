"""What a kind's objects are now, in memory: listed once, then kept up by a watch."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

import structlog

from egress.adapters.cluster import Cluster, GoneError, Kind, Manifest
from egress.adapters.manifests import ManifestError
from egress.operations import PermanentError, TransientError, backoff

T = TypeVar("T")
_log = structlog.get_logger()
_jitter = random.SystemRandom()
BREAKS_BEFORE_LISTING = 3
"""After so many breaks in a row without any news the kind is listed again: a server that was restored from a backup
may not know the version that we want to go on from, and not say so."""

KEPT_CHANGES = 4096
"""How many changes are remembered for who asks what is new. Whoever knows less gets everything."""


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[T]):
    """The objects by their names, all as of one moment. Another `version` means that something is different."""

    version: int = 0
    items: Mapping[str, T] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class News(Generic[T]):
    """What became different since a version that somebody knows: the objects by their names, None for one that is gone.
    With `whole` these are all that there are, but for those that cannot be read: `unread` says whether there are any.
    `changed` is the resourceVersion of the last change in it."""

    version: int
    items: Mapping[str, T | None]
    whole: bool
    changed: int
    unread: bool = False


class Mirror(Generic[T]):
    """The objects of `kind`, each as what `read` makes of its manifest, kept up by a thread that calls `run`.

    What `read` refuses with a ManifestError is logged and left out. While the API server is away, what was last known
    stays. `on_change` is called by that thread after something has become different, and must not raise.
    """

    def __init__(
        self, cluster: Cluster, kind: Kind, read: Callable[[Manifest], T], on_change: Callable[[], None] | None = None
    ) -> None:
        self.kind = kind
        self._cluster = cluster
        self._read = read
        self._on_change = on_change
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._upto = self._changed_at = 0
        self._items: dict[str, T] = {}
        self._unread: set[str] = set()
        self._snapshot: Snapshot[T] | None = None
        self._version = 0
        self._log: deque[tuple[int, str]] = deque()
        self._log_begins = 0
        self._synced = False
        self._problem = ""
        self._thread: threading.Thread | None = None

    def start(self, stop: threading.Event) -> None:
        """Begins, in a thread of its own, until `stop`."""
        self._thread = threading.Thread(target=self.run, args=(stop,), name=f"mirror-{self.kind.label}", daemon=True)
        self._thread.start()

    def synced(self) -> bool:
        """Whether all objects were read once, so that what is missing is not there."""
        return self._synced

    def verdict(self) -> str | None:
        """Why nothing is known of this kind yet; None once it was listed."""
        if self._synced:
            return None
        return f"{self.kind.path()} is not listed yet" + (f": {self._problem}" if self._problem else "")

    def current(self) -> bool:
        """Whether the last attempt to hear of changes succeeded: if not, what is known may be old."""
        return self._synced and not self._problem

    def alive(self) -> str | None:
        """Why nobody keeps this up any more; None if somebody does."""
        return None if self._thread is None or self._thread.is_alive() else f"the {self._thread.name} thread ended"

    @property
    def version(self) -> int:
        """Rises whenever something becomes different."""
        return self._version

    def snapshot(self) -> Snapshot[T]:
        """All objects and the version that they make up, of one moment. It never changes."""
        with self._lock:
            if self._snapshot is None:
                self._snapshot = Snapshot(self._version, MappingProxyType(dict(self._items)))
            return self._snapshot

    def news(self, version: int | None) -> News[T]:
        """What is different from what it was at `version` of this mirror; all if that is None, or too long ago."""
        with self._lock:
            items: dict[str, T | None]
            whole = version is None or version < self._log_begins
            if version is None or whole:
                items = dict(self._items)
            else:
                names = {name for changed, name in self._log if changed > version} if version < self._version else ()
                items = {name: self._items.get(name) for name in names}
            return News(self._version, items, whole, self._changed_at, bool(self._unread))

    def await_version(self, resource_version: int, seconds: float) -> bool:
        """Whether all objects were listed and every change up to `resource_version` is known, within `seconds`."""
        with self._lock:
            return self._moved.wait_for(lambda: self._synced and self._upto >= resource_version, seconds)

    def reach(self, resource_version: int) -> None:
        """Every change up to `resource_version` is known: somebody has listed the kind, and found what is here."""
        with self._lock:
            self._upto = max(self._upto, resource_version)
            self._moved.notify_all()

    def item(self, name: str) -> T | None:
        """The object of that name, if there is one that can be read."""
        with self._lock:
            return self._items.get(name)

    def items(self) -> Mapping[str, T]:
        """All objects by their names, of one moment. It never changes."""
        return self.snapshot().items

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. Whatever fails is tried again: from where the watch was, or from a new list."""
        version, breaks = "", 0
        while not stop.is_set():
            try:
                if not version:
                    version = self._list()
                for change in self._cluster.watch(self.kind, version):
                    breaks = 0
                    self._problem = ""
                    if not change.bookmark:
                        self._take(change.manifest, deleted=change.deleted)
                    version = change.resource_version
                    self.reach(int(version))
                    if stop.is_set():
                        return
                self._problem = ""  # it ended as it should, perhaps because there was nothing to say
            except GoneError:
                _log.info("watch too old, listing again", kind=self.kind.name)
                version = ""
            except (TransientError, PermanentError) as error:
                breaks += 1
                self._problem = str(error)
                if breaks % BREAKS_BEFORE_LISTING == 0:
                    version = ""
                wait = backoff(min(breaks, 6), _jitter)
                _log.warning("watch broke", kind=self.kind.name, error=str(error), wait=round(wait, 2))
                stop.wait(wait)

    def _list(self) -> str:
        listing = self._cluster.list(self.kind)
        items, unread = {}, set()
        for manifest in listing.items:
            try:
                items[_name(manifest)] = self._read(manifest)
            except ManifestError as error:
                _log.error("object cannot be read", error=str(error))
                unread.add(_name(manifest))
        with self._lock:
            different = items != self._items or not self._synced
            self._items, self._unread = items, unread
            self._upto = int(listing.resource_version)
            self._changed(different)
            if different:
                self._log.clear()
                self._log_begins = self._version
            self._synced = True
            self._moved.notify_all()
        self._problem = ""
        _log.info("listed", kind=self.kind.name, resource_version=listing.resource_version)
        self._tell(different)
        return listing.resource_version

    def _take(self, manifest: Manifest, *, deleted: bool) -> None:
        name = _name(manifest)
        values, unread = [], set()
        try:
            values = [] if deleted else [self._read(manifest)]
        except ManifestError as error:
            _log.error("object cannot be read", error=str(error))
            unread = {name}
        with self._lock:
            self._unread = self._unread - {name} | unread
            before = [self._items.pop(name)] if name in self._items else []
            self._items.update((name, value) for value in values)
            self._upto = max(self._upto, int(manifest["metadata"]["resourceVersion"]))
            self._changed(before != values)
            if before != values:
                self._log.append((self._version, name))
                if len(self._log) > KEPT_CHANGES:
                    self._log_begins = self._log.popleft()[0]
        self._tell(before != values)

    def _changed(self, different: bool) -> None:
        if different:
            self._version += 1
            self._changed_at = self._upto
            self._snapshot = None

    def _tell(self, different: bool) -> None:
        if different and self._on_change is not None:
            self._on_change()


def _name(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])
