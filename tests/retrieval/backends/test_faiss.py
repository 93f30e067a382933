"""FAISS beside the embeddings: proposals against NumPy, searches against the scores' definition."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from optional import require
from small import one_device
from stored_index import random_pyramid, random_query, scores_by_definition, write

from cmap_jax.retrieval.backends import BACKENDS, settings_of
from cmap_jax.retrieval.backends.record import backend_folder
from cmap_jax.retrieval.backends.shortlist import fit_surrogate
from cmap_jax.retrieval.backends.surrogate import concatenated
from cmap_jax.retrieval.index_files.reading import StoredIndex

faiss = require("faiss")

IMAGES = 700
FORMS = [(kind, dtype) for kind in ("flat", "ivf", "hnsw") for dtype in ("float32", "int8")]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return write(tmp_path_factory.mktemp("index") / "index", random_pyramid(IMAGES))


def _build(stored: StoredIndex, **settings) -> None:
    chosen = settings_of("faiss", settings)
    BACKENDS["faiss"].build(stored, chosen, backend_folder(stored, "faiss"))


def _open(stored: StoredIndex, **settings):
    return BACKENDS["faiss"].open(stored, settings_of("faiss", settings), one_device())


def _copy(stored: StoredIndex, folder: pathlib.Path) -> StoredIndex:
    shutil.copytree(stored.folder, folder)
    return StoredIndex(folder)


def _products(stored: StoredIndex, query) -> tuple[np.ndarray, np.ndarray]:
    vectors = fit_surrogate(stored).vectors(query)
    return vectors, vectors @ concatenated(stored.rows(np.arange(IMAGES))).T


@pytest.mark.parametrize(("kind", "dtype"), FORMS)
def test_proposals_and_searches(stored, kind, dtype):
    _build(stored, kind=kind, dtype=dtype)
    everything = {"nprobe": 10**6} if kind == "ivf" else {"ef_search": 600}
    backend = _open(stored, shortlist=60, **everything)
    query, allowed = random_query(6), np.random.default_rng(0).random(IMAGES) < 0.2
    vectors, products = _products(stored, query)
    scores = scores_by_definition(query, stored.rows(np.arange(IMAGES)))
    for mask in (None, allowed):
        passing = np.ones(IMAGES, bool) if mask is None else mask
        proposed = backend._propose(vectors, 60, mask)
        assert passing[proposed].all()
        best = np.argsort(-np.where(passing, products, -np.inf), axis=1)[:, :60]
        if dtype == "float32":
            np.testing.assert_array_equal(np.sort(proposed), np.sort(best))
        agreement = np.mean([np.isin(b, p).mean() for b, p in zip(best, proposed, strict=True)])
        assert agreement > 0.9
        result = backend.search(query, 5, mask)
        order = np.argsort(-np.where(passing, scores, -np.inf), axis=1)[:, :5]
        assert np.mean(result.positions == order) > 0.9
        expected = np.take_along_axis(scores, result.positions, axis=1)
        np.testing.assert_allclose(result.scores, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_default_effort(stored, kind):
    """Most of the proposals are right, though a part of the index is searched."""
    _build(stored, kind=kind)
    backend = _open(stored, shortlist=20)
    vectors, products = _products(stored, random_query(20))
    best = np.argsort(-products, axis=1)[:, :20]
    proposed = backend._propose(vectors, 20, None)
    hits = np.mean([np.isin(b, p).mean() for b, p in zip(best, proposed, strict=True)])
    assert hits > (0.2 if kind == "ivf" else 0.9)  # 1 of 16 at random; the images are no clusters


def test_the_form_follows_the_number_of_images():
    settings = settings_of("faiss", {})
    assert settings.form(50_000) == {"kind": "flat", "dtype": "float32"}
    assert settings.form(50_001) == {"kind": "ivf", "dtype": "float32"}
    assert settings_of("faiss", {"kind": "hnsw", "dtype": "int8"}).form(9) == {
        "kind": "hnsw",
        "dtype": "int8",
    }


def test_a_mask_widens_the_search():
    settings = settings_of("faiss", {"nprobe": 3, "ef_search": 50})
    mask = np.arange(100) < 20
    assert settings.clusters_searched(100, None) == 3
    assert settings.clusters_searched(100, mask) == 15
    assert settings.clusters_searched(9, mask) == 9
    assert settings.nodes_kept(10, None) == 50
    assert settings.nodes_kept(10, mask) == 250
    assert settings_of("faiss", {}).nodes_kept(10, None) == 20
    assert settings_of("faiss", {}).clusters_searched(320, None) == 80


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "pq"}, "kind must be one of auto, flat, ivf, hnsw, not 'pq'"),
        ({"dtype": "int4"}, "dtype must be one of auto, float32, int8, not 'int4'"),
        ({"shortlist": 0}, "shortlist must be 1 or more, not 0"),
        ({"nprobe": -1}, "nprobe must be 0 or more, not -1"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        settings_of("faiss", settings)


def test_files_that_do_not_fit(stored, tmp_path):
    stored = _copy(stored, tmp_path / "index")
    folder = pathlib.Path(backend_folder(stored, "faiss"))
    shutil.rmtree(folder, ignore_errors=True)
    with pytest.raises(
        FileNotFoundError, match=r"faiss\.json.*cmap index --update --backend faiss"
    ):
        _open(stored)
    _build(stored, kind="flat")
    assert sorted(p.name for p in folder.iterdir()) == ["faiss.index", "faiss.json"]
    with pytest.raises(ValueError, match=r"kind=hnsw, but the index was made with kind=flat"):
        _open(stored, kind="hnsw")

    index, record = folder / "faiss.index", folder / "faiss.json"
    content, fields = index.read_bytes(), json.loads(record.read_text())
    for damaged in (content[:-1], bytes([content[0] ^ 1]) + content[1:]):
        index.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"faiss\.index is damaged"):
            _open(stored)
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"faiss\.index: no such file; make them again"):
        _open(stored)
    index.write_bytes(content)
    record.write_text("{")
    with pytest.raises(ValueError, match=r"faiss\.json.*make them again with cmap index"):
        _open(stored)
    for broken, message in [
        ({**fields, "vectors": [1]}, "belongs to other embeddings"),
        ({**fields, "format": 9}, "has form 9"),
        ({**fields, "kind": 3}, "is damaged"),
        ([], "is damaged"),
    ]:
        record.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message):
            _open(stored)
    record.write_text(json.dumps(fields))
    _open(stored)


def test_an_interrupted_build_leaves_the_index_that_was_there(stored, tmp_path, monkeypatch):
    stored = _copy(stored, tmp_path / "index")
    _build(stored, kind="flat")

    def fail(index, path):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(faiss, "write_index", fail)
    with pytest.raises(OSError, match="No space"):
        _build(stored, kind="hnsw")
    _open(stored, kind="flat")


def test_buckets_are_refused(stored):
    with pytest.raises(ValueError, match="keeps its files on a disk"):
        BACKENDS["faiss"].build(stored, settings_of("faiss", {}), "gs://bucket/index/faiss")
