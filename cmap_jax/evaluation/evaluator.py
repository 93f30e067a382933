"""Encode a split once, score every query, and report under each protocol's name (SPEC 6)."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring, sharding
from cmap_jax.evaluation.outcomes import Outcomes, summarize
from cmap_jax.evaluation.ranking import Ranking
from cmap_jax.models.cmap import CMAP
from cmap_jax.progress import track
from cmap_jax.protocols import Protocol
from cmap_jax.retrieval.exact import ExactIndex, Padding
from cmap_jax.retrieval.placement import Placement

_logger = logging.getLogger(__name__)

# The halves of a query that a shortcut leaves: the other one is taken away.
HALVES = ("text", "image")
_QUERIES_AT_ONCE = 1024  # large products are fast
_MANY_TIES = 1.0  # percent of the queries; more than this is no coincidence


@dataclasses.dataclass
class Result:
    """What an evaluation found, by the protocol's name; the first protocol goes first.

    Attributes:
        definitions: the protocols.
        protocols: the numbers; see `outcomes.summarize`.
        outcomes: what became of each query.
        conditions: what two results must share to be compared.
        rankings: a record a query, where they were asked for; see `Ranking`.
        examples: records of a few queries of the first protocol, where they were asked for.
        shortcuts: where they were asked for, by half ("text" or "image") the numbers of the same
            model with the other half of each query taken away; None where it then tells no image
            from another.
    """

    definitions: dict[str, Protocol] = dataclasses.field(default_factory=dict)
    protocols: dict[str, dict[str, float | int]] = dataclasses.field(default_factory=dict)
    outcomes: dict[str, Outcomes] = dataclasses.field(default_factory=dict)
    conditions: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    rankings: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
    shortcuts: dict[str, dict[str, dict[str, float | int] | None]] = dataclasses.field(
        default_factory=dict
    )

    def headline(self) -> float:
        """Return the first protocol's one number: what chooses the best checkpoint."""
        name, protocol = next(iter(self.definitions.items()))
        return self.protocols[name][protocol.headline_name]

    def merge(self, other: "Result") -> None:
        """Add another split's results."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).update(getattr(other, field.name))


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

    In several processes all of them call it alike; each has its share of the image batches, all of
    the embeddings, and the result.
    """

    def __init__(self, model: CMAP, mesh: Mesh, *, gallery_chunk: int = 1024):
        """Compile nothing yet; the programs are kept from call to call.

        Args:
            model: the model.
            mesh: devices; batches are split over them.
            gallery_chunk: images scored at once.
        """
        self._mesh = mesh
        self._gallery_chunk = gallery_chunk

        def encode(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            pyramid = model.apply(variables, batch["image"], method="encode_images")
            return {"pyramid": pyramid, "index": batch["index"], "mask": batch["mask"]}

        def compose(variables: Any, pyramid: jax.Array, tokens: jax.Array, lengths: jax.Array):
            text = model.apply(variables, tokens, lengths, method="encode_text")
            query = model.apply(variables, pyramid, text, method="compose")
            return query.replace(preservation=None)

        # Whole on every device: every process can read it.
        whole = sharding.replicated(mesh)
        self._encode = jax.jit(encode, out_shardings=whole)
        self._compose = jax.jit(compose, out_shardings=whole)

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
            variables: the model's.
            data: what `input_pipeline.batching.EvaluationData` offers: ``evaluations``,
                ``image_ids``, ``positions``, ``batch_size``, ``sizes``, ``image_batches()``,
                ``is_usable()`` and ``query_batches(queries)``. Splits of the same ``sizes`` share
                all compiled programs.
            rankings: also return the best images of every query.
            examples: also return the best images of so many queries of the first protocol, spread
                evenly.
            shortcuts: also evaluate with half of each query taken away: an empty text for the
                image alone, a reference whose embeddings are zero for the text alone.
            before_batch: called before every batch; the evaluation ends with what it raises.

        Raises:
            ValueError: unusable images leave no query of an evaluation.
        """
        started = time.monotonic()
        data = _Interruptible(data, before_batch)
        pyramid = self._encode_all(variables, data)
        result = Result()
        chosen = _spread(data.evaluations[0], examples)
        for evaluation, found in self._rank_all(
            variables, data, pyramid, rankings, examples=chosen
        ):
            name = evaluation.protocol.name
            if not found:
                raise ValueError(
                    f"{name}: no query is left, unusable images took away {evaluation.skipped}"
                )
            outcomes = _collect(evaluation, found)
            result.definitions[name] = evaluation.protocol
            result.outcomes[name] = outcomes
            result.protocols[name] = _numbers(evaluation, outcomes)
            result.conditions[name] = evaluation.conditions()
            records = [record for r in found.values() for record in r.records]
            result.rankings[name] = records if rankings else []
            if len(result.definitions) == 1 and chosen:
                result.examples[name] = [r for r in records if r["query"] in chosen]
            result.shortcuts[name] = {}
            _warn_of_ties(name, result.protocols[name])
        for half in HALVES if shortcuts else ():
            for evaluation, found in self._rank_all(variables, data, pyramid, False, half):
                numbers = _numbers(evaluation, _collect(evaluation, found)) if found else None
                result.shortcuts[evaluation.protocol.name][half] = numbers
        _logger.info(
            "evaluated %d images and %d queries in %.1f s",
            len(data.image_ids),
            sum(len(e.queries) for e in data.evaluations),
            time.monotonic() - started,
        )
        return result

    def search(self, variables: Any, data: Any) -> dict[str, list[dict]]:
        """Return every query's best images by protocol, for queries with or without answers."""
        pyramid = self._encode_all(variables, data)
        return {
            evaluation.protocol.name: [record for r in found.values() for record in r.records]
            for evaluation, found in self._rank_all(variables, data, pyramid, True)
        }

    def _encode_all(self, variables: Any, data: Any) -> np.ndarray:
        """Return the pyramid of all the split's images, [L, N, D] float32, by their index."""
        total = len(data.image_ids)
        pyramid, seen = None, np.zeros(total, np.int64)
        batches = track(data.image_batches(), data.image_batch_count(), "encoding", "batches")
        for batch in batches:
            share = {name: batch[name] for name in ("image", "index", "mask")}
            placed = sharding.place_batch(share, self._mesh)
            found = jax.tree.map(np.asarray, self._encode(variables, placed))
            encoded, mask = found["pyramid"], found["mask"]  # [L, B, D], [B]
            if pyramid is None:
                pyramid = np.empty((encoded.shape[0], total, encoded.shape[2]), np.float32)
            index = found["index"][mask]
            pyramid[:, index] = encoded[:, mask]
            seen[index] += 1
        # An image that failed in another process is missing here as well.
        data.leave_out([data.image_ids[i] for i in np.flatnonzero(data.is_usable() & (seen == 0))])
        if not (seen == data.is_usable()).all():
            raise ValueError("the image batches must bring every usable image exactly once")
        return pyramid

    def _rank_all(
        self,
        variables: Any,
        data: Any,
        pyramid: np.ndarray,
        keep_records: bool,
        half: str | None = None,
        examples: Set[str] = frozenset(),
    ) -> Iterator[tuple[Any, dict[str, Ranking]]]:
        """Yield each evaluation with its rankings by category, in the order of ``data``.

        ``examples`` are ids of queries of the first evaluation of which records are kept. The
        rankings are empty where ``half`` alone tells no image from another.
        """
        found: dict[int, dict[str, Ranking]] = {}
        groups: dict[tuple, list[int]] = {}  # evaluations that share their queries
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
                self._rank_category(variables, data, pyramid, mine, searched, half)
            found.update(zip(numbers, rankings, strict=True))
        for number, evaluation in enumerate(every):
            scored = {c: r for c, r in found[number].items() if r.annotations}
            yield evaluation, scored

    def _rank_category(
        self,
        variables: Any,
        data: Any,
        pyramid: np.ndarray,
        queries: Sequence,
        rankings: Sequence[tuple[Ranking, tuple[str, ...]]],
        half: str | None,
    ) -> None:
        """Compose a category's queries, each once, and feed the rankings, each with its gallery."""
        indexes = {
            gallery: ExactIndex(
                pyramid[:, [data.positions[i] for i in gallery]],
                self._mesh,
                chunk=self._gallery_chunk,
                room=data.sizes.gallery,
            )
            for gallery in dict.fromkeys(gallery for _, gallery in rankings)
        }
        start = 0
        batches = self._compose_all(variables, data, pyramid, queries, half)
        for block in _in_blocks(batches, _batches_at_once(data.batch_size)):
            if half is not None and not any(np.any(b.numerator) for b in block.branches):
                return  # all images score zero
            rows = queries[start : start + len(block)]  # what is padding comes last
            start += len(rows)
            for ranking, gallery in rankings:
                ranking.add(rows, scoring.take(block, slice(len(rows))), indexes[gallery])

    def _compose_all(
        self, variables: Any, data: Any, pyramid: np.ndarray, queries: Sequence, half: str | None
    ) -> Iterator[scoring.ComposedQuery]:
        """Yield composed queries, or ``half`` of them, a batch at a time; the last is padded.

        They are on the host: every process has all of them.
        """
        if half == "image":
            queries = [dataclasses.replace(query, captions=("",)) for query in queries]
        for batch in data.query_batches(queries):
            references = pyramid[:, batch["reference"]]  # [L, B, D]
            if half == "text":
                references = np.zeros_like(references)
            query = self._compose(
                variables,
                sharding.place_same(references, self._mesh, axis=1),
                sharding.place_same(batch["text_tokens"], self._mesh),
                sharding.place_same(batch["text_lengths"], self._mesh),
            )
            yield jax.tree.map(np.asarray, query)


def _spread(evaluation: Any, count: int) -> frozenset[str]:
    """Return the ids of some queries, from the first to the last at even distances."""
    queries = evaluation.queries
    numbers = np.linspace(0, len(queries) - 1, min(count, len(queries))).round().astype(int)
    return frozenset(queries[number].id for number in numbers)


def _collect(evaluation: Any, rankings: Mapping[str, Ranking]) -> Outcomes:
    """Join the categories' outcomes."""
    protocol = evaluation.protocol
    found = list(rankings.values())
    subset_ranks = None
    if protocol.cutoffs("R_subset"):
        subset_ranks = np.concatenate([r.subset_ranks() for r in found])
    precisions = [r.average_precisions() for r in found]
    placement = Placement.concatenate([r.placement() for r in found])
    return Outcomes.collect(
        [category for category, r in rankings.items() for _ in r.annotations],
        [annotation for r in found for annotation in r.annotations],
        placement.ranks(),
        subset_ranks,
        {k: np.concatenate([p[k] for p in precisions]) for k in protocol.cutoffs("mAP")},
        placement.tied,
    )


def _numbers(evaluation: Any, outcomes: Outcomes) -> dict[str, float | int]:
    numbers = summarize(evaluation.protocol, outcomes)
    numbers["skipped"] += evaluation.skipped
    numbers["gallery_images"] = sum(map(len, evaluation.galleries.values()))
    return numbers


def _warn_of_ties(protocol: str, numbers: Mapping[str, float | int]) -> None:
    """Warn where so many queries are tied that something must be wrong."""
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
    """Return how many batches of queries are scored at once.

    The two orders of an annotation follow one another; blocks of even length never part them.
    """
    most = max(_QUERIES_AT_ONCE // batch_size, 1)
    return max(most // 2 * 2, 2) if batch_size % 2 else most


def _padding(data: Any) -> Padding:
    """Return the sizes that all searches in a split are filled up to: one program serves them."""
    batches = -(-data.sizes.queries // data.batch_size)
    at_once = min(batches, _batches_at_once(data.batch_size))
    return Padding(queries=at_once * data.batch_size, positions=data.sizes.targets)


def _in_blocks(
    batches: Iterator[scoring.ComposedQuery], most: int
) -> Iterator[scoring.ComposedQuery]:
    """Join batches to blocks of ``most`` batches; the last one may have fewer."""

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
