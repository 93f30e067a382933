"""Encode a split once, score every query, and report under each protocol's name.

See docs/method.md, section 6.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring, sharding
from cmap_jax.encoding import EncodePrograms, ImageEmbeddings
from cmap_jax.evaluation.outcomes import Outcomes, summarize
from cmap_jax.evaluation.overlap import OverlapMeasure
from cmap_jax.evaluation.ranking import Ranking
from cmap_jax.evaluation.results import Numbers, ProtocolResult, Result
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import find_variant
from cmap_jax.progress import track
from cmap_jax.retrieval.exact import ExactIndex, Padding
from cmap_jax.retrieval.placement import Placement
from cmap_jax.retrieval.queries import average

_logger = logging.getLogger(__name__)

# A shortcut ranks the gallery by one half of each query; the other half is taken away.
HALVES = ("text", "image")
_QUERIES_AT_ONCE = 1024  # one large matrix product is faster than several small ones
_MANY_TIES = 1.0  # percent of the queries; a larger share of ties has a cause


class _Interruptible:
    """A split that calls a function before it yields each batch; the function may raise."""

    def __init__(self, data: Any, before_batch: Callable[[], None]):
        self._data = data
        self._before_batch = before_batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def image_batches(self) -> Iterator[dict]:
        return self._watch(self._data.image_batches())

    def query_batches(self, queries: Sequence) -> Iterator[dict]:
        return self._watch(self._data.query_batches(queries))

    def _watch(self, batches: Iterator[dict]) -> Iterator[dict]:
        for batch in batches:
            self._before_batch()
            yield batch


class Evaluator:
    """Evaluates a model's variables on the splits that it is called with.

    In several processes all of them call it alike. Each process encodes its shard of the image
    batches; the embeddings and the result are the same in all of them.
    """

    def __init__(
        self, model: CMAP, mesh: Mesh, *, gallery_chunk: int | None = None, overlap: int = 0
    ):
        """Compile nothing yet; the programs are kept from call to call.

        Args:
            model: the Flax module whose methods are compiled.
            mesh: devices; batches are sharded over them.
            gallery_chunk: images that a device scores at once; None: by the device and the number
                of queries.
            overlap: queries of each first protocol on which the modified and the preserved part
                are compared; see `cmap_jax.evaluation.overlap`. 0: none.

        Raises:
            ValueError: an overlap of a method without these parts.
        """
        self._mesh = mesh
        self._gallery_chunk = gallery_chunk
        self._programs = EncodePrograms(model, mesh)
        self._measure_overlap = OverlapMeasure(model, mesh, overlap) if overlap else None
        self._optional = find_variant(model.variant).optional

    def __call__(
        self,
        variables: Any,
        data: Any,
        *,
        rankings: bool = False,
        examples: int = 0,
        shortcuts: bool = False,
        before_batch: Callable[[], None] = lambda: None,
    ) -> Result:
        """Evaluate on a split.

        Args:
            variables: the model's variables.
            data: an `input_pipeline.batching.EvaluationData`, or an object with its attributes and
                methods; ``load`` is called for an overlap alone. Splits of the same ``sizes`` share
                all compiled programs.
            rankings: whether the best images of every query are recorded.
            examples: number of queries of the first protocol, spread evenly, whose best images are
                recorded.
            shortcuts: whether each half of the queries is evaluated alone too. For the image alone
                the text is missing where the method allows that, else empty; for the text alone
                the reference's embeddings are zero.
            before_batch: called before every batch; the evaluation ends with what it raises.

        Raises:
            ValueError: unusable images leave no query of an evaluation.
        """
        started = time.monotonic()
        data = _Interruptible(data, before_batch)
        pictures = self._encode_all(variables, data)
        chosen = _spread(data.evaluations[0], examples)
        results: dict[str, ProtocolResult] = {}
        for evaluation, ranked in self._rank_all(
            variables, data, pictures, keep_records=rankings, examples=chosen
        ):
            name = evaluation.protocol.name
            if not ranked:
                raise ValueError(
                    f"{name}: no query is left, unusable images took away {evaluation.skipped}"
                )
            outcomes = _collect(evaluation, ranked)
            records = [record for r in ranked.values() for record in r.records]
            is_first = not results
            overlap = {}
            if is_first and self._measure_overlap:
                overlap = self._measure_overlap(variables, data, evaluation, pictures.gallery)
            results[name] = ProtocolResult(
                protocol=evaluation.protocol,
                numbers=_numbers(evaluation, outcomes),
                outcomes=outcomes,
                conditions=evaluation.conditions(),
                overlap=overlap,
                rankings=records if rankings else [],
                examples=[r for r in records if r["query"] in chosen] if is_first else [],
            )
            _warn_of_ties(name, results[name].numbers)
        for half in HALVES if shortcuts else ():
            for evaluation, ranked in self._rank_all(variables, data, pictures, half=half):
                numbers = _numbers(evaluation, _collect(evaluation, ranked)) if ranked else None
                name = evaluation.protocol.name
                halves = {**results[name].shortcuts, half: numbers}
                results[name] = dataclasses.replace(results[name], shortcuts=halves)
        _logger.info(
            "evaluated %d images and %d queries in %.1f s",
            len(data.image_ids),
            sum(len(e.queries) for e in data.evaluations),
            time.monotonic() - started,
        )
        return Result(results)

    def search(self, variables: Any, data: Any) -> dict[str, list[dict]]:
        """Return the records of all queries by protocol, for queries with or without answers.

        Args:
            variables: the model's variables.
            data: as `__call__` takes it.

        Returns:
            By the protocol's name, a record a query; see `ranking.Ranking`.
        """
        pictures = self._encode_all(variables, data)
        return {
            evaluation.protocol.name: [record for r in ranked.values() for record in r.records]
            for evaluation, ranked in self._rank_all(variables, data, pictures, keep_records=True)
        }

    def _encode_all(self, variables: Any, data: Any) -> ImageEmbeddings:
        """Return the embeddings of all images of the split in their order, [L, N, D] float32."""
        total = len(data.image_ids)
        pictures, seen = None, np.zeros(total, np.int64)
        batches = track(data.image_batches(), data.image_batch_count(), "encoding", "batches")
        for batch in batches:
            shard = {name: batch[name] for name in ("image", "index", "mask")}
            rows = sharding.place_batch(shard, self._mesh)
            encoded, rows = jax.tree.map(
                np.asarray, self._programs.encode_both(variables, rows.pop("image"), rows)
            )  # [L, B, D]; [B] each
            if pictures is None:
                pictures = jax.tree.map(
                    lambda x: np.empty((x.shape[0], total, x.shape[2]), np.float32), encoded
                )
            mask = rows["mask"]
            index = rows["index"][mask]
            for array, part in zip(
                jax.tree.leaves(pictures), jax.tree.leaves(encoded), strict=True
            ):
                array[:, index] = part[:, mask]
            seen[index] += 1
        # An image that failed in another process has no embedding here either.
        data.leave_out([data.image_ids[i] for i in np.flatnonzero(data.is_usable() & (seen == 0))])
        if not (seen == data.is_usable()).all():
            raise ValueError("the image batches must bring every usable image exactly once")
        return pictures

    def _rank_all(
        self,
        variables: Any,
        data: Any,
        pictures: ImageEmbeddings,
        *,
        keep_records: bool = False,
        half: str | None = None,
        examples: Set[str] = frozenset(),
    ) -> Iterator[tuple[Any, dict[str, Ranking]]]:
        """Yield each evaluation with its rankings by category, in the order of ``data``.

        Args:
            variables: the model's variables.
            data: the split.
            pictures: embeddings of its images, [L, N, D].
            keep_records: whether every query is recorded.
            half: the half of the queries to rank by; None: whole queries. The rankings are empty
                where this half scores all images alike.
            examples: ids of queries of the first evaluation that are recorded in any case.
        """
        ranked: dict[int, dict[str, Ranking]] = {}
        groups: dict[tuple, list[int]] = {}  # numbers of the evaluations that share their queries
        every, padding = data.evaluations, _padding(data)
        for number, evaluation in enumerate(every):
            groups.setdefault(tuple(evaluation.queries), []).append(number)
        for queries, numbers in groups.items():
            rankings = [
                {
                    category: Ranking(
                        every[number].protocol,
                        gallery,
                        keep_records=keep_records,
                        examples=frozenset() if number else examples,
                        padding=padding,
                    )
                    for category, gallery in every[number].galleries.items()
                }
                for number in numbers
            ]
            for category in dict.fromkeys(query.category for query in queries):
                searched = [
                    (ranking[category], every[number].galleries[category])
                    for ranking, number in zip(rankings, numbers, strict=True)
                ]
                mine = [query for query in queries if query.category == category]
                self._rank_category(
                    variables, data, pictures, queries=mine, rankings=searched, half=half
                )
            ranked.update(zip(numbers, rankings, strict=True))
        for number, evaluation in enumerate(every):
            yield evaluation, {c: r for c, r in ranked[number].items() if r.annotations}

    def _rank_category(
        self,
        variables: Any,
        data: Any,
        pictures: ImageEmbeddings,
        queries: Sequence,
        rankings: Sequence[tuple[Ranking, tuple[str, ...]]],
        half: str | None,
    ) -> None:
        """Compose a category's queries once and add them to each ranking with its gallery."""
        indexes = {
            gallery: ExactIndex(
                pictures.gallery[:, [data.positions[i] for i in gallery]],
                self._mesh,
                chunk=self._gallery_chunk,
                room=data.sizes.gallery,
            )
            for gallery in dict.fromkeys(gallery for _, gallery in rankings)
        }
        start = 0
        batches = self._compose_all(variables, data, pictures, queries, half=half)
        for block in _in_blocks(batches, _batches_at_once(data.batch_size)):
            if half is not None and not any(np.any(b.numerator) for b in block.branches):
                return  # the score of every image is zero
            rows = queries[start : start + len(block)]  # the padding comes last
            start += len(rows)
            for ranking, gallery in rankings:
                ranking.add(rows, scoring.take(block, slice(len(rows))), indexes[gallery])

    def _compose_all(
        self,
        variables: Any,
        data: Any,
        pictures: ImageEmbeddings,
        queries: Sequence,
        half: str | None,
    ) -> Iterator[scoring.ComposedQuery]:
        """Yield batches of composed queries, or of one half of each; the last batch is padded.

        They are on the host, the same in every process.
        """
        has_text = half != "image" or "text" not in self._optional
        if half == "image":
            queries = [dataclasses.replace(query, captions=("",)) for query in queries]
        for batch in data.query_batches(queries):
            references = _references(pictures.for_composer, batch)  # [L, B, D]
            if half == "text":
                references = np.zeros_like(references)
            query = self._programs.compose(
                variables,
                sharding.place_same(references, self._mesh, axis=1),
                *(
                    sharding.place_same(batch[name], self._mesh) if has_text else None
                    for name in ("text_tokens", "text_lengths")
                ),
            )
            yield jax.tree.map(np.asarray, query)


