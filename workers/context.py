"""What every task works with: the settings, the ledger, the cluster, and a way to ask for another task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog

from egress.adapters import manifests
from egress.adapters.cluster import Cluster, Kind, Manifest
from egress.adapters.ledger import Ledger, name_holder
from egress.addresses import Address, object_name
from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, queue_of
from egress.networks import Network
from egress.objects import EgressAddress, EgressPool, HostSubnet, Namespace, NetNamespace
from egress.operations import Outcome, Step, StepRecord, TransientError
from egress.settings import Settings
from workers import news
from workers.news import News
from workers.view import WATCHED, Memory, Views

T = TypeVar("T")
_log = structlog.get_logger()
NAMESPACE_LABEL = "egress.hawse.dev/namespace"
"""On an EgressAddress: its namespace, so that one namespace's addresses can be listed."""
ASK_GUARD_SECONDS = 15.0
"""How long an ask that may have been lost with a killed worker keeps others quiet; in a burst it merely waits."""
COMPLAINT_SECONDS = 3600.0
MANY_WAITING = 10
"""How many namespaces wait for their tasks, at least, where what can wait does."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What is asked for and written down once for all that is worked on together."""

    asks: dict[tuple[str, tuple[str, ...], float], None] = field(default_factory=dict)
    steps: list[StepRecord] = field(default_factory=list)


