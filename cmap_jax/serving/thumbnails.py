"""Small JPEGs of the gallery's pictures."""

import hashlib
import io
import os

from PIL import Image

from cmap_jax.files import is_remote, read_bytes
from cmap_jax.processing.image_files import open_image
from cmap_jax.processing.images import UPRIGHT, ImagePreprocessing, ImageReadError, read_image

SIZES = (128, 256, 384, 512, 768, 1024)  # longest sides, pixels; others are rounded up
DEFAULT_SIZE = 384

_QUALITY = 85
_REDUCING_GAP = 2.0  # PIL first reduces to twice the size: fast, and not to be told from exact
_AS_SEEN = ImagePreprocessing(read_as=UPRIGHT)


def round_up(size: int) -> int:
    """Return the least of `SIZES` that is not smaller; the greatest for larger ones."""
    return next((s for s in SIZES if s >= size), SIZES[-1])


def tag_of(image: str, size: int, generation: str) -> str:
    """Return a tag that changes when the thumbnail does: 32 hexadecimal digits.

    Args:
        image: path or bucket URL from the index.
        size: one of `SIZES`.
        generation: name of the index's; it stands for the time of change of a picture in a bucket.

    Raises:
        ImageReadError: the picture is missing.
    """
    state: tuple[int | str, ...] = (generation,)
    if not is_remote(image):
        try:
            status = os.stat(image)
        except (OSError, ValueError) as error:
            raise ImageReadError("missing") from error
        state = (status.st_mtime_ns, status.st_size)
    return hashlib.sha256(repr((image, size, state)).encode(errors="replace")).hexdigest()[:32]


def make(image: str, size: int) -> bytes:
    """Return a JPEG of a picture, upright, transparency on white.

    Nothing of the picture's metadata is in it but the color profile, without which its colors would
    be others.

    Args:
        image: path or bucket URL from the index.
        size: one of `SIZES`.

    Raises:
        ImageReadError: the picture is missing or cannot be read.
    """
    try:
        encoded = read_bytes(image)
    except (OSError, ValueError) as error:
        raise ImageReadError("missing or unreadable") from error
    with open_image(io.BytesIO(encoded)) as opened:
        # A JPEG is decoded at a fraction of its size, never below the thumbnail's.
        opened.draft("RGB", (size, size))
        profile = opened.info.get("icc_profile") if opened.mode == "RGB" else None
        picture = read_image(opened, _AS_SEEN)
    picture.thumbnail((size, size), Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY, icc_profile=profile)
    return stream.getvalue()
