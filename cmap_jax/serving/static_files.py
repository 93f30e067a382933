"""The page's files: read once at the start, so that no request leads to a path."""

import hashlib
import importlib.resources
import mimetypes
from typing import NamedTuple

INDEX = "index.html"
# Not every system knows these.
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml", ".woff2": "font/woff2"}


class StaticFile(NamedTuple):
    """A file of the page.

    Attributes:
        content: its bytes.
        media_type: value of the header Content-Type.
        tag: changes when the content does.
    """

    content: bytes
    media_type: str
    tag: str


def read_page() -> dict[str, StaticFile]:
    """Return the files of the page by name; empty where the page is not installed."""
    folder = importlib.resources.files("cmap_jax.serving") / "page"
    if not folder.is_dir():
        return {}
    return {
        file.name: StaticFile(
            content := file.read_bytes(), _type_of(file.name), hashlib.sha256(content).hexdigest()
        )
        for file in folder.iterdir()
        if file.is_file()
    }


def _type_of(name: str) -> str:
    suffix = name[name.rfind(".") :]
    guessed = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed
