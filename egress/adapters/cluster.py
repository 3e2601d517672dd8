"""The Kubernetes API: the only client of it. Objects go in and out as plain manifests (`egress.adapters.manifests`)."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import urllib3
from kubernetes import client, config

from egress.operations import PermanentError, TransientError

Manifest = dict[str, Any]
REQUEST_TIMEOUT = (3.0, 20.0)
PAGE = 500
WATCH_SECONDS = 240
AUTHORIZATION_SECONDS = 10.0
"""How long a token is used without looking again: a kubelet replaces a pod's long before it runs out."""
_JSON = "application/json"
_UNKNOWN: tuple[float, dict[str, str]] = (float("-inf"), {})


class Kind(Enum):
    """The kinds Hawse deals with: the path of their collection, apiVersion and kind.

    Where a collection is a namespace's own, its path has a place for the namespace's name.
    """

    NAMESPACE = ("/api/v1/namespaces", "v1", "Namespace")
    NODE = ("/api/v1/nodes", "v1", "Node")
    HOST_SUBNET = ("/apis/network.openshift.io/v1/hostsubnets", "network.openshift.io/v1", "HostSubnet")
    NET_NAMESPACE = ("/apis/network.openshift.io/v1/netnamespaces", "network.openshift.io/v1", "NetNamespace")
    EGRESS_POOL = ("/apis/egress.hawse.dev/v1alpha1/egresspools", "egress.hawse.dev/v1alpha1", "EgressPool")
    EGRESS_ADDRESS = (
        "/apis/egress.hawse.dev/v1alpha1/egressaddresses",
        "egress.hawse.dev/v1alpha1",
        "EgressAddress",
    )
    EGRESS_IP = ("/apis/k8s.ovn.org/v1/egressips", "k8s.ovn.org/v1", "EgressIP")
    NETWORK = ("/apis/config.openshift.io/v1/networks", "config.openshift.io/v1", "Network")
    LEASE = ("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases", "coordination.k8s.io/v1", "Lease")
    SECRET = ("/api/v1/namespaces/{namespace}/secrets", "v1", "Secret")
    MUTATING_WEBHOOKS = (
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
        "admissionregistration.k8s.io/v1",
        "MutatingWebhookConfiguration",
    )
    VALIDATING_WEBHOOKS = (
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        "admissionregistration.k8s.io/v1",
        "ValidatingWebhookConfiguration",
    )

    def path(self, namespace: str = "") -> str:
        """The path of the collection, for a namespaced kind of the one in `namespace`."""
        return str(self.value[0]).format(namespace=quote(namespace, safe=""))

    @property
    def label(self) -> str:
        """The kind in small letters, as metrics and threads are labelled."""
        return str(self.value[2]).lower()

    @property
    def head(self) -> Manifest:
        """apiVersion and kind, as a manifest begins."""
        return {"apiVersion": self.value[1], "kind": self.value[2]}


class ConfigError(PermanentError):
    """Where the API server is, or who we are to it, cannot be read; the message names the file."""


class NotFoundError(PermanentError):
    """There is no such object."""


class ExistsError(PermanentError):
    """An object of that name exists already."""


class ConflictError(TransientError):
    """Somebody changed the object since it was read: read it again."""


class GoneError(TransientError):
    """The resourceVersion is too old to watch from: list again."""


class RefusedError(PermanentError):
    """The API server refuses, and will again: invalid, forbidden, or denied by an admission webhook."""


class ClusterAwayError(TransientError):
    """The API server cannot be reached, or is overloaded."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of a kind, consistent as of `resource_version`."""

    items: tuple[Manifest, ...]
    resource_version: str


@dataclass(frozen=True, slots=True)
class Change:
    """One watch event. `deleted` comes with the object's last state; a bookmark has only a resourceVersion."""

    manifest: Manifest
    deleted: bool = False
    bookmark: bool = False

    @property
    def resource_version(self) -> str:
        """From where to resume a watch after this event."""
        return str(self.manifest["metadata"]["resourceVersion"])


