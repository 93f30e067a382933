"""Searches on the page in a headless Chromium, against a small service of its own.

No package of Python brings a browser, so these tests are skipped wherever there is none, with
CMAP_REQUIRE_OPTIONAL=1 too. CMAP_CHROMIUM names one that is not on the path.
"""

from __future__ import annotations

import pytest
from page_server import pieces
from search_page import CARDS, ask, garment_of, ids, is_settled, picture

pytestmark = pytest.mark.slow


def test_a_search(clean, server):
    """A picture of the gallery and words give results, and each says why it came."""
    reference = ids(clean)[2]
    clean.click(".card:nth-child(3) .pick")
    is_settled(clean)  # this model searches by a picture alone, too
    assert clean.run("document.activeElement.id") == "text"
    ask(clean, "in green")
    assert server.searches[-1] == {
        "item": [reference],
        "images": [],
        "text": "in green",
        "where": {},
        "k": 24,
    }
    best = ids(clean)[0]
    assert reference not in ids(clean)
    assert garment_of(best)["color"] == "green"
    assert clean.text(".card .bars").split() == ["change", "kept"]
    assert "24 best pictures" in clean.text("#status")

    clean.click(".card:nth-child(1) .why")
    clean.wait("document.getElementById('details').open")
    assert best in clean.text("#details")
    assert "Shows the change" in clean.text("#details")
    assert "in fine detail" in clean.text("#details")
    clean.press("Escape")
    clean.wait("!document.getElementById('details').open")

    clean.click("#more")
    clean.wait(f"{CARDS} === 48")
    clean.click("#more")
    clean.wait(f"{CARDS} === 60")  # the service's limit
    assert clean.run("document.getElementById('more').hidden")
    assert len(set(ids(clean))) == 60


def test_typing_searches_by_itself_and_drops_what_is_out_of_date(clean, server):
    clean.click(".card .pick")
    is_settled(clean)
    server.delay = 1.0
    clean.type("red")
    clean.wait("document.getElementById('grid').hasAttribute('aria-busy')")
    while server.searches[-1]["text"] != "red":
        clean.wait("true")
    server.delay = 0.0
    clean.type(" dress")
    is_settled(clean)
    clean.wait("new URLSearchParams(location.search).get('text') === 'red dress'")
    after = ids(clean)
    clean.run("new Promise((done) => setTimeout(done, 1300))")  # the older answer would be here
    assert ids(clean) == after
    assert [one["text"] for one in server.searches] == ["", "red", "red dress"]
    assert garment_of(after[0])["type"] == "dress"
    assert garment_of(after[0])["color"] == "red"


def test_refine_undo_and_redo(clean):
    """A result becomes the reference; the way back is the same by button, trail and browser."""
    start = ids(clean)
    clean.click(".card .pick")
    is_settled(clean)
    ask(clean, "striped")
    striped = ids(clean)
    clean.click(".card:nth-child(2) .pick")
    clean.wait("document.querySelectorAll('#trail li').length === 3")
    is_settled(clean)
    assert clean.run("document.getElementById('text').value") == ""
    ask(clean, "long")
    steps = clean.run("[...document.querySelectorAll('.step')].map((one) => one.innerText.trim())")
    assert steps == ["Gallery", "“striped”", "“long”"]
    long = ids(clean)

    def shows(items: list[str], text: str) -> None:
        clean.wait(f"document.getElementById('text').value === {text!r}")
        is_settled(clean)
        clean.wait(f"document.querySelector('.card img').src.includes({items[0]!r})")
        assert ids(clean) == items

    clean.click("#undo")
    clean.wait("document.getElementById('text').value === ''")
    clean.click("#undo")
    shows(striped, "striped")
    clean.run("history.back()")
    clean.wait("document.getElementById('text').value === ''")
    for _ in range(3):
        clean.run("history.forward()")
        clean.run("new Promise((done) => setTimeout(done, 150))")
    shows(long, "long")
    assert clean.run("document.getElementById('redo').disabled")
    clean.click("#trail li:nth-child(2) .step")
    shows(striped, "striped")
    clean.click("#trail li:nth-child(1) .step")
    is_settled(clean, "Gallery")
    assert ids(clean) == start
    clean.run("history.back()")
    shows(striped, "striped")
    clean.run("location.reload()")
    clean.wait("document.readyState === 'complete'")
    shows(striped, "striped")
    clean.click("#trail li:nth-child(1) .step")
    is_settled(clean, "Gallery")


def test_a_link_reproduces_a_search(browser, server, clean):
    clean.run("navigator.clipboard.writeText = async (text) => void (window.copied = text)")
    clean.click(".card:nth-child(5) .pick")
    is_settled(clean)
    ask(clean, "in black & white, 100%")
    clean.click(".option:has([value='coat'])")
    clean.wait("document.querySelectorAll('#active li').length === 1")
    is_settled(clean)
    clean.click("#link")
    clean.wait("window.copied !== undefined")
    with browser.page() as other:
        other.go(clean.run("window.copied"))
        is_settled(other)
        assert ids(other) == ids(clean)
        assert server.searches[-1] == server.searches[-2]
        assert other.run("document.querySelector('[value=coat]').checked")
        assert other.text(".step[aria-current]").strip() == "“in black & white, 100%”"
        assert other.faults() == []


