"""The image operations in PIL and NumPy, against plain NumPy (docs/method.md, section 4)."""

import io
import json
import pathlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
from beartype import beartype
from encoded import bomb_png, encode
from jaxtyping import jaxtyped
from PIL import Image

from cmap_jax.processing import image_files, images, padded_resize
from cmap_jax.processing.images import ImagePreprocessing, ImageReadError, read_image

SIZES = [(90, 60), (61, 99), (64, 64), (2, 3), (1, 1), (80, 1), (1, 70), (300, 511)]


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


UPRIGHT = ImagePreprocessing(read_as="upright")


def orientation_tag(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


class TestImagePreprocessing:
    def test_defaults_are_the_papers(self):
        assert ImagePreprocessing() == ImagePreprocessing(resize=256, crop=224, pad_value=255)

    def test_survives_json(self):
        preprocessing = ImagePreprocessing(resize=70, crop=64, pad_value=0)
        stored = json.loads(json.dumps(preprocessing.to_dict()))
        sizes = {"resize": 70, "crop": 64, "pad_value": 0}
        choices = {"read_as": "released", "fit": "pad", "resampling": "bilinear"}
        assert stored == {**sizes, **choices}
        assert ImagePreprocessing.from_dict(stored) == preprocessing

    def test_an_absent_field_takes_its_default(self):
        assert ImagePreprocessing.from_dict({"crop": 192}) == ImagePreprocessing(crop=192)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"crop": 0}, "crop must be positive"),
            ({"crop": -32}, "crop must be positive"),
            ({"crop": 288}, "must not exceed resize"),
            ({"resize": 10**6}, "resize must not exceed"),
            ({"pad_value": 256}, "pad_value must be in"),
            ({"pad_value": -1}, "pad_value must be in"),
            ({"resize": 256.0}, "resize must be an integer"),
            ({"pad_value": True}, "pad_value must be an integer"),
            ({"read_as": "sideways"}, "read_as must be released or upright, got 'sideways'"),
            ({"read_as": None}, "read_as must be released or upright"),
            ({"fit": "squash"}, "fit must be pad or crop or stretch or targetpad, got 'squash'"),
            ({"resampling": "nearest"}, "resampling must be bilinear or bicubic"),
            ({"size": 3}, "unknown image preprocessing fields: size"),
        ],
    )
    def test_refuses(self, fields, message):
        with pytest.raises(ValueError, match=message):
            ImagePreprocessing.from_dict(fields)


