"""The commands' way to Hawse's API, and how its answers are printed: for people, or as they came."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import click
import msgspec
import urllib3

from egress.adapters.cluster import ConfigError, bearer_token

TIMEOUT = urllib3.Timeout(connect=5, read=30)
SILENT_SECONDS = 30.0
"""A stream that says nothing for so long is dead: it says that it lives every ten."""
VARIABLES = {"server": "HAWSE_SERVER", "token": "HAWSE_TOKEN", "ca": "HAWSE_SERVER_CA"}
"""What the environment may say of the API: its URL, the bearer token, the file of its certificate authority."""
T = TypeVar("T")


class ApiError(click.ClickException):
    """The API refused, or is not there; the message is one line that says what to do. Exit code 1."""


class AwayError(ApiError):
    """The API, or what it needs, is not there now: it may be in a moment."""


class UnusableError(click.ClickException):
    """It is not said where the API is, or who asks, or not in a way that can be used."""

    exit_code = 2


class Client:
    """A client of `/api/v1` at `server`, an http or https URL. Without a `token`, as anonymous."""

    def __init__(self, server: str, token: str = "", ca: str = "") -> None:
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UnusableError(f"{server!r} is no URL of Hawse's API; it looks like https://hawse.example.com")
        if token and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise UnusableError(f"{server} is not encrypted: the token is not sent there; use https")
        self._base = server.rstrip("/") + "/api/v1"
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        try:
            self._pool = urllib3.PoolManager(retries=False, timeout=TIMEOUT, ca_certs=ca or None)
            if ca:
                self._pool.connection_from_url(server)
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise UnusableError(f"{ca} cannot be used: {error}") from None

    def get(self, path: str, **query: object) -> bytes:
        """The answer to a read, as it came. ApiError unless there is one."""
        named = {name: _text(value) for name, value in query.items() if value not in ("", None, False)}
        return self._ask("GET", path + (f"?{urlencode(named)}" if named else ""))

    def post(self, path: str, body: dict[str, object]) -> bytes:
        """The answer to an action. ApiError unless it is done."""
        return self._ask("POST", path, msgspec.json.encode(body))

    def changes(self) -> Iterator[None]:
        """Once at the beginning, and again whenever something is different. Ends when the API ends the stream."""
        headers = self._headers | {"Accept": "text/event-stream"}
        timeout = urllib3.Timeout(connect=5, read=SILENT_SECONDS)
        try:
            answer = self._pool.request(
                "GET", f"{self._base}/events", headers=headers, redirect=False, timeout=timeout, preload_content=False
            )
            try:
                if answer.status != 200:
                    kind = AwayError if answer.status in (502, 503, 504) else ApiError
                    raise kind(_why(answer.status, bytes(answer.read())))
                rest = b""
                for data in answer.stream(4096):
                    *events, rest = (rest + data).split(b"\n\n")
                    if any(event.startswith(b"event: change") for event in events):
                        yield None
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise AwayError(f"Hawse's API at {self._base} cannot be reached: {clean(str(error))}") from None

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = self._headers | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            answer = self._pool.request(method, self._base + path, body=body, headers=headers, redirect=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise AwayError(f"Hawse's API at {self._base} cannot be reached: {clean(str(reason))}") from None
        if answer.status == 200:
            return bytes(answer.data)
        kind = AwayError if answer.status in (502, 503, 504) else ApiError
        raise kind(_why(answer.status, bytes(answer.data)))


def part(name: str) -> str:
    """`name` as one part of a path, whatever is in it."""
    return quote(name, safe="")


def decoded(data: bytes, kind: type[T]) -> T:
    """What an answer says. ApiError if it is none that this version knows."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise ApiError(f"the API answered what this version of hawse does not know: {error}") from None


def reaches(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options that say where the API is; it gets a Client as its first argument."""

    @functools.wraps(function)
    def needs(client: Client | None, **others: object) -> object:
        if client is None:
            raise UnusableError(f"it is not said where Hawse's API is: use --server or {VARIABLES['server']}")
        return function(client, **others)

    return may_reach(needs)


def may_reach(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a command that also works without the API: it gets None where it is not said where that is."""

    @click.option("--server", envvar=VARIABLES["server"], metavar="URL", default="", help="Hawse's API.")
    @click.option(
        "--token-file", type=click.Path(dir_okay=False, exists=True), help="A file with your bearer token, and no more."
    )
    @click.option(
        "--server-ca",
        envvar=VARIABLES["ca"],
        type=click.Path(dir_okay=False, exists=True),
        help="The certificate authority of the API, in PEM; without it, those of the system.",
    )
    @functools.wraps(function)
    def wrapped(*, server: str, token_file: str | None, server_ca: str | None, **others: object) -> object:
        client = Client(server, _token(token_file), server_ca or "") if server else None
        return function(client, **others)

    return wrapped


def prints(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command `--output`."""
    choice = click.Choice(["table", "json", "yaml"])
    return click.option("-o", "--output", type=choice, default="table", help="A table for people, or JSON or YAML.")(
        function
    )


def put(data: bytes, output: str, lines: Callable[[], Iterable[str]]) -> None:
    """Prints an answer: as it came, or the `lines` that people read."""
    if output == "json":
        click.echo(msgspec.json.format(data, indent=2).decode().rstrip())
    elif output == "yaml":
        from egress.cli.yaml_text import dump  # noqa: PLC0415 - slow to import, rarely needed

        click.echo(dump(msgspec.json.decode(data)))
    else:
        for line in lines():
            click.echo(line)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """Lines with columns as wide as they must be."""
    texts = [list(header), *([clean(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(header))]
    for line in texts:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def clean(text: str) -> str:
    """`text` on one line, without what a terminal would obey: what objects hold is written by anybody."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def ago(at: float, now: float | None = None) -> str:
    """How long ago `at` was, in the largest unit, as kubectl has it; "" for never."""
    if not at:
        return ""
    seconds = max(0, int((time.time() if now is None else now) - at))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _text(value: object) -> str:
    return "true" if value is True else str(value)


def _token(file: str | None) -> str:
    """The token of the file, else of the environment, else that with which kubectl speaks to the cluster."""
    if file is not None:
        with open(file, encoding="utf-8", errors="replace") as opened:
            token = opened.read().strip()
        if not token or not token.isascii() or not token.isprintable():
            raise UnusableError(f"{file} holds no bearer token on one line")
        return token
    if os.environ.get(VARIABLES["token"]):
        return os.environ[VARIABLES["token"]].strip()
    kubeconfig = os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
    if not os.path.exists(kubeconfig):
        return ""
    try:
        return bearer_token(kubeconfig)
    except ConfigError as error:
        raise UnusableError(f"{error}; name a token with --token-file or {VARIABLES['token']}") from None


def _why(status: int, data: bytes) -> str:
    try:
        problem = msgspec.json.decode(data, type=_Problem)
    except msgspec.DecodeError:
        return f"the API answered {status}, and not as Hawse does: is it what --server names?"
    advice = ""
    if status == 401:
        advice = f"; name it with --token-file or {VARIABLES['token']}"
    return clean(problem.detail or problem.title) + advice


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""
