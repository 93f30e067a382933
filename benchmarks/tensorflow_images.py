"""Photographs to pixels by TensorFlow's operations, as an alternative to PIL.

`input_pipeline.py` measures what training from photographs would gain by it. Decoding gives PIL's
pixels exactly. The resize has PIL's precision but another order, and differs by up to 2 grey
levels.
"""

import numpy as np
import tensorflow as tf
from jaxtyping import UInt8

from cmap_jax.processing.image_files import MAX_SIDE
from cmap_jax.processing.images import ImagePreprocessing, read_image

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
        encoded: content of an image file, a scalar string.

    Raises:
        tf.errors.InvalidArgumentError: the image cannot be decoded, or a side exceeds `MAX_SIDE`.
            Run eagerly, PIL's part raises `ImageReadError`.
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
    """Pad to a square, then resize it, antialiased bilinear, rounded to uint8.

    See docs/method.md, section 4.

    The shorter side gets `delta // 2` pixels before the image and the rest after.

    Returns:
        Pixels 0..255 within two grey levels of PIL's; R = `preprocessing.resize`, a static shape.
    """
    resize, white = preprocessing.resize, preprocessing.pad_value
    if image.shape.as_list() == [resize, resize, 3]:
        return image
    height, width = tf.unstack(tf.shape(image)[:2])
    side = tf.maximum(height, width)

    def pad_only() -> tf.Tensor:
        tall = _pad_rows(image, side, white)
        return tf.cond(
            width == side,
            lambda: tall,
            lambda: tf.transpose(_pad_rows(tf.transpose(tall, [1, 0, 2]), side, white), [1, 0, 2]),
        )

    def pad_and_resize() -> tf.Tensor:
        # Rows first, then columns as the rows of the transposed image: TensorFlow's kernel takes
        # four times as long for columns of three channels. The first result is rounded, as in PIL.
        tall = _resize_rows(_pad_rows(image, side, white), resize)  # [R, W, 3]
        wide = _pad_rows(tf.transpose(tall, [1, 0, 2]), side, white)
        return tf.transpose(_resize_rows(wide, resize), [1, 0, 2])

    return tf.ensure_shape(tf.cond(side == resize, pad_only, pad_and_resize), [resize, resize, 3])


def load_square(
    encoded: tf.Tensor | bytes, preprocessing: ImagePreprocessing
) -> UInt8[tf.Tensor, "R R 3"]:
    """Decode, pad and resize, as `input_pipeline.images.preprocess.load_square` does with PIL.

    Args:
        encoded: content of an image file, a scalar string.
        preprocessing: side R of the result, and the grey value of the padding.

    Returns:
        Pixels 0..255, R = `preprocessing.resize`, a static shape.

    Raises:
        tf.errors.InvalidArgumentError: the image cannot be decoded; see `decode_image`.
    """
    return resize_and_pad(decode_image(encoded), preprocessing)


def _decode_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    height, width, channels = tf.unstack(tf.io.extract_jpeg_shape(encoded), num=3)
    return tf.cond(
        (channels <= 3) & (tf.maximum(height, width) <= MAX_SIDE),
        # The default, a faster transform, is up to 9 grey levels away from PIL's.
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: _decode_with_pil(encoded),
    )


def _is_plain_png(encoded: tf.Tensor, header: tf.Tensor) -> tf.Tensor:
    """Tell whether this is a PNG that TensorFlow decodes to PIL's pixels."""
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
        # Run eagerly, the string is an array of one object.
        return np.asarray(read_image(data if isinstance(data, bytes) else data.item()))

    image = tf.numpy_function(decode, [encoded], tf.uint8, stateful=False)
    return tf.ensure_shape(image, [None, None, 3])


def _pad_rows(image: tf.Tensor, side: tf.Tensor, value: int) -> tf.Tensor:
    """Pad the first axis to ``side``: `delta // 2` rows before and the rest after."""
    rows, others = tf.shape(image)[0], tf.shape(image)[1:]
    before = (side - rows) // 2

    def fill(count: tf.Tensor) -> tf.Tensor:
        return tf.fill(tf.concat([[count], others], 0), tf.constant(value, tf.uint8))

    return tf.cond(
        rows == side,
        lambda: image,
        lambda: tf.concat([fill(before), image, fill(side - rows - before)], 0),
    )


def _resize_rows(image: tf.Tensor, size: int) -> UInt8[tf.Tensor, "R W 3"]:
    """Resize along the first axis alone, antialiased bilinear, rounded."""
    rows, columns = tf.unstack(tf.shape(image)[:2])
    resized = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, [1, rows, 1, 3 * columns]),
        size=[size, 1],
        scale=tf.stack([size / tf.cast(rows, tf.float32), 1.0]),
        translation=[0.0, 0.0],
        kernel_type="triangle",
        antialias=True,
    )
    # The cast truncates; with 0.5 added it rounds halves up, as PIL does.
    return tf.cast(tf.reshape(resized, [size, columns, 3]) + 0.5, tf.uint8)
