"""Images of any shape to squares; padding and resizing in one, without work on the padding.

PIL resizes columns, then rows, each output pixel from a few input pixels. Where these are all
padding, the output is padding too; leaving it out saves a fifth of the work on a 3:4 photograph.
"""

import math

from PIL import Image

FITS = ("pad", "crop", "stretch", "targetpad")
RESAMPLINGS = ("bilinear", "bicubic")

_TARGET_RATIO = 1.25  # longer side by shorter side, above which "targetpad" pads
_LONGEST = 16  # times the shorter side; what lies beyond is cut off before resizing


def pad_to_square(image: Image.Image, pad_value: int = 255) -> Image.Image:
    """Pad the shorter side: `delta // 2` pixels before the image and the rest after.

    See docs/method.md, section 4.

    Args:
        image: mode "RGB", any size.
        pad_value: grey level of the padding, 0..255.
    """
    side = max(image.size)
    corner = ((side - image.width) // 2, (side - image.height) // 2)
    return _paste(image, (side, side), corner, pad_value)


def pad_to_ratio(image: Image.Image) -> Image.Image:
    """Pad the shorter side with black until the longer one is at most 1.25 times as long.

    See docs/method.md, section 4, pictures of other encoders. Each end gets the same number of
    pixels, rounded down.

    Args:
        image: mode "RGB", any size.
    """
    target = max(image.size) / _TARGET_RATIO
    width, height = (max(int((target - side) / 2), 0) for side in image.size)
    size = (image.width + 2 * width, image.height + 2 * height)
    return _paste(image, size, (width, height), 0)


def resize_square(image: Image.Image, size: int, resampling: str = "bilinear") -> Image.Image:
    """Resize to `size` x `size` pixels, antialiased, rounded to uint8 (docs/method.md, section 4).

    Args:
        image: mode "RGB", any size.
        size: side of the result, pixels.
        resampling: one of `RESAMPLINGS`.
    """
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling[resampling.upper()])


def crop_and_resize(image: Image.Image, size: int, resampling: str = "bilinear") -> Image.Image:
    """Resize the shorter side to `size` pixels and cut the centre of the longer one.

    Args:
        image: mode "RGB", any size.
        size: side of the result, pixels.
        resampling: one of `RESAMPLINGS`.
    """
    shorter = min(image.size)
    # An image that is a thousand times as long as wide would become a thousand squares.
    image = _cut_center(image, *(min(side, _LONGEST * shorter) for side in image.size))
    width, height = (size * side // shorter for side in image.size)
    image = image.resize((width, height), Image.Resampling[resampling.upper()])
    return _cut_center(image, size, size)


def pad_and_resize(
    image: Image.Image, size: int, pad_value: int = 255, resampling: str = "bilinear"
) -> Image.Image:
    """Return `resize_square(pad_to_square(image))`, bit for bit.

    Args:
        image: mode "RGB", any size.
        size: side of the result, pixels.
        pad_value: grey level of the padding, 0..255.
        resampling: one of `RESAMPLINGS`.
    """
    width, height = image.size
    side = max(image.size)
    if resampling != "bilinear" or side == size or width == height or size & (size - 1):
        # PIL computes the weights of a window from its edges. They equal the whole square's where
        # `side / size` is exact in floating point, at powers of two.
        return resize_square(pad_to_square(image, pad_value), size, resampling)
    scale = side / size
    left, right = _touched(width, side, size)
    top, bottom = _touched(height, side, size)
    image = _paste(image, (side, height), ((side - width) // 2, 0), pad_value)
    box = (left * scale, 0, right * scale, height)
    image = image.resize((right - left, height), Image.Resampling.BILINEAR, box)
    image = _paste(image, (right - left, side), (0, (side - height) // 2), pad_value)
    box = (0, top * scale, right - left, bottom * scale)
    image = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box)
    return _paste(image, (size, size), (left, top), pad_value)


def _touched(length: int, side: int, size: int) -> tuple[int, int]:
    """Return the range of output pixels, as start and end, that depend on more than padding."""
    scale = side / size
    reach = max(scale, 1.0)  # half the width of the filter, input pixels
    before = (side - length) // 2
    first = math.floor((before - reach) / scale - 0.5)
    end = math.ceil((before + length + reach) / scale + 0.5)
    return max(0, first), min(size, end)


def _cut_center(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return the central pixels of an image; an odd remainder goes right and below."""
    if image.size == (width, height):
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _paste(
    image: Image.Image, size: tuple[int, int], corner: tuple[int, int], level: int
) -> Image.Image:
    """Return an image on a larger ground of one grey level."""
    if image.size == size:
        return image
    ground = Image.new("RGB", size, (level, level, level))
    ground.paste(image, corner)
    return ground
