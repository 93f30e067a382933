"""Photographs to pixels in PIL and NumPy: what a model must know of an image (SPEC 4).

`input_pipeline.preprocess` holds the same operations in TensorFlow, and tests hold the two equal:
a model trained there can be served from here, without TensorFlow.

    preprocessing = ImagePreprocessing()
    pixels = preprocess_image("dress.jpg", preprocessing)       # uint8 [224, 224, 3]
    reason = check_image_stream(open("dress.jpg", "rb"))        # None, or why it cannot be used
"""

import dataclasses
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

# Per channel (red, green, blue), for images scaled to [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The longest side that is read, in pixels. An image is padded to a square, so a 60000 x 1 file of a
# few bytes would ask for gigabytes: the square is held to PIL's own limit (256 MiB as RGB).
MAX_SIDE = math.isqrt(1024 * 1024 * 1024 // 4 // 3)

# The encoder halves the resolution five times.
_CROP_MULTIPLE = 32

_TAIL_BYTES = 4096
_JPEG_START_OF_SCAN = b"\xff\xda"
_JPEG_END = b"\xff\xd9"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray


class ImageReadError(ValueError):
    """An image that cannot be read; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class ImagePreprocessing:
    """The sizes of the image operations; stored with a model.

    Attributes:
        resize: side of the square an image is padded and resized to, pixels.
        crop: side of the square cut from it, pixels; a multiple of 32, at most `resize`.
        pad_value: grey level of the padding, 0..255; 255 is white.

    Raises:
        ValueError: a field is not an integer or is out of range.
    """

    resize: int = 256
    crop: int = 224
    pad_value: int = 255

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{field.name} must be an integer, got {value!r}")
        if self.crop <= 0 or self.crop % _CROP_MULTIPLE:
            raise ValueError(f"crop must be a positive multiple of 32, got {self.crop}")
        if self.crop > self.resize:
            raise ValueError(f"crop ({self.crop}) must not exceed resize ({self.resize})")
        if self.resize > MAX_SIDE:
            raise ValueError(f"resize must not exceed {MAX_SIDE}, got {self.resize}")
        if not 0 <= self.pad_value <= 255:
            raise ValueError(f"pad_value must be in 0..255, got {self.pad_value}")

    def to_dict(self) -> dict[str, int]:
        """Return the fields as plain integers, ready for JSON."""
        return dataclasses.asdict(self)

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


def read_image(source: ImageSource) -> Image.Image:
    """Read an image as PIL's `convert("RGB")` gives it.

    Alpha is dropped, not blended, and EXIF orientation is not applied (SPEC 4). Of several frames
    the first is read.

    Args:
        source: a path (an object with `read_bytes` may be remote), an encoded file as bytes, a PIL
            image (left as it is), or a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].

    Returns:
        A new PIL image of mode "RGB".

    Raises:
        ImageReadError: missing, empty, truncated, not an image, or a side above `MAX_SIDE`.
        TypeError: `source` is none of these kinds.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, f"PIL image of size {source.width}x{source.height}")
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), f"array of shape {source.shape}")
    if isinstance(source, bytes | bytearray | memoryview):
        encoded, name = bytes(source), f"image given as {len(source)} bytes"
    elif isinstance(source, str | os.PathLike):
        encoded, name = _read_bytes(source), os.fspath(source)
    else:
        raise TypeError(f"cannot read an image from {type(source).__name__}")
    if not encoded:
        raise ImageReadError(f"{name}: zero bytes")
    with _open(io.BytesIO(encoded), name) as image:
        return _to_rgb(image, name)


def pad_to_square(image: Image.Image, pad_value: int = 255) -> Image.Image:
    """Pad the shorter side: `delta // 2` pixels before the image and the rest after (SPEC 4).

    Args:
        image: mode "RGB", any size.
        pad_value: grey level of the padding, 0..255.
    """
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), (pad_value, pad_value, pad_value))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def resize_square(image: Image.Image, size: int) -> Image.Image:
    """Resize to `size` x `size` pixels, antialiased bilinear, rounded to uint8 (SPEC 4)."""
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BILINEAR)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut the central `size` x `size` pixels; an odd remainder goes right and below.

    Raises:
        ValueError: the image is smaller than `size`.
    """
    return _crop(image, (image.height - size) // 2, (image.width - size) // 2, size)


def random_crop_flip(
    image: Image.Image, *, top: int, left: int, flip: bool, size: int
) -> Image.Image:
    """Augment for training with given random numbers: flip left to right, then crop (SPEC 4).

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
    source: ImageSource, preprocessing: ImagePreprocessing
) -> UInt8[np.ndarray, "S S 3"]:
    """Read, pad, resize and crop the centre: the evaluation path (SPEC 4).

    Returns:
        Pixels 0..255, S = `preprocessing.crop`.

    Raises:
        ImageReadError: as `read_image`.
    """
    image = pad_to_square(read_image(source), preprocessing.pad_value)
    image = centre_crop(resize_square(image, preprocessing.resize), preprocessing.crop)
    return np.array(image)


