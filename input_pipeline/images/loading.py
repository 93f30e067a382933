"""From image ids to crops in tf.data: decoded whenever needed, or kept decoded in memory.

A loader takes a plan, a tf.data.Dataset of batches that name images and crops, and replaces the
names by pixels; both kinds of loader give the same pixels. An image that fails in the middle of a
pass is identified, named in a message, and treated as ``config.data.missing_images`` says. (A third
kind, in `input_pipeline.features.loading`, gives precomputed features in place of pixels.)
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
# Items or batches that tf.data works on at once. One thread decodes an image, so there is one for
# each core, and as many to prefetch.
PARALLEL_CALLS = 2 * CORES
_AHEAD = 2  # batches to prefetch
_AT_ONCE = 64  # images of a batch when all are decoded into memory


class FailedImages(dict[str, str]):
    """Reasons why images could not be decoded, by id, which the check of all files did not find."""

    def __init__(self, policy: str, *, may_skip: bool = True):
        """Start without failures.

        Args:
            policy: "fail" or "skip", the value of ``config.data.missing_images``.
            may_skip: whether errors offer "skip" as a remedy.
        """
        super().__init__()
        self._policy = policy
        self._may_skip = may_skip

    def add(self, reasons: Mapping[str, str], source: ImageSource) -> None:
        """Record images that failed, and log them.

        Args:
            reasons: why each of them failed, by id.
            source: the images' source, which knows their files.

        Raises:
            DataError: the policy is "fail"; names ids, files and reasons.
        """
        lines = [f"image {i} ({source.where(i)}): {reason}" for i, reason in reasons.items()]
        if self._policy == "fail":
            remedy = ", or leave out what needs it with --config.data.missing_images=skip"
            raise DataError(
                "\n".join([*lines, "Repair or replace it" + (remedy if self._may_skip else "")])
            )
        for line in lines:
            _logger.warning("%s. It is left out from here on, and counted in the results.", line)
        self.update(reasons)


class ImageLoader(Interface):
    """Replaces the images that a plan names by their pixels, or by what stands for them.

    Attributes:
        source: the encoded images.
        preprocessing: how images are read, and their sizes in pixels.
        failed: images that turned out to be unusable during the passes so far.
        key_dtype: type of the keys by which a plan names images.
    """

    source: ImageSource
    preprocessing: ImagePreprocessing
    failed: FailedImages
    key_dtype: tf.DType

    def keys(self, images: Sequence[str]) -> Sequence[Any]:
        """Return the keys by which a plan names some images."""

    def load(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Return the plan's batches with pixels in place of keys.

        Args:
            plan: batches of ``size`` items (the last may have fewer) of K images each, with
                ``image``, keys [N, K], and ``crop``, int32 [N, K, 3] as `augmentation.cut` takes
                it, beside anything else.
            size: items in a batch, N.

        Returns:
            The same batches with ``image`` K arrays uint8 [N, S, S, 3], and without ``crop``.
        """

    def nothing(self) -> Any:
        """Return the result of `load` for one column of keys and no image: arrays of no rows."""

    def why_unusable(self, image: str) -> str | None:
        """Return why an image cannot be decoded, or None."""


