"""Ranks, first images and average precisions against plain definitions."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmap_jax.evaluation import metrics


def _plain_rank(scores, targets, excluded):
    """SPEC 6, one query at a time, in words."""
    scores = [-np.inf if i == excluded else s for i, s in enumerate(scores)]
    if not targets:
        return -1
    best = max(scores[t] for t in targets)
    return sum(s > best for s in scores)


@given(st.data())
def test_ranks_by_definition(data):
    queries, images = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    level = st.integers(-2, 2).map(float)  # few values: many ties
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
def test_average_precision_by_definition(data):
    """CIRCO's definition, image by image."""
    images = data.draw(st.integers(1, 12))
    order = data.draw(st.permutations(range(images)))
    targets = data.draw(st.lists(st.integers(0, images - 1), unique=True))
    cutoffs = (1, 3, 5, 50)
    found = metrics.average_precision(np.array([order]), [targets], cutoffs)
    for k in cutoffs:
        hits, total = 0, 0.0
        for place, image in enumerate(order[:k], 1):
            if image in targets:
                hits += 1
                total += hits / place
        expected = total / min(len(targets), k) if targets else 0.0
        assert found[k][0] == pytest.approx(expected)


def test_a_perfect_list_has_average_precision_one():
    found = metrics.average_precision(np.arange(50)[None], [[0, 1, 2]], (1, 2, 3, 5, 50))
    assert all(value == [1.0] for value in found.values())
