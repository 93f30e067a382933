"""The bfloat16 pass: its error against float64, and its results against those of float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from cmap_jax import scoring, sharding
from cmap_jax.retrieval import exact, fast, scan, scores
from cmap_jax.retrieval.exact import ExactIndex
from cmap_jax.retrieval.index_files.quantization import quantize
from cmap_jax.retrieval.margin import LEAST_SQUARE, largest_norms, margins
from cmap_jax.retrieval.plan import make_plan

WIDTH, IMAGES = 64, 700


def _mesh(devices: int) -> jax.sharding.Mesh:
    return sharding.make_mesh(jax.devices()[:devices])


def _unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.normal(size=(*shape, WIDTH))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def _query(rng: np.random.Generator, queries: int) -> scoring.ComposedQuery:
    """A weighted branch for all levels, one by level, and one without a weight."""
    w, v = (np.exp(rng.normal(size=(n, queries, WIDTH))).astype(np.float32) for n in (1, 2))
    branches = (
        scoring.Branch(_unit(rng, 1, queries) * w, w),
        scoring.Branch(_unit(rng, 2, queries) * v, v),
        scoring.Branch(_unit(rng, 2, queries)),
    )
    return scoring.ComposedQuery(branches, None, ("a", "b", "c"), ("high", "low"))


def _definition(query: scoring.ComposedQuery, gallery: np.ndarray) -> np.ndarray:
    """docs/method.md, section 1, in float64: [B, N]."""
    total = 0.0
    for level, images in enumerate(gallery.astype(np.float64)):
        for branch in query.branches:
            n, w = (
                None if x is None else np.asarray(x)[level % len(x)].astype(np.float64)
                for x in (branch.numerator, branch.weight)
            )
            dots = n @ images.T
            total = total + (dots if w is None else dots / np.sqrt(w**2 @ (images**2).T))
    return total


def _pieces(x: np.ndarray) -> list[np.ndarray]:
    high = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    return [high, (x - high).astype(ml_dtypes.bfloat16).astype(np.float32)]


def test_pieces_are_rounded_numbers_that_add_up():
    x = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    first, second = (np.asarray(p, np.float32) for p in jax.jit(lambda x: scores.split(x, 2))(x))
    np.testing.assert_array_equal([first, second], _pieces(x))
    assert (np.abs(x - first) <= 2**-8 * np.abs(x)).all()
    assert (np.abs(x.astype(np.float64) - first - second) <= 2**-16 * np.abs(x)).all()
    three = jax.jit(lambda x: scores.split(x, 3))(x)
    np.testing.assert_array_equal(sum(np.asarray(p, np.float64) for p in three), x)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_margin_bounds_the_error(dtype):
    """Also for vectors that are all of one sign and end just below a rounding's middle."""
    rng = np.random.default_rng(1)
    worst = np.float32(1 + 2**-8 - 2**-12)  # nearly the largest relative error of a first piece
    plain = _query(rng, 6)
    skewed = jax.tree.map(lambda x: np.where(x > 0, worst, worst / 4).astype(np.float32), plain)
    gallery = _unit(rng, 2, 96)
    gallery[:, :8] = worst / 8
    gallery = gallery.astype(dtype)
    levels = tuple(jnp.asarray(level) for level in gallery)
    # The square of this weight is far from a bfloat16 number.
    rounded = jax.tree.map(lambda x: jnp.full_like(x, 1 + 7 / 128, jnp.bfloat16), plain)
    for query in (plain, skewed, rounded):
        margin = np.asarray(margins(query, levels, largest_norms(levels)))
        pieces = scores.split_query(query, 2, 2)
        rough = np.asarray(scores.split_score(pieces, levels, LEAST_SQUARE))
        full = np.asarray(scoring.score(query, gallery.astype(np.float32)))
        exact = _definition(query, gallery.astype(np.float32))
        error = np.abs(rough - exact) + np.abs(full - exact)
        assert (error <= margin[:, None]).all()
        assert (margin < 0.01 * sum(np.linalg.norm(b.numerator) for b in query.branches)).all()
        assert np.abs(rough - exact).max() > 1e-7  # these are no float32 products


