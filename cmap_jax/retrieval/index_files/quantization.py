"""Embeddings as they are stored: float32, bfloat16, or eight bits with a scale a row.

A row of int8 is its embedding divided by a scale and rounded; the scale is the row's greatest
magnitude divided by 127 (docs/method.md, section 11).
"""

import dataclasses
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from jaxtyping import Float, Float32, Int8

FLOAT32, BFLOAT16, INT8 = DTYPES = ("float32", "bfloat16", "int8")

_MOST = 127  # codes are symmetric: -128 is not used
_EMBEDDINGS, _CODES, _SCALES = "embeddings", "codes", "scales"  # names of stored arrays

Rows = slice | np.ndarray


@dataclasses.dataclass(frozen=True)
class Quantized:
    """Embeddings in eight bits.

    Attributes:
        codes: int8 [L, N, D], -127 to 127.
        scales: float32 [L, N]; a row's embedding is its codes times its scale.
    """

    codes: np.ndarray
    scales: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the embeddings, (L, N, D)."""
        return self.codes.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the codes."""
        return self.codes.dtype

    def rows(self, selection: Rows) -> Float32[np.ndarray, "L M D"]:
        """Return some embeddings.

        Args:
            selection: a slice of the rows, or their positions, [M] int.
        """
        scales = self.scales[:, selection]
        return self.codes[:, selection].astype(np.float32) * scales[:, :, None]


Part = np.ndarray | Quantized


def quantize(embeddings: Float[np.ndarray, "L N D"]) -> Quantized:
    """Round embeddings to eight bits (docs/method.md, section 11); a row of zeros stays one."""
    embeddings = np.asarray(embeddings, np.float32)
    scales = np.abs(embeddings).max(axis=2, initial=0) / np.float32(_MOST)
    divisors = np.where(scales > 0, scales, np.float32(1))
    with np.errstate(invalid="ignore"):  # the scale of what is not finite shows it
        codes: Int8[np.ndarray, "L N D"] = np.clip(
            np.rint(embeddings / divisors[:, :, None]), -_MOST, _MOST
        ).astype(np.int8)
    return Quantized(codes, scales.astype(np.float32))


def to_part(embeddings: Float[np.ndarray, "L N D"], dtype: str) -> Part:
    """Round embeddings to one of `DTYPES`."""
    if dtype == INT8:
        return quantize(embeddings)
    return np.asarray(embeddings, np.float32).astype(
        ml_dtypes.bfloat16 if dtype == BFLOAT16 else np.float32
    )


def to_arrays(part: Part) -> dict[str, np.ndarray]:
    """Return the arrays that a part is stored as, by name."""
    if isinstance(part, Quantized):
        return {_CODES: part.codes, _SCALES: part.scales}
    return {_EMBEDDINGS: part}


def from_arrays(arrays: Mapping[str, np.ndarray], dtype: str) -> Part:
    """Invert `to_arrays`.

    Raises:
        ValueError: arrays of another dtype, or of shapes that do not fit one another.
    """
    expected = {_CODES, _SCALES} if dtype == INT8 else {_EMBEDDINGS}
    if arrays.keys() != expected:
        raise ValueError(f"it has {', '.join(arrays)}, not {', '.join(sorted(expected))}")
    part = Quantized(arrays[_CODES], arrays[_SCALES]) if dtype == INT8 else arrays[_EMBEDDINGS]
    if part.dtype.name != dtype or len(part.shape) != 3:
        raise ValueError(f"it has embeddings of {part.dtype.name} {part.shape}, not of {dtype}")
    if isinstance(part, Quantized) and part.scales.shape != part.shape[:2]:
        raise ValueError(f"it has scales {part.scales.shape} for embeddings {part.shape}")
    return part


def rows_of(part: Part, selection: Rows) -> Float32[np.ndarray, "L M D"]:
    """Return some embeddings of a part in float32, as `Quantized.rows` does."""
    if isinstance(part, Quantized):
        return part.rows(selection)
    return np.asarray(part[:, selection]).astype(np.float32)


def take(part: Part, selection: Rows) -> Part:
    """Return some rows of a part as they are stored."""
    if isinstance(part, Quantized):
        return Quantized(part.codes[:, selection], part.scales[:, selection])
    return part[:, selection]


def join(parts: list[Part]) -> Part:
    """Return the rows of one part or more in one, as they are stored."""
    if isinstance(parts[0], Quantized):
        codes, scales = ([getattr(part, name) for part in parts] for name in ("codes", "scales"))
        return Quantized(np.concatenate(codes, axis=1), np.concatenate(scales, axis=1))
    return np.concatenate(parts, axis=1)
