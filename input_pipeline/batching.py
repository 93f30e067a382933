"""The tf.data graph: order, process split, decoding, augmentation, batches, padding and masks.

The order of an epoch is a pure function of (seed, epoch), an item's pair and augmentation of
(seed, epoch, item). Resuming is therefore a matter of starting at a position: there is no iterator
state to save, and no image is decoded to get there.
"""

import math
import os
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from cmap_jax.processing.images import ImagePreprocessing, ImageReadError, read_image
from cmap_jax.processing.tokenizer import Vocabulary
from input_pipeline import preprocess, storage
from input_pipeline.records import DataError, Evaluation, Query, Records

# Set the streams of random numbers drawn from one seed apart from one another.
_ORDER, _AUGMENTATION = 1, 2

# Images decoded at once; what TensorFlow does in one call is single-threaded.
_PARALLEL_CALLS = os.cpu_count() or 1

Batch = dict[str, np.ndarray]


class TrainingData:
    """Endless training batches, addressed by step.

    Attributes:
        steps_per_epoch: full batches in an epoch; the last partial one is dropped.
        text_width: tokens T of the widest text; every batch is padded to it, so that one compiled
            program serves them all.
    """

    def __init__(
        self,
        records: Records,
        vocabulary: Vocabulary,
        preprocessing: ImagePreprocessing,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Prepare to make this process's share of each global batch of ``batch_size`` items."""
        self._source = records.train
        self._paths = {i: image.path for i, image in records.images.items()}
        self._vocabulary = vocabulary
        self._preprocessing = preprocessing
        self._seed = seed
        self._batch_size = batch_size
        share = batch_size // process_count
        self._share = slice(process_index * share, (process_index + 1) * share)
        self.steps_per_epoch = len(self._source) // batch_size
        self.text_width = max(len(vocabulary.encode(t)) for t in self._source.longest_texts())

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Return the items of an epoch in their order, [len(source)] int64."""
        return np.random.default_rng([self._seed, _ORDER, epoch]).permutation(len(self._source))

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """Return an iterator over the batches of the steps in [start_step, stop_step)."""
        plan = tf.data.Dataset.from_generator(
            lambda: self._plan(start_step, stop_step),
            output_signature={
                "reference_path": tf.TensorSpec([None], tf.string),
                "target_path": tf.TensorSpec([None], tf.string),
                "text_tokens": tf.TensorSpec([None, self.text_width], tf.int32),
                "text_lengths": tf.TensorSpec([None], tf.int32),
                "seed": tf.TensorSpec([None, 2, 2], tf.int32),
            },
        )
        share = self._share.stop - self._share.start
        dataset = (
            plan.unbatch()
            .map(self._load, num_parallel_calls=_PARALLEL_CALLS, deterministic=True)
            .batch(share, drop_remainder=True)
            .prefetch(2)
        )
        return _numpy_batches(dataset, stop_step - start_step, self._paths.values())

    def _plan(self, start_step: int, stop_step: int) -> Iterator[dict]:
        """Yield what each batch is made of: paths, tokens and seeds; nothing is read here."""
        epoch = None
        for step in range(start_step, stop_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.epoch_order(epoch)
                key = np.random.SeedSequence([self._seed, _AUGMENTATION, epoch])
                # The two words that TensorFlow's stateless operations take: one for the epoch, one
                # for the item and side.
                epoch_word = key.generate_state(1)[0].astype(np.int32)
            first = step % self.steps_per_epoch * self._batch_size
            items = order[first : first + self._batch_size][self._share]
            triplets = [self._source.draw(self._seed, epoch, int(item)) for item in items]
            tokens, lengths = self._vocabulary.encode_batch(
                [t.captions for t in triplets], self.text_width
            )
            seeds = np.empty((len(items), 2, 2), np.int32)
            seeds[..., 0] = epoch_word
            seeds[..., 1] = 2 * items[:, None] + np.arange(2)
            yield {
                "reference_path": [self._paths[t.reference] for t in triplets],
                "target_path": [self._paths[t.target] for t in triplets],
                "text_tokens": tokens,
                "text_lengths": lengths,
                "seed": seeds,
            }

    def _load(self, item: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        def image(path: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            return preprocess.training_image(tf.io.read_file(path), seed, self._preprocessing)

        return {
            "reference_image": image(item["reference_path"], item["seed"][0]),
            "target_image": image(item["target_path"], item["seed"][1]),
            "text_tokens": item["text_tokens"],
            "text_lengths": item["text_lengths"],
            "mask": tf.constant(True),
        }


class EvaluationData:
    """The images and queries of a split's evaluations; every image is encoded once.

    Attributes:
        evaluations: the protocols with their galleries and queries.
        image_ids: the images needed, in the order of their ``index``.
        positions: the index of each image id.
    """

    def __init__(
        self,
        records: Records,
        evaluations: Sequence[Evaluation],
        vocabulary: Vocabulary,
        preprocessing: ImagePreprocessing,
        *,
        batch_size: int,
    ):
        """Collect the images of all evaluations of a split."""
        self.evaluations = tuple(evaluations)
        ids: dict[str, None] = {}
        for evaluation in self.evaluations:
            ids |= evaluation.image_ids()
        self.image_ids = tuple(ids)
        self.positions = {image: i for i, image in enumerate(self.image_ids)}
        self._paths = [records.images[i].path for i in self.image_ids]
        self._vocabulary = vocabulary
        self._preprocessing = preprocessing
        self.batch_size = batch_size

    def image_batches(self) -> Iterator[Batch]:
        """Return an iterator over all images, each once; the last batch is padded and masked."""

        def load(index: tf.Tensor, path: tf.Tensor) -> dict[str, tf.Tensor]:
            encoded = tf.io.read_file(path)
            return {
                "image": preprocess.evaluation_image(encoded, self._preprocessing),
                "index": index,
                "mask": tf.constant(True),
            }

        dataset = (
            tf.data.Dataset.from_tensor_slices(
                (np.arange(len(self._paths), dtype=np.int32), self._paths)
            )
            .map(load, num_parallel_calls=_PARALLEL_CALLS, deterministic=True)
            .batch(self.batch_size)
            .prefetch(2)
        )
        for batch in _numpy_batches(dataset, self.image_batch_count(), self._paths):
            yield pad_batch(batch, self.batch_size)

    def query_batches(self, queries: Sequence[Query]) -> Iterator[Batch]:
        """Return an iterator over queries: the index of the reference, tokens, lengths and mask.

        All texts are padded to the widest among ``queries``, the last batch to full size.
        """
        tokens, lengths = self._vocabulary.encode_batch([q.captions for q in queries])
        references = np.array([self.positions[q.reference] for q in queries], np.int32)
        for start in range(0, len(queries), self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch = {
                "reference": references[rows],
                "text_tokens": tokens[rows],
                "text_lengths": lengths[rows],
                "mask": np.ones(len(references[rows]), bool),
            }
            yield pad_batch(batch, self.batch_size)

    def read_image(self, image_id: str) -> Image.Image | ImageReadError:
        """Return an image as it is, or the error in its place: for pictures of results."""
        place = self._paths[self.positions[image_id]]
        try:
            return read_image(storage.read_bytes(place))
        except (OSError, ImageReadError) as error:
            return ImageReadError(f"{place}: {error}")

    def image_batch_count(self) -> int:
        """Return the number of image batches."""
        return math.ceil(len(self._paths) / self.batch_size)


def pad_batch(batch: Batch, size: int) -> Batch:
    """Pad the first axis of every array with zeros: the mask becomes False there."""
    missing = size - len(batch["mask"])
    if not missing:
        return batch
    return {
        key: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
        for key, value in batch.items()
    }


def _numpy_batches(dataset: tf.data.Dataset, count: int, paths: Collection[str]) -> Iterator[Batch]:
    """Iterate over ``count`` batches; if an image fails in the middle, say which file it is."""
    options = tf.data.Options()
    # Parallelism is fixed in the graph. With autotuning on, the end of a sequence was seen to take
    # up to a minute to arrive; for the same reason the end is counted, not awaited.
    options.autotune.enabled = False
    iterator = dataset.with_options(options).as_numpy_iterator()
    for _ in range(count):
        try:
            yield next(iterator)
        except tf.errors.OpError as error:
            # TensorFlow names neither the file nor the item: decode them all again.
            for path in paths:
                try:
                    read_image(storage.read_bytes(path))
                except (ImageReadError, OSError) as reason:
                    raise DataError(f"{path}: {reason}. Repair or remove this image") from None
            raise DataError(f"the input pipeline failed: {error.message}") from error
