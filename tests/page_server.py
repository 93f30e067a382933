"""A small service with the answers that the search page asks for, for tests of the page alone.

    with PageServer() as server:
        server.address                       # "http://127.0.0.1:PORT/"
        server.searches                      # queries that came, oldest first
        server.delay, server.busy = 2.0, 3   # seconds before an answer; answers with 503

    python tests/page_server.py      # to look at the page by hand

It searches drawn garments by their attributes, so that results are as a good model's would be: a
word of the text changes an attribute, and the others stay as in the reference.
"""

from __future__ import annotations

import base64
import dataclasses
import email.parser
import email.policy
import functools
import http.server
import io
import json
import pathlib
import re
import sys
import threading
import time
import urllib.parse
from typing import Any

import numpy as np
from PIL import Image

from cmap_jax.visualization.colors import scale

PAGE = pathlib.Path(__file__).parents[1] / "cmap_jax" / "serving" / "page"
# The service's own policy must allow all that the page does, and nothing more.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
COUNT = 120  # garments of the gallery


@dataclasses.dataclass(frozen=True)
class Piece:
    """A picture of the gallery and its metadata."""

    id: str
    metadata: dict[str, Any]
    garment: Any

    @property
    def attributes(self) -> dict[str, str]:
        return dataclasses.asdict(self.garment)

    def form(self) -> dict[str, Any]:
        return {"id": self.id, "metadata": self.metadata, "image": f"/items/{self.id}/image"}


@functools.cache
def pieces() -> tuple[Piece, ...]:
    """The gallery: garments that differ in all attributes, and in price."""
    from input_pipeline.garments.attributes import COUNT as ALL
    from input_pipeline.garments.attributes import garment

    return tuple(_piece(garment(1 + i * 61 * 13 % ALL), i) for i in range(COUNT))


def _piece(garment: Any, number: int) -> Piece:
    price = 20 + 7 * number % 113
    title = f"{garment.color.capitalize()} {garment.pattern} {garment.type}"
    kept = ("color", "type", "pattern", "sleeves", "length")
    values = {name: getattr(garment, name) for name in kept}
    metadata = {"title": title, **values, "price": price}
    return Piece(f"{garment.type}/{number:03d}.jpg", metadata, garment)


def matches(piece: Piece, where: dict[str, Any]) -> bool:
    """Tell whether a picture passes the filters."""
    for field, condition in where.items():
        value = piece.metadata[field]
        if isinstance(condition, dict):
            if not condition.get("min", value) <= value <= condition.get("max", value):
                return False
        elif value not in (condition if isinstance(condition, list) else [condition]):
            return False
    return True


def search(references: list[Piece], text: str, where: dict[str, Any], k: int) -> list[dict]:
    """Return the best pictures in the service's form, references left out."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    hits = []
    for piece in pieces():
        if piece not in references and matches(piece, where):
            parts = _parts(piece, references, words)
            hits.append({**piece.form(), "score": sum(parts.values()), "parts": parts})
    return sorted(hits, key=lambda hit: -hit["score"])[:k]


def _parts(piece: Piece, references: list[Piece], words: set[str]) -> dict[str, float]:
    wanted = [value in words for value in piece.attributes.values() if value]
    kept = [
        sum(reference.attributes[name] == value for reference in references)
        for name, value in piece.attributes.items()
        if value not in words
    ]
    change = sum(wanted) / max(1, len(words))
    keep = sum(kept) / max(1, len(kept)) / max(1, len(references))
    shift = (hash_of(piece.id) % 100) / 1000
    levels = {"high": 0.5, "mid": 0.3 + shift, "low": 0.2 - shift}
    parts = {f"modified/{level}": round(change * w, 4) for level, w in levels.items()}
    return parts | {f"preserved/{level}": round(keep * w, 4) for level, w in levels.items()}


def explanation(reference: Piece, target: Piece) -> dict[str, Any]:
    """Return heat maps in the service's form: a spot on each, and none in one of them."""
    spots = {"modified": (0.25, 0.5), "preserved": (0.75, 0.4)}
    overlays: dict[str, dict[str, str | None]] = {
        name: {part: _spot(piece, *center) for part, center in spots.items()}
        for name, piece in (("reference", reference), ("target", target))
    }
    overlays["reference"]["modified"] = None
    return {"parts": {}, "levels": ["low"], **overlays, "scale": _scale()}


