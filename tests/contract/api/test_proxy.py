"""The dashboard and the API behind a real reverse proxy, nginx, that signs people in and says who they are."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import pytest

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


class Proxy:
    """nginx before `api`."""

    def __init__(self, directory: Path, api: Api) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._api = api
        directory.mkdir()
        (directory / "users").write_text("ana:{PLAIN}secret\n")
        user = "user root;" if os.geteuid() == 0 else ""
        text = CONFIGURATION.format(directory=directory, port=self.port, upstream=api.port, user=user)
        (directory / "nginx.conf").write_text(text)
        nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if nginx is None:
            missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            missing("there is no nginx: `make setup` as root installs Debian's")
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen([nginx, "-c", directory / "nginx.conf", "-p", directory], stderr=log)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """As ana."""
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
