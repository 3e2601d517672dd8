"""The dashboard and the API behind a real reverse proxy, nginx, that signs people in and says who they are."""

from __future__ import annotations

import base64
import http.server
import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.cookies import SimpleCookie
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from lab.control_plane import free_ports
from tests.contract.api.conftest import Answer, Api, Json, Objects

CONFIGURATION = """
daemon off; master_process off; {user} pid {directory}/pid; error_log stderr;
events {{ }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port};
    auth_basic Hawse; auth_basic_user_file {directory}/users;
    location / {{
      proxy_pass http://127.0.0.1:{upstream};
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Authorization "";
      proxy_set_header X-Forwarded-User $remote_user;
      proxy_set_header X-Forwarded-Groups "";
    }}
  }}
}}
"""


SIGN_IN = """
daemon off; master_process off; {user} pid {directory}/pid; error_log stderr;
events {{ }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location /oauth2/ {{
      proxy_pass http://127.0.0.1:{oidc};
      proxy_set_header Host $http_host;
    }}
    location = /oauth2/auth {{
      internal;
      proxy_pass http://127.0.0.1:{oidc};
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
    }}
    location / {{
      auth_request /oauth2/auth;
      error_page 401 = /oauth2/start;
      auth_request_set $user $upstream_http_x_auth_request_user;
      auth_request_set $groups $upstream_http_x_auth_request_groups;
      proxy_pass http://127.0.0.1:{upstream};
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Authorization "";
      proxy_set_header Cookie "";
      proxy_set_header X-Forwarded-User $user;
      proxy_set_header X-Forwarded-Groups $groups;
    }}
  }}
}}
"""
"""As for an OIDC proxy that is asked about each request (`auth_request`), and keeps the browser's session itself."""


