"""Flask without what admission has no use for, which was most of what an answer cost.

What is not one of the plain cases here is Flask's as ever. There are no sessions, nothing runs before a view, and
outside of a request no URL is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Flask, Request, Response, request
from flask.sessions import NullSession, SessionInterface
from werkzeug.exceptions import ClientDisconnected

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from werkzeug.routing import MapAdapter, Rule

F = TypeVar("F", bound=Callable[..., Any])


class Answer(Response):
    """A body of JSON that is there, with status 200.

    The server is given a list, which it sends at once. Other responses are iterators: it takes them piece by piece, and
    waits for the interpreter each time.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__(body, content_type="application/json")
        self._body = body

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", self.headers.to_wsgi_list())
        return [self._body]


def read_body() -> bytes:
    """The body of the current request, which can be read once.

    One whose length is known is read in one go. Flask would look for its end as well, and with each look lets go of the
    interpreter. RequestEntityTooLarge if it is longer than the application allows; ClientDisconnected if it is not all
    there.
    """
    environ = request.environ
    text, most = environ.get("CONTENT_LENGTH", ""), request.max_content_length
    if most is None or not text.isdecimal() or int(text) > most:
        return request.get_data()
    data: bytes = environ["wsgi.input"].read(int(text))
    if len(data) != int(text):
        raise ClientDisconnected
    return data


class _NoSessions(SessionInterface):
    _none = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:
        return self._none


class Lean(Flask):
    """A Flask application that finds rules without variables in a table, and after a view does `finish` alone."""

    session_interface = _NoSessions()

    def __init__(self, name: str, finish: Callable[[Response], None]) -> None:
        super().__init__(name)
        self._plain: dict[tuple[str, str], Rule] = {}
        self._finish = finish

    def add_url_rule(self, rule: str, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as Flask's
        """As Flask's."""
        super().add_url_rule(rule, *args, **options)
        for added in self.url_map.iter_rules():
            if not added.arguments:  # Flask itself answers OPTIONS, with what the adapter knows
                self._plain |= {(method, added.rule): added for method in (added.methods or set()) - {"OPTIONS"}}

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """What finds the rule of `request`; None if that is found."""
        if request is None:
            return None
        rule = self._plain.get((request.method, request.path))
        if rule is None:
            return super().create_url_adapter(request)
        request.url_rule, request.view_args = rule, {}
        return None

    def ensure_sync(self, func: F) -> F:
        """No view is a coroutine."""
        return func

    def preprocess_request(self) -> None:
        """Nothing runs before a view."""

    def process_response(self, response: Response) -> Response:
        """The response, as `finish` leaves it."""
        self._finish(response)
        return response

    def do_teardown_request(self, exc: BaseException | None = None) -> None:
        """Nothing runs when a request ends."""
