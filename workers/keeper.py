"""Keeps the webhook's certificates: reads what is there, takes `certificates.decide`'s next step, and looks again."""

from __future__ import annotations

import base64
import binascii
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from cryptography.x509 import ExtensionNotFound

from egress.adapters.cluster import Cluster, ExistsError, Kind, Manifest, RefusedError
from egress.forms import learn
from egress.operations import PermanentError, TransientError, backoff
from workers import metrics, pki
from workers.certificates import Authority, Bundle, Issue, Keep, Policy, Serving, Step, Trust, View, decide

_log = structlog.get_logger()
_jitter = random.SystemRandom()
CONFIGURATION = "hawse"
SERVICE = "hawse-webhook"
SERVING_SECRET = "hawse-webhook-tls"  # noqa: S105 - a name
AUTHORITIES_SECRET = "hawse-webhook-ca"  # noqa: S105 - a name
AUTHORITIES_KEY = "authorities.json"
LOOK_SECONDS = 10.0
_KINDS = {kind.head["kind"]: kind for kind in (Kind.MUTATING_WEBHOOKS, Kind.VALIDATING_WEBHOOKS)}


def service_names(namespace: str) -> tuple[str, ...]:
    """The DNS names under which an API server calls the webhook's Service."""
    name = f"{SERVICE}.{namespace}.svc"
    return (name, f"{name}.cluster.local")


class _Kept(msgspec.Struct):
    """An authority in its Secret."""

    certificate: str
    key: str = ""
    announced: float | None = None


learn(_Kept)


