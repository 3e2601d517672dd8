"""Paging and filtering in a browser, of more assignments than a page shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, expect

from lab.apiserver.process import EmbeddedCluster
from lab.control_plane import install
from lab.kube import Kube
from lab.net.broker import Broker
from tests.browser.conftest import PATIENCE
from tests.contract.api.conftest import Api, Objects

COUNT = 230


@dataclass
class Makes:
    """Starts the API alone, and nobody who changes its objects."""

    objects: Objects
    start: Callable[..., Api]

    def __call__(self, **settings: str) -> Api:
        return self.start(**settings)


@pytest.fixture(scope="module")
def make_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Makes]:
    tmp_path = tmp_path_factory.mktemp("many")
    made: list[Api] = []
    with Broker(tmp_path / "broker", port=0) as broker, EmbeddedCluster(tmp_path / "cluster") as cluster:
        kube = Kube(cluster.url, cluster.ca_path, cluster.token)
        install(kube)
        objects = Objects(kube)
        objects.pool("prod", "10.0.0.0/16")
        for number in range(COUNT):
            objects.claim(f"10.0.1.{number}", namespace=f"ns-{number:03}")

        def start(**settings: str) -> Api:
            directory = tmp_path / f"api{len(made)}"
            api = Api(directory, cluster.kubeconfig, broker.unix_url, HAWSE_ANONYMOUS="true", **settings).start()
            made.append(api)
            api.until(lambda: f"{COUNT} assignments".encode() in api.get("/assignments").body)
            return api

        try:
            yield Makes(objects, start)
        finally:
            for api in made:
                api.stop()


@pytest.fixture
def api(make_api: Makes) -> Api:
    return make_api()


@pytest.mark.timeout(300)
def test_pages_are_turned_and_a_filter_holds_over_them(api: Api, chromium: Browser) -> None:
    context = chromium.new_context(base_url=f"http://127.0.0.1:{api.port}")
    try:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto("/assignments?sort=address")
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(100)
        seen = set(rows.locator("td:first-child").all_inner_texts())
        for count in (100, 30):
            before = page.url
            page.get_by_role("link", name="Next page").press("Enter")
            expect(page).not_to_have_url(before)  # it has as many rows
            expect(rows).to_have_count(count)
            seen |= set(rows.locator("td:first-child").all_inner_texts())
        assert len(seen) == COUNT, "each once"
        expect(page.get_by_role("link", name="Next page")).to_have_count(0)

        page.get_by_label("Text").fill("ns-1")
        page.get_by_label("Sort by").select_option("namespace")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_text("100 assignments")).to_be_visible()
        expect(page).to_have_url(re.compile("text=ns-1"))
        expect(rows.first).to_contain_text("ns-100")
        page.locator("select[name=phase]").select_option("Ready")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_text("0 assignments")).to_be_visible()
    finally:
        context.close()


@pytest.mark.timeout(300)
def test_a_page_that_was_turned_away_follows_again(make_api: Makes, chromium: Browser) -> None:
    """A browser does not ask again by itself for a stream that was answered with an error."""
    api = make_api(HAWSE_API_LISTENERS="1")
    context = chromium.new_context(base_url=f"http://127.0.0.1:{api.port}")
    try:
        context.set_default_timeout(PATIENCE)
        first, second = context.new_page(), context.new_page()
        first.goto("/assignments")
        expect(first.locator("tbody tr")).to_have_count(100)
        second.goto("/assignments?sort=address")
        notice = second.get_by_text("This page does not follow what happens")
        expect(notice).to_be_visible()
        first.close()
        expect(notice).to_be_hidden()  # the server finds out within ten seconds that it has gone
        make_api.objects.claim("10.0.0.1", namespace="the-first")
        expect(second.locator("tbody tr").first).to_contain_text("the-first")
    finally:
        context.close()