class TestReadImage:
    def test_every_kind_of_source_gives_the_same_pixels(self, tmp_path):
        pixels = noise(20, 30)
        encoded = encode(Image.fromarray(pixels), "PNG")
        path = tmp_path / "a.png"
        path.write_bytes(encoded)
        sources = [path, str(path), encoded, bytearray(encoded), Image.fromarray(pixels), pixels]
        for source in sources:
            image = read_image(source)
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), pixels)

    @pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1)])
    def test_a_grey_array_is_repeated(self, shape):
        grey = noise(5, 4, 1)
        image = np.asarray(read_image(grey.reshape(shape)))
        np.testing.assert_array_equal(image, np.stack([grey] * 3, axis=-1))

    def test_alpha_is_dropped_not_blended(self):
        pixels = noise(9, 9, 4)
        for source in (pixels, Image.fromarray(pixels), encode(Image.fromarray(pixels), "PNG")):
            np.testing.assert_array_equal(np.asarray(read_image(source)), pixels[..., :3])

    def test_palette_transparency_is_dropped_without_a_warning(self):
        palette = Image.fromarray(noise(9, 9)).quantize(16)
        encoded = encode(palette, "PNG", transparency=bytes(range(16)))
        opened = Image.open(io.BytesIO(encoded))
        for source in (encoded, opened):
            image = np.asarray(read_image(source))
            np.testing.assert_array_equal(image, np.asarray(palette.convert("RGB")))
        assert opened.info["transparency"], "the caller's image must stay as it was"

    def test_exif_orientation_is_not_applied(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # rotate by 90 degrees
        image = read_image(encode(Image.fromarray(noise(20, 30)), "JPEG", exif=exif))
        assert image.size == (30, 20)

    @pytest.mark.parametrize("read_as", ["released", "upright"])
    @pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM", "TIFF >u2", "array"])
    def test_grey_of_sixteen_bits_keeps_its_levels(self, image_format, read_as):
        values = np.arange(0, 65536, 16, np.uint16).reshape(64, 64)
        values[-1, -1] = 65535
        dtype = ">u2" if image_format.endswith(">u2") else "<u2"
        image = Image.fromarray(values.astype(dtype))
        source = image if image_format == "array" else encode(image, image_format.split()[0])
        found = np.asarray(read_image(source, ImagePreprocessing(read_as=read_as)))
        np.testing.assert_array_equal(found, np.stack([values // 257] * 3, axis=-1))
        assert (found.min(), found.max(), len(np.unique(found))) == (0, 255, 256)

    def test_grey_of_sixteen_bits_in_a_mode_of_thirty_two(self):
        image = Image.fromarray(np.array([[0, 257, 65535]], np.int32))
        image.format = "PNG"  # as some versions of PIL open it
        assert np.asarray(read_image(image))[0, :, 0].tolist() == [0, 1, 255]

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("value", range(1, 9))
    def test_upright_turns_as_exif_says(self, value, image_format):
        upright = np.zeros((48, 32, 3), np.uint8)
        upright[:16, :16], upright[:16, 16:], upright[32:, :16] = 255, (255, 0, 0), (0, 0, 255)
        # How the stored rows and columns run, as the EXIF standard has it.
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright),
            7: upright[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(upright, -1),
        }[value]
        options = {"lossless": True} if image_format == "WEBP" else {}
        options |= {"quality": 100, "subsampling": "4:4:4"} if image_format == "JPEG" else {}
        image = Image.fromarray(np.ascontiguousarray(stored))
        encoded = encode(image, image_format, exif=orientation_tag(value), **options)
        for source in (encoded, Image.open(io.BytesIO(encoded))):
            found = read_image(source, UPRIGHT)
            assert found.size == (32, 48)
            assert np.abs(np.asarray(found).astype(int) - upright).max() <= 2
            # It is turned once, however often it is read.
            np.testing.assert_array_equal(read_image(found, UPRIGHT), found)
            released = np.asarray(read_image(source)).astype(int)
            assert np.abs(released - stored).max() <= 2

    @pytest.mark.parametrize("value", [0, 9, 77])
    def test_an_orientation_that_there_is_not(self, value):
        encoded = encode(Image.new("RGB", (30, 20)), "JPEG", exif=orientation_tag(value))
        assert read_image(encoded, UPRIGHT).size == (30, 20)

    @pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 40, b"nonsense"])
    def test_exif_that_is_damaged(self, exif):
        encoded = encode(Image.new("RGB", (30, 20)), "JPEG", exif=exif)
        assert read_image(encoded, UPRIGHT).size == (30, 20)

    @pytest.mark.parametrize("ground", [255, 128, 0])
    @pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PNG", "WEBP", "array"])
    def test_upright_lays_what_is_transparent_on_the_padding(self, mode, ground):
        pixels = noise(40, 30, 4)
        pixels[:8, :, 3], pixels[8:16, :, 3] = 0, 255
        image = Image.fromarray(pixels)
        if mode in ("LA", "La"):
            image = image.convert("LA").convert(mode)
        elif mode == "RGBa":
            image = image.convert(mode)
        kept = image.convert({"RGBa": "RGBA", "La": "LA"}.get(mode, image.mode)).convert("RGBA")
        colours = np.asarray(kept).astype(float)
        alpha = colours[..., 3:] / 255
        expected = alpha * colours[..., :3] + (1 - alpha) * ground
        options = {"lossless": True, "exact": True} if mode == "WEBP" else {}
        source = {"array": pixels}.get(mode, image)
        if mode in ("PNG", "WEBP"):
            source = encode(image, mode, **options)
        reading = ImagePreprocessing(pad_value=ground, read_as="upright")
        found = np.asarray(read_image(source, reading)).astype(float)
        assert np.abs(found - expected).max() <= 0.51
        assert (found[:8] == ground).all()

    def test_upright_transparency_by_colour(self):
        palette = Image.fromarray(noise(9, 9)).quantize(16)
        grey = Image.fromarray(noise(9, 9, 1))
        colour = Image.fromarray(noise(9, 9))
        deep = Image.fromarray(noise(9, 9, 1).astype(np.uint16) * 256)
        for image in (palette, grey, colour, deep):
            hidden = image.getpixel((4, 4))
            encoded = encode(image, "PNG", transparency=hidden)
            found = np.asarray(read_image(encoded, UPRIGHT))
            plain = np.asarray(read_image(encode(image, "PNG")))
            is_hidden = (np.asarray(image).reshape(9, 9, -1) == hidden).all(axis=-1)
            np.testing.assert_array_equal(found[is_hidden], 255)
            np.testing.assert_array_equal(found[~is_hidden], plain[~is_hidden])
            np.testing.assert_array_equal(np.asarray(read_image(encoded)), plain)

    def test_reading_leaves_the_callers_image_alone(self):
        encoded = encode(
            Image.fromarray(noise(9, 12, 4)), "PNG", exif=orientation_tag(6), transparency=None
        )
        image = Image.open(io.BytesIO(encoded))
        image.load()
        before = (image.mode, image.size, dict(image.info), image.tobytes())
        assert read_image(image, UPRIGHT).size == (9, 12)
        assert (image.mode, image.size, dict(image.info), image.tobytes()) == before

    def test_the_first_frame_is_read(self):
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
        encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert read_image(encoded).getpixel((0, 0)) == (255, 0, 0)

    def test_the_result_is_not_the_callers_image(self):
        image = Image.new("RGB", (4, 4))
        read_image(image).putpixel((0, 0), (1, 2, 3))
        assert image.getpixel((0, 0)) == (0, 0, 0)

    def test_a_path_object_may_know_its_own_storage(self):
        class Remote(pathlib.PurePosixPath):
            def read_bytes(self):
                return encode(Image.new("RGB", (3, 2)), "PNG")

        assert read_image(Remote("/bucket/a.png")).size == (3, 2)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "zero bytes"),
            (b"<html>not found</html>", "not an image"),
            (encode(Image.fromarray(noise(90, 90)), "JPEG")[:2000], "truncated"),
            (encode(Image.fromarray(noise(90, 90)), "PNG")[:2000], "truncated"),
            (encode(Image.fromarray(noise(90, 90)), "BMP")[:2000], "truncated"),
            (encode(Image.fromarray(noise(90, 90)), "WEBP")[:40], "not an image|truncated"),
            (bomb_png(12000, 12000), "too large"),
            (bomb_png(60000, 60000), "too large"),
            (bomb_png(20000, 1), "too large: 20000x1"),
        ],
    )
    def test_a_bad_file_is_named(self, tmp_path, content, message):
        path = tmp_path / "bad.jpg"
        path.write_bytes(content)
        for source in (path, str(path)):
            with pytest.raises(ImageReadError, match=rf"bad\.jpg: .*({message})"):
                read_image(source)
        with pytest.raises(ImageReadError, match=message):
            read_image(content)

    def test_a_bomb_is_refused_where_warnings_are_not_errors(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ImageReadError, match="too large: 12000x12000"):
                read_image(bomb_png(12000, 12000))

    def test_a_missing_file_and_a_folder_are_named(self, tmp_path):
        with pytest.raises(ImageReadError, match=r"none\.jpg: missing"):
            read_image(tmp_path / "none.jpg")
        with pytest.raises(ImageReadError, match=r"unreadable: .*directory"):
            read_image(tmp_path)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (np.zeros((4, 4, 3), np.float32), "must be uint8"),
            (np.zeros((4, 4, 2), np.uint8), "expected"),
            (np.zeros((1, 4, 4, 3), np.uint8), "expected"),
            (np.zeros((0, 4, 3), np.uint8), "expected"),
            (Image.new("RGB", (0, 3)), "no pixels"),
            (Image.new("RGB", (image_files.MAX_SIDE + 1, 1)), "too large"),
        ],
    )
    def test_a_bad_array_or_image_is_refused(self, source, message):
        with pytest.raises(ImageReadError, match=message):
            read_image(source)

    def test_another_type_is_refused(self):
        with pytest.raises(TypeError, match="cannot read an image from int"):
            read_image(3)


