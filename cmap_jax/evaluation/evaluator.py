"""Encode a split once, score every query, and report under each protocol's name (SPEC 6)."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring, sharding
from cmap_jax.evaluation import metrics
from cmap_jax.models.cmap import CMAP

TOP = 50  # images a query in the rankings
_REPORT_EVERY = 10.0  # seconds
_QUERIES_AT_ONCE = 1024
_SCORES_AT_ONCE = 2**26


@dataclasses.dataclass
class Result:
    """What an evaluation found.

    Attributes:
        protocols: the numbers of each protocol, by its name; see `metrics.summarize`.
        rankings: a record a query for each protocol, where they were asked for.
    """

    protocols: dict[str, dict[str, float | int]]
    rankings: dict[str, list[dict]]

    def headline(self) -> float:
        """Return the mean recall of the first protocol: what chooses the best checkpoint."""
        return next(iter(self.protocols.values()))["mR"]


class Evaluator:
    """Evaluates a model's variables on the splits that it is called with."""

    def __init__(self, model: CMAP, mesh: Mesh, *, gallery_chunk: int = 4096):
        """Compile nothing yet; the programs are kept from call to call.

        Args:
            model: the model.
            mesh: devices; batches are split over them.
            gallery_chunk: images scored at once.
        """
        self._mesh = mesh
        self._gallery_chunk = gallery_chunk
        self._encode_images = jax.jit(
            lambda variables, images: model.apply(variables, images, method="encode_images")
        )

        def compose(variables: Any, pyramid: jax.Array, tokens: jax.Array, lengths: jax.Array):
            text = model.apply(variables, tokens, lengths, method="encode_text")
            query = model.apply(variables, pyramid, text, method="compose")
            return query.replace(preservation=None)

        self._compose = jax.jit(compose)

    def __call__(self, variables: Any, data: Any, *, rankings: bool = False) -> Result:
        """Evaluate on a split.

        Args:
            variables: the model's.
            data: what `input_pipeline.batching.EvaluationData` offers: ``evaluations``,
                ``image_ids``, ``positions``, ``image_batches()`` and ``query_batches(queries)``.
            rankings: also return the best images of every query.
        """
        started = time.monotonic()
        pyramid = self._encode_all(variables, data)
        result = Result({}, {})
        for evaluation in data.evaluations:
            name = evaluation.protocol.name
            ranks, records = {}, []
            for category, gallery in evaluation.galleries.items():
                queries = [q for q in evaluation.queries if q.category == category]
                exclude = evaluation.protocol.reference == "excluded"
                ranks[category] = self._rank_category(
                    variables,
                    data,
                    pyramid,
                    gallery,
                    queries,
                    exclude,
                    records if rankings else None,
                )
            numbers = metrics.summarize(evaluation.protocol, ranks)
            numbers["skipped"] += evaluation.skipped
            numbers["gallery_images"] = sum(map(len, evaluation.galleries.values()))
            result.protocols[name] = numbers
            result.rankings[name] = records
        logging.info(
            "evaluated %d images and %d queries in %.1f s",
            len(data.image_ids),
            sum(len(e.queries) for e in data.evaluations),
            time.monotonic() - started,
        )
        return result

    def _encode_all(self, variables: Any, data: Any) -> np.ndarray:
        """Return the pyramid of all the split's images, [L, N, D] float32, by their index."""
        total = len(data.image_ids)
        pyramid, seen = None, np.zeros(total, np.int64)
        started = reported = time.monotonic()
        for batch in data.image_batches():
            images = sharding.place_batch({"image": batch["image"]}, self._mesh)["image"]
            encoded = np.asarray(self._encode_images(variables, images))  # [L, B, D]
            if pyramid is None:
                pyramid = np.empty((encoded.shape[0], total, encoded.shape[2]), np.float32)
            index = batch["index"][batch["mask"]]
            pyramid[:, index] = encoded[:, batch["mask"]]
            seen[index] += 1
            now = time.monotonic()
            if now - reported > _REPORT_EVERY:
                reported, done = now, int(seen.sum())
                rate = done / (now - started)
                logging.info(
                    "encoded %d of %d images (%.0f/s, %.0f s left)",
                    done,
                    total,
                    rate,
                    (total - done) / rate,
                )
        if not (seen == 1).all():
            raise ValueError("the image batches must bring every image exactly once")
        return pyramid

    def _rank_category(
        self,
        variables: Any,
        data: Any,
        pyramid: np.ndarray,
        gallery: tuple[str, ...],
        queries: list,
        exclude_reference: bool,
        records: list[dict] | None,
    ) -> np.ndarray:
        """Return the ranks of a category's queries; append to ``records`` if there is such."""
        if not queries:
            return np.empty(0, np.int64)
        place = {image: i for i, image in enumerate(gallery)}
        targets = [[place[t] for t in q.targets if t in place] or [-1] for q in queries]
        references = [place.get(q.reference, -1) if exclude_reference else -1 for q in queries]
        embeddings = pyramid[:, [data.positions[i] for i in gallery]]
        # Large products are fast; a block of scores stays below a quarter of a GiB all the same.
        at_once = min(_QUERIES_AT_ONCE, _SCORES_AT_ONCE // max(len(gallery), 1))
        blocks = scoring.score_chunks(
            _in_blocks(self._compose_all(variables, data, pyramid, queries), at_once),
            embeddings,
            gallery_chunk=self._gallery_chunk,
        )
        found, start = [], 0
        for scores in blocks:
            scores = scores[: len(queries) - start]  # what is padding comes last
            rows = slice(start, start + len(scores))
            start = rows.stop
            ranks = metrics.ranks(scores, targets[rows], references[rows])
            found.append(ranks)
            if records is not None:
                best = metrics.top(scores, TOP, references[rows])
                records.extend(
                    {
                        "query": query.id,
                        "reference": query.reference,
                        "text": list(query.captions),
                        "targets": list(query.targets),
                        "rank": int(rank),
                        "top": [gallery[i] for i in row if i != excluded],
                    }
                    for query, rank, row, excluded in zip(
                        queries[rows], ranks, best, references[rows], strict=True
                    )
                )
        return np.concatenate(found)

    def _compose_all(
        self, variables: Any, data: Any, pyramid: np.ndarray, queries: list
    ) -> Iterator[scoring.ComposedQuery]:
        """Yield composed queries a batch at a time; the last one is padded."""
        for batch in data.query_batches(queries):
            references = pyramid[:, batch["reference"]].swapaxes(0, 1)  # [B, L, D]
            placed = sharding.place_batch(
                {
                    "pyramid": references,
                    "tokens": batch["text_tokens"],
                    "lengths": batch["text_lengths"],
                },
                self._mesh,
            )
            yield self._compose(
                variables, placed["pyramid"].swapaxes(0, 1), placed["tokens"], placed["lengths"]
            )


def _in_blocks(
    batches: Iterator[scoring.ComposedQuery], size: int
) -> Iterator[scoring.ComposedQuery]:
    """Join batches to blocks of at most ``size`` queries, or of one batch."""
    block: list[scoring.ComposedQuery] = []
    for batch in batches:
        if block and len(batch) * (len(block) + 1) > size:
            yield scoring.concatenate(block)
            block = []
        block.append(batch)
    if block:
        yield scoring.concatenate(block)
