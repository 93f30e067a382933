"""Loaders that decode images whenever they are needed: files by PIL, prepared images in tf.data.

    loader = open_loader(records, preprocessing, FailedImages("fail"))
    batches = loader.load(plan, size)

Both give PIL's pixels, bit for bit. A damaged image raises a `tf.errors.OpError` in the data set.
"""

import concurrent.futures
import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from jaxtyping import Int32, UInt8

from cmap_jax.processing import images
from cmap_jax.processing.images import ImagePreprocessing, ImageReadError
from input_pipeline import storage
from input_pipeline.images import augmentation, preprocess
from input_pipeline.images.loading import (
    CORES,
    PARALLEL_CALLS,
    Decoder,
    FailedImages,
    fill_batches,
    no_pixels,
)
from input_pipeline.images.sources import FolderImages
from input_pipeline.prepared_images import PreparedImages
from input_pipeline.records import DataError, Records

# One thread more than cores: PIL's code runs without the interpreter's lock, so that the others can
# wait for it.
_THREADS = CORES + 1
_BATCHES = 2  # batches decoded at the same time, so that no thread is idle at a batch's end

# Parameters of glibc's `mallopt`, and their values in bytes.
_ALLOCATION = {
    -1: 1 << 30,  # M_TRIM_THRESHOLD: how much unused memory is kept
    -2: 1 << 24,  # M_TOP_PAD: how much is asked for at a time
    -3: 1 << 25,  # M_MMAP_THRESHOLD: above that, a block is returned as soon as it is freed
}


