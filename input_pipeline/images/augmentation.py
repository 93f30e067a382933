"""Random crops and flips: drawn from one seed, and cut out of images in memory.

See docs/method.md, section 4.

An epoch's draws are a table with a row an item: a pure function of (seed, epoch, item).
"""

import numpy as np
from jaxtyping import Int, Int32, UInt8

from cmap_jax.processing.images import ImagePreprocessing

_AUGMENTATION = 2  # sets this stream of random numbers apart from others with the same seed


def draw_crops(
    seed: int, epoch: int, items: int, preprocessing: ImagePreprocessing
) -> Int32[np.ndarray, "N 2 3"]:
    """Draw `top, left, flip` for the reference and the target of every item of an epoch.

    Offsets are uniform, a flip has probability 0.5, and all draws are independent.

    Args:
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        items: number of items in the epoch, N.
        preprocessing: sizes in pixels before and after the crop.

    Returns:
        For each item the crops of the reference and of the target, in the form that `cut` takes.
    """
    rng = np.random.default_rng([seed, _AUGMENTATION, epoch])
    last = preprocessing.resize - preprocessing.crop
    crops = np.empty((items, 2, 3), np.int32)
    crops[..., :2] = rng.integers(0, last + 1, (items, 2, 2))
    crops[..., 2] = rng.integers(0, 2, (items, 2))
    return crops


def center_crop(preprocessing: ImagePreprocessing) -> Int32[np.ndarray, "3"]:
    """Return `top, left, flip` of the center; of an odd margin the larger part comes last."""
    offset = (preprocessing.resize - preprocessing.crop) // 2
    return np.array([offset, offset, 0], np.int32)


def cut(
    squares: UInt8[np.ndarray, "M R R 3"],
    rows: Int[np.ndarray, "*batch"],
    crops: Int[np.ndarray, "*batch 3"],
    size: int,
) -> UInt8[np.ndarray, "*batch S S 3"]:
    """Cut crops from images in memory; `cut_one` is the same for one image.

    Args:
        squares: the images, M of R x R pixels; only the crops are copied.
        rows: index of the image for each crop, 0 to M - 1.
        crops: first row of the crop; first column, counted *after* the flip; 1 to flip, left to
            right, else 0.
        size: side of the crop, S pixels.

    Raises:
        ValueError: a crop leaves the image.
    """
    last = squares.shape[1] - size
    if crops[..., :2].size and not 0 <= crops[..., :2].min() <= crops[..., :2].max() <= last:
        raise ValueError(f"a crop of {size} pixels leaves images of {squares.shape[1]}")
    out = np.empty((*rows.shape, size, size, 3), np.uint8)
    flat = out.reshape(-1, size, size, 3)
    for pixels, row, crop in zip(flat, rows.ravel().tolist(), crops.reshape(-1, 3), strict=True):
        cut_one(squares[row], crop, pixels)
    return out


def cut_one(
    square: UInt8[np.ndarray, "R R 3"],
    crop: Int[np.ndarray, "3"],
    out: UInt8[np.ndarray, "S S 3"],
) -> None:
    """Flip and crop one image; `preprocess.cut` is the same in tf.data.

    Args:
        square: an image of R x R pixels.
        crop: first row, first column after the flip, and 1 to flip; it must not leave the image.
        out: array that receives the pixels.
    """
    size = len(out)
    top, left, flip = crop.tolist()
    if not flip:
        out[:] = square[top : top + size, left : left + size]
        return
    start = len(square) - size - left  # the same columns before the flip
    mirrored = square[top : top + size, start : start + size][:, ::-1]
    for channel in range(3):  # copying all channels at once takes four times as long
        out[..., channel] = mirrored[..., channel]
