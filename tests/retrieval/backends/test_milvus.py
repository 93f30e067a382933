"""Milvus beside the embeddings: Milvus Lite's files, and the same client against a server."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from optional import require
from small import one_device
from stored_index import random_pyramid, random_query, scores_by_definition, write

from cmap_jax.retrieval.backends import BACKENDS, milvus, milvus_client, settings_of
from cmap_jax.retrieval.backends.record import backend_folder
from cmap_jax.retrieval.index_files.reading import StoredIndex

pymilvus = require("pymilvus")
require("milvus_lite")

IMAGES = 400


@pytest.fixture
def stored(tmp_path):
    return write(tmp_path / "index", random_pyramid(IMAGES))


@pytest.fixture
def server(tmp_path):
    """The address of a server of Milvus's protocol."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    running, database, port = start_server_in_thread(str(tmp_path / "server"))
    yield f"http://127.0.0.1:{port}"
    running.stop(grace=0).wait()
    database.close()


def _build(stored: StoredIndex, **settings) -> None:
    chosen = settings_of("milvus", settings)
    BACKENDS["milvus"].build(stored, chosen, backend_folder(stored, "milvus"))


def _open(stored: StoredIndex, **settings):
    return BACKENDS["milvus"].open(stored, settings_of("milvus", settings), one_device())


def _record(stored: StoredIndex) -> dict:
    return json.loads((pathlib.Path(backend_folder(stored, "milvus")) / "milvus.json").read_text())


def _check(stored: StoredIndex, backend, least: float) -> None:
    """Compare searches without a mask, and with masks that are sent as either list."""
    query = random_query(5)
    scores = scores_by_definition(query, stored.rows(np.arange(IMAGES)))
    for passing in (1.0, 0.3, 0.8):
        allowed = np.random.default_rng(0).random(IMAGES) < passing
        result = backend.search(query, 5, None if passing == 1 else allowed)
        assert allowed[result.positions].all()
        order = np.argsort(-np.where(allowed, scores, -np.inf), axis=1)[:, :5]
        assert np.mean(result.positions == order) > least
        expected = np.take_along_axis(scores, result.positions, axis=1)
        np.testing.assert_allclose(result.scores, expected, atol=1e-5)


def test_files_of_milvus_lite(stored):
    _build(stored)
    assert _record(stored)["kind"] == "flat"
    backend = _open(stored, shortlist=60)
    _open(stored).close()  # the same files, open elsewhere in this process
    try:
        _check(stored, backend, 0.9)
        with pytest.raises(ValueError, match="at most 16,384 images a query, not 16,385"):
            backend._propose(np.zeros((1, 32), np.float32), 16_385, None)
    finally:
        backend.close()
    _build(stored)  # again, in the same folder
    _open(stored).close()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("ivf", "float32"), ("ivf", "int8"), ("hnsw", "float32"), ("hnsw", "int8")],
)
def test_other_kinds(stored, kind, dtype):
    _build(stored, kind=kind, dtype=dtype)
    backend = _open(stored, shortlist=60, nprobe=10**6, ef_search=400)
    try:
        _check(stored, backend, 0.9)
    finally:
        backend.close()


def test_a_server(stored, server, monkeypatch):
    seen = []
    client = pymilvus.MilvusClient
    monkeypatch.setattr(pymilvus, "MilvusClient", lambda u, **o: seen.append(o) or client(u, **o))
    monkeypatch.setenv("CMAP_MILVUS_TOKEN", "root:secret")
    _build(stored, uri=server, shards=2)
    assert {options["token"] for options in seen} == {"root:secret"}
    assert "secret" not in json.dumps(_record(stored))
    backend = _open(stored, shortlist=60)  # at the address in the record
    try:
        _check(stored, backend, 0.9)
    finally:
        backend.close()
    moved = server.replace("127.0.0.1", "localhost")
    _open(stored, uri=moved).close()


