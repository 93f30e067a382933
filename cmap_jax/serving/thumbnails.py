"""Small JPEGs of the gallery's pictures, made at their first use and kept while there is memory."""

import collections
import hashlib
import io
import os
import threading

from PIL import Image

from cmap_jax.files import is_remote, read_bytes
from cmap_jax.processing.image_files import open_image
from cmap_jax.processing.images import UPRIGHT, ImagePreprocessing, ImageReadError, read_image

SIZES = (128, 256, 384, 512, 768, 1024)  # longest sides, pixels; others are rounded up
DEFAULT_SIZE = 384

_QUALITY = 85
_REDUCING_GAP = 2.0  # PIL first reduces to twice the size: fast, and not to be told from exact
_AS_SEEN = ImagePreprocessing(read_as=UPRIGHT)


class Thumbnails:
    """Thumbnails by picture and size; safe to use from several threads."""

    def __init__(self, most_bytes: int):
        """Keep none yet.

        Args:
            most_bytes: memory for thumbnails; the ones that were not used for longest go first.
        """
        self._most_bytes = most_bytes
        self._kept: collections.OrderedDict[str, bytes] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, image: str, tag: str, size: int) -> bytes:
        """Return a JPEG of a picture, upright, transparency on white, without its metadata.

        Args:
            image: path or bucket URL from the index.
            tag: result of `tag_of` for it.
            size: one of `SIZES`.

        Raises:
            ImageReadError: the picture is missing or cannot be read.
        """
        with self._lock:
            if tag in self._kept:
                self._kept.move_to_end(tag)
                return self._kept[tag]
        thumbnail = make(image, size)
        with self._lock:
            if tag not in self._kept:
                self._kept[tag] = thumbnail
                self._bytes += len(thumbnail)
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return thumbnail


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
    """Make a thumbnail; see `Thumbnails.get`."""
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
