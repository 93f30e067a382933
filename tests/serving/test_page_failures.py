"""The search page where things go wrong: broken files, slow and busy services, odd names.

No package of Python brings a browser, so these tests are skipped wherever there is none, with
CMAP_REQUIRE_OPTIONAL=1 too. CMAP_CHROMIUM names one that is not on the path.
"""

from __future__ import annotations

import json
import urllib.parse

import pytest
from search_page import CARDS, ask, garment_of, ids, is_settled, picture

pytestmark = pytest.mark.slow


def test_a_broken_upload(page, server, tmp_path):
    """The service's sentence is shown with a way on, and the page goes on working."""
    (tmp_path / "broken.jpg").write_bytes(picture(kind="JPEG")[:300])
    page.upload("#file", tmp_path / "broken.jpg")
    page.wait("document.querySelector('.message.error') !== null")
    assert "The file is not a picture of these types" in page.text(".message.error")
    assert page.run(CARDS) == 0
    page.click(".message.error button")
    is_settled(page, "Gallery")
    assert page.run("document.querySelector('.message') === null")
    (tmp_path / "notes.txt").write_text("no picture")
    page.upload("#file", tmp_path / "notes.txt")
    page.wait("document.getElementById('toast').innerText.includes('notes.txt is not a picture')")
    assert len(server.searches) == 1
    assert [fault for fault in page.faults() if "415" not in fault] == []


def test_nothing_passes(clean):
    clean.click("#find-words")
    clean.type("no such thing")
    clean.wait("document.querySelector('.message.empty') !== null")
    assert "No picture passes" in clean.text(".message.empty")
    clean.click(".message.empty button")
    is_settled(clean, "Gallery")
    assert clean.run("document.getElementById('find-words').value") == ""
    clean.click("#find-words")
    clean.type("striped")
    clean.wait(
        "document.getElementById('status').innerText.match(/^[0-9]+ picture/) && "
        "!document.getElementById('status').innerText.startsWith('120')"
    )
    assert {garment_of(item)["pattern"] for item in ids(clean)} == {"striped"}


def test_an_empty_gallery(browser, server):
    server.count = 0
    with browser.page() as page:
        page.go(server.address)
        page.wait("document.querySelector('.message.empty') !== null")
        assert "no pictures in this gallery yet" in page.text(".message.empty")


def test_a_slow_network(browser, server):
    """Gray cards stand in at first, then the old results fade until the new ones are there."""
    with browser.page() as page:
        page.connect(latency=400, bytes_per_second=40_000)
        page.call("Page.navigate", url=server.address)
        page.wait("document.querySelectorAll('.skeleton').length > 0")
        page.wait(f"{CARDS} === 24")
        assert page.run("document.querySelectorAll('.skeleton').length") == 0
        server.delay = 5.0
        page.click(".card .pick")
        page.wait("document.getElementById('grid').getAttribute('aria-busy') === 'true'")
        page.wait("document.getElementById('status').innerText.includes('slow')")
        is_settled(page)
        assert page.faults() == []


def test_a_busy_service_is_asked_again(page, server):
    server.busy = 2
    page.click(".card .pick")
    page.wait("document.getElementById('status').innerText.includes('Trying again in 1 s')")
    is_settled(page)
    assert len(server.searches) == 3
    assert [fault for fault in page.faults() if "503" not in fault] == []


def test_a_service_that_cannot_be_reached(page):
    page.connect(offline=True)
    page.click(".card .pick")
    page.wait("document.querySelector('.message.error') !== null")
    assert "cannot be reached" in page.text(".message.error")
    page.connect(offline=False)
    page.click(".message.error button")
    is_settled(page)


def test_a_search_that_is_called_off_and_a_page_that_fails(page, server):
    """Undoing while a search runs shows the gallery again; a failed "Show more" can be repeated."""
    start = ids(page)
    server.delay = 2.0
    page.click(".card .pick")
    page.wait("document.getElementById('grid').hasAttribute('aria-busy')")
    page.run("history.back()")
    is_settled(page, "Gallery")
    assert ids(page) == start
    assert "120 pictures" in page.text("#status")
    page.connect(offline=True)
    page.click("#more")
    page.wait("document.querySelector('.message.error') !== null")
    page.connect(offline=False)
    page.click(".message.error button")
    page.wait(f"{CARDS} === 48")
    assert page.run("document.querySelector('.message') === null")


