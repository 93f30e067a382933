"""The page on the service itself: its policy, its ids in addresses, and its answers."""

import page_server
import pytest
from fake_retriever import FakeRetriever, write_gallery
from optional import require
from search_page import CARDS, ask, is_settled

require("fastapi")
require("uvicorn")

from running_service import running  # noqa: E402

from cmap_jax.serving import edge  # noqa: E402

HAS_PICTURES = "[...document.querySelectorAll('.card img')].every((one) => one.naturalWidth > 0)"


def test_the_tests_of_the_page_have_the_policy_of_the_service():
    assert page_server.POLICY == edge._POLICY


@pytest.mark.slow
def test_a_visit(browser, tmp_path):
    """A gallery whose ids have slashes, signs and other scripts is seen, searched and reloaded."""
    retriever = FakeRetriever(write_gallery(tmp_path))
    with running(retriever) as port, browser.page(height=2000) as page:
        page.go(f"http://127.0.0.1:{port}/")
        page.wait(f"{CARDS} === 6 && {HAS_PICTURES}")
        for name, color in (("red", "blue"), ("green", "red")):
            number = ["red", "green"].index(name) + 1
            page.click(f".card:nth-child({number}) .pick")
            is_settled(page)
            ask(page, color)
            page.wait(HAS_PICTURES)
            assert len(retriever.index) == page.run(CARDS)
            page.run("location.reload()")
            page.wait("document.readyState === 'complete'")
            is_settled(page)
            page.wait(f"document.getElementById('references').innerText.trim() === {name!r}")
            page.wait(HAS_PICTURES)
            page.click("#trail li:nth-child(1) .step")
            is_settled(page, "Gallery")
        page.click("#find-words")
        page.type("yell")
        page.wait(f"{CARDS} === 1")
        again = """fetch(document.querySelector(".card img").src, { cache: "no-cache" })
            .then((answer) => answer.headers.get("ETag"))"""
        assert len(page.run(again)) == 34
        assert page.faults() == []
