"""Batches of training items, images and queries: order, process split, padding and masks.

The order of an epoch is a pure function of (seed, epoch), an item's pair and augmentation of
(seed, epoch, item). Resuming is therefore a matter of starting at a position: there is no iterator
state to save, and no image is decoded to get there.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from cmap_jax.processing.images import ImagePreprocessing, ImageReadError, read_image
from cmap_jax.processing.tokenizing import Tokenizer
from input_pipeline.images import augmentation
from input_pipeline.images.loading import Batch, ImageLoader, central_crops, iterate
from input_pipeline.records import DataError, Evaluation, Query, Triplet, TripletSource

_ORDER = 1  # part of the key of the random order, which other streams of the same seed lack


class TrainingData:
    """Endless training batches, addressed by step.

    Attributes:
        item_count: items of an epoch.
        image_count: images that they are drawn from.
        steps_per_epoch: full batches in an epoch; the last partial one is dropped.
        text_width: tokens T of the longest text; every batch is padded to it, so that one compiled
            program serves them all.
    """

    def __init__(
        self,
        source: TripletSource,
        tokenizer: Tokenizer,
        preprocessing: ImagePreprocessing,
        loader: ImageLoader,
        *,
        batch_size: int,
        seed: int,
        augment: bool = True,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Prepare this process's rows of each global batch of ``batch_size`` items.

        Without ``augment``, images are cropped at their centre and not flipped.
        """
        self._source = source
        self._tokenizer = tokenizer
        self._preprocessing = preprocessing
        self._loader = loader
        self._seed = seed
        self._augment = augment
        self._batch_size = batch_size
        self._rows = _local_rows(batch_size, process_index, process_count)
        self.item_count = len(source)
        self.image_count = len(set(source.image_ids()))
        self.steps_per_epoch = len(source) // batch_size
        self.text_width = tokenizer.batch_width(source.longest_texts())

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Return the items of an epoch in their order, [len(source)] int64."""
        return np.random.default_rng([self._seed, _ORDER, epoch]).permutation(len(self._source))

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """Return an iterator over the batches of the steps in [start_step, stop_step)."""
        signature = {
            "image": tf.TensorSpec([None, 2], self._loader.key_dtype),
            "crop": tf.TensorSpec([None, 2, 3], tf.int32),
            "text_tokens": tf.TensorSpec([None, self.text_width], tf.int32),
            "text_lengths": tf.TensorSpec([None], tf.int32),
        }
        local_size = len(self._rows)

        def make(start: int) -> tf.data.Dataset:
            plan = tf.data.Dataset.from_generator(
                lambda: self._plan(start, stop_step), output_signature=signature
            )
            return self._loader.load(plan, local_size)

        def images(step: int) -> Iterator[str]:
            epoch = step // self.steps_per_epoch
            for _, triplet in self._items(step, self.epoch_order(epoch)):
                yield from (triplet.reference, triplet.target)

        for batch in iterate(make, start_step, stop_step, images, self._loader):
            reference, target = batch.pop("image")
            yield {
                "reference_image": reference,
                "target_image": target,
                **batch,
                "mask": np.ones(local_size, bool),
            }

    def _plan(self, start_step: int, stop_step: int) -> Iterator[dict]:
        """Yield the keys, crops and tokens of each batch; no image is decoded here."""
        epoch = None
        for step in range(start_step, stop_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.epoch_order(epoch)
                crops = self._crops(epoch)
            items, triplets = zip(*self._items(step, order), strict=True)
            tokens, lengths = self._tokenizer.encode_batch(
                [t.captions for t in triplets], self.text_width
            )
            keys = self._loader.keys([i for t in triplets for i in (t.reference, t.target)])
            yield {
                "image": list(zip(keys[::2], keys[1::2], strict=True)),
                "crop": crops[list(items)],
                "text_tokens": tokens,
                "text_lengths": lengths,
            }

    def _crops(self, epoch: int) -> np.ndarray:
        """Return the crops of an epoch's items, int32 [items, 2, 3]."""
        items = len(self._source)
        if self._augment:
            return augmentation.draw_crops(self._seed, epoch, items, self._preprocessing)
        return np.broadcast_to(augmentation.center_crop(self._preprocessing), (items, 2, 3))

    def _items(self, step: int, order: np.ndarray) -> Iterator[tuple[int, Triplet]]:
        """Yield the items of this process's share of a step, and their triplets.

        An item with an image that failed is replaced by the item at the same position of the
        batches that follow in the epoch. A batch therefore stays full and holds no item twice, and
        the replacement does not depend on when the failure was found.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        failed = self._loader.failed
        for row in self._rows:
            for later in range(self.steps_per_epoch):
                start = (position + later) % self.steps_per_epoch * self._batch_size
                item = int(order[start + row])
                triplet = self._source.draw(self._seed, epoch, item)
                if triplet.reference not in failed and triplet.target not in failed:
                    yield item, triplet
                    break
            else:
                raise DataError(
                    f"no usable image is left for row {row} of the batches: {len(failed)} "
                    "images cannot be decoded"
                )


@dataclasses.dataclass(frozen=True)
class EvaluationSizes:
    """The largest sizes that occur in evaluations, for which programs are compiled once.

    Attributes:
        tokens: tokens of a query's text.
        targets: correct images of a query, or explicit wrong ones where these are more.
        queries: queries of a category.
        gallery: images of a category's gallery.
    """

    tokens: int = 1
    targets: int = 0
    queries: int = 0
    gallery: int = 0

    @classmethod
    def of(cls, evaluations: Iterable[Evaluation], tokenizer: Tokenizer) -> "EvaluationSizes":
        """Return the largest sizes of some evaluations."""
        evaluations = tuple(evaluations)
        queries = [query for e in evaluations for query in e.queries]
        texts = dict.fromkeys(query.captions for query in queries)
        categories = (
            collections.Counter(query.category for query in e.queries) for e in evaluations
        )
        return cls(
            tokens=tokenizer.batch_width(texts),
            targets=max((max(len(q.targets), len(q.wrong)) for q in queries), default=0),
            queries=max((count for counts in categories for count in counts.values()), default=0),
            gallery=max((len(g) for e in evaluations for g in e.galleries.values()), default=0),
        )


class EvaluationData:
    """The images and queries of a split's evaluations; every image is encoded once.

    Attributes:
        image_ids: the images needed, in the order of their ``index``.
        positions: the index of each image id.
        batch_size: images or queries of a batch, over all processes.
        sizes: the largest sizes of this split, or of all splits that are evaluated in one run.
    """

    def __init__(
        self,
        evaluations: Sequence[Evaluation],
        tokenizer: Tokenizer,
        preprocessing: ImagePreprocessing,
        loader: ImageLoader,
        *,
        batch_size: int,
        sizes: EvaluationSizes | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Collect the images of a split's evaluations; without ``sizes``, the split's are taken."""
        self._evaluations = tuple(evaluations)
        self.sizes = sizes or EvaluationSizes.of(self._evaluations, tokenizer)
        ids: dict[str, None] = {}
        for evaluation in self._evaluations:
            ids |= evaluation.image_ids()
        self.image_ids = tuple(ids)
        self.positions = {image: i for i, image in enumerate(self.image_ids)}
        self.batch_size = batch_size
        self._tokenizer = tokenizer
        self._preprocessing = preprocessing
        self._loader = loader
        self._rows = _local_rows(batch_size, process_index, process_count)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The protocols with their galleries and queries, without images that failed so far."""
        failed = self._loader.failed
        return tuple(e.without(failed.keys()) if failed else e for e in self._evaluations)

    def is_usable(self) -> np.ndarray:
        """Tell which images have not failed so far, [len(image_ids)] bool."""
        return np.array([i not in self._loader.failed for i in self.image_ids], bool)

    def leave_out(self, image_ids: Sequence[str]) -> None:
        """Count images as failed that failed in another process."""
        self._loader.failed.update(dict.fromkeys(image_ids, "it failed in another process"))

    def image_batches(self) -> Iterator[Batch]:
        """Return an iterator over this process's part of the images, each once.

        Every process has the same number of batches of the same size, the last ones filled up with
        masked padding. An image that fails is left out.
        """
        total, local_size = len(self.image_ids), len(self._rows)
        starts = range(0, total, self.batch_size)
        mine = [start + row for start in starts for row in self._rows if start + row < total]
        parts = central_crops([self.image_ids[i] for i in mine], local_size, self._loader)
        nothing = ([], self._loader.nothing())
        for _ in starts:
            positions, images = next(parts, nothing)
            index = np.array([mine[position] for position in positions], np.int32)
            batch = {"image": images, "index": index, "mask": np.ones(len(index), bool)}
            yield pad_batch(batch, local_size)

    def query_batches(self, queries: Sequence[Query]) -> Iterator[Batch]:
        """Return an iterator over queries: indexes of references, tokens, lengths and mask.

        "reference" has the first one of each query, [B], and "more_references" the others,
        [B, R - 1] padded with -1, where R is the most that a query has. All texts are padded to
        ``sizes.tokens``, and the last batch to full size.
        """
        texts = [query.captions for query in queries]
        tokens, lengths = self._tokenizer.encode_batch(texts, self.sizes.tokens)
        references = np.array([self.positions[q.reference] for q in queries], np.int32)
        most = max((len(q.more_references) for q in queries), default=0)
        more = np.full((len(queries), most), -1, np.int32)
        for row, query in zip(more, queries, strict=True):
            row[: len(query.more_references)] = [self.positions[i] for i in query.more_references]
        for start in range(0, len(queries), self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch = {
                "reference": references[rows],
                "more_references": more[rows],
                "text_tokens": tokens[rows],
                "text_lengths": lengths[rows],
                "mask": np.ones(len(references[rows]), bool),
            }
            yield pad_batch(batch, self.batch_size)

    def read_image(self, image_id: str) -> Image.Image | ImageReadError:
        """Return an image as the model reads it, to show; an error where it cannot be read."""
        source = self._loader.source
        if image_id not in self.positions:
            return ImageReadError("in no gallery")
        try:
            return read_image(source.read(image_id), self._preprocessing)
        except (OSError, DataError, ImageReadError) as error:
            return ImageReadError(f"{source.where(image_id)}: {error}")

    def load(self, image_ids: Sequence[str]) -> tuple[list[int], Any]:
        """Load some images in one batch, as `image_batches` has them.

        Returns:
            The positions in ``image_ids`` of the images that did not fail, and their pixels, uint8
            [N, S, S, 3], or features.
        """
        return next(central_crops(image_ids, len(image_ids), self._loader))

    def image_batch_count(self) -> int:
        """Return the number of image batches."""
        return math.ceil(len(self.image_ids) / self.batch_size)


def pad_batch(batch: Batch, size: int) -> Batch:
    """Pad the first axis of every array to ``size`` rows of zeros, for which the mask is False."""
    missing = size - len(batch["mask"])
    if not missing:
        return batch
    return tf.nest.map_structure(
        lambda rows: np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)]),
        batch,
    )


def _local_rows(batch_size: int, process_index: int, process_count: int) -> range:
    """Return the rows of a global batch that a process makes."""
    local_size = batch_size // process_count
    return range(process_index * local_size, (process_index + 1) * local_size)
