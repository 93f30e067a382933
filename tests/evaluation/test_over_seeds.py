"""Means over seeds, and the paired bootstrap of their differences, against plain definitions."""

import numpy as np
import pytest
from fake_results import COUNT, fake_results, random_ranks

from cmap_jax.evaluation.compare import compare
from cmap_jax.evaluation.outcomes import DRAWS
from cmap_jax.evaluation.over_seeds import (
    OverSeeds,
    SeededResults,
    _resample_seeds,
    compare_over_seeds,
)


def _method(name, results):
    method = SeededResults(name)
    for seed, stored in results.items():
        method.add(seed, stored)
    return method


def test_mean_and_half_of_the_range():
    number = OverSeeds({0: 10.0, 1: 16.0, 2: 13.0})
    assert (number.mean, number.spread) == (13.0, 3.0)
    assert OverSeeds({4: 7.0}).spread is None
    method = _method("a", {s: fake_results(random_ranks(s, 40)) for s in range(3)})
    recalls = [100 * np.mean(random_ranks(s, 40) < 10) for s in range(3)]
    found = method.numbers()["shoes"]["R@10"]
    assert found.mean == pytest.approx(np.mean(recalls))
    assert found.spread == pytest.approx((max(recalls) - min(recalls)) / 2)


def test_one_seed_is_the_comparison_of_two_runs():
    a, b = (fake_results(random_ranks(s, 30 + 20 * s)) for s in range(2))
    assert compare_over_seeds(_method("a", {3: a}), _method("b", {3: b})) == compare(a, b)


def test_the_interval_has_the_variance_of_queries_and_seeds():
    """Its width is that of a normal distribution with the variances of both, computed apart."""
    seeds, most = range(6), (60, 40)
    ranks = [[random_ranks(10 * m + s, top) for s in seeds] for m, top in enumerate(most)]
    a, b = (_method(str(m), {s: fake_results(r) for s, r in enumerate(ranks[m])}) for m in (0, 1))
    found = compare_over_seeds(a, b)["shoes"]["R@10"]
    hits = np.array(ranks) < 10  # [method, seed, query]
    differences = 100.0 * (hits[1].astype(float) - hits[0])  # [seed, query]
    assert found.second - found.first == pytest.approx(differences.mean())
    of_seeds = differences.mean(1).var(ddof=1) / len(seeds)
    # Two queries an annotation; the same ones are drawn for all seeds.
    annotations = differences.reshape(len(seeds), COUNT // 2, 2).mean(2)
    of_one = annotations.var(1).mean() / (COUNT // 2)
    covariances = np.cov(annotations, bias=True) / (COUNT // 2)
    common = (covariances.sum() - np.trace(covariances)) / (len(seeds) * (len(seeds) - 1))
    # Draws with replacement repeat a seed, and its queries' part then does not average out.
    drawn = len(seeds) - 1
    same = 1 / drawn + (1 - 1 / drawn) / len(seeds)
    expected = 2 * 1.96 * np.sqrt(of_seeds + same * of_one + (1 - same) * common)
    low, high = found.interval
    assert high - low == pytest.approx(expected, rel=0.1)


def test_drawing_seeds_gives_the_usual_variance_of_a_mean():
    for count in (2, 3, 5):
        values = np.random.default_rng(count).normal(size=count)
        drawn = _resample_seeds(np.repeat(values[:, None], DRAWS, 1))
        assert drawn.shape == (DRAWS,)
        assert drawn.var() == pytest.approx(values.var(ddof=1) / count, rel=0.1)
    np.testing.assert_array_equal(_resample_seeds(np.arange(DRAWS)[None]), np.arange(DRAWS))


def test_common_seeds_alone_are_compared():
    a = _method("a", {s: fake_results(random_ranks(s, 30)) for s in range(3)})
    b = _method("b", {s: fake_results(random_ranks(s, 60)) for s in (1, 2)})
    found = compare_over_seeds(a, b)["shoes"]["R@10"]
    assert found.first == pytest.approx(
        np.mean([100 * np.mean(random_ranks(s, 30) < 10) for s in (1, 2)])
    )
    with pytest.raises(ValueError, match="a and c have no seed in common"):
        compare_over_seeds(a, _method("c", {9: fake_results(random_ranks(9, 30))}))


def test_other_galleries_are_refused_for_any_seed():
    a = _method("a", {s: fake_results(random_ranks(s, 30)) for s in range(2)})
    b = _method("b", {s: fake_results(random_ranks(s, 30), gallery="abx"[: 2 + s]) for s in (0, 1)})
    with pytest.raises(ValueError, match=r"a and b: .*\n.*different galleries"):
        compare_over_seeds(a, b)