class Keeper:
    """Several may run at once: every write is conditional on what was read, and who was late looks again."""

    def __init__(
        self, cluster: Cluster, namespace: str, policy: Policy, clock: Callable[[], float] = time.time
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._policy = policy
        self._clock = clock
        self._read: dict[str, Manifest | None] = {}

    def run(self, stop: threading.Event) -> None:
        """Looks every few seconds, until `stop`."""
        failures = 0
        while not stop.is_set():
            try:
                while not stop.is_set() and self.step():
                    pass
                failures, wait = 0, LOOK_SECONDS
            except (TransientError, PermanentError) as error:
                failures += 1
                wait = backoff(min(failures, 6), _jitter)
                _log.warning("certificates not kept", error=self.explained(error), wait=round(wait, 2))
            except (
                ValueError,
                ExtensionNotFound,
            ) as error:  # somebody else's certificate, of a form that ours never has
                failures += 1
                wait = backoff(min(failures, 6), _jitter)
                _log.error("a certificate cannot be used; delete its Secret", error=str(error), wait=round(wait, 2))
            stop.wait(wait)

    def step(self) -> bool:
        """Takes the next step, if there is one; whether there was."""
        now = self._clock()
        view = self.look()
        step = decide(now, view, self._policy)
        self._measure(view)
        if step is None:
            return False
        self._take(step, now)
        return True

    def look(self) -> View:
        """What is there. The configurations first: so whatever they trust by then is among the authorities read after
        them, or has been retired, and nobody takes a newcomer out whom another keeper has just put in."""
        self._read = {name: self._cluster.get(kind, CONFIGURATION) for name, kind in _KINDS.items()}
        bundles = {name: _bundles(found) for name, found in self._read.items() if found is not None}
        for name in (AUTHORITIES_SECRET, SERVING_SECRET):
            self._read[name] = self._cluster.get(Kind.SECRET, name, namespace=self._namespace)
        return View(_authorities(self._read[AUTHORITIES_SECRET]), _serving(self._read[SERVING_SECRET]), bundles)

    def _take(self, step: Step, now: float) -> None:
        policy = self._policy
        match step:
            case Keep(authorities, new):
                if new:
                    certificate, key = pki.make_authority(f"{SERVICE}-ca", now, policy.authority_lifetime)
                    authorities = (*authorities, Authority(certificate, key))
                kept = [_Kept(item.certificate.pem, item.key, item.announced) for item in authorities]
                self._write(AUTHORITIES_SECRET, "Opaque", {AUTHORITIES_KEY: msgspec.json.encode(kept).decode()})
                _log.info("authorities kept", authorities=len(authorities), new=new)
            case Trust(configuration, authorities):
                self._trust(configuration, pki.bundle(item.certificate for item in authorities))
                _log.info("authorities trusted", configuration=configuration, authorities=len(authorities))
            case Issue(authority, trusted):
                certificate, key = pki.issue(
                    policy.names, now, policy.serving_lifetime, authority.certificate, authority.key
                )
                texts = {"tls.crt": certificate.pem, "tls.key": key}
                texts["ca.crt"] = pki.bundle(item.certificate for item in trusted)
                self._write(SERVING_SECRET, "kubernetes.io/tls", texts)
                _log.info("certificate issued", names=policy.names, ends=certificate.ends)

    def _trust(self, configuration: str, bundle: str) -> None:
        found = self._read[configuration]
        assert found is not None  # noqa: S101 - decide trusts only where there is a configuration
        encoded = base64.b64encode(bundle.encode()).decode()
        webhooks = [
            webhook | {"clientConfig": webhook.get("clientConfig", {}) | {"caBundle": encoded}}
            for webhook in found["webhooks"]
        ]
        patch = {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, "webhooks": webhooks}
        self._cluster.patch(_KINDS[configuration], CONFIGURATION, patch)

    def _write(self, name: str, secret_type: str, texts: dict[str, str]) -> None:
        data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
        found = self._read[name]
        if found is None:
            metadata = {"name": name, "namespace": self._namespace}
            try:
                self._cluster.create(Kind.SECRET, {"metadata": metadata, "type": secret_type, "data": data})
            except ExistsError as error:
                raise TransientError(f"somebody else has just made the Secret {name}") from error
            return
        patch = {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, "data": data}
        self._cluster.patch(Kind.SECRET, name, patch, namespace=self._namespace)

    def _measure(self, view: View) -> None:
        if view.serving is not None:
            metrics.certificate_expiry.labels("serving").set(view.serving.certificate.ends)
        if view.authorities:
            metrics.certificate_expiry.labels("authority").set(view.authorities[-1].certificate.ends)

    def explained(self, error: Exception) -> str:
        """What to tell of an error: for a refusal, which rights are missing."""
        if isinstance(error, RefusedError):
            return (
                f"bind the Role and the ClusterRole hawse-certificates to this user (Secrets {SERVING_SECRET} and "
                f"{AUTHORITIES_SECRET} in namespace {self._namespace}, the webhook configurations {CONFIGURATION}), "
                f"or set HAWSE_CERTIFICATES=external: {error}"
            )
        return str(error)


def _bundles(configuration: Manifest) -> tuple[Bundle, ...]:
    return tuple(_bundle(webhook) for webhook in configuration.get("webhooks") or [])


def _bundle(webhook: dict[str, Any]) -> Bundle:
    """What a webhook trusts. What cannot be read trusts nobody, and will be written anew."""
    try:
        return frozenset(pki.read_certificates(_decoded(webhook.get("clientConfig", {}).get("caBundle"))))
    except pki.PkiError:
        return frozenset()


def _authorities(secret: Manifest | None) -> tuple[Authority, ...] | None:
    if secret is None:
        return None
    try:
        kept = msgspec.json.decode(_field(secret, AUTHORITIES_KEY), type=list[_Kept])
        read = [Authority(pki.read_certificates(item.certificate)[0], item.key, item.announced) for item in kept]
    except (msgspec.MsgspecError, pki.PkiError) as error:
        _log.error("the authorities' Secret cannot be read, and is made anew", error=str(error))
        return None
    # A key that does not belong to its certificate signs nothing that anybody accepts.
    return tuple(item if item.certificate.belongs_to(item.key) else Authority(item.certificate) for item in read)


def _serving(secret: Manifest | None) -> Serving | None:
    if secret is None:
        return None
    try:
        certificate = pki.read_certificates(_field(secret, "tls.crt"))[0]
    except pki.PkiError:
        return None
    return Serving(certificate, certificate.belongs_to(_field(secret, "tls.key")))


def _field(secret: Manifest, name: str) -> str:
    return _decoded((secret.get("data") or {}).get(name))


def _decoded(text: object) -> str:
    """A base64 text in plain; "" where it is none."""
    try:
        return base64.b64decode(str(text or ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
