"""The namespace controller: empties namespaces that terminate, then lets them go.

An API server alone never finishes deleting a namespace. In a real cluster kube-controller-manager does; this client
does the same with nothing but the API, so it also serves beside a real kube-apiserver that has no controller manager.
"""

import argparse
import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path

import aiohttp

from lab.apiserver.objects import Json, clone

_log = logging.getLogger(__name__)

_NAMESPACES = "/api/v1/namespaces"
_FINALIZER = "kubernetes"
_WATCH_SECONDS = 300
_RETRY_SECONDS = 1.0
_NEEDED_VERBS = {"list", "deletecollection"}


class _Unexpected(Exception):
    """The API gave an answer that cannot be acted upon; the controller tries again."""


class NamespaceController:
    """Finishes the deletion of namespaces at the API server ``url``. ``token`` must allow to delete everything."""

    def __init__(self, url: str, token: str, ca: Path) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._ca = ca
        self._busy: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Watch and empty until cancelled; failures are logged and tried again."""
        trust = ssl.create_default_context(cafile=str(self._ca))
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(ssl=trust, limit=16)
            session = aiohttp.ClientSession(self._url, connector=connector, headers=self._headers)
            await stack.enter_async_context(session)
            stack.callback(self._stop)
            while True:
                try:
                    await self._follow(session)
                except (aiohttp.ClientError, TimeoutError, OSError, _Unexpected) as error:
                    _log.info("namespaces: %s; trying again", error)
                    await asyncio.sleep(_RETRY_SECONDS)

    def _stop(self) -> None:
        for task in self._busy.values():
            task.cancel()

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        """List, then watch until the watch ends or has expired."""
        listed = await _get(session, _NAMESPACES)
        for namespace in listed["items"]:
            self._consider(session, namespace)
        async for kind, namespace in _changes(session, listed["metadata"]["resourceVersion"]):
            if kind == "ERROR":
                raise _Unexpected(namespace.get("message", "the watch failed"))
            if kind in ("ADDED", "MODIFIED"):
                self._consider(session, namespace)

    def _consider(self, session: aiohttp.ClientSession, namespace: Json) -> None:
        name = namespace["metadata"]["name"]
        waits = namespace["metadata"].get("deletionTimestamp") and _FINALIZER in namespace["spec"].get("finalizers", [])
        if waits and name not in self._busy:
            task = asyncio.create_task(self._finish(session, name))
            self._busy[name] = task
            task.add_done_callback(lambda _: self._busy.pop(name, None))

    async def _finish(self, session: aiohttp.ClientSession, name: str) -> None:
        """Empty one namespace and let it go; tries again until that is done or the namespace is gone."""
        while True:
            try:
                left = await _empty(session, name)
                if not left and await _release(session, name):
                    return
                if left:
                    _log.info("namespace %s: waiting for finalizers of %s", name, ", ".join(left))
            except (aiohttp.ClientError, TimeoutError, OSError, _Unexpected) as error:
                _log.info("namespace %s: %s; trying again", name, error)
            await asyncio.sleep(_RETRY_SECONDS)


async def _get(session: aiohttp.ClientSession, path: str) -> Json:
    async with session.get(path) as answer:
        if answer.status != HTTPStatus.OK:
            raise _Unexpected(f"GET {path} answered {answer.status}")
        body: Json = await answer.json()
        return body


async def _changes(session: aiohttp.ClientSession, revision: str) -> AsyncIterator[tuple[str, Json]]:
    query = {"watch": "1", "resourceVersion": revision, "timeoutSeconds": str(_WATCH_SECONDS)}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=_WATCH_SECONDS + 30)
    async with session.get(_NAMESPACES, params=query, timeout=timeout) as answer:
        if answer.status != HTTPStatus.OK:
            raise _Unexpected(f"the watch of namespaces answered {answer.status}")
        pending = b""
        async for chunk in answer.content.iter_any():
            *lines, pending = (pending + chunk).split(b"\n")
            for line in filter(None, lines):
                event = json.loads(line)
                yield event["type"], event["object"]


async def _namespaced_paths(session: aiohttp.ClientSession) -> list[str]:
    """The group and version, and the plural name, of every resource that lives in namespaces."""
    roots = ["/api/v1"]
    for group in (await _get(session, "/apis"))["groups"]:
        roots.append(f"/apis/{group['preferredVersion']['groupVersion']}")
    paths: list[str] = []
    for root in roots:
        for entry in (await _get(session, root))["resources"]:
            if entry["namespaced"] and "/" not in entry["name"] and set(entry["verbs"]) >= _NEEDED_VERBS:
                paths.append(f"{root}/namespaces/{{}}/{entry['name']}")
    return paths


async def _empty(session: aiohttp.ClientSession, name: str) -> list[str]:
    """Delete everything in a namespace; the paths in which something is left, held by finalizers."""
    left: list[str] = []
    for template in await _namespaced_paths(session):
        path = template.format(name)
        if not (await _get(session, f"{path}?limit=1"))["items"]:
            continue
        async with session.delete(path) as answer:
            if answer.status != HTTPStatus.OK:
                raise _Unexpected(f"DELETE {path} answered {answer.status}")
        if (await _get(session, f"{path}?limit=1"))["items"]:
            left.append(path)
    return left


async def _release(session: aiohttp.ClientSession, name: str) -> bool:
    """Take the finalizer off an empty namespace; whether that is done."""
    path = f"{_NAMESPACES}/{name}"
    async with session.get(path) as answer:
        if answer.status == HTTPStatus.NOT_FOUND:
            return True
        if answer.status != HTTPStatus.OK:
            raise _Unexpected(f"GET {path} answered {answer.status}")
        namespace = clone(await answer.json())
    finalizers = namespace["spec"].get("finalizers", [])
    namespace["spec"]["finalizers"] = [finalizer for finalizer in finalizers if finalizer != _FINALIZER]
    async with session.put(f"{path}/finalize", json=namespace) as answer:
        return answer.status in (HTTPStatus.OK, HTTPStatus.NOT_FOUND)


def main() -> None:
    """Run the controller against any API server, until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m lab.apiserver.namespace_controller", description=__doc__)
    parser.add_argument("--url", required=True, help="the API server, for example https://127.0.0.1:6443")
    parser.add_argument("--ca", required=True, type=Path, help="the PEM file with the CA that signed its certificate")
    parser.add_argument("--token-file", required=True, type=Path, help="a file that holds the bearer token")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    token = options.token_file.read_text().strip()
    try:
        asyncio.run(NamespaceController(options.url, token, options.ca).run())
    except KeyboardInterrupt:
        _log.info("stopped")


if __name__ == "__main__":
    main()