def _spot(piece: Piece, row: float, column: float) -> str:
    """Return a heat map that is brightest at a point, over a grey copy of a picture."""
    y, x = np.mgrid[0:1:256j, 0:1:256j]
    heat = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 0.04)
    grey = Image.open(io.BytesIO(drawn(piece.id, 256))).convert("L")
    return _base64(Image.blend(grey.convert("RGB"), Image.fromarray(scale(heat)), 0.6))


def _scale() -> str:
    return _base64(Image.fromarray(scale(np.tile(np.linspace(0, 1, 256), (8, 1)))))


def _base64(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG")
    return base64.b64encode(stream.getvalue()).decode()


def hash_of(text: str) -> int:
    """Return a number that depends on the text alone."""
    return sum((i + 1) * ord(letter) for i, letter in enumerate(text))


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


class PageServer(http.server.ThreadingHTTPServer):
    """The service; settings may be changed while it runs.

    Attributes:
        takes: as in /about.
        delay: seconds before a search is answered.
        busy: number of searches that are answered with 503 from now on.
        key: what clients must send, or None.
        explains: as in /about.
        explained: queries whose results were explained, in the same form, with "target".
        searches: queries that came, as {"item": [...], "images": sizes, "text", "where", "k"}.
        paths: all paths that were asked for.
    """

    daemon_threads = True

    def __init__(self, port: int = 0, size: int = 96):
        super().__init__(("127.0.0.1", port), _Handler)
        self.size = size
        self.takes = {"image": True, "text": True, "both": True}
        self.texts = True
        self.explains = True
        self.notes = ["This model was trained on drawn garments and knows their words alone."]
        self.count = COUNT
        self.delay, self.busy, self.key = 0.0, 0, None
        self.searches: list[dict[str, Any]] = []
        self.explained: list[dict[str, Any]] = []
        self.paths: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def __enter__(self) -> PageServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep silent about requests that the page calls off; print all other errors."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@functools.cache
def drawn(item: str, size: int) -> bytes:
    """Return a garment's JPEG."""
    from input_pipeline.garments import drawing

    (piece,) = (piece for piece in pieces() if piece.id == item)
    stream = io.BytesIO()
    drawing.render(piece.garment, size=size).save(stream, "JPEG", quality=90)
    return stream.getvalue()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PageServer

    def log_message(self, *_: object) -> None:
        """Print nothing: the page asks for many pictures."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, act: Any) -> None:
        address = urllib.parse.urlsplit(self.path)
        self.server.paths.append(self.path)
        path, fields = urllib.parse.unquote(address.path), urllib.parse.parse_qs(address.query)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self._check_key(path)
            answer = act(path, {name: values[0] for name, values in fields.items()}, body)
            self._send(200, *answer)
        except Refused as refusal:
            error = json.dumps({"error": refusal.sentence}).encode()
            self._send(refusal.status, error, "application/json", **refusal.headers)

    def _check_key(self, path: str) -> None:
        is_open = path == "/" or path.startswith("/page/")
        if self.server.key is None or is_open:
            return
        if self.headers.get("Authorization") != f"Bearer {self.server.key}":
            raise Refused(401, "this service asks for a key")

    def _send(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _get(self, path: str, fields: dict[str, str], _: bytes) -> tuple[bytes, str]:
        if path == "/":
            return (PAGE / "index.html").read_bytes(), "text/html; charset=utf-8"
        if path.startswith("/page/"):
            file = PAGE / pathlib.PurePosixPath(path).name
            return file.read_bytes(), f"{TYPES[file.suffix]}; charset=utf-8"
        if path == "/about":
            return _json(self._about())
        if path == "/items":
            return _json(self._items(fields))
        item = re.fullmatch("/items/(.+)/image", path)
        if item and any(piece.id == item[1] for piece in pieces()):
            return drawn(item[1], min(self.server.size, int(fields.get("size", 384)))), "image/jpeg"
        for piece in pieces():
            if path == f"/items/{piece.id}":
                return _json(piece.form())
        raise Refused(404, "there is nothing at this address")

    def _about(self) -> dict[str, Any]:
        return {
            "title": "Garments",
            "count": self.server.count,
            "variant": "cmap",
            "takes": self.server.takes,
            "texts": self.server.texts,
            "explains": self.server.explains,
            "notes": self.server.notes,
            "fields": _fields(),
            "limits": {"references": 4, "k": 60, "text_characters": 1000, "upload_bytes": 16 << 20},
        }

    def _items(self, fields: dict[str, str]) -> dict[str, Any]:
        where, words = json.loads(fields.get("where", "{}")), fields.get("q", "").lower()
        offset, limit = int(fields.get("offset", 0)), int(fields.get("limit", 24))
        kept = [piece for piece in pieces()[: self.server.count] if matches(piece, where)]
        kept = [one for one in kept if words in json.dumps([one.id, one.metadata]).lower()]
        shown = [piece.form() for piece in kept[offset : offset + limit]]
        return {"items": shown, "total": len(kept)}

    def _post(self, path: str, _: dict[str, str], body: bytes) -> tuple[bytes, str]:
        if path not in ("/search", "/explain"):
            raise Refused(404, "there is no such address")
        query = _form(self.headers["Content-Type"], body)
        came = self.server.searches if path == "/search" else self.server.explained
        came.append({**query, "images": [len(one) for one in query["images"]]})
        time.sleep(self.server.delay)
        if self.server.busy > 0:
            self.server.busy -= 1
            raise Refused(503, "too many searches are in flight", {"Retry_After": "1"})
        known = {piece.id: piece for piece in pieces()}
        for item in query["item"]:
            if item not in known:
                raise Refused(404, f"there is no item {item!r}")
        references = [known[item] for item in query["item"]]
        references += [_look(one) for one in query["images"]]
        if path == "/explain":
            return _json(explanation(references[0], known[query["target"]]))
        hits = search(references, query["text"], query["where"], query["k"])
        return _json({"hits": hits, "took_ms": 12.3})


def _look(upload: bytes) -> Piece:
    """Return the garment that an upload is taken for; the first one, if it is a picture."""
    try:
        Image.open(io.BytesIO(upload)).load()
    except Exception as error:
        raise Refused(415, "the file is not a picture of these types: JPEG, PNG") from error
    return pieces()[0]


def _form(kind: str, body: bytes) -> dict[str, Any]:
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    query = {"item": [], "images": [], "text": "", "where": {}, "k": 24}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if name == "image":
            query["images"].append(content)
        elif name == "item":
            query["item"].append(content.decode())
        elif name in ("text", "target"):
            query[name] = content.decode()
        else:
            query[name] = json.loads(content)
    return query


@functools.cache
def _fields() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, example in pieces()[0].metadata.items():
        values = [piece.metadata[name] for piece in pieces()]
        if name == "title":
            continue
        if isinstance(example, str):
            counts = {value: values.count(value) for value in sorted(set(values))}
            fields[name] = {"kind": "choice", "values": counts}
        else:
            fields[name] = {"kind": "range", "min": min(values), "max": max(values)}
    return fields


def _json(answer: Any) -> tuple[bytes, str]:
    return json.dumps(answer).encode(), "application/json"


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    with PageServer(port=8123, size=384) as running:
        print(running.address)
        threading.Event().wait()
