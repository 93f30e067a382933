"""Photographs to pixels in PIL and NumPy (docs/method.md, section 4).

Training, evaluation, preparation and use all see these pixels, bit for bit: `input_pipeline` calls
these functions inside tf.data. TensorFlow is not needed here.

    preprocessing = ImagePreprocessing()
    pixels = preprocess_image("dress.jpg", preprocessing)       # uint8 [224, 224, 3]
"""

import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cmap_jax.files import check_regular_file
from cmap_jax.processing.image_files import (
    MAX_SIDE,
    ImageReadError,
    explain_failure,
    is_sixteen_bit_grey,
    open_image,
    orientation,
    why_refused,
)
from cmap_jax.processing.padded_resize import (
    FITS,
    RESAMPLINGS,
    crop_and_resize,
    pad_and_resize,
    pad_to_ratio,
    resize_square,
)

RELEASED, UPRIGHT = READINGS = ("released", "upright")
FIXED, OWN_MAXIMUM = SCALINGS = ("fixed", "own_maximum")

# The highest value of 16 bits divided by the highest of 8 bits.
_SIXTEEN_TO_EIGHT_BITS = 257
# EXIF's orientation, with the operation that turns the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Preprocessed:
    """A picture that `preprocess_image` has already made ready, and that it returns as it is.

    With it the reading of pictures can be done elsewhere than their encoding.

    Attributes:
        pixels: uint8 [S, S, 3], made with the preprocessing of the model that encodes them.
    """

    pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImagePreprocessing:
    """How a picture is read, and the sizes of the image operations; stored with a model.

    Attributes:
        resize: side of the square that an image is brought to, pixels.
        crop: side of the square cut from it, pixels; at most `resize`.
        pad_value: grey level of the padding under "pad", 0..255; 255 is white.
        read_as: "released": EXIF orientation is ignored and alpha dropped, as in the published
            protocols; "upright": as a person sees it, turned as EXIF says, with transparency
            composited on the padding's grey level.
        fit: how an image becomes a square: "pad": its shorter side is padded; "crop": the ends of
            its longer side are cut off; "stretch": its sides are scaled by different factors;
            "targetpad": one longer than 1.25 times its shorter side is padded to that with black,
            whatever `pad_value` is, and then the ends of its longer side are cut off.
        resampling: the filter of resizing, "bilinear" or "bicubic", antialiased.
        scaling: "fixed": 255 is white; "own_maximum": a picture's levels are scaled so that the
            highest of all its channels becomes 255, before it is resized.

    Raises:
        ValueError: a size is not an integer or out of range, or a choice does not exist.
    """

    resize: int = 256
    crop: int = 224
    pad_value: int = 255
    read_as: str = RELEASED
    fit: str = FITS[0]
    resampling: str = RESAMPLINGS[0]
    scaling: str = FIXED

    def __post_init__(self) -> None:
        for field in ("resize", "crop", "pad_value"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{field} must be an integer, got {value!r}")
        if self.crop <= 0:
            raise ValueError(f"crop must be positive, got {self.crop}")
        if self.crop > self.resize:
            raise ValueError(f"crop ({self.crop}) must not exceed resize ({self.resize})")
        if self.resize > MAX_SIDE:
            raise ValueError(f"resize must not exceed {MAX_SIDE}, got {self.resize}")
        if not 0 <= self.pad_value <= 255:
            raise ValueError(f"pad_value must be in 0..255, got {self.pad_value}")
        choices = {
            "read_as": READINGS,
            "fit": FITS,
            "resampling": RESAMPLINGS,
            "scaling": SCALINGS,
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{field} must be {' or '.join(allowed)}, got {getattr(self, field)!r}"
                )

    def to_dict(self) -> dict[str, int | str]:
        """Return the fields, ready for JSON; earlier versions know the usual scaling alone."""
        fields = dataclasses.asdict(self)
        if self.scaling == FIXED:
            del fields["scaling"]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ImagePreprocessing":
        """Invert `to_dict`; an absent field takes its default.

        Raises:
            ValueError: a field is unknown or its value is not valid.
        """
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown image preprocessing fields: {', '.join(unknown)}")
        return cls(**fields)


def read_image(
    source: ImageSource, preprocessing: ImagePreprocessing = ImagePreprocessing()
) -> Image.Image:
    """Read an image in eight bits of red, green and blue, in the way that a model was trained with.

    Grey of 16 bits is scaled (its value // 257); the rest is as PIL's `convert("RGB")` gives it. Of
    several frames the first is read.

    Args:
        source: a path (an object with `read_bytes` may be remote), an encoded file as bytes, a PIL
            image (left as it is), or a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
        preprocessing: its ``read_as`` and ``pad_value`` are used.

    Returns:
        A new PIL image of mode "RGB".

    Raises:
        ImageReadError: missing, empty, truncated, not an image, in a format or with pixels that
            cannot be read, or a side above `MAX_SIDE`.
        TypeError: `source` is none of these kinds.
    """
    if isinstance(source, Image.Image):
        name = f"PIL image of size {source.width}x{source.height}"
        return _to_rgb(source, name, preprocessing)
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), f"array of shape {source.shape}", preprocessing)
    if isinstance(source, bytes | bytearray | memoryview):
        encoded, name = bytes(source), f"image given as {len(source)} bytes"
    elif isinstance(source, str | os.PathLike):
        encoded, name = _read_bytes(source), os.fspath(source)
    else:
        raise TypeError(f"cannot read an image from {type(source).__name__}")
    if not encoded:
        raise ImageReadError(f"{name}: zero bytes")
    try:
        opened = open_image(io.BytesIO(encoded))
    except ImageReadError as error:
        raise ImageReadError(f"{name}: {error}") from error
    with opened as image:
        return _to_rgb(image, name, preprocessing, own=True)