class TestOperations:
    @pytest.mark.parametrize("size", SIZES)
    def test_padding_is_white_and_the_odd_pixel_comes_after(self, size):
        pixels = noise(*size)
        side = max(size)
        before = [(side - length) // 2 for length in size]
        after = [side - length - first for length, first in zip(size, before, strict=True)]
        widths = [*zip(before, after, strict=True), (0, 0)]
        expected = np.pad(pixels, widths, constant_values=255)
        padded = padded_resize.pad_to_square(Image.fromarray(pixels))
        np.testing.assert_array_equal(np.asarray(padded), expected)

    def test_pad_value(self):
        padded = np.asarray(padded_resize.pad_to_square(Image.new("RGB", (1, 3), "white"), 7))
        assert padded[:, 0].tolist() == [[7, 7, 7]] * 3

    @pytest.mark.parametrize("side", [1, 2, 50, 63, 64, 65, 200, 511])
    def test_resizing_is_antialiased_bilinear(self, side):
        pixels = noise(side, side)
        weights = triangle_weights(side, 64)
        expected = np.einsum("ih,hwc,jw->ijc", weights, pixels, weights, optimize=True)
        resized = np.asarray(padded_resize.resize_square(Image.fromarray(pixels), 64)).astype(float)
        # Half a grey level of rounding in each of PIL's two passes.
        assert np.abs(resized - expected).max() <= 1.01

    @pytest.mark.parametrize("size", [64, 256, 72, 100])
    def test_padding_and_resizing_in_one_is_the_same_to_the_bit(self, size):
        rng = np.random.default_rng(size)
        sizes = [*SIZES, (1, 2), (2, 1), (1, 900), (900, 1), (size, 9), (9, size), (size + 1, size)]
        sizes += [tuple(rng.integers(1, 700, 2)) for _ in range(40)]
        for number, shape in enumerate(sizes):
            image = Image.fromarray(noise(*shape, seed=number) // (1 + 100 * (number % 3)))
            level = (255, 0, 131)[number % 3]
            side = max(shape)
            square = Image.new("RGB", (side, side), (level, level, level))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            expected = square.resize((size, size), Image.Resampling.BILINEAR)
            found = padded_resize.pad_and_resize(image, size, level)
            np.testing.assert_array_equal(found, expected, f"{shape}")

    def test_a_resize_to_the_same_size_is_skipped(self):
        image = Image.new("RGB", (64, 64))
        assert padded_resize.resize_square(image, 64) is image

    def test_center_crop(self):
        pixels = noise(256, 256)
        cropped = np.asarray(images.center_crop(Image.fromarray(pixels), 224))
        np.testing.assert_array_equal(cropped, pixels[16:240, 16:240])

    def test_crop_and_flip(self):
        pixels = noise(70, 70)
        image = Image.fromarray(pixels)
        for flip, source in ((False, pixels), (True, pixels[:, ::-1])):
            cropped = images.random_crop_flip(image, top=6, left=2, flip=flip, size=64)
            np.testing.assert_array_equal(np.asarray(cropped), source[6:70, 2:66])

    @pytest.mark.parametrize(("top", "left"), [(-1, 0), (0, -1), (7, 0), (0, 7)])
    def test_a_crop_outside_the_image_is_refused(self, top, left):
        image = Image.new("RGB", (70, 70))
        with pytest.raises(ValueError, match="leaves an image"):
            images.random_crop_flip(image, top=top, left=left, flip=False, size=64)
        with pytest.raises(ValueError, match="leaves an image"):
            images.center_crop(image, 96)

    @pytest.mark.parametrize("size", SIZES)
    def test_the_whole_path(self, size):
        preprocessing = ImagePreprocessing(resize=70, crop=64)
        pixels = images.preprocess_image(noise(*size), preprocessing)
        assert pixels.shape == (64, 64, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.writeable
        square = padded_resize.pad_to_square(Image.fromarray(noise(*size)))
        expected = np.asarray(square.resize((70, 70), Image.Resampling.BILINEAR))[3:67, 3:67]
        np.testing.assert_array_equal(pixels, expected)

    @pytest.mark.parametrize("resampling", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("size", SIZES)
    def test_every_fit_and_filter(self, size, resampling):
        """Against PIL's plain operations; "crop" is also that of CLIP's published preprocessing."""
        image, filter_ = Image.fromarray(noise(*size)), Image.Resampling[resampling.upper()]
        wide = image.resize(tuple(int(side * 70 / min(image.size)) for side in image.size), filter_)
        left, top = (wide.width - 70) // 2, (wide.height - 70) // 2
        expected = {
            "pad": padded_resize.pad_to_square(image).resize((70, 70), filter_),
            "crop": wide.crop((left, top, left + 70, top + 70)),
            "stretch": image.resize((70, 70), filter_),
        }
        for fit, square in expected.items():
            preprocessing = ImagePreprocessing(resize=70, crop=64, fit=fit, resampling=resampling)
            if fit == "crop" and max(image.size) > 16 * min(image.size):
                assert images.load_square(image, preprocessing).size == (70, 70)
                continue
            found = images.load_square(image, preprocessing)
            np.testing.assert_array_equal(found, square, fit)


def triangle_weights(size, new_size):
    """The weight of each old pixel in each new one: a triangle as wide as two new pixels."""
    scale = size / new_size
    width = max(scale, 1.0)
    new_centers = (np.arange(new_size)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - new_centers) / width)
    return weights / weights.sum(axis=1, keepdims=True)


def test_the_shapes_in_the_signatures_are_true():
    typed = jaxtyped(typechecker=beartype)
    typed(images.preprocess_image)(noise(6, 4), ImagePreprocessing())


def test_neither_jax_nor_tensorflow_is_imported():
    code = (
        "import sys, cmap_jax.processing.images; "
        "sys.exit(any(name in sys.modules for name in ('jax', 'tensorflow')))"
    )
    root = pathlib.Path(images.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
