"""The dashboard in a real Chromium, of a control plane that runs whole: on the embedded API server, nodes in memory.

Every page that a test opens is watched: what the browser complains of, and whom it asks, is looked at afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import urllib3
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from egress.adapters.ledger import Ledger
from lab.accounts import Accounts
from lab.apiserver.process import EmbeddedCluster
from lab.control_plane import ControlPlane, install
from lab.kube import Kube
from lab.net.broker import Broker
from lab.stack import wait_for
from lab.tickets.receiver import Desk
from lab.virtual_nodes import VirtualNodes

Json = dict[str, Any]
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
"""As root in a container; and it asks nobody for updates."""
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", ".lab/screenshots"))


@dataclass
class Site:
    """The control plane, and the dashboard that it serves."""

    kube: Kube
    control: ControlPlane
    desk: Desk
    nodes: VirtualNodes
    given: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.control.api_url

    def pool(self, name: str, cidr: str, **fields: object) -> None:
        spec = {"cidrs": [cidr], "namespaceSelector": {"matchLabels": {"team": name}}, **fields}
        self.kube.create(
            {"apiVersion": "egress.hawse.dev/v1alpha1", "kind": "EgressPool", "metadata": {"name": name}, "spec": spec}
        )

    def namespace(self, name: str, pool: str) -> str:
        """Makes a namespace; the address that it comes back with."""
        netid = 0x1000 + len(self.given)
        head: Json = {"apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "metadata": {"name": name}}
        self.kube.create(head | {"netname": name, "netid": netid})
        metadata = {"name": name, "labels": {"team": pool}}
        made = self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        address: str = made["metadata"]["annotations"]["egress.hawse.dev/addresses"]
        self.given.append(address)
        return address

    def next_address(self) -> IPv4Address:
        """The address that pool prod gives next."""
        return next(
            address for number in range(97, 111) if str(address := IPv4Address(f"192.168.1.{number}")) not in self.given
        )


def _answers(url: str) -> bool:
    try:
        return urllib3.request("GET", url, retries=False, timeout=5).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def _missing(what: str) -> None:
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        _missing("there is no Chromium: `make setup` as root installs Debian's")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    accounts = Accounts(directory / "cluster")
    with (
        Broker(directory / "broker", port=0) as broker,
        EmbeddedCluster(directory / "cluster") as cluster,
        Desk() as desk,
    ):
        profiles = directory / "profiles.yaml"
        profiles.write_text(json.dumps({"cluster": "browser", "profiles": [desk.profile(directory)]}))
        kube = Kube(cluster.url, cluster.ca_path, cluster.token)
        install(kube)
        nodes = VirtualNodes(broker.unix_url, [IPv4Address("192.168.1.17"), IPv4Address("192.168.1.18")])
        nodes.create(kube)
        control = ControlPlane(
            directory / "control",
            redis_url=broker.unix_url,
            kubeconfigs=accounts.kubeconfigs(cluster.kubeconfig, directory),
            environment={"HAWSE_TICKET_PROFILES": str(profiles), "HAWSE_ANONYMOUS": "true"},
        )
        try:
            with nodes:
                control.start()
                control.register_webhooks(kube)
                site = Site(kube, control, desk, nodes)
                site.pool("prod", "192.168.1.96/28")
                site.pool("bank", "192.168.1.112/28", ticketProfile=desk.name, approval="required")
                with closing(Ledger(broker.unix_url)) as ledger:
                    wait_for("the pools", lambda: ledger.is_ready() and len(ledger.offer().pools) == 2, 30)
                wait_for("the API", lambda: _answers(f"{site.url}/pools"), 30)
                yield site
                assert control.dead() == []
        finally:
            control.stop()


@dataclass
class Watched:
    """What the browser complained of, and whom it asked."""

    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def open_page(chromium: Browser, site: Site, watched: Watched) -> Iterator[Callable[..., Page]]:
    """Opens a page of the dashboard; `options` are of the browser's context."""
    contexts: list[BrowserContext] = []

    def asked(request: Request) -> None:
        if not request.url.startswith(f"{site.url}/"):
            watched.strangers.append(request.url)

    def opened(path: str = "/", **options: Any) -> Page:  # noqa: ANN401 - those of Browser.new_context
        context = chromium.new_context(base_url=site.url, **options)
        contexts.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("console", lambda message: watched.complaints.append(message.text))
        page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        page.on("request", asked)
        page.goto(path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert watched.complaints == []
    assert watched.strangers == []


@pytest.fixture
def shot() -> Callable[[Page, str], None]:
    """Keeps a picture of a page, to be looked at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def take(page: Page, name: str) -> None:
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    return take