def test_without_a_clipboard_the_link_is_shown(clean):
    """Browsers keep the clipboard from pages without HTTPS."""
    clean.run("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    clean.click("#link")
    clean.wait("document.querySelector('#toast input') !== null")
    assert clean.run("document.querySelector('#toast input').value") == clean.run("location.href")


def test_ones_own_picture(browser, server, clean, tmp_path):
    """It is shrunk, searched from, and no link pretends to carry it."""
    (tmp_path / "large.jpg").write_bytes(picture("blue", (2400, 1200), "JPEG"))
    clean.upload("#file", tmp_path / "large.jpg")
    is_settled(clean)
    assert "large.jpg" in clean.text("#references")
    assert server.searches[-1]["images"][0] < len((tmp_path / "large.jpg").read_bytes())
    size = """new Promise((done) => {
        const image = document.querySelector("#references img");
        image.decode().then(() => done([image.naturalWidth, image.naturalHeight]));
    })"""
    assert clean.run(size) == [1024, 512]
    ask(clean, "in green")
    clean.click("#link")
    clean.wait("document.getElementById('toast').innerText.includes('a link cannot carry it')")
    address = clean.run("location.href")
    with browser.page() as other:
        other.go(address)
        other.wait("document.getElementById('toast').innerText.includes('cannot carry')")
    # Its step stays while the page does, and going back does not need the file again.
    clean.click(".card .pick")
    is_settled(clean)
    clean.click("#undo")
    clean.wait("document.querySelector('#references').innerText.includes('large.jpg')")


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_pictures_can_be_pasted_and_dropped(clean, server, way):
    data = list(picture("green"))
    kind = {"paste": "ClipboardEvent", "drop": "DragEvent"}[way]
    field = {"paste": "clipboardData", "drop": "dataTransfer"}[way]
    clean.run(f"""(() => {{
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array({data})], "p.png", {{ type: "image/png" }}));
        const event = new {kind}("{way}", {{ {field}: data, bubbles: true, cancelable: true }});
        document.body.dispatchEvent(event);
    }})()""")
    is_settled(clean)
    assert server.searches[-1]["images"] == [len(data)]
    assert clean.run("document.getElementById('dropping').hidden")


def test_several_references(clean, server):
    first = ids(clean)[0]
    clean.click(".card:nth-child(1) .pick")
    is_settled(clean)
    clean.click("#trail li:nth-child(1) .step")
    is_settled(clean, "Gallery")
    clean.click(".card:nth-child(1) .pick")
    is_settled(clean)
    name = ids(clean)[0]
    clean.click(".card:nth-child(1) .why")
    clean.click("#details .ways button:nth-child(2)")
    clean.wait("document.querySelectorAll('#references li').length === 2")
    is_settled(clean)
    assert server.searches[-1]["item"] == [first, name]
    clean.click("#references li:nth-child(1) .bare")
    clean.wait("document.querySelectorAll('#references li').length === 1")
    is_settled(clean)
    assert server.searches[-1]["item"] == [name]


def test_filters(clean, server):
    """Values and ranges narrow the gallery and the results; each can be taken away."""
    clean.click(".option:has([value='red'])")
    clean.click(".option:has([value='blue'])")
    clean.wait("document.querySelector('#active').innerText.includes('Color: red or blue')")
    is_settled(clean, "Gallery")
    assert {garment_of(item)["color"] for item in ids(clean)} == {"red", "blue"}
    clean.click(".card .pick")
    is_settled(clean)
    assert server.searches[-1]["where"] == {"color": ["red", "blue"]}
    clean.run("""(() => {
        const input = document.querySelector(".numbers input:last-child");
        input.value = 60;
        input.dispatchEvent(new Event("change"));
    })()""")
    clean.wait("document.querySelectorAll('#active li').length === 3")
    is_settled(clean)
    assert server.searches[-1]["where"] == {"color": ["red", "blue"], "price": {"max": 60}}
    prices = {piece.id: piece.metadata["price"] for piece in pieces()}
    assert max(prices[item] for item in ids(clean)) <= 60
    clean.click("#active li:last-child button")
    clean.wait("document.querySelectorAll('#active li').length === 0")
    is_settled(clean)
    assert not clean.run("document.querySelectorAll('.option input:checked').length")
    clean.click("#undo")
    clean.wait("document.querySelectorAll('#active li').length === 3")


def test_a_model_that_needs_both(browser, server):
    """Words are asked for, and the last results stay until they come."""
    server.takes = {"image": False, "text": False, "both": True}
    with browser.page() as page:
        page.go(server.address)
        page.wait(f"{CARDS} === 24")
        page.click(".card .pick")
        page.wait("document.getElementById('hint').innerText === 'Now type what should change.'")
        is_settled(page, "Gallery")
        ask(page, "dotted")
        dotted = ids(page)
        page.click(".card .pick")
        is_settled(page, "Results of the previous step")
        assert ids(page) == dotted
        page.type("short")
        is_settled(page)
        assert [one["text"] for one in server.searches] == ["dotted", "short"]
        assert page.faults() == []


def test_a_model_without_words(browser, server):
    server.takes, server.texts = {"image": True, "text": False, "both": False}, False
    with browser.page() as page:
        page.go(server.address)
        page.wait(f"{CARDS} === 24")
        assert page.run("document.getElementById('change').hidden")
        page.click(".card .pick")
        is_settled(page)
        assert page.faults() == []
