"""Several right and explicit wrong images, paraphrases, several references, by brute force."""

import dataclasses
import itertools
import json

import fake_data
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import VOCABULARY, init, small_config

from cmap_jax import sharding
from cmap_jax.cli.results_table import results_table
from cmap_jax.evaluation import metrics
from cmap_jax.evaluation.compare import compare
from cmap_jax.evaluation.evaluator import Evaluator
from cmap_jax.evaluation.outcomes import Outcomes, bootstrap_intervals, summarize
from cmap_jax.evaluation.ranking import Ranking
from cmap_jax.evaluation.results import EvaluationFacts, Result
from cmap_jax.evaluation.results_file import StoredResults, with_intervals
from cmap_jax.facts import DataFacts
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS, Protocol
from cmap_jax.retrieval.exact import ExactIndex
from cmap_jax.retrieval.placement import Placement
from cmap_jax.scoring import Branch, ComposedQuery
from input_pipeline.batching import EvaluationData
from input_pipeline.images.decoding import open_loader
from input_pipeline.images.loading import FailedImages
from input_pipeline.readers import folder
from input_pipeline.records import Query

JUDGED = PROTOCOLS["folder/val-judged"]
K = 3
_SMALL = dataclasses.replace(
    JUDGED,
    metrics=tuple(f"{kind}@{K}" for kind in ("mAP", "mAP_multi", "wrong", "spread")),
    headline=(f"mAP@{K}",),
)


def _orders(scores):
    """Every order of the images that the scores allow, best first."""
    levels = [np.flatnonzero(scores == s).tolist() for s in sorted(set(scores), reverse=True)]
    for parts in itertools.product(*(itertools.permutations(level) for level in levels)):
        yield [i for part in parts for i in part]


def _wrong_share(scores, wrong, excluded=(), k=K):
    """The mean over all orders of the share of wrong images among the first k."""
    wrong = set(wrong) - set(excluded)
    if not wrong:
        return np.nan
    lists = ([i for i in order if i not in excluded] for order in _orders(scores))
    return np.mean([np.mean([i in wrong for i in order[:k]]) for order in lists])


def _precision(scores, right, excluded=(), k=K):
    """AP@k of one query; each right image at its expected rank, one after another."""
    scores = np.where(np.isin(np.arange(len(scores)), list(excluded)), -np.inf, scores)
    terms = []
    for number, i in enumerate(sorted(right, key=lambda i: -scores[i]), 1):
        equal = [j for j in right if scores[j] == scores[i]]
        others = [j for j in range(len(scores)) if j not in right]
        above = sum(scores[j] > scores[i] for j in others)
        level = sum(scores[j] == scores[i] for j in others)
        at = number - sum(scores[j] > scores[i] for j in right)
        rank = number - 1 + above + at * level / (len(equal) + 1)
        terms.append(number / (rank + 1) if rank < k else 0.0)
    return sum(terms) / min(len(right), k)


def _placement(scores, wrong):
    others = [j for j in range(len(scores)) if j not in wrong]
    counts = [
        (
            sum(scores[j] > scores[i] for j in others),
            sum(scores[j] == scores[i] for j in others),
            sum(scores[j] == scores[i] for j in wrong),
        )
        for i in wrong
    ]
    return Placement(*np.array(counts, np.int64).reshape(-1, 3).T[:, None])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_share_of_wrong_images_is_the_mean_over_all_orders(data):
    scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=2, max_size=6)), float)
    wrong = data.draw(st.sets(st.integers(0, len(scores) - 1), min_size=1))
    share = metrics.wrong_share(_placement(scores, wrong), np.array([len(scores)]), [K])[K]
    np.testing.assert_allclose(share, [_wrong_share(scores, wrong)])


def test_a_model_that_scores_everything_alike_is_not_praised():
    """With three of thirty images wrong, a tenth of the first ten is, and not none."""
    share = metrics.wrong_share(_placement(np.zeros(30), {0, 1, 2}), np.array([30]), [10])
    np.testing.assert_allclose(share[10], [0.1])


