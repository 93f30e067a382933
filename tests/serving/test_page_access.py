"""The search page for everybody: keyboard, names, contrast, phones; and how it looks.

No package of Python brings a browser, so these tests are skipped wherever there is none, with
CMAP_REQUIRE_OPTIONAL=1 too. CMAP_CHROMIUM names one that is not on the path.
With CMAP_SCREENSHOTS=FOLDER the screenshots of `test_it_can_be_looked_at` stay there.
"""

from __future__ import annotations

import os
import pathlib

import pytest
from page_server import PageServer
from PIL import Image
from search_page import CARDS, DESKTOP, PHONE, ask, ids, is_settled

pytestmark = pytest.mark.slow


def test_the_keyboard_alone(clean, server):
    """Tab, arrows and Enter do all; each focus can be seen."""
    clean.press("Tab")
    assert clean.run("document.activeElement.className") == "skip"
    clean.press("Enter")
    reached = set()
    for _ in range(30):
        clean.press("Tab")
        seen = clean.run("""(() => {
            const focus = document.activeElement;
            const style = getComputedStyle(focus);
            const label = focus.closest("label");
            const outlined = parseFloat(style.outlineWidth) >= 2 && style.outlineStyle !== "none"
                || label && parseFloat(getComputedStyle(label).outlineWidth) >= 2;
            return [focus.className, outlined];
        })()""")
        assert seen[1], seen
        reached.add(seen[0])
        if seen[0] == "pick":
            break
    assert "pick" in reached
    for key in ("ArrowRight", "ArrowDown", "End", "Home", "ArrowRight"):
        clean.press(key)
    second = ids(clean)[1]
    assert clean.run("document.activeElement.innerText") == clean.text(".card:nth-child(2) .pick")
    clean.press("Enter")
    is_settled(clean)
    assert server.searches[-1]["item"] == [second]
    clean.run("document.activeElement.blur()")
    clean.press("/")
    assert clean.run("document.activeElement.id") == "text"
    assert clean.run("document.getElementById('text').value") == ""


CONTRAST = """(() => {
    const parse = (color) => {
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map(
            (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let one = element; one; one = one.parentElement) {
            const color = parse(getComputedStyle(one).backgroundColor);
            if (color[3] === 255) return color;
        }
        return parse(getComputedStyle(document.documentElement).backgroundColor);
    };
    const faint = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const isOff = element.closest(
            "button:disabled, #toast:not(.shown), script, noscript, .hidden, .skip");
        if (!walker.currentNode.data.trim() || isOff || !element.checkVisibility()) continue;
        const style = getComputedStyle(element);
        const front = luminance(parse(style.color).slice(0, 3));
        const back = luminance(behind(element).slice(0, 3));
        const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
        const large = parseFloat(style.fontSize) >= 24;
        if (ratio < (large ? 3 : 4.5)) faint.push([element.innerText.slice(0, 40), ratio]);
    }
    return faint;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_names(clean, server, scheme):
    """All text has WCAG's contrast of level AA, and all that one acts on has a name."""
    clean.prefer(scheme, reduced_motion=True)
    clean.click(".option:has([value='red'])")
    clean.wait("document.querySelectorAll('#active li').length === 1")
    is_settled(clean, "Gallery")
    assert clean.run(CONTRAST) == []
    assert clean.unnamed() == []
    clean.click(".card .pick")
    is_settled(clean)
    ask(clean, "striped")
    assert clean.run(CONTRAST) == []
    assert clean.unnamed() == []
    clean.click("#link")
    clean.wait("document.querySelector('#toast.shown') !== null")
    assert clean.run(CONTRAST) == []
    clean.click(".card .why")
    clean.wait("document.getElementById('details').open")
    assert clean.run(CONTRAST) == []
    assert clean.unnamed() == []


def test_reduced_motion(clean):
    clean.prefer("light", reduced_motion=True)
    moving = """[...document.querySelectorAll("*")].filter((one) => {
        const style = getComputedStyle(one);
        return style.animationName !== "none" || parseFloat(style.transitionDuration) > 0;
    }).length"""
    assert clean.run(moving) == 0


