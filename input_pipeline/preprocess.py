"""Photographs to pixels in TensorFlow, for tf.data (SPEC 4): `cmap_jax.processing.images`' twin.

    items = items.map(
        lambda encoded, seed: training_image(encoded, seed, preprocessing), tf.data.AUTOTUNE
    )

Decoding gives PIL's pixels exactly; resizing differs from PIL's by one grey level at most, since
PIL rounds between its two passes. Everything works eagerly and inside `map`. A damaged image raises
`tf.errors.InvalidArgumentError` inside tf.data (eagerly, it may be `ImageReadError`).
"""

import numpy as np
import tensorflow as tf
from jaxtyping import Bool, Int, UInt8

from cmap_jax.processing.images import MAX_SIDE, ImagePreprocessing, read_image

# A PNG begins with a signature (8 bytes) and the IHDR chunk (length 4, name 4, width 4, height 4,
# bit depth 1, colour type 1, ...), and ends with an empty IEND chunk.
_HEADER_BYTES = 26
_JPEG_START = tuple(b"\xff\xd8\xff")
_PNG_START = tuple(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def decode_image(encoded: tf.Tensor | bytes) -> UInt8[tf.Tensor, "H W 3"]:
    """Decode a file's bytes to the pixels of PIL's `convert("RGB")`.

    TensorFlow decodes JPEG and PNG. The rest goes through PIL: other formats; JPEG of four channels
    (CMYK: a grey level apart); PNG of 16 bits (grey: PIL clips, TensorFlow keeps the high byte);
    PNG without its end chunk (PIL accepts it where the pixels are there); and sizes above
    `MAX_SIDE`, to be refused.

    Args:
        encoded: scalar string, a whole file.

    Raises:
        tf.errors.InvalidArgumentError: the image cannot be decoded, or a side exceeds `MAX_SIDE`.
            Eagerly, what goes through PIL raises `ImageReadError`.
    """
    encoded = tf.convert_to_tensor(encoded, tf.string)
    header = tf.io.decode_raw(encoded, tf.uint8, fixed_length=_HEADER_BYTES)
    image = tf.cond(
        tf.reduce_all(header[: len(_JPEG_START)] == tf.constant(_JPEG_START, tf.uint8)),
        lambda: _decode_jpeg(encoded),
        lambda: tf.cond(
            _is_plain_png(encoded, header),
            lambda: tf.io.decode_png(encoded, channels=3),
            lambda: _decode_with_pil(encoded),
        ),
    )
    return tf.ensure_shape(image, [None, None, 3])


def resize_and_pad(
    image: UInt8[tf.Tensor, "H W 3"], preprocessing: ImagePreprocessing
) -> UInt8[tf.Tensor, "R R 3"]:
    """Pad to a square, then resize it, antialiased bilinear, rounded to uint8 (SPEC 4).

    The shorter side gets `delta // 2` pixels before the image and the rest after.

    Returns:
        Pixels 0..255 within one grey level of PIL's; R = `preprocessing.resize`, a static shape.
    """
    resize = preprocessing.resize
    if image.shape.as_list() == [resize, resize, 3]:
        return image
    height, width = tf.unstack(tf.shape(image)[:2])
    side = tf.maximum(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    padding = [[top, side - height - top], [left, side - width - left], [0, 0]]
    square = tf.pad(image, padding, constant_values=preprocessing.pad_value)
    resized = tf.cond(side == resize, lambda: square, lambda: _resize_antialiased(square, resize))
    return tf.ensure_shape(resized, [resize, resize, 3])


def evaluation_image(
    encoded: tf.Tensor | bytes, preprocessing: ImagePreprocessing
) -> UInt8[tf.Tensor, "S S 3"]:
    """Decode, pad, resize and crop the centre: the evaluation path (SPEC 4).

    Args:
        encoded: scalar string, a whole file.
        preprocessing: the sizes.

    Returns:
        Pixels 0..255, S = `preprocessing.crop`, a static shape.

    Raises:
        tf.errors.InvalidArgumentError: as `decode_image`.
    """
    image = resize_and_pad(decode_image(encoded), preprocessing)
    offset = (preprocessing.resize - preprocessing.crop) // 2
    return _crop(image, offset, offset, preprocessing.crop)


def training_image(
    encoded: tf.Tensor | bytes, seed: Int[tf.Tensor, "2"], preprocessing: ImagePreprocessing
) -> UInt8[tf.Tensor, "S S 3"]:
    """Decode, pad, resize, flip and crop at random: the training path (SPEC 4).

    Args:
        encoded: scalar string, a whole file.
        seed: int32 or int64; the result depends on `encoded` and `seed` alone.
        preprocessing: the sizes.

    Returns:
        Pixels 0..255, S = `preprocessing.crop`, a static shape.

    Raises:
        tf.errors.InvalidArgumentError: as `decode_image`.
    """
    image = resize_and_pad(decode_image(encoded), preprocessing)
    top, left, flip = draw_augmentation(seed, preprocessing)
    image = tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)
    return _crop(image, top, left, preprocessing.crop)


def draw_augmentation(
    seed: Int[tf.Tensor, "2"], preprocessing: ImagePreprocessing
) -> tuple[Int[tf.Tensor, ""], Int[tf.Tensor, ""], Bool[tf.Tensor, ""]]:
    """Draw `top, left, flip` of `random_crop_flip`: all offsets alike, a flip with p = 0.5."""
    # The generator is named: "auto" may choose another one on another machine.
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    last = preprocessing.resize - preprocessing.crop
    offsets = tf.random.stateless_uniform(
        [2], crop_seed, minval=0, maxval=last + 1, dtype=tf.int32, alg="philox"
    )
    flip = tf.random.stateless_uniform([], flip_seed, alg="philox") < 0.5
    return offsets[0], offsets[1], flip


def _decode_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    height, width, channels = tf.unstack(tf.io.extract_jpeg_shape(encoded), num=3)
    return tf.cond(
        (channels <= 3) & (tf.maximum(height, width) <= MAX_SIDE),
        # The default, a faster transform, is up to 9 grey levels away from PIL's.
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: _decode_with_pil(encoded),
    )


def _is_plain_png(encoded: tf.Tensor, header: tf.Tensor) -> tf.Tensor:
    """Whether this is a PNG that TensorFlow decodes just as PIL does."""
    tail_start = tf.maximum(tf.strings.length(encoded) - len(_PNG_END), 0)
    sides = tf.reshape(tf.cast(header[16:24], tf.int64), [2, 4])
    sides = tf.linalg.matvec(sides, tf.constant([2**24, 2**16, 2**8, 1], tf.int64))
    return (
        tf.reduce_all(header[: len(_PNG_START)] == tf.constant(_PNG_START, tf.uint8))
        & (tf.reduce_max(sides) <= MAX_SIDE)
        & (header[24] <= 8)
        & (tf.strings.substr(encoded, tail_start, len(_PNG_END)) == _PNG_END)
    )


def _decode_with_pil(encoded: tf.Tensor) -> tf.Tensor:
    def decode(data: bytes | np.ndarray) -> np.ndarray:
        # Eagerly the string comes as an array of one object.
        return np.asarray(read_image(data if isinstance(data, bytes) else data.item()))

    image = tf.numpy_function(decode, [encoded], tf.uint8, stateful=False)
    return tf.ensure_shape(image, [None, None, 3])


def _resize_antialiased(square: tf.Tensor, size: int) -> tf.Tensor:
    resized = tf.image.resize(square, [size, size], method="bilinear", antialias=True)
    # Halves go up, as in PIL; the cast truncates.
    return tf.cast(resized + 0.5, tf.uint8)


def _crop(image: tf.Tensor, top: tf.Tensor | int, left: tf.Tensor | int, size: int) -> tf.Tensor:
    return tf.ensure_shape(image[top : top + size, left : left + size], [size, size, 3])
