"""`/tickets/PROFILE/callback`: what a ticket system has decided, signed by it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from http import HTTPStatus

import structlog
from celery import Celery
from flask import Blueprint, Response, request
from kombu.exceptions import OperationalError

from egress import ticket_profiles
from egress.adapters import decisions, manifests
from egress.adapters.cluster import Cluster, Kind
from egress.adapters.ledger import Ledger
from egress.addresses import Address, object_name
from egress.messages import PUBLISH_TASK, queue_of, sending_config
from egress.objects import Decision, EgressAddress
from egress.operations import Outcome, PermanentError, Step, StepRecord, TransientError
from egress.settings import Settings
from egress.ticket_profiles import Profiles, ProfilesError
from egress.tickets import DecisionError
from webhook.api import message
from webhook.api.message import ForgedError, Message, MessageError
from webhook.api.problems import problem

MAX_BODY = 64 * 1024
ASK_GUARD_SECONDS = 15.0
"""How long nobody else asks for the same, unless it has been worked on by then."""
_log = structlog.get_logger()


class UnknownError(Exception):
    """There is no such assignment whose ticket is this profile's."""


class Desk:
    """Takes decisions: into the object first, whatever else comes after."""

    def __init__(self, cluster: Cluster, ledger: Ledger, publish: Callable[[], None]) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._publish = publish

    def take(self, profile: str, received: Message) -> None:
        """Writes the decision, and has the nodes' table follow. Nothing is done where it is the last one already.

        UnknownError, DecisionError where a later one is known or the assignment is over; TransientError if the sender
        must send it again.
        """
        claim = self._claim(profile, received.address)
        if self._is_reused(profile, received):
            raise DecisionError("another message had this webhook-id")
        if _same(claim.decision, received):
            return
        try:
            claim = decisions.decide(self._cluster, received.address, received.key, received.decision, time.time())
        except DecisionError:
            if not _same(self._claim(profile, received.address).decision, received):
                raise
            return  # the same message was taken meanwhile by another thread or process
        _log.info(
            "decided",
            namespace=claim.namespace,
            address=claim.address,
            profile=profile,
            verdict=received.decision.verdict.value,
            by=received.decision.by,
        )
        self._record(profile, claim, received)
        self._publish()

    def _claim(self, profile: str, address: Address) -> EgressAddress:
        manifest = self._cluster.get(Kind.EGRESS_ADDRESS, object_name(address))
        claim = manifests.egress_address(manifest) if manifest is not None else None
        if claim is None or claim.ticket is None or claim.ticket.profile != profile:
            raise UnknownError
        return claim

    def _is_reused(self, profile: str, received: Message) -> bool:
        """Whether another message had the same id lately. Only what was taken is remembered: what failed may come
        again. Redis may have forgotten: what a decision replaces is in the object."""
        try:
            return self._ledger.recall(_note(profile, received)) not in ("", received.digest)
        except TransientError as error:
            _log.warning("ids of messages are not compared", error=str(error))
            return False

    def _record(self, profile: str, claim: EgressAddress, received: Message) -> None:
        decision = received.decision
        said = f"{decision.verdict.value} by {profile}" + (f": {decision.reason}" if decision.reason else "")
        step = StepRecord(
            claim.namespace,
            Step.DECISION,
            Outcome.DONE,
            time.time(),
            address=claim.address,
            message=said,
            by=decision.by,
            operation=claim.operation,
        )
        try:
            self._ledger.remember(_note(profile, received), received.digest, 2 * message.TOLERANCE)
            self._ledger.record(step)
        except TransientError as error:
            _log.warning("the history lacks a decision", namespace=claim.namespace, error=str(error))


_REFUSED = (ForgedError, MessageError, UnknownError, DecisionError)


def _same(decision: Decision | None, received: Message) -> bool:
    return decision == received.decision


def _note(profile: str, received: Message) -> str:
    return f"callback:{profile}:{hashlib.sha256(received.decision.id.encode()).hexdigest()}"


def blueprint(profiles: Callable[[], Profiles], desk: Desk) -> Blueprint:
    """The callback of each profile that has one."""
    callbacks = Blueprint("callbacks", __name__, url_prefix="/tickets")

    @callbacks.post("/<profile>/callback")
    def callback(profile: str) -> Response:
        found = profiles().get(profile)
        if found is None or found.callback is None:
            return problem(HTTPStatus.NOT_FOUND)
        if request.mimetype != "application/json" or "Content-Encoding" in request.headers:
            return problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json, as it is")
        body = request.get_data()
        if len(body) > MAX_BODY:
            return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            secrets = ticket_profiles.secrets(found.callback.secret_files)
            received = message.read(body, dict(request.headers), secrets)
            desk.take(profile, received)
        except (*_REFUSED, ProfilesError, TransientError, PermanentError) as error:
            return _refusal(profile, error)
        taken = Response(status=HTTPStatus.NO_CONTENT)
        del taken.headers["Content-Type"]
        return taken

    return callbacks


def _refusal(profile: str, error: Exception) -> Response:
    match error:
        case ForgedError():
            _log.warning("callback refused", profile=profile, reason=str(error))
            return problem(HTTPStatus.UNAUTHORIZED, WWW_Authenticate="StandardWebhooks")
        case MessageError():
            return problem(HTTPStatus.BAD_REQUEST, str(error))
        case UnknownError():
            return problem(HTTPStatus.NOT_FOUND, "no ticket of this profile is about that address")
        case DecisionError():
            return problem(HTTPStatus.CONFLICT, str(error))
    _log.error("callback not taken", profile=profile, error=str(error))  # nothing that its sender could mend
    return problem(HTTPStatus.SERVICE_UNAVAILABLE)


def publisher(settings: Settings, ledger: Ledger) -> Callable[[], None]:
    """Asks the workers for `publish`, unless somebody has. What cannot be asked for is found by the watch and by the
    next reconcile."""
    celery = Celery("hawse-api")
    celery.conf.update(sending_config(settings.redis_url))
    options = {"socket_timeout": settings.redis_timeout, "socket_connect_timeout": settings.redis_timeout}
    celery.conf.broker_transport_options = celery.conf.broker_transport_options | options

    def publish() -> None:
        try:
            if not ledger.first_to(PUBLISH_TASK, ASK_GUARD_SECONDS):
                return
            try:
                celery.send_task(PUBLISH_TASK, queue=queue_of(PUBLISH_TASK), retry=False)
            except (OperationalError, OSError):
                ledger.done_with(PUBLISH_TASK)  # nothing waits: the next ask must not believe so
                raise
        except (OperationalError, OSError, TransientError) as error:
            _log.warning("publish is not asked for", error=str(error))

    return publish
