"""The HTTP interface: answers, refusals, and what clients cannot reach."""

import asyncio
import contextlib
import gc
import io
import json
import logging
import threading
import time
import urllib.parse

import pytest
from fake_retriever import COLORS, FakeRetriever, encoded, write_gallery
from optional import require
from PIL import Image

require("fastapi")
require("prometheus_client")

from starlette.requests import Request  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from cmap_jax.retrieval.retriever import Query  # noqa: E402
from cmap_jax.serving import browsing  # noqa: E402
from cmap_jax.serving.app import Service  # noqa: E402
from cmap_jax.serving.forms import Form, most_bytes  # noqa: E402
from cmap_jax.serving.logs import JsonFormatter, log_as_json  # noqa: E402
from cmap_jax.serving.settings import Settings  # noqa: E402

RED = encoded(COLORS["red"])
FAILURE = {"$ref": "#/components/schemas/Failure"}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return write_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture
def retriever(gallery):
    return FakeRetriever(gallery)


@contextlib.contextmanager
def serving(retriever, wait=True, **settings):
    """Run a service; the client that is given is ready for searches, unless ``wait`` is False."""
    service = Service(lambda _: retriever, "", Settings(**{"reload_seconds": 0, **settings}))
    with TestClient(service.app, raise_server_exceptions=False) as client:
        client.service = service
        while wait and client.get("/readyz", headers={"host": "127.0.0.1"}).status_code != 200:
            time.sleep(0.005)
        try:
            yield client
        finally:
            retriever.gate.set()


@pytest.fixture(scope="module")
def client(gallery):
    """A service as it is without settings, for tests that leave it as it was."""
    with serving(FakeRetriever(gallery)) as client:
        yield client


