"""Numbers and their intervals against plain definitions, one draw at a time."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmap_jax.evaluation.outcomes import (
    Outcomes,
    bootstrap_differences,
    bootstrap_intervals,
    statistics,
    summarize,
)
from cmap_jax.protocols import PROTOCOLS

FASHION_IQ, CIRR, CIRCO = (PROTOCOLS[n] for n in ("fashioniq/original", "cirr/val", "circo/val"))


def _outcomes(ranks_by_category, orders=1, **more) -> Outcomes:
    """Outcomes whose annotations have ``orders`` queries each."""
    categories = [c for c, ranks in ranks_by_category.items() for _ in ranks]
    annotations = [
        f"{c}/{i // orders}" for c, r in ranks_by_category.items() for i in range(len(r))
    ]
    rank = np.concatenate([np.asarray(r, np.int64) for r in ranks_by_category.values()])
    fields = {"subset_rank": None, "average_precision": {}, **more}
    return Outcomes.collect(categories, annotations, rank, **fields)


def test_summary_averages_categories_and_skips():
    numbers = summarize(FASHION_IQ, _outcomes({"dress": [0, 9, 10, -1], "shirt": [49, 50]}))
    assert numbers["dress/R@10"] == pytest.approx(200 / 3)
    assert numbers["shirt/R@10"] == 0
    assert numbers["R@10"] == pytest.approx(100 / 3)  # the mean of the categories, not of queries
    assert numbers["R@50"] == pytest.approx((100 + 50) / 2)
    assert numbers["mR"] == pytest.approx((numbers["R@10"] + numbers["R@50"]) / 2)
    assert (numbers["queries"], numbers["skipped"]) == (5, 1)
    assert numbers["median_rank"] == 11
    assert numbers["mean_rank"] == pytest.approx(np.mean([0, 9, 10, 49, 50]) + 1)
    pooled = summarize(PROTOCOLS["fashion200k"], _outcomes({"all": [0, 3]}))
    assert pooled["R@1"] == 50
    assert pooled["median_rank"] == 2  # floor(1.5) + 1
    assert not any("/" in key for key in pooled)
    with pytest.raises(ValueError, match="no query has a correct image"):
        summarize(PROTOCOLS["fashion200k"], _outcomes({"all": [-1]}))


def test_subsets_and_mean_average_precision():
    ranks, subset = [0, 4, 60, -1], np.array([0, 2, 1, 0])
    numbers = summarize(CIRR, _outcomes({"all": ranks}, subset_rank=subset))
    assert numbers["R_subset@1"] == pytest.approx(100 / 3)  # skipped queries do not count here
    assert numbers["R_subset@2"] == pytest.approx(200 / 3)
    assert numbers["R_subset@3"] == 100
    assert numbers["mean(R@5, R_subset@1)"] == pytest.approx((200 / 3 + 100 / 3) / 2)
    precisions = {k: np.array([0.5, 1.0]) / k for k in (5, 10, 25, 50)}
    numbers = summarize(CIRCO, _outcomes({"all": [0, 1]}, average_precision=precisions))
    assert numbers["mAP@5"] == pytest.approx(15)
    assert numbers["mAP@50"] == pytest.approx(1.5)
    assert next(iter(numbers)) == "mAP@5"


@given(st.data())
@settings(max_examples=30)
def test_weights_count_a_query_several_times(data):
    """Every number under whole weights is the number of a list with the queries repeated."""
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    ranks = {
        f"c{i}": data.draw(st.lists(st.integers(0, 70), min_size=n, max_size=n))
        for i, n in enumerate(sizes)
    }
    times = {
        c: data.draw(st.lists(st.integers(1, 3), min_size=len(r), max_size=len(r)))
        for c, r in ranks.items()
    }
    weights = np.array([[t for row in times.values() for t in row]], np.float64)
    repeated = {c: np.repeat(r, times[c]) for c, r in ranks.items()}
    for protocol in (FASHION_IQ, PROTOCOLS["shoes"]):
        found = statistics(protocol, _outcomes(ranks), weights)
        expected = statistics(protocol, _outcomes(repeated), np.ones((1, int(weights.sum()))))
        assert {k: v[0] for k, v in found.items()} == pytest.approx(
            {k: v[0] for k, v in expected.items()}
        )
        pooled = np.concatenate(list(repeated.values()))
        assert found["median_rank"][0] == np.floor(np.median(pooled)) + 1


def test_an_annotations_orders_are_drawn_together():
    """Two orders that always agree say no more than one: the interval must not shrink."""
    rng = np.random.default_rng(0)
    ranks = np.where(rng.random(400) < 0.3, 0, 99)
    once = bootstrap_intervals(FASHION_IQ, _outcomes({"dress": ranks}))
    twice = bootstrap_intervals(FASHION_IQ, _outcomes({"dress": np.repeat(ranks, 2)}, orders=2))
    assert twice["R@10"] == pytest.approx(once["R@10"], abs=0.7)
    apart = bootstrap_intervals(FASHION_IQ, _outcomes({"dress": np.repeat(ranks, 2)}))
    width = np.diff(once["R@10"])[0]
    assert np.diff(apart["R@10"])[0] == pytest.approx(width / np.sqrt(2), rel=0.1)
    # The normal approximation: 1.96 standard errors on each side.
    share = np.mean(ranks == 0)
    assert width == pytest.approx(2 * 196 * np.sqrt(share * (1 - share) / 400), rel=0.1)
    assert once["R@10"][0] < 100 * share < once["R@10"][1]
    again = bootstrap_intervals(FASHION_IQ, _outcomes({"dress": ranks}))
    assert again == once


def test_categories_are_resampled_one_by_one():
    """A category without any variation adds none, whatever its size."""
    certain = {"dress": [0] * 1000, "shirt": [99] * 10}
    low, high = bootstrap_intervals(FASHION_IQ, _outcomes(certain))["R@10"]
    assert low == high == 50


def test_paired_differences():
    rng = np.random.default_rng(1)
    ranks = rng.integers(0, 100, 500)
    better = np.where(rng.random(500) < 0.1, 0, ranks)  # never worse
    first, second = (_outcomes({"all": r}, orders=2) for r in (ranks, better))
    protocol = PROTOCOLS["shoes"]
    found = bootstrap_differences(protocol, first, second)
    gain = summarize(protocol, second)["R@10"] - summarize(protocol, first)["R@10"]
    low, high = found["R@10"]
    assert 0 < low < gain < high
    # Unpaired, the spread of each would drown it.
    alone = bootstrap_intervals(protocol, first)["R@10"]
    assert high - low < alone[1] - alone[0]
    assert bootstrap_differences(protocol, first, first)["R@10"] == (0, 0)
    with pytest.raises(ValueError, match="different queries"):
        bootstrap_differences(protocol, first, _outcomes({"all": ranks[:-2]}, orders=2))


def test_outcomes_survive_json():
    rank, subset = [3, -1, 0], np.array([1, 1, 0])
    before = _outcomes({"all": rank}, subset_rank=subset, average_precision={5: np.ones(3) / 3})
    after = Outcomes.from_dict(json.loads(json.dumps(before.to_dict())))
    assert after.to_dict() == before.to_dict()
    assert (after.skipped, dict(after.groups)) == (1, {"all": 2})
    np.testing.assert_array_equal(after.rank, [3, 0])
    np.testing.assert_array_equal(after.average_precision[5], [1 / 3, 1 / 3])
