"""Crops and flips: cut as PIL cuts them, drawn alike from one seed."""

import numpy as np
import pytest
import tensorflow as tf
from beartype import beartype
from jaxtyping import jaxtyped
from PIL import Image

from cmap_jax.processing.images import ImagePreprocessing, random_crop_flip
from cmap_jax.processing.images import center_crop as pil_center_crop
from input_pipeline.images import preprocess
from input_pipeline.images.augmentation import center_crop, cut, draw_crops

PREPROCESSING = ImagePreprocessing(resize=40, crop=32)
SQUARES = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), np.uint8)


def test_cuts_what_pil_cuts():
    crops = draw_crops(3, 1, 20, PREPROCESSING)
    rows = np.random.default_rng(1).integers(0, 5, (20, 2))
    pixels = jaxtyped(typechecker=beartype)(cut)(SQUARES, rows, crops, 32)
    assert (pixels.shape, pixels.dtype) == ((20, 2, 32, 32, 3), np.uint8)
    assert set(crops[..., 2].ravel()) == {0, 1}
    for index in np.ndindex(20, 2):
        top, left, flip = (int(n) for n in crops[index])
        image = Image.fromarray(SQUARES[rows[index]])
        expected = random_crop_flip(image, top=top, left=left, flip=bool(flip), size=32)
        np.testing.assert_array_equal(pixels[index], np.asarray(expected))


def test_tensorflow_cuts_the_same():
    crops = draw_crops(3, 1, 20, PREPROCESSING)[:, 0]
    expected = cut(SQUARES, np.zeros(20, int), crops, 32)
    eager = jaxtyped(typechecker=beartype)(preprocess.cut)
    for crop, pixels in zip(crops, expected, strict=True):
        cut_eagerly = eager(tf.constant(SQUARES[0]), tf.constant(crop), PREPROCESSING)
        np.testing.assert_array_equal(cut_eagerly, pixels)
    items = tf.data.Dataset.from_tensor_slices(crops)
    items = items.map(lambda crop: preprocess.cut(tf.constant(SQUARES[0]), crop, PREPROCESSING))
    assert items.element_spec == tf.TensorSpec([32, 32, 3], tf.uint8)
    np.testing.assert_array_equal(list(items.as_numpy_iterator()), expected)


@pytest.mark.parametrize("resize", [40, 39, 32])
def test_the_center_is_pils(resize):
    squares = SQUARES[:, :resize, :resize]
    crop = center_crop(ImagePreprocessing(resize=resize, crop=32))
    (pixels,) = cut(squares, np.array([2]), crop[None], 32)
    expected = pil_center_crop(Image.fromarray(squares[2]), 32)
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("crop", [(9, 0, 0), (0, 9, 1), (-1, 0, 0), (0, -1, 1)])
def test_a_crop_outside_the_image_is_refused(crop):
    with pytest.raises(ValueError, match="a crop of 32 pixels leaves images of 40"):
        cut(SQUARES, np.array([0]), np.array([crop]), 32)


def test_draws_are_a_function_of_seed_and_epoch():
    draws = [draw_crops(seed, epoch, 50, PREPROCESSING) for seed, epoch in ((0, 1), (1, 0), (0, 0))]
    for a, b in zip(draws, draws[1:] + draws[:1], strict=True):
        assert (a != b).any()
    np.testing.assert_array_equal(draw_crops(0, 1, 50, PREPROCESSING), draws[0])


def test_all_offsets_and_both_flips_are_alike():
    count = 6600
    crops = draw_crops(17, 0, count, ImagePreprocessing())
    assert np.abs(crops[..., 2].mean(axis=0) - 0.5).max() < 4 * 0.5 / count**0.5
    for side in range(2):
        for offset in (0, 1):
            counts = np.bincount(crops[:, side, offset], minlength=33)
            assert counts.shape == (33,), "offsets are 0..32, both ends included"
            # Chi-squared with 32 degrees of freedom: mean 32, deviation 8.
            expected = count / 33
            assert ((counts - expected) ** 2 / expected).sum() < 32 + 4 * 8
    # Independent of one another, of the other side's, and of the neighbouring item's.
    columns = crops.reshape(count, 6).T
    rows = np.concatenate([columns, np.roll(columns, 1, axis=1)])
    assert np.abs(np.corrcoef(rows) - np.eye(12)).max() < 4 / count**0.5


def test_without_room_the_crop_is_the_whole():
    assert not draw_crops(0, 0, 9, ImagePreprocessing(resize=64, crop=64))[..., :2].any()
