"""Uploaded pictures to pixels: the type is what decodes, and nothing of unlimited size is decoded.

pixels = decode(upload, preprocessing, most_pixels=50_000_000)
"""

import contextlib
import importlib.util
import io
from collections.abc import Iterator

from PIL import Image

from cmap_jax.processing.image_files import (
    MAX_SIDE,
    ImageReadError,
    explain_failure,
    open_as,
    why_refused,
)
from cmap_jax.processing.images import ImagePreprocessing, Preprocessed, preprocess_image
from cmap_jax.serving.refusals import Refused

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
# A progressive JPEG is decoded once for each scan, and usual ones have about ten. In a JPEG's data
# these two bytes occur nowhere else, save in an embedded thumbnail.
_SCAN, _MOST_SCANS = b"\xff\xda", 100


def accepted_formats() -> tuple[str, ...]:
    """Return PIL's names of the formats that are decoded; HEIC where pillow-heif is installed."""
    if importlib.util.find_spec("pillow_heif") is None:
        return _FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener()
    return (*_FORMATS, "HEIF")


def decode(upload: bytes, preprocessing: ImagePreprocessing, most_pixels: int) -> Preprocessed:
    """Decode an uploaded picture into the pixels that the model reads; of an animation, the first.

    Args:
        upload: the whole file.
        preprocessing: the model's.
        most_pixels: width times height beyond which the picture is refused before it is decoded.

    Raises:
        Refused: 415 for another type, 413 for too many pixels, 422 for a damaged picture.
    """
    if not upload:
        raise Refused(422, "the picture is empty")
    with _opened(upload) as image:
        _check_size(image, upload, most_pixels)
        try:
            return Preprocessed(preprocess_image(image, preprocessing))
        except ImageReadError as error:
            reason = explain_failure(error.__cause__ or error, image)
            raise Refused(422, f"the picture cannot be read: {reason}") from error


@contextlib.contextmanager
def _opened(upload: bytes) -> Iterator[Image.Image]:
    """Open an upload, without decoding it, for the block."""
    formats = accepted_formats()
    try:
        image = open_as(io.BytesIO(upload), formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(413, "the picture has too many pixels") from error
    # PIL's plugins raise whatever a damaged file leads them to.
    except Exception as error:
        names = ", ".join("HEIC" if name == "HEIF" else name for name in formats)
        raise Refused(415, f"the file is not a picture of these types: {names}") from error
    with image:
        yield image


def _check_size(image: Image.Image, upload: bytes, most_pixels: int) -> None:
    """Refuse a picture that would take too much memory or time to decode."""
    size = f"{image.width} x {image.height} pixels"
    if image.width * image.height > most_pixels:
        raise Refused(413, f"the picture has {size}; {most_pixels:,} in all are allowed")
    if max(image.size) > MAX_SIDE:
        raise Refused(413, f"the picture has {size}; a side may have {MAX_SIDE:,}")
    if reason := why_refused(image):
        raise Refused(422, f"the picture cannot be read: {reason}")
    if image.format in ("JPEG", "MPO") and upload.count(_SCAN) > _MOST_SCANS:
        raise Refused(422, f"the picture is stored in more than {_MOST_SCANS} scans")
