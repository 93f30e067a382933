"""Galleries in several parts and in eight bits, masks of images, and few queries at once."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from cmap_jax import scoring, sharding
from cmap_jax.retrieval import blocks
from cmap_jax.retrieval.exact import ExactIndex
from cmap_jax.retrieval.index_files.quantization import quantize
from cmap_jax.retrieval.parts import Parts
from cmap_jax.retrieval.plan import make_plan
from tests.retrieval.test_exact import LEVELS, ROW_BYTES, _gallery, _mesh, _query, _scores

SIZES = (64, 64, 1, 35)
IMAGES = sum(SIZES)


def _cut(gallery: np.ndarray) -> list[np.ndarray]:
    return np.split(gallery, np.cumsum(SIZES)[:-1], axis=1)


def _form(name: str, gallery: np.ndarray):
    """A gallery in a form, and the float32 numbers that it stands for."""
    if name == "int8":
        part = quantize(gallery)
        return part, part.rows(slice(None))
    values = gallery.astype(ml_dtypes.bfloat16 if name == "bfloat16" else np.float32)
    return values, values.astype(np.float32)
