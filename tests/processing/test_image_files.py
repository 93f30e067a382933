"""Image files of every kind: which can be used, why not, and what is special about them."""

import contextlib
import io
import os
import pathlib
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from encoded import bomb_png, encode
from optional import require
from PIL import Image, features

from cmap_jax.processing.image_files import TRAITS, check_image_stream, find_traits
from cmap_jax.processing.images import ImagePreprocessing, ImageReadError, read_image
from input_pipeline import storage


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def check_image_file(path: pathlib.Path) -> str | None:
    return storage.check_image(str(path))


class TestCheckImage:
    @staticmethod
    def write(tmp_path, content):
        path = tmp_path / "image"
        path.write_bytes(content)
        return path

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
    def test_a_good_file_has_no_reason(self, tmp_path, image_format):
        path = self.write(tmp_path, encode(Image.fromarray(noise(90, 90)), image_format))
        assert check_image_file(path) is None

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "zero bytes"),
            (b"<html>", "not an image: "),
            (encode(Image.fromarray(noise(90, 90)), "JPEG")[:50], "not an image: "),
            (encode(Image.fromarray(noise(90, 90)), "JPEG")[:-2], "truncated: "),
            (encode(Image.fromarray(noise(90, 90)), "JPEG")[:3000], "truncated: "),
            (encode(Image.fromarray(noise(90, 90)), "PNG")[:6000], "truncated: "),
            (encode(Image.fromarray(noise(90, 90)), "BMP")[:6000], "truncated: "),
            (bomb_png(12000, 12000), "too large: "),
            (bomb_png(60000, 60000), "too large: "),
            (bomb_png(20000, 1), "too large: 20000x1"),
        ],
    )
    def test_the_reason(self, tmp_path, content, reason):
        assert check_image_file(self.write(tmp_path, content)).startswith(reason)

    def test_no_file(self, tmp_path):
        assert check_image_file(tmp_path / "none.jpg") == "missing"
        assert check_image_file(tmp_path) == "not a file"
        (tmp_path / "link").symlink_to(tmp_path / "none.jpg")
        assert check_image_file(tmp_path / "link") == "missing: a link to nothing"

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
    def test_a_complete_file_is_not_decoded(self, tmp_path, image_format, monkeypatch):
        path = self.write(tmp_path, encode(Image.fromarray(noise(90, 90)), image_format) + b"\0\0")

        def load(image):
            raise AssertionError("decoded")

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
        assert check_image_file(path) is None

    def test_without_its_end_marker_a_file_is_decoded_to_decide(self, tmp_path):
        no_end_chunk = encode(Image.fromarray(noise(9, 9)), "PNG")[:-12]
        assert check_image_file(self.write(tmp_path, no_end_chunk)) is None
        trailing_bytes = encode(Image.fromarray(noise(9, 9)), "JPEG") + bytes(5000)
        assert check_image_file(self.write(tmp_path, trailing_bytes)) is None

    def test_a_thumbnails_end_marker_does_not_count(self, tmp_path):
        thumbnail = encode(Image.fromarray(noise(8, 8)), "JPEG")
        exif = b"Exif\0\0" + thumbnail
        content = encode(Image.fromarray(noise(40, 40)), "JPEG", exif=exif)
        assert thumbnail in content
        assert check_image_file(self.write(tmp_path, content)) is None
        reason = check_image_file(self.write(tmp_path, content[:-600]))
        assert reason.startswith("truncated: ")

    def test_many_threads(self, tmp_path):
        good = encode(Image.fromarray(noise(90, 90)), "JPEG")
        for index in range(40):
            (tmp_path / f"{index}.jpg").write_bytes(good if index % 2 else good[:3000])
        paths = sorted(tmp_path.iterdir())
        with ThreadPoolExecutor(8) as pool:
            reasons = list(pool.map(check_image_file, paths))
        assert [reason is None for reason in reasons] == [int(p.stem) % 2 == 1 for p in paths]


def reason_of(content):
    """Return why a file cannot be used, which reading it says too."""
    reason = check_image_stream(io.BytesIO(content))
    if reason is None:
        read_image(content)
        return None
    with pytest.raises(ImageReadError) as raised:
        read_image(content)
    assert str(raised.value) == f"image given as {len(content)} bytes: {reason}"
    return reason


