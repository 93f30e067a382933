"""Ranks, first images and average precisions against plain definitions."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmap_jax.evaluation import metrics
from cmap_jax.retrieval.placement import Placement


def _plain_rank(scores, targets, excluded):
    """One query at a time, in words: the mean over all orders of the images that tie."""
    scores = [-np.inf if i == excluded else s for i, s in enumerate(scores)]
    if not targets:
        return -1
    best = max(scores[t] for t in targets)
    wrong = [s for i, s in enumerate(scores) if i not in targets]
    correct = sum(scores[t] == best for t in set(targets))
    return sum(s > best for s in wrong) + sum(s == best for s in wrong) / (correct + 1)


@given(st.data())
def test_ranks_by_definition(data):
    queries, images = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    level = st.sampled_from([-np.inf, -1.0, 0.0, 2.0])  # few values: many ties
    scores = [data.draw(st.lists(level, min_size=images, max_size=images)) for _ in range(queries)]
    places = st.integers(0, images - 1)
    targets = [data.draw(st.lists(places, max_size=3)) for _ in range(queries)]
    exclude = [data.draw(st.integers(-1, images - 1)) for _ in range(queries)]
    expected = [_plain_rank(*row) for row in zip(scores, targets, exclude, strict=True)]
    padded = [t or [-1] for t in targets]
    np.testing.assert_array_equal(metrics.ranks(np.array(scores), padded, exclude), expected)
    mask = np.zeros((queries, images), bool)
    for row, places in enumerate(targets):
        mask[row, places] = True
    np.testing.assert_array_equal(metrics.ranks(np.array(scores), mask, exclude), expected)


def test_ranks_corner_cases():
    scores = np.array([[0.9, 0.5, 0.1]])
    assert metrics.ranks(scores, [1]) == 1
    assert metrics.ranks(scores, [1], [0]) == 0
    assert metrics.ranks(scores, [0], [0]) == 2  # the only correct image is excluded: N - 1
    assert metrics.ranks(scores, [[0, 2]], [0]) == 1
    assert metrics.ranks(scores, [-1]) == -1
    jax_mask = jnp.array([[False, True, False]])
    assert metrics.ranks(scores, jax_mask) == 1
    assert metrics.ranks(scores, [{0, 2}], [{0}]) == 1
    with pytest.raises(ValueError, match="one bool array"):
        metrics.ranks(scores, [[False, True, False]])
    with pytest.raises(ValueError, match="position 3 in a gallery of 3"):
        metrics.ranks(scores, [3])
    with pytest.raises(ValueError, match="NaN"):
        metrics.ranks(np.array([[np.nan]]), [0])
    with pytest.raises(ValueError, match="positions for 2"):
        metrics.ranks(scores, [0, 1])


def test_top_breaks_ties_by_position():
    scores = np.array([[1.0, 3.0, 3.0, 2.0]])
    np.testing.assert_array_equal(metrics.top(scores, 3), [[1, 2, 3]])
    np.testing.assert_array_equal(metrics.top(scores, 4, [1]), [[2, 3, 0, 1]])
    np.testing.assert_array_equal(metrics.top(jnp.asarray(scores), 9), [[1, 2, 3, 0]])
    assert scores[0, 1] == 3.0  # the caller's scores are left alone
    close = np.array([[1.0, 1.0 + 1e-12]])  # alike in float32
    np.testing.assert_array_equal(metrics.top(close, 1), [[1]])


@given(st.data())
def test_a_rank_is_the_mean_over_all_orders_of_ties(data):
    """The formula against every order that a sort might give the images."""
    images = data.draw(st.integers(1, 6))
    scores = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=images, max_size=images))
    )
    targets = data.draw(st.sets(st.integers(0, images - 1), min_size=1))
    first = []
    for order in itertools.permutations(range(images)):
        ranked = sorted(order, key=lambda i: -scores[i])  # stable: equal scores keep this order
        place = min(ranked.index(t) for t in targets)
        first.append(place)  # the images before it are all wrong
    assert metrics.ranks(scores[None], [targets])[0] == pytest.approx(np.mean(first))


def test_a_model_that_scores_all_images_alike_is_not_perfect():
    found = metrics.ranks(np.zeros((4, 1000)), [5, 6, 700, 999])
    assert found.tolist() == [499.5] * 4
    for k in (1, 10, 50):
        recall, chance = 100 * np.mean(found < k), 100 * k / 1000
        assert abs(recall - chance) <= chance
    assert metrics.ranks(np.zeros((1, 1000)), [5], [7]).tolist() == [499.0]
    several = metrics.ranks(np.zeros((1, 1000)), [[5, 6, 7]])
    assert several.tolist() == [997 / 4]


@given(st.integers(0, 2**32 - 1))
def test_the_order_of_the_gallery_changes_no_rank(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, size=(5, 12)).astype(np.float32)
    targets = [rng.choice(12, size=n, replace=False) for n in (1, 2, 3, 4, 12)]
    reference = rng.integers(12, size=5)
    order = rng.permutation(12)
    place = np.argsort(order)
    np.testing.assert_array_equal(
        metrics.ranks(scores, targets, reference),
        metrics.ranks(scores[:, order], [place[t] for t in targets], place[reference]),
    )


@given(st.integers(0, 2**32 - 1))
def test_copies_of_every_image_stretch_the_ranks(seed):
    """With five copies of each image, one of them correct: rank r becomes 5 r + 4 / 2."""
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.arange(8.0)[None].repeat(3, 0), axis=1)
    targets = rng.integers(8, size=3)
    copied = metrics.ranks(scores.repeat(5, axis=1), 5 * targets + 3)
    np.testing.assert_allclose(copied, 5 * metrics.ranks(scores, targets) + 2)


def _precisions(scores, targets, cutoffs):
    """Place every correct image of one query among dense scores, and average."""
    scores = np.asarray(scores, float)
    correct = sorted(targets)
    wrong = [s for i, s in enumerate(scores) if i not in targets]
    rows = [
        (
            sum(s > scores[t] for s in wrong),
            sum(s == scores[t] for s in wrong),
            sum(scores[u] == scores[t] for u in correct),
        )
        for t in correct
    ] or [(0, 0, 0)]
    placement = Placement(*np.array(rows).T[:, None, :])
    return {k: v[0] for k, v in metrics.average_precision(placement, cutoffs).items()}


@given(st.data())
def test_average_precision_by_definition(data):
    """CIRCO's definition, image by image."""
    images = data.draw(st.integers(1, 12))
    order = data.draw(st.permutations(range(images)))
    targets = data.draw(st.lists(st.integers(0, images - 1), unique=True))
    cutoffs = (1, 3, 5, 50)
    found = _precisions(-np.argsort(order), set(targets), cutoffs)
    for k in cutoffs:
        hits, total = 0, 0.0
        for place, image in enumerate(order[:k], 1):
            if image in targets:
                hits += 1
                total += hits / place
        expected = total / min(len(targets), k) if targets else 0.0
        assert found[k] == pytest.approx(expected)


def test_average_precision_places_tied_images_by_expectation():
    # Two correct images among four wrong ones: 4/3 and 8/3 of these stand before them.
    found = _precisions([0] * 6, {1, 4}, (1, 2, 4, 50))
    first, second = 1 / (4 / 3 + 1), 2 / (8 / 3 + 2)
    assert found == {
        1: 0.0,  # rank 4/3
        2: pytest.approx(first / 2),
        4: pytest.approx((first + second) / 2),
        50: pytest.approx((first + second) / 2),
    }
    # An untied correct image stands before a tied pair, though both have no wrong image above.
    assert _precisions([1, 0, 0], {0, 1}, (5,))[5] == pytest.approx((1 + 2 / 2.5) / 2)
    assert _precisions(np.zeros(1000), {5}, (5, 50)) == {5: 0.0, 50: 0.0}


def test_a_perfect_list_has_average_precision_one():
    found = _precisions(-np.arange(50), {0, 1, 2}, (1, 2, 3, 5, 50))
    assert all(value == 1.0 for value in found.values())
