"""Image files of any format: opening, checks of their headers, and their special traits.

image = open_image(open("dress.heic", "rb"))             # or an ImageReadError that says why not
reason = check_image_stream(open("dress.jpg", "rb"))     # None, or why it cannot be used
traits = find_traits(open("cut-out.png", "rb"))          # such as {"transparent"}
"""

import dataclasses
import importlib
import io
import math
from collections.abc import Sequence
from typing import BinaryIO

from PIL import ExifTags, Image, features

# The longest side that is read, in pixels. An image is padded to a square, so a 60000 x 1 file of a
# few bytes would ask for gigabytes: the square is held to PIL's own limit (256 MiB as RGB).
MAX_SIDE = math.isqrt(1024 * 1024 * 1024 // 4 // 3)

# PIL's names of the formats that are decoded, whatever a file's name ends in. PIL knows more, and
# for some of them starts a program (Ghostscript for EPS, which IPTC may hold too). None of these
# starts a program or reads another file. "JPEG" opens a phone's MPO as well.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"),
    *("AVIF", "HEIF", "JXL"),
)

_TAIL_BYTES = 4096
_JPEG_START_OF_SCAN = b"\xff\xda"
_JPEG_END = b"\xff\xd9"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"

# The traits that `find_traits` may return.
TURNED, TRANSPARENT, SIXTEEN_BIT, CMYK, FRAMES = TRAITS = (
    "turned",
    "transparent",
    "sixteen_bit",
    "cmyk",
    "frames",
)

# Formats whose grey of 16 bits PIL may give in its mode of 32.
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
# Modes that `convert` refuses, or converts to other colours than people see.
_REFUSED_MODES = {
    "I": "32-bit integers, and which of them is white is not known",
    "F": "floating-point numbers, and which of them is white is not known",
    "LAB": "CIE Lab colours, which PIL does not convert",
}
# Beginnings of PIL's `OSError` for a format that it knows and has no decoder for.
_NO_DECODER = ("cannot find loader", "decoder ", "encoder ")
_CONVERT = "convert it to JPEG or PNG"


class ImageReadError(ValueError):
    """An image that cannot be read; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class _Format:
    """A format that PIL may lack.

    Attributes:
        name: the usual name, for messages.
        feature: PIL's own name of it; empty where PIL reads it with a plugin only, or not at all.
        package: the pip package that adds the format; empty where there is none.
        module: the package's module; importing it is enough where ``register`` is empty.
        register: the module's function that registers the format with PIL.
    """

    name: str
    feature: str = ""
    package: str = ""
    module: str = ""
    register: str = ""

    def remedy(self) -> str:
        """Return the advice for such a file."""
        return f"pip install {self.package}, or {_CONVERT}" if self.package else _CONVERT

    def is_readable(self) -> bool:
        """Tell whether PIL reads the format, after registering its plugin where installed."""
        if self.feature and features.check(self.feature):
            return True
        if not self.module:
            return False
        try:
            module = importlib.import_module(self.module)
        except ImportError:
            return False
        if self.register:
            getattr(module, self.register)()
        return True


_HEIC = _Format(
    name="HEIC",
    package="pillow-heif",
    module="pillow_heif",
    register="register_heif_opener",
)
_AVIF = _Format("AVIF", "avif", "pillow-avif-plugin", "pillow_avif")
_JPEG_XL = _Format("JPEG XL", "", "pillow-jxl-plugin", "pillow_jxl")
_WEBP = _Format("WebP", "webp")
# The brands of ISO media files (bytes 8 to 12), and the first bytes of other formats.
_BRANDS = {
    **dict.fromkeys(b"heic heix hevc hevx heim heis hevm hevs mif1 msf1".split(), _HEIC),
    **dict.fromkeys(b"avif avis".split(), _AVIF),
}
_STARTS = {
    b"\xff\x0a": _JPEG_XL,
    b"\x00\x00\x00\x0cJXL \r\n\x87\n": _JPEG_XL,
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": _Format("JPEG 2000", "jpg_2000"),
    b"%PDF": _Format("PDF"),
    b"<svg": _Format("SVG"),
    b"%!PS": _Format("PostScript"),
    b"\xc5\xd0\xd3\xc6": _Format("PostScript"),  # with a preview
    b"8BPS": _Format("Photoshop"),
}


def open_as(file: BinaryIO, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Open an image file with PIL, which looks at its content alone, and only for some formats.

    All pictures are opened here, since `Image.open` alone takes any format that PIL knows.

    Args:
        file: the open file.
        formats: PIL's names of formats, a part of `FORMATS`; those that PIL lacks are passed over.

    Raises:
        Exception: whatever PIL raises, such as `UnidentifiedImageError`.
    """
    Image.init()  # registers the formats, once
    return Image.open(file, formats=[name for name in formats if name in Image.OPEN])


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image file without decoding it; a plugin that it needs is registered where installed.

    Raises:
        ImageReadError: the reason alone, without the file's name: "not an image: ...",
            "too large: ...", "unsupported format: ..." or "unsupported pixels: ...".
    """
    # PIL's plugins raise whatever a damaged file leads them to (struct.error, SyntaxError,
    # zlib.error ...), and a bomb's warning is raised where warnings are errors: hence `Exception`.
    try:
        image = open_as(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageReadError(f"too large: {error}") from error
    except Exception as error:
        image = _open_with_plugin(file, error)
    if reason := why_refused(image):
        image.close()
        raise ImageReadError(reason)
    return image


def why_refused(image: Image.Image) -> str | None:
    """Return why no picture is made of an image, by its size and mode, or None."""
    if max(image.size) > MAX_SIDE:
        size = f"{image.width}x{image.height}"
        return f"too large: {size}, the longest side allowed is {MAX_SIDE}"
    if min(image.size) == 0:
        return "no pixels"
    if image.mode in _REFUSED_MODES and not is_sixteen_bit_grey(image):
        return f"unsupported pixels: {_REFUSED_MODES[image.mode]} (PIL's mode {image.mode})"
    return None


def explain_failure(error: Exception, image: Image.Image) -> str:
    """Return why an image that was opened cannot be decoded."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and message.startswith(_NO_DECODER):
        return f"unsupported format: {image.format} ({message}); {_CONVERT}"
    return f"truncated or corrupt: {message}"


