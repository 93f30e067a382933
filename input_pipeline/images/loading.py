"""From image ids to crops in tf.data: decoded as they are needed, or kept decoded in memory.

Either loader takes a plan, a data set of batches that say which images and which crops, and gives
the pixels in their place, the same from both. An image that fails in the middle of a pass is found,
named, and handled by ``config.data.missing_images``.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from typing import Protocol as Interface

import numpy as np
import tensorflow as tf

from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.progress import track
from input_pipeline.images import augmentation
from input_pipeline.images.sources import ImageSource
from input_pipeline.records import DataError

_logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Items or batches that tf.data works on at once. An image is decoded by one thread, so there are as
# many as cores, and others that fetch what comes next.
PARALLEL_CALLS = 2 * CORES
_AHEAD = 2  # batches made while one is used
_AT_ONCE = 64  # images of a batch on the way into memory


class FailedImages(dict[str, str]):
    """Images that could not be decoded, and why: what the look at all files does not find."""

    def __init__(self, policy: str, *, may_skip: bool = True):
        """Take ``config.data.missing_images``, "fail" or "skip", and whether "skip" is a remedy."""
        super().__init__()
        self._policy = policy
        self._may_skip = may_skip

    def add(self, found: Mapping[str, str], source: ImageSource) -> None:
        """Take images that failed, and say so.

        Raises:
            DataError: under "fail"; names ids, files and reasons.
        """
        lines = [f"image {i} ({source.where(i)}): {reason}" for i, reason in found.items()]
        if self._policy == "fail":
            remedy = ", or leave out what needs it with --config.data.missing_images=skip"
            raise DataError(
                "\n".join([*lines, "Repair or replace it" + (remedy if self._may_skip else "")])
            )
        for line in lines:
            _logger.warning("%s. It is left out from here on, and counted in the results.", line)
        self.update(found)


class ImageLoader(Interface):
    """Fills crops into a plan.

    Attributes:
        source: the encoded images under it.
        preprocessing: how they are read, and the sizes.
        failed: the images that turned out to be unusable.
        key_dtype: of the keys.
    """

    source: ImageSource
    preprocessing: ImagePreprocessing
    failed: FailedImages
    key_dtype: tf.DType

    def keys(self, images: Sequence[str]) -> Sequence[Any]:
        """Return for each image what a plan names it by."""

    def load(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Return the plan's batches with pixels in place of keys.

        Args:
            plan: batches of ``size`` items (the last may have fewer) of K images each, with
                ``image``, keys [N, K], and ``crop``, int32 [N, K, 3] as `augmentation.cut` takes
                it, beside anything else.
            size: N.

        Returns:
            The same with ``image`` K arrays uint8 [N, S, S, 3], and without ``crop``.
        """

    def why_unusable(self, image: str) -> str | None:
        """Return why an image cannot be decoded, or None."""


