"""One HTTP call to a ticket system: bounded in time and size, followed nowhere, and tried once.

When it is tried again is for the caller to decide, who knows whether it may have been received. No error made here
holds a credential, not even one that the system has sent back, nor the URL: that of a webhook may be one.
"""

from __future__ import annotations

import base64
import email.utils
import html
import http.client
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self, TypeVar
from urllib.parse import quote

import msgspec
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from egress.operations import PermanentError
from egress.ticket_profiles import HttpProfile, ProfilesError, secrets
from workers.ticketing.errors import GoneError, NotReachedError, TicketAwayError

MAX_ANSWER = 256 * 1024
"""Bytes of an answer that are read."""
MAX_WAIT = 3600.0
"""The longest time, in seconds, that a system's Retry-After is believed."""
EXCERPT = 200
"""Characters of a refusal that are shown."""
_AWAY = {401, 408, 425, 429}
"""401: credentials run out and are replaced, and no ticket is to be lost for it."""
_GONE = {404, 410}
_VISIBLE = re.compile(r"[\x21-\x7e]+")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Credentials:
    """An Authorization header, and the words that must not be seen anywhere."""

    header: str = field(repr=False)
    words: tuple[str, ...] = field(repr=False)


def basic(username_file: str, password_file: str) -> Credentials:
    """User name and password, read now. NotReachedError if they cannot be: somebody may put them there yet."""
    username, password = words_of(username_file, password_file)
    if ":" in username:
        raise NotReachedError(f"the user name in {username_file} has a colon in it")
    pair = base64.b64encode(f"{username}:{password}".encode()).decode()
    return Credentials(f"Basic {pair}", (password, pair))


def bearer(token_file: str) -> Credentials:
    """A bearer token, read now. NotReachedError if it cannot be: somebody may put it there yet."""
    (token,) = words_of(token_file)
    if not _VISIBLE.fullmatch(token):
        raise NotReachedError(f"the token in {token_file} has characters that no token has")
    return Credentials(f"Bearer {token}", (token,))


def words_of(*files: str) -> list[str]:
    """What these files hold, read now. NotReachedError names one that cannot be used."""
    try:
        return secrets(files)
    except ProfilesError as error:
        raise NotReachedError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer; `whole` unless there was more of it than is read."""

    status: int
    body: bytes
    whole: bool
    system: str
    retry_after: float | None = None

    def read(self, kind: type[T]) -> T:
        """The body, which is to be JSON of this kind. TicketAwayError if it is not: a login page, or a proxy's."""
        if not self.whole:
            raise TicketAwayError(f"{self.system} answered with more than {MAX_ANSWER} bytes", self.retry_after)
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise TicketAwayError(
                f"{self.system} answered {self.status} with something else than its API's JSON", self.retry_after
            ) from None