def bearer_token(kubeconfig: str) -> str:
    """The bearer token of a kubeconfig's current context; "" if it has none. ConfigError if it cannot be read."""
    configuration = client.Configuration()
    try:
        config.load_kube_config(kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except Exception as error:  # the client lets whatever its parsers raise through
        raise ConfigError(f"the kubeconfig {kubeconfig} cannot be used: {' '.join(str(error).split())}") from error
    scheme, _, token = str(configuration.get_api_key_with_prefix("BearerToken") or "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


class Cluster:
    """A connection to one API server. Safe to share between threads. ConfigError when it is not said which.

    `timeout` is how long a request may take: to connect and to be answered, in seconds, or both together. `namespace`
    in the methods below is for the kinds whose objects live in one.
    """

    def __init__(self, kubeconfig: str = "", *, timeout: tuple[float, float] | float = REQUEST_TIMEOUT) -> None:
        configuration = client.Configuration()
        try:
            if kubeconfig:
                config.load_kube_config(kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
            else:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except Exception as error:  # the client lets whatever its parsers raise through
            where = f"the kubeconfig {kubeconfig}" if kubeconfig else "the pod's service account (no HAWSE_KUBECONFIG)"
            raise ConfigError(f"{where} cannot be used: {' '.join(str(error).split())}") from error
        configuration.retries = False
        configuration.connection_pool_maxsize = 16
        self._api: Any = client.ApiClient(configuration)
        self._timeout = timeout
        self._written: dict[Kind, int] = {}
        self._authorization = _UNKNOWN

    def written(self) -> dict[Kind, int]:
        """The resourceVersion of the latest object of each kind that was written by this connection."""
        return dict(self._written)

    def _wrote(self, kind: Kind, manifest: Manifest) -> Manifest:
        self._written[kind] = max(self._written.get(kind, 0), int(manifest["metadata"].get("resourceVersion") or 0))
        return manifest

    def get(self, kind: Kind, name: str, *, namespace: str = "") -> Manifest | None:
        """The object, or None if there is none."""
        try:
            return self._call("GET", _item(kind, name, namespace))
        except NotFoundError:
            return None

    def list(self, kind: Kind, *, label: str = "") -> Listing:
        """All objects of a kind, or those that the label selector matches, read in pages."""
        items: list[Manifest] = []
        cursor, version = "", ""
        while True:
            query = {"limit": str(PAGE), "continue": cursor, "labelSelector": label}
            query = {key: value for key, value in query.items() if value}
            page = self._call("GET", f"{kind.path()}?{urlencode(query)}")
            items += [kind.head | item for item in page.get("items") or []]
            version = version or page["metadata"]["resourceVersion"]
            cursor = page["metadata"].get("continue", "")
            if not cursor:
                return Listing(tuple(items), version)

    def resources(self, group_version: str) -> frozenset[str]:
        """The names of the resources of an API group's version; none where the group is not served."""
        try:
            found = self._call("GET", f"/apis/{group_version}").get("resources") or []
        except NotFoundError:
            return frozenset()
        return frozenset(str(item["name"]) for item in found)

    def watch(self, kind: Kind, resource_version: str) -> Iterator[Change]:
        """The changes since `resource_version`, until the server ends the watch. GoneError when it is too old."""
        query = urlencode(
            {
                "watch": "1",
                "resourceVersion": resource_version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(WATCH_SECONDS),
            }
        )
        response = self._send("GET", f"{kind.path()}?{query}", None, "application/json", (3.0, WATCH_SECONDS + 10.0))
        try:
            for line in _lines(response):
                event = msgspec.json.decode(line)
                if event["type"] == "ERROR":
                    _raise(int(event["object"].get("code", 500)), event["object"].get("message", ""))
                yield Change(event["object"], event["type"] == "DELETED", event["type"] == "BOOKMARK")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterAwayError(f"the watch of {kind.name} broke: {error}") from error
        finally:
            response.close()

    def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Creates an object; ExistsError if its name is taken."""
        path = kind.path(manifest["metadata"].get("namespace", ""))
        return self._wrote(kind, self._call("POST", path, kind.head | manifest))

    def patch(self, kind: Kind, name: str, patch: Manifest, *, subresource: str = "", namespace: str = "") -> Manifest:
        """Merges `patch` into an object. A `metadata.resourceVersion` in it makes it conditional (ConflictError)."""
        path = _item(kind, name, namespace) + (f"/{subresource}" if subresource else "")
        return self._wrote(kind, self._call("PATCH", path, patch, "application/merge-patch+json"))

    def delete(self, kind: Kind, name: str, *, resource_version: str = "") -> None:
        """Deletes an object, if it still is at `resource_version` when that is given. Its absence is no error."""
        preconditions = {"preconditions": {"resourceVersion": resource_version}} if resource_version else {}
        try:
            self._call("DELETE", _item(kind, name), {"apiVersion": "v1", "kind": "DeleteOptions", **preconditions})
        except NotFoundError:
            return

    def event(self, namespace: Mapping[str, str], reason: str, message: str, *, warning: bool = False) -> None:
        """Writes a Kubernetes Event about a namespace (`name`, `uid`), where its owner will look for it."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about = {"apiVersion": "v1", "kind": "Namespace", "name": namespace["name"], "uid": namespace["uid"]}
        manifest = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{namespace['name']}.", "namespace": "default"},
            "involvedObject": about,
            "reason": reason,
            "message": message[:1000],
            "type": "Warning" if warning else "Normal",
            "source": {"component": "hawse"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        self._call("POST", "/api/v1/namespaces/default/events", manifest)

    def warnings(self, namespace: str) -> dict[str, str]:
        """The warning Events about a namespace: the message of each by the Event's name, the latest first."""
        selector = f"involvedObject.kind=Namespace,involvedObject.name={namespace},type=Warning"
        query = urlencode({"fieldSelector": selector, "limit": str(PAGE)})
        items = self._call("GET", f"/api/v1/namespaces/default/events?{query}").get("items") or []
        latest = sorted(items, key=lambda item: item.get("lastTimestamp") or "", reverse=True)
        return {str(item["metadata"]["name"]): str(item.get("message", "")) for item in latest}

    def who_has(self, token: str) -> tuple[str, tuple[str, ...]] | None:
        """The user and groups of a bearer token (TokenReview); None if it is nobody's."""
        manifest = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        status = self._call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", manifest).get("status") or {}
        user = status.get("user") or {}
        if not status.get("authenticated") or not user.get("username"):
            return None
        return str(user["username"]), tuple(map(str, user.get("groups") or ()))

    def may(self, user: str, groups: Sequence[str], verb: str, resource: str, namespace: str = "") -> bool:
        """Whether RBAC lets a user do something to a resource of Hawse's group (SubjectAccessReview), in one namespace,
        or everywhere."""
        group = Kind.EGRESS_ADDRESS.value[1].partition("/")[0]
        attributes = {"group": group, "resource": resource, "verb": verb, "namespace": namespace}
        manifest = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": list(groups), "resourceAttributes": attributes},
        }
        answer = self._call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", manifest)
        return (answer.get("status") or {}).get("allowed") is True

    def _call(self, method: str, path: str, body: Manifest | None = None, content_type: str = _JSON) -> Manifest:
        response = self._send(method, path, body, content_type, self._timeout)
        try:
            return msgspec.json.decode(response.data, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ClusterAwayError(f"{method} {path}: the answer is not JSON: {error}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterAwayError(f"{method} {path}: {error}") from error

    def _send(
        self, method: str, path: str, body: Manifest | None, content_type: str, timeout: tuple[float, float] | float
    ) -> urllib3.HTTPResponse:
        connect, read = timeout if isinstance(timeout, tuple) else (None, None)
        limits = urllib3.Timeout(None if isinstance(timeout, tuple) else timeout, connect, read)
        encoded = msgspec.json.encode(body) if body is not None else None
        try:
            headers = {
                "Content-Type": content_type,
                "Accept": "application/json",
                "User-Agent": self._api.user_agent,
                **self._authorized(),
            }
            # Not by `rest_client.request`, which encodes a body slowly and in ways of its own.
            response: urllib3.HTTPResponse = self._api.rest_client.pool_manager.request(
                method,
                self._api.configuration.host + path,
                body=encoded,
                headers=headers,
                timeout=limits,
                preload_content=False,
            )
        except (urllib3.exceptions.HTTPError, config.ConfigException, OSError) as error:
            raise ClusterAwayError(f"the API server is away: {error}") from error
        if not 200 <= response.status < 300:
            if response.status == 401:
                self._authorization = _UNKNOWN
            _raise(response.status, _message(response), method, path)
        return response

    def _authorized(self) -> dict[str, str]:
        """The Authorization header, if we have a token. Asked for it the client goes through its whole configuration;
        it reads the service account's token from its file again once a minute."""
        read_at, headers = self._authorization
        now = time.monotonic()
        if now - read_at > AUTHORIZATION_SECONDS:
            headers = {}
            self._api.update_params_for_auth(headers, [], ["BearerToken"], "", "", None)
            self._authorization = (now, headers)
        return headers


def _item(kind: Kind, name: str, namespace: str = "") -> str:
    return f"{kind.path(namespace)}/{quote(name, safe='')}"


def _lines(response: urllib3.HTTPResponse) -> Iterator[bytes]:
    rest = b""
    for chunk in response.stream(amt=None, decode_content=True):
        *complete, rest = (rest + chunk).split(b"\n")
        yield from (line for line in complete if line.strip())


def _message(response: urllib3.HTTPResponse) -> str:
    try:
        return str(msgspec.json.decode(response.data)["message"])
    except (msgspec.DecodeError, KeyError, TypeError, urllib3.exceptions.HTTPError):
        return str(response.reason)


def _raise(status: int, message: str, method: str = "", path: str = "") -> None:
    """Raises the error that an answer means."""
    text = f"{method} {path}: {status} {message}".strip()
    if status == 404:
        raise NotFoundError(text)
    if status == 409:
        raise (ExistsError if "already exists" in message else ConflictError)(text)
    if status == 410:
        raise GoneError(text)
    # 401: a token that ran out is replaced in its file soon, and read anew.
    if status in (401, 408, 429) or status >= 500:
        raise ClusterAwayError(text)
    raise RefusedError(text)