def test_what_filters_and_trails_keep(page, server, tmp_path):
    """Bounds stay exact, empty ones are left out, and a lost picture does not shift the trail."""
    where = json.dumps({"price": {"min": None}, "color": {}, "pattern": ["striped"]})
    page.go(f"{server.address}?where={urllib.parse.quote(where)}")
    is_settled(page, "Gallery")
    assert page.run("document.querySelectorAll('#active li').length") == 1
    assert {garment_of(item)["pattern"] for item in ids(page)} == {"striped"}

    first = ids(page)[0]
    page.click(".card .pick")
    is_settled(page)
    (tmp_path / "own.png").write_bytes(picture())
    page.upload("#file", tmp_path / "own.png")
    page.wait("document.getElementById('references').innerText.includes('own.png')")
    is_settled(page)
    page.click(".card .pick")
    page.wait("document.querySelectorAll('#trail li').length === 4")
    is_settled(page)
    page.run("location.reload()")
    page.wait("document.querySelectorAll('#trail li').length === 3")
    is_settled(page)
    page.click("#trail li:nth-child(2) .step")
    page.wait(f"new URLSearchParams(location.search).get('item') === {first!r}")
    is_settled(page)

    page.run("""import("/page/filters.js").then(({ buildFilters }) => {
        window.conditions = [];
        const fields = { weight: { kind: "range", min: 0.5, max: 9.75 } };
        const show = buildFilters(fields, (_, condition) => conditions.push(condition));
        show({ weight: { min: 1.2345, max: "many" } });
        const input = document.querySelector(".numbers input:last-child");
        input.value = 5;
        input.dispatchEvent(new Event("change"));
    })""")
    page.wait("window.conditions.length === 1")
    assert page.run("window.conditions[0]") == {"min": 1.2345, "max": 5}
    assert page.faults() == []


def test_a_service_with_a_key(browser, server):
    server.key = "right"
    with browser.page() as page:
        page.go(server.address)
        for key in ("wrong", "right"):
            page.wait("document.querySelector('.key input:focus') !== null")
            page.type(key)
            page.press("Enter")
            page.wait("document.querySelector('.key input')?.value !== " + json.dumps(key))
        page.wait(f"{CARDS} === 24")
        page.wait("document.querySelectorAll('.frame.loaded').length > 5")  # pictures need it too


def test_no_request_leaves_the_service(clean, server, tmp_path):
    """All requests of a visit go to the page's own address; its policy forbids all else."""
    clean.click(".card .pick")
    is_settled(clean)
    ask(clean, "red")
    (tmp_path / "own.png").write_bytes(picture())
    clean.upload("#file", tmp_path / "own.png")
    is_settled(clean)
    others = [
        one
        for one in clean.requests()
        if not one.startswith((server.address, f"blob:{server.address}"))
    ]
    assert others == []


def test_ids_with_odd_characters(page, server):
    """An id is data: in addresses it is encoded, on the page it is text."""
    odd = "a b/ü%2F?#&\"'<img src=x onerror=alert(1)>.jpg"
    names = [odd, "a/../b", "./a", "red/image", "image"]
    addresses = page.run(f"""import("/page/api.js").then(
        ({{ addressOfPicture }}) => {json.dumps(names)}.map((id) => addressOfPicture(id, 128)))""")
    assert addresses[0].startswith("items/a%20b/%C3%BC%252F%3F%23%26%22'%3Cimg%20src%3Dx")
    pictures = ("a%2F..%2Fb", ".%2Fa", "red%2Fimage", "image")
    assert addresses[1:] == [f"items/{name}/image?size=128" for name in pictures]
    page.go(f"{server.address}?item=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E")
    page.wait("document.querySelector('.message.error') !== null")
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0
    assert [fault for fault in page.faults() if "404" not in fault] == []
