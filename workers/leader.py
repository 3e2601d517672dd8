"""One acts, the others stand by: leader election by a Lease of the API server (docs/decisions/0012-leases.md)."""

from __future__ import annotations

import datetime
import math
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from egress.adapters.cluster import Cluster, ExistsError, Kind, Manifest, RefusedError
from egress.health import Pulse
from egress.operations import PermanentError, TransientError

_log = structlog.get_logger()


class LeaseLostError(TransientError):
    """Whoever led does not any more; the message says why. It must stop acting at once."""


@dataclass(frozen=True, slots=True)
class Timing:
    """In seconds. `duration`: without a renewal for that long, another may take over. `renew_deadline`: without one
    for that long, the leader gives up. `retry`: between two looks, and what each request may take."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0


class Election:
    """One candidate for the Lease `name`.

    No clock is compared with another machine's: a Lease has run out when *this* process has seen it unchanged for as
    long as it is good for. The holder counts from before its renewal was sent, everybody else from after they read it.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str, timing: Timing) -> None:
        """`cluster` is for this election alone, with `timing.retry` as its timeout."""
        self.identity = f"{socket.gethostname()}_{uuid.uuid4()}"
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._timing = timing
        self._pulse = Pulse(f"the election of {name}", 10 * (timing.retry + 1))
        self._seen = ""
        self._seen_since = 0.0
        self._holder = ""
        self._renewed = 0.0
        self._problem: str | None = f"the Lease {namespace}/{name} has not been read yet"
        self.leads = False

    def verdict(self) -> str | None:
        """Why this candidate can neither lead nor stand by; None when it can."""
        return self._problem

    def alive(self) -> str | None:
        """Whether the election goes on: for a liveness probe."""
        return self._pulse.verdict()

    def acquire(self, stop: threading.Event) -> bool:
        """Stands by until elected: True. False when `stop` was set before."""
        while not stop.is_set():
            self._pulse.beat()
            try:
                self.leads = self._attempt()
                if self.leads:
                    _log.info("leads", lease=self._name, identity=self.identity)
                    return True
            except (TransientError, PermanentError) as error:
                self._complain(error)
            stop.wait(self._timing.retry)
        return False

    def hold(self, stop: threading.Event) -> None:
        """Renews until `stop` is set. LeaseLostError when the Lease is another's, or could not be renewed in time."""
        while not stop.wait(self._timing.retry):
            self._pulse.beat()
            try:
                held = self._attempt()
            except (TransientError, PermanentError) as error:
                self._complain(error)
                if time.monotonic() + self._timing.retry > self._renewed + self._timing.renew_deadline:
                    raise LeaseLostError(f"the Lease {self._name} could not be renewed: {error}") from error
                continue
            if not held:
                raise LeaseLostError(f"the Lease {self._name} was taken by {self._holder}")

    def release(self) -> None:
        """Gives the Lease back, so that the next one need not wait for it to run out. Call it after acting ended."""
        try:
            lease = self._read()
            if lease is not None and _spec(lease).get("holderIdentity") == self.identity:
                self._write(lease, {"holderIdentity": None, "renewTime": _now()})
                _log.info("released", lease=self._name)
        except (TransientError, PermanentError) as error:
            _log.warning("not released: it runs out by itself", lease=self._name, error=str(error))

    def _attempt(self) -> bool:
        """Takes or renews the Lease if it may be; whether it is ours now."""
        began = time.monotonic()
        lease = self._read()
        if lease is None:
            self._create()
        else:
            holder = str(_spec(lease).get("holderIdentity") or "")
            if holder not in ("", self.identity) and not self._ran_out(lease):
                if holder != self._holder:
                    _log.info("stands by", lease=self._name, leader=holder)
                self._holder, self._problem = holder, None
                return False
            self._write(lease, self._claim(lease))
        self._holder, self._renewed, self._problem = self.identity, began, None
        return True

    def _read(self) -> Manifest | None:
        return self._cluster.get(Kind.LEASE, self._name, namespace=self._namespace)

    def _ran_out(self, lease: Manifest) -> bool:
        version = str(lease["metadata"]["resourceVersion"])
        if version != self._seen:
            self._seen, self._seen_since = version, time.monotonic()
        good_for = _spec(lease).get("leaseDurationSeconds")
        seconds = float(good_for) if isinstance(good_for, int) else self._timing.duration
        return time.monotonic() - self._seen_since > seconds

    def _claim(self, lease: Manifest | None) -> dict[str, Any]:
        """The Lease's spec as we want it."""
        spec = _spec(lease or {})
        now = _now()
        claim = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": math.ceil(self._timing.duration),
            "renewTime": now,
        }
        if spec.get("holderIdentity") != self.identity:
            transitions = spec.get("leaseTransitions")
            claim |= {"acquireTime": now, "leaseTransitions": (transitions or 0) + 1 if lease else 0}
        return claim

    def _create(self) -> None:
        metadata = {"name": self._name, "namespace": self._namespace}
        try:
            self._cluster.create(Kind.LEASE, {"metadata": metadata, "spec": self._claim(None)})
        except ExistsError as error:
            raise TransientError(f"somebody else has just made the Lease {self._name}") from error

    def _write(self, lease: Manifest, spec: dict[str, Any]) -> None:
        patch = {"metadata": {"resourceVersion": lease["metadata"]["resourceVersion"]}, "spec": spec}
        self._cluster.patch(Kind.LEASE, self._name, patch, namespace=self._namespace)

    def _complain(self, error: Exception) -> None:
        text = str(error)
        if isinstance(error, RefusedError):
            text = (
                f"the Lease {self._namespace}/{self._name} is refused to this user: bind the Role {self._name}-leader "
                f"in namespace {self._namespace} (create, get and patch of leases) to it: {text}"
            )
        if text != self._problem:
            _log.error("no election", lease=self._name, error=text)
        self._problem = text


def _spec(lease: Manifest) -> dict[str, Any]:
    spec = lease.get("spec")
    return spec if isinstance(spec, dict) else {}


def _now() -> str:
    """For people: nobody here compares it with a clock."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Crew:
    """The threads of a leader: should one end by itself, so does the process, that nothing looks as if it ran."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._threads: list[threading.Thread] = []
        self.failed = False

    def start(self, name: str, run: Callable[[], None]) -> threading.Thread:
        """Runs `run` in a thread of its own, which it should leave only after the event was set."""

        def guarded() -> None:
            try:
                run()
            finally:
                if not self._stop.is_set():
                    _log.error("ended by itself", thread=name)
                    self.failed = True
                    self._stop.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self, seconds: float) -> None:
        """Waits until all have ended, at most so long; what still hangs then dies with the process."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