class Decoder(ImageLoader, Interface):
    """Decodes images as they are needed."""

    def squares(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Return the images before any crop: data of uint8 [N, R, R, 3].

        Args:
            plan: batches with ``image``, keys [N, 1], of ``size`` images (the last may have fewer).
            size: N.
        """


class MemoryLoader:
    """Decodes images once, keeps them in memory, and cuts crops from there."""

    key_dtype = tf.int32

    def __init__(self, decoding: Decoder, images: Sequence[str]):
        """Remember what to decode when the first batch is asked for."""
        self.source, self.failed = decoding.source, decoding.failed
        self.preprocessing = decoding.preprocessing
        self._decoding = decoding
        self._images = tuple(images)
        self._rows = {image: row for row, image in enumerate(self._images)}
        self._squares: np.ndarray | None = None
        self._filling = threading.Lock()

    def keys(self, images: Sequence[str]) -> Sequence[Any]:
        """Return the images' rows."""
        return [self._rows[i] for i in images]

    def load(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Cut; see `ImageLoader`. The first time all images are decoded, with progress.

        Raises:
            DataError: an image cannot be decoded, and the policy is "fail".
        """
        with self._filling:
            if self._squares is None:
                self._squares = self._decode_all()
        squares, side = self._squares, self.preprocessing.crop

        def cut(rows: np.ndarray, crops: np.ndarray) -> np.ndarray:
            return augmentation.cut(squares, rows, crops, side)

        return fill_batches(plan, cut, side, PARALLEL_CALLS)

    def why_unusable(self, image: str) -> str | None:
        """Return why an image cannot be decoded, or None."""
        return self._decoding.why_unusable(image)

    def _decode_all(self) -> np.ndarray:
        side, count = self.preprocessing.resize, len(self._images)
        squares = np.empty((count, side, side, 3), np.uint8)

        parts = pass_over(self._images, _AT_ONCE, self._decoding, self._decoding.squares)
        batches = -(-count // _AT_ONCE)
        for rows, found in track(parts, batches, "decoding", f"x {_AT_ONCE} images"):
            squares[rows] = found
        return squares


def make_loader(decoding: Decoder, images: Sequence[str], most_bytes: float) -> ImageLoader:
    """Return a loader in memory if all images fit there, else one that decodes them each time.

    Args:
        decoding: the latter.
        images: the ids of all images that will be asked for.
        most_bytes: what the decoded images may take.
    """
    needed = len(images) * decoding.preprocessing.resize**2 * 3
    if needed <= most_bytes:
        return MemoryLoader(decoding, images)
    _logger.info(
        "%d decoded images take %.1f GB, more than --config.data.cache_gb=%.1f: each is decoded "
        "whenever it is needed",
        *(len(images), needed / 1e9, most_bytes / 1e9),
    )
    return decoding


def fill_batches(
    plan: tf.data.Dataset,
    cut: Callable[[np.ndarray, np.ndarray], np.ndarray],
    side: int,
    parallel_calls: int,
) -> tf.data.Dataset:
    """Put crops into a plan's batches, as `ImageLoader.load` does.

    Args:
        plan: batches with ``image``, keys [N, K], and ``crop``, int32 [N, K, 3].
        cut: from keys [N] and crops [N, 3] to pixels, uint8 [N, S, S, 3].
        side: S.
        parallel_calls: batches in work at once.
    """

    def fill(batch: dict[str, Any]) -> dict[str, Any]:
        columns = zip(
            tf.unstack(batch.pop("image"), axis=1),
            tf.unstack(batch.pop("crop"), axis=1),
            strict=True,
        )
        images = (tf.numpy_function(cut, column, tf.uint8, False) for column in columns)
        shape = [None, side, side, 3]
        return {**batch, "image": tuple(tf.ensure_shape(image, shape) for image in images)}

    return plan.map(fill, num_parallel_calls=parallel_calls, deterministic=True)


def pass_over(
    images: Sequence[str],
    size: int,
    loader: ImageLoader,
    stage: Callable[[tf.data.Dataset, int], tf.data.Dataset],
) -> Iterator[tuple[list[int], Any]]:
    """Yield what becomes of all images, each once, ``size`` at a time, in order.

    Args:
        images: their ids.
        size: images in a batch, N; the last one has the rest.
        loader: knows the images.
        stage: from a plan, batches with ``image``, keys [N, 1], and N, to batches of the same N.

    Yields:
        The positions in ``images`` of those that did not fail, and the batch's rows for them.
    """

    def ids(step: int) -> Sequence[str]:
        return images[step * size : (step + 1) * size]

    def usable(step: int) -> list[str]:
        # A batch keeps its size: what failed is replaced, and its row left out at the end.
        stand_in = next((i for i in images if i not in loader.failed), None)
        if stand_in is None:
            raise DataError(f"none of {len(images)} images can be decoded")
        return [stand_in if i in loader.failed else i for i in ids(step)]

    steps = -(-len(images) // size)

    def plan(start: int) -> Iterator[dict]:
        for step in range(start, steps):
            yield {"image": [[key] for key in loader.keys(usable(step))]}

    def make(start: int) -> tf.data.Dataset:
        signature = {"image": tf.TensorSpec([None, 1], loader.key_dtype)}
        return stage(
            tf.data.Dataset.from_generator(lambda: plan(start), output_signature=signature), size
        )

    for step, batch in enumerate(iterate(make, 0, steps, usable, loader)):
        kept = [n for n, image in enumerate(ids(step)) if image not in loader.failed]
        rows = tf.nest.map_structure(lambda array, kept=kept: array[kept], batch)
        yield [step * size + n for n in kept], rows


def iterate(
    make: Callable[[int], tf.data.Dataset],
    start: int,
    stop: int,
    images: Callable[[int], Iterable[str]],
    loader: ImageLoader,
) -> Iterator[Any]:
    """Yield a batch for each of the steps in [start, stop), whatever images fail on the way.

    Args:
        make: from a step to the data set of the batches from there on, without the images that
            ``loader.failed`` holds at that time.
        start: the first step.
        stop: where to end: the end is counted, not awaited.
        images: the ids of the images of a step.
        loader: where they come from; learns what failed.

    Raises:
        DataError: an image failed, and the policy is "fail"; or it failed for another reason than
            an image.
    """
    options = tf.data.Options()
    # Parallelism is fixed in the graph. With autotuning on, the end of a sequence was seen to take
    # up to a minute to arrive; for the same reason the end is counted.
    options.autotune.enabled = False
    # By default there is a thread a core, and one that waits for the interpreter keeps it.
    options.threading.private_threadpool_size = PARALLEL_CALLS
    step = start
    while step < stop:
        known = len(loader.failed)
        batches = make(step).prefetch(_AHEAD).with_options(options).as_numpy_iterator()
        while step < stop:
            try:
                batch = next(batches)
            except tf.errors.OpError as error:
                # TensorFlow names neither the file nor the item.
                asked = [i for i in dict.fromkeys(images(step)) if i not in loader.failed]
                found = {i: loader.why_unusable(i) for i in asked}
                found = {i: reason for i, reason in found.items() if reason is not None}
                # Another pass may have met the image first, and this one only has to plan anew.
                if not found and len(loader.failed) == known:
                    raise DataError(f"the input pipeline failed: {error.message}") from error
                loader.failed.add(found, loader.source)
                break
            yield batch
            step += 1
