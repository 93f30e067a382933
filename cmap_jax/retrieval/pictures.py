"""Pictures of a catalogue to embeddings: threads read and decode ahead of the encoder.

A picture whose file is as it was when it was embedded before is not decoded again.
"""

import collections
import concurrent.futures
import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from cmap_jax import sharding
from cmap_jax.encoding import BATCH, EncodePrograms
from cmap_jax.files import is_remote
from cmap_jax.numerics import round_up
from cmap_jax.processing.images import (
    ImagePreprocessing,
    ImageReadError,
    explain_os_error,
    preprocess_image,
)
from cmap_jax.retrieval.catalogue import Item, is_unicode
from cmap_jax.retrieval.index_files.item_files import Stamp
from cmap_jax.trained import Trained

_LARGEST = 1 << 28  # bytes: the largest picture as raw RGB
_IN_FLIGHT = 2  # batches that wait for the devices
_AT_ONCE = 8  # pictures that a thread takes
_AHEAD = 4  # groups of pictures a thread that may be decoded before they are encoded
_REQUESTS = 8  # threads a core for pictures in a bucket, which wait for it most of the time
_ON_ACCELERATORS = 256  # pictures encoded at once, a device

_In, _Out = TypeVar("_In"), TypeVar("_Out")


class Source(NamedTuple):
    """An embedding that was computed before.

    Attributes:
        generation: name of the index's generation that has it.
        shard: number of the shard.
        row: in the shard.
    """

    generation: str
    shard: int
    row: int


class Entry(NamedTuple):
    """An item that is to be in an index.

    Attributes:
        item: of the catalogue.
        source: its embedding of an earlier time; None if there is none.
        stamp: of the picture at that time.
    """

    item: Item
    source: Source | None = None
    stamp: Stamp | None = None


class Picture(NamedTuple):
    """The result of reading an entry's picture.

    Attributes:
        entry: whose picture was read.
        stamp: of the picture now; None if it cannot be read.
        pixels: uint8 [S, S, 3]; None if its embedding is known, or it cannot be read.
        reason: why it cannot be read; None if it can.
    """

    entry: Entry
    stamp: Stamp | None = None
    pixels: np.ndarray | None = None
    reason: str | None = None


def read_ahead(
    entries: Iterable[Entry], preprocessing: ImagePreprocessing, remote: bool
) -> Iterator[Picture]:
    """Yield the pictures of entries, in order, read by threads ahead of their use.

    Args:
        entries: consumed a little ahead of the pictures.
        preprocessing: how pictures are read, resized and cropped.
        remote: whether pictures are in a bucket: more of them are then read at once.

    Raises:
        OSError: a bucket cannot be reached. Its pictures would all count as unreadable otherwise.
    """

    def read(group: list[Entry]) -> list[Picture]:
        return [read_picture(entry, preprocessing) for entry in group]

    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = max(workers or 1, 2) * (_REQUESTS if remote else 1)
    groups = _groups(entries, _AT_ONCE)
    return itertools.chain.from_iterable(_map_ahead(read, groups, workers, workers * _AHEAD))


def read_picture(entry: Entry, preprocessing: ImagePreprocessing) -> Picture:
    """Read and decode a picture, unless its file is the one that was embedded before.

    A file of the same size and time is taken to be the same, and otherwise one of the same content.
    Some buckets tell no time.

    Raises:
        OSError: a bucket cannot be reached.
    """
    path, known = entry.item.image, entry.stamp
    if not (is_unicode(entry.item.id) and is_unicode(path)):
        return Picture(entry, reason="its name is not UTF-8: rename it")
    if "\0" in path:
        return Picture(entry, reason="no file has a name with a null character")
    try:
        size, modified = _stat(path)
        if known is not None and modified is not None and known[:2] == (size, modified):
            return Picture(entry, known)
        content = epath.Path(path).read_bytes()
    except ImageReadError as error:
        return Picture(entry, reason=str(error))
    except FileNotFoundError:
        return Picture(entry, reason="missing")
    except OSError as error:
        if is_remote(path):
            raise
        return Picture(entry, reason=f"unreadable: {explain_os_error(error)}")
    stamp = Stamp(size, modified, hashlib.sha256(content).hexdigest()[:32])
    if known is not None and known.digest == stamp.digest:
        return Picture(entry, stamp)
    try:
        return Picture(entry, stamp, preprocess_image(content, preprocessing))
    except ImageReadError as error:
        # The message names its source, which is bytes here, before the reason.
        return Picture(entry, reason=str(error).partition(": ")[2])


