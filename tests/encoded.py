"""Images encoded in memory, and one whose header claims a size that it does not have."""

import io
import struct
import zlib

from PIL import Image


def encode(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def bomb_png(width, height):
    """Return a PNG of one pixel whose header claims another size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + encode_end()


def encode_end():
    pixel = encode(Image.new("RGB", (1, 1)), "PNG")
    return pixel[33:]
