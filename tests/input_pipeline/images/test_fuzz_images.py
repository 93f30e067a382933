"""Damaged images: the check finds what is useless and nothing else, and never raises."""

import contextlib
import pathlib
import struct
import zlib

import fake_data
import pytest
import tensorflow as tf
from fuzzing import explore, few_or_many, put_something_else, remove, restored, time_limit
from hypothesis import strategies as st

from cmap_jax.processing.images import ImagePreprocessing, ImageReadError, preprocess_image
from input_pipeline.images.check import check_images
from input_pipeline.images.decoding import FileLoader
from input_pipeline.images.loading import FailedImages
from input_pipeline.images.sources import FolderImages
from input_pipeline.registry import DATA_SETS


def _png(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds a byte of it."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    body = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


NO_IMAGES = [b"", b"\n", b"hello" * 50, b"<!DOCTYPE html><html></html>", b"GIF89a", b"\xff\xd8\xff"]
BOMBS = [_png(60_000, 60_000), _png(20_000, 1), _png(1, 2**31 - 1)]
PREPROCESSING = ImagePreprocessing(resize=40, crop=32)


def _load(image):
    """Decode an image as training does, inside tf.data."""
    loader = FileLoader(FolderImages({image.id: image}), PREPROCESSING, FailedImages("fail"))
    plan = tf.data.Dataset.from_tensors({"image": [loader.keys([image.id])]})
    return list(loader.squares(plan, 1))


def _damaged_image(draw, path: pathlib.Path, content: bytes, healthy: pathlib.Path) -> bool | None:
    """Damage an image file; return whether it is useless, None where that is open."""
    kind = draw(st.sampled_from(["no image", "bomb", "cut", "random", "over", "file", "link"]))
    if kind == "file":
        put_something_else(draw, path)
        return True
    if kind == "link":
        place = draw(st.sampled_from(["out", "absolute", "inside"]))
        targets = {"out": "../" * 99 + "etc/passwd", "absolute": "/etc/passwd", "inside": healthy}
        remove(path)
        path.symlink_to(targets[place])
        return place != "inside"
    start = draw(st.integers(0, len(content) - 20))
    damaged = {
        "no image": lambda: draw(st.sampled_from(NO_IMAGES)),
        "bomb": lambda: draw(st.sampled_from(BOMBS)),
        "cut": lambda: content[: start * 9 // 10],
        "random": lambda: content[: start // 4] + draw(st.binary(min_size=1, max_size=200)),
        "over": lambda: content[:start] + draw(st.binary(max_size=9)) + content[start + 9 :],
    }[kind]()
    path.write_bytes(damaged)
    return None if kind in ("random", "over") else True


@pytest.mark.parametrize("name", fake_data.DATA_SETS)
@few_or_many(20, 300)
def test_damaged_images(tmp_path, name, examples):
    reader, root = DATA_SETS[name.split()[0]], fake_data.DATA_SETS[name](tmp_path)
    records = reader.read(str(root))
    images = records.images
    assert check_images(records) == {}

    def case(data):
        first, *others = images.values()
        image = data.draw(st.sampled_from(others))
        path = pathlib.Path(image.path)
        with restored(path) as content:
            useless = _damaged_image(data.draw, path, content, pathlib.Path(first.path))
            with time_limit():
                now = reader.read(str(root))
                reasons = check_images(now)
            assert set(reasons) <= {image.id}
            if image.id not in now.images:  # the gallery is what the folder holds
                return
            assert useless is None or useless == bool(reasons)
            for reason in reasons.values():
                assert reason.isprintable(), ascii(reason)
                assert 0 < len(reason) < 300
            if not reasons:  # a damage within, which only decoding finds
                with contextlib.suppress(ImageReadError):
                    preprocess_image(image.path, PREPROCESSING)
                with contextlib.suppress(tf.errors.InvalidArgumentError):
                    _load(image)

    explore(case, examples)
