"""Who asks, whether he may, and what is answered if not: the same for the API and the pages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from http import HTTPStatus

from flask import g, request

from egress.actions import Verb
from egress.adapters.cluster import ConflictError, NotFoundError
from egress.operations import PermanentError, TransientError
from webhook.api.identity import LOOK, Gate, Identity, UnknownError
from webhook.api.queries import BadRequestError


class DeniedError(Exception):
    """Somebody may not do what he asks for; the message says which right it takes."""


class TooFastError(Exception):
    """Somebody does too much at once."""


STATUSES: Mapping[type[Exception], HTTPStatus] = {
    UnknownError: HTTPStatus.UNAUTHORIZED,
    DeniedError: HTTPStatus.FORBIDDEN,
    BadRequestError: HTTPStatus.BAD_REQUEST,
    TooFastError: HTTPStatus.TOO_MANY_REQUESTS,
    NotFoundError: HTTPStatus.NOT_FOUND,
    ConflictError: HTTPStatus.CONFLICT,
    PermanentError: HTTPStatus.UNPROCESSABLE_ENTITY,
    TransientError: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""What is answered to a request that ends with one of these."""


def who() -> Identity:
    """Who asks."""
    identity: Identity = g.identity
    return identity


def demand(gate: Gate, verb: str, namespace: str = "") -> None:
    """DeniedError unless whoever asks may do `verb` in `namespace`, "" for everywhere."""
    if not gate.may(who(), verb, namespace):
        where = f" in namespace {namespace}" if namespace else ""
        raise DeniedError(f"{who().user} may not {verb} egressaddresses.egress.hawse.dev{where}")


def act(gate: Gate, verb: Verb, namespace: str = "") -> None:
    """The same for an action; TooFastError if there were too many."""
    demand(gate, verb.value, namespace)
    if gate.is_too_fast(who()):
        raise TooFastError("too many actions within a minute: wait a moment")


def look_closely(gate: Gate, namespace: str = "") -> None:
    """May whoever asks have every node looked at? Whoever may see may, but not as often as he likes."""
    demand(gate, LOOK, namespace)
    if is_cross_site() and request.headers.get("Sec-Fetch-Dest") != "document":
        raise DeniedError("this came from another site")  # a link in a ticket is followed, a hidden picture is not
    if gate.is_too_fast(who()):
        raise TooFastError("too much is asked of the nodes within a minute: wait a moment")


def is_tenant(gate: Gate) -> bool:
    """Whether whoever asks may not look at everything, and so names the namespace that he means."""
    return not gate.may(who(), LOOK)


def visible(gate: Gate) -> Collection[str] | None:
    """The namespaces that are meant and that somebody may see: all (None), or the one that he names and may look at."""
    name = request.args.get("namespace", "")
    if gate.may(who(), LOOK):
        return (name,) if name else None
    if not name:
        raise DeniedError(f"{who().user} may not see all namespaces: name one with namespace=NAME")
    demand(gate, LOOK, name)
    return (name,)


def is_cross_site() -> bool:
    """Whether another site made a browser ask, of which the browser itself tells. A token is sent by no browser."""
    if not who().ambient:
        return False
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None and site not in ("same-origin", "none"):
        return True
    return origin is not None and origin.partition("://")[2] != request.host