@pytest.fixture
def start(retriever):
    """Start services of one's own retriever or settings, which end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda own=retriever, **settings: stack.enter_context(serving(own, **settings))


def search(client, *files, headers=None, **fields):
    """Search with uploads and fields; a list gives a field several times."""
    parts = [("image", ("x.jpg", file, "image/jpeg")) for file in files]
    parts += [
        (name, (None, one))
        for name, value in fields.items()
        for one in (value if isinstance(value, list) else [str(value)])
    ]
    return client.post("/search", files=parts, headers=headers)


def error(response, status: int) -> str:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    return response.json()["error"]


def names(response) -> list[str]:
    assert response.status_code == 200, response.text
    return [hit["metadata"]["name"] for hit in response.json()["hits"]]


def id_of(gallery, name: str) -> str:
    return next(item.id for item in gallery if item.metadata["name"] == name)


def test_a_search_is_the_direct_call(client, retriever):
    where = {"price": {"max": 30}, "tags": ["r", "g", "b"]}
    answer = search(client, RED, text="green", k=3, where=json.dumps(where)).json()
    assert answer.keys() == {"hits", "took_ms"}
    expected = retriever.search_batch([Query(image=[RED], text="green")], 3, where)[0]
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in expected]
    for hit, direct in zip(answer["hits"], expected, strict=True):
        assert hit["score"] == direct.score
        assert hit["parts"] == dict(direct.parts)
        assert hit["metadata"] == dict(direct.metadata)
        picture = client.get(hit["image"])
        assert picture.headers["content-type"] == "image/jpeg"


def test_references_of_all_kinds(client, gallery):
    assert names(search(client, text="blue", k=1)) == ["blue"]
    assert names(search(client, encoded(COLORS["green"]), k=1)) == ["green"]
    assert names(search(client, item=id_of(gallery, "blue"), k=1)) == ["blue"]
    both = [id_of(gallery, "red"), id_of(gallery, "green")]
    assert names(search(client, item=both, k=1)) == ["yellow"]
    assert names(search(client, RED, item=id_of(gallery, "green"), k=1)) == ["yellow"]
    assert len(names(search(client, text="red"))) == len(COLORS)


@pytest.mark.parametrize(
    ("upload", "first"),
    [
        (encoded(COLORS["blue"], image_format="PNG"), "blue"),
        (encoded(COLORS["blue"], image_format="WEBP", lossless=True), "blue"),
        (
            encoded(
                COLORS["green"],
                image_format="GIF",
                save_all=True,
                append_images=[Image.new("RGB", (40, 60), COLORS["red"])],
            ),
            "green",
        ),
        (encoded(COLORS["red"], image_format="JPEG", progressive=True), "red"),
    ],
    ids=["png", "webp", "first frame", "progressive"],
)
def test_types_are_known_by_decoding(client, upload, first):
    assert names(search(client, upload, k=1)) == [first]


def test_heic_with_its_extra(client):
    require("pillow_heif").register_heif_opener()
    upload = encoded(COLORS["green"], image_format="HEIF")
    assert names(search(client, upload, k=1)) == ["green"]


def large_png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def many_scans() -> bytes:
    """A JPEG with a scan that is repeated a thousand times."""
    picture = encoded(COLORS["red"], progressive=True)
    begin = picture.rindex(b"\xff\xda")
    scan = picture[begin:-2]
    return picture[:begin] + scan * 1000 + picture[-2:]


@pytest.mark.parametrize(
    ("upload", "status", "message"),
    [
        (b"", 422, "empty"),
        (b"no picture", 415, "JPEG, PNG, WEBP, GIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not a picture"),
        (encoded(COLORS["red"], image_format="TIFF"), 415, "not a picture"),
        (encoded(COLORS["red"], image_format="BMP"), 415, "not a picture"),
        (encoded(COLORS["red"], (640, 640))[:-200], 422, "truncated"),
        (encoded(COLORS["red"], image_format="PNG")[:-30], 422, "cannot be read"),
        (large_png(9000, 9000), 413, "9000 x 9000"),
        (large_png(20000, 2), 413, "a side"),
        (large_png(30000, 30000), 413, "pixels"),
        (many_scans(), 422, "scans"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
def test_pictures_that_are_refused(client, upload, status, message):
    assert message in error(search(client, upload), status)


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"k": 5}, 400, "needs a picture, an item or a text"),
        ({"text": "  "}, 400, "needs a picture"),
        ({"text": "x" * 1001}, 400, "1,000 characters"),
        ({"text": ["a", "b"]}, 400, "more than once"),
        ({"text": "red", "k": 0}, 400, "from 1 to 200"),
        ({"text": "red", "k": 201}, 400, "from 1 to 200"),
        ({"text": "red", "k": "-1"}, 400, "from 1 to 200"),
        ({"text": "red", "k": "1e2"}, 400, "from 1 to 200"),
        ({"text": "red", "k": "٣"}, 400, "from 1 to 200"),
        ({"text": "red", "k": "9" * 5000}, 400, "from 1 to 200"),
        ({"text": "red", "where": "{"}, 400, "not JSON"),
        ({"text": "red", "where": "[" * 15_000}, 400, "not JSON"),
        ({"text": "red", "where": "[1]"}, 400, "JSON object"),
        ({"text": "red", "where": '{"price": NaN}'}, 400, "not JSON"),
        ({"text": "red", "where": '{"price": ' + "9" * 6000 + "}"}, 400, "not JSON"),
        ({"text": "red", "where": '{"colour": "red"}'}, 400, "no field 'colour'"),
        ({"text": "red", "where": '{"price": "red"}'}, 400, "price holds numbers"),
        ({"text": "red", "where": '{"name": "\\ud800"}'}, 200, ""),
        ({"text": "red", "where": '{"\\ud800": 1}'}, 400, "no field"),
        ({"text": "red", "where": '{"a": "' + "x" * 30_000 + '"}'}, 400, "20,000 characters"),
        ({"text": "red", "colour": "red"}, 400, "unknown field 'colour'"),
        ({"item": "nothing"}, 404, "no item"),
        ({"item": "../../../etc/passwd"}, 404, "no item"),
        ({"item": "x" * 9000}, 404, "no item"),
        ({"item": ["red/image"] * 5}, 400, "at most 4"),
        ({"image": "red.jpg"}, 400, "image must be a file"),
        ({"text": "poison"}, 400, "'poison' cannot be composed"),
    ],
)
def test_fields_that_are_refused(client, fields, status, message):
    response = search(client, **fields)
    if status == 200:
        assert response.json()["hits"] == []
    else:
        assert message in error(response, status)


@pytest.mark.parametrize(
    ("takes", "files", "fields", "message"),
    [
        ((1, 0, 0), [RED], {"text": "blue"}, "makes nothing of a text"),
        ((0, 1, 0), [RED], {"text": "blue"}, "makes nothing of a picture"),
        ((0, 0, 1), [RED], {}, "needs a text too"),
        ((0, 0, 1), [], {"text": "blue"}, "needs a picture or an item too"),
        ((0, 1, 0), [RED], {}, "nothing of a picture: leave it out, and give a text"),
        ((1, 0, 0), [], {"text": "blue"}, "nothing of a text: leave it out, and give a picture"),
    ],
)
def test_halves_that_the_method_does_not_take(start, gallery, takes, files, fields, message):
    client = start(FakeRetriever(gallery, takes=takes))
    assert message in error(search(client, *files, **fields), 400)
    about = client.get("/about").json()
    assert about["takes"] == dict(zip(("image", "text", "both"), map(bool, takes), strict=True))
    assert about["texts"] == any(takes[1:])


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("", b"text=red", 415),
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=x", b"", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nnothing", 400),
        ("multipart/form-data; boundary=" + "x" * 500, b"--x--", 400),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--",
            400,
        ),
        ("multipart/form-data; boundary=x; charset=punycode", b"--x--", 415),
        ("multipart/form-data; boundary=x; charset=unicode_escape", b"--x--", 415),
        ("application/x-www-form-urlencoded", b"text=red", 415),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n\xff\xfe\r\n--x--\r\n',
            200,
        ),
    ],
)
def test_malformed_bodies(client, content_type, body, status):
    response = client.post("/search", content=body, headers={"content-type": content_type})
    if status != 200:
        error(response, status)
    assert response.status_code == status


def test_bodies_that_are_too_large(start):
    client = start(upload_bytes=5_000)
    assert names(search(client, RED, k=1)) == ["red"]
    assert "5,000 bytes" in error(search(client, bytes(5_000)), 413)
    assert "5,000 bytes" in error(search(client, bytes(100_000)), 413)

    def pieces():
        yield from [b"x" * 1_000] * 10_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = client.post(
        "/search", content=pieces(), headers=headers
    )  # the length is not declared
    assert error(response, 413)
    assert response.headers["connection"] == "close"


def test_the_name_of_an_upload_is_not_opened(client, gallery):
    upload = [("image", (gallery[0].image, b"no picture", "image/jpeg"))]
    error(client.post("/search", files=upload), 415)
    upload = [("image", ("file:///etc/passwd", RED, "text/html"))]
    assert names(client.post("/search", files=upload, data={"k": "1"})) == ["red"]


def test_items(start, gallery):
    client = start(page_items=4)
    page = client.get("/items").json()
    assert page["total"] == 6
    assert [item["id"] for item in page["items"]] == [item.id for item in gallery[:4]]
    page = client.get("/items?offset=4&limit=100").json()
    assert [item["id"] for item in page["items"]] == [item.id for item in gallery[4:]]
    assert client.get("/items?offset=99").json() == {"items": [], "total": 6}

    def found(**query):
        answer = client.get("/items", params=query).json()
        return [item["metadata"]["name"] for item in answer["items"]], answer["total"]

    assert found(q="GREE") == (["green"], 1)
    assert found(q="Ü%2f") == (["green", "yellow", "black"], 3)  # in ids
    assert found(q="plain", limit=1, offset=5) == (["black"], 6)
    assert found(q="red · nothing") == ([], 0)
    assert found(where='{"price": {"min": 20}}', q="l") == (["blue", "yellow", "grey", "black"], 4)
    assert found(where='{"tags": ["r", "b"]}') == (["red", "blue", "black"], 3)
    assert "no field" in error(client.get("/items", params={"where": '{"a": 1}'}), 400)
    assert "q has more" in error(client.get("/items", params={"q": "x" * 2000}), 400)
    for query in ("offset=-1", "limit=0", "limit=x", "offset=99999999999999999999"):
        assert error(client.get(f"/items?{query}"), 422).startswith(query.partition("=")[0])


def test_an_item_by_its_id(client, gallery):
    for item in gallery:
        for safe in ("", "/"):  # slashes as they are, or encoded
            address = urllib.parse.quote(item.id, safe=safe)
            picture = client.get(f"/items/{address}/image?size=1")
            assert picture.headers["content-type"] == "image/jpeg", item.id
        answer = client.get(f"/items/{urllib.parse.quote(item.id, safe='')}").json()
        assert answer["id"] == item.id
        assert answer["metadata"] == dict(item.metadata)
        assert client.get(answer["image"] + "?size=1").content == picture.content


@pytest.mark.parametrize(
    "address",
    [
        "/items/nothing",
        "/items/nothing/image",
        "/items/%2Fetc%2Fpasswd/image",
        "/items/..%2F..%2Fetc%2Fpasswd/image",
        "/items/%FF%FE",
        "/items/%00/image",
        "/items/%ED%A0%80/image",  # half of a surrogate pair
        "/page/..%2Fapp.py",
        "/page/nothing",
        "/nothing",
        "/docs",
        "/redoc",
    ],
)
def test_addresses_that_lead_nowhere(client, address):
    error(client.get(address), 404)


def test_other_methods_are_refused(client):
    response = client.delete("/search")
    error(response, 405)
    assert response.headers["allow"] == "POST"


def test_thumbnails(start, tmp_path, gallery):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "taken at home"  # turned by 90 degrees; a description
    picture = Image.new("RGB", (400, 200), COLORS["red"])
    picture.paste(COLORS["blue"], (0, 0, 200, 200))
    picture.save(tmp_path / "turned.jpg", exif=exif)
    item = type(gallery[0])("turned", str(tmp_path / "turned.jpg"), gallery[0].metadata)
    gone = type(gallery[0])("gone", str(tmp_path / "gone.jpg"), gallery[0].metadata)
    client = start(FakeRetriever([item, gone]))
    response = client.get("/items/turned/image?size=100")
    thumbnail = Image.open(io.BytesIO(response.content))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", (64, 128))
    assert not thumbnail.getexif()
    top, bottom = thumbnail.getpixel((32, 10)), thumbnail.getpixel((32, 118))
    assert top[2] > 150 > top[0]
    assert bottom[0] > 150 > bottom[2]
    tag = response.headers["etag"]
    for sent in (tag, f'W/{tag}, "other"', "*"):
        again = client.get("/items/turned/image?size=128", headers={"if-none-match": sent})
        assert (again.status_code, again.content) == (304, b"")
    other = client.get("/items/turned/image?size=256", headers={"if-none-match": tag})
    assert other.status_code == 200
    assert Image.open(io.BytesIO(other.content)).size == (128, 256)
    picture.save(tmp_path / "turned.jpg")  # changed, and no longer turned
    changed = client.get("/items/turned/image?size=128", headers={"if-none-match": tag})
    assert Image.open(io.BytesIO(changed.content)).size == (128, 64)
    message = error(client.get("/items/gone/image"), 404)
    assert str(tmp_path) not in message


def test_about(start):
    client = start(title="Shop", notes=("Images alone.",))
    about = client.get("/about").json()
    assert about["title"] == "Shop"
    assert about["notes"] == ["Images alone."]
    assert (about["count"], about["variant"], about["texts"]) == (6, "sum", True)
    assert about["fields"]["price"] == {"kind": "range", "min": 0.0, "max": 50.0}
    assert about["fields"]["tags"]["values"]["plain"] == 6
    assert about["limits"]["k"] == 200


def test_nothing_is_answered_before_it_is_ready(start, retriever, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(retriever, "warm_up", lambda *_: gate.wait())
    client = start(wait=False)
    assert client.get("/healthz").status_code == 200
    for response in (client.get("/readyz"), search(client, text="red"), client.get("/items")):
        error(response, 503)
        assert int(response.headers["retry-after"]) >= 1
    gate.set()
    while client.get("/readyz").status_code != 200:
        time.sleep(0.005)
    assert names(search(client, text="red", k=1)) == ["red"]


def test_an_index_that_cannot_be_loaded_ends_the_service():
    def broken(_):
        raise ValueError("damaged")

    ended = threading.Event()
    service = Service(broken, "", Settings(), on_failure=ended.set)
    with TestClient(service.app) as client:
        assert ended.wait(5)
        assert client.get("/readyz").status_code == 503
    assert str(service.failure) == "damaged"


def test_too_much_at_once(start, retriever):
    client = start(queue=3, per_client=2)
    retriever.gate.clear()
    answers = []

    def ask(address):
        answers.append(search(client, text="red", headers={"x-from": address}))

    threads = [threading.Thread(target=ask, args=(str(i),)) for i in range(2)]
    for thread in threads:
        thread.start()
    while client.service._admission.searches < 2:
        time.sleep(0.005)
    refused = search(client, text="red")
    assert "2 searches in flight" in error(refused, 429)
    assert int(refused.headers["retry-after"]) >= 1
    client.service._admission._clients["another"] = 1
    refused = search(client, text="red")
    error(refused, 503)
    assert int(refused.headers["retry-after"]) >= 1
    del client.service._admission._clients["another"]
    assert client.get("/items").status_code == 200  # the page goes on
    retriever.gate.set()
    for thread in threads:
        thread.join(5)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert client.service._admission.searches == 0
    assert names(search(client, text="red", k=1)) == ["red"]


def test_uploads_in_memory_are_limited(start):
    client = start(upload_bytes=10_000)
    with client.service._admission.hold(16 * 10_000 - 100):
        refused = search(client, RED)
        error(refused, 503)
        assert refused.headers["connection"] == "close"
    assert names(search(client, RED, k=1)) == ["red"]


def test_an_upload_is_let_go_of_once_it_is_decoded(start, retriever):
    """Searches that wait for the device hold neither their uploads nor a reservation for them."""
    client = start(upload_bytes=100_000, batch=1)
    retriever.gate.clear()
    upload = RED + bytes(90_000)
    threads = [threading.Thread(target=search, args=(client, upload)) for _ in range(3)]
    for thread in threads:
        thread.start()
    batcher = client.service.generations._current.batcher
    while len(batcher._waiting) < 2 or not retriever.is_asked.is_set():
        time.sleep(0.005)
    assert client.service._admission._bytes == 0
    # `isinstance` would ask lazy objects of other packages for their class, which load then.
    kept = [form for form in gc.get_objects() if type(form) is Form]
    assert not [form for form in kept if form.images]
    retriever.gate.set()
    for thread in threads:
        thread.join(5)


def test_the_bytes_that_a_body_may_take():
    def most(**headers):
        encoded = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        request = Request({"type": "http", "headers": encoded})
        return most_bytes(request, Settings(upload_bytes=1_000))

    assert most() == 1_000
    assert most(content_length="10") == 10
    assert most(content_length="5000") == 1_000
    assert most(content_length="10", transfer_encoding="chunked") == 1_000


def test_look_ups_are_limited_and_hold_up_nothing_else(start, monkeypatch):
    client = start(per_client=1, decoders=1)
    gate, page = threading.Event(), browsing.Browser.page

    def waiting(self, offset, limit, words, where):
        assert not words or gate.wait(10)
        return page(self, offset, limit, words, where)

    monkeypatch.setattr(browsing.Browser, "page", waiting)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(client.get("/items?q=red")))
    thread.start()
    while not client.service._look_up_admission.searches:
        time.sleep(0.005)
    refused = client.get("/items?q=blue")
    error(refused, 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/items").status_code == 200
    assert client.get("/items/red%2Fimage/image").status_code == 200
    assert names(search(client, item="red/image", k=1)) == ["red"]
    gate.set()
    thread.join(5)
    assert answers[0].status_code == 200


def test_a_backend_that_is_away_is_no_defect(start, retriever):
    client = start()
    retriever.fault = OSError("Milvus at http://10.0.0.7:19530: timeout")
    refused = search(client, text="red")
    assert error(refused, 503) == "the search backend cannot be reached"
    assert int(refused.headers["retry-after"]) >= 1
    retriever.fault = None
    assert names(search(client, text="red", k=1)) == ["red"]


def test_a_search_that_takes_too_long_is_given_up(start, retriever):
    client = start(request_seconds=1.0)
    retriever.gate.clear()
    refused = search(client, text="red")
    error(refused, 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert client.service._admission.searches == 0
    retriever.gate.set()
    assert names(search(client, text="red", k=1)) == ["red"]


def test_a_body_that_comes_slowly_is_given_up(start):
    """The ASGI application is called as a server does it, with a body that never ends."""
    client = start(body_seconds=1.0)

    async def receive():
        await asyncio.sleep(0.3)
        return {"type": "http.request", "body": b"--x", "more_body": True}

    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/search",
        "raw_path": b"/search",
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
        "client": ("9.9.9.9", 1),
    }
    client.portal.call(client.service.app, scope, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_failure_inside_says_nothing_of_the_inside(client, caplog):
    response = search(client, text="crash", headers={"x-request-id": "abc-1"})
    message = error(response, 500)
    assert "secret" not in message
    assert response.headers["x-request-id"] == "abc-1"
    (record,) = [r for r in caplog.records if r.exc_info]
    assert record.request == "abc-1"


def test_the_key(start):
    client = start(api_key="open sesame".replace(" ", "-"))
    for address in ("/healthz", "/readyz", "/"):
        assert client.get(address).status_code in (200, 404)
    for address in ("/about", "/items", "/items/red%2Fimage/image", "/metrics", "/openapi.json"):
        for sent in (None, "Bearer wrong", "Bearer", "Basic open-sesame", "Bearer öpen"):
            headers = {"authorization": sent.encode()} if sent else None
            refused = client.get(address, headers=headers)
            error(refused, 401)
            assert refused.headers["www-authenticate"] == "Bearer"
        right = client.get(address, headers={"authorization": "bearer open-sesame"})
        assert right.status_code == 200
    error(search(client, text="red"), 401)
    assert "open-sesame" not in repr(client.service._settings)


def test_other_names_are_refused(start):
    client = start(hosts=("127.0.0.1", "shop.example.com", "[::1]"))
    for host in ("127.0.0.1:8000", "Shop.example.com", "[::1]:8000"):
        assert client.get("/items", headers={"host": host}).status_code == 200
    for address in ("/healthz", "/readyz"):  # probes name a container's or a pod's address
        assert client.get(address, headers={"host": "10.0.0.3:8000"}).status_code == 200
    for host in ("evil.example.com", "127.0.0.1.evil.com", "", "::1"):
        assert "Host" in error(client.get("/items", headers={"host": host}), 400)


def test_headers(client):
    for response in (client.get("/items"), client.get("/nothing"), search(client)):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in response.headers
        assert len(response.headers["x-request-id"]) == 16
    odd = client.get("/items", headers={"x-request-id": "a\tb"})
    assert len(odd.headers["x-request-id"]) == 16


def test_openapi(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/search",
        "/explain",
        "/items",
        "/items/{id}",
        "/items/{id}/image",
        "/about",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    body = described["paths"]["/search"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert set(body["schema"]["properties"]) == {"image", "item", "text", "k", "where"}
    assert body["schema"]["properties"]["k"]["maximum"] == 200
    for address, methods in described["paths"].items():
        for operation in methods.values():
            assert "503" in operation["responses"], address
            for status, answer in operation["responses"].items():
                schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
                assert (status < "400") == (schema != FAILURE), (address, status)
            names_in_path = [
                p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"
            ]
            assert names_in_path == (["id"] if "{id}" in address else [])
    assert "cdn" not in client.get("/openapi.json").text.lower()


def test_metrics(start):
    client = start()
    search(client, text="red")
    client.get("/items/nothing")
    client.get("/some/address")
    lines = client.get("/metrics").text.splitlines()
    assert 'cmap_requests_total{method="POST",route="/search",status="200"} 1.0' in lines
    assert 'cmap_requests_total{method="GET",route="/items/{id:path}",status="404"} 1.0' in lines
    assert 'cmap_requests_total{method="GET",route="elsewhere",status="404"} 1.0' in lines
    assert "cmap_batch_size_sum 1.0" in lines
    assert "cmap_items 6.0" in lines
    assert 'cmap_index_info{generation="generation-000001"} 1.0' in lines
    assert "cmap_searches_in_flight 0.0" in lines


@pytest.fixture
def untouched_logging():
    """Restore all that `log_as_json` sets."""
    names = (None, "cmap_jax", "cmap_jax.trained", "python_multipart", "uvicorn")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    logging.captureWarnings(False)


def test_lines_on_standard_error(untouched_logging):
    stream = io.StringIO()
    log_as_json(stream)
    logging.getLogger("cmap_jax.trained").warning("words that are not known: %s", "yellow")
    logging.getLogger("python_multipart.multipart").warning("Expected %d", 45)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("cmap_jax.serving").exception("failed", extra={"request": "abc-1"})
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["request"], entry["message"]) == ("error", "abc-1", "failed")
    assert "two\nlines" in entry["traceback"]


def test_logs_are_json_without_what_people_look_for(client, caplog):
    caplog.set_level(logging.INFO)
    search(client, RED, text="yellow", headers={"x-request-id": "abc-1"})
    client.get("/items/colours%2Fgreen%0A")
    entries = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    entries = [entry for entry in entries if entry["message"] == "request"]
    assert entries[0]["request"] == "abc-1"
    assert (entries[0]["route"], entries[0]["status"]) == ("/search", 200)
    assert entries[1]["route"] == "/items/{id:path}"
    assert entries[0].keys() >= {"time", "level", "ms", "bytes", "client", "method"}
    assert not any(word in json.dumps(entries) for word in ("yellow", "green"))
