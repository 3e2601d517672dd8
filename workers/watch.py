"""Turns changes of the cluster's objects into tasks: list, then watch, resume, and list again when too old."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import structlog

from egress import pools
from egress.adapters import manifests
from egress.adapters.cluster import Change, GoneError, Kind
from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, TICKETS_TASK
from egress.objects import CREATED_ANNOTATION, MOVE_ANNOTATION, RETRY_TICKET_ANNOTATION
from egress.operations import PermanentError, TransientError, backoff
from egress.ovn import OWN_LABEL, is_own
from workers import metrics, placing
from workers.context import Context
from workers.leader import Crew

_log = structlog.get_logger()
_jitter = random.SystemRandom()
SAY_SECONDS = 5.0
"""How often it is said that every change is counted; without a word for three times as long nobody believes it."""


def tasks_for(kind: Kind, change: Change) -> list[tuple[str, ...]]:
    """The tasks that a change may give work to, each with its arguments. Pure.

    More than needed costs a look; less would leave work until the next full reconcile.
    """
    name = change.manifest["metadata"]["name"]
    tasks: list[tuple[str, ...]] = []
    match kind:
        case Kind.NAMESPACE:
            tasks = [(NAMESPACE_TASK, name)]
        case Kind.NET_NAMESPACE if _is_hawses_own(change):
            tasks = [(PUBLISH_TASK,)]
        case Kind.NET_NAMESPACE:
            tasks = [(PUBLISH_TASK,), (PLACE_TASK,), (NAMESPACE_TASK, name)]  # egressCIDRs may hold what it lists
        case Kind.HOST_SUBNET:
            tasks = [(PUBLISH_TASK,), (PLACE_TASK,)]
        case Kind.EGRESS_ADDRESS if change.deleted:
            tasks = [(NAMESPACE_TASK, change.manifest.get("spec", {}).get("namespace", {}).get("name", "default"))]
        case Kind.EGRESS_ADDRESS:
            if MOVE_ANNOTATION in (change.manifest["metadata"].get("annotations") or {}):
                tasks.append((PLACE_TASK,))
            if change.manifest.get("spec", {}).get("approval") == "required":
                tasks.append((PUBLISH_TASK,))  # whoever decides writes nothing but the object
            if RETRY_TICKET_ANNOTATION in (change.manifest["metadata"].get("annotations") or {}):
                profile = (change.manifest.get("status", {}).get("ticket") or {}).get("profile")
                tasks += [(TICKETS_TASK, profile)] if profile else []
        case Kind.EGRESS_POOL:
            tasks = [(RECONCILE_TASK,)]
        case Kind.NODE:
            tasks = [(PLACE_TASK,)]
        case Kind.EGRESS_IP:
            tasks = [(PUBLISH_TASK,), *_of_egress_ip(name, change)]
    return [task for task in tasks if task[0] != NAMESPACE_TASK or not pools.is_system(task[1])]


def _of_egress_ip(name: str, change: Change) -> list[tuple[str, ...]]:
    labels = change.manifest["metadata"].get("labels") or {}
    if not is_own(name, labels):
        return [(RECONCILE_TASK,)]  # it may take any namespace, or give it back
    return [(NAMESPACE_TASK, labels[OWN_LABEL])] if change.deleted else []


def _is_hawses_own(change: Change) -> bool:
    """Whether this is most likely Hawse's own write: in a burst half of all changes are."""
    annotations = change.manifest["metadata"].get("annotations") or {}
    return (
        not change.deleted and annotations.get(CREATED_ANNOTATION) == "true" and bool(change.manifest.get("egressIPs"))
    )


