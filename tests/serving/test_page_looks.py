"""Where it looks, on the page: asked for when it is opened, its names, its failures, its absence.

No package of Python brings a browser, so these tests are skipped wherever there is none, with
CMAP_REQUIRE_OPTIONAL=1 too. CMAP_CHROMIUM names one that is not on the path.
"""

from __future__ import annotations

import pytest
from search_page import CARDS, ask, ids, is_settled, picture

pytestmark = pytest.mark.slow

SECTION = "document.querySelector('.where-it-looks')"
SHOWN = "[...document.querySelectorAll('.look img')].filter((one) => one.naturalWidth === 256)"
STATUS = ".where-it-looks [role=status]"


def open_details(page, text: str = "in green") -> None:
    """Search from the third picture with words, and open the first result's details."""
    page.click(".card:nth-child(3) .pick")
    is_settled(page)
    ask(page, text)
    page.click(".card:nth-child(1) .why")
    page.wait("document.getElementById('details').open")


def test_it_is_asked_for_once_it_is_opened(clean, server):
    reference = ids(clean)[2]
    open_details(clean)
    best = ids(clean)[0]
    assert server.explained == []
    clean.run(f"{SECTION}.querySelector('summary').focus()")
    clean.press("Enter")
    clean.wait(f"{SHOWN}.length === 3")
    (query,) = server.explained
    assert (query["item"], query["text"], query["target"]) == ([reference], "in green", best)
    assert "No region raises it" in clean.text(".looks")
    assert "Yellow regions" in clean.text(STATUS)
    names = clean.run("[...document.querySelectorAll('.look img')].map((one) => one.alt)")
    assert sorted(name.split(":")[1] for name in names) == [
        " where “Keeps the rest” comes from",
        " where “Keeps the rest” comes from",
        " where “Shows the change” comes from",
    ]
    assert clean.unnamed() == []
    clean.press("Enter")
    clean.wait(f"!{SECTION}.open")
    clean.press("Enter")
    clean.wait(f"{SECTION}.open")
    assert len(server.explained) == 1


def test_a_picture_of_ones_own_is_sent_along(clean, server, tmp_path):
    (tmp_path / "own.png").write_bytes(picture())
    clean.upload("#file", tmp_path / "own.png")
    is_settled(clean)
    ask(clean, "in green")
    clean.click(".card .why")
    clean.click(".where-it-looks summary")
    clean.wait(f"{SHOWN}.length === 3")
    assert len(server.explained[0]["images"]) == 1


def test_a_slow_busy_and_failing_service(page, server):
    open_details(page)
    server.delay, server.busy = 1.0, 1
    page.click(".where-it-looks summary")
    page.wait("document.querySelectorAll('.looks .skeleton').length === 4")
    assert "Looking" in page.text(STATUS)
    page.wait(f"document.querySelector('{STATUS}').innerText.includes('busy')")
    page.wait(f"{SHOWN}.length === 3")
    page.press("Escape")
    server.delay, server.busy = 0.0, 1_000
    page.click(".card:nth-child(2) .why")
    server.key = "another"
    page.click(".where-it-looks summary")
    page.wait("document.querySelector('.looks button') !== null")
    assert "asks for a key" in page.text(STATUS)
    server.key, server.busy = None, 0
    page.click(".looks button")
    page.wait(f"{SHOWN}.length === 3")
    assert page.run("document.activeElement.tagName") == "SUMMARY"
    assert [f for f in page.faults() if "503" not in f and "401" not in f] == []


def test_closing_calls_it_off(clean, server):
    open_details(clean)
    server.delay = 1.0
    clean.click(".where-it-looks summary")
    clean.wait("document.querySelectorAll('.looks .skeleton').length === 4")
    clean.press("Escape")
    clean.wait("!document.getElementById('details').open")
    server.delay = 0.0
    clean.click(".card:nth-child(2) .why")
    clean.click(".where-it-looks summary")
    clean.wait(f"{SHOWN}.length === 3")


def test_where_there_is_nothing_to_show_there_is_no_control(browser, server):
    def has_control(page, text: str | None) -> bool:
        page.go(server.address)
        page.wait(f"{CARDS} === 24")
        page.click(".card .pick")
        is_settled(page)
        if text:
            ask(page, text)
        page.click(".card .why")
        page.wait("document.getElementById('details').open")
        return page.run(f"{SECTION} !== null")

    with browser.page() as page:
        assert has_control(page, "in green")
        page.press("Escape")
        page.click(".card:nth-child(2) .why")
        page.click("#details .ways button:nth-child(2)")  # a second reference
        is_settled(page)
        page.click(".card .why")
        assert page.run(f"{SECTION} === null")
        assert not has_control(page, None)
        server.explains = False
        assert not has_control(page, "in green")
        assert page.faults() == []
