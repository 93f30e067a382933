"""Exact search against the definition: every score at once, in float64, and a stable sort."""

import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmap_jax import scoring, sharding
from cmap_jax.evaluation import metrics
from cmap_jax.retrieval import scan
from cmap_jax.retrieval.exact import ExactIndex, Padding
from cmap_jax.retrieval.plan import Plan

LEVELS, WIDTH, KINDS = 2, 16, 7
ROW_BYTES = LEVELS * WIDTH * 4
# Devices, images a chunk, and rows of the gallery that fit on a device (None: all).
LAYOUTS = [(1, 32, None), (1, 1024, None), (2, 48, None), (8, 32, None), (1, 32, 70), (8, 32, 20)]


def _mesh(devices: int) -> jax.sharding.Mesh:
    return sharding.make_mesh(jax.devices()[:devices])


def _query(queries: int, seed: int = 0) -> scoring.ComposedQuery:
    rng = np.random.default_rng(seed)
    n, w, plain = rng.normal(size=(3, LEVELS, queries, WIDTH)).astype(np.float32)
    branches = scoring.Branch(n[:1], np.exp(w[:1])), scoring.Branch(n, np.exp(w))
    return scoring.ComposedQuery((*branches, scoring.Branch(plain)), None, "abc", ("high", "low"))


def _gallery(images: int, seed: int = 1) -> np.ndarray:
    """Few kinds of images, each many times."""
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(LEVELS, KINDS, WIDTH)).astype(ml_dtypes.bfloat16)
    return kinds[:, rng.integers(KINDS, size=images)].astype(np.float32)


def _scores(query: scoring.ComposedQuery, gallery: np.ndarray) -> np.ndarray:
    """docs/method.md, section 1, term by term in float64; equal images score exactly the same."""
    total = np.zeros((len(query), gallery.shape[1]))
    for level, targets in enumerate(gallery.astype(np.float64)):
        for branch in query.branches:
            n, w = (
                None if x is None else x[level % len(x)].astype(np.float64)[:, None]
                for x in (branch.numerator, branch.weight)
            )
            norm = 1 if w is None else np.sqrt((w * w * targets * targets).sum(axis=-1))
            total += (n * targets).sum(axis=-1) / norm
    return total


def _excluding(scores: np.ndarray, exclude) -> np.ndarray:
    scores = scores.copy()
    for row, places in zip(scores, exclude, strict=True):
        row[list(places)] = -np.inf
    return scores


def _ranks(scores: np.ndarray, targets) -> list[float]:
    """Expected ranks, one query at a time."""
    result = []
    for row, places in zip(scores, targets, strict=True):
        places = sorted({int(p) for p in places})
        if not places:
            result.append(-1.0)
            continue
        best, wrong = row[places].max(), np.delete(row, places)
        correct = (row[places] == best).sum()
        result.append((wrong > best).sum() + (wrong == best).sum() / (correct + 1))
    return result


def _write(path, gallery: np.ndarray) -> np.memmap:
    np.save(path, gallery)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize(("devices", "chunk", "room"), LAYOUTS)
def test_first_images_and_ranks(devices, chunk, room, tmp_path):
    images, query = 300, _query(9)
    gallery = _write(tmp_path / "gallery.npy", _gallery(images))
    device_gb = 1.0 if room is None else room * ROW_BYTES / 1e9
    index = ExactIndex(gallery, _mesh(devices), chunk=chunk, device_gb=device_gb)
    rng = np.random.default_rng(2)
    targets = [rng.integers(images, size=n) for n in (1, 2, 3, 1, 0, 40, 1, 1, 1)]
    exclude = [rng.integers(images, size=n) for n in (1, 2, 0, 1, 1, 3, 1, 1, 1)]
    exclude[3], exclude[5] = targets[3], targets[5][:3]
    exclude[3] = exclude[3][:1]
    scores = _excluding(_scores(query, gallery), exclude)
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in (0, 5, images + 3):
        result = index.search(query, k, targets=targets, exclude=exclude)
        np.testing.assert_array_equal(result.positions, order[:, :k])
        np.testing.assert_allclose(
            result.scores, np.take_along_axis(scores, order, axis=1)[:, :k], rtol=1e-5, atol=1e-5
        )
        assert result.ranks.tolist() == _ranks(scores, targets)
    assert result.ranks[3] == images - 1
    assert result.scores.dtype == np.float32
    assert index.search(query, 1).ranks is None

    # The scores of a few images are equal in every bit.
    some = np.stack([order[:, 0], order[:, 7], np.full(9, -1)], axis=1)
    picked = index.scores_at(query, some)
    np.testing.assert_array_equal(picked[:, :2], result.scores[:, [0, 7]])
    assert (picked[:, 2] == -np.inf).all()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("queries", [1, 3, 8])