@pytest.fixture(scope="module")
def judged():
    """Queries with ties, their scores, [Q, 7], and the ranking of them."""
    rng = np.random.default_rng(0)
    gallery = tuple(f"i{n}" for n in range(7))
    index = ExactIndex(np.eye(7, dtype=np.float32)[None], sharding.make_mesh())
    scores = rng.integers(0, 4, (20, 7)).astype(np.float32)
    queries = []
    for number in range(20):
        row = np.random.default_rng(number // 3)  # three texts, and at last two
        drawn = [gallery[i] for i in row.permutation(7)]
        wrong = drawn[4 : 4 + number // 3 % 4]  # none at first
        queries.append(
            Query(
                id=f"q{number}",
                reference=drawn[0],
                captions=("red",),
                targets=(drawn[1], drawn[2], "elsewhere"),
                category="all",
                annotation=f"{number // 3}" if number < 18 else f"alone {number}",
                more_references=(drawn[3],) if number // 3 % 2 else (),
                wrong=(*wrong, "elsewhere as well", *([drawn[0]] if wrong else [])),
            )
        )
    ranking = Ranking(_SMALL, gallery, keep_records=True)
    for rows in (slice(0, 12), slice(12, 20)):
        composed = ComposedQuery((Branch(scores[None, rows]),), levels=("high",))
        ranking.add(queries[rows], composed, index)
    return queries, scores, ranking


def _numbers(queries, scores, gallery, k=K):
    """Every number of a judged protocol in float64, from the scores and the queries alone."""
    precision, wrong, groups = [], [], {}
    at = {image: i for i, image in enumerate(gallery)}
    for query, row in zip(queries, scores.astype(np.float64), strict=True):
        out = [at[i] for i in (query.reference, *query.more_references) if i in at]
        precision.append(_precision(row, [at[i] for i in query.targets if i in at], out, k))
        wrong.append(_wrong_share(row, [at[i] for i in query.wrong if i in at], out, k))
        groups.setdefault(query.annotation, []).append(precision[-1])
    spreads = [max(g) - min(g) for g in groups.values() if len(g) > 1]
    several = [p for p, q in zip(precision, queries, strict=True) if q.more_references]
    means = np.mean(precision), np.mean(several), np.nanmean(wrong), np.mean(spreads)
    names = (f"{kind}@{k}" for kind in ("mAP", "mAP_multi", "wrong", "spread"))
    return dict(zip(names, 100 * np.array(means), strict=True)), precision, wrong


def _outcomes(queries, ranking):
    return Outcomes.collect(
        ["all"] * len(queries),
        ranking.annotations,
        ranking.placement().ranks(),
        None,
        ranking.average_precisions(),
        wrong=ranking.wrong_shares(),
        several=ranking.several_references(),
    )


def test_every_number_by_brute_force(judged):
    queries, scores, ranking = judged
    expected, precision, wrong = _numbers(queries, scores, [f"i{n}" for n in range(7)])
    np.testing.assert_allclose(ranking.average_precisions()[K], precision)
    np.testing.assert_allclose(ranking.wrong_shares()[K], wrong)
    assert np.isnan(wrong).any()
    numbers = summarize(_SMALL, _outcomes(queries, ranking))
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)


def test_records_have_judgments_and_no_reference(judged):
    queries, _, ranking = judged
    for query, record in zip(queries, ranking.records, strict=True):
        assert not {query.reference, *query.more_references} & set(record["top"])
        assert record["wrong"] == list(query.wrong)
        assert record.get("more_references", []) == list(query.more_references)


def test_intervals_resample_annotations(judged):
    """The draws are those of a plain loop over annotations."""
    queries, _, ranking = judged
    outcomes = _outcomes(queries, ranking)
    low, high = bootstrap_intervals(_SMALL, outcomes)[f"spread@{K}"]
    spreads = outcomes.values(f"spread@{K}")
    rows = np.unique(outcomes.annotation, return_inverse=True)[1]
    rng = np.random.default_rng(0)
    draws = []
    for drawn in rng.integers(rows.max() + 1, size=(2000, rows.max() + 1)):
        times = np.bincount(drawn, minlength=rows.max() + 1)[rows]
        counted = ~np.isnan(spreads)
        draws.append((times * np.nan_to_num(spreads)).sum() / (times * counted).sum())
    assert (low, high) == pytest.approx(tuple(np.percentile(draws, (2.5, 97.5))))


def test_numbers_over_no_query_are_absent():
    plain = Outcomes.collect(
        ["all"] * 2, ["a", "b"], np.zeros(2), None, {10: np.ones(2)}, wrong={10: np.full(2, np.nan)}
    )
    numbers = summarize(JUDGED, plain)
    assert numbers["mAP@10"] == 100
    lacking = {"mAP_multi@10", "wrong@10", "spread@10"}
    assert not lacking & numbers.keys()
    assert not lacking & bootstrap_intervals(JUDGED, plain).keys()


def test_what_is_stored_is_read_again(judged):
    queries, _, ranking = judged
    outcomes = _outcomes(queries, ranking)
    again = Outcomes.from_dict(json.loads(json.dumps(outcomes.to_dict(), allow_nan=False)))
    np.testing.assert_array_equal(again.wrong[K], outcomes.wrong[K])
    np.testing.assert_array_equal(again.several, outcomes.several)
    fields = outcomes.to_dict()
    fields["wrong"]["3"][-1] = 2.0
    with pytest.raises(ValueError, match=r"wrong 3 has 2\.0 at position 19"):
        Outcomes.from_dict(fields)


def test_metrics_without_their_precision_are_refused():
    with pytest.raises(ValueError, match=r"spread@5 is computed from mAP@5, which is absent"):
        Protocol("x", "all", "one", "it", ("mAP@10", "spread@5"), ("mAP@10",))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder with judgments, evaluated by an untrained model."""
    root = fake_data.judged_folder(tmp_path_factory.mktemp("judged"))
    records = folder.read(str(root))
    tokenizer = Vocabulary.build(["is red longer has a v"])
    assert len(tokenizer) == VOCABULARY
    model, variables = init(small_config("cmap", image_name="cells"))
    preprocessing = ImagePreprocessing(resize=72, crop=64)
    loader = open_loader(records, preprocessing, FailedImages("fail"))
    data = EvaluationData(
        records.evaluations["val"], tokenizer, preprocessing, loader, batch_size=8
    )
    evaluator = Evaluator(model, sharding.make_mesh())
    return evaluator, variables, data, evaluator(variables, data, rankings=True)


def _scores(evaluator, variables, data, queries, gallery):
    """Scores of a batch of queries in float64, by the evaluator's compiled model alone."""
    pyramid = evaluator._encode_all(variables, data).gallery.astype(np.float64)
    means = np.stack(
        [pyramid[:, [data.positions[i] for i in q.references]].mean(axis=1) for q in queries],
        axis=1,
    )
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    (batch,) = data.query_batches(queries)
    mesh = sharding.make_mesh()
    composed = evaluator._programs.compose(
        variables,
        sharding.place_same(means.astype(np.float32), mesh, axis=1),
        *(sharding.place_same(batch[name], mesh) for name in ("text_tokens", "text_lengths")),
    )
    targets = pyramid[:, [data.positions[i] for i in gallery]]
    scores = 0
    for branch in composed.branches:
        numerator, weight = (np.asarray(x, np.float64) for x in (branch.numerator, branch.weight))
        products = np.einsum("lbd,lnd->lbn", np.broadcast_to(numerator, means.shape), targets)
        squares = np.einsum("lbd,lnd->lbn", np.broadcast_to(weight, means.shape) ** 2, targets**2)
        scores = scores + (products / np.sqrt(squares)).sum(axis=0)
    return scores


@pytest.mark.parametrize("name", ["folder/val-judged", "folder/val-judged-gallery"])
def test_a_folder_with_judgments_is_evaluated(evaluated, name):
    evaluator, variables, data, result = evaluated
    assert list(result.protocols) == [
        f"folder/val{form}{suffix}" for form in ("", "-judged") for suffix in ("", "-gallery")
    ]
    evaluation = next(e for e in data.evaluations if e.protocol.name == name)
    queries, gallery, found = (
        evaluation.queries,
        evaluation.galleries["all"],
        result.protocols[name],
    )
    assert (len(queries), len(gallery)) == (8, 16 if "gallery" in name else 8)
    scores = _scores(evaluator, variables, data, queries, gallery)
    for query, row, record in zip(queries, scores, found.rankings, strict=True):
        order = [gallery[i] for i in np.argsort(-row)]
        assert record["top"] == [i for i in order if i not in query.references], query.id
    expected = _numbers(queries, scores, gallery, k=10)[0]
    assert {n: found.numbers[n] for n in expected} == pytest.approx(expected)


def test_results_are_printed_and_compared(evaluated):
    *_, result = evaluated
    stored = StoredResults(0, with_intervals(result), EvaluationFacts(data_set=DataFacts()))
    stored = StoredResults.from_dict(json.loads(json.dumps(stored.to_dict(), allow_nan=False)))
    page = results_table(stored)
    assert "wrong@10 and spread@10: the lower, the better." in page
    judged = Result({n: r for n, r in stored.result.protocols.items() if "judged" in n})
    same = compare(dataclasses.replace(stored, result=judged), stored)
    assert same["folder/val-judged"]["wrong@10"].interval == (0, 0)
