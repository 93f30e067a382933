"""The acts of a person on the search page, and the views of it, for tests in a browser."""

from __future__ import annotations

import io

from chromium import Page
from page_server import pieces
from PIL import Image

CARDS = "document.querySelectorAll('.card:not(.skeleton)').length"
DESKTOP, PHONE = (1360, 860), (390, 780, True)


def ids(page: Page) -> list[str]:
    """Return the ids of the pictures that are shown."""
    sources = page.run("[...document.querySelectorAll('.card img')].map((one) => one.src)")
    return [source.split("/items/")[1].split("/image")[0] for source in sources]


def is_settled(page: Page, heading: str = "Results") -> None:
    """Wait until pictures are shown under a heading, and none are on their way."""
    page.wait(
        f"document.getElementById('heading').innerText === {heading!r} && {CARDS} > 0"
        " && !document.getElementById('grid').hasAttribute('aria-busy')"
    )


def ask(page: Page, text: str) -> None:
    """Put words into the field and wait for their results."""
    page.click("#text")
    page.run("document.getElementById('text').select()")
    page.type(text)
    page.press("Enter")
    page.wait(f"new URLSearchParams(location.search).get('text') === {text!r}")
    is_settled(page)


def garment_of(item: str) -> dict[str, str]:
    """Return the attributes of a garment of the gallery."""
    return next(piece.attributes for piece in pieces() if piece.id == item)


def picture(color: str = "red", size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    """Return an encoded picture of one color."""
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, kind)
    return stream.getvalue()