def test_lists_of_a_few_queries(queries, dtype):
    """All rows are scored at once, and equal images tie wherever they stand."""
    query, gallery = _query(queries), _gallery(3001)
    index = ExactIndex(gallery, _mesh(2), dtype=dtype)
    result = index.search(query, 200)
    scores = _scores(query, gallery)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :200]
    np.testing.assert_array_equal(result.positions, order)
    best = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_allclose(result.scores, best, rtol=1e-5, atol=1e-5)
    gallery[0, 2000] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        ExactIndex(gallery, _mesh(2), dtype=dtype).search(query, 200)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_small_galleries(devices, images):
    query, gallery = _query(2), _gallery(3)[:, :images]
    result = ExactIndex(gallery, _mesh(devices)).search(query, 5, targets=[[], range(images)])
    order = np.argsort(-_scores(query, gallery), axis=1, kind="stable")
    np.testing.assert_array_equal(result.positions, order)
    assert result.ranks.tolist() == [-1, 0 if images else -1]


@settings(max_examples=30)
@given(st.data())
def test_ties_by_definition(data):
    """A gallery of unit vectors: a query's scores are its own elements, whatever they are."""
    images, queries = 70, 2
    index = ExactIndex(np.eye(images, dtype=np.float32)[None], _mesh(2), chunk=32)
    value = st.sampled_from([-2.0, -0.0, 0.0, 1.0])
    row = st.lists(value, min_size=images, max_size=images)
    scores = np.array([data.draw(row) for _ in range(queries)], np.float32)
    places = st.sets(st.integers(0, images - 1), max_size=4)
    targets = [data.draw(places) for _ in range(queries)]
    exclude = [data.draw(places) for _ in range(queries)]
    query = scoring.ComposedQuery((scoring.Branch(scores[None]),), None, ("own",), ("high",))
    k = data.draw(st.sampled_from([0, 3, images]))
    result = index.search(query, k, targets=targets, exclude=exclude)
    masked = _excluding(scores, exclude)
    np.testing.assert_array_equal(
        result.positions, np.argsort(-masked, axis=1, kind="stable")[:, :k]
    )
    assert result.ranks.tolist() == _ranks(masked, targets)
    dense = metrics.ranks(scores, targets, exclude)
    np.testing.assert_array_equal(result.ranks, dense)
    every = index.search(query, 0, targets=targets, exclude=exclude, every_target=True).placements
    np.testing.assert_array_equal(every.best().ranks(), dense)
    for row, places in enumerate(targets):
        for column, place in enumerate(sorted(places)):
            wrong = np.delete(masked[row], sorted(places))
            assert every.higher[row, column] == (wrong > masked[row, place]).sum()
            assert every.tied[row, column] == (wrong == masked[row, place]).sum()
            level = masked[row, sorted(places)] == masked[row, place]
            assert every.correct[row, column] == level.sum()
        assert (every.correct[row, len(places) :] == 0).all()


@pytest.mark.parametrize(("devices", "chunk", "room"), LAYOUTS)
def test_copies_tie_wherever_they_stand(devices, chunk, room):
    """Five copies of each image, in two orders: no rank changes."""
    images, copies, query = 41, 5, _query(6)
    rng = np.random.default_rng(4)
    single = rng.normal(size=(LEVELS, images, WIDTH)).astype(np.float32)
    kind = np.arange(images).repeat(copies)
    targets = rng.integers(images, size=6)
    alone = metrics.ranks(np.asarray(scoring.score(query, single)), targets)
    device_gb = 1.0 if room is None else room * ROW_BYTES / 1e9
    for order in (np.arange(len(kind)), rng.permutation(len(kind))):
        index = ExactIndex(single[:, kind[order]], _mesh(devices), chunk=chunk, device_gb=device_gb)
        right = [np.flatnonzero(kind[order] == t)[-1] for t in targets]
        result = index.search(query, 0, targets=right)
        np.testing.assert_array_equal(result.placements.tied[:, 0], copies - 1)
        np.testing.assert_allclose(result.ranks, copies * alone + (copies - 1) / 2)
        all_copies = [np.flatnonzero(kind[order] == t) for t in targets]
        together = index.search(query, 0, targets=all_copies)
        np.testing.assert_array_equal(together.ranks, copies * alone)


