"""Queries of one category: caption policies, references, subsets, and what is recorded."""

import numpy as np
import pytest

from cmap_jax import sharding
from cmap_jax.evaluation.ranking import Ranking
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.retrieval.exact import ExactIndex
from cmap_jax.scoring import Branch, ComposedQuery
from input_pipeline.records import Query

GALLERY = tuple(f"i{n}" for n in range(12))


@pytest.fixture(scope="module")
def index():
    """A gallery of unit vectors: a query scores its own elements."""
    return ExactIndex(np.eye(12, dtype=np.float32)[None], sharding.make_mesh())


def _scoring(scores):
    """Queries with such scores, [B, 12]."""
    return ComposedQuery((Branch(np.float32(scores)[None]),), levels=("high",))


def _query(number, reference="i0", targets=("i1",), annotation=None, subset=()):
    return Query(
        id=f"q{number}",
        reference=reference,
        captions=("red",),
        targets=targets,
        category="all",
        annotation=annotation or f"{number}",
        subset=subset,
    )


def test_both_orders_averaged_before_ranking(index):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(10, 12)).astype(np.float32)
    queries = [_query(i, targets=(f"i{1 + i // 2}",), annotation=f"{i // 2}") for i in range(10)]
    averaged = Ranking(PROTOCOLS["fashioniq/original-averaged"], GALLERY, keep_records=True)
    for rows in (slice(0, 4), slice(4, 10)):
        averaged.add(queries[rows], _scoring(scores[rows]), index)
    means = scores.reshape(5, 2, 12).mean(axis=1)
    means[:, 0] = -np.inf  # the reference
    expected = [int((row > row[1 + i]).sum()) for i, row in enumerate(means)]
    assert averaged.placement().ranks().tolist() == expected
    assert averaged.annotations == ["0", "1", "2", "3", "4"]
    assert [r["query"] for r in averaged.records] == ["q0", "q2", "q4", "q6", "q8"]
    assert averaged.records[0]["top"][0] == GALLERY[int(means[0].argmax())]
    assert averaged.records[0]["top"].count("i0") == 0
    for queries in ([_query(1), _query(2)], [_query(1)]):
        with pytest.raises(ValueError, match="must follow one another"):
            averaged.add(queries, _scoring(np.zeros((len(queries), 12))), index)


def test_subsets_leave_the_reference_out(index):
    members = ("i0", "i3", "i1", "i7", "i9", "i11")
    queries = [_query(0, subset=members), _query(1, "i5", ("i4",), subset=("i5", "i4", "gone"))]
    scores = np.arange(24, dtype=np.float32).reshape(2, 12)
    scores[0, [0, 7]] = 100, 99
    ranking = Ranking(PROTOCOLS["cirr/val"], GALLERY, keep_records=True)
    ranking.add(queries, _scoring(scores), index)
    # First query: i7 (99), then i11, i9, i3, i1; i0 is the reference.
    assert ranking.subset_ranks().tolist() == [4, 0]
    assert ranking.records[0]["subset_top"] == ["i7", "i11", "i9", "i3", "i1"]
    assert ranking.records[1]["subset_top"] == ["i4"]
    assert ranking.placement().ranks().tolist() == [10, 7 - 1]


def test_reference_kept_and_average_precision(index):
    ranking = Ranking(PROTOCOLS["circo/val"], GALLERY, keep_records=True)
    scores = np.linspace(1, 0, 12, dtype=np.float32)[None]
    ranking.add([_query(0, targets=("i1", "i3", "elsewhere"))], _scoring(scores), index)
    assert ranking.records[0]["top"] == list(GALLERY)  # with its reference
    assert ranking.placement().ranks().tolist() == [1]
    expected = (1 / 2 + 2 / 4) / 2  # two of the three are in the gallery
    assert {k: v.tolist() for k, v in ranking.average_precisions().items()} == {
        k: [pytest.approx(expected)] for k in (5, 10, 25, 50)
    }


def test_no_answers(index):
    ranking = Ranking(PROTOCOLS["cirr/test1"], GALLERY, keep_records=True)
    query = _query(0, targets=(), subset=("i0", "i1", "i2"))
    ranking.add([query], _scoring(np.ones((1, 12))), index)
    assert ranking.placement().ranks().tolist() == [-1]
    assert ranking.records[0]["rank"] is None
    assert ranking.records[0]["subset_top"] == ["i1", "i2"]