class OidcProxy(http.server.BaseHTTPRequestHandler):
    """What oauth2-proxy and its like do towards nginx: `/oauth2/auth` says who a session is, or 401; `/oauth2/start`
    leads to the provider; `/oauth2/callback` comes back from it with a code, which is good once, and begins a session
    in a cookie that no script and no other site's form gets."""

    codes: ClassVar[dict[str, str]] = {}
    sessions: ClassVar[dict[str, tuple[str, str]]] = {}
    people: ClassVar[dict[str, str]] = {"ana": "net-ops,on-call", "tom": ""}

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        session = SimpleCookie(self.headers.get("Cookie", "")).get("__Host-session")
        known = self.sessions.get(session.value) if session is not None else None
        match url.path:
            case "/oauth2/auth" if known is not None:
                self._answer(202, {"X-Auth-Request-User": known[0], "X-Auth-Request-Groups": known[1]})
            case "/oauth2/start":
                self._answer(302, {"Location": "https://idp.example/authorize?client_id=hawse&response_type=code"})
            case "/oauth2/callback" if query.get("code") in self.codes:
                user, value = self.codes.pop(query["code"]), secrets.token_urlsafe(16)
                self.sessions[value] = (user, self.people[user])
                cookie = f"__Host-session={value}; Path=/; Secure; HttpOnly; SameSite=Lax"
                self._answer(302, {"Location": "/", "Set-Cookie": cookie})
            case _:
                self._answer(401, {})

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, text)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def oidc() -> Iterator[int]:
    """The port of an OIDC proxy."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OidcProxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


class Proxy:
    """nginx before `api`."""

    def __init__(self, directory: Path, api: Api, configuration: str = CONFIGURATION, **facts: object) -> None:
        (self.port,) = free_ports(1)
        self._api = api
        directory.mkdir()
        (directory / "users").write_text("ana:{PLAIN}secret\n")
        user = "user root;" if os.geteuid() == 0 else ""
        text = configuration.format(directory=directory, port=self.port, upstream=api.port, user=user, **facts)
        (directory / "nginx.conf").write_text(text)
        nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if nginx is None:
            missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            missing("there is no nginx: `make setup` as root installs Debian's")
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen([nginx, "-c", directory / "nginx.conf", "-p", directory], stderr=log)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """As ana, to whoever asks for a password."""
        known = {"Authorization": "Basic " + base64.b64encode(b"ana:secret").decode()}
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return self._api.ask(method, path, body, known | named, port=self.port)


@pytest.fixture
def api(make_api: Callable[..., Api], objects: Objects) -> Api:
    objects.pool("prod", "192.168.1.0/24")
    objects.namespace("shop")
    objects.claim("192.168.1.5", namespace="shop")
    return make_api(HAWSE_AUTH_PROXIES="127.0.0.1/32").start()


@pytest.fixture
def proxy(api: Api, tmp_path: Path) -> Iterator[Proxy]:
    running = Proxy(tmp_path / "nginx", api)
    try:

        def answers() -> bool:
            with suppress(OSError):
                return running.ask("GET", "/healthz").status == 200
            return False

        api.until(answers)
        api.until(lambda: b">shop</a>" in running.ask("GET", "/assignments").body)
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def test_whoever_signs_in_is_known_by_that_name(proxy: Proxy, api: Api) -> None:
    assert b'<span class="who">ana</span>' in proxy.ask("GET", "/").body
    refused = api.ask("GET", "/", port=proxy.port)
    assert refused.status == 401
    assert b"shop" not in refused.body


def test_nobody_gives_himself_another_name(proxy: Proxy) -> None:
    forged = {"X_Forwarded_User": "system:admin", "X_Forwarded_Groups": "system:masters"}
    page = proxy.ask("GET", "/", **forged).body
    assert b'<span class="who">ana</span>' in page
    assert b"system:admin" not in page


def test_a_button_works_and_says_who_pressed_it(proxy: Proxy) -> None:
    form = {"Content_Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{proxy.port}"}
    body = urlencode({"why": "behind nginx"}).encode()
    answer = proxy.ask("POST", "/namespaces/shop/retry", body, Sec_Fetch_Site="same-origin", **form)
    assert (answer.status, answer.headers["location"]) == (303, "/namespaces/shop?done=retried")
    (entry,) = json.loads(proxy.ask("GET", "/api/v1/audit").body)["items"]
    assert (entry["who"], entry["why"]) == ("ana", "behind nginx")
    for other in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        assert proxy.ask("POST", "/namespaces/shop/retry", body, **(form | other)).status == 403


def test_events_come_through_as_they_happen(proxy: Proxy, objects: Objects) -> None:
    credentials = base64.b64encode(b"ana:secret").decode()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as stream:
        head = f"GET /api/v1/events HTTP/1.1\r\nHost: hawse\r\nAuthorization: Basic {credentials}\r\n\r\n"
        stream.sendall(head.encode())
        said = b""
        while b"event: change" not in said:
            said += stream.recv(4096)
        objects.status("192.168.1.5", phase="Ready", node="node2")
        before = said.count(b"event: change")
        while said.count(b"event: change") == before:
            said += stream.recv(4096)
    assert b"text/event-stream" in said


def test_the_api_takes_a_proxys_word_too_but_no_form(proxy: Proxy) -> None:
    json_type: Json = {"Content_Type": "application/json"}
    assert proxy.ask("POST", "/api/v1/namespaces/shop/retry", b'{"why": "x"}', **json_type).status == 200
    form: Json = {"Content_Type": "text/plain"}
    assert proxy.ask("POST", "/api/v1/namespaces/shop/retry", b'{"why": "x"}', **form).status == 400


@pytest.fixture
def signing_in(api: Api, oidc: int, tmp_path: Path) -> Iterator[Proxy]:
    running = Proxy(tmp_path / "nginx-oidc", api, SIGN_IN, oidc=oidc)
    try:
        api.until(lambda: running.ask("GET", "/").status == 302)
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def sign_in(proxy: Proxy, user: str) -> str:
    """The cookie of a session that begins, as the provider would have it."""
    code = secrets.token_urlsafe(8)
    OidcProxy.codes[code] = user
    answer = proxy.ask("GET", f"/oauth2/callback?code={code}")
    assert answer.status == 302
    assert proxy.ask("GET", f"/oauth2/callback?code={code}").status == 401, "a code is good once"
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert {"Secure", "HttpOnly", "SameSite=Lax"} <= set(attributes)
    return cookie


def test_an_oidc_session_leads_to_pages_and_actions(signing_in: Proxy) -> None:
    stranger = signing_in.ask("GET", "/assignments")
    assert (stranger.status, stranger.headers["location"].split("?")[0]) == (302, "https://idp.example/authorize")
    assert b"shop" not in stranger.body
    forged = {"X_Forwarded_User": "system:admin", "X_Forwarded_Groups": "system:masters", "Cookie": "__Host-session=x"}
    assert signing_in.ask("GET", "/", **forged).status == 302
    cookie = sign_in(signing_in, "ana")
    page = signing_in.ask("GET", "/", **(forged | {"Cookie": cookie}))
    assert b'<span class="who">ana</span>' in page.body
    assert b"system:admin" not in page.body
    form = {"Content_Type": "application/x-www-form-urlencoded", "Cookie": cookie}
    body = urlencode({"why": "signed in"}).encode()
    here = {"Origin": f"http://127.0.0.1:{signing_in.port}", "Sec_Fetch_Site": "same-origin"}
    assert signing_in.ask("POST", "/namespaces/shop/retry", body, **form, **here).status == 303
    for other in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {}):
        refused = signing_in.ask("POST", "/namespaces/shop/retry", body, **form, **other)
        assert refused.status == 403, "the cookie alone presses no button"
    (entry,) = json.loads(signing_in.ask("GET", "/api/v1/audit", Cookie=cookie).body)["items"]
    assert (entry["who"], entry["why"]) == ("ana", "signed in")
    tom = sign_in(signing_in, "tom")
    assert b'<span class="who">tom</span>' in signing_in.ask("GET", "/", Cookie=tom).body
    OidcProxy.sessions.clear()
    assert signing_in.ask("GET", "/", Cookie=cookie).status == 302, "signed out"
