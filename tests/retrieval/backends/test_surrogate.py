"""The linear stand-in of the score, against scores by the definition."""

import dataclasses

import numpy as np
import pytest
from stored_index import LEVELS, WIDTH, random_pyramid, random_query, scores_by_definition

from cmap_jax import scoring
from cmap_jax.retrieval.backends.surrogate import Surrogate, concatenated, sample_positions


def _products(surrogate: Surrogate, query: scoring.ComposedQuery, pyramid) -> np.ndarray:
    vectors = surrogate.vectors(query)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(query), LEVELS * WIDTH))
    return vectors @ concatenated(pyramid).T


def test_it_is_the_score_of_branches_without_a_weight():
    pyramid, query = random_pyramid(30), random_query(4)
    query = query.replace(branches=query.branches[2:], branch_names=("c",))
    products = _products(Surrogate(pyramid[:, :5]), query, pyramid)
    np.testing.assert_allclose(products, scores_by_definition(query, pyramid), atol=1e-5)


def test_it_is_the_score_where_all_images_have_one_norm():
    """The squares of all embeddings are alike, and their signs differ."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(size=(LEVELS, 1, WIDTH)))
    sizes /= np.linalg.norm(sizes, axis=-1, keepdims=True)
    pyramid = (sizes * rng.choice([-1, 1], size=(LEVELS, 30, WIDTH))).astype(np.float32)
    query = random_query(4)
    products = _products(Surrogate(pyramid), query, pyramid)
    np.testing.assert_allclose(products, scores_by_definition(query, pyramid), atol=1e-5)


def test_its_order_is_near_that_of_the_scores():
    pyramid, query = random_pyramid(2000), random_query(20)
    scores = scores_by_definition(query, pyramid)
    products = _products(Surrogate(pyramid), query, pyramid)
    best = np.argsort(-scores, axis=1)[:, :20]
    proposed = np.argsort(-products, axis=1)[:, :200]
    recall = np.mean([np.isin(b, p).mean() for b, p in zip(best, proposed, strict=True)])
    assert recall > 0.95


def test_a_query_of_other_levels_is_refused():
    query = dataclasses.replace(random_query(1), levels=("high",))
    with pytest.raises(ValueError, match=r"levels \('high',\), but the index has 2"):
        Surrogate(random_pyramid(3)).vectors(query)


def test_samples():
    assert sample_positions(3, 3).tolist() == [0, 1, 2]
    sample = sample_positions(1000, 10)
    assert len(set(sample.tolist())) == 10
    assert (np.diff(sample) > 0).all()
    assert (sample == sample_positions(1000, 10)).all()


def test_concatenated():
    pyramid = random_pyramid(3)
    rows = concatenated(pyramid.astype(np.float16))
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    np.testing.assert_allclose(rows[1], np.concatenate([pyramid[0, 1], pyramid[1, 1]]), atol=1e-3)
