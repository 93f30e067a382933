"""The evaluator against dense scores, on small data sets of every protocol's kind."""

import dataclasses
import shutil

import compilations
import fake_data
import jax
import numpy as np
import pytest
from small import VOCABULARY, init, small_config

from cmap_jax import scoring, sharding
from cmap_jax.evaluation.evaluator import Evaluator
from cmap_jax.models.encoders.clip import WORDS_END
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.retrieval import scan
from cmap_jax.retrieval.plan import Plan
from input_pipeline.batching import EvaluationData, EvaluationSizes
from input_pipeline.images.decoding import open_loader
from input_pipeline.images.loading import FailedImages
from input_pipeline.readers import circo, cirr, fashion_iq, folder

_WORDS = ["is red longer has a v"]  # with the five special tokens: VOCABULARY


class _Everything:
    """A model, and an evaluator of it, and its dense scores."""

    def __init__(self, variant: str = "cmap", image_name: str = "cells", **fields):
        self.tokenizer = Vocabulary.build(_WORDS)
        assert len(self.tokenizer) == VOCABULARY
        config = small_config(variant, image_name=image_name, **fields)
        self.model, self.variables = init(config)
        self.evaluator = Evaluator(self.model, sharding.make_mesh(), gallery_chunk=5)

    def data(self, records, evaluations, sizes=None) -> EvaluationData:
        preprocessing = ImagePreprocessing(resize=72, crop=64)
        loader = open_loader(records, preprocessing, FailedImages("fail"))
        return EvaluationData(
            evaluations, self.tokenizer, preprocessing, loader, batch_size=8, sizes=sizes
        )

    def dense(self, data, queries, gallery, blind=()) -> np.ndarray:
        """Scores of queries against a gallery, computed in one piece."""
        apply = self.model.apply
        pixels = np.concatenate([b["image"][b["mask"]] for b in data.image_batches()])
        texts = [("",) if "image" in blind else q.captions for q in queries]

        @jax.jit
        def encode(variables, pixels, tokens, lengths):
            references = apply(variables, pixels, method="encode_references")
            pyramid = apply(variables, references, method="embed_gallery")
            return references, pyramid, apply(variables, tokens, lengths, method="encode_text")

        inputs = pixels, *self.tokenizer.encode_batch(texts)
        references, pyramid, text = encode(self.variables, *inputs)
        references = references[:, [data.positions[q.reference] for q in queries]]
        references = references * (0 if "text" in blind else 1)
        query = apply(self.variables, references, text, method="compose")
        return np.array(scoring.score(query, pyramid[:, [data.positions[i] for i in gallery]]))


@pytest.fixture(scope="module")
def everything():
    return _Everything()


def _rank(row, gallery, query, exclude=True) -> int:
    row = row.copy()
    if exclude and query.reference in gallery:
        row[gallery.index(query.reference)] = -np.inf
    return int((row > max(row[gallery.index(t)] for t in query.targets if t in gallery)).sum())


def test_fashion_iq_side_by_side(everything, tmp_path):
    records = fashion_iq.read(str(fake_data.fashion_iq(tmp_path)))
    data = everything.data(records, records.evaluations["val"])
    result = everything.evaluator(everything.variables, data, rankings=True, shortcuts=True)
    assert list(result.protocols) == [e.protocol.name for e in records.evaluations["val"]]
    for evaluation in records.evaluations["val"]:
        name = evaluation.protocol.name
        expected = []
        for category, gallery in evaluation.galleries.items():
            queries = [q for q in evaluation.queries if q.category == category]
            scores = everything.dense(data, queries, gallery)
            if evaluation.protocol.captions == "averaged":
                queries = queries[::2]
                scores = scores.reshape(len(queries), 2, -1).mean(axis=1)
            expected += [_rank(r, gallery, q) for r, q in zip(scores, queries, strict=True)]
        assert result.protocols[name].outcomes.rank.tolist() == expected, name
        assert [r["rank"] for r in result.protocols[name].rankings] == expected
        assert result.protocols[name].numbers["queries"] == len(expected)
    assert result.headline() == result.protocols["fashioniq/original"].numbers["mR"]

    # Half of each query taken away.
    original = records.evaluations["val"][0]
    for half in ("text", "image"):
        ranks = []
        for category, gallery in original.galleries.items():
            queries = [q for q in original.queries if q.category == category]
            scores = everything.dense(data, queries, gallery, blind=(half,))
            ranks += [_rank(r, gallery, q) for r, q in zip(scores, queries, strict=True)]
        found = result.protocols["fashioniq/original"].shortcuts[half]
        assert found["mean_rank"] == pytest.approx(np.mean(ranks) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["cmap", "artemis", "magiclens"])
