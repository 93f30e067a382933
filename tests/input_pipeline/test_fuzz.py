"""Damaged data sets: every reader refuses them in one clear line, and never in another way."""

import contextlib
import copy
import json
import os
import pathlib
import posixpath
import re
import signal
import struct
import zlib
from unittest import mock

import fake_data
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmap_jax.processing.images import ImagePreprocessing, ImageReadError, preprocess_image
from cmap_jax.processing.tokenizer import Vocabulary
from input_pipeline import preprocess, storage
from input_pipeline.image_check import check_images
from input_pipeline.readers import READERS
from input_pipeline.records import Records

# A reader's name, and how its small data set is written.
WRITERS = {
    "fashion_iq": fake_data.fashion_iq,
    "fashion200k": fake_data.fashion200k,
    "shoes": fake_data.shoes,
    "shoes prepared": lambda root: fake_data.shoes(root, prepared=True),
    "cirr": fake_data.cirr,
    "circo": fake_data.circo,
    "folder": fake_data.folder,
    "folder jsonl": lambda root: fake_data.folder(root, suffix="jsonl"),
}
SECONDS = 20  # that a case may take; it takes milliseconds

every_set = pytest.mark.parametrize("name", WRITERS)


def _examples(fast: int, slow: int):
    return pytest.mark.parametrize(
        "examples", [fast, pytest.param(slow, marks=pytest.mark.slow)], ids=["fast", "slow"]
    )


def _explore(case, examples: int):
    """Call ``case(data)`` on as many examples, the same in every run."""
    options = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    options(given(st.data())(case))()


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """A function from a set's name to its reader, its folder and the annotation files read."""
    written = {}

    def get(name):
        reader = READERS[name.split()[0]]
        if name not in written:
            root = WRITERS[name](tmp_path_factory.mktemp("d"))
            with mock.patch.object(storage, "read_text", wraps=storage.read_text) as read_text:
                assert _read_or_refuse(reader, root) == ""
            files = {pathlib.Path(call.args[0]) for call in read_text.call_args_list}
            written[name] = root, sorted(files)
        return reader, *written[name]

    return get


@contextlib.contextmanager
def _restored(path: pathlib.Path):
    """Give a file's bytes; at the end the file is there again, whatever has taken its place."""
    content = path.read_bytes()
    try:
        yield content
    finally:
        _remove(path)
        path.write_bytes(content)


def _remove(path: pathlib.Path):
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _time_limit():
    def stop(*_):
        raise AssertionError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _read_or_refuse(reader, root: pathlib.Path) -> str:
    """Read a folder; return the error's message, or nothing where the records are sound."""
    try:
        with _time_limit():
            records = reader.read(str(root))
    except (ValueError, OSError) as error:
        message = "" if isinstance(error, UnicodeError) else str(error)
    else:
        _check(records, root)
        return ""
    assert str(root) in message
    assert len(message) < 500, message
    assert message.isprintable(), ascii(message)  # one line, and nothing that no file can hold
    return message


def _check(records: Records, root: pathlib.Path):
    """Check that nothing behind the readers meets what it cannot work with."""
    assert set(records.all_image_ids()) <= set(records.images)
    for image in records.images.values():
        assert posixpath.normpath(image.path).startswith(f"{root}/"), image
    vocabulary = Vocabulary.build(records.vocabulary_captions, records.extra_special)
    "".join([*records.images, *records.vocabulary_captions]).encode()
    if len(records.train):
        vocabulary.encode(records.train.draw(0, 0, len(records.train) - 1).captions)
        assert list(records.train.longest_texts())
    splits = [*records.evaluations.values(), tuple(records.unlabelled.values())]
    for evaluation in (e for split in splits for e in split):
        evaluation.conditions()
        assert all(evaluation.galleries[q.category] for q in evaluation.queries)
        vocabulary.encode_batch([q.captions for q in evaluation.queries])


# Damage to annotations.