class FileLoader:
    """Decodes files with PIL, in threads of Python's own.

    tf.data calls it once per batch, because one call per image is slower (`benchmarks/README.md`).
    """

    key_dtype = tf.string

    def __init__(
        self, source: FolderImages, preprocessing: ImagePreprocessing, failed: FailedImages
    ):
        """Start the threads.

        Args:
            source: the image files.
            preprocessing: how images are read, and their sizes in pixels.
            failed: record of the images that cannot be decoded.
        """
        keep_freed_memory()
        self.source = source
        self.preprocessing = preprocessing
        self.failed = failed

    def keys(self, images: Sequence[str]) -> Sequence[Any]:
        """Return the paths of the files."""
        return [os.fsencode(self.source.where(i)) for i in images]

    def load(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Decode, resize and cut; see `ImageLoader`."""
        return fill_batches(plan, self._crops, self.preprocessing.crop, _BATCHES)

    def squares(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Decode and resize; see `Decoder`."""
        return self.sized_squares(plan, size).map(lambda squares, sizes: squares)

    def sized_squares(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Return batches of `squares`, each with the original height and width, int32 [N, 2]."""
        side = self.preprocessing.resize

        def decode(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            squares, sizes = tf.numpy_function(
                self._squares, [batch["image"][:, 0]], (tf.uint8, tf.int32), stateful=False
            )
            squares = tf.ensure_shape(squares, [None, side, side, 3])
            return squares, tf.ensure_shape(sizes, [None, 2])

        return plan.map(decode, num_parallel_calls=_BATCHES, deterministic=True)

    def nothing(self) -> UInt8[np.ndarray, "0 S S 3"]:
        """Return the pixels of no image."""
        return no_pixels(self.preprocessing)

    def why_unusable(self, image: str) -> str | None:
        """Return why an image cannot be decoded, or None."""
        try:
            images.read_image(self.source.read(image), self.preprocessing)
        except OSError as error:
            return f"unreadable: {error}"
        except ImageReadError as error:
            return str(error)
        return None

    def _crops(
        self, files: np.ndarray, crops: Int32[np.ndarray, "N 3"]
    ) -> UInt8[np.ndarray, "N S S 3"]:
        side = self.preprocessing.crop
        out = np.empty((len(files), side, side, 3), np.uint8)

        def decode(row: int) -> None:
            square = images.to_square(self._read(files[row]), self.preprocessing)
            augmentation.cut_one(np.asarray(square), crops[row], out[row])

        self._for_each(decode, len(files))
        return out

    def _squares(
        self, files: np.ndarray
    ) -> tuple[UInt8[np.ndarray, "N R R 3"], Int32[np.ndarray, "N 2"]]:
        side = self.preprocessing.resize
        out = np.empty((len(files), side, side, 3), np.uint8)
        sizes = np.empty((len(files), 2), np.int32)

        def decode(row: int) -> None:
            image = self._read(files[row])
            sizes[row] = image.height, image.width
            out[row] = np.asarray(images.to_square(image, self.preprocessing))

        self._for_each(decode, len(files))
        return out, sizes

    def _read(self, file: bytes) -> images.Image.Image:
        return images.read_image(storage.read_bytes(os.fsdecode(file)), self.preprocessing)

    def _for_each(self, decode: Callable[[int], None], count: int) -> None:
        """Call a function for the rows of a batch; wait for all, then raise the first error."""
        calls = [_threads().submit(decode, row) for row in range(count)]
        concurrent.futures.wait(calls)
        for call in calls:
            call.result()


class RecordLoader:
    """Decodes prepared images in tf.data, which need no resize: twice as fast as PIL."""

    key_dtype = tf.string

    def __init__(
        self, source: PreparedImages, preprocessing: ImagePreprocessing, failed: FailedImages
    ):
        """Take the records.

        Args:
            source: the prepared images.
            preprocessing: how images are read, and their sizes in pixels.
            failed: record of the images that cannot be decoded.

        Raises:
            DataError: the images were prepared with another preprocessing.
        """
        source.check(preprocessing)
        self.source = source
        self.preprocessing = preprocessing
        self.failed = failed

    def keys(self, images: Sequence[str]) -> Sequence[Any]:
        """Return the images' records."""
        return self.source.records(images)

    def load(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Decode and cut; see `ImageLoader`."""

        def decode(item: dict[str, Any]) -> dict[str, Any]:
            keys, crops = tf.unstack(item.pop("image")), tf.unstack(item.pop("crop"))
            pixels = (
                preprocess.cut(self._square(key), crop, self.preprocessing)
                for key, crop in zip(keys, crops, strict=True)
            )
            return {**item, "image": tuple(pixels)}

        return _map_items(plan, size, decode)

    def squares(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Decode; see `Decoder`."""
        return _map_items(plan, size, lambda item: self._square(item["image"][0]))

    def nothing(self) -> UInt8[np.ndarray, "0 S S 3"]:
        """Return the pixels of no image."""
        return no_pixels(self.preprocessing)

    def why_unusable(self, image: str) -> str | None:
        """Return why an image cannot be decoded, or None."""
        try:
            (record,) = self.source.records([image])
            images.read_image(self.source.read(image), self.preprocessing)
            self._square(tf.constant(record))
        except (OSError, DataError) as error:
            return f"unreadable: {error}"
        except ImageReadError as error:
            return str(error)
        except tf.errors.OpError as error:
            return error.message
        return None

    def _square(self, record: tf.Tensor) -> tf.Tensor:
        return preprocess.decode_square(preprocess.take_image(record), self.preprocessing)


def open_loader(
    records: Records, preprocessing: ImagePreprocessing, failed: FailedImages
) -> Decoder:
    """Return the decoder of a data set's images, raw or prepared.

    Raises:
        DataError: the images were prepared with another preprocessing.
    """
    if records.prepared is not None:
        return RecordLoader(records.prepared, preprocessing, failed)
    return FileLoader(FolderImages(records.images), preprocessing, failed)


def _map_items(plan: tf.data.Dataset, size: int, function: Callable[[Any], Any]) -> tf.data.Dataset:
    """Apply a function to the items of a plan's batches, in parallel."""
    return (
        plan.prefetch(1)  # the records of a batch are read here
        .unbatch()
        .map(function, num_parallel_calls=PARALLEL_CALLS, deterministic=True)
        .batch(size)
    )


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    """Return the threads that decode, which all loaders of the process share."""
    return concurrent.futures.ThreadPoolExecutor(_THREADS, "decode")


@functools.cache
def keep_freed_memory() -> None:
    """Tell the C library, where it is glibc, to keep freed memory for later use.

    PIL needs some megabytes for an image, and frees them again. By default the kernel provides them
    anew each time, page by page, which takes a third of the time of decoding.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # the C library is not glibc
        return
    for parameter, value in _ALLOCATION.items():
        mallopt(parameter, value)
