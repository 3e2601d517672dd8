"""What the server itself knows of the built-in kinds: their defaults, and what it refuses to store."""

import base64
import binascii
import ipaddress
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from lab.apiserver import crds
from lab.apiserver.errors import Cause
from lab.apiserver.objects import Json, metadata, name_of
from lab.apiserver.resources import CRDS, MUTATING, NAMESPACES, VALIDATING, Resource

NAME_LABEL = "kubernetes.io/metadata.name"
# Created at start, as a real server does; the first three cannot be deleted there either.
SYSTEM_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
IMMORTAL_NAMESPACES = ("default", "kube-system", "kube-public")


def fill_in(resource: Resource, obj: Json) -> None:
    """Apply, in place, the defaults of decoding: what admission webhooks already see."""
    filler = _DEFAULTS.get(resource.storage)
    if filler:
        filler(obj)


def finish_new(resource: Resource, obj: Json) -> None:
    """Apply, in place, what is set only after admission, when a new object has its name."""
    if resource.storage == NAMESPACES:
        _label_namespace(obj)
        obj["spec"]["finalizers"] = ["kubernetes"]
        obj["status"] = {"phase": "Active"}
    if resource.storage == CRDS:
        obj.pop("status", None)
        crds.establish(obj)


def check(resource: Resource, obj: Json) -> list[Cause]:
    """What is wrong with an object of a built-in kind, beyond its metadata."""
    checker = _CHECKS.get(resource.storage)
    return list(checker(obj)) if checker else []


def _label_namespace(obj: Json) -> None:
    # Kubernetes overwrites whatever a user writes here, and cannot while generateName leaves the name open.
    if name_of(obj):
        obj["metadata"]["labels"] = (metadata(obj).get("labels") or {}) | {NAME_LABEL: name_of(obj)}


def _namespace(obj: Json) -> None:
    _label_namespace(obj)
    obj["spec"] = obj.get("spec") or {}
    obj["status"] = obj.get("status") or {}
    obj["status"].setdefault("phase", "Active")


def _pod(obj: Json) -> None:
    obj["status"] = obj.get("status") or {}
    obj["status"].setdefault("phase", "Pending")


def _secret(obj: Json) -> None:
    obj.setdefault("type", "Opaque")
    plain = obj.pop("stringData", None) or {}
    if plain:
        encoded = {key: base64.b64encode(str(value).encode()).decode() for key, value in plain.items()}
        obj["data"] = (obj.get("data") or {}) | encoded


def _service(obj: Json) -> None:
    spec = obj["spec"] = obj.get("spec") or {}
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")


def _webhook_configuration(obj: Json) -> None:
    mutating = obj.get("kind") == "MutatingWebhookConfiguration"
    for webhook in obj.get("webhooks") or []:
        webhook.setdefault("failurePolicy", "Fail")
        webhook.setdefault("matchPolicy", "Equivalent")
        webhook.setdefault("namespaceSelector", {})
        webhook.setdefault("objectSelector", {})
        webhook.setdefault("timeoutSeconds", 10)
        if mutating:
            webhook.setdefault("reinvocationPolicy", "Never")
        for rule in webhook.get("rules") or []:
            rule.setdefault("scope", "*")


def _check_webhooks(obj: Json) -> Iterator[Cause]:
    for number, webhook in enumerate(obj.get("webhooks") or []):
        field = f"webhooks[{number}]"
        if webhook.get("name", "").count(".") < 2:
            why = "should be a domain with at least three segments separated by dots"
            yield Cause.invalid(f"{field}.name", webhook.get("name", ""), why)
        if webhook.get("sideEffects") not in ("None", "NoneOnDryRun"):
            yield Cause.unsupported(f"{field}.sideEffects", webhook.get("sideEffects"), ["None", "NoneOnDryRun"])
        if "v1" not in (webhook.get("admissionReviewVersions") or []):
            versions = webhook.get("admissionReviewVersions")
            yield Cause.invalid(f"{field}.admissionReviewVersions", versions, "must include v1")
        if webhook["failurePolicy"] not in ("Ignore", "Fail"):
            yield Cause.unsupported(f"{field}.failurePolicy", webhook["failurePolicy"], ["Fail", "Ignore"])
        timeout = webhook["timeoutSeconds"]
        if not isinstance(timeout, int) or not 1 <= timeout <= 30:
            why = "the timeout value must be between 1 and 30 seconds"
            yield Cause.invalid(f"{field}.timeoutSeconds", timeout, why)
        yield from _check_client(webhook.get("clientConfig") or {}, f"{field}.clientConfig")


def _check_client(client: Json, field: str) -> Iterator[Cause]:
    if client.get("service"):
        why = "the embedded cluster has no service network: give the webhook's address in clientConfig.url"
        yield Cause.forbidden(f"{field}.service", why)
    elif not client.get("url"):
        yield Cause.required(f"{field}.url", "exactly one of url or service is required")
    else:
        parts = urlsplit(client["url"])
        if parts.scheme != "https" or not parts.hostname:
            yield Cause.invalid(f"{field}.url", client["url"], "'https' is the only allowed URL scheme")
        elif parts.query or parts.fragment or parts.username:
            yield Cause.invalid(f"{field}.url", client["url"], "user, query parameters and fragment are not permitted")
    try:
        bundle = base64.b64decode(client.get("caBundle") or "", validate=True)
    except (binascii.Error, TypeError):
        bundle = b"-"
    if bundle and b"BEGIN CERTIFICATE" not in bundle:
        why = "unable to load root certificates: base64 of PEM certificates is expected"
        yield Cause.invalid(f"{field}.caBundle", "...", why)


def _check_service(obj: Json) -> Iterator[Cause]:
    address = obj["spec"].get("clusterIP")
    if address in (None, "", "None"):
        return
    try:
        ipaddress.ip_address(address)
    except ValueError:
        yield Cause.invalid("spec.clusterIP", address, "must be a valid IP address")


_DEFAULTS: dict[str, Callable[[Json], None]] = {
    NAMESPACES: _namespace,
    "/pods": _pod,
    "/secrets": _secret,
    "/services": _service,
    MUTATING: _webhook_configuration,
    VALIDATING: _webhook_configuration,
    CRDS: crds.fill_in,
}
_CHECKS: dict[str, Callable[[Json], Iterator[Cause]]] = {
    MUTATING: _check_webhooks,
    VALIDATING: _check_webhooks,
    "/services": _check_service,
    CRDS: crds.check,
}