@pytest.mark.parametrize(
    ("mode", "image_format", "kind"),
    [
        ("I", "TIFF", "32-bit integers"),
        ("F", "TIFF", "floating-point numbers"),
        ("LAB", "TIFF", "CIE Lab colours"),
    ],
)
def test_pixels_that_are_no_picture_are_named(mode, image_format, kind):
    image = Image.new(mode, (4, 3))
    assert reason_of(encode(image, image_format)).startswith(f"unsupported pixels: {kind}")
    with pytest.raises(ImageReadError, match=kind):
        read_image(image)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_grey_of_sixteen_bits_can_be_used(image_format):
    grey = Image.fromarray(noise(9, 9, 1).astype(np.uint16) * 256)
    assert reason_of(encode(grey, image_format)) is None


def media_file(*brands):
    """The first box of an ISO media file, and nothing behind it."""
    content = brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(content) + 8) + b"ftyp" + content + bytes(200)


# How a file begins, what says that PIL reads it, and what the reason must hold.
LACKING = {
    "heic": (media_file(b"heic", b"mif1"), "HEIC; pip install pillow-heif, or convert it"),
    "heif": (media_file(b"mif1", b"heic"), "HEIC; pip install pillow-heif, or convert it"),
    "avif": (media_file(b"avif", b"mif1"), "AVIF; pip install pillow-avif-plugin, or convert it"),
    "avif, mif1": (media_file(b"mif1", b"avif"), "AVIF; pip install pillow-avif-plugin, or"),
    "jxl": (b"\xff\x0a" + bytes(90), "JPEG XL; pip install pillow-jxl-plugin, or convert it"),
    "jxl box": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(90), "JPEG XL; pip install pillow-jxl-plugin"),
    "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(90), "JPEG 2000; convert it to JPEG or"),
    "webp": (b"RIFF" + bytes(4) + b"WEBPVP8 " + bytes(90), "WebP; convert it to JPEG or PNG"),
    "pdf": (b"%PDF-1.7" + bytes(90), "PDF; convert it to JPEG or PNG"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG; convert it to JPEG or PNG"),
    "xml svg": (b'<?xml version="1.0"?>\n<svg version="1.1"/>', "SVG; convert it to JPEG or PNG"),
}


@pytest.fixture
def no_plugins(monkeypatch):
    """PIL as it is without any optional part and without packages that add formats."""
    monkeypatch.setattr(features, "check", lambda feature: False)
    for module in ("pillow_heif", "pillow_avif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    _forget_plugins(monkeypatch, "HEIF", "AVIF", "WEBP", "JPEG2000")


def _forget_plugins(monkeypatch, *formats):
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name not in formats])
    kept = {name: plugin for name, plugin in Image.OPEN.items() if name not in formats}
    monkeypatch.setattr(Image, "OPEN", kept)


@pytest.mark.parametrize("name", LACKING)
def test_a_format_without_its_plugin_is_named_with_the_remedy(name, no_plugins):
    content, expected = LACKING[name]
    reason = reason_of(content)
    assert reason.startswith(f"unsupported format: {expected}")
    assert reason.isprintable()


def test_heic_is_read_where_the_plugin_is_installed(monkeypatch):
    heif = require("pillow_heif")
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[:, :32] = (200, 40, 40)
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(pixels)).save(file, quality=-1, chroma=444)
    content = file.getvalue()
    _forget_plugins(monkeypatch, "HEIF")  # no one has asked for it yet
    monkeypatch.setattr(Image, "_initialized", 2)
    assert check_image_stream(io.BytesIO(content)) is None
    for read_as in ("released", "upright"):
        image = np.asarray(read_image(content, ImagePreprocessing(read_as=read_as)))
        assert np.abs(image.astype(int) - pixels).max() <= 3
    assert find_traits(io.BytesIO(content)) == frozenset()
    assert reason_of(content[:20] + bytes(90)).startswith("unsupported format: HEIC, damaged or of")
    reason = check_image_stream(io.BytesIO(content[:400]))
    assert reason.startswith("truncated: ")
    assert reason.isprintable()


@pytest.mark.parametrize("message", ["decoder libtiff not available", "cannot find loader for"])
def test_a_decoder_that_pil_lacks_is_no_damage(message, monkeypatch):
    content = encode(Image.fromarray(noise(9, 9)), "TIFF")

    def load(image):
        raise OSError(message)

    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", load)
    expected = f"unsupported format: TIFF ({message}); convert it to JPEG or PNG"
    assert check_image_stream(io.BytesIO(content)) == expected
    with pytest.raises(ImageReadError, match="unsupported format: TIFF"):
        read_image(content)


