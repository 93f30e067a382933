"""A browser, a small service, and the search page opened in the one on the other."""

import pytest
from chromium import Chromium, find_browser
from page_server import PageServer
from search_page import CARDS


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium for the tests of a file; they are skipped where there is none."""
    find_browser()
    with Chromium() as chromium:
        yield chromium


@pytest.fixture
def server():
    """A service of a model that searches by a picture, by words, and by both."""
    with PageServer() as running:
        yield running


@pytest.fixture
def page(browser, server):
    """The page with its gallery loaded."""
    with browser.page() as tab:
        tab.go(server.address)
        tab.wait(f"{CARDS} === 24")
        yield tab


@pytest.fixture
def clean(page):
    """The page, which must end without an error in its console."""
    yield page
    assert page.faults() == []