@dataclass(frozen=True)
class Context:
    """Shared by the tasks of one process. `send` queues a task: (task, arguments, queue, seconds to wait). `network`
    says who programs the nodes; it may have to ask the cluster first."""

    settings: Settings
    ledger: Ledger
    cluster: Cluster
    send: Callable[[str, list[Any], str, float], None]
    patience: float = 0.0
    """For how many seconds a namespace's task waits for the nodes, where no other namespace waits."""
    memory: Memory = field(default_factory=Memory, compare=False)
    network: Callable[[], Network] = lambda: Network.RUNNER
    news: News | None = field(default=None, compare=False)
    """Who writes Events; None if that is waited for."""
    gathered: Gathered | None = field(default=None, compare=False)
    """Where asks and history wait until what is worked on together is done; None if they do not."""

    @property
    def views(self) -> Views:
        """Where publishing gets the objects from."""
        return self.memory.views or Views(self.cluster)

    def crowded(self) -> bool:
        """Whether many namespaces wait for their tasks, so that what is only told can wait."""
        return self.ledger.namespaces_waiting() >= MANY_WAITING

    def saw(self, kind: Kind, resource_version: str) -> None:
        """An object of `kind` is at this version: whoever works from memory from now on must know it."""
        if kind in WATCHED:
            self.ledger.saw_versions({kind.label: int(resource_version)})

    @contextmanager
    def gathering(self) -> Iterator[Context]:
        """Gives a context for what is worked on together: its asks are made, and its history written, at the end. Of
        each is most that is asked for the same. One who waits for what they bring about would wait in vain."""
        gathered = Gathered()
        try:
            yield replace(self, gathered=gathered)
        finally:
            for task, arguments, delay in gathered.asks:
                self.ask(task, *arguments, delay=delay)
            self.ledger.record(*gathered.steps)

    def ask_for(self, namespaces: Iterable[str]) -> None:
        """Asks for the tasks of all these namespaces at once."""
        if names := list(namespaces):
            self.send(NAMESPACE_TASK, names, queue_of(NAMESPACE_TASK), 0.0)

    def ask(self, task: str, *arguments: str, delay: float = 0.0) -> None:
        """Asks for a task of the control plane, unless the same one is waiting already: a burst becomes one run. It
        runs `delay` seconds from now, at the earliest."""
        if self.gathered is not None:
            self.gathered.asks[task, arguments, delay] = None
            return
        if task == NAMESPACE_TASK and not delay:
            self.ask_for(arguments)  # they wait in a list where each is once
            return
        if task in (PUBLISH_TASK, PLACE_TASK):
            written = {kind.label: version for kind, version in self.cluster.written().items() if kind in WATCHED}
            if written:
                self.ledger.saw_versions(written)
        self._ask(":".join((task, *arguments)), task, list(arguments), queue_of(task), delay)

    def ask_again(self, task: str, *arguments: str, delay: float, delayed: bool = False) -> None:
        """Asks for a task whose turn it is not yet, `delay` seconds from now; unless one waits so already, which
        `delayed` says of the one that asks. Whoever asks meanwhile asks for that one."""
        what, guard = _again(task, arguments), delay + ASK_GUARD_SECONDS
        if delayed:
            self.ledger.done_with(what)
        self.ledger.first_to(":".join((task, *arguments)), guard)
        if self.ledger.first_to(what, guard):
            try:
                self.send(task, list(arguments), queue_of(task), delay)
            except TransientError:
                self.ledger.done_with(what)
                raise

    def hurry(self, *tasks: str) -> None:
        """Lets nobody rest who does one of `tasks`, and whoever asks for one next be heard at once, though another ask
        waits for the end of a rest, perhaps with a process that has died meanwhile."""
        self.ledger.end_rest(*tasks)
        self.ledger.done_with(*tasks, *(_again(task, ()) for task in tasks))

    def began(self, task: str, *arguments: str, delayed: bool) -> None:
        """Lets the next ask for this task through: from now on whoever asks may have seen what this run will not.
        `delayed`: it was not to run at once."""
        done = [":".join((task, *arguments))]
        if delayed:
            done.append(_again(task, arguments))
        self.ledger.done_with(*done)

    def _ask(self, what: str, task: str, arguments: list[Any], queue: str, delay: float) -> None:
        # One for later must not keep quiet whoever asks for it now, or for sooner.
        what, guard = (f"{what}:in {delay:g} s", delay) if delay else (what, ASK_GUARD_SECONDS)
        if self.ledger.first_to(what, guard):
            try:
                self.send(task, arguments, queue, delay)
            except TransientError:
                self.ledger.done_with(what)  # nothing waits: the next ask must not believe so
                raise

    def record(
        self, step: Step, namespace: str, *, outcome: Outcome = Outcome.DONE, attempt: int = 1, **details: str
    ) -> None:
        """Writes a finished step into the namespace's history and into the log. `details`: address, node, message,
        traceback (which the log has from elsewhere), and operation where it is another than the task's."""
        operation = details.pop("operation", "") or structlog.contextvars.get_contextvars().get("operation", "")
        known_as = {"operation": operation} if operation else {}
        told = {name: text for name, text in details.items() if name != "traceback"}
        _log.info(step.value, namespace=namespace, outcome=outcome.value, attempt=attempt, **told, **known_as)
        record = StepRecord(namespace, step, outcome, time.time(), attempt, **details, **known_as)
        if self.gathered is not None:
            self.gathered.steps.append(record)
        else:
            self.ledger.record(record)

    def tell(self, namespace: str, uid: str, reason: str, message: str, *, warning: bool = False) -> None:
        """Has a Kubernetes Event written; one that cannot be is let go, for it is only news."""
        item = news.Item(namespace, uid, reason, message, warning)
        if self.news is not None:
            self.news.tell(item)
        else:
            news.write(self.cluster, item)

    def complain(self, namespace: Namespace, reason: str, message: str) -> None:
        """Writes a warning Event, at most once an hour for each reason: what is tried again fails again of the same."""
        if self.ledger.first_to(f"event:{namespace.uid}:{reason}", COMPLAINT_SECONDS):
            self.tell(namespace.name, namespace.uid, reason, message, warning=True)

    def host_subnets(self) -> list[HostSubnet]:
        """Every HostSubnet that can be read; a broken one is logged and left out."""
        return readable(manifests.host_subnet, self.cluster.list(Kind.HOST_SUBNET).items)

    def net_namespaces(self) -> list[NetNamespace]:
        """Every NetNamespace that can be read."""
        return readable(manifests.net_namespace, self.cluster.list(Kind.NET_NAMESPACE).items)

    def pools(self) -> list[EgressPool]:
        """Every EgressPool that can be read and whose addresses can be."""
        return readable(
            lambda item: manifests.egress_pool(item, strict=True), self.cluster.list(Kind.EGRESS_POOL).items
        )

    def egress_addresses(self, namespace: str = "") -> list[EgressAddress]:
        """Every EgressAddress whose name is an address, or those of one namespace."""
        label = f"{NAMESPACE_LABEL}={namespace}" if namespace else ""
        return readable(
            lambda item: manifests.egress_address(item, strict=True),
            self.cluster.list(Kind.EGRESS_ADDRESS, label=label).items,
        )


def _again(task: str, arguments: Sequence[str]) -> str:
    return ":".join((task, *arguments, "again"))


def readable(read: Callable[[Manifest], T], items: Iterable[Manifest]) -> list[T]:
    """What `read` makes of each manifest. One broken object stops no other: it is logged and left out."""
    result = []
    for item in items:
        try:
            result.append(read(item))
        except manifests.ManifestError as error:
            _log.error("object cannot be read", error=str(error))
    return result


def holder_of_broken(manifest: Manifest, address: Address) -> str:
    """Who has the address of an EgressAddress that cannot be read: the namespace that it names, else the object itself.

    Its address is never another's meanwhile.
    """
    try:
        return name_holder(str(manifest["spec"]["namespace"]["name"]))
    except (KeyError, TypeError):
        return f"object/{object_name(address)}"
