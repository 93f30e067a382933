"""Damaged annotations: every reader refuses them in one clear line, and never in another way."""

import copy
import json
import pathlib
import posixpath
import re
from unittest import mock

import fake_data
import pytest
from fuzzing import explore, few_or_many, put_something_else, restored, time_limit
from hypothesis import strategies as st

from cmap_jax.processing.tokenizer import Vocabulary
from input_pipeline import storage
from input_pipeline.records import Records
from input_pipeline.registry import DATA_SETS

every_set = pytest.mark.parametrize("name", fake_data.DATA_SETS)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """A function from a set's name to its reader, its folder and the annotation files read."""
    written = {}

    def get(name):
        reader = DATA_SETS[name.split()[0]]
        if name not in written:
            root = fake_data.DATA_SETS[name](tmp_path_factory.mktemp("d"))
            with mock.patch.object(storage, "read_text", wraps=storage.read_text) as read_text:
                assert _read_or_refuse(reader, root) == ""
            files = {pathlib.Path(call.args[0]) for call in read_text.call_args_list}
            written[name] = root, sorted(files)
        return reader, *written[name]

    return get


def _read_or_refuse(reader, root: pathlib.Path) -> str:
    """Read a folder; return the error's message, or nothing where the records are sound."""
    try:
        with time_limit():
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


CLIMBING = ["../../etc/passwd", "a/../../b.jpg", "..", "/etc/passwd", "C:\\x.jpg", "gs://x/y.jpg"]
TEXTS = [
    *CLIMBING,
    *("", " ", ".", "./", "a/", "women/", "women//etc/passwd", "~", "a\0b", "a\nb", "a\tb", "a,b"),
    *("\ud800", "\u2028", "\u202e", "\u3000", "\ufeff", '"', "x" * 300, "é" * 200, "x" * 100_000),
    *("a/" * 3_000 + "b", "a b " * 1_000),
]
# Texts that `json.dumps` does not write, by the text that stands for it.
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
# Faults that no single file has, and names the folder.
WHOLE_SET = "this is not .*layout|no test_queries|no two training captions"
KEYS = ["gt_img_ids", "target_img_id", "target_hard", "target", "text2", "id", *TEXTS]
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
    change = draw(st.sampled_from([*["replace"] * 3, "delete", "double", "swap", "add"]))
    if change == "delete" and len(path) > 1:
        del parent[key]
    elif change == "double" and isinstance(parent, list):
        parent.insert(0, copy.deepcopy(parent[key]))
    elif change == "swap" and isinstance(parent[key], list | dict):
        value = parent[key]
        parent[key] = list(value) if isinstance(value, dict) else dict(enumerate(value))
    elif change == "add" and isinstance(parent[key], dict):
        parent[key][draw(st.one_of(st.sampled_from(KEYS), st.text(max_size=20)))] = draw(VALUES)
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


@every_set
@few_or_many(50, 1_200)
def test_damaged_annotations(data_set, name, examples):
    reader, root, files = data_set(name)

    def case(data):
        draw = data.draw
        file = draw(st.sampled_from(files))
        how = draw(st.sampled_from(["content", "content", "content", "bytes", "file"]))
        located = False  # whether the error must name the entry
        with restored(file) as content:
            if how == "file":
                put_something_else(draw, file)
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
        assert not message or any(f.name in message for f in files) or re.search(WHOLE_SET, message)
        if message and located:
            # JSON that cannot be read has a line and a column; some of it only a reason.
            where = r"entr(y|ies) |line \d|image \d|not JSON|nested|column"
            assert re.search(where, message), message

    explore(case, examples)


@every_set
@pytest.mark.parametrize("path", [*CLIMBING, "a/..", "\\\\server\\x", "//etc/passwd"])
def test_names_that_climb_out_are_refused(data_set, name, path):
    reader, root, files = data_set(name)
    for file in files:
        text = file.read_text()
        names = re.findall(r"[\w./-]*\w\.(?:jpe?g|png)|(?<=\")[dt](?:train|val)\d", text)
        if not names:  # CIRCO names images by number
            continue
        with restored(file):
            file.write_text(text.replace(names[-1], json.dumps(path)[1:-1]))
            message = _read_or_refuse(reader, root)
        assert re.search("climbs out|relative to the image folder", message), message
        assert file.name in message
        assert re.search(r"entry |line \d", message), message
