"""What a worker knows of the cluster between its runs: the objects as a watch keeps them, and what was planned.

Never older than what anybody has seen: docs/decisions/0027-publishing-from-memory.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from egress.adapters import manifests
from egress.adapters.cluster import Cluster, Kind, Manifest
from egress.adapters.ledger import BusyError, Ledger
from egress.adapters.manifests import ManifestError
from egress.adapters.mirror import Mirror, News
from egress.addresses import Address
from egress.objects import EgressAddress, HostSubnet, Namespace, NetNamespace
from egress.replanning import Replanner

_log = structlog.get_logger()
CATCH_UP_SECONDS = 0.5
"""How long a watch that lags is waited for before the kind is listed instead."""
DOUBT_SECONDS = 10.0
"""How often the API server is asked, where the watch of namespaces lags, whether it is the server that lags."""
FORGET_SECONDS = 900.0


def _claim(manifest: Manifest) -> Any:  # noqa: ANN401 - one of three kinds of objects
    return manifests.egress_address(manifest, strict=True)


READERS: Mapping[Kind, Callable[[Manifest], Any]] = {
    Kind.HOST_SUBNET: manifests.host_subnet,
    Kind.EGRESS_ADDRESS: _claim,
    Kind.NET_NAMESPACE: manifests.net_namespace,
}
"""What is published from, in the order in which it is read. Claims before what they bind: between the two a namespace
is closed by one or the other."""
WATCHED: Mapping[Kind, Callable[[Manifest], Any]] = {**READERS, Kind.NAMESPACE: manifests.namespace}
"""What is kept in memory."""


@dataclass(frozen=True, slots=True)
class View:
    """What is new of the objects; whether all of them were listed just now; and, by kinds' labels, the resourceVersions
    of the last changes."""

    news: Mapping[Kind, News[Any]]
    listed: bool
    changed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Whole:
    """All objects of the three kinds that are published from; whether each NetNamespace could be read; and, by kinds'
    labels, the resourceVersions of the last changes."""

    subnets: list[HostSubnet]
    claims: list[EgressAddress]
    net_namespaces: list[NetNamespace]
    all_read: bool
    changed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A namespace, and the claim by the name that an EgressAddress has, if there is one."""

    namespace: Namespace
    claim: Callable[[str], EgressAddress | None]


@dataclass(frozen=True, slots=True)
class _Look:
    """One kind's: `version` is what the objects are at, `listed` whether they were asked for."""

    news: News[Any]
    version: int
    listed: bool