def is_sixteen_bit_grey(image: Image.Image) -> bool:
    """Tell whether an image has one channel of 16 bits, 0 to 65535."""
    by_format = image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS
    return image.mode.startswith("I;16") or by_format


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation of a picture, 1 to 8; 1 (upright) where there is none legible.

    PNG may store it behind its pixels, so that the image must have been loaded.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever a damaged header leads PIL to
        return 1
    return value if value in range(1, 9) else 1


def check_image_stream(file: BinaryIO) -> str | None:
    """Check one open image file cheaply; safe to call from many threads.

    The header is read. A JPEG or PNG whose last 4 KB hold the end marker is taken as complete; any
    other file is decoded to decide. Damage inside a complete file is therefore not noticed.

    Returns:
        None for a usable file, else the reason: "zero bytes", "not an image: ...", "too large:
        ...", "unsupported format: ...", "unsupported pixels: ..." or "truncated: ...".
    """
    length = file.seek(0, io.SEEK_END)
    if length == 0:
        return "zero bytes"
    file.seek(max(0, length - _TAIL_BYTES))
    tail = file.read()
    file.seek(0)
    try:
        image = open_image(file)
    except ImageReadError as error:
        return str(error)
    with image:
        if _is_complete(image.format, tail):
            return None
        try:
            image.load()
        except Exception as error:
            return explain_failure(error, image).replace("truncated or corrupt", "truncated")
    return None


def find_traits(file: BinaryIO) -> frozenset[str]:
    """Return which of `TRAITS` a usable image file has.

    The file is decoded only if it has an alpha channel; one that is opaque everywhere counts as
    none. PIL turns a TIFF itself, and the second picture in a phone's MPO is no frame.
    """
    traits = set()
    try:
        with open_image(file) as image:
            if image.mode == "CMYK":
                traits.add(CMYK)
            # The raw mode is one of the decoder's arguments.
            if is_sixteen_bit_grey(image) or any(";16" in str(tile) for tile in image.tile):
                traits.add(SIXTEEN_BIT)
            if image.format != "MPO" and getattr(image, "is_animated", False):
                traits.add(FRAMES)
            # PIL decodes all of a PNG without EXIF at its start, to look behind its pixels.
            says = image.format not in ("PNG", "TIFF") or "exif" in image.info
            if says and image.format != "TIFF" and orientation(image) != 1:
                traits.add(TURNED)
            if image.has_transparency_data and is_see_through(image):
                traits.add(TRANSPARENT)
    except Exception:  # damage that only decoding shows, which training reports
        return frozenset(traits)
    return frozenset(traits)


def is_see_through(image: Image.Image) -> bool:
    """Tell whether any pixel of an image with an alpha channel is less than opaque."""
    if is_sixteen_bit_grey(image):
        return True  # one level of grey is transparent, and rarely declared without occurring
    image.load()
    return image.convert("LA" if image.mode == "La" else "RGBA").getextrema()[-1][0] < 255


def _open_with_plugin(file: BinaryIO, error: Exception) -> Image.Image:
    """Open a file that PIL alone could not open, or raise an error with the reason."""
    file.seek(0)
    start = file.read(64)
    file.seek(0)
    wanted = _recognize(start)
    if wanted is None:
        # PIL's own message shows the address of a file object.
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = f"not an image: {'no known format' if unknown else error}"
    elif not wanted.is_readable():
        reason = f"unsupported format: {wanted.name}; {wanted.remedy()}"
    else:
        try:
            return open_as(file)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as bomb:
            reason = f"too large: {bomb}"
        except Exception:
            reason = f"not an image: a damaged {wanted.name} file"
            if wanted.module:  # it may lag behind the format
                reason = (
                    f"unsupported format: {wanted.name}, damaged or of a kind unknown to "
                    f"{wanted.package}; {_CONVERT}, or restore it"
                )
    raise ImageReadError(reason) from error


def _recognize(start: bytes) -> _Format | None:
    """Return the format of a file by its first bytes; None for one that PIL never lacks."""
    if start[4:8] == b"ftyp":
        # "mif1" says only that it is a picture; the compatible brands say more.
        brands = [start[at : at + 4] for at in range(8, len(start) - 3, 4)]
        if brands[0] in (b"mif1", b"msf1") and any(b in brands for b in (b"avif", b"avis")):
            return _AVIF
        return _BRANDS.get(brands[0])
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _WEBP
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t")
    if text.startswith(b"<?xml") and b"<svg" in text:
        return _STARTS[b"<svg"]
    return next((f for magic, f in _STARTS.items() if text.startswith(magic)), None)


def _is_complete(image_format: str | None, tail: bytes) -> bool:
    if image_format in ("JPEG", "MPO"):
        # An embedded thumbnail has an end marker too, but the scan of the image comes after it.
        return tail.rfind(_JPEG_END) > tail.rfind(_JPEG_START_OF_SCAN)
    return image_format == "PNG" and _PNG_END in tail
