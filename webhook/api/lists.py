"""`/lists`: the addresses that firewalls let out, in the form that their dynamic lists poll."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Literal

import structlog
from flask import Blueprint, Response, request

from egress import ticket_profiles
from egress.adapters.ledger import FirstSeen, Ledger
from egress.operations import TransientError
from egress.ticket_profiles import BasicAuth, ListDefinition, Profiles, ProfilesError
from webhook.api import address_list
from webhook.api.mirrors import Mirrors
from webhook.api.problems import problem

Form = Literal["txt", "json"]
_MIMETYPES: dict[Form, str] = {"txt": "text/plain; charset=utf-8", "json": "application/json"}
AWAY_SECONDS = 5.0
"""How long Redis is not asked again after it was away: lists must not wait for it."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Edition:
    """A list as it is served, until its content changes. `seen` is when it began to be so."""

    body: bytes
    etag: str
    seen: FirstSeen

    @property
    def modified(self) -> datetime:
        """In whole seconds, as HTTP has it."""
        return datetime.fromtimestamp(int(self.seen.at), UTC)


class Press:
    """Makes each list's edition once for each change of what is in it."""

    def __init__(self, mirrors: Mirrors, ledger: Ledger) -> None:
        self._mirrors = mirrors
        self._ledger = ledger
        self._lock = threading.Lock()
        self._made: dict[tuple[str, Form], tuple[object, Edition]] = {}
        self._ask_after = 0.0

    def edition(self, path: str, definition: ListDefinition, form: Form) -> Edition:
        """The list of `definition`, known as `path`, as the objects have it now. All of them must have been read."""
        with self._lock:
            addresses, tenants = self._mirrors.addresses.snapshot(), self._mirrors.tenants.snapshot()
            made_of = (addresses.version, tenants.version if definition.labels else 0, definition)
            before, edition = self._made.get((path, form), (None, None))
            if edition is not None and before == made_of:
                return edition
            entries = address_list.select(
                addresses.items.values(), tenants.items, frozenset(definition.pools), definition.labels
            )
            if form == "txt":
                body = address_list.text(entries, comments=definition.comments)
            else:
                body = address_list.json(definition.name, entries)
            if edition is None or edition.body != body:
                etag = address_list.digest(body)
                edition = Edition(body, etag, self._first_seen(f"{path}.{form}", etag, edition))
            self._made[path, form] = made_of, edition
            return edition

    def _first_seen(self, name: str, etag: str, before: Edition | None) -> FirstSeen:
        """Since when, as all processes say it; while Redis is away, as this one does."""
        after = before.seen.at if before is not None else 0.0
        if time.monotonic() >= self._ask_after:
            try:
                return self._ledger.first_seen(name, etag, after)
            except TransientError as error:
                _log.warning("the list's date is this process's own", list=name, error=str(error))
                self._ask_after = time.monotonic() + AWAY_SECONDS
        at = max(time.time(), after)
        return FirstSeen(at, alone=before is not None and int(at) != int(after))


def blueprint(profiles: Callable[[], Profiles], mirrors: Mirrors, press: Press) -> Blueprint:
    """The lists that the profiles' file defines, and one for each pool."""
    lists = Blueprint("lists", __name__, url_prefix="/lists")

    @lists.get("/<name>.<any(txt, json):form>")
    def defined(name: str, form: Form) -> Response:
        current = profiles()
        definition = next((item for item in current.lists if item.name == name), None)
        if definition is None:
            return problem(HTTPStatus.NOT_FOUND)
        refusal = _refusal(definition.auth or current.list_auth) or _unknown(mirrors)
        return refusal or _answer(press.edition(name, definition, form), form)

    @lists.get("/pools/<pool>.<any(txt, json):form>")
    def of_pool(pool: str, form: Form) -> Response:
        refusal = _refusal(profiles().list_auth) or _unknown(mirrors)
        if refusal is not None:
            return refusal
        if pool not in mirrors.pools.items():
            return problem(HTTPStatus.NOT_FOUND)
        return _answer(press.edition(f"pools/{pool}", ListDefinition(name=pool, pools=(pool,)), form), form)

    return lists


def _unknown(mirrors: Mirrors) -> Response | None:
    """The refusal while not everything was read: a list that is not whole would close the firewall for the rest."""
    return None if mirrors.synced() else problem(HTTPStatus.SERVICE_UNAVAILABLE, "the addresses are not read yet")


def _refusal(auth: BasicAuth | None) -> Response | None:
    """The refusal of whoever may not read the list."""
    if auth is None:
        return None
    try:
        username, password = ticket_profiles.secrets([auth.username_file, auth.password_file])
    except ProfilesError as error:
        _log.error("a list cannot be read by anybody", error=str(error))
        return problem(HTTPStatus.SERVICE_UNAVAILABLE)
    given = request.authorization
    basic = given is not None and given.type == "basic"
    fits = [
        hmac.compare_digest(((given.get(key) if given and basic else None) or "").encode(), wanted.encode())
        for key, wanted in (("username", username), ("password", password))
    ]
    if all(fits):
        return None
    return problem(HTTPStatus.UNAUTHORIZED, WWW_Authenticate='Basic realm="hawse", charset="UTF-8"')


def _answer(edition: Edition, form: Form) -> Response:
    """The edition, or 304 if whoever asks has it already.

    A date counts only if it is the very one that we gave, and no other content had it: whole seconds are coarse, and a
    client's clock is its own.
    """
    if "If-None-Match" in request.headers:
        known = request.if_none_match.contains_weak(edition.etag)
    else:
        known = edition.seen.alone and request.if_modified_since == edition.modified
    response = Response(b"" if known else edition.body, HTTPStatus.NOT_MODIFIED if known else HTTPStatus.OK)
    response.content_type = _MIMETYPES[form]
    response.set_etag(edition.etag)
    response.last_modified = edition.modified
    response.headers["Cache-Control"] = "no-cache"
    return response
