"""Published picture processors as config fields: the same pixels, bit for bit, and refusals."""

import json

import numpy as np
import pytest
from optional import require
from PIL import Image

from cmap_jax.convert.picture_processor import read_pictures
from cmap_jax.processing.images import ImagePreprocessing, preprocess_image

# Width and height: odd, long, square, smaller and larger than the result, and a single row.
SIZES = [(33, 57), (301, 199), (640, 427), (64, 64), (7, 90), (15, 1), (48, 49), (1023, 767)]
OPAQUE, TRANSPARENT = ("RGB", "L", "P", "CMYK", "1"), ("RGBA", "LA")
PICTURE = ("fit", "resampling", "resize", "crop")


def _picture(size, mode, seed=0):
    """A random picture that a JPEG's blocks could have, so that filters have edges to ring at."""
    rng = np.random.default_rng([seed, *size])
    coarse = rng.integers(0, 256, (size[1] // 5 + 1, size[0] // 5 + 1, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(rng.integers(0, 256, size[::-1]).astype(np.uint8)))
    return image.convert(mode)


@pytest.fixture(scope="module")
def processors():
    """The published processors in their PIL form, small."""
    transformers = require("transformers")
    small = {"size": {"height": 48, "width": 48}}
    return {
        "clip": transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
        ),
        "clip, cropped further": transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 60}, crop_size={"height": 48, "width": 48}, resample=2
        ),
        "siglip": transformers.SiglipImageProcessorPil(**small),
        "siglip 2": transformers.SiglipImageProcessorPil(**small, resample=2),
    }


@pytest.mark.parametrize("name", ["clip", "clip, cropped further", "siglip", "siglip 2"])
def test_pixels_equal_the_processor_s(processors, name, tmp_path):
    """In PIL's form, before normalisation. It lays transparency on white, as "upright" does."""
    processor = processors[name]
    processor.save_pretrained(tmp_path)
    fields = read_pictures(tmp_path, name[:4] if name.startswith("clip") else "siglip", 224)
    assert fields["mean"] == tuple(processor.image_mean)
    assert fields["std"] == tuple(processor.image_std)
    released, upright = (
        ImagePreprocessing(**{field: fields[field] for field in PICTURE}, read_as=read_as)
        for read_as in ("released", "upright")
    )
    for number, size in enumerate(SIZES):
        for mode in (*OPAQUE, *TRANSPARENT):
            image = _picture(size, mode, number)
            theirs = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
            expected = theirs.pixel_values[0].transpose(1, 2, 0)
            assert expected.dtype == np.uint8
            for ours in (upright, released) if mode in OPAQUE else (upright,):
                np.testing.assert_array_equal(
                    preprocess_image(image, ours), expected, err_msg=f"{size} {mode}"
                )


def test_targetpad_is_that_of_clip4cir():
    """Against its definition in NumPy: black on both sides up to 4:5, then CLIP's picture."""
    ours = ImagePreprocessing(resize=48, crop=48, fit="targetpad", resampling="bicubic")
    clip = ImagePreprocessing(resize=48, crop=48, fit="crop", resampling="bicubic")
    for size in [*SIZES, (50, 40), (51, 40), (40, 50), (41, 57)]:
        pixels = np.asarray(_picture(size, "RGB"))
        height, width = pixels.shape[:2]
        if max(size) / min(size) >= 1.25:
            rows, columns = (max(int((max(size) / 1.25 - n) / 2), 0) for n in (height, width))
            pixels = np.pad(pixels, ((rows, rows), (columns, columns), (0, 0)))
        expected = preprocess_image(Image.fromarray(pixels), clip)
        image = _picture(size, "RGB")
        np.testing.assert_array_equal(preprocess_image(image, ours), expected, err_msg=f"{size}")


def _write(folder, name="preprocessor_config.json", **content):
    (folder / name).write_text(json.dumps(content))
    return folder


def test_values_that_files_leave_out(tmp_path):
    clip = {
        "fit": "crop",
        "resampling": "bicubic",
        "resize": 336,
        "crop": 336,
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
    }
    assert read_pictures(tmp_path, "clip", 336) == clip
    half = (0.5, 0.5, 0.5)
    siglip = {**clip, "fit": "stretch", "resize": 256, "crop": 256, "mean": half, "std": half}
    assert read_pictures(tmp_path, "siglip", 256) == siglip
    # The first published files, with a number as the size; a mean of its own is kept.
    _write(tmp_path, size=336, crop_size=336, resample=3, image_mean=[0.5, 0.5, 0.5])
    assert read_pictures(tmp_path, "clip", 224) == {**clip, "mean": half}
    (tmp_path / "preprocessor_config.json").unlink()
    processor = {"size": {"height": 256, "width": 256}, "resample": 2}
    _write(tmp_path, "processor_config.json", image_processor=processor)
    assert read_pictures(tmp_path, "siglip", 224) == {**siglip, "resampling": "bilinear"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"resample": 1}, "resample is 1, neither 2, bilinear, nor 3, bicubic"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_pad": True}, "do_pad is true"),
        ({"do_rescale": False}, "do_rescale and rescale_factor"),
        ({"rescale_factor": 1 / 127.5}, "do_rescale and rescale_factor"),
        ({"do_center_crop": False, "size": {"shortest_edge": 224}}, "do_center_crop must make"),
        ({"size": {"height": 224, "width": 192}}, "size is .*must be a square's"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "shortest_edge must be alone"),
        ({"size": {"shortest_edge": 192}}, r"crop \(224\) must not exceed resize \(192\)"),
        ({"size": {"shortest_edge": 225}}, "odd, and has no one center"),
        ({"image_mean": [0.5]}, "image_mean is .*three numbers"),
        ({"image_std": [0, 1, 1]}, "image_std is .*positive"),
    ],
)
def test_processors_that_no_config_expresses(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"preprocessor_config.json: .*{message}") as error:
        read_pictures(_write(tmp_path, **content), "clip", 224)
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    for content, message in (("{", "not JSON"), ("[1]", r"not a JSON object, but \[1\]")):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"preprocessor_config.json: {message}"):
            read_pictures(tmp_path, "clip", 224)