def normalise(images: UInt8[np.ndarray, "*batch H W 3"]) -> Float32[np.ndarray, "*batch H W 3"]:
    """Scale to [0, 1], then subtract ImageNet's mean and divide by its deviation (SPEC 4).

    Raises:
        ValueError: the images are not uint8 (they may be normalised already).
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    mean = np.asarray(IMAGENET_MEAN, np.float32)
    std = np.asarray(IMAGENET_STD, np.float32)
    return (images.astype(np.float32) / np.float32(255.0) - mean) / std


def check_image_stream(file: BinaryIO) -> str | None:
    """Check one open image file cheaply; safe to call from many threads.

    The header is read. A JPEG or PNG whose last 4 KB hold the end marker is taken as complete; any
    other file is decoded to decide. So damage inside a complete file is not found.

    Returns:
        None for a usable file, else the reason: "zero bytes", "not an image: ...", "too large: ..."
        or "truncated: ...".
    """
    length = file.seek(0, io.SEEK_END)
    if length == 0:
        return "zero bytes"
    file.seek(max(0, length - _TAIL_BYTES))
    tail = file.read()
    file.seek(0)
    return _check_open_file(file, tail)


def explain_os_error(error: OSError) -> str:
    """Return what the system says, without the number and the name of the file."""
    return error.strerror or str(error)


def _check_open_file(file: BinaryIO, tail: bytes) -> str | None:
    try:
        image = Image.open(file)
    except Exception as error:
        return _open_failure(error)
    with image:
        if max(image.size) > MAX_SIDE:
            return _too_large(image)
        if _is_complete(image.format, tail):
            return None
        try:
            image.load()
        except Exception as error:
            return f"truncated: {error}"
    return None


def _is_complete(image_format: str | None, tail: bytes) -> bool:
    if image_format in ("JPEG", "MPO"):
        # An embedded thumbnail has an end marker too, but the scan of the image comes after it.
        return tail.rfind(_JPEG_END) > tail.rfind(_JPEG_START_OF_SCAN)
    return image_format == "PNG" and _PNG_END in tail


def _read_bytes(path: str | os.PathLike) -> bytes:
    # A path object may know its own storage (etils' epath reads gs://); a plain string is local.
    readable = path if hasattr(path, "read_bytes") else Path(path)
    try:
        return readable.read_bytes()
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


def _open(file: io.BytesIO, name: str) -> Image.Image:
    # PIL's plugins raise whatever a damaged file leads them to (struct.error, SyntaxError,
    # zlib.error ...), and a bomb's warning is raised where warnings are errors: hence `Exception`.
    try:
        return Image.open(file)
    except Exception as error:
        raise ImageReadError(f"{name}: {_open_failure(error)}") from error


def _open_failure(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"too large: {error}"
    if isinstance(error, Image.UnidentifiedImageError):
        # Its own message shows the address of a file object.
        return "not an image: no known format"
    return f"not an image: {error}"


def _too_large(image: Image.Image) -> str:
    return f"too large: {image.width}x{image.height}, the longest side allowed is {MAX_SIDE}"


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if max(image.size) > MAX_SIDE:
        raise ImageReadError(f"{name}: {_too_large(image)}")
    if min(image.size) == 0:
        raise ImageReadError(f"{name}: no pixels")
    try:
        image.load()
        if "transparency" in image.info:
            # Alpha is dropped anyway, and for a palette's alpha PIL would warn about it.
            image = image.copy()
            del image.info["transparency"]
        return image.convert("RGB")
    except Exception as error:
        raise ImageReadError(f"{name}: truncated or corrupt: {error}") from error


def _crop(image: Image.Image, top: int, left: int, size: int) -> Image.Image:
    # PIL pads a crop that leaves the image with black, silently.
    if min(top, left) < 0 or top + size > image.height or left + size > image.width:
        raise ValueError(
            f"a {size}x{size} crop at row {top}, column {left} leaves an image of "
            f"{image.height} rows and {image.width} columns"
        )
    return image.crop((left, top, left + size, top + size))
