"""A loader that gives images' precomputed features in place of their pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cmap_jax.processing.images import ImagePreprocessing
from input_pipeline.features.reading import FeatureFiles
from input_pipeline.images.loading import PARALLEL_CALLS, FailedImages
from input_pipeline.images.sources import ImageSource


class FeatureLoader:
    """Replaces the images that a plan names by their features; an `ImageLoader`.

    An image of its batches is a dict by level, of arrays [N, ...]. Crops are ignored, since the
    features are those of the centre.
    """

    key_dtype = tf.int64

    def __init__(
        self,
        files: FeatureFiles,
        source: ImageSource,
        preprocessing: ImagePreprocessing,
        failed: FailedImages,
    ):
        """Take the files.

        Args:
            files: the features.
            source: the encoded images, which are read to be shown, and never for batches.
            preprocessing: how images are read.
            failed: stays empty, as no image is decoded.
        """
        self.source = source
        self.preprocessing = preprocessing
        self.failed = failed
        self._files = files

    def keys(self, images: Sequence[str]) -> Sequence[Any]:
        """Return the rows of the images' features."""
        return [self._files.rows[i] for i in images]

    def load(self, plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
        """Gather features; see `ImageLoader`, with dicts by level in place of pixels."""

        def fill(batch: dict[str, Any]) -> dict[str, Any]:
            del batch["crop"]
            rows = tf.unstack(batch.pop("image"), axis=1)
            return {**batch, "image": tuple(map(self._gather, rows))}

        return plan.map(fill, num_parallel_calls=PARALLEL_CALLS, deterministic=True)

    def nothing(self) -> dict[str, np.ndarray]:
        """Return the features of no image."""
        return self._files.read([])

    def why_unusable(self, image: str) -> str | None:
        """Return None: the files were checked before."""
        return None

    def _gather(self, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        empty = self.nothing()
        values = tf.numpy_function(
            lambda rows: list(self._files.read(rows).values()),
            [rows],
            [array.dtype for array in empty.values()],
            stateful=False,
        )
        return {
            level: tf.ensure_shape(value, [None, *array.shape[1:]])
            for (level, array), value in zip(empty.items(), values, strict=True)
        }