def with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def kinds():
    """Files by name, each with the traits that it has."""
    image = Image.fromarray(noise(30, 20))
    opaque, half = (Image.fromarray(noise(30, 20, 4) | np.uint8([0, 0, 0, 255])) for _ in range(2))
    half.putpixel((3, 4), (1, 2, 3, 254))
    sixteen = Image.fromarray(noise(30, 20, 1).astype(np.uint16) * 256)
    frames = [Image.fromarray(noise(8, 8, seed=seed)) for seed in range(3)]
    more = {"save_all": True, "append_images": frames[1:]}
    grey = image.convert("L")
    yield "jpeg", encode(image, "JPEG"), set()
    yield "png", encode(image, "PNG"), set()
    yield "jpeg upright", encode(image, "JPEG", exif=with_orientation(1)), set()
    for value in range(2, 9):
        yield f"jpeg {value}", encode(image, "JPEG", exif=with_orientation(value)), {"turned"}
    yield "jpeg 9", encode(image, "JPEG", exif=with_orientation(9)), set()
    yield "webp 6", encode(image, "WEBP", exif=with_orientation(6)), {"turned"}
    yield "png 6", encode(image, "PNG", exif=with_orientation(6)), {"turned"}
    yield "png opaque", encode(opaque, "PNG"), set()
    yield "png see-through", encode(half, "PNG"), {"transparent"}
    yield "webp see-through", encode(half, "WEBP", lossless=True), {"transparent"}
    yield "png level", encode(grey, "PNG", transparency=grey.getpixel((0, 0))), {"transparent"}
    yield "png palette", encode(image.quantize(9), "PNG", transparency=3), {"transparent"}
    yield "png 16", encode(sixteen, "PNG"), {"sixteen_bit"}
    yield "tiff 16", encode(sixteen, "TIFF"), {"sixteen_bit"}
    yield "jpeg cmyk", encode(image.convert("CMYK"), "JPEG"), {"cmyk"}
    yield "gif", encode(frames[0], "GIF", **more), {"frames"}
    yield "png frames", encode(frames[0], "PNG", **more), {"frames"}
    yield "tiff pages", encode(frames[0], "TIFF", **more), {"frames"}
    yield "phone's two pictures", encode(frames[0], "MPO", **more), set()
    cmyk = encode(image.convert("CMYK"), "JPEG", exif=with_orientation(6))
    yield "two at once", cmyk, {"cmyk", "turned"}
    yield "damaged inside", encode(half, "PNG")[:900] + bytes(90), set()


@pytest.mark.parametrize(("content", "traits"), [pytest.param(c, t, id=n) for n, c, t in kinds()])
def test_traits(content, traits):
    assert find_traits(io.BytesIO(content)) == traits <= set(TRAITS)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program `gs` in PATH, before any other; return the file that it writes when started."""
    started = tmp_path / "started"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {started}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # which PIL remembers
    return started


def iptc(content):
    """An IPTC file with another file in it, which PIL opens."""
    fields = {(3, 20): b"\0\0\0\x40", (3, 30): b"\0\0\0\x40", (3, 60): b"\1\0", (3, 120): b"\5"}
    records = [*fields.items(), ((8, 10), content)]
    return b"".join(
        bytes([0x1C, *tag]) + struct.pack(">H", len(value)) + value for tag, value in records
    )


POSTSCRIPT = encode(Image.new("RGB", (8, 8), "red"), "EPS")
STARTING = {
    "eps": POSTSCRIPT,
    "eps with a preview": b"\xc5\xd0\xd3\xc6"
    + struct.pack("<7L", 32, len(POSTSCRIPT), 0, 0, 0, 0, 0)
    + POSTSCRIPT,
    "iptc": iptc(POSTSCRIPT),
}


@pytest.mark.parametrize("name", STARTING)
def test_no_picture_starts_a_program(name, ghostscript, tmp_path, recwarn):
    content = STARTING[name]
    with Image.open(io.BytesIO(content)) as image, contextlib.suppress(Exception):
        image.load()
    assert ghostscript.exists(), "PIL itself starts the program"
    ghostscript.unlink()
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    kind = "not an image: " if name == "iptc" else "unsupported format: PostScript; convert it to"
    assert check_image_file(path).startswith(kind)
    assert find_traits(io.BytesIO(content)) == frozenset()
    for source in (content, path):
        with pytest.raises(ImageReadError, match=kind):
            read_image(source)
    assert not ghostscript.exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_device_is_not_waited_for(tmp_path, make):
    make(tmp_path / "picture.png")
    with pytest.raises(ImageReadError, match=r"picture\.png: is a (pipe|device), not a regular"):
        read_image(tmp_path / "picture.png")
    assert check_image_file(tmp_path / "picture.png") == "not a file"
