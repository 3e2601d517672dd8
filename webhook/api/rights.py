"""Who asks, and whether he may: the same for the API and the pages."""

from __future__ import annotations

from collections.abc import Collection

from flask import g, request

from egress.views import Verb
from webhook.api.identity import LOOK, Gate, Identity


class DeniedError(Exception):
    """Somebody may not do what he asks for; the message says which right it takes."""


class TooFastError(Exception):
    """Somebody does too much at once."""


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