class Decoder(ImageLoader, Interface):
    """Decodes images as they are needed."""

    def squares(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Return the images before any crop: batches of uint8 [N, R, R, 3].

        Args:
            plan: batches with ``image``, keys [N, 1], of ``size`` images (the last may have fewer).
            size: images in a batch, N.
        """


class MemoryLoader:
    """Decodes images once, keeps them in memory, and cuts crops from there."""

    key_dtype = tf.int32

    def __init__(self, decoding: Decoder, images: Sequence[str]):
        """Remember the images, which are decoded when the first batch is asked for.

        Args:
            decoding: loader that decodes the images.
            images: ids of all images that will be asked for.
        """
        self.source, self.failed = decoding.source, decoding.failed
        self.preprocessing = decoding.preprocessing
        self._decoding = decoding
        self._images = tuple(images)
        self._rows = {image: row for row, image in enumerate(self._images)}
        self._squares: np.ndarray | None = None
        self._filling = threading.Lock()

    def keys(self, images: Sequence[str]) -> Sequence[Any]:
        """Return the images' rows in memory."""
        return [self._rows[i] for i in images]

    def load(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Cut crops; see `ImageLoader`. The first call decodes all images, with progress.

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

    def nothing(self) -> np.ndarray:
        """Return the pixels of no image."""
        return no_pixels(self.preprocessing)

    def why_unusable(self, image: str) -> str | None:
        """Return why an image cannot be decoded, or None."""
        return self._decoding.why_unusable(image)

    def _decode_all(self) -> np.ndarray:
        side, count = self.preprocessing.resize, len(self._images)
        squares = np.empty((count, side, side, 3), np.uint8)

        parts = pass_over(self._images, _AT_ONCE, self._decoding, self._decoding.squares)
        batches = -(-count // _AT_ONCE)
        for rows, decoded in track(parts, batches, "decoding", f"x {_AT_ONCE} images"):
            squares[rows] = decoded
        return squares


def make_loader(decoding: Decoder, images: Sequence[str], most_bytes: float) -> ImageLoader:
    """Return a loader that keeps all images in memory if they fit, else one that decodes each time.

    Args:
        decoding: the loader that decodes each time.
        images: ids of all images that will be asked for.
        most_bytes: memory in bytes that the decoded images may take.
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


def no_pixels(preprocessing: ImagePreprocessing) -> np.ndarray:
    """Return the crops of no image, uint8 [0, S, S, 3]."""
    return np.zeros((0, preprocessing.crop, preprocessing.crop, 3), np.uint8)


def fill_batches(
    plan: tf.data.Dataset,
    cut: Callable[[np.ndarray, np.ndarray], np.ndarray],
    side: int,
    parallel_calls: int,
) -> tf.data.Dataset:
    """Put crops into a plan's batches, as `ImageLoader.load` does.

    Args:
        plan: batches with ``image``, keys [N, K], and ``crop``, int32 [N, K, 3].
        cut: function from keys [N] and crops [N, 3] to pixels, uint8 [N, S, S, 3].
        side: side of a crop in pixels, S.
        parallel_calls: number of batches that are filled at the same time.
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


def central_crops(
    images: Sequence[str], size: int, loader: ImageLoader
) -> Iterator[tuple[list[int], Any]]:
    """Load the centre of all images in batches, each image once, in order.

    Args:
        images: ids of the images.
        size: images in a batch; the last batch may have fewer.
        loader: loader of these images.

    Yields:
        The positions in ``images`` of a batch's images that did not fail, and their pixels, uint8
        [N, S, S, 3], or whatever the loader gives in their place.
    """
    crop = augmentation.center_crop(loader.preprocessing)

    def load(plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        def add_crop(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            rows = tf.shape(batch["image"])[0]
            return {**batch, "crop": tf.broadcast_to(crop, [rows, 1, 3])}

        return loader.load(plan.map(add_crop), size).map(lambda b: b["image"][0])

    return pass_over(images, size, loader, load)


def pass_over(
    images: Sequence[str],
    size: int,
    loader: ImageLoader,
    stage: Callable[[tf.data.Dataset, int], tf.data.Dataset],
) -> Iterator[tuple[list[int], Any]]:
    """Process all images in batches, each image once, in order.

    Args:
        images: ids of the images.
        size: images in a batch, N; the last batch may have fewer.
        loader: loader of these images.
        stage: the processing: a function from a plan, batches with ``image``, keys [N, 1], and from
            N to batches of results with N rows.

    Yields:
        The positions in ``images`` of a batch's images that did not fail, and the rows for them.
    """

    def ids(step: int) -> Sequence[str]:
        return images[step * size : (step + 1) * size]

    def usable(step: int) -> list[str]:
        # A batch keeps its size: an image that failed is replaced, and its row removed at the end.
        substitute = next((i for i in images if i not in loader.failed), None)
        if substitute is None:
            raise DataError(f"none of {len(images)} images can be decoded")
        return [substitute if i in loader.failed else i for i in ids(step)]

    steps = -(-len(images) // size)

    def plan(start: int) -> Iterator[dict]:
        for step in range(start, steps):
            yield {"image": [[key] for key in loader.keys(usable(step))]}

    def make(start: int) -> tf.data.Dataset:
        signature = {"image": tf.TensorSpec([None, 1], loader.key_dtype)}
        return stage(
            tf.data.Dataset.from_generator(lambda: plan(start), output_signature=signature), size
        )

    for step, batch in enumerate(iterate(make, 0, steps, images=usable, loader=loader)):
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
        make: function from a step to the tf.data.Dataset of the batches from that step on, without
            the images that ``loader.failed`` holds at the time of the call.
        start: the first step.
        stop: the step after the last; the data set itself need not end there.
        images: function from a step to the ids of its images.
        loader: loader of these images; its ``failed`` receives the images that fail.

    Raises:
        DataError: an image failed, and the policy is "fail"; or no image is the reason for the
            failure.
    """
    options = tf.data.Options()
    # Parallelism is fixed in the graph. With autotuning, the end of a sequence was seen to arrive
    # up to a minute late; for the same reason steps are counted, and the end is not awaited.
    options.autotune.enabled = False
    # By default there is one thread for each core, and a thread that waits for the interpreter
    # blocks its core.
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
                suspects = [i for i in dict.fromkeys(images(step)) if i not in loader.failed]
                checked = {i: loader.why_unusable(i) for i in suspects}
                reasons = {i: reason for i, reason in checked.items() if reason is not None}
                # If another pass has recorded the image meanwhile, a new plan is enough.
                if not reasons and len(loader.failed) == known:
                    raise DataError(f"the input pipeline failed: {error.message}") from error
                loader.failed.add(reasons, loader.source)
                break
            yield batch
            step += 1