def test_variants_over_a_clip_side_by_side(variant, tmp_path):
    records = fashion_iq.read(str(fake_data.fashion_iq(tmp_path, categories=("dress",))))
    parts = _Everything(variant, "clip", text_tokenizer="words", text_end_token=WORDS_END)
    evaluation = records.evaluations["val"][0]
    data = parts.data(records, [evaluation])
    result = parts.evaluator(parts.variables, data)
    gallery = evaluation.galleries["dress"]
    scores = parts.dense(data, evaluation.queries, gallery)
    expected = [_rank(r, gallery, q) for r, q in zip(scores, evaluation.queries, strict=True)]
    outcomes = result.protocols["fashioniq/original"].outcomes
    assert outcomes.rank.tolist() == expected
    assert not outcomes.tied.any()
    assert len(set(expected)) > 2


def test_cirr_and_circo(everything, tmp_path):
    for module, write, exclude in ((cirr, fake_data.cirr, True), (circo, fake_data.circo, False)):
        records = module.read(str(write(tmp_path / module.__name__)))
        (evaluation,) = records.evaluations["val"]
        data = everything.data(records, [evaluation])
        result = everything.evaluator(everything.variables, data)
        gallery = evaluation.galleries["all"]
        scores = everything.dense(data, evaluation.queries, gallery)
        expected = [
            _rank(r, gallery, q, exclude) for r, q in zip(scores, evaluation.queries, strict=True)
        ]
        assert result.protocols[evaluation.protocol.name].outcomes.rank.tolist() == expected
        # The queries that nobody here knows the answers of.
        (split,) = records.unlabelled
        records = records.for_submission(split)
        data = everything.data(records, records.evaluations[split])
        (found,) = everything.evaluator.search(everything.variables, data).values()
        query = records.evaluations[split][0].queries[1]
        row = everything.dense(
            data, [query], gallery := records.evaluations[split][0].galleries["all"]
        )[0]
        best = [gallery[i] for i in np.argsort(-row, kind="stable")]
        if exclude:
            best.remove(query.reference)
        assert found[1]["top"] == best[:50]


def test_four_programs_serve_all_splits_and_protocols(everything, tmp_path):
    """Encode, compose, search, and search with two captions' scores averaged."""
    records = fashion_iq.read(str(fake_data.fashion_iq(tmp_path, images=40, annotations=30)))
    val = records.evaluations["val"]
    assert "averaged" in {e.protocol.captions for e in val}

    def shrink(evaluation, images: int):
        """Another split: smaller galleries, fewer queries, shorter texts."""
        galleries = {c: ids[:images] for c, ids in evaluation.galleries.items()}
        kept = {image for ids in galleries.values() for image in ids}
        queries = [q for q in evaluation.queries if {q.reference, *q.targets} <= kept]
        queries = tuple(dataclasses.replace(q, captions=("red",)) for q in queries)
        return dataclasses.replace(evaluation, galleries=galleries, queries=queries)

    splits = [[shrink(val[0], 9)], list(val), [shrink(val[1], 23)]]
    sizes = EvaluationSizes.of([e for split in splits for e in split], everything.tokenizer)
    evaluator = Evaluator(everything.model, sharding.make_mesh(), gallery_chunk=5)
    scan.program(Plan("cpu", 32, 32)).clear_cache()
    with compilations.counted() as seconds:
        for split in splits:
            data = everything.data(records, split, sizes)
            evaluator(everything.variables, data, examples=2)
            evaluator(everything.variables, data, rankings=True, shortcuts=True)
    assert len(seconds) <= 4


def test_three_programs_serve_a_protocol_with_subsets(everything, tmp_path):
    records = cirr.read(str(fake_data.cirr(tmp_path)))
    data = everything.data(records, records.evaluations["val"])
    evaluator = Evaluator(everything.model, sharding.make_mesh(), gallery_chunk=5)
    scan.program(Plan("cpu", 32, 32)).clear_cache()
    with compilations.counted() as seconds:
        evaluator(everything.variables, data, rankings=True)
        evaluator(everything.variables, data)
    assert len(seconds) <= 3


