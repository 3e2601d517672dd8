"""Admission webhooks: which of them a request concerns, the calls over TLS, and what comes of their answers.

The mutating ones run one after the other in the order of their configurations' names, each seeing what the one before
it made; then the validating ones run at once. Requests do not wait for each other. A mutating webhook whose
reinvocationPolicy is IfNeeded is called once more if a later one has changed the object. Not acted upon: matchPolicy (a
rule names the very version that is requested) and matchConditions (there is no CEL here: all of them count as met).
"""

import asyncio
import base64
import binascii
import hashlib
import json
import logging
import ssl
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus

import aiohttp
import msgspec

from lab.apiserver import errors
from lab.apiserver.auth import User
from lab.apiserver.errors import ApiError
from lab.apiserver.objects import Json
from lab.apiserver.patches import json_patch
from lab.apiserver.resources import MUTATING, NAMESPACES, VALIDATING, Resource
from lab.apiserver.selectors import by_label_selector
from lab.apiserver.store import Store

_log = logging.getLogger(__name__)
_REVIEW = {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}
_JSON = {"Content-Type": "application/json", "Accept": "application/json, */*"}


class Operation(StrEnum):
    """What a request does to its object."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True)
class Call:
    """One write request: its target, who asks, and the options it came with.

    ``name`` is empty where ``generateName`` leaves it open. ``options`` is the body of the Create-, Update- or
    DeleteOptions. ``warnings`` collects what the client will be told in Warning headers.
    """

    resource: Resource
    namespace: str
    name: str
    subresource: str
    user: User
    options: Json
    warnings: list[str] = field(default_factory=list)

    @property
    def dry_run(self) -> bool:
        return bool(self.options.get("dryRun"))


class _CallFailed(Exception):
    """The webhook gave no usable answer: failurePolicy decides."""


class Admission:
    """The webhooks configured in ``store``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._session: aiohttp.ClientSession | None = None
        self._trust: dict[str, ssl.SSLContext] = {}

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    async def mutate(self, call: Call, operation: Operation, new: Json | None, old: Json | None) -> Json | None:
        """The object after all mutating webhooks. Raises `ApiError` where one denies, or fails and must not."""
        again: list[tuple[Json, Json | None]] = []
        for webhook in self._matching(MUTATING, call, operation, new, old):
            if not _selects(webhook, new, old) or not self._selects_namespace(webhook, call, new, old):
                continue
            new = await self._mutated(webhook, call, operation, new, old)
            if webhook.get("reinvocationPolicy") == "IfNeeded":
                again.append((webhook, new))
        for webhook, left in again:
            if new != left:
                new = await self._mutated(webhook, call, operation, new, old)
        return new

    async def _mutated(
        self, webhook: Json, call: Call, operation: Operation, new: Json | None, old: Json | None
    ) -> Json | None:
        response = await self._ask(webhook, call, operation, new, old)
        if response.get("patch") and new is not None:
            return _patched(webhook, new, response)
        return new

    async def validate(self, call: Call, operation: Operation, new: Json | None, old: Json | None) -> None:
        """Ask all validating webhooks at once. Raises `ApiError` where one denies, or fails and must not."""
        webhooks = [
            webhook
            for webhook in self._matching(VALIDATING, call, operation, new, old)
            if _selects(webhook, new, old) and self._selects_namespace(webhook, call, new, old)
        ]
        if webhooks:
            await asyncio.gather(*(self._ask(webhook, call, operation, new, old) for webhook in webhooks))

    def _matching(
        self, storage: str, call: Call, operation: Operation, new: Json | None, old: Json | None
    ) -> Iterator[Json]:
        if call.resource.storage in (MUTATING, VALIDATING):
            return  # a webhook that could refuse its own removal would lock everybody out
        for configuration in self._store.all(storage):
            for webhook in configuration.get("webhooks") or []:
                if any(_rule_matches(rule, call, operation) for rule in webhook.get("rules") or []):
                    yield webhook

    def _selects_namespace(self, webhook: Json, call: Call, new: Json | None, old: Json | None) -> bool:
        selector = by_label_selector(webhook.get("namespaceSelector"))
        if call.resource.storage == NAMESPACES:
            return selector(new or old or {})
        if not call.resource.namespaced:
            return True
        return selector(self._store.get(NAMESPACES, "", call.namespace) or {})

    async def _ask(self, webhook: Json, call: Call, operation: Operation, new: Json | None, old: Json | None) -> Json:
        name = webhook["name"]
        if call.dry_run and webhook.get("sideEffects") not in ("None", "NoneOnDryRun"):
            raise errors.bad_request(f'admission webhook "{name}" does not support dry run')
        request = review_request(call, operation, new, old)
        try:
            response = await self._post(webhook, request)
        except _CallFailed as error:
            if webhook["failurePolicy"] == "Ignore":
                _log.warning('failed calling webhook "%s", failing open: %s', name, error)
                return {}
            raise errors.internal(f'failed calling webhook "{name}": {error}') from error
        call.warnings.extend(str(warning) for warning in response.get("warnings") or [])
        if not response["allowed"]:
            raise _denied(name, response.get("status") or {})
        return response

    async def _post(self, webhook: Json, request: Json) -> Json:
        """The ``response`` of the answer. Raises `_CallFailed`."""
        client = webhook["clientConfig"]
        seconds = webhook["timeoutSeconds"]
        url = f"{client['url']}?timeout={seconds}s"
        body = msgspec.json.encode(_REVIEW | {"request": request})
        if self._session is None:
            # No limit: a slow webhook must not hold up requests that concern another.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        try:
            async with self._session.post(
                url,
                data=body,
                headers=_JSON,
                ssl=self._context(client.get("caBundle") or ""),
                timeout=aiohttp.ClientTimeout(total=seconds),
                allow_redirects=False,
            ) as answer:
                if answer.status != HTTPStatus.OK:
                    raise _CallFailed(f"an error on the server ({answer.status}) has prevented the request")
                review = msgspec.json.decode(await answer.read())
        except TimeoutError as error:
            raise _CallFailed(f'failed to call webhook: Post "{url}": context deadline exceeded') from error
        except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
            raise _CallFailed(f'failed to call webhook: Post "{url}": {error}') from error
        except msgspec.DecodeError as error:
            raise _CallFailed(f"the answer is not JSON: {error}") from error
        return _verified(review, request["uid"])

    def _context(self, bundle: str) -> ssl.SSLContext:
        """One context per CA bundle: connections are kept alive per context."""
        key = hashlib.sha256(bundle.encode()).hexdigest()
        if key not in self._trust:
            pem = base64.b64decode(bundle).decode() if bundle else None
            self._trust[key] = ssl.create_default_context(cadata=pem)
        return self._trust[key]


