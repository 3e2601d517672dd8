"""Lists and watches: the reading side of the API."""

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, Iterator

import msgspec
from aiohttp import web

from lab.apiserver import errors
from lab.apiserver.errors import ApiError
from lab.apiserver.objects import Json, name_of, namespace_of
from lab.apiserver.representation import Form, Representation
from lab.apiserver.resources import Resource
from lab.apiserver.selectors import Predicate, by_fields, by_labels
from lab.apiserver.store import Event, EventType, Store

_log = logging.getLogger(__name__)

_BOOKMARK_SECONDS = 10.0
_SHORTEST_WATCH, _LONGEST_WATCH = 1800.0, 3600.0


class Selection:
    """What a list or watch request asks for."""

    def __init__(self, resource: Resource, namespace: str, request: web.Request) -> None:
        """Read the query. Raises `ApiError` 400."""
        values = request.query
        self.resource = resource
        self.namespace = namespace
        self.by_label = by_labels(values.get("labelSelector", ""))
        self.by_field = by_fields(resource, values.get("fieldSelector", ""))
        self.selective = bool(values.get("labelSelector") or values.get("fieldSelector"))
        self.revision = _whole(values.get("resourceVersion", ""), "resourceVersion")
        self.limit = _whole(values.get("limit", ""), "limit") or 0
        self.token = values.get("continue", "")
        self.timeout = _whole(values.get("timeoutSeconds", ""), "timeoutSeconds")
        self.bookmarks = _yes(values.get("allowWatchBookmarks", ""))
        self.initial_events = _yes(values.get("sendInitialEvents", ""))

    def matches(self, stored: Json) -> bool:
        """Whether an object, in its stored form, is asked for."""
        if self.namespace and namespace_of(stored) != self.namespace:
            return False
        return not self.selective or (self.by_label(stored) and self.by_field(stored))


def _whole(text: str, name: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        raise errors.bad_request(f'invalid {name}: "{text}" is not a whole number')
    return int(text)


def _yes(text: str) -> bool:
    return text.lower() in ("1", "true")


def read_list(store: Store, selection: Selection, form: Representation) -> Json:
    """One page of a list. Raises `ApiError` 410 for a continue token whose snapshot is gone."""
    storage, namespace = selection.resource.storage, selection.namespace
    if selection.revision is not None and selection.revision > store.revision:
        raise errors.too_large(selection.revision, store.revision)
    if selection.token:
        revision, after = _read_token(selection.token)
        objects = store.page(storage, namespace, revision, after)
    else:
        revision = store.revision
        objects = store.snapshot(storage, namespace) if selection.limit else store.all(storage, namespace)
    if selection.selective:
        objects = [obj for obj in objects if selection.matches(obj)]
    meta: Json = {"resourceVersion": str(revision)}
    if selection.resource.custom:
        meta["continue"] = ""  # a real server leaves it out of lists of built-in kinds alone
    if selection.limit and len(objects) > selection.limit:
        remaining = len(objects) - selection.limit
        objects = objects[: selection.limit]
        meta["continue"] = _write_token(revision, objects[-1])
        if not selection.selective:
            meta["remainingItemCount"] = remaining
    return form.many(objects, meta)


def _write_token(revision: int, last: Json) -> str:
    token = {"v": "meta.k8s.io/v1", "rv": revision, "start": [namespace_of(last), name_of(last)]}
    return base64.urlsafe_b64encode(json.dumps(token).encode()).decode()


def _read_token(text: str) -> tuple[int, tuple[str, str]]:
    try:
        token = json.loads(base64.urlsafe_b64decode(text))
        namespace, name = token["start"]
        return int(token["rv"]), (str(namespace), str(name))
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise errors.bad_request("continue key is not valid") from error


async def watch(request: web.Request, store: Store, selection: Selection, form: Representation) -> web.StreamResponse:
    """Stream changes until the client leaves, the timeout passes or the server stops."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    seconds = selection.timeout or random.uniform(_SHORTEST_WATCH, _LONGEST_WATCH)  # noqa: S311 - spreads reconnects
    frames = _Frames(form)
    try:
        async with contextlib.aclosing(_frames(store, selection, frames, seconds)) as lines:
            async for line in lines:
                await response.write(line)
        await response.write_eof()
    except ConnectionError:
        _log.debug("%s: the watcher left", request.path)
    return response


class _Frames:
    """Watch events as the lines that go on the wire."""

    def __init__(self, form: Representation) -> None:
        self._form = form
        self._columns_sent = False

    def change(self, kind: EventType, stored: Json) -> bytes:
        obj = self._form.one(stored)
        if self._form.form is Form.TABLE and self._columns_sent:
            obj["columnDefinitions"] = None
        self._columns_sent = True
        return self._line(kind.value, obj)

    def bookmark(self, revision: int, *, initial: bool) -> bytes:
        resource = self._form.resource
        meta: Json = {"resourceVersion": str(revision), "creationTimestamp": None}
        if initial:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        obj = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": meta}
        if self._form.form is Form.TABLE:
            obj = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "rows": []}
        return self._line("BOOKMARK", obj)

    def error(self, error: ApiError) -> bytes:
        return self._line("ERROR", error.status())

    @staticmethod
    def _line(kind: str, obj: Json) -> bytes:
        return msgspec.json.encode({"type": kind, "object": obj}) + b"\n"


async def _frames(store: Store, selection: Selection, frames: _Frames, seconds: float) -> AsyncGenerator[bytes, None]:
    storage = selection.resource.storage
    deadline = time.monotonic() + seconds
    seen = selection.revision or 0
    if seen > store.revision:
        yield frames.error(errors.too_large(seen, store.revision))
        return
    with store.changed(storage) as signal:
        if seen == 0 or selection.initial_events:
            seen = store.revision
            for obj in store.all(storage, selection.namespace):
                if selection.matches(obj):
                    yield frames.change(EventType.ADDED, obj)
            if selection.initial_events:
                yield frames.bookmark(seen, initial=True)
        while not store.closed:
            signal.clear()
            current = store.revision
            try:
                changes = store.changes(storage, seen)
            except ApiError as error:
                yield frames.error(error)
                return
            for kind, obj in _in_sight(changes, selection.matches):
                yield frames.change(kind, obj)
            seen = current
            left = deadline - time.monotonic()
            if await _rings(signal, min(left, _BOOKMARK_SECONDS)):
                continue
            if selection.bookmarks:
                yield frames.bookmark(seen, initial=False)
            if left <= _BOOKMARK_SECONDS:
                return


async def _rings(signal: asyncio.Event, seconds: float) -> bool:
    """Whether the signal comes within so many seconds."""
    try:
        await asyncio.wait_for(signal.wait(), max(seconds, 0))
    except TimeoutError:
        return False
    return True


def _in_sight(changes: list[Event], matches: Predicate) -> Iterator[tuple[EventType, Json]]:
    """What changes are to a watch with a selector: an object may come into its sight, or leave it."""
    for event in changes:
        after = event.type is not EventType.DELETED and matches(event.object)
        before = event.previous is not None and matches(event.previous)
        if after:
            yield EventType.MODIFIED if before else EventType.ADDED, event.object
        elif before:
            yield EventType.DELETED, _last_seen(event)


def _last_seen(event: Event) -> Json:
    """An object that left a selector's sight is shown as it last matched, at the revision of the change."""
    if event.type is EventType.DELETED or event.previous is None:
        return event.object
    return event.previous | {"metadata": event.previous["metadata"] | {"resourceVersion": str(event.revision)}}
