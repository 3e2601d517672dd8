"""A plain client of an API server, for the lab: what a person would do with kubectl."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import urllib3
import yaml
from urllib3.util import Retry

Json = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"

_RBAC = "/apis/rbac.authorization.k8s.io/v1"
PATHS = {
    "Namespace": "/api/v1/namespaces",
    "Node": "/api/v1/nodes",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "Event": "/api/v1/namespaces/{namespace}/events",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "Role": f"{_RBAC}/namespaces/{{namespace}}/roles",
    "RoleBinding": f"{_RBAC}/namespaces/{{namespace}}/rolebindings",
    "ClusterRole": f"{_RBAC}/clusterroles",
    "ClusterRoleBinding": f"{_RBAC}/clusterrolebindings",
    "HostSubnet": "/apis/network.openshift.io/v1/hostsubnets",
    "NetNamespace": "/apis/network.openshift.io/v1/netnamespaces",
    "EgressPool": "/apis/egress.hawse.dev/v1alpha1/egresspools",
    "EgressAddress": "/apis/egress.hawse.dev/v1alpha1/egressaddresses",
    "EgressIP": "/apis/k8s.ovn.org/v1/egressips",
    "Network": "/apis/config.openshift.io/v1/networks",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "MutatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "ValidatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
}


def _path(kind: str, namespace: str | None = None) -> str:
    """The path of a kind's collection; of a namespaced kind, in `default` unless told."""
    return PATHS[kind].format(namespace=namespace or "default")


class KubeError(Exception):
    """The API server answered with an error; `code` is its HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def _message(body: bytes) -> str:
    """What a failure says: a Status, or the bare text that a real server gives for a path which it does not serve."""
    try:
        return str(msgspec.json.decode(body, type=Json).get("message", ""))
    except msgspec.DecodeError:  # a ValidationError is one too
        return body.decode(errors="replace").strip()


# "Too many requests", and "storage is (re)initializing" of a server that has just begun, come with a Retry-After: asked
# again, as by kubectl. What breaks on the way is the caller's to judge: it may have been done.
ASKED_TO_COME_AGAIN = Retry(total=20, connect=False, read=False, other=0, allowed_methods=None, raise_on_status=False)


class Kube:
    """One user's view of one API server. `warnings` collects the Warning headers of the answers."""

    def __init__(self, url: str, ca: Path, token: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        context = ssl.create_default_context(cafile=str(ca))
        self._pool = urllib3.PoolManager(ssl_context=context, retries=ASKED_TO_COME_AGAIN, timeout=30.0, maxsize=32)
        self.warnings: list[str] = []

    def call(self, method: str, path: str, body: Json | None = None, content_type: str = "application/json") -> Json:
        """The answer to one request; KubeError unless it succeeds."""
        headers = self._headers | {"Content-Type": content_type}
        data = msgspec.json.encode(body) if body is not None else None
        response = self._pool.request(method, self._url + path, body=data, headers=headers)
        self.warnings += response.headers.getlist("Warning")
        if response.status >= 300:
            raise KubeError(response.status, _message(response.data))
        return msgspec.json.decode(response.data, type=Json)

    def text(self, path: str) -> str:
        """What a GET gives that is no JSON; KubeError unless it succeeds."""
        response = self._pool.request("GET", self._url + path, headers=self._headers)
        if response.status >= 300:
            raise KubeError(response.status, _message(response.data))
        return response.data.decode()

    def create(self, manifest: Json, *, query: str = "") -> Json:
        """Creates an object of a kind in PATHS."""
        return self.call("POST", _path(manifest["kind"], manifest["metadata"].get("namespace")) + query, manifest)

    def get(self, kind: str, name: str) -> Json | None:
        """The object, or None."""
        try:
            return self.call("GET", f"{_path(kind)}/{name}")
        except KubeError as error:
            if error.code == 404:
                return None
            raise

    def list(self, kind: str) -> list[Json]:
        """All objects of a kind."""
        items: list[Json] = self.call("GET", _path(kind))["items"]
        return items

    def patch(self, kind: str, name: str, patch: Json, *, subresource: str = "") -> Json:
        """A merge patch."""
        path = f"{_path(kind)}/{name}" + (f"/{subresource}" if subresource else "")
        return self.call("PATCH", path, patch, MERGE_PATCH)

    def delete(self, kind: str, name: str) -> None:
        """Deletes an object; its absence is no error."""
        try:
            self.call("DELETE", f"{_path(kind)}/{name}")
        except KubeError as error:
            if error.code != 404:
                raise

    def apply_files(self, paths: Iterable[Path]) -> None:
        """Creates every object in YAML files, or leaves it when it is there."""
        for path in sorted(paths):
            for manifest in yaml.safe_load_all(path.read_text()):
                try:
                    self.create(manifest)
                except KubeError as error:
                    if error.code != 409:
                        raise