def test_collections_of_generations_that_are_gone_are_dropped(tmp_path, server):
    """The collection of a generation stays while its folder does."""
    folder, pyramid = tmp_path / "index", random_pyramid(IMAGES)

    def collections() -> set[str]:
        client = pymilvus.MilvusClient(server)
        try:
            return set(client.list_collections())
        finally:
            client.close()

    names = []
    for number in range(4):
        stored = write(folder, pyramid[:, : 100 + number])  # keeps the generation before
        _build(stored, uri=server)
        names.append(_record(stored)["collection"])
        assert collections() == set(names[-2:])
    stored = StoredIndex(folder)
    _build(stored, uri=server)  # again
    assert _record(stored)["collection"] not in names
    assert names[-1] not in collections()
    assert names[-2] in collections()


def test_a_collection_that_is_gone(stored, server):
    _build(stored, uri=server)
    client = pymilvus.MilvusClient(server)
    client.drop_collection(_record(stored)["collection"])
    client.close()
    with pytest.raises(ValueError, match=r"has 0 of 400 images; make them again"):
        _open(stored)


def test_nothing_is_dropped_while_a_record_cannot_be_read(tmp_path, server):
    """A service may search the collection that the record of an existing generation named."""
    folder, pyramid, names = tmp_path / "index", random_pyramid(IMAGES), []
    for number in range(2):
        stored = write(folder, pyramid[:, : 100 + number])
        _build(stored, uri=server)
        names.append(_record(stored)["collection"])
    record = pathlib.Path(backend_folder(stored, "milvus")) / "milvus.json"
    content = record.read_text()
    record.write_text("{")
    stored = write(folder, pyramid[:, :103])  # removes the first generation, keeps the second
    _build(stored, uri=server)
    client = pymilvus.MilvusClient(server)
    assert set(names) < set(client.list_collections())
    record.write_text(content)
    _build(stored, uri=server)  # again
    assert set(client.list_collections()) == {names[1], _record(stored)["collection"]}
    client.close()


def test_a_connection_is_closed_if_the_collection_cannot_be_opened(stored, monkeypatch):
    """Another process could not open the files of Milvus Lite."""
    _build(stored)
    monkeypatch.setattr(milvus, "_load_and_count", lambda *rest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _open(stored)
    assert not +milvus_client._connections


def test_an_update_beside_an_open_index(stored):
    """A check of the files leaves the server of an open index running."""
    _build(stored)
    backend = _open(stored, shortlist=60)
    try:
        assert milvus.intact(stored, settings_of("milvus", {}))
        backend.search(random_query(1), 5)
    finally:
        backend.close()


def test_an_unfinished_build(stored, server, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(milvus, "_fill", fail)
    with pytest.raises(KeyboardInterrupt):
        _build(stored, uri=server)
    with pytest.raises(ValueError, match="has 0 of 400 images"):
        _open(stored)


def test_servers_that_do_not_answer(stored, monkeypatch):
    monkeypatch.setattr(milvus_client, "_CONNECT_SECONDS", 0.2)
    with pytest.raises(OSError, match=r"Milvus at http://127\.0\.0\.1:9: .*; is it running") as e:
        _build(stored, uri="http://127.0.0.1:9")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"uri": "milvus:19530"}, "uri must begin with http:// or https://"),
        ({"uri": "http://root:x@host"}, "the variable CMAP_MILVUS_TOKEN holds the token"),
        ({"shortlist": 20_000}, "shortlist must be at most 16384"),
        ({"kind": "flat", "dtype": "int8"}, "dtype=int8 needs kind=ivf or kind=hnsw"),
        ({"timeout": 0}, "timeout must be above 0, not 0"),
        ({"shards": 0}, "shards must be above 0, not 0"),
        ({"kind": "pq"}, "kind must be one of"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        settings_of("milvus", settings)


def test_the_form_for_int8_has_an_index():
    assert settings_of("milvus", {"dtype": "int8"}).form(10) == {"kind": "ivf", "dtype": "int8"}


def test_nothing_of_an_index_remains_with_its_folder(stored):
    """Milvus Lite's files are in the generation, and go with it."""
    _build(stored)
    files = pathlib.Path(backend_folder(stored, "milvus"))
    assert sorted(p.name for p in files.iterdir()) == ["milvus.db", "milvus.json"]
    shutil.rmtree(files)
    with pytest.raises(FileNotFoundError, match="without the backend milvus"):
        _open(stored)