def test_three_pieces_are_as_good_as_float32():
    rng = np.random.default_rng(2)
    query, gallery = _query(rng, 5), _unit(rng, 2, 64).astype(ml_dtypes.bfloat16)
    levels = tuple(jnp.asarray(level) for level in gallery)
    result = scores.split_score(scores.split_query(query, 2, 3), levels)
    np.testing.assert_allclose(
        result, _definition(query, gallery.astype(np.float32)), rtol=0, atol=3e-6
    )


@pytest.mark.parametrize(
    "change", ["tiny weights", "huge weights", "tiny query", "NaN", "huge", "tiny"]
)
def test_no_margin_where_products_may_underflow(change):
    rng = np.random.default_rng(3)
    query, gallery = _query(rng, 2), _unit(rng, 2, 32)
    branch = query.branches[1]
    scale = {"tiny weights": 1e-25, "huge weights": 1e5, "tiny query": 1.0}.get(change)
    if scale:
        n = branch.numerator * np.float32(1e-20 if change == "tiny query" else scale)
        branch = scoring.Branch(n, branch.weight * np.float32(scale))
    if change == "NaN":
        gallery[1, 3, 5] = np.nan
    if change == "huge":
        gallery[0, 0] *= 1e9
    query = query.replace(branches=(query.branches[0], branch, query.branches[2]))
    if change == "tiny":  # even their squares are zero
        gallery *= np.float32(1e-31)
        query = query.replace(branches=query.branches[2:], branch_names=("c",))
    levels = tuple(jnp.asarray(level) for level in gallery)
    margin = np.asarray(margins(query, levels, largest_norms(levels)))
    rough = np.asarray(scores.split_score(scores.split_query(query, 2, 2), levels, LEAST_SQUARE))
    assert (np.isinf(margin)[:, None] | np.isnan(rough)).all()


def _watch(monkeypatch) -> list[scan.Chosen]:
    """Record what the fast passes leave."""
    choices: list[scan.Chosen] = []
    choose = fast.choose

    def recorded(*args, **kwargs):
        result = choose(*args, **kwargs)
        choices.append(result[2])
        return result

    monkeypatch.setattr(fast, "choose", recorded)
    return choices