def test_examples_are_spread_over_the_queries(everything, tmp_path):
    records = fashion_iq.read(str(fake_data.fashion_iq(tmp_path)))
    data = everything.data(records, records.evaluations["val"])
    every = everything.evaluator(everything.variables, data, rankings=True, examples=3)
    some = everything.evaluator(everything.variables, data, examples=3)
    name, *others = some.protocols
    queries = records.evaluations["val"][0].queries
    assert [r["query"] for r in some.protocols[name].examples] == [
        queries[0].id,
        queries[len(queries) // 2].id,
        queries[-1].id,
    ]
    assert some.protocols[name].examples == every.protocols[name].examples
    assert not any(some.protocols[other].examples for other in others)
    assert not any(r.rankings for r in some.protocols.values())
    assert len(every.protocols[name].rankings) == len(queries)
    for other in some.protocols:
        assert some.protocols[other].numbers == every.protocols[other].numbers


def test_a_half_that_tells_nothing_is_not_a_result(tmp_path):
    """Without its reference this variant scores all images alike: that is no perfect recall."""
    records = fashion_iq.read(str(fake_data.fashion_iq(tmp_path, categories=("dress",))))
    parts = _Everything("image_only")
    data = parts.data(records, records.evaluations["val"][:1])
    result = parts.evaluator(parts.variables, data, shortcuts=True)
    original = result.protocols["fashioniq/original"]
    assert original.shortcuts == {"text": None, "image": original.numbers}


def test_a_constant_model_is_not_perfect(everything, tmp_path, caplog):
    """Weights that are all zero: every image has the same score, and the warning says so."""
    records = fashion_iq.read(str(fake_data.fashion_iq(tmp_path, categories=("dress",))))
    data = everything.data(records, records.evaluations["val"][:1])
    zeros = jax.tree.map(np.zeros_like, everything.variables)
    result = everything.evaluator(zeros, data, rankings=True)
    name = "fashioniq/original"
    images = len(records.evaluations["val"][0].galleries["dress"])
    # All but the excluded reference and the target itself tie with the target.
    ties = images - 2
    outcomes = result.protocols[name].outcomes
    assert outcomes.tied.tolist() == [ties] * len(outcomes)
    assert set(outcomes.rank) == {ties / 2}
    records = result.protocols[name].rankings
    assert {(r["rank"], r["tied"]) for r in records} == {(ties / 2, ties)}
    assert result.protocols[name].numbers["tied_queries"] == 100.0
    assert "100.0% of the queries has exactly the score of a wrong one" in caplog.text
    assert "collapsed or constant embeddings" in caplog.text


def test_copies_of_every_image_tie_exactly(everything, tmp_path):
    """Five files of the same bytes are encoded at different places of a batch, and still tie."""
    root = fake_data.folder(tmp_path)
    names = [f"val/{number}.jpg" for number in range(8)]
    copies = [f"{number}/{image}" for number in range(4) for image in names]
    for copy in copies:
        (root / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / copy[2:], root / copy)

    def evaluate(gallery):
        (root / "gallery.txt").write_text("\n".join(gallery) + "\n")
        records = folder.read(str(root))
        (evaluation,) = (
            e for e in records.evaluations["val"] if e.protocol.name == "folder/val-gallery"
        )
        data = everything.data(records, [evaluation])
        result = everything.evaluator(everything.variables, data)
        of_protocol = result.protocols["folder/val-gallery"]
        return of_protocol.outcomes, of_protocol.numbers

    single, alone = evaluate(names)
    assert "tied_queries" not in alone
    rng = np.random.default_rng(0)
    for order in (names + copies, list(rng.permutation(names + copies))):
        outcomes, numbers = evaluate(order)
        assert numbers["tied_queries"] == 100.0
        assert outcomes.tied.tolist() == [4] * len(single)
        # The reference is excluded by its name alone; its copies stand in the list.
        assert set(outcomes.rank - 5 * single.rank - 2) <= {0.0, 4.0}


def test_conditions_know_the_gallery_and_the_queries(tmp_path):
    records = fashion_iq.read(str(fake_data.fashion_iq(tmp_path)))
    evaluation = records.evaluations["val"][0]
    before = evaluation.conditions()
    assert before == dataclasses.replace(evaluation, skipped=3).conditions()
    reordered = {c: g[::-1] for c, g in evaluation.galleries.items()}
    assert dataclasses.replace(evaluation, galleries=reordered).conditions() == before
    less = evaluation.without({evaluation.galleries["dress"][-1]})
    assert less.conditions()["gallery"] != before["gallery"]
    other = dataclasses.replace(evaluation, queries=evaluation.queries[1:]).conditions()
    assert other["gallery"] == before["gallery"]
    assert other["queries"] != before["queries"]


@pytest.mark.slow
def test_the_chunk_changes_no_result(everything, tmp_path):
    records = fashion_iq.read(str(fake_data.fashion_iq(tmp_path)))
    data = everything.data(records, records.evaluations["val"])
    by_device = Evaluator(everything.model, sharding.make_mesh())
    first, second = (
        evaluator(everything.variables, data, rankings=True).protocols
        for evaluator in (everything.evaluator, by_device)
    )
    for name, result in first.items():
        assert second[name].numbers == result.numbers
        assert second[name].rankings == result.rankings