def test_a_phone(browser, server):
    """Nothing sticks out at the side, and fingers hit what they aim at."""
    sides = "[document.documentElement.scrollWidth, innerWidth]"
    small = """[...document.querySelectorAll("button, summary, .option, input, textarea")]
        .filter((one) => one.checkVisibility({ opacityProperty: true }))
        .filter((one) => !one.closest(".option input, .sliders"))
        .map((one) => [one.className || one.id, ...[one.getBoundingClientRect()].flatMap(
            ({ width, height }) => [width, height])])
        .filter(([, width, height]) => Math.min(width, height) < 36)"""
    for width in (320, 390):
        with browser.page(width, 700, phone=True) as page:
            page.go(server.address)
            page.wait(f"{CARDS} === 24")
            assert not page.run("document.getElementById('filters').open")
            assert page.run("document.getElementById('photograph').checkVisibility()")
            assert page.run(sides) == [width, width]
            page.click("#filters summary")
            page.wait("document.getElementById('filters').open")
            assert page.run(sides) == [width, width]
            assert page.run(small) == []
            page.click("#filters summary")
            page.click(".card .pick")
            is_settled(page)
            assert page.run("document.activeElement.id") != "text"  # no keyboard over the results
            ask(page, "red")
            page.click(".card:nth-child(2) .pick")
            is_settled(page)
            assert page.run(sides) == [width, width]
            assert page.run(small) == []
            page.click(".card .why")
            page.wait("document.getElementById('details').open")
            page.press("Escape")
            ask(page, "blue")
            page.click(".card .why")
            page.click(".where-it-looks summary")
            page.wait("document.querySelectorAll('.look img').length === 3")
            assert page.run(sides) == [width, width]
            wide = "document.getElementById('details').scrollWidth"
            assert page.run(wide) <= width
            assert page.run(small) == []
            assert page.faults() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_it_can_be_looked_at(browser, tmp_path, scheme, name, size):
    """Screenshots of all states are written, and none of them is blank."""
    folder = pathlib.Path(os.environ.get("CMAP_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    with PageServer(size=384) as server, browser.page(*size) as page:
        page.prefer(scheme)

        def shoot(step: str) -> None:
            page.run("new Promise((done) => setTimeout(done, 500))")  # all has faded in
            path = folder / f"{scheme}_{name}_{step}.png"
            page.screenshot(path)
            with Image.open(path) as image:
                assert image.convert("L").getextrema()[1] - image.convert("L").getextrema()[0] > 60

        page.go(server.address)
        page.wait(f"{CARDS} === 24")
        shoot("1_gallery")
        page.click(".card:nth-child(4) .pick")
        is_settled(page)
        ask(page, "in green, with long sleeves")
        shoot("2_results")
        page.click(".card:nth-child(3) .pick")
        is_settled(page)
        ask(page, "striped")
        page.run("scrollTo(0, 0)")
        shoot("3_refined")
        page.click(".card .why")
        shoot("4_why")
        page.click(".where-it-looks summary")
        page.wait("document.querySelectorAll('.look img').length === 3")
        page.run("document.querySelector('.where-it-looks').scrollIntoView()")
        shoot("4_where_it_looks")
        page.run("document.querySelector('.looks .scale').scrollIntoView({ block: 'end' })")
        shoot("4_where_it_looks_below")
        page.press("Escape")
        server.delay = 3.0
        page.click("#trail li:first-child .step")
        is_settled(page, "Gallery")
        page.click(".card:nth-child(9) .pick")
        shoot("5_loading")
        server.delay = 0.0
        is_settled(page)
        (tmp_path / "broken.jpg").write_bytes(b"broken")
        page.upload("#file", tmp_path / "broken.jpg")
        page.wait("document.querySelector('.message.error') !== null")
        shoot("6_broken")