@functools.cache
def _crowded(seed: int) -> np.ndarray:
    """Random images; one in eight has a twin, and some differ from another in the last bits."""
    rng = np.random.default_rng(seed)
    gallery = _unit(rng, 2, IMAGES)
    twins = rng.permutation(IMAGES)[: IMAGES // 8 * 2].reshape(2, -1)
    gallery[:, twins[0]] = gallery[:, twins[1]]
    gallery[:, twins[0, ::2]] *= np.float32(1 + 2**-22)
    return gallery


@pytest.mark.parametrize("devices", [1, 8])
def test_two_passes_give_the_result_of_one(devices, monkeypatch):
    rng = np.random.default_rng(4)
    gallery, query = _crowded(5), _query(rng, 9)
    targets = [rng.integers(IMAGES, size=n) for n in (1, 1, 3, 0, 1, 2, 1, 1, 1)]
    exclude = rng.integers(IMAGES, size=9)
    exclude[1] = targets[1][0]
    allowed = rng.random(IMAGES) < 0.8
    choices = _watch(monkeypatch)
    one, two = (
        ExactIndex(gallery, _mesh(devices), chunk=64, fast=is_fast) for is_fast in (False, True)
    )
    for k, mask, every in ((5, None, False), (0, None, True), (5, allowed, False)):
        results = [
            index.search(
                query, k, targets=targets, exclude=exclude, allowed=mask, every_target=every
            )
            for index in (one, two)
        ]
        np.testing.assert_array_equal(results[1].positions, results[0].positions)
        np.testing.assert_array_equal(results[1].scores, results[0].scores)
        for field in dataclasses.fields(results[0].placements):
            np.testing.assert_array_equal(
                *(getattr(result.placements, field.name) for result in results)
            )
    lists = [two.search(query, 5), one.search(query, 5)]
    np.testing.assert_array_equal(lists[0].positions, lists[1].positions)
    assert len(choices) == 4
    if devices == 1:  # float32 scored a few images
        assert not np.asarray(choices[-1].is_all).any()
        assert 0 < np.asarray(choices[-1].count).sum() < IMAGES / 4


def test_what_cannot_be_decided_is_scored_in_float32(monkeypatch):
    """A gallery of one image many times, images of zeros, and scores that are NaN."""
    rng = np.random.default_rng(6)
    query, gallery = _query(rng, 9), _crowded(5).copy()
    gallery[:, 100:500] = gallery[:, 99:100]
    gallery[:, 600] = 0
    choices = _watch(monkeypatch)
    one, two = (ExactIndex(gallery, _mesh(1), chunk=64, fast=is_fast) for is_fast in (False, True))
    targets = np.arange(96, 105)
    results = [index.search(query, 450, targets=targets) for index in (one, two)]
    np.testing.assert_array_equal(results[1].positions, results[0].positions)
    np.testing.assert_array_equal(results[1].ranks, results[0].ranks)
    assert (results[0].placements.tied[3:] == 400).all()
    assert np.asarray(choices[-1].is_all).all()
    gallery[0, 650, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        ExactIndex(gallery, _mesh(1), chunk=64, fast=True).search(query, 5)


def _narrow(name: str, gallery: np.ndarray):
    """A gallery as it is stored in sixteen or eight bits."""
    return quantize(gallery) if name == "int8" else gallery.astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("dtype", "platform"), [("bfloat16", "cpu"), ("bfloat16", "gpu"), ("int8", "cpu")]
)
def test_narrow_galleries_and_long_lists(dtype, platform, monkeypatch):
    """Also in the form that an accelerator takes, three pieces for bfloat16, computed on a CPU."""
    monkeypatch.setattr(exact, "make_plan", lambda _, *rest, **o: make_plan(platform, *rest, **o))
    rng = np.random.default_rng(7)
    gallery, query, targets = _narrow(dtype, _crowded(5)), _query(rng, 9), np.arange(9) * 70
    choices = _watch(monkeypatch)
    one, two = (
        ExactIndex(gallery, _mesh(1), chunk=64, fast=is_fast).search(query, 70, targets=targets)
        for is_fast in (False, True)
    )
    assert len(choices) == 1
    np.testing.assert_array_equal(two.positions, one.positions)
    np.testing.assert_array_equal(two.scores, one.scores)
    np.testing.assert_array_equal(two.ranks, one.ranks)
    values = gallery.rows(slice(None)) if dtype == "int8" else gallery.astype(np.float32)
    scores = _definition(query, values)
    best = -np.sort(-scores, axis=1)[:, :70]
    np.testing.assert_allclose(one.scores, best, atol=5e-6)


def test_an_infinite_score_is_listed():
    """A query without a margin has all of its images scored in float32."""
    gallery = np.zeros((1, IMAGES, WIDTH), np.float32)
    gallery[0, :, 0] = np.linspace(-2, 2, IMAGES)
    vectors = np.zeros((1, 9, WIDTH), np.float32)
    vectors[0, :, 0] = [3e38, *range(-8, 0)]  # the others' best images are its worst
    branch = scoring.Branch(vectors)
    query = scoring.ComposedQuery((branch,), None, ("own",), ("high",))
    one, two = (
        ExactIndex(gallery, _mesh(1), chunk=64, fast=is_fast).search(query, 20)
        for is_fast in (False, True)
    )
    assert np.isposinf(one.scores[0]).all()
    np.testing.assert_array_equal(two.positions, one.positions)
    np.testing.assert_array_equal(two.scores, one.scores)
