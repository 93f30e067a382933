"""The pixels of files and of prepared images in tf.data, beside PIL's, bit for bit."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from beartype import beartype
from jaxtyping import jaxtyped
from PIL import Image

from cmap_jax.processing.image_files import MAX_SIDE
from cmap_jax.processing.images import (
    ImagePreprocessing,
    ImageReadError,
    load_square,
    preprocess_image,
)
from input_pipeline.images.decoding import FileLoader
from input_pipeline.images.loading import FailedImages
from input_pipeline.images.preprocess import decode_square
from input_pipeline.images.sources import FolderImages
from input_pipeline.records import Image as ImageFile

RNG = np.random.default_rng(0)
PREPROCESSING = ImagePreprocessing()
UPRIGHT = ImagePreprocessing(read_as="upright")
SIZES = [(90, 60), (61, 99), (256, 256), (224, 256), (2, 3), (1, 1), (80, 1), (1, 70), (700, 900)]


def photograph(height, width, channels=3):
    """Smooth areas with noise on them, so that both chroma upsampling and rounding are at work."""
    coarse = RNG.integers(0, 256, (height // 12 + 2, width // 12 + 2, channels))
    smooth = coarse.repeat(12, axis=0).repeat(12, axis=1)[:height, :width]
    noisy = smooth + RNG.integers(-40, 41, (height, width, channels))
    return noisy.clip(0, 255).astype(np.uint8).squeeze(-1 if channels == 1 else ())


def encode(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png(pixels, depth, colour_type, interlaced=False, chunks=()):
    """A PNG of a kind that PIL does not write; pixels are uint8 or big-endian uint16 [H, W, C]."""
    height, width = pixels.shape[:2]
    # Adam7: first row, first column, row step, column step of each pass.
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
    passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [
        b"\0" + row.tobytes()
        for top, left, down, right in (passes if interlaced else [(0, 0, 1, 1)])
        for row in pixels[top::down, left::right]
        if row.size
    ]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    named = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in named
    )


def jpegs():
    image = Image.fromarray(photograph(123, 201))
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for progressive in (False, True):
            name = f"jpeg {subsampling}{' progressive' * progressive}"
            options = {"subsampling": subsampling, "progressive": progressive}
            yield name, encode(image, "JPEG", quality=90, **options)
    # With whole blocks, exchanging the two sampling factors of 4:2:2 makes another valid file.
    rotated = bytearray(encode(Image.fromarray(photograph(160, 160)), "JPEG", subsampling="4:2:2"))
    rotated[rotated.index(b"\xff\xc0") + 11] = 0x12
    yield "jpeg 4:4:0", bytes(rotated)
    yield "jpeg poor", encode(image, "JPEG", quality=5)
    yield "jpeg restart markers", encode(image, "JPEG", restart_marker_rows=1)
    yield "jpeg stored as RGB", encode(image, "JPEG", keep_rgb=True)
    yield "jpeg grey", encode(image.convert("L"), "JPEG")
    yield "jpeg trailing bytes", encode(image, "JPEG") + b"\0" * 100
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    yield "jpeg exif orientation", encode(image, "JPEG", exif=exif)
    cmyk = Image.frombytes("CMYK", (201, 123), photograph(123, 201, 4).tobytes())
    yield "jpeg cmyk", encode(cmyk, "JPEG")
    ycck = bytearray(encode(cmyk, "JPEG"))
    ycck[ycck.index(b"Adobe") + 11] = 2
    yield "jpeg ycck", bytes(ycck)
    for height, width in SIZES:
        pixels = Image.fromarray(photograph(height, width))
        yield f"jpeg {height}x{width}", encode(pixels, "JPEG")


def pngs():
    image = Image.fromarray(photograph(50, 71))
    palette = image.quantize(256)
    yield "png", encode(image, "PNG")
    yield "png rgba", encode(Image.fromarray(photograph(50, 71, 4)), "PNG")
    yield "png grey", encode(image.convert("L"), "PNG")
    yield "png grey+alpha", encode(Image.fromarray(photograph(50, 71, 2)), "PNG")
    yield "png 1 bit", encode(image.convert("1"), "PNG")
    yield "png palette", encode(palette, "PNG")
    yield "png palette, one transparent", encode(palette, "PNG", transparency=3)
    yield "png palette, alphas", encode(palette, "PNG", transparency=bytes(range(256)))
    for bits in (1, 2, 4):
        yield f"png palette {bits} bits", encode(image.quantize(2**bits), "PNG", bits=bits)
        packed = RNG.integers(0, 256, (9, 2 * bits, 1), np.uint8)
        yield f"png grey {bits} bits", grey_png(packed, bits)
    yield "png rgb, one transparent", encode(image, "PNG", transparency=image.getpixel((0, 0)))
    grey = image.convert("L")
    yield "png grey, one transparent", encode(grey, "PNG", transparency=grey.getpixel((9, 9)))
    sixteen = RNG.integers(0, 65536, (19, 23, 4)).astype(">u2")
    for colour_type, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        yield f"png 16 bits x{channels}", png(sixteen[..., :channels], 16, colour_type)
        eight = np.ascontiguousarray(sixteen[..., :channels]).view(np.uint8)[..., ::2]
        yield f"png interlaced x{channels}", png(eight, 8, colour_type, interlaced=True)
    gamma = [(b"gAMA", struct.pack(">I", 100_000)), (b"bKGD", struct.pack(">HHH", 1, 2, 3))]
    yield "png gamma, background", png(photograph(9, 8), 8, 2, chunks=gamma)
    yield "png trailing bytes", encode(image, "PNG") + b"\0" * 100
    yield "png without an end", encode(image, "PNG")[:-12]


def grey_png(packed, bits):
    """A grey PNG of less than 8 bits: `packed` holds 8 // bits pixels a byte."""
    content = bytearray(png(packed, bits, 0))
    content[16:20] = struct.pack(">I", packed.shape[1] * 8 // bits)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def others():
    image = Image.fromarray(photograph(50, 71))
    alpha = Image.fromarray(photograph(50, 71, 4))
    yield "bmp", encode(image, "BMP")
    yield "webp", encode(image, "WEBP")
    yield "webp alpha", encode(alpha, "WEBP", lossless=True)
    yield "tiff", encode(image, "TIFF")
    for level in ("<u2", ">u2"):
        grey = RNG.integers(0, 65536, (50, 71)).astype(level)
        yield f"tiff 16 bits {level}", encode(Image.fromarray(grey), "TIFF")
    yield "gif", encode(image, "GIF")
    yield "gif transparent", encode(image.quantize(16), "GIF", transparency=2)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    yield "gif animated", encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


FILES = {**dict(jpegs()), **dict(pngs()), **dict(others())}


def as_dataset(function, items):
    """The results of `function` inside tf.data, several at a time, in order."""
    items = tf.data.Dataset.from_tensor_slices(items)
    return items.map(function, num_parallel_calls=4).as_numpy_iterator()


def file_loader(folder, files, preprocessing=PREPROCESSING):
    """Write files, by name; return a loader of them and what it knows them by."""
    images = {}
    for number, (name, data) in enumerate(files.items()):
        path = folder / str(number)
        path.write_bytes(data)
        images[name] = ImageFile(name, str(path))
    loader = FileLoader(FolderImages(images), preprocessing, FailedImages("fail"))
    return loader, tf.constant([[key] for key in loader.keys(list(images))])


@pytest.fixture(scope="module")
def in_tf_data(tmp_path_factory):
    """From a way to read to the square and the size of every file, made inside tf.data."""

    def squares(preprocessing):
        loader, keys = file_loader(tmp_path_factory.mktemp("files"), FILES, preprocessing)
        plan = tf.data.Dataset.from_tensor_slices({"image": keys}).batch(7)
        found = loader.sized_squares(plan, 7).unbatch().as_numpy_iterator()
        return dict(zip(FILES, found, strict=True))

    return {way.read_as: squares(way) for way in (PREPROCESSING, UPRIGHT)}


def in_eight_bits(image):
    """An opened file's picture in at most 8 bits a channel."""
    if not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((values // 257).astype(np.uint8))


def padded_and_resized(pixels, side=256, pad_value=255):
    """docs/method.md, section 4 in NumPy and one call of PIL's resize."""
    length = max(pixels.shape[:2])
    widths = [((length - n) // 2, length - n - (length - n) // 2) for n in pixels.shape[:2]]
    square = np.pad(pixels, [*widths, (0, 0)], constant_values=pad_value)
    return np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BILINEAR))


def released(data):
    """The pixels of the published protocols: PIL's `convert`, alpha dropped."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        image.info.pop("transparency", None)
        return np.asarray(in_eight_bits(image).convert("RGB"))


@pytest.mark.parametrize("name", FILES)
class TestEveryKindOfFile:
    def test_squares_are_pils_to_the_bit(self, name, in_tf_data):
        expected = padded_and_resized(released(FILES[name]))
        square, size = in_tf_data["released"][name]
        assert square.dtype == np.uint8
        np.testing.assert_array_equal(square, expected)
        assert size.tolist() == list(released(FILES[name]).shape[:2])
        # Serving sees the middle of it.
        np.testing.assert_array_equal(
            preprocess_image(FILES[name], PREPROCESSING), expected[16:240, 16:240]
        )

    def test_use_sees_what_training_saw_upright_too(self, name, in_tf_data):
        square, _ = in_tf_data["upright"][name]
        np.testing.assert_array_equal(
            preprocess_image(FILES[name], UPRIGHT), square[16:240, 16:240]
        )
        with Image.open(io.BytesIO(FILES[name])) as image:
            plain = not image.has_transparency_data and image.getexif().get(0x0112, 1) == 1
        if plain:
            np.testing.assert_array_equal(square, in_tf_data["released"][name][0])
        else:
            assert (square != in_tf_data["released"][name][0]).any()


# Pixels that are hard on the rounding: noise, black and white, and two neighbouring levels.
@pytest.mark.parametrize("texture", [(0, 256, 1), (0, 2, 255), (254, 256, 1)])
@pytest.mark.parametrize("size", [*SIZES, (257, 100), (511, 300), (2000, 40)])
def test_enlarged_and_shrunk_to_the_bit(size, texture):
    low, high, scale = texture
    pixels = (RNG.integers(low, high, (*size, 3)) * scale).astype(np.uint8)
    data = encode(Image.fromarray(pixels), "PNG")
    for preprocessing in (PREPROCESSING, ImagePreprocessing(resize=71, crop=64, pad_value=3)):
        expected = padded_and_resized(pixels, preprocessing.resize, preprocessing.pad_value)
        np.testing.assert_array_equal(load_square(data, preprocessing), expected)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 95, 100])
def test_prepared_jpeg_decodes_to_pils_pixels(quality, subsampling):
    pixels = Image.fromarray(photograph(72, 72))
    data = encode(pixels, "JPEG", quality=quality, subsampling=subsampling)
    _check_prepared(data)


@pytest.mark.parametrize("quality", [30, 95, 100])
def test_what_the_builders_write_decodes_to_pils_pixels(quality):
    pixels = photograph(72, 72)
    _check_prepared(tf.io.encode_jpeg(pixels, quality=quality).numpy())
    data = tf.io.encode_png(pixels).numpy()
    _check_prepared(data)
    np.testing.assert_array_equal(decode_square(data, ImagePreprocessing(72, 64)), pixels)


def _check_prepared(data):
    preprocessing = ImagePreprocessing(resize=72, crop=64)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_square(data, preprocessing), expected)
    (inside,) = as_dataset(lambda data: decode_square(data, preprocessing), [data])
    np.testing.assert_array_equal(inside, expected)


def test_a_prepared_image_of_another_size_or_damaged():
    data = encode(Image.fromarray(photograph(72, 72)), "JPEG")
    for bad, preprocessing in ((data, PREPROCESSING), (data[:900], ImagePreprocessing(72, 64))):
        with pytest.raises(tf.errors.InvalidArgumentError):
            list(as_dataset(lambda data, p=preprocessing: decode_square(data, p), [bad]))


def test_static_shapes_inside_tf_data(tmp_path):
    items = tf.data.Dataset.from_tensors(FILES["png"])
    squares = items.map(lambda data: decode_square(data, PREPROCESSING))
    assert squares.element_spec == tf.TensorSpec([256, 256, 3], tf.uint8)
    loader, keys = file_loader(tmp_path, {"png": FILES["png"]})
    plan = tf.data.Dataset.from_tensors({"image": keys, "crop": np.zeros((1, 1, 3), np.int32)})
    assert loader.squares(plan, 1).element_spec == tf.TensorSpec([None, 256, 256, 3], tf.uint8)
    (crops,) = loader.load(plan, 1).element_spec["image"]
    assert crops == tf.TensorSpec([None, 224, 224, 3], tf.uint8)


def test_the_shapes_in_the_signatures_are_true():
    typed = jaxtyped(typechecker=beartype)
    typed(decode_square)(tf.io.encode_png(photograph(256, 256)), PREPROCESSING)


def wide(image_format):
    return encode(Image.new("L", (MAX_SIDE + 1, 2)), image_format)


BAD_FILES = {
    "empty": (b"", "zero bytes"),
    "short": (b"\x89", "not an image"),
    "html": (b"<html>not found</html>", "not an image"),
    "jpeg magic only": (b"\xff\xd8\xff", "not an image"),
    "jpeg header cut": (FILES["jpeg 4:2:0"][:100], "not an image"),
    "jpeg cut": (FILES["jpeg 4:2:0"][:3000], "truncated"),
    "jpeg cmyk cut": (FILES["jpeg cmyk"][:3000], "truncated"),
    "jpeg too wide": (wide("JPEG"), "too large"),
    "png magic only": (FILES["png"][:8], "not an image"),
    "png cut": (FILES["png"][:3000], "truncated"),
    "png damaged": (FILES["png"][:200] + bytes(100) + FILES["png"][300:], "truncated"),
    "png too wide": (wide("PNG"), "too large"),
    "bmp cut": (FILES["bmp"][:3000], "truncated"),
    "webp cut": (FILES["webp"][:60], "not an image|truncated"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_raises(tmp_path, name):
    data, message = BAD_FILES[name]
    with pytest.raises(ImageReadError, match=message):
        preprocess_image(data, PREPROCESSING)
    loader, keys = file_loader(tmp_path, {"good": FILES["jpeg 61x99"], "bad": data})
    assert loader.why_unusable("good") is None
    assert re.search(message, loader.why_unusable("bad"))
    plan = tf.data.Dataset.from_tensors({"image": keys})
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(loader.squares(plan, 2))


def test_a_file_that_is_gone(tmp_path):
    loader, keys = file_loader(tmp_path, {"gone": FILES["png"]})
    (tmp_path / "0").unlink()
    assert "unreadable: " in loader.why_unusable("gone")
    with pytest.raises(tf.errors.OpError, match="No such file"):
        list(loader.squares(tf.data.Dataset.from_tensors({"image": keys}), 1))


def test_bad_files_among_good_ones_do_not_stop_the_stream(tmp_path):
    good = FILES["jpeg 61x99"]
    files = {}
    for name, (data, _) in BAD_FILES.items():
        files |= {f"before {name}": good, name: data}
    loader, keys = file_loader(tmp_path, files)
    squares = loader.squares(tf.data.Dataset.from_tensor_slices({"image": keys}).batch(1), 1)
    assert len(list(squares.ignore_errors())) == len(BAD_FILES)