def _references(pyramid: np.ndarray, batch: dict) -> np.ndarray:
    """Return the reference of each query, [L, B, D], which may stand for several.

    See docs/method.md, section 1, several references.

    Args:
        pyramid: embeddings of all images as the composer takes them, [L, N, D].
        batch: a batch of `EvaluationData.query_batches`.
    """
    first, more = batch["reference"], batch["more_references"]
    references = pyramid[:, first]  # a copy
    for row in np.flatnonzero((more >= 0).any(axis=1)):
        several = [first[row], *more[row][more[row] >= 0]]
        references[:, row] = average(pyramid[:, several])
    return references


def _spread(evaluation: Any, count: int) -> frozenset[str]:
    """Return the ids of ``count`` queries at even distances, the first and the last included."""
    queries = evaluation.queries
    numbers = np.linspace(0, len(queries) - 1, min(count, len(queries))).round().astype(int)
    return frozenset(queries[number].id for number in numbers)


def _collect(evaluation: Any, rankings: Mapping[str, Ranking]) -> Outcomes:
    """Join the outcomes of an evaluation's categories."""
    protocol = evaluation.protocol
    parts = list(rankings.values())
    subset_ranks = None
    if protocol.cutoffs("R_subset"):
        subset_ranks = np.concatenate([r.subset_ranks() for r in parts])
    precisions, wrong = (
        [f(r) for r in parts] for f in (Ranking.average_precisions, Ranking.wrong_shares)
    )
    placement = Placement.concatenate([r.placement() for r in parts])
    return Outcomes.collect(
        categories=[category for category, r in rankings.items() for _ in r.annotations],
        annotations=[annotation for r in parts for annotation in r.annotations],
        rank=placement.ranks(),
        subset_rank=subset_ranks,
        average_precision={
            k: np.concatenate([p[k] for p in precisions]) for k in protocol.cutoffs("mAP")
        },
        tied=placement.tied,
        wrong={k: np.concatenate([w[k] for w in wrong]) for k in protocol.cutoffs("wrong")},
        several=np.concatenate([r.several_references() for r in parts]),
    )


