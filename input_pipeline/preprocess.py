"""Photographs to pixels in tf.data: PIL's pixels, from files as from prepared data (SPEC 4).

    items = items.map(lambda encoded: load_square(encoded, preprocessing), tf.data.AUTOTUNE)

Files go through PIL, whose resize no other is equal to. While it decodes and resizes it lets the
interpreter go, so that the threads of `map` work at the same time. Prepared images need no resize,
and TensorFlow decodes what the builders write to PIL's pixels, more than twice as fast. Everything
works eagerly and inside `map`. A damaged image raises `tf.errors.InvalidArgumentError` inside
tf.data (eagerly, it may be `ImageReadError`).
"""

import numpy as np
import tensorflow as tf
from jaxtyping import Int32, UInt8

from cmap_jax.processing import images
from cmap_jax.processing.images import ImagePreprocessing


def load_square(
    encoded: tf.Tensor | bytes, preprocessing: ImagePreprocessing
) -> UInt8[tf.Tensor, "R R 3"]:
    """Decode, pad and resize: what training and evaluation cut their crops from (SPEC 4).

    Args:
        encoded: scalar string, a whole file.
        preprocessing: how pictures are read, and the sizes.

    Returns:
        The pixels of `images.load_square`, 0..255; R = `preprocessing.resize`, a static shape.

    Raises:
        tf.errors.InvalidArgumentError: the image cannot be used.
    """
    return load_sized_square(encoded, preprocessing)[0]


def load_sized_square(
    encoded: tf.Tensor | bytes, preprocessing: ImagePreprocessing
) -> tuple[UInt8[tf.Tensor, "R R 3"], Int32[tf.Tensor, "2"]]:
    """Return what `load_square` does, and height and width of the picture before it was padded."""
    side = preprocessing.resize
    encoded = tf.convert_to_tensor(encoded, tf.string)  # NumPy would cut zeros off the end

    def load(data: bytes | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Eagerly the string comes as an array of one object.
        data = data if isinstance(data, bytes) else data.item()
        image = images.read_image(data, preprocessing)
        size = np.array([image.height, image.width], np.int32)
        return np.asarray(images.to_square(image, preprocessing)), size

    square, size = tf.numpy_function(load, [encoded], (tf.uint8, tf.int32), stateful=False)
    return tf.ensure_shape(square, [side, side, 3]), tf.ensure_shape(size, [2])


def decode_square(
    encoded: tf.Tensor | bytes, preprocessing: ImagePreprocessing
) -> UInt8[tf.Tensor, "R R 3"]:
    """Decode a prepared image, JPEG or PNG, which has been padded and resized already.

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
    """Flip and crop one image, as `augmentation.cut` does many.

    Args:
        square: what `load_square` gives.
        crop: first row of the crop; first column, counted *after* the flip; 1 to flip, else 0.
        preprocessing: the sizes; S = `preprocessing.crop`, a static shape.
    """
    size = preprocessing.crop
    top, left, flip = tf.unstack(crop)
    # The same columns before the flip: less is mirrored.
    left = tf.where(flip == 1, preprocessing.resize - size - left, left)
    pixels = tf.ensure_shape(square[top : top + size, left : left + size], [size, size, 3])
    return tf.cond(flip == 1, lambda: tf.reverse(pixels, [1]), lambda: pixels)
