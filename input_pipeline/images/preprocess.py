"""From prepared images to crops, in TensorFlow's operations.

Prepared images need no resize, and TensorFlow decodes them to PIL's pixels more than twice as fast
as PIL. Everything works eagerly and inside `map`.
"""

import tensorflow as tf
from jaxtyping import Int32, UInt8

from cmap_jax.processing.images import ImagePreprocessing


def take_image(record: tf.Tensor) -> tf.Tensor:
    """Return an image's bytes from its serialized example; both are scalar strings."""
    return tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature([], tf.string)})[
        "image"
    ]


def decode_square(
    encoded: tf.Tensor | bytes, preprocessing: ImagePreprocessing
) -> UInt8[tf.Tensor, "R R 3"]:
    """Decode a prepared image, which has been padded and resized already.

    Args:
        encoded: JPEG or PNG, a scalar string.
        preprocessing: the sizes; R = `preprocessing.resize`, a static shape.

    Raises:
        tf.errors.InvalidArgumentError: the image is damaged, or has another size.
    """
    # The default, a faster transform, is up to 9 grey levels away from PIL's.
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(image, [preprocessing.resize, preprocessing.resize, 3])


def cut(
    square: UInt8[tf.Tensor, "R R 3"],
    crop: Int32[tf.Tensor, "3"],
    preprocessing: ImagePreprocessing,
) -> UInt8[tf.Tensor, "S S 3"]:
    """Flip and crop one image, as `augmentation.cut_one` does.

    Args:
        square: a decoded image of R x R pixels.
        crop: first row of the crop; first column, counted *after* the flip; 1 to flip, else 0.
        preprocessing: the sizes; S = `preprocessing.crop`, a static shape.
    """
    size = preprocessing.crop
    top, left, flip = tf.unstack(crop)
    # The crop is made before the flip, from the same columns, so that fewer pixels are mirrored.
    left = tf.where(flip == 1, preprocessing.resize - size - left, left)
    pixels = tf.ensure_shape(square[top : top + size, left : left + size], [size, size, 3])
    return tf.cond(flip == 1, lambda: tf.reverse(pixels, [1]), lambda: pixels)