class PictureEncoder:
    """A model on all devices of this process, which encodes batches of one size.

    Attributes:
        batch: pictures that are encoded at once.
    """

    def __init__(self, trained: Trained):
        """Put the model on the devices; compile nothing yet."""
        self._mesh = sharding.make_mesh(jax.local_devices())
        on_cpu = self._mesh.devices.flat[0].platform == "cpu"
        size = BATCH if on_cpu else _ON_ACCELERATORS * self._mesh.size
        self.batch = round_up(size, self._mesh.size)
        self._variables = jax.device_put(trained.variables, sharding.replicated(self._mesh))
        self._programs = EncodePrograms(trained.model, self._mesh)
        self._in_flight: collections.deque[jax.Array] = collections.deque()

    def __call__(self, pixels: Sequence[UInt8[np.ndarray, "S S 3"]]) -> jax.Array:
        """Begin to encode at most ``batch`` pictures, and wait for all but the last two batches.

        Returns:
            [L, ``batch``, D] float32; rows behind the pictures mean nothing.
        """
        images = np.zeros((self.batch, *pixels[0].shape), np.uint8)
        np.stack(pixels, out=images[: len(pixels)])
        placed = sharding.place_batch({"images": images}, self._mesh)["images"]
        encoded = self._programs.encode_images(self._variables, placed)
        self._in_flight.append(encoded)
        if len(self._in_flight) > _IN_FLIGHT:
            self._in_flight.popleft().block_until_ready()
        return encoded


def embedding_shape(trained: Trained) -> tuple[int, int]:
    """Return the levels and the width of a picture's embedding, (L, D), without computing any."""
    side = trained.preprocessing.crop
    pixels = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    pyramid = jax.eval_shape(
        lambda variables, x: trained.model.apply(variables, x, method="encode_images"),
        trained.variables,
        pixels,
    )
    return pyramid.shape[0], pyramid.shape[2]


def _stat(path: str) -> tuple[int, int | None]:
    """Return a file's size in bytes and the time of its last change in nanoseconds.

    The time is None in a bucket that does not tell it, for which epath has the year 1970.

    Raises:
        OSError: no such file, or it cannot be reached.
        ImageReadError: no regular file (reading a pipe would not end), or absurdly large.
    """
    if is_remote(path):
        remote = epath.Path(path).stat()
        regular, size = not remote.is_directory, remote.length
        modified = remote.mtime * 10**9 or None
    else:
        local = os.stat(path)
        regular, size, modified = stat.S_ISREG(local.st_mode), local.st_size, local.st_mtime_ns
    if not regular:
        raise ImageReadError("not a file")
    if size > _LARGEST:
        raise ImageReadError(f"{size:,} bytes, the largest picture read has {_LARGEST:,}")
    return size, modified


def _map_ahead(
    function: Callable[[_In], _Out], values: Iterable[_In], workers: int, ahead: int
) -> Iterator[_Out]:
    """Yield a function's results in order; at most ``ahead`` are computed before they are used."""
    with concurrent.futures.ThreadPoolExecutor(workers, "pictures") as pool:
        waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        try:
            for value in values:
                waiting.append(pool.submit(function, value))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _groups(values: Iterable[_In], size: int) -> Iterator[list[_In]]:
    iterator = iter(values)
    while group := list(itertools.islice(iterator, size)):
        yield group