@pytest.mark.parametrize(("size", "score"), [(1e-30, 0.0), (3e38, np.inf)])
def test_scores_at_the_ends_of_float32(size, score):
    """Zeros of both signs tie; an infinite score is a score like others."""
    gallery = np.float32([-size, size] * 20)[None, :, None]
    query = scoring.ComposedQuery(
        (scoring.Branch(np.full((1, 1, 1), size, np.float32)),), None, ("own",), ("high",)
    )
    result = ExactIndex(gallery, _mesh(1)).search(query, 40, targets=[0])
    scores = np.float32([-score, score] * 20)[None]
    np.testing.assert_array_equal(result.positions, np.argsort(-scores, axis=1, kind="stable"))
    # All tie: the expected rank is the mean over 40 ranks, or over the lower 20.
    assert result.ranks.tolist() == [20 + 19 / 2 if score else 39 / 2]


def test_a_correct_image_is_not_above_itself(monkeypatch):
    """This holds even on a device whose rounding depends on an image's row."""
    query, gallery = _query(2), np.random.default_rng(0).normal(size=(LEVELS, 9, WIDTH))
    index = ExactIndex(gallery.astype(np.float32), _mesh(1))
    expected = index.search(query, 0, targets=[[3, 5], [4]]).ranks
    pick = index._pick
    monkeypatch.setattr(index, "_pick", lambda *rest: pick(*rest) - np.float32(1e-6))
    np.testing.assert_array_equal(index.search(query, 0, targets=[[3, 5], [4]]).ranks, expected)


@pytest.mark.parametrize("room", [None, 70])
def test_bfloat16(room, tmp_path):
    """It takes half the memory; scores are the float32 scores of the rounded gallery."""
    query, gallery = _query(3), _gallery(100)
    gallery[:, ::2] *= 1.001  # a difference that rounding removes
    half = np.memmap(tmp_path / "gallery", ml_dtypes.bfloat16, "w+", shape=gallery.shape)
    half[:] = gallery.astype(half.dtype)
    device_gb = 1.0 if room is None else room * ROW_BYTES / 2 / 1e9
    rounded, converted, given = (
        ExactIndex(g, _mesh(1), dtype=dtype, chunk=32, device_gb=device_gb).search(query, 100)
        for g, dtype in ((half.astype(np.float32), None), (gallery, jnp.bfloat16), (half, None))
    )
    for result in (converted, given):
        np.testing.assert_array_equal(result.positions, rounded.positions)
        np.testing.assert_array_equal(result.scores, rounded.scores)


@pytest.mark.parametrize("forms", [[[3], [0]], np.array([3, 0]), jnp.array([[3, -1], [0, 0]])])
def test_forms_of_positions(forms):
    query, gallery = _query(2), jnp.asarray(_gallery(6))
    mask = np.zeros((2, 6), bool)
    mask[[0, 1], [3, 0]] = True
    index = ExactIndex(gallery, _mesh(1))
    np.testing.assert_array_equal(
        index.search(query, 0, targets=forms, exclude=[1, 1]).ranks,
        index.search(query, 0, targets=mask, exclude=np.arange(6)[None].repeat(2, 0) == 1).ranks,
    )


@pytest.mark.parametrize(("devices", "room"), [(1, None), (1, 70)])
def test_nan_is_refused(devices, room):
    query, gallery = _query(2), _gallery(100)
    gallery[1, 99, 0] = np.nan
    device_gb = 1.0 if room is None else room * ROW_BYTES / 1e9
    index = ExactIndex(gallery, _mesh(devices), chunk=32, device_gb=device_gb)
    with pytest.raises(ValueError, match="NaN"):
        index.search(query, 0, targets=[0, 1])
    assert np.isnan(index.scores_at(query, np.array([[99], [99]]))).all()