class Watcher:
    """Watches one kind for ever, in the thread that calls `run`."""

    def __init__(self, kind: Kind, context: Context) -> None:
        self.kind = kind
        self._context = context
        self._known: dict[str, object] = {}
        self._listed = False
        self._broken = False

    def verdict(self) -> str | None:
        """Why nothing is known of this kind yet; None once it was listed."""
        return None if self._listed else f"{self.kind.path()} is not listed yet"

    def hears(self) -> bool:
        """Whether the last attempt to hear of changes succeeded."""
        return self._listed and not self._broken

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. Whatever fails is tried again: from where the watch was, or from a new list."""
        version, failures = "", 0
        while not stop.is_set():
            try:
                if not version:
                    version = self._context.cluster.list(self.kind).resource_version
                    self._context.ask(RECONCILE_TASK)  # a list may hide any number of changes
                    _log.info("listed", kind=self.kind.name, resource_version=version)
                    self._listed = True
                    self._context.ledger.count_change(self.kind.label)
                    self._broken = False
                for change in self._context.cluster.watch(self.kind, version):
                    failures, self._broken = 0, False
                    if not change.bookmark:
                        metrics.watch_events.labels(self.kind.label).inc()
                        self._handle(change)
                    version = change.resource_version
                    if stop.is_set():
                        return
                self._broken = False  # it ended as it should, perhaps because there was nothing to say
            except GoneError:
                metrics.watch_restarts.labels(self.kind.label).inc()
                _log.info("watch too old, listing again", kind=self.kind.name)
                version = ""
            except (TransientError, PermanentError) as error:
                failures, self._broken = failures + 1, True
                metrics.watch_restarts.labels(self.kind.label).inc()
                wait = backoff(min(failures, 6), _jitter)
                _log.warning("watch broke", kind=self.kind.name, error=str(error), wait=round(wait, 2))
                stop.wait(wait)

    def _handle(self, change: Change) -> None:
        look = self._look(change)
        if look is not None and self._known.get(change.manifest["metadata"]["name"]) == look:
            return
        self._context.ledger.count_change(self.kind.label)  # first: whoever looks from now on knows that there is more
        tasks = tasks_for(self.kind, change)
        if tasks:
            self._context.saw(self.kind, change.resource_version)
        for task, *arguments in tasks:
            if not (task == PLACE_TASK and self._is_placements(change)):
                self._context.ask(task, *arguments)
        self._know(change, look)  # last: what could not be told is told when the watch resumes

    def _is_placements(self, change: Change) -> bool:
        """Whether this is what placement itself wrote: it knows. Each run would else bring about another that finds
        nothing."""
        if self.kind is not Kind.HOST_SUBNET or change.deleted:
            return False
        written = self._context.ledger.recall(placing.own_patch(change.manifest["metadata"]["name"]))
        return written == change.resource_version

    def _look(self, change: Change) -> object:
        """What of a change may give work to anybody, None for all of it: one that looks as the last did is no news.

        A kubelet writes its node's status every few seconds; only what placement looks at is news. A pool's status is
        Hawse's own, and written in every second of a burst; what changes its generation is news.
        """
        if change.deleted:
            return None
        if self.kind is Kind.EGRESS_POOL:
            metadata = change.manifest["metadata"]
            return metadata.get("uid"), metadata.get("generation")
        if self.kind is Kind.NODE:
            with suppress(manifests.ManifestError):  # placement leaves it out, and says so
                return manifests.node(change.manifest)
        return None

    def _know(self, change: Change, look: object) -> None:
        name = change.manifest["metadata"]["name"]
        if look is None:
            self._known.pop(name, None)
        else:
            self._known[name] = look


def start_all(watchers: Sequence[Watcher], context: Context, crew: Crew, stop: threading.Event) -> None:
    """One thread for each, until `stop`, and one that says that all of them hear."""
    for watcher in watchers:
        crew.start(f"watch-{watcher.kind.label}", partial(watcher.run, stop))
    crew.start("watching", partial(_say_so, watchers, context, stop))


def _say_so(watchers: Sequence[Watcher], context: Context, stop: threading.Event) -> None:
    while not stop.wait(SAY_SECONDS):
        try:
            if all(watcher.hears() for watcher in watchers):
                context.ledger.watching(3 * SAY_SECONDS)
        except TransientError as error:
            _log.info("cannot say that changes are counted", error=str(error))
