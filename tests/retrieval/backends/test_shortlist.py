"""Re-ranking of proposed images, against scores by the definition and exact search."""

import compilations
import numpy as np
import pytest
from small import one_device
from stored_index import random_pyramid, random_query, scores_by_definition, write

from cmap_jax import scoring
from cmap_jax.retrieval.backends.shortlist import ShortlistBackend, _score_rows

IMAGES = 200


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """An index in which many images are equal."""
    pyramid = random_pyramid(IMAGES, kinds=60)
    return write(tmp_path_factory.mktemp("index") / "index", pyramid)


def _scores(stored, query) -> np.ndarray:
    return scores_by_definition(query, stored.rows(np.arange(IMAGES)))


def _backend(stored, propose, shortlist: int = 40) -> ShortlistBackend:
    return ShortlistBackend(stored, propose, shortlist=shortlist, mesh=one_device())


def _perfect(scores):
    """Propose by exact scores, in no order among the proposed."""

    def propose(vectors, width, allowed):
        allowed = np.ones(IMAGES, bool) if allowed is None else allowed
        masked = np.where(allowed, scores[: len(vectors)], -np.inf)
        proposed = np.sort(np.argsort(-masked, axis=1, kind="stable")[:, :width])
        return np.where(np.take_along_axis(allowed[None], proposed, axis=1), proposed, -1)

    return propose


def _nothing(vectors, width, allowed):
    raise AssertionError("no proposal is needed")


@pytest.mark.parametrize("queries", [1, 3, 11])
@pytest.mark.parametrize("k", [5, 40, 70])
def test_the_best_of_the_proposed_come_in_order(stored, queries, k):
    query = random_query(queries)
    scores = _scores(stored, query)
    result = _backend(stored, _perfect(scores)).search(query, k)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(result.positions, order)
    expected = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)
    assert (result.scores.dtype, result.positions.dtype) == (np.float32, np.int32)
    assert result.placements is None


def test_only_proposed_images_are_returned(stored):
    query, odd = random_query(2), np.arange(1, IMAGES, 4)
    result = _backend(stored, lambda v, width, a: np.tile(odd, (len(v), 1))).search(query, 10)
    scores = np.where(np.isin(np.arange(IMAGES), odd), _scores(stored, query), -np.inf)
    np.testing.assert_array_equal(
        result.positions, np.argsort(-scores, axis=1, kind="stable")[:, :10]
    )


@pytest.mark.parametrize("passing", [0, 3, 40, 90])
def test_a_mask(stored, passing):
    query, allowed = random_query(2), np.zeros(IMAGES, bool)
    allowed[np.random.default_rng(0).permutation(IMAGES)[:passing]] = True
    scores = np.where(allowed, _scores(stored, query), -np.inf)
    propose = _perfect(scores) if passing > 40 else _nothing
    result = _backend(stored, propose).search(query, 10, allowed)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    best = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_array_equal(result.positions, np.where(best == -np.inf, -1, order))
    np.testing.assert_allclose(result.scores, best, atol=1e-5)


def test_images_that_the_index_does_not_reach(stored, monkeypatch):
    """A query that gets fewer proposals than it asked for is searched exactly."""
    query = random_query(5)
    scores = _scores(stored, query)

    def propose(vectors, width, allowed):
        positions = _perfect(scores)(vectors, width, allowed)
        positions[1, 4:] = positions[3] = -1
        return positions

    backend, rows = _backend(stored, propose), []
    backend.warm_up(random_query(1, seed=3), 10)
    backend.search(query.replace(), 10, np.arange(IMAGES) != 7)  # compiles the short list's
    take = stored.rows
    monkeypatch.setattr(stored, "rows", lambda places: rows.append(len(places)) or take(places))
    with compilations.counted() as seconds:
        for allowed in (np.ones(IMAGES, bool), np.arange(IMAGES) < 150):
            result = backend.search(query, 10, allowed)
            masked = np.where(allowed, scores, -np.inf)
            order = np.argsort(-masked, axis=1, kind="stable")[:, :10]
            np.testing.assert_array_equal(result.positions, order)
            best = np.take_along_axis(scores, order, axis=1)
            np.testing.assert_allclose(result.scores, best, atol=1e-5)
    assert not seconds
    assert sum(rows) == 2 * 8 * 64  # the short lists alone are read one by one


def test_all_images_of_a_small_index(stored):
    query = random_query(2)
    result = _backend(stored, _nothing, shortlist=IMAGES).search(query, IMAGES + 7)
    order = np.argsort(-_scores(stored, query), axis=1, kind="stable")
    np.testing.assert_array_equal(result.positions, order)


def test_a_search_for_more_or_fewer_images_compiles_nothing(stored):
    query = random_query(8)
    scores = _scores(stored, query)
    backend = _backend(stored, _perfect(scores))
    backend.search(query, 60)
    compiled = _score_rows._cache_size()
    backend.search(query, 10)
    backend.search(query, 150)
    backend.search(random_query(3), 10)
    backend.search(query, 10, np.arange(IMAGES) < 5)
    backend.search(query, 10, np.arange(IMAGES) < 90)
    assert _score_rows._cache_size() == compiled


def test_a_broken_query_is_refused(stored):
    query = random_query(2)
    broken = query.branches[0].replace(numerator=query.branches[0].numerator * np.nan)
    query = query.replace(branches=(broken, *query.branches[1:]))
    with pytest.raises(ValueError, match="NaN"):
        _backend(stored, _nothing, shortlist=IMAGES).search(query, 3)


def test_a_query_of_other_levels_is_refused(stored):
    branch = scoring.Branch(np.ones((1, 1, 16), np.float32))
    query = scoring.ComposedQuery((branch,), None, ("a",), ("high",))
    with pytest.raises(ValueError, match="levels"):
        _backend(stored, _nothing, shortlist=IMAGES).search(query, 3)