class Views:
    """Gives the objects, from mirrors if there are some, else from lists."""

    def __init__(self, cluster: Cluster, mirrors: Mapping[Kind, Mirror[Any]] | None = None) -> None:
        self._cluster = cluster
        self._mirrors = mirrors or {}
        self._known: dict[Kind, int] = {}

    @classmethod
    def watching(cls, cluster: Cluster, stop: threading.Event) -> Views:
        """Views of mirrors that are kept up until `stop`."""
        mirrors = {kind: Mirror(cluster, kind, read) for kind, read in WATCHED.items()}
        for mirror in mirrors.values():
            mirror.start(stop)
        return cls(cluster, mirrors)

    def alive(self) -> str | None:
        """Why a mirror is not kept up any more; None if all are."""
        return next((verdict for mirror in self._mirrors.values() if (verdict := mirror.alive())), None)

    def forget(self) -> None:
        """Whoever reads next knows nothing."""
        self._known.clear()

    def show(self, view: View, planner: Replanner) -> None:
        """Tells `planner` what is new; from now on it knows."""
        for kind, see in (
            (Kind.HOST_SUBNET, planner.see_subnets),
            (Kind.EGRESS_ADDRESS, planner.see_claims),
            (Kind.NET_NAMESPACE, planner.see_net_namespaces),
        ):
            news = view.news[kind]
            self._known.pop(kind, None)
            see(news.items, whole=news.whole)
            if news.version:
                self._known[kind] = news.version

    def read(self, ledger: Ledger, *, anew: bool = False) -> View:
        """What is new, since `show` was last called, of the objects as they are, or were no earlier than anybody has
        seen them. With `anew` they are listed."""
        floors = self._floors(ledger) if not anew else {}
        looks = {kind: self._look(kind, ledger, floors, self._known.get(kind), anew=anew) for kind in READERS}
        changed = {kind.label: look.version for kind, look in looks.items() if look.version}
        listed = all(look.listed for look in looks.values())
        return View({kind: look.news for kind, look in looks.items()}, listed, changed)

    def everything(self, ledger: Ledger) -> Whole:
        """All objects as they are, or were no earlier than anybody has seen them."""
        floors = self._floors(ledger)
        looks = {kind: self._look(kind, ledger, floors, None, anew=False) for kind in READERS}
        found: dict[Kind, list[Any]] = {kind: list(look.news.items.values()) for kind, look in looks.items()}
        return Whole(
            found[Kind.HOST_SUBNET],
            found[Kind.EGRESS_ADDRESS],
            found[Kind.NET_NAMESPACE],
            all_read=not looks[Kind.NET_NAMESPACE].news.unread,
            changed={kind.label: look.version for kind, look in looks.items() if look.version},
        )

    def newcomer(self, ledger: Ledger, name: str, floor: int) -> Newcomer | None:
        """What the watches have of a namespace that has no NetNamespace yet; None if it has one, or nothing is known of
        it, or not what others know: a Namespace of version `floor`."""
        mirrors = [self._mirrors.get(kind) for kind in (Kind.NAMESPACE, Kind.NET_NAMESPACE, Kind.EGRESS_ADDRESS)]
        if None in mirrors:
            return None
        namespaces, net_namespaces, claims = (mirror for mirror in mirrors if mirror is not None)
        if not namespaces.await_version(floor, CATCH_UP_SECONDS):
            self._doubt(ledger, floor, name)
            return None
        if not claims.synced():
            return None
        namespace = namespaces.item(name)
        if namespace is None or not net_namespaces.synced() or net_namespaces.item(name) is not None:
            return None
        return Newcomer(namespace, claims.item)

    def _doubt(self, ledger: Ledger, floor: int, name: str) -> None:
        """Forgets a `floor` of namespaces that the API server itself has not reached: it was restored from a backup."""
        if not ledger.first_to(f"doubt:{Kind.NAMESPACE.label}", DOUBT_SECONDS):
            return
        listing = self._cluster.list(Kind.NAMESPACE, label=f"kubernetes.io/metadata.name={name}")
        if int(listing.resource_version) < floor:
            ledger.forget_version(Kind.NAMESPACE.label)

    def _floors(self, ledger: Ledger) -> Mapping[str, int]:
        return ledger.seen_versions() if self._mirrors else {}

    def _look(self, kind: Kind, ledger: Ledger, floors: Mapping[str, int], known: int | None, *, anew: bool) -> _Look:
        mirror, floor = self._mirrors.get(kind), floors.get(kind.label, 0)
        if mirror is not None and not anew and mirror.await_version(floor, CATCH_UP_SECONDS):
            news = mirror.news(known)
            return _Look(news, news.changed, listed=False)
        items, version, unread = self._list(kind, READERS[kind])
        if mirror is not None and not anew:
            _log.warning("the watch lags: listed instead", kind=kind.name, wanted=floor, listed=version)
        if version < floor:
            ledger.forget_version(kind.label)
        news = News(0, items, whole=True, changed=version, unread=unread)
        if mirror is not None and mirror.items() == items:
            mirror.reach(version)
            version = 0  # nobody need know it: it may be that of another kind's change
        return _Look(news, version, listed=True)

    def _list(self, kind: Kind, read: Callable[[Manifest], Any]) -> tuple[dict[str, Any], int, bool]:
        listing = self._cluster.list(kind)
        items = {}
        for manifest in listing.items:
            try:
                items[str(manifest["metadata"]["name"])] = read(manifest)
            except ManifestError as error:
                _log.error("object cannot be read", error=str(error))
        return items, int(listing.resource_version), len(items) < len(listing.items)


class Memory:
    """What this process has planned, from which table and which reports. Nothing of it is needed: a process without
    any plans everything."""

    def __init__(self) -> None:
        self.views: Views | None = None
        """Of what this process watches; None if it lists."""
        self.planner = Replanner()
        self.epoch = ""
        self.change = 0
        self.looks: dict[str, str] = {}
        self.unplaced: Mapping[Address, str] = {}
        self._left: set[str] = set()
        self._left_since: float | None = None
        self._looked = float("-inf")
        self._lock = threading.Lock()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For one thread at a time; BusyError for any other."""
        if not self._lock.acquire(blocking=False):
            raise BusyError("this process publishes already")
        try:
            yield
        finally:
            self._lock.release()

    def forget_in_time(self) -> None:
        """Forgets everything every FORGET_SECONDS: should what is remembered ever differ from what is, then not for
        longer."""
        now = time.monotonic()
        if now - self._looked > FORGET_SECONDS:
            self.planner.forget()
            if self.views is not None:
                self.views.forget()
            self.epoch, self.change, self.looks, self._looked = "", 0, {}, now

    def leave(self, names: set[str]) -> None:
        """The status of these namespaces' addresses is still to be written."""
        self._left = self._left | names
        if not self._left:
            self._left_since = None
        elif self._left_since is None:
            self._left_since = time.monotonic()

    def leaves(self) -> bool:
        """Whether there is a status left to be written."""
        return bool(self._left)

    def left_for(self) -> float:
        """For how many seconds there has always been a status left to be written; 0 where there is none."""
        return time.monotonic() - self._left_since if self._left_since is not None else 0.0

    def take_left(self) -> set[str]:
        """What was left so far."""
        left, self._left = self._left, set()
        return left
