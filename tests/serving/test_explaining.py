"""`POST /explain` over a small model: its numbers, its pictures, its limits and its refusals."""

import base64
import concurrent.futures
import http.client
import io
import threading

import compilations
import numpy as np
import pytest
from fake_retriever import FakeRetriever, write_gallery
from optional import require
from PIL import Image
from small import small_trained

require("fastapi")
require("prometheus_client")

from real_service import picture, served, write  # noqa: E402
from running_service import running  # noqa: E402

from cmap_jax.serving.explaining import find_explainer  # noqa: E402
from cmap_jax.visualization.heatmaps import explain as heat_maps  # noqa: E402

PARTS = {"modified", "preserved"}


@pytest.fixture(scope="module")
def trained():
    return small_trained("cmap", image_name="cells")


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "INDEX"
    write(folder, trained, 5)
    return folder


@pytest.fixture(scope="module")
def client(folder, trained):
    with served(folder, trained, batch=1, k=5) as client:
        yield client


def explain(client, *uploads, **fields):
    parts = [("image", ("a", upload)) for upload in uploads]
    parts += [
        (name, (None, one))
        for name, value in fields.items()
        for one in (value if isinstance(value, list) else [value])
    ]
    return client.post("/explain", files=parts)


def refused(response, status: int) -> str:
    assert response.status_code == status, response.text
    return response.json()["error"]


def pixels(encoded: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert image.format == "JPEG"
        return np.asarray(image, float)


def test_an_explanation_is_that_of_the_hit_and_compiles_nothing(client):
    query = {"item": (None, "shop/1"), "text": (None, "is red longer")}
    hits = client.post("/search", files=query).json()["hits"]
    assert client.get("/about").json()["explains"] is True
    with compilations.counted() as seconds:
        answers = [
            explain(client, item="shop/1", text="is red longer", target=hit["id"]).json()
            for hit in hits
        ]
        explain(client, picture(1), text="has a", target="shop/0").json()
    assert not seconds
    for hit, answer in zip(hits, answers, strict=True):
        assert answer["parts"] == pytest.approx(hit["parts"], abs=1e-5)
        assert answer["levels"] == ["high", "mid", "low"]
        assert answer["reference"].keys() == answer["target"].keys() == PARTS
    overlays = [o for a in answers for p in ("reference", "target") for o in a[p].values() if o]
    assert len(overlays) > len(answers)
    assert {pixels(overlay).shape for overlay in overlays} == {(256, 256, 3)}


def test_an_upload_is_explained_as_the_item_of_the_same_picture(client):
    own = explain(client, picture(2), text="longer", target="shop/3").json()
    assert own == explain(client, item="shop/2", text="longer", target="shop/3").json()
    assert own != explain(client, item="shop/2", text="is red", target="shop/3").json()


def test_overlays_are_bright_where_the_heat_maps_are(client, trained):
    answer = explain(client, item="shop/2", text="longer", target="shop/3").json()
    images = [Image.open(io.BytesIO(picture(number))) for number in (2, 3)]
    maps = heat_maps(trained, images[:1], [("longer",)], images[1:], strongest=0)
    for name, heat in (("reference", maps.reference), ("target", maps.target)):
        for k, part in enumerate(maps.branches):
            density = [m[k, 0, 0] * m[k, 0, 0].size for m in heat.heat.values()]
            total = sum(np.kron(d, np.ones([8 // len(d)] * 2)) for d in density)
            if not total.any():
                assert answer[name][part] is None
                continue
            drawn = pixels(answer[name][part])
            # The scale runs from blue to yellow; the picture under it is grey.
            yellow = (drawn[..., :2].mean(-1) - drawn[..., 2]).reshape(8, 32, 8, 32).mean((1, 3))
            assert np.corrcoef(yellow.ravel(), total.ravel())[0, 1] > 0.6, (name, part)


def test_what_is_refused(client, folder):
    query = {"item": "shop/1", "text": "is red"}
    assert "target" in refused(explain(client, **query), 400)
    assert "one picture" in refused(explain(client, picture(0), **query, target="shop/2"), 400)
    twice = {**query, "item": ["shop/1", "shop/2"], "target": "shop/2"}
    assert "here are 2" in refused(explain(client, **twice), 400)
    assert "needs a text" in refused(explain(client, item="shop/1", target="shop/2"), 400)
    assert "a picture" in refused(explain(client, text="is red", target="shop/2"), 400)
    assert "more than once" in refused(explain(client, **query, target=["shop/2"] * 2), 400)
    assert "'k'" in refused(explain(client, **query, target="shop/2", k="3"), 400)
    long = {**query, "text": "red " * 200}
    assert "shorten it" in refused(explain(client, **long, target="shop/2"), 400)
    for target in ("shop/99", "", "../INDEX/manifest.json", "\0", "a" * 5_000):
        assert "no item" in refused(explain(client, **query, target=target), 404)
    refused(explain(client, **{**query, "item": "shop/99"}, target="shop/2"), 404)
    refused(explain(client, b"no picture", text="is red", target="shop/2"), 415)
    assert client.get("/explain").status_code == 405


def test_pictures_that_are_gone(client, folder):
    path = folder.parent / "4.png"
    content = path.read_bytes()
    path.unlink()
    try:
        for reference, target in (("shop/1", "shop/4"), ("shop/4", "shop/1")):
            answer = explain(client, item=reference, text="is red", target=target)
            assert "cannot be read" in refused(answer, 404)
            assert str(folder.parent) not in answer.text
    finally:
        path.write_bytes(content)


def test_too_many_explanations_are_refused_and_searches_go_on(client, monkeypatch):
    explainer = client.service.generations._current.explainer
    gate, original = threading.Event(), explainer.explain

    def wait(*arguments):
        gate.wait(20)
        return original(*arguments)

    monkeypatch.setattr(explainer, "explain", wait)
    one = {"item": "shop/1", "text": "is red", "target": "shop/2"}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(explain, client, **one) for _ in range(4)]
        try:
            while client.service._explanations.searches < 4:
                pass
            answer = explain(client, **one)
            assert "explanations" in refused(answer, 429)
            assert answer.headers["retry-after"] == "1"
            search = {name: (None, one[name]) for name in ("item", "text")}
            assert client.post("/search", files=search).status_code == 200
        finally:
            gate.set()
        assert {future.result().status_code for future in waiting} == {200}


def test_a_new_generation_of_the_same_model_keeps_the_program(client, folder, trained):
    before = client.service.generations._current.explainer
    write(folder, trained, 6)
    client.portal.call(client.service.generations.reload)
    assert client.service.generations._current.explainer is before
    answer = explain(client, item="shop/1", text="is red", target="shop/5")
    assert answer.status_code == 200


def test_models_without_two_parts_or_without_maps(tmp_path):
    for variant, encoder in (("tirg", "cells"), ("artemis", "vectors")):
        assert find_explainer(small_trained(variant, image_name=encoder)) is None
    with running(FakeRetriever(write_gallery(tmp_path))) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/about")
        assert b'"explains":false' in connection.getresponse().read()
        connection.request("POST", "/explain", b"", {"Content-Type": "multipart/form-data"})
        response = connection.getresponse()
        assert response.status == 400
        assert b"no heat maps" in response.read()
