"""Wrong requests by the thousand: no 5xx but 503, and what comes in between stays right."""

import contextlib
import http.client
import io
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_retriever import COLORS, encoded
from hypothesis import HealthCheck, Phase, assume, given, settings
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
FIELDS = ("image", "item", "text", "k", "where", "image", "target", "other", "")
WITH_PARAMETERS = ("POST /search", "POST /explain", "GET /items", "GET /items/{id}/image")

needs_proc = pytest.mark.skipif(
    not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)

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
settings = Settings(reload_seconds=0, upload_bytes=2**20, pixels=10**6, body_seconds=2)
server.serve(opener, listener, settings)
"""


class Client:
    """Sends requests over one connection, which it opens again when the service closes it."""

    def __init__(self, port: int):
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def close(self) -> None:
        self._connection.close()

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
            name = rng.choice(FIELDS)
            value = rng.choice(
                {
                    "image": uploads,
                    "item": [entry.encode() for entry in names],
                    "target": [entry.encode() for entry in names],
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
        address = "/explain" if "target" in [name for name, *_ in fields] else "/search"
        return "POST", address, body, {"Content-Type": content_type}
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


@contextlib.contextmanager
def served(folder: pathlib.Path):
    """Serve a gallery in a process; give its port and number. It must have logged no error."""
    gallery = folder / "gallery"
    gallery.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(gallery)],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env=environment,
            text=True,
        )
    try:
        port = int(process.stdout.readline())
        client = Client(port)
        while client.ask("GET", "/readyz")[0] != 200:
            time.sleep(0.05)
        client.close()
        yield port, process.pid
    finally:
        process.kill()
        process.communicate()
    entries = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert not [entry for entry in entries if entry["level"] == "error"]


@pytest.mark.slow
@needs_proc
def test_ten_thousand_malformed_requests(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(OTHER_CONTENT)
    with served(tmp_path) as (port, process), contextlib.closing(Client(port)) as client:
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
                settled = resident_bytes(process)
        check_right(client)
        if settled:
            assert resident_bytes(process) < settled + GROWTH
        assert statuses.get(200, 0) > 0
        assert statuses.get(400, 0) > 0
        print(f"statuses: {dict(sorted(statuses.items()))}")


def pieces_of_a_body(kind: str):
    """Yield a search's head, then its body, which is too large, too slow or of a wrong form."""
    head = "POST /search HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    begun = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    if kind == "large":
        yield f"{head}Content-Length: {3 << 20}\r\n\r\n".encode() + begun
        yield from [bytes(1 << 16)] * 48
    elif kind == "huge":
        yield f"{head}Content-Length: {1 << 40}\r\n\r\n".encode() + begun
    elif kind == "endless":  # the length does not count beside chunks
        yield f"{head}Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        yield f"{len(begun):x}\r\n".encode() + begun + b"\r\n"
        yield from [chunk] * 1_000
    elif kind == "slow":
        yield f"{head}Content-Length: 1000\r\n\r\n".encode() + begun
        for _ in range(40):
            time.sleep(0.1)
            yield b"a"
    elif kind == "ampersands":
        form = head.replace("multipart/form-data; boundary=x", "application/x-www-form-urlencoded")
        yield f"{form}Content-Length: {1 << 20}\r\n\r\n".encode()
        yield from [b"&" * (1 << 16)] * 16


def answer_to(port: int, kind: str) -> bytes:
    """Send a body until it ends or the service has had enough, and return the answer's head."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):
            for piece in pieces_of_a_body(kind):
                connection.sendall(piece)
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in answer and (part := connection.recv(4096)):
                answer += part
        return answer.partition(b"\r\n\r\n")[0].lower()


@pytest.mark.slow
@needs_proc
def test_large_and_slow_bodies_over_many_connections(tmp_path):
    """Each kind has its status, and right searches in between are answered soon."""
    expected = {"large": "413", "huge": "413", "endless": "413", "slow": "408", "ampersands": "415"}
    with served(tmp_path) as (port, process), ThreadPoolExecutor(20) as pool:

        def round_of_bodies() -> None:
            kinds = [*expected] * 8
            answers = [pool.submit(answer_to, port, kind) for kind in kinds]
            with contextlib.closing(Client(port)) as client:
                while not all(answer.done() for answer in answers):
                    started = time.monotonic()
                    check_right(client)
                    assert time.monotonic() - started < 5
                    time.sleep(0.05)
            for kind, answer in zip(kinds, answers, strict=True):
                head = answer.result()
                allowed = (b"", f"http/1.1 {expected[kind]} ".encode(), b"http/1.1 503 ")
                assert head[: len(b"http/1.1 413 ")] in allowed, (kind, head)
                assert b" 503 " not in head[:13] or b"retry-after" in head
            statuses = [answer.result()[9:12].decode() for answer in answers]
            assert set(expected.values()) <= set(statuses)

        round_of_bodies()
        settled = resident_bytes(process)
        for _ in range(3):
            round_of_bodies()
        assert resident_bytes(process) < settled + GROWTH


@pytest.mark.slow
def test_requests_drawn_from_the_openapi_description(tmp_path):
    """Answers have the statuses and forms that the description names."""
    schemathesis = require("schemathesis")
    from schemathesis import GenerationMode, checks

    names = ["not_a_server_error", "status_code_conformance"]
    names += ["content_type_conformance", "response_schema_conformance"]

    def explore(operation, mode) -> int:
        """Send 100 requests, or the only one that there is; return how many were answered."""
        answered = []

        @settings(
            max_examples=100,
            derandomize=True,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def send(case):
            # Uvicorn ends the connection of an address of more than 64 KiB.
            assume(len(str(case.query)) < 5_000)
            answered.append(case.call_and_validate(checks=wanted))

        send()
        return len(answered)

    with served(tmp_path) as (port, _):
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
        wanted = checks.CHECKS.get_by_names(names)  # loaded with the first description
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) == 9
        for operation in operations:
            assert explore(operation, GenerationMode.POSITIVE)
            # The others have no parameter that could be wrong.
            if operation.label in WITH_PARAMETERS:
                assert explore(operation, GenerationMode.NEGATIVE)


def test_malformed_requests_are_drawn_alike_each_time(tmp_path):
    """A failure of the long test can be repeated: its requests depend on the seed alone."""
    uploads, secret = pictures(), tmp_path / "secret.jpg"

    def first(count):
        rng = random.Random(17)
        return [random_request(rng, uploads, secret) for _ in range(count)]

    assert first(50) == first(50)