def to_square(image: Image.Image, preprocessing: ImagePreprocessing) -> Image.Image:
    """Bring an image of mode "RGB" to a square of side ``resize`` (docs/method.md, section 4)."""
    size, filter_ = preprocessing.resize, preprocessing.resampling
    if preprocessing.scaling == OWN_MAXIMUM:
        image = scale_to_white(image)
    if preprocessing.fit == "pad":
        return pad_and_resize(image, size, preprocessing.pad_value, filter_)
    if preprocessing.fit == "targetpad":
        image = pad_to_ratio(image)
    if preprocessing.fit in ("crop", "targetpad"):
        return crop_and_resize(image, size, filter_)
    return resize_square(image, size, filter_)


def scale_to_white(image: Image.Image) -> Image.Image:
    """Scale a picture's levels so that the highest of all channels is 255, rounded to uint8.

    See docs/method.md, section 10. A black picture stays black.
    """
    highest = max(high for _, high in image.getextrema())
    if highest in (0, 255):
        return image
    levels = [min(255, (2 * 255 * level + highest) // (2 * highest)) for level in range(256)]
    return image.point(levels * len(image.getbands()))


def load_square(source: ImageSource, preprocessing: ImagePreprocessing) -> Image.Image:
    """Read and resize an image to the square that all crops are cut from.

    See docs/method.md, section 4.

    Raises:
        ImageReadError: as `read_image`.
    """
    return to_square(read_image(source, preprocessing), preprocessing)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut the central `size` x `size` pixels; an odd remainder goes right and below.

    Raises:
        ValueError: the image is smaller than `size`.
    """
    return _crop(image, (image.height - size) // 2, (image.width - size) // 2, size)


def random_crop_flip(
    image: Image.Image, *, top: int, left: int, flip: bool, size: int
) -> Image.Image:
    """Augment for training with given random numbers: flip left to right, then crop.

    See docs/method.md, section 4.

    Args:
        image: mode "RGB", at least `size` pixels a side.
        top: first row of the crop, counted from the top.
        left: first column of the crop, counted from the left *after* the flip.
        flip: whether to flip.
        size: side of the crop, pixels.

    Raises:
        ValueError: the crop leaves the image.
    """
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _crop(image, top, left, size)


def preprocess_image(
    source: ImageSource | Preprocessed, preprocessing: ImagePreprocessing
) -> UInt8[np.ndarray, "S S 3"]:
    """Read, resize and crop the centre, as in evaluation (docs/method.md, section 4).

    Args:
        source: as `read_image` takes it; or the result of this function.
        preprocessing: sizes, and how the picture is read.

    Returns:
        Pixels 0..255, S = `preprocessing.crop`.

    Raises:
        ImageReadError: as `read_image`.
    """
    if isinstance(source, Preprocessed):
        return source.pixels
    return np.array(center_crop(load_square(source, preprocessing), preprocessing.crop))


def explain_os_error(error: OSError) -> str:
    """Return the system's message, without the number and the name of the file."""
    return error.strerror or str(error)


def _read_bytes(path: str | os.PathLike) -> bytes:
    # A path object may know its own storage (etils' epath reads gs://); a plain string is local.
    readable = path if hasattr(path, "read_bytes") else Path(path)
    try:
        check_regular_file(path)
        return readable.read_bytes()
    except ValueError as error:  # a pipe or a device; also a path with a null character
        raise ImageReadError(str(error)) from error
    except FileNotFoundError as error:
        raise ImageReadError(f"{os.fspath(path)}: missing") from error
    except OSError as error:
        reason = explain_os_error(error)
        raise ImageReadError(f"{os.fspath(path)}: unreadable: {reason}") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise ImageReadError(f"array of dtype {pixels.dtype}: an image array must be uint8")
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    coloured = pixels.ndim == 3 and pixels.shape[-1] in (3, 4)
    if not (pixels.ndim == 2 or coloured) or pixels.size == 0:
        raise ImageReadError(
            f"array of shape {pixels.shape}: expected [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _to_rgb(
    image: Image.Image, name: str, preprocessing: ImagePreprocessing, own: bool = False
) -> Image.Image:
    """Return an image as "RGB"; a copy, unless ``own`` says that the caller gives it away."""
    if reason := why_refused(image):
        raise ImageReadError(f"{name}: {reason}")
    upright = preprocessing.read_as == UPRIGHT
    try:
        image.load()
        turn = _TURNS.get(orientation(image)) if upright else None
        if is_sixteen_bit_grey(image):
            image = _scale_grey(image)
        if upright and image.has_transparency_data:
            image = _lay_on_grey(image, preprocessing.pad_value)
        if "transparency" in image.info:
            # Alpha is dropped anyway, and PIL would warn about a palette's.
            image = image.copy()
            del image.info["transparency"]
        if not own or image.mode != "RGB":
            image = image.convert("RGB")
        if turn is not None:
            image = image.transpose(turn)
            image.info = {}  # its orientation no longer holds
        return image
    except Exception as error:
        raise ImageReadError(f"{name}: {explain_failure(error, image)}") from error


def _scale_grey(image: Image.Image) -> Image.Image:
    """Return grey of 16 bits in 8 bits, with an alpha channel where one level is transparent."""
    values = np.asarray(image)
    grey = Image.fromarray((values // _SIXTEEN_TO_EIGHT_BITS).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is None:
        return grey
    alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _lay_on_grey(image: Image.Image, level: int) -> Image.Image:
    """Composite an image with transparency on a level of grey."""
    if image.mode == "La":  # premultiplied, which PIL converts to nothing else
        image = image.convert("LA")
    colours = image.convert("RGBA")
    ground = Image.new("RGB", image.size, (level, level, level))
    ground.paste(colours, mask=colours.getchannel("A"))
    return ground


def _crop(image: Image.Image, top: int, left: int, size: int) -> Image.Image:
    # PIL pads a crop that leaves the image with black, silently.
    if min(top, left) < 0 or top + size > image.height or left + size > image.width:
        raise ValueError(
            f"a {size}x{size} crop at row {top}, column {left} leaves an image of "
            f"{image.height} rows and {image.width} columns"
        )
    return image.crop((left, top, left + size, top + size))