class Client:
    """Calls one system. Every call has a connection of its own, so that any number of threads may call."""

    def __init__(  # noqa: PLR0913 - each is a line of a profile
        self,
        system: str,
        url: str,
        *,
        timeout: float,
        ca_file: str = "",
        proxy: str = "",
        settle: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`system` is how errors call it; `timeout` in seconds, for a whole call but for the name's resolution, which
        is the resolver's to bound. `settle`: see `call`."""
        self._system = system
        self._url = urllib3.util.parse_url(url)
        self._proxy = urllib3.util.parse_url(proxy) if proxy else None
        self._timeout = timeout
        self._ca_file = ca_file
        self._settle = settle
        self._clock = clock

    @classmethod
    def of(cls, profile: HttpProfile, clock: Callable[[], float]) -> Self:
        """The client that a profile describes."""
        return cls(
            f"ticket profile {profile.name}",
            profile.url,
            timeout=profile.timeout,
            ca_file=profile.ca_file,
            proxy=profile.proxy,
            settle=profile.settle,
            clock=clock,
        )

    def call(
        self,
        method: str,
        path: str = "",
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        credentials: Credentials | None = None,
        writes: bool = False,
    ) -> Answer:
        """Sends a request to `path` below the URL, or to the URL itself, and gives the answer if it is a 2xx.

        TicketAwayError if it could not be reached, did not answer in time, or answered 401, 408, 425, 429 or
        5xx.
        PermanentError for every other answer. A call that `writes` and may have been received is not to be repeated
        for `settle` seconds: until then the system may still be at it.
        """
        target = self._url.request_uri if not path else (self._url.path or "").rstrip("/") + path
        sent = {"User-Agent": "hawse", "Accept": "application/json", **headers}
        words: tuple[str, ...] = (self._url.request_uri,) if len(self._url.request_uri) > 8 and not path else ()
        if credentials is not None:
            sent["Authorization"] = credentials.header
            words += credentials.words
        connection = self._connection()
        wait = self._settle if writes else None
        try:
            response = connection.exchange(method, self._target(target), body, sent)
            data = response.read(MAX_ANSWER + 1)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            if not connection.reached:
                raise NotReachedError(f"{self._system} {self._trouble(connection, error)}") from None
            raise TicketAwayError(f"{self._system} {self._trouble(connection, error)}", wait) from None
        finally:
            connection.end()
        if connection.late:  # an answer that ends where the connection does ends there too
            raise TicketAwayError(f"{self._system} did not answer within {self._timeout:g} s", wait)
        status = response.status
        if 200 <= status < 300:
            return Answer(status, data[:MAX_ANSWER], len(data) <= MAX_ANSWER, self._system, wait)
        if 300 <= status < 400:
            raise PermanentError(f"{self._system} answered {status}, a redirect, which is not followed: mend its url")
        if status in _AWAY or not 400 <= status < 500:
            asked = retry_after(response.headers.get("Retry-After"), self._clock())
            if status not in _AWAY and wait is not None:
                asked = max(asked or 0.0, wait)
            raise TicketAwayError(f"{self._system} answered {status}", asked)
        kind = GoneError if status in _GONE else PermanentError
        raise kind(f"{self._system} answered {status}: {_excerpt(data, words) or 'no reason given'}")

    def _connection(self) -> _Plain | _Tls:
        to = self._proxy or self._url
        host = (to.host or "").strip("[]")
        deadline = time.monotonic() + self._timeout
        if self._url.scheme != "https":
            plain = _Plain(host, to.port or 80, timeout=self._timeout)
            plain.deadline = deadline
            return plain
        try:
            context = ssl.create_default_context(cafile=self._ca_file or None)
        except OSError as error:  # ssl.SSLError is one
            raise PermanentError(f"the CA file {self._ca_file} cannot be used: {error.strerror}") from None
        port = self._url.port or 443
        tls = _Tls(host, (to.port or 80) if self._proxy else port, timeout=self._timeout, ssl_context=context)
        if self._proxy:
            tls.set_tunnel((self._url.host or "").strip("[]"), port)
        tls.deadline = deadline
        return tls

    def _target(self, target: str) -> str:
        if self._proxy and self._url.scheme == "http":
            return f"http://{self._url.netloc}{target}"
        return target

    def _trouble(self, connection: _Bounded, error: Exception) -> str:
        if connection.late or isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
            return f"did not answer within {self._timeout:g} s"
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"has a certificate that cannot be trusted: {error.verify_message}"
        why = (error.strerror if isinstance(error, OSError) else "") or type(error).__name__
        return f"hung up: {why}" if connection.reached else f"cannot be reached: {why}"


class _Bounded(HTTPConnection):
    """A connection that is cut at its deadline, whatever it is at: connecting, shaking hands, reading a byte a second.

    A socket's own timeout begins anew with every byte.
    """

    deadline = 0.0
    reached = False
    """Whether something may have been received."""
    late = False
    _watch: threading.Timer | None = None
    _second: socket.socket | None = None

    def exchange(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """Sends a request, and gives the answer, whose body is not read yet."""
        self.connect()
        self.reached = True
        self.request(method, target, body=body, headers=headers, preload_content=False, decode_content=False)
        return self.getresponse()

    def end(self) -> None:
        """Closes all that is open."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch.join()
        if self._second is not None:
            self._second.close()
        self.close()

    def _new_conn(self) -> socket.socket:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        why: OSError = OSError("it has no address")
        for tried, (family, kind, protocol, _, address) in enumerate(found):
            share = (self.deadline - time.monotonic()) / (len(found) - tried)
            if share <= 0:
                raise TimeoutError
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(share)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(max(0.001, self.deadline - time.monotonic()))
                self._second = sock.dup()  # the first one goes where TLS takes it
            except OSError as error:
                sock.close()
                why = error
                continue
            self._watch = threading.Timer(max(0.0, self.deadline - time.monotonic()), self._cut)
            self._watch.daemon = True
            self._watch.start()
            return sock
        raise why

    def _cut(self) -> None:
        self.late = True
        try:
            if self._second is not None:
                self._second.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other side was faster


class _Plain(_Bounded):
    pass


class _Tls(_Bounded, HTTPSConnection):
    pass


def retry_after(text: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; None if it holds neither. An hour at
    most."""
    if text is None:
        return None
    try:
        seconds = float(text) if text.strip().isdigit() else email.utils.parsedate_to_datetime(text).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_WAIT) if math.isfinite(seconds) else MAX_WAIT


def _excerpt(data: bytes, words: tuple[str, ...]) -> str:
    """The first printable characters of an answer, without the words."""
    text = data.decode(errors="replace")
    for word in sorted(words, key=len, reverse=True):
        escaped = msgspec.json.encode(word).decode()[1:-1]
        for form in (word, escaped, escaped.replace("/", "\\/"), html.escape(word), quote(word, safe="")):
            text = text.replace(form, "***")
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:EXCERPT]
