"""A real index behind the service: the direct call's results, no compilation, a new generation."""

import concurrent.futures

import compilations
import pytest
from optional import require
from small import small_trained

require("fastapi")
require("prometheus_client")

from real_service import picture, served, write  # noqa: E402

from cmap_jax.retrieval.retriever import Query  # noqa: E402

COUNT = 12
TEXTS = ["is red", "longer", "has no a", "is red longer", None]


@pytest.fixture(scope="module")
def trained():
    return small_trained("sum", image_name="vectors")  # it takes either half alone


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "INDEX"
    write(folder, trained, COUNT)
    return folder


@pytest.fixture(scope="module")
def client(folder, trained):
    with served(folder, trained, batch=4, k=10, batch_wait=0.02) as client:
        yield client


def test_results_are_those_of_the_direct_call_without_compilation(client):
    def ask(number: int):
        text, fields = TEXTS[number % len(TEXTS)], {"k": str(1 + number)}
        if text is not None:
            fields["text"] = text
        if number % 3:
            fields["where"] = '{"price": {"min": 3}}'
        files = {name: (None, value) for name, value in fields.items()}
        if text is None or number % 2:
            files["image"] = ("a", picture(100 + number))
        return client.post("/search", files=files).json()["hits"]

    with compilations.counted() as seconds, concurrent.futures.ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(ask, range(10)))
    assert not seconds
    for number, hits in enumerate(answers):
        text = TEXTS[number % len(TEXTS)]
        image = picture(100 + number) if text is None or number % 2 else None
        where = {"price": {"min": 3}} if number % 3 else None
        (expected,) = client.direct.search_batch([Query(image, None, text)], 1 + number, where)
        assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
        for hit, direct in zip(hits, expected, strict=True):
            assert hit["score"] == pytest.approx(direct.score, abs=2e-6)
            assert hit["parts"] == pytest.approx(dict(direct.parts), abs=2e-6)


def test_a_text_that_is_too_long_for_the_model(client):
    answer = client.post("/search", files={"text": (None, "red " * 200)})
    assert answer.status_code == 400
    assert "shorten it" in answer.json()["error"]


def test_a_new_generation_is_served_with_the_same_model(client, folder, trained):
    old = client.service.generations._current
    write(folder, trained, COUNT + 2)
    client.portal.call(client.service.generations.reload)
    new = client.service.generations._current
    assert client.get("/about").json()["count"] == COUNT + 2
    assert new.retriever.trained is old.retriever.trained
    hits = client.post("/search", files={"image": ("a", picture(COUNT + 1))}, data={"k": "1"})
    assert hits.json()["hits"][0]["id"] == f"shop/{COUNT + 1}"
    assert client.get(hits.json()["hits"][0]["image"]).status_code == 200


def test_a_damaged_update_is_not_served(client, folder):
    manifest = folder / "manifest.json"
    content = manifest.read_text()
    manifest.write_text(content[:-40])
    client.portal.call(client.service.generations.reload)
    assert client.post("/search", files={"text": (None, "is red")}).status_code == 200
    assert 'cmap_reloads_total{outcome="failed"} 1.0' in client.get("/metrics").text
    manifest.write_text(content)
