"""Malformed requests by the thousand: no 5xx but 503, and what comes in between stays right."""

import http.client
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import time
import urllib.parse

import pytest
from fake_retriever import COLORS, encoded
from optional import require
from PIL import Image

require("fastapi")
require("uvicorn")

ROOT = pathlib.Path(__file__).parents[2]
REQUESTS = 10_000
CHECKED_EVERY = 200  # requests between two right ones
MEMORY_AFTER = 2_000  # requests after which memory may no longer grow
GROWTH = 64 * 2**20  # bytes
OTHER_CONTENT = b"a secret outside of the index"

# The service in a process of its own, whose memory is its own.
PROGRAM = """
import pathlib, sys
sys.path.insert(0, "tests")
import fake_retriever
from cmap_jax.serving import logs, server
from cmap_jax.serving.settings import Settings

folder = pathlib.Path(sys.argv[1])
retriever = fake_retriever.FakeRetriever(fake_retriever.write_gallery(folder))
opener = lambda previous: retriever
opener.manifest = ""
listener = server.bind("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
logs.log_as_json()
server.serve(opener, listener, Settings(reload_seconds=0, upload_bytes=2**20, pixels=10**6))
"""


class Client:
    """Sends requests over one connection, which it opens again when the service closes it."""

    def __init__(self, port: int):
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, address: str, body=None, headers=None) -> tuple[int, bytes, dict]:
        """Return status, content and headers; status 0 where the connection was cut."""
        try:
            self._connection.request(method, address, body, headers or {})
            response = self._connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, response.read(), headers
        except (http.client.HTTPException, ConnectionError):
            self._connection.close()
            return 0, b"", {}


def form(rng: random.Random, fields: list[tuple[str, bytes, str | None]]) -> tuple[bytes, str]:
    """Return a multipart body and its content type."""
    boundary = f"b{rng.getrandbits(40)}"
    parts = []
    for name, value, filename in fields:
        suffix = "" if filename is None else f'; filename="{filename}"'
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{suffix}\r\n\r\n'
        parts.append(head.encode("utf-8", "surrogatepass") + value + b"\r\n")
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), boundary


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Return bytes with some changed, cut off, doubled or put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 3, 20))):
        kind, at = rng.randrange(4), rng.randrange(max(1, len(data)))
        if kind == 0 and data:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randrange(200)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(40))
    return bytes(data)


