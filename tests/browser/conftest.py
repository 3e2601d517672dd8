"""The dashboard in a real Chromium, of a control plane that runs whole: on the embedded API server, nodes in memory.

Every page that a test opens is watched: what the browser complains of, and whom it asks, is looked at afterwards.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from lab.site import Site

QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
"""As root in a container; and it asks nobody for updates."""
PATIENCE = 30_000
"""Milliseconds: Playwright's own five seconds are too few for a busy machine."""
expect.set_options(timeout=PATIENCE)
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", ".lab/screenshots"))


def _missing(what: str) -> None:
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """For no longer than it is needed: while Playwright runs, nothing else of this thread can have an event loop."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        _missing("there is no Chromium: `make setup` as root installs Debian's")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site
        assert site.control.dead() == {}


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
        context.set_default_timeout(PATIENCE)
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
