"""What people may have Hawse do. An action may be asked for twice, and is recorded: who, what, why, what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import structlog

from egress.actions import AuditEntry, RetryRun, Trouble, Verb
from egress.adapters import decisions, manifests, pausing
from egress.adapters.cluster import Cluster, ConflictError, Kind, NotFoundError
from egress.adapters.ledger import Ledger
from egress.adapters.retrying import retry
from egress.addresses import Address, AddressError, object_name, parse_address
from egress.messages import NAMESPACE_TASK, PLACE_TASK, PUBLISH_TASK, RECONCILE_TASK, TICKETS_TASK
from egress.objects import MOVE_ANNOTATION, OPT_OUT, POOL_ANNOTATION, Decision, EgressAddress, Phase, Verdict
from egress.operations import Outcome, PermanentError, Step, StepRecord, TransientError
from egress.tickets import DecisionError, key_of
from webhook.api.reading import Reading

TRIES = 5
MAX_WHY = 1000
SOURCE = "dashboard"
"""The way that a decision names which somebody took here, on behalf of the ticket system."""
FEW = 20
"""How many are tried again before the answer to whoever asked for all of them."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of many retries. `left` were not asked for, because of `problem`."""

    done: tuple[str, ...]
    refused: Mapping[str, str]
    """Namespace -> why."""
    left: int
    problem: str = ""


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
        self._runs = ThreadPoolExecutor(1, "retry")

    def retry(self, who: str, namespace: str, why: str = "") -> None:
        """Has everything that failed or waits of `namespace` tried again at once."""
        self._recorded(who, Verb.RETRY, namespace, why, lambda: self._retry(namespace, self._reading.claims(namespace)))

    def retry_all(self, who: str, namespaces: Sequence[str], why: str = "") -> Retried:
        """The same of many. What one of them is refused for keeps none of the others waiting; where something is away,
        the rest is left."""
        claims = self._reading.claims_by_namespace()
        done: list[str] = []
        refused: dict[str, str] = {}
        for namespace in namespaces:
            own = claims.get(namespace, ())
            try:
                self._recorded(who, Verb.RETRY, namespace, why, lambda n=namespace, c=own: self._retry(n, c))  # type: ignore[misc]
            except (PermanentError, ConflictError) as error:
                refused[namespace] = str(error)
            except TransientError as error:
                left = len(namespaces) - len(done) - len(refused)
                _log.error("not all are tried again", done=len(done), left=left, error=str(error))
                return Retried(tuple(done), refused, left, str(error))
            else:
                done.append(namespace)
        return Retried(tuple(done), refused, 0)

    def start_retry(self, who: str, trouble: Trouble, reason: str, namespaces: Sequence[str], why: str = "") -> str:
        """Has many tried again that have one trouble; the id of the run, by which its progress is shown.

        Up to FEW are asked for at once; more of them behind the answer's back, a run after the other, because each
        costs some milliseconds. A run that ends with the process leaves the rest as it was: they still have their
        trouble, and may be retried.
        """
        _check(why)
        run = self._ledger.keep_run(RetryRun(time.time(), who, trouble, reason, tuple(namespaces)))
        if len(namespaces) <= FEW:
            self.retry_all(who, namespaces, why)
        else:
            self._runs.submit(self.retry_all, who, tuple(namespaces), why)
        return run

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

        def run() -> str:
            pausing.pause(self._cluster, self._own, f"{who}: {why}")
            return ""

        self._recorded(who, Verb.PAUSE, "automation", why, run)

    def resume(self, who: str, why: str = "") -> None:
        """Ends the pause."""

        def run() -> str:
            pausing.resume(self._cluster, self._own)
            self._ask(RECONCILE_TASK)
            return ""

        self._recorded(who, Verb.PAUSE, "automation", f"resumed: {why}" if why else "resumed", run)

    def namespace_of(self, address: str) -> str:
        """Who has an address. PermanentError if it is nobody's."""
        return self._claim(_address(address))[0].namespace

    def _retry(self, namespace: str, claims: Collection[EgressAddress]) -> str:
        if not claims and self._reading.namespace(namespace) is None:
            raise NotFoundError(f"there is no namespace {namespace} with an egress address")
        profiles = set()
        for claim in claims:
            if claim.ticket is not None and claim.ticket.failed is not None:
                retry(self._cluster, parse_address(claim.address), time.time())
                profiles.add(claim.ticket.profile)
        self._ask(NAMESPACE_TASK, namespace)
        self._ask(PLACE_TASK)
        self._ask(PUBLISH_TASK)
        for profile in sorted(profiles):
            self._ask(TICKETS_TASK, profile)
        return namespace

    def _release(self, namespace: str) -> str:
        patch = {"metadata": {"annotations": {POOL_ANNOTATION: OPT_OUT}}}
        try:
            self._cluster.patch(Kind.NAMESPACE, namespace, patch)
        except NotFoundError:
            raise NotFoundError(f"there is no namespace {namespace}: what it had is in quarantine already") from None
        self._ask(NAMESPACE_TASK, namespace)
        return namespace

    def _move(self, address: Address, node: str) -> str:
        for _ in range(TRIES):
            claim, version = self._claim(address)
            if claim.phase is Phase.QUARANTINED:
                raise PermanentError(f"{address} is in quarantine: it is on no node")
            if claim.node == node and not claim.move_to:
                return claim.namespace
            patch = {"metadata": {"annotations": {MOVE_ANNOTATION: node}, "resourceVersion": version}}
            try:
                self._cluster.patch(Kind.EGRESS_ADDRESS, object_name(address), patch)
            except ConflictError:
                continue
            self._ask(PLACE_TASK)
            return claim.namespace
        raise ConflictError(f"EgressAddress {address} changes all the time: try again")

    def _decide(self, who: str, address: Address, verdict: Verdict, why: str) -> str:
        claim, _ = self._claim(address)
        if claim.ticket is None or claim.ticket.ended:
            raise PermanentError(f"nobody was asked about {address}: it has no ticket, and needs no decision")
        known = claim.decision
        if known is not None and (known.verdict, known.by, known.reason) == (verdict, who, why):
            return claim.namespace
        decision = Decision(verdict, who, time.time(), SOURCE, why)
        try:
            decisions.decide(self._cluster, address, key_of(claim), decision, time.time())
        except DecisionError as error:
            raise PermanentError(str(error)) from None
        self._ask(PUBLISH_TASK)
        return claim.namespace

    def _claim(self, address: Address) -> tuple[EgressAddress, str]:
        manifest = self._cluster.get(Kind.EGRESS_ADDRESS, object_name(address))
        if manifest is None:
            raise NotFoundError(f"{address} is assigned to nobody")
        return manifests.egress_address(manifest), str(manifest["metadata"]["resourceVersion"])

    def _recorded(self, who: str, verb: Verb, subject: str, why: str, run: Callable[[], str]) -> None:
        """Does it, and writes down what came of it: in the audit and the log, and in the history of the namespace that
        `run` gives, "" for none."""
        _check(why)
        outcome, namespace = "failed", ""
        try:
            namespace = run()
            outcome = "done"
        except (TransientError, PermanentError) as error:
            outcome = str(error)
            raise
        finally:
            _log.info("action", who=who, verb=verb.value, subject=subject, why=why, outcome=outcome)
            try:
                self._ledger.record_action(AuditEntry("", time.time(), who, verb, subject, why, outcome))
                if namespace:
                    address = subject if verb in (Verb.MOVE, Verb.APPROVE) else ""
                    message = f"{verb.value}: {why}" if why else verb.value
                    step = StepRecord(namespace, Step.ASKED, Outcome.DONE, time.time(), address=address, by=who)
                    self._ledger.record(replace(step, message=message))
            except TransientError as error:
                _log.error("an action is in this log alone", error=str(error))


def _check(why: str) -> None:
    if len(why) > MAX_WHY:
        raise PermanentError(f"the reason has {len(why)} characters; {MAX_WHY} are enough")


def _demand(why: str) -> None:
    if not why.strip():
        raise PermanentError("say why: it is kept with the action")


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except AddressError as error:
        raise PermanentError(str(error)) from None