def _numbers(evaluation: Any, outcomes: Outcomes) -> Numbers:
    """Return the numbers of an evaluation, with its lost queries and the size of its galleries."""
    numbers = summarize(evaluation.protocol, outcomes)
    numbers["skipped"] += evaluation.skipped
    numbers["gallery_images"] = sum(map(len, evaluation.galleries.values()))
    return numbers


def _warn_of_ties(protocol: str, numbers: Numbers) -> None:
    """Warn if the share of tied queries shows that the model or the data are broken."""
    tied = numbers.get("tied_queries", 0.0)
    if tied > _MANY_TIES:
        _logger.warning(
            "%s: the right image of %.1f%% of the queries has exactly the score of a wrong one. "
            "This usually means collapsed or constant embeddings (a training that diverged, "
            "weights that were not read), or identical images in the gallery. Ties count in "
            "nobody's favour: their rank is the mean over all orders",
            protocol,
            tied,
        )


def _batches_at_once(batch_size: int) -> int:
    """Return the number of batches of queries that are scored at once.

    A block of even length never separates the two caption orders of an annotation.
    """
    most = max(_QUERIES_AT_ONCE // batch_size, 1)
    return max(most // 2 * 2, 2) if batch_size % 2 else most


def _padding(data: Any) -> Padding:
    """Return the sizes to which all searches in a split are padded, for one compiled program."""
    batches = -(-data.sizes.queries // data.batch_size)
    at_once = min(batches, _batches_at_once(data.batch_size))
    return Padding(queries=at_once * data.batch_size, positions=data.sizes.targets)


def _in_blocks(
    batches: Iterator[scoring.ComposedQuery], most: int
) -> Iterator[scoring.ComposedQuery]:
    """Join batches into blocks of ``most`` batches; the last block may have fewer."""

    def join(parts: list[scoring.ComposedQuery]) -> scoring.ComposedQuery:
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)

    block: list[scoring.ComposedQuery] = []
    for batch in batches:
        block.append(batch)
        if len(block) == most:
            yield join(block)
            block = []
    if block:
        yield join(block)
