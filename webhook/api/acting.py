"""What people may have Hawse do. An action may be asked for twice, and is recorded: who, what, why, what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import structlog

from egress.adapters import decisions, manifests, pausing
from egress.adapters.cluster import Cluster, ConflictError, Kind, NotFoundError
from egress.adapters.ledger import Ledger
from egress.adapters.retrying import retry
from egress.addresses import Address, AddressError, object_name, parse_address
from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, TICKETS_TASK
from egress.objects import MOVE_ANNOTATION, OPT_OUT, POOL_ANNOTATION, Decision, EgressAddress, Phase, Verdict
from egress.operations import PermanentError, TransientError
from egress.tickets import DecisionError, key_of
from egress.views import AuditEntry, Verb
from webhook.api.reading import Reading

TRIES = 5
MAX_WHY = 1000
SOURCE = "dashboard"
"""The way that a decision names which somebody took here, on behalf of the ticket system."""
_log = structlog.get_logger()


class Acting:
    """Does what people ask for. `ask` asks the workers for a task; `own` is Hawse's own namespace.

    All raise PermanentError, with a message that says what to do, where it can never be, and TransientError where it
    may be a moment later.
    """

    def __init__(self, cluster: Cluster, ledger: Ledger, reading: Reading, ask: Callable[..., None], own: str) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._reading = reading
        self._ask = ask
        self._own = own

    def retry(self, who: str, namespaces: Iterable[str], why: str = "") -> list[str]:
        """Has everything that failed or waits of `namespaces` tried again at once; those of them."""
        done = []
        for namespace in namespaces:
            self._recorded(who, Verb.RETRY, namespace, why, lambda namespace=namespace: self._retry(namespace))  # type: ignore[misc]
            done.append(namespace)
        return done

    def release(self, who: str, namespace: str, why: str) -> None:
        """Takes a namespace's addresses away, by having it opt out of every pool: its traffic leaves with the nodes'
        IPs from then on."""
        _demand(why)
        self._recorded(who, Verb.RELEASE, namespace, why, lambda: self._release(namespace))

    def move(self, who: str, address: str, node: str, why: str = "") -> None:
        """Wishes for an address to be on `node`."""
        self._recorded(who, Verb.MOVE, address, f"to {node}: {why}" if why else f"to {node}",
                       lambda: self._move(_address(address), node))  # fmt: skip

    def approve(self, who: str, address: str, why: str, verdict: Verdict = Verdict.APPROVED) -> None:
        """Decides on behalf of the ticket system."""
        _demand(why)
        self._recorded(who, Verb.APPROVE, address, f"{verdict.value}: {why}",
                       lambda: self._decide(who, _address(address), verdict, why))  # fmt: skip

    def pause(self, who: str, why: str) -> None:
        """Pauses the automation."""
        _demand(why)
        self._recorded(who, Verb.PAUSE, "automation", why,
                       lambda: pausing.pause(self._cluster, self._own, f"{who}: {why}"))  # fmt: skip

    def resume(self, who: str, why: str = "") -> None:
        """Ends the pause."""

        def run() -> None:
            pausing.resume(self._cluster, self._own)
            self._ask(RECONCILE_TASK)

        self._recorded(who, Verb.PAUSE, "automation", f"resumed: {why}" if why else "resumed", run)

    def namespace_of(self, address: str) -> str:
        """Who has an address. PermanentError if it is nobody's."""
        return self._claim(_address(address))[0].namespace

    def _retry(self, namespace: str) -> None:
        detail = self._reading.namespace(namespace)
        if detail is None:
            raise NotFoundError(f"there is no namespace {namespace} with an egress address")
        profiles = set()
        for claim in self._reading.claims(namespace):
            if claim.ticket is not None and claim.ticket.failed is not None:
                retry(self._cluster, parse_address(claim.address), time.time())
                profiles.add(claim.ticket.profile)
        self._ask(NAMESPACE_TASK, namespace)
        self._ask(PLACE_TASK)
        self._ask(PUBLISH_TASK)
        for profile in sorted(profiles):
            self._ask(TICKETS_TASK, profile)

    def _release(self, namespace: str) -> None:
        patch = {"metadata": {"annotations": {POOL_ANNOTATION: OPT_OUT}}}
        try:
            self._cluster.patch(Kind.NAMESPACE, namespace, patch)
        except NotFoundError:
            raise NotFoundError(f"there is no namespace {namespace}: what it had is in quarantine already") from None
        self._ask(NAMESPACE_TASK, namespace)

    def _move(self, address: Address, node: str) -> None:
        for _ in range(TRIES):
            claim, version = self._claim(address)
            if claim.phase is Phase.QUARANTINED:
                raise PermanentError(f"{address} is in quarantine: it is on no node")
            if claim.node == node and not claim.move_to:
                return
            patch = {"metadata": {"annotations": {MOVE_ANNOTATION: node}, "resourceVersion": version}}
            try:
                self._cluster.patch(Kind.EGRESS_ADDRESS, object_name(address), patch)
            except ConflictError:
                continue
            self._ask(PLACE_TASK)
            return
        raise ConflictError(f"EgressAddress {address} changes all the time: try again")

    def _decide(self, who: str, address: Address, verdict: Verdict, why: str) -> None:
        claim, _ = self._claim(address)
        if claim.ticket is None or claim.ticket.ended:
            raise PermanentError(f"nobody was asked about {address}: it has no ticket, and needs no decision")
        known = claim.decision
        if known is not None and (known.verdict, known.by, known.reason) == (verdict, who, why):
            return
        decision = Decision(verdict, who, time.time(), SOURCE, why)
        try:
            decisions.decide(self._cluster, address, key_of(claim), decision, time.time())
        except DecisionError as error:
            raise PermanentError(str(error)) from None
        self._ask(PUBLISH_TASK)

    def _claim(self, address: Address) -> tuple[EgressAddress, str]:
        manifest = self._cluster.get(Kind.EGRESS_ADDRESS, object_name(address))
        if manifest is None:
            raise NotFoundError(f"{address} is assigned to nobody")
        return manifests.egress_address(manifest), str(manifest["metadata"]["resourceVersion"])

    def _recorded(self, who: str, verb: Verb, subject: str, why: str, run: Callable[[], None]) -> None:
        if len(why) > MAX_WHY:
            raise PermanentError(f"the reason has {len(why)} characters; {MAX_WHY} are enough")
        outcome = "failed"
        try:
            run()
            outcome = "done"
        except (TransientError, PermanentError) as error:
            outcome = str(error)
            raise
        finally:
            _log.info("action", who=who, verb=verb.value, subject=subject, why=why, outcome=outcome)
            try:
                self._ledger.record_action(AuditEntry("", time.time(), who, verb, subject, why, outcome))
            except TransientError as error:
                _log.error("an action is in this log alone", error=str(error))


def _demand(why: str) -> None:
    if not why.strip():
        raise PermanentError("say why: it is kept with the action")


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except AddressError as error:
        raise PermanentError(str(error)) from None