def review_request(call: Call, operation: Operation, new: Json | None, old: Json | None) -> Json:
    """The ``request`` of an AdmissionReview, field by field as Kubernetes 1.36 sends it."""
    resource = call.resource
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    plural = {"group": resource.group, "version": resource.version, "resource": resource.plural}
    request: Json = {"uid": str(uuid.uuid4()), "kind": kind, "resource": plural}
    if call.subresource:
        request["subResource"] = call.subresource
    request |= {"requestKind": kind, "requestResource": plural}
    if call.subresource:
        request["requestSubResource"] = call.subresource
    if call.name:
        request["name"] = call.name
    namespace = call.name if resource.storage == NAMESPACES else call.namespace
    if namespace:
        request["namespace"] = namespace
    kind_of_options = f"{operation.capitalize()}Options"
    return request | {
        "operation": operation.value,
        "userInfo": call.user.info(),
        "object": new,
        "oldObject": old,
        "dryRun": call.dry_run,
        "options": {"kind": kind_of_options, "apiVersion": "meta.k8s.io/v1"} | call.options,
    }


def _rule_matches(rule: Json, call: Call, operation: Operation) -> bool:
    resource = call.resource
    scope = rule.get("scope", "*")
    # A Namespace object is itself cluster-scoped, although its review carries a namespace.
    if scope != "*" and (scope == "Namespaced") != resource.namespaced:
        return False
    return (
        _listed(rule.get("operations"), operation.value)
        and _listed(rule.get("apiGroups"), resource.group)
        and _listed(rule.get("apiVersions"), resource.version)
        and any(_names(entry, resource.plural, call.subresource) for entry in rule.get("resources") or [])
    )


def _listed(allowed: list[str] | None, value: str) -> bool:
    return any(item in ("*", value) for item in allowed or [])


def _names(entry: str, plural: str, subresource: str) -> bool:
    wanted, _, below = entry.partition("/")
    return wanted in ("*", plural) and (below == subresource or (below == "*" and "/" in entry))


def _selects(webhook: Json, new: Json | None, old: Json | None) -> bool:
    selector = by_label_selector(webhook.get("objectSelector"))
    return any(selector(obj) for obj in (new, old) if obj is not None)


def _verified(review: object, uid: str) -> Json:
    if not isinstance(review, dict) or (review.get("kind"), review.get("apiVersion")) != tuple(_REVIEW.values()):
        raise _CallFailed("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview")
    response = review.get("response")
    if not isinstance(response, dict):
        raise _CallFailed("webhook response was absent")
    if response.get("uid") != uid:
        raise _CallFailed(f'expected response.uid="{uid}", got "{response.get("uid", "")}"')
    if not isinstance(response.get("allowed"), bool):
        raise _CallFailed("response.allowed must be true or false")
    if bool(response.get("patch")) != (response.get("patchType") == "JSONPatch"):
        raise _CallFailed("webhook returned response.patch but not response.patchType JSONPatch, or the reverse")
    return response


def _denied(webhook: str, status: Json) -> ApiError:
    code = max(int(status.get("code") or 0), HTTPStatus.BAD_REQUEST)
    reason = str(status.get("reason") or "")
    told = str(status.get("message") or reason)
    denial = f'admission webhook "{webhook}" denied the request'
    return ApiError(code, reason, f"{denial}: {told}" if told else f"{denial} without explanation")


def _patched(webhook: Json, obj: Json, response: Json) -> Json:
    name = webhook["name"]
    try:
        operations = json.loads(base64.b64decode(response["patch"], validate=True))
        return json_patch(obj, operations)
    except (binascii.Error, ValueError, TypeError) as error:
        raise errors.internal(f'admission webhook "{name}" returned a patch that does not decode: {error}') from error
    except ApiError as error:
        raise errors.internal(f'the patch of admission webhook "{name}" {error.message}') from error