def test_what_does_not_fit_is_refused():
    query, index = _query(2), ExactIndex(_gallery(5), _mesh(1))
    with pytest.raises(ValueError, match="must be 0 or more, not -1"):
        index.search(query, -1)
    with pytest.raises(ValueError, match="position 5 in a gallery of 5"):
        index.search(query, 1, targets=[0, 5])
    with pytest.raises(ValueError, match="position 5 in a gallery of 5"):
        index.scores_at(query, np.array([[0], [5]]))
    with pytest.raises(ValueError, match="2 queries, but positions"):
        index.scores_at(query, np.array([[0]]))
    with pytest.raises(ValueError, match=r"must be\s+\[2, N, D\]"):
        ExactIndex(_gallery(5)[:1], _mesh(1)).search(query, 1)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        ExactIndex(_gallery(5).astype(np.float64), _mesh(1))
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        ExactIndex(_gallery(5)[0], _mesh(1))


def test_no_row_of_all_scores():
    """A device's scratch memory grows with the chunk, not with its shard of the gallery."""
    mesh, queries, rows, chunk = _mesh(8), 16, 2**14, 32
    split = sharding.split_over_devices(mesh)
    level = jax.ShapeDtypeStruct((mesh.size * rows, WIDTH), jnp.float32, sharding=split)
    sample = jax.ShapeDtypeStruct((mesh.size * chunk, WIDTH), jnp.float32, sharding=split)
    places = np.zeros((queries, 1), np.int32)
    terms = scan.Terms(places, np.zeros((queries, 1), np.float32), places, places)
    carry = scan.start(mesh=mesh, queries=queries, thresholds=1, k=8)
    plan = Plan("cpu", chunk, chunk)
    compiled = (
        scan.program(plan)
        .lower(
            *(LEVELS * (sample,), LEVELS * (level,), _query(queries)),
            *(terms, carry, scan.Bounds.build(lists=True)),
            mesh=mesh,
            plan=plan,
        )
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * queries * rows / 4


def test_a_mapped_file_is_not_kept_in_memory(tmp_path):
    """Streamed pages are released from the process's resident memory (Linux)."""
    gallery = np.zeros((1, 2**16, 256), np.float32)
    gallery = _write(tmp_path / "gallery.npy", gallery)
    vector = np.ones((1, 1, 256), np.float32)
    query = scoring.ComposedQuery((scoring.Branch(vector),), None, ("own",), ("high",))
    device_gb = gallery.nbytes / 4 / 1e9
    index = ExactIndex(gallery, _mesh(1), device_gb=device_gb)

    def mapped() -> int:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("RssFile"))

    # Compiling maps files too, so that it comes first.
    ExactIndex(np.zeros_like(gallery), _mesh(1), device_gb=device_gb).search(query, 1)
    before = mapped()
    index.search(query, 1)
    assert mapped() < before + gallery.nbytes / 4


def test_zeros_of_both_signs_are_one_score():
    """The list holds the images of the lowest positions."""
    gallery = np.float32([-1e-30, 1e-30] * 20)[None, :, None]
    query = scoring.ComposedQuery(
        (scoring.Branch(np.full((1, 1, 1), 1e-30, np.float32)),), None, ("own",), ("high",)
    )
    result = ExactIndex(gallery, _mesh(1)).search(query, 5)
    assert result.positions.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("devices", [1, 8])
def test_room_and_padding_make_one_program_serve_all_sizes(devices):
    """One program serves several sizes of galleries, batches of queries, targets and lists."""
    padding = Padding(queries=12, positions=16)
    cases = []
    for images, queries, k, correct in ((200, 12, 0, 1), (9, 3, 50, 2), (70, 1, 7, 12)):
        places = np.arange(queries * correct).reshape(queries, correct) % images
        cases.append((_query(queries), _gallery(images), k, places))
    plain = [
        ExactIndex(gallery, _mesh(1)).search(query, k, targets=places, exclude=places[:, 0])
        for query, gallery, k, places in cases
    ]
    program = scan.program(Plan("cpu", 32, 32))
    program.clear_cache()
    for (query, gallery, k, places), expected in zip(cases, plain, strict=True):
        index = ExactIndex(gallery, _mesh(devices), room=200, chunk=16)
        result = index.search(query, k, targets=places, exclude=places[:, 0], padding=padding)
        np.testing.assert_array_equal(result.positions, expected.positions)
        np.testing.assert_array_equal(result.ranks, expected.ranks)
        picked = index.scores_at(query, result.positions, padding)
        is_listed = result.scores > -np.inf  # without the excluded images
        np.testing.assert_array_equal(picked[is_listed], result.scores[is_listed])
    assert program._cache_size() == 1