CLIMBING = ["../../etc/passwd", "a/../../b.jpg", "..", "/etc/passwd", "C:\\x.jpg", "gs://x/y.jpg"]
TEXTS = [
    *CLIMBING,
    *("", " ", ".", "./", "a/", "women/", "women//etc/passwd", "~", "a\0b", "a\nb", "a\tb", "a,b"),
    *("\ud800", "\u2028", "\u202e", "\u3000", "\ufeff", '"', "x" * 300, "é" * 200, "x" * 100_000),
    *("a/" * 3_000 + "b", "a b " * 1_000),
]
# What `json.dumps` does not write, by the text that stands for it.
RAW = {
    "@digits": "9" * 5_000,
    "@list": "[" * 100_000,
    "@bomb": '{"a":' * 3_000 + "1" + "}" * 3_000,
    **{f"@nested{n}": "[" * n + "]" * n for n in range(100, 3_000, 100)},
}
VALUES = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from(list(RAW)),
    st.sampled_from([None, True, 0, -1, 10**12, 10**30, 1.5, float("nan"), float("inf")]),
    st.sampled_from([[], {}, [[]], ["a"], ["a"] * 3, {"a": 1}, {"a": "b"}]),
    st.text(max_size=20),
)
WHOLE = [
    *(b"", b"\n", b"null", b"3", b'"a"', b"[]", b"{}", b"[[]]", b"[{}]", b"<html>\n", b"\0" * 99),
    *(b"[" * 100_000, b"9" * 5_000, b"reference,text,target\n", b"\xef\xbb\xbf", b"a\tb\tc\n"),
]


