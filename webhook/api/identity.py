"""Who somebody is, and what they may do: the cluster's own users and rights (TokenReview, SubjectAccessReview).

The verbs are asked of `egressaddresses` in group `egress.hawse.dev`: `get` to look, and those of `egress.actions.Verb`
for each action. An answer counts for CACHE_SECONDS; an API server that is away lets nobody in.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Generic, TypeVar

from flask import Request

from egress.adapters.cluster import Cluster
from egress.settings import Settings

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
LOOK = "get"
"""The verb of whoever only wants to see."""
RESOURCE = "egressaddresses"
CACHE_SECONDS = 10.0
CACHE_SIZE = 10_000
MAX_TOKEN = 16 * 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody. `ambient`: known by what a browser sends by itself, so that another site could make it ask."""

    user: str
    groups: tuple[str, ...] = ()
    ambient: bool = False
    may_all: bool = False


class UnknownError(Exception):
    """It is not known who asks; the message says how to say so."""


class Gate:
    """Lets people in, and tells what they may."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._proxies = settings.proxies()
        self._users: Memory[str, tuple[str, tuple[str, ...]] | None] = Memory()
        self._rights: Memory[tuple[str, tuple[str, ...], str, str], bool] = Memory()
        self._actions: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def who(self, request: Request) -> Identity:
        """Who sends `request`. UnknownError if nobody vouches for anybody; TransientError if that cannot be known."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme:
            return self._by_token(scheme, token.strip())
        if self._is_proxy(request.remote_addr or ""):
            user = request.headers.get(self._settings.auth_user_header, "")
            groups = request.headers.get(self._settings.auth_groups_header, "").split(",")
            if user:
                return Identity(user, tuple(sorted(filter(None, map(str.strip, groups)))), ambient=True)
        if self._settings.anonymous:
            return Identity("anonymous", ambient=True, may_all=True)
        raise UnknownError("send a bearer token of the cluster, such as `oc whoami -t` or `kubectl create token` gives")

    def may(self, identity: Identity, verb: str, namespace: str = "") -> bool:
        """Whether somebody may do something in `namespace`, "" for everywhere. Who may everywhere may anywhere."""
        if identity.may_all or self._asked(identity, verb, ""):
            return True
        return bool(namespace) and self._asked(identity, verb, namespace)

    def is_too_fast(self, identity: Identity) -> bool:
        """Whether somebody has asked for too many actions within a minute; if not, this counts as one."""
        now = time.monotonic()
        with self._lock:
            if len(self._actions) > CACHE_SIZE:
                self._actions = {user: times for user, times in self._actions.items() if now - times[-1] < 60}
            times = self._actions.setdefault(identity.user, deque())
            while times and now - times[0] > 60:
                times.popleft()
            if len(times) >= self._settings.api_actions_per_minute:
                return True
            times.append(now)
            return False

    def _by_token(self, scheme: str, token: str) -> Identity:
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN:
            raise UnknownError("the Authorization header must be `Bearer TOKEN`")
        # The token itself is kept nowhere.
        known = self._users.get(hashlib.sha256(token.encode()).hexdigest(), lambda: self._cluster.who_has(token))
        if known is None:
            raise UnknownError("the cluster does not know this token: it may have run out")
        return Identity(*known)

    def _is_proxy(self, remote: str) -> bool:
        try:
            address = ip_address(remote)
        except ValueError:
            return False
        return any(address in network for network in self._proxies)

    def _asked(self, identity: Identity, verb: str, namespace: str) -> bool:
        user, groups = identity.user, identity.groups
        return self._rights.get(
            (user, groups, verb, namespace),
            lambda: self._cluster.may(user, groups, verb, RESOURCE, namespace),
        )


class Memory(Generic[K, V]):
    """What was found out within CACHE_SECONDS. Several threads may ask; a failure is not remembered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[K, tuple[float, V]] = {}

    def get(self, key: K, find: Callable[[], V]) -> V:
        """What is known for `key`, or what `find` says."""
        now = time.monotonic()
        with self._lock:
            at, value = self._known.get(key, (float("-inf"), None))
            if now - at < CACHE_SECONDS:
                return value  # type: ignore[return-value]
        found = find()
        with self._lock:
            if len(self._known) >= CACHE_SIZE:
                self._known = {key: item for key, item in self._known.items() if now - item[0] < CACHE_SECONDS}
            if len(self._known) < CACHE_SIZE:
                self._known[key] = (now, found)
        return found
