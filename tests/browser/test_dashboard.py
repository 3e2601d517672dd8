"""What an operator sees and does, in a browser, of a control plane at work."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from lab.site import Site
from lab.stack import wait_for
from tests.browser.conftest import Watched

pytestmark = pytest.mark.timeout(300)
Open = Callable[..., Page]
RULES = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
}
PHONE = {"viewport": {"width": 375, "height": 812}}
DESK = {"viewport": {"width": 1600, "height": 1000}}


@pytest.fixture(scope="module")
def pages(site: Site) -> list[str]:
    """Every page, each with something on it: an assignment that works, one that fails and one that waits."""
    site.desk.closed = True
    site.namespace("ledger", "prod")
    site.nodes.nodes["node1"].arp.neighbours[site.next_address()] = "02:00:00:00:00:99"
    site.namespace("unlucky", "prod")
    site.namespace("waiting", "bank")
    return [
        "/",
        "/assignments",
        "/namespaces/ledger",
        "/namespaces/waiting",
        "/namespaces/ledger/path",
        "/verification",
        "/nodes",
        "/failures",
        "/pools",
        "/audit",
    ]


CONTRASTS = """() => {
  const numbers = (text) => text.match(/[0-9.]+/g).map(Number);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (element) => {
    for (; element !== null; element = element.parentElement) {
      const color = numbers(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0] : [255, 255, 255];
  };
  const ratio = (one, two) => {
    const [dark, bright] = [light(one), light(two)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    if (element.getClientRects().length === 0) continue;
    const style = getComputedStyle(element);
    const says = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim() !== "");
    if (says || element.matches("input, select, button")) {
      found.push([ratio(numbers(style.color), back(element)), 4.5, element.outerHTML.slice(0, 80)]);
    }
    if (element.matches("input:not([type=checkbox]), select, button")) {
      found.push([ratio(numbers(style.borderTopColor), back(element.parentElement)), 3, element.outerHTML]);
    }
  }
  return found;
}"""
"""Of every text, field and button: the contrast that WCAG defines, and what it asks for at least (1.4.3, 1.4.11)."""


def row(page: Page, namespace: str) -> Locator:
    return page.locator("tbody tr").filter(has=page.get_by_role("link", name=namespace, exact=True))


def mark(page: Page) -> None:
    """Writes on the window what a reload would wipe off."""
    page.evaluate("window.unloaded = false")


def is_marked(page: Page) -> bool:
    return page.evaluate("window.unloaded") is False


def test_an_assignment_appears_and_turns_ready_without_a_reload(open_page: Open, site: Site) -> None:
    page = open_page("/assignments")
    expect(page.get_by_role("heading", name="Assignments")).to_be_visible()
    mark(page)
    address = site.namespace("shop", "prod")
    expect(row(page, "shop")).to_contain_text(address)
    expect(row(page, "shop")).to_contain_text("Ready")
    assert is_marked(page)


def test_a_failed_one_is_retried_approved_and_turns_ready(
    open_page: Open, site: Site, shot: Callable[[Page, str], None]
) -> None:
    site.desk.closed = True
    page = open_page("/", **DESK)
    mark(page)
    site.namespace("payments", "bank")
    card = page.locator("section.card.ticket").filter(has_text="payments")
    expect(card).to_contain_text("the change calendar is closed")
    assert is_marked(page)
    shot(page, "overview")

    card.get_by_role("link", name="payments").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("payments")
    expect(page.locator("#way")).to_be_visible()
    shot(page, "namespace")
    site.desk.closed = False
    actions = page.locator("section").filter(has=page.get_by_role("heading", name="Actions"))
    actions.get_by_label("Why").first.fill("the calendar is open again")
    actions.get_by_role("button", name="Retry").click()
    expect(page.locator("main").get_by_role("status")).to_contain_text("Asked to try again")
    expect(page.locator("dd").filter(has_text="desk FW-")).to_be_visible()

    page.get_by_text("Decide on behalf of the ticket system").click()
    decide = page.locator("form[action$='/decision']")
    decide.get_by_label("Decision").select_option("approved")
    decide.get_by_label("Why").fill("ana said so")
    decide.get_by_role("button", name="Decide").click()
    expect(page.locator("main").get_by_role("status")).to_contain_text("The decision is kept")
    expect(page.locator("dl.facts")).to_contain_text(re.compile(r"Ready on node\d"))

    page.get_by_role("link", name="Audit").click()
    expect(page.locator("tbody")).to_contain_text("the calendar is open again")
    expect(page.locator("tbody")).to_contain_text("approved: ana said so")


def test_all_of_a_cause_are_retried_and_the_progress_is_seen(
    open_page: Open, site: Site, shot: Callable[[Page, str], None]
) -> None:
    site.desk.closed = True
    for number in (1, 2, 3):
        site.namespace(f"batch-{number}", "bank")
    page = open_page("/failures")
    group = page.locator("section.card.ticket").filter(has_text="batch-3")
    expect(group).to_contain_text(re.compile("batch-1.*batch-2", re.DOTALL))
    shot(page, "failures")
    site.desk.closed = False
    button = group.get_by_role("button", name=re.compile(r"Retry all \d+"))
    asked = int(button.inner_text().split()[-1])
    button.click()
    expect(page).to_have_url(re.compile("run="))
    mark(page)
    expect(page.get_by_text(f"{asked} of {asked} are no longer ticket (TicketFailed)")).to_be_visible()
    assert is_marked(page)


def test_an_address_that_another_host_holds_is_seen_and_heals(open_page: Open, site: Site) -> None:
    address = site.next_address()
    neighbours = site.nodes.nodes["node1"].arp.neighbours
    neighbours[address] = "02:00:00:00:00:99"
    page = open_page("/failures")
    mark(page)
    site.namespace("contested", "prod")
    group = page.locator("section.card").filter(has_text="contested")
    expect(group).to_contain_text("02:00:00:00:00:99 answers")
    del neighbours[address]
    expect(group).to_have_count(0)
    assert is_marked(page)


def test_whoever_types_is_not_disturbed(open_page: Open, site: Site) -> None:
    page = open_page("/assignments")
    page.get_by_label("Text").fill("half a wo")
    site.namespace("meanwhile", "prod")
    page.wait_for_timeout(3000)  # an update would have come by now
    expect(page.get_by_label("Text")).to_have_value("half a wo")
    expect(page.get_by_label("Text")).to_be_focused()
    page.get_by_label("Text").fill("")
    page.locator("h1").click()
    page.evaluate("document.activeElement.blur()")
    expect(row(page, "meanwhile")).to_be_visible()


def test_filters_and_pages_work_by_keyboard_alone(open_page: Open, pages: list[str]) -> None:
    page = open_page("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.goto("/")
    for _ in range(3):  # past the skip link and Overview
        page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Assignments")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Assignments")
    field = page.get_by_label("Text")
    for _ in range(20):
        page.keyboard.press("Tab")
        if field.evaluate("element => element === document.activeElement"):
            break
    expect(field).to_be_focused()
    page.keyboard.type("ledger")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("text=ledger"))
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator(":focus-visible")).to_have_count(0)
    page.keyboard.press("Tab")
    ring = page.locator(":focus-visible").evaluate("element => getComputedStyle(element).outlineStyle")
    assert ring == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read_by_everybody(
    open_page: Open, pages: list[str], scheme: str, shot: Callable[[Page, str], None], watched: Watched
) -> None:
    lowest = 21.0
    for path in [*pages, "/namespaces/nobody"]:
        page = open_page(path, color_scheme=scheme, **DESK)
        for fold in page.locator("main details").all():
            fold.evaluate("element => { element.open = true; }")
        found = Axe().run(page, options=RULES)
        assert found.violations_count == 0, f"{path}: {found.generate_report()}"
        unsure = {check["id"] for check in found.response["incomplete"]}
        assert "color-contrast" not in unsure, "what axe could not measure is not measured"
        contrasts = page.evaluate(CONTRASTS)
        assert [what for ratio, least, what in contrasts if ratio < least] == [], path
        lowest = min(lowest, *(ratio for ratio, least, _ in contrasts if least == 4.5))
        shot(page, f"{scheme}{path.replace('/', '-')}")
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (scheme == "light")
        page.close()
    assert len(watched.complaints) == 1, "that the last page is none"
    watched.complaints.clear()
    print(f"{scheme}: the lowest contrast of a text is {lowest:.1f}")


@pytest.mark.parametrize("options", [PHONE, DESK], ids=["phone", "desk"])
def test_no_page_is_wider_than_the_window(
    open_page: Open, pages: list[str], options: dict[str, Any], shot: Callable[[Page, str], None]
) -> None:
    wide = options["viewport"]["width"]
    for path in pages:
        page = open_page(path, **options)
        assert page.evaluate("document.documentElement.scrollWidth") <= wide, path
        if options is PHONE:
            assert Axe().run(page, options=RULES).violations_count == 0, path
            beyond = (
                "[...document.querySelectorAll('td')].filter((td) => td.getBoundingClientRect().right > innerWidth)"
            )
            assert page.evaluate(f"{beyond}.map((td) => td.innerText)") == [], path
        shot(page, f"{wide}{path.replace('/', '-')}")
        page.close()


def test_without_javascript_the_pages_and_the_buttons_work(open_page: Open, pages: list[str]) -> None:
    page = open_page("/assignments", java_script_enabled=False)
    page.get_by_label("Text").fill("ledger")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name="ledger").click()
    page.get_by_role("button", name="Retry").first.click()
    expect(page.locator("main").get_by_role("status")).to_contain_text("Asked to try again")
    page.get_by_role("link", name="Have every node looked at").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("The path of ledger")
    expect(page.locator("main")).to_contain_text("by which they leave")
    page.goto("/assignments")
    page.get_by_role("columnheader", name="Address").get_by_role("link").click()
    page.get_by_role("columnheader", name="Address").get_by_role("link").click()
    expect(page.get_by_role("columnheader", name="Address")).to_have_attribute("aria-sort", "descending")
    shown = [tuple(map(int, text.split("."))) for text in page.locator("td[data-label=Address]").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)


def test_a_retry_of_the_chosen_takes_no_mouse(open_page: Open, site: Site) -> None:
    site.desk.closed = True
    site.namespace("typed", "bank")
    page = open_page("/")
    expect(page.locator("section.card.ticket").filter(has_text="typed")).to_be_visible()

    def tab_to(target: Locator, most: int = 60) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if target.count() == 1 and target.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"{target} is not reached")

    tab_to(page.get_by_role("navigation").get_by_role("link", name="Failures"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Failures")
    group = page.locator("section.card.ticket").filter(has_text="typed")
    box = group.locator("label").filter(has_text="typed").get_by_role("checkbox")
    tab_to(box)
    page.keyboard.press("Space")
    expect(box).to_be_checked()
    tab_to(group.get_by_label("Why"))
    page.keyboard.type("by hand")
    site.desk.closed = False
    tab_to(group.get_by_role("button", name="Retry the chosen"), 1)
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 of 1 are no longer ticket (TicketFailed)")).to_be_visible()
    page.goto("/namespaces/typed")
    release = page.get_by_text("Release its addresses")
    tab_to(release)
    page.keyboard.press("Enter")
    expect(page.locator("form[action$='/release']")).to_be_visible()


def test_the_page_of_a_namespace_shows_the_path_of_its_packets(open_page: Open, site: Site) -> None:
    address = site.namespace("packets", "prod")
    page = open_page("/namespaces/packets", **DESK)
    path = page.locator("#path")
    expect(path).to_contain_text("NetNamespace packets: egressIPs")
    wait_for("the assignment", lambda: site.phase(address) == "Ready", 40)
    path.get_by_role("link", name="Have every node looked at again").click()
    expect(path.locator("h3").filter(has_text="by which they leave")).to_have_count(1)
    for piece in ("NetNamespace packets: egressIPs", f"--to-source {address}", "pkt_mark", "0 packets, 0 bytes"):
        expect(path).to_contain_text(piece)
    mark(page)
    # In one step: an update between finding the element and marking it would have put a copy in its place.
    page.evaluate("document.querySelector('#path').dataset.kept = 'yes'")
    kube = site.kube
    kube.patch("Namespace", "hawse-system", {"metadata": {"annotations": {"egress.hawse.dev/paused": "ana: a test"}}})
    try:
        expect(page.get_by_role("status").filter(has_text="ana: a test")).to_be_visible()
        assert is_marked(page)
        expect(page.locator("#path[data-kept=yes]")).to_contain_text("by which they leave")
    finally:
        kube.patch("Namespace", "hawse-system", {"metadata": {"annotations": {"egress.hawse.dev/paused": None}}})


def test_a_release_must_be_confirmed(open_page: Open, pages: list[str], watched: Watched) -> None:
    page = open_page("/namespaces/ledger")
    page.get_by_text("Release its addresses").click()
    form = page.locator("form[action$='/release']")
    form.get_by_label("Why").fill("it moves out")
    form.get_by_role("button", name="Release").click()
    expect(page).to_have_url(re.compile("/namespaces/ledger$"))  # the browser wants the name first
    form.get_by_label(re.compile("name, to confirm")).fill("ledgers")
    form.get_by_role("button", name="Release").click()
    expect(page.locator(".note.bad")).to_contain_text("write ledger to confirm")
    page.wait_for_timeout(1500)  # nothing that is asked anew in vain
    assert len(watched.complaints) == 1, "the refusal itself, and no more"
    watched.complaints.clear()


def test_pausing_is_seen_at_once_on_another_page(open_page: Open, site: Site) -> None:
    other = open_page("/pools")
    page = open_page("/")
    mark(other)
    form = page.locator("form[action='/pause']")
    form.get_by_label("Why").fill("the switch is replaced")
    form.get_by_role("button", name="Pause").click()
    expect(other.locator("main").get_by_role("status")).to_contain_text("the switch is replaced")
    page.get_by_role("button", name="Resume").click()
    expect(other.locator("main").get_by_role("status")).not_to_contain_text("Paused")
    assert is_marked(other)