def _nodes(value, path):
    """Yield the path of every value in a JSON document."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _nodes(inner, (*path, key))


def _damaged_json(draw, text: str) -> tuple[str, bool]:
    """Change a value of a JSON document; also tell whether it lies inside an entry."""
    document = {"": json.loads(text)}
    path = draw(st.sampled_from(list(_nodes(document[""], ("",)))))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    change = draw(st.sampled_from(["replace", "replace", "replace", "delete", "double", "swap"]))
    if change == "delete" and len(path) > 1:
        del parent[key]
    elif change == "double" and isinstance(parent, list):
        parent.insert(0, copy.deepcopy(parent[key]))
    elif change == "swap" and isinstance(parent[key], list | dict):
        value = parent[key]
        parent[key] = list(value) if isinstance(value, dict) else dict(enumerate(value))
    else:
        parent[key] = draw(VALUES)
    text = json.dumps(document[""])
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text, len(path) > 2


def _damaged_line(draw, text: str) -> str:
    """Change a line of a table, or a field of it."""
    lines = text.split("\n")
    number = draw(st.integers(0, len(lines) - 1))
    separator = draw(st.sampled_from("\t, "))
    fields = lines[number].split(separator)
    field = draw(st.integers(0, len(fields) - 1))
    change = draw(st.sampled_from(["replace", "replace", "delete", "double", "cut", "end"]))
    if change == "replace":
        fields[field] = draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=20)))
    elif change == "delete":
        del fields[field]
    elif change == "double":
        fields.insert(field, fields[field])
    lines[number] = separator.join(fields)
    if change == "cut":
        del lines[number]
    elif change == "end":
        lines[number] += draw(st.sampled_from(["\r", "\n", "\r\r", "\x0b", "\u2028", '"', "\t"]))
    return "\n".join(lines)


def _damaged_bytes(draw, content: bytes) -> bytes:
    """Cut a file short, replace it, or write over a part of it."""
    if draw(st.booleans()):
        return draw(st.sampled_from([*WHOLE, content * 2, content.decode().encode("utf-16")]))
    start = draw(st.integers(0, len(content)))
    end = draw(st.sampled_from([start, start + 1, start + 9, len(content)]))
    filling = st.sampled_from([b"", b"\xff", b"\0", b"\xed\xa0\x80", b'"', b"\r", b"]", b"}"])
    return content[:start] + draw(st.one_of(filling, st.binary(max_size=9))) + content[end:]


def _put_something_else(draw, path: pathlib.Path) -> str:
    """Put no readable file where a file was; return what is there now."""
    kind = draw(st.sampled_from(["nothing", "folder", "dangling", "loop", "pipe", "huge"]))
    _remove(path)
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        path.touch()
        os.truncate(path, 1 << 40)  # takes no room
    return kind


@every_set
@_examples(50, 2_000)
def test_damaged_annotations(data_set, name, examples):
    reader, root, files = data_set(name)

    def case(data):
        draw = data.draw
        file = draw(st.sampled_from(files))
        how = draw(st.sampled_from(["content", "content", "content", "bytes", "file"]))
        located = False  # whether the error must name the entry
        with _restored(file) as content:
            if how == "file":
                _put_something_else(draw, file)
            elif how == "bytes":
                file.write_bytes(_damaged_bytes(draw, content))
            elif file.suffix == ".json":
                text, located = _damaged_json(draw, content.decode())
                file.write_text(text)
            elif file.suffix == ".jsonl" and draw(st.booleans()):
                lines = content.decode().splitlines()
                number = draw(st.integers(0, len(lines) - 1))
                lines[number], located = _damaged_json(draw, lines[number])[0], True
                file.write_text("\n".join(lines))
            else:
                text = _damaged_line(draw, content.decode())
                file.write_bytes(text.encode("utf-8", "surrogatepass"))
            message = _read_or_refuse(reader, root)
        if message and located:
            # JSON that cannot be read has a line and a column; some of it only a reason.
            where = r"entr(y|ies) |line \d|image \d|not JSON|nested|column|are one image"
            assert re.search(where, message), message

    _explore(case, examples)


@every_set
@pytest.mark.parametrize("path", [*CLIMBING, "a/..", "\\\\server\\x", "//etc/passwd"])
def test_names_that_climb_out_are_refused(data_set, name, path):
    reader, root, files = data_set(name)
    for file in files:
        text = file.read_text()
        names = re.findall(r"[\w./-]*\w\.(?:jpe?g|png)|(?<=\")[dt](?:train|val)\d", text)
        if not names:  # CIRCO names images by number
            continue
        with _restored(file):
            file.write_text(text.replace(names[-1], json.dumps(path)[1:-1]))
            message = _read_or_refuse(reader, root)
        assert re.search("climbs out|relative to the image folder", message), message
        assert file.name in message
        assert re.search(r"entry |line \d", message), message


# Damage to images.


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


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def _tensorflow_image(path):
    return preprocess.evaluation_image(tf.io.read_file(path), PREPROCESSING)


def _damaged_image(draw, path: pathlib.Path, content: bytes) -> bool | None:
    """Damage an image file; return whether it is useless, None where that is open."""
    kind = draw(st.sampled_from(["no image", "bomb", "cut", "random", "over", "file", "link"]))
    if kind == "file":
        _put_something_else(draw, path)
        return True
    if kind == "link":
        place = draw(st.sampled_from(["out", "absolute", "inside"]))
        others = {"out": "/".join([".."] * 9) + "/etc/passwd", "absolute": "/etc/passwd"}
        healthy = next(p for p in sorted(path.parent.rglob("*")) if p.suffix == path.suffix)
        _remove(path)
        path.symlink_to(others.get(place, healthy))
        return place != "inside" or healthy == path
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


@every_set
@_examples(20, 500)
def test_damaged_images(data_set, name, examples):
    reader, root, _ = data_set(name)
    images = reader.read(str(root)).images
    assert check_images(images.values(), str(root)) == {}

    def case(data):
        image = data.draw(st.sampled_from(sorted(images.values(), key=lambda image: image.id)))
        path = pathlib.Path(image.path)
        with _restored(path) as content:
            useless = _damaged_image(data.draw, path, content)
            with _time_limit():
                reasons = check_images(reader.read(str(root)).images.values(), str(root))
            assert set(reasons) <= {image.id}
            assert useless is None or useless == bool(reasons)
            for reason in reasons.values():
                assert reason.isprintable(), ascii(reason)
                assert 0 < len(reason) < 300
            if not reasons:  # a damage within, which only decoding finds
                with contextlib.suppress(ImageReadError):
                    preprocess_image(image.path, PREPROCESSING)
                with contextlib.suppress(tf.errors.InvalidArgumentError):
                    _tensorflow_image(image.path)

    _explore(case, examples)