def pictures() -> list[bytes]:
    """Valid pictures of all types, and files that pretend to be some."""
    red = COLORS["red"]
    files = [encoded(red, image_format=name) for name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")]
    files += [encoded(red, progressive=True), encoded(red, (1, 900)), encoded(red, (900, 1))]
    for mode in ("L", "P", "RGBA", "LA", "1", "I;16"):
        stream = io.BytesIO()
        Image.new(mode, (30, 30)).save(stream, "PNG")
        files.append(stream.getvalue())
    stream = io.BytesIO()
    Image.new("1", (20_000, 5_000)).save(stream, "PNG")  # a bomb
    files += [stream.getvalue(), b"", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "]
    files += [b"<svg onload='x()'/>", b"%!PS\n(/etc/passwd) (r) file", b"\0" * 5_000]
    return files


TEXTS = [
    b"red",
    b"",
    b"\xff\xfe",
    "ü \u202e \0 ﷽ 🙂".encode(),
    b"x" * 5_000,
    b"' OR 1=1 --",
    b"../../../etc/passwd",
    b"file:///etc/passwd",
    b"http://127.0.0.1:1/",
    b"{}",
    b"-1",
    b"1e999",
    b"NaN",
    "\ud800".encode("utf-8", "surrogatepass"),
]
WHERES = [
    b'{"price": {"min": 1e999}}',
    b'{"price": {"min": "a"}}',
    b'{"price": [[]]}',
    b'{"price": ' + b"9" * 400 + b"}",
    b'{"name": {"min": 1}}',
    b'{"name": null}',
    b'{"name": []}',
    b'{"tags": {"$gt": ""}}',
    b'{"\\ud800": "\\udfff"}',
    b'{"a":' * 500,
    b"[" * 5_000,
    b"{" + b'"a": 1,' * 500 + b'"b": 2}',
]


def random_request(rng: random.Random, uploads: list[bytes], secret: pathlib.Path):
    """Return method, address, body and headers of a request that is more or less wrong."""
    names = ["red/image", "colours/green & ü%2F?.jpg", str(secret), f"../../{secret}", "", "\0"]
    names += ["a" * 3_000, f"file://{secret}", "..", ".", "%", "red/image/../red/image"]
    kind = rng.randrange(10)
    if kind < 5:
        fields = []
        for _ in range(rng.randrange(6)):
            name = rng.choice(("image", "item", "text", "k", "where", "image", "other", ""))
            value = rng.choice(
                {
                    "image": uploads,
                    "item": [entry.encode() for entry in names],
                    "where": WHERES,
                    "k": [b"1", b"24", b"0", b"201", b"\xff", *TEXTS],
                }.get(name, TEXTS)
            )
            is_file = (name == "image") != (rng.random() < 0.05)
            if name == "image" and rng.random() < 0.5:
                value = mutated(rng, value)
            fields.append((name, value, str(secret) if is_file else None))
        body, boundary = form(rng, fields)
        if rng.random() < 0.3:
            body = mutated(rng, body)
        content_type = f"multipart/form-data; boundary={boundary}"
        if rng.random() < 0.1:
            content_type = rng.choice(
                ("", "application/json", "multipart/form-data", content_type + "; charset=utf-7")
            )
        return "POST", "/search", body, {"Content-Type": content_type}
    if kind < 8:
        name = rng.choice(names)
        quoted = urllib.parse.quote(name, safe=rng.choice(("", "/")))
        if rng.random() < 0.2:
            quoted += rng.choice(("%FF", "%00", "%ED%A0%80", "%2e%2e%2f", "%"))
        tail = rng.choice(("", "/image", "/image?size=", "/image?size=-1", "/image?size=1e9"))
        return "GET", f"/items/{quoted}{tail}", None, {"If-None-Match": rng.choice(("*", '"', "a"))}
    if kind == 8:
        text = urllib.parse.quote(rng.choice(TEXTS + WHERES))
        field = rng.choice(("offset", "limit", "q", "where", "other"))
        return "GET", f"/items?{field}={text}&limit={rng.choice(('1', '-1', '9' * 30))}", None, {}
    address = rng.choice(("/", "/about", "/page/..%2f..%2fsetup.py", "/metrics", "/x", "//", "/%"))
    return rng.choice(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")), address, None, {}


def resident_bytes(process: int) -> int:
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    return int(next(x for x in status.splitlines() if x.startswith("VmRSS")).split()[1]) * 1024


def check_right(client: Client) -> None:
    """The service still gives the right answer to a right request."""
    body, boundary = form(random.Random(0), [("text", b"blue", None), ("k", b"1", None)])
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    status, content, _ = client.ask("POST", "/search", body, headers)
    assert status == 200, content
    assert json.loads(content)["hits"][0]["metadata"]["name"] == "blue"


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_ten_thousand_malformed_requests(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(OTHER_CONTENT)
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(gallery)],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env=environment,
            text=True,
        )
    try:
        client = Client(int(process.stdout.readline()))
        while client.ask("GET", "/readyz")[0] != 200:
            time.sleep(0.05)
        rng, uploads = random.Random(17), pictures()
        statuses: dict[int, int] = {}
        settled = 0
        for number in range(int(os.environ.get("CMAP_FUZZED_REQUESTS", REQUESTS))):
            request = random_request(rng, uploads, secret)
            status, content, headers = client.ask(*request)
            statuses[status] = statuses.get(status, 0) + 1
            assert status < 500 or status == 503, (number, request[:2], content)
            assert status != 503 or "retry-after" in headers, (number, request[:2])
            assert OTHER_CONTENT not in content
            if number % CHECKED_EVERY == 0:
                check_right(client)
            if number == MEMORY_AFTER:
                settled = resident_bytes(process.pid)
        check_right(client)
        if settled:
            assert resident_bytes(process.pid) < settled + GROWTH
        assert statuses.get(200, 0) > 0
        assert statuses.get(400, 0) > 0
        print(f"statuses: {dict(sorted(statuses.items()))}")
    finally:
        process.kill()
        process.communicate()
    entries = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert not [entry for entry in entries if entry["level"] == "error"]


def test_malformed_requests_are_drawn_alike_each_time(tmp_path):
    """A failure of the long test can be repeated: its requests depend on the seed alone."""
    uploads, secret = pictures(), tmp_path / "secret.jpg"

    def first(count):
        rng = random.Random(17)
        return [random_request(rng, uploads, secret) for _ in range(count)]

    assert first(50) == first(50)
